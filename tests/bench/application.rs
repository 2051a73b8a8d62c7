//! What is called behind the proxies: a page of 1 KiB at `/`, bytes without end in sight at `/bulk`, and gRPC that says
//! everything back.
//!
//! Pages are nginx's, where it is installed; gRPC is this program's own, in a process of its own.

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    task::{Context, Poll, ready},
};

use anyhow::Context as _;
use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Body, Bytes, Frame, Incoming, SizeHint},
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use mesh_tests::{
    process::{Process, Recipe},
    world::World,
};
use tokio::net::TcpListener;

use crate::{
    load::{Load, Shape, Talk},
    peers::{Service, is_installed, nginx},
};

/// Bytes of the page, and of a message of gRPC.
pub(crate) const PAGE: usize = 1024;

/// The processes behind the proxies.
#[derive(Debug)]
pub(crate) struct Application {
    _processes: Vec<Process>,
    /// HTTP/1.1.
    page: u16,
    /// The same page over HTTP/2.
    page_http2: u16,
    grpc: u16,
}

impl Application {
    /// Starts it; without nginx this program's own server answers for everything.
    pub(crate) fn start(world: &World, bulk_mib: u64) -> anyhow::Result<Self> {
        let grpc = world.port()?;
        let recipe = Recipe::new(&std::env::current_exe()?)
            .arg("serve")
            .flag("--port", grpc.to_string())
            .flag("--bulk-mib", bulk_mib.to_string());
        let mut server = Process::start(world, "application", recipe)?;
        server.wait_ready(|| answers(Talk::GrpcUnary, grpc))?;
        if !is_installed("nginx") {
            return Ok(Self {
                _processes: vec![server],
                page: grpc,
                page_http2: grpc,
                grpc,
            });
        }
        let (page, page_http2) = (world.port()?, world.port()?);
        let root = world.directory().join("www");
        world.file("www/index.html", &"x".repeat(PAGE))?;
        // Sparse: reading it costs no disk.
        std::fs::File::create(root.join("bulk"))?.set_len(bulk_mib << 20)?;
        let own = world.directory().join("nginx");
        std::fs::create_dir_all(&own)?;
        // With sendfile, nginx sends the headers of HTTP/2 by themselves and then waits 40 ms for them to be acknowledged.
        let config = format!(
            "{}  root {};\n  server {{ listen 127.0.0.1:{page}; }}\n  server {{ listen 127.0.0.1:{page_http2} http2; sendfile off; }}\n}}\n",
            nginx::head(&own, 15_000),
            root.display()
        );
        let config = world.file("nginx.conf", &config)?;
        let recipe = Recipe::new("nginx".as_ref()).flag("-c", config);
        let mut nginx = Process::start(world, "nginx", recipe)?;
        nginx.wait_ready(|| {
            answers(Talk::Http1, page)?;
            answers(Talk::Http2, page_http2)
        })?;
        Ok(Self {
            _processes: vec![server, nginx],
            page,
            page_http2,
            grpc,
        })
    }

    /// Where it answers for a service, on 127.0.0.1.
    pub(crate) fn port(&self, service: Service) -> u16 {
        match service {
            Service::Http1 | Service::Tcp | Service::TcpUnresumed => self.page,
            Service::Http2 => self.page_http2,
            Service::Grpc => self.grpc,
        }
    }
}

fn answers(talk: Talk, port: u16) -> anyhow::Result<()> {
    Load::open(talk, (Ipv4Addr::LOCALHOST, port).into(), Shape::ONE).map(|_| ())
}

/// The server of this program, until it is killed.
pub(crate) fn serve(port: u16, bulk_mib: u64) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener = TcpListener::bind(address).await.context(address)?;
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                // Somebody left before being let in.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error.into()),
            };
            let _ = stream.set_nodelay(true);
            tokio::spawn(async move {
                let mut server = auto::Builder::new(TokioExecutor::new());
                server.http2().max_concurrent_streams(1000);
                let answer =
                    service_fn(
                        |request| async move { Ok::<_, Infallible>(answer(request, bulk_mib)) },
                    );
                // A client that leaves is nothing to tell of.
                let _ = server.serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    })
}

type Answer = Response<UnsyncBoxBody<Bytes, hyper::Error>>;

fn answer(request: Request<Incoming>, bulk_mib: u64) -> Answer {
    const PIECE: Bytes = Bytes::from_static(&[b'x'; 64 << 10]);
    let mut answer = Response::new(match request.uri().path() {
        "/" => whole(&[b'x'; PAGE]),
        "/bulk" => {
            // Sixteen pieces of 64 KiB are a MiB.
            let count = usize::try_from(bulk_mib * 16).unwrap_or(usize::MAX);
            StreamBody::new(stream::repeat_with(|| Ok(Frame::data(PIECE))).take(count))
                .boxed_unsync()
        }
        path if path.starts_with(crate::load::GRPC_SERVICE) => {
            let mut answer = Response::new(Echo(Some(request.into_body())).boxed_unsync());
            let grpc = HeaderValue::from_static("application/grpc");
            answer.headers_mut().insert(CONTENT_TYPE, grpc);
            return answer;
        }
        _ => {
            let mut answer = Response::new(whole(b""));
            *answer.status_mut() = StatusCode::NOT_FOUND;
            return answer;
        }
    });
    if request.uri().path() == "/bulk" {
        answer
            .headers_mut()
            .insert(CONTENT_LENGTH, (bulk_mib << 20).into());
    }
    answer
}

fn whole(bytes: &'static [u8]) -> UnsyncBoxBody<Bytes, hyper::Error> {
    let body = Full::new(Bytes::from_static(bytes));
    body.map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

/// Says back what is said, as it comes, and then that all was well.
#[derive(Debug)]
struct Echo(Option<Incoming>);

impl Body for Echo {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(heard) = &mut self.0 else {
            return Poll::Ready(None);
        };
        match ready!(Pin::new(heard).poll_frame(context)) {
            Some(Ok(frame)) if frame.is_data() => Poll::Ready(Some(Ok(frame))),
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            // The end, or trailers, which gRPC's clients do not send.
            _ => {
                self.0 = None;
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use mesh_tests::{
        ports::Ports,
        wait::{SOON, eventually},
    };

    use super::*;

    #[test]
    fn client_and_application_understand_each_other() {
        let ports = Ports::new().unwrap();
        let port = ports.take().unwrap();
        // Ends with the test's process.
        thread::spawn(move || serve(port, 1));
        eventually(SOON, "the application answers", || {
            answers(Talk::Http1, port)
        })
        .unwrap();
        let many = Shape {
            connections: 4,
            streams: 8,
        };
        for talk in [
            Talk::Http1,
            Talk::Http1Anew,
            Talk::Http2,
            Talk::GrpcUnary,
            Talk::GrpcStream,
        ] {
            let mut load = Load::open(talk, (Ipv4Addr::LOCALHOST, port).into(), many).unwrap();
            let outcome = load.saturate(Duration::from_millis(100)).unwrap();
            assert!(outcome.count() >= 4.0, "{talk:?}: {outcome:?}");
        }
    }
}
