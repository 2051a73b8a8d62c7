//! What is said over how many connections, as fast as goes.

use std::time::Duration;

use super::{Part, Run};
use crate::{
    load::{Load, Outcome, Shape, Talk},
    peers::{Service, chain::Chain},
    report::{Report, Results},
};

/// What is said, and how it is called.
#[derive(Debug)]
pub(super) struct Workload {
    part: Part,
    pub name: &'static str,
    pub service: Service,
    talk: Talk,
    /// What is counted.
    unit: &'static str,
    shapes: Shapes,
}

/// Over how many connections.
#[derive(Debug)]
enum Shapes {
    /// Each number that is asked for.
    Each,
    /// And few connections with many exchanges at once, as clients of HTTP/2 have them.
    EachAndMultiplexed,
    /// One number only.
    AtOnce,
}

pub(super) const HTTP1: Workload = Workload {
    part: Part::Http1,
    name: "HTTP/1.1",
    service: Service::Http1,
    talk: Talk::Http1,
    unit: "request",
    shapes: Shapes::Each,
};

pub(super) const HTTP2: Workload = Workload {
    part: Part::Http2,
    name: "HTTP/2",
    service: Service::Http2,
    talk: Talk::Http2,
    unit: "request",
    shapes: Shapes::EachAndMultiplexed,
};

const WORKLOADS: &[Workload] = &[
    HTTP1,
    HTTP2,
    Workload {
        part: Part::Grpc,
        name: "gRPC unary",
        service: Service::Grpc,
        talk: Talk::GrpcUnary,
        unit: "call",
        shapes: Shapes::EachAndMultiplexed,
    },
    Workload {
        part: Part::Streaming,
        name: "gRPC streaming",
        service: Service::Grpc,
        talk: Talk::GrpcStream,
        unit: "message",
        shapes: Shapes::EachAndMultiplexed,
    },
    Workload {
        part: Part::Tcp,
        name: "TCP",
        service: Service::Tcp,
        talk: Talk::Http1,
        unit: "request",
        shapes: Shapes::Each,
    },
    Workload {
        part: Part::Connect,
        name: "HTTP/1.1 anew",
        service: Service::Http1,
        talk: Talk::Http1Anew,
        unit: "connection",
        shapes: Shapes::AtOnce,
    },
    Workload {
        part: Part::Connect,
        name: "TCP anew",
        service: Service::Tcp,
        talk: Talk::Http1Anew,
        unit: "connection",
        shapes: Shapes::AtOnce,
    },
    Workload {
        part: Part::Connect,
        name: "TCP anew, no resumption",
        service: Service::TcpUnresumed,
        talk: Talk::Http1Anew,
        unit: "connection",
        shapes: Shapes::AtOnce,
    },
];

/// All peers' turns at all workloads of a part.
pub(super) fn measure(run: &Run<'_>, part: Part, results: &mut Results) {
    for workload in WORKLOADS.iter().filter(|workload| workload.part == part) {
        for shape in workload.shapes(run) {
            let what = format!("{}, {}", workload.name, words(shape));
            for chain in run.serving(workload.service) {
                match workload.saturate(chain, shape, run.effort.time) {
                    Ok(seen) => seen.report(&mut results.dataplane, chain.name, &what),
                    Err(error) => results.failed(chain.name, &what, &error),
                }
            }
        }
    }
}

impl Workload {
    fn shapes(&self, run: &Run<'_>) -> Vec<Shape> {
        let effort = run.effort;
        let mut shapes: Vec<_> = match self.shapes {
            Shapes::AtOnce => return vec![Shape::of(effort.at_once)],
            _ => effort.connections.iter().copied().map(Shape::of).collect(),
        };
        if let Shapes::EachAndMultiplexed = self.shapes {
            shapes.push(Shape {
                connections: effort.at_once / 8,
                streams: 8,
            });
        }
        shapes
    }

    pub(super) fn open(&self, chain: &Chain, shape: Shape) -> anyhow::Result<Load> {
        Load::open(self.talk, chain.entry(self.service)?, shape)
    }

    /// As much as `chain` takes.
    pub(super) fn saturate(
        &self,
        chain: &Chain,
        shape: Shape,
        time: Duration,
    ) -> anyhow::Result<Seen> {
        let mut load = self.open(chain, shape)?;
        self.watch(chain, || load.saturate(time))
    }

    /// What `act` sees, and what it costs the proxies.
    pub(super) fn watch(
        &self,
        chain: &Chain,
        act: impl FnOnce() -> anyhow::Result<Outcome>,
    ) -> anyhow::Result<Seen> {
        let before = chain.cpu()?;
        let outcome = act()?;
        Ok(Seen {
            outcome,
            cpu: chain.cpu()?.saturating_sub(before),
            unit: self.unit,
        })
    }
}

/// What a turn saw.
#[derive(Debug)]
pub(super) struct Seen {
    pub outcome: Outcome,
    /// Of both proxies.
    cpu: Duration,
    unit: &'static str,
}

impl Seen {
    pub(super) fn report(&self, report: &mut Report, column: &str, what: &str) {
        let cpu = self.cpu.as_secs_f64() * 1e6 / self.outcome.count();
        report.add(column, &format!("{what}: CPU µs a {}", self.unit), cpu);
        let rate = self.outcome.per_second();
        report.add(column, &format!("{what}: {}s/s", self.unit), rate);
        for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
            let quantity = format!("{what}: {name} ms");
            report.add(column, &quantity, self.outcome.quantile_ms(quantile));
        }
    }
}

/// A shape for people.
pub(super) fn words(shape: Shape) -> String {
    match shape {
        Shape {
            connections: 1,
            streams: 1,
        } => "1 connection".to_owned(),
        Shape {
            connections,
            streams: 1,
        } => format!("{connections} connections"),
        Shape {
            connections,
            streams,
        } => format!("{connections} × {streams} streams"),
    }
}
