//! Who is measured: a table, and pairs of proxies started from it.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`chain`] | client → proxy → mutual TLS → proxy → application, and what of it can be measured from outside |
//! | [`certificates`] | one CA and a certificate for each side |
//! | [`haproxy`], [`envoy`], [`nginx`] | what each of them wants to be told |
//! | [`isthmus`] | the same by two sidecars of ours, with the control planes and policies that belong to them |

pub(crate) mod certificates;
pub(crate) mod chain;
mod envoy;
mod haproxy;
pub(crate) mod isthmus;
pub(crate) mod nginx;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use mesh_tests::{
    process::{Process, Recipe},
    world::World,
};

use self::{certificates::Certificates, chain::Chain};
use crate::application::Application;

/// What is called through a pair of proxies: each has a port of its own at every step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    /// Client and application speak HTTP/1.1.
    Http1,
    /// Client and application speak HTTP/2 (in the clear, with prior knowledge).
    Http2,
    /// gRPC over the same.
    Grpc,
    /// Bytes: the proxies know of no protocol, though HTTP/1.1 is spoken.
    Tcp,
    /// The same, and the proxies shake hands wholly each time instead of resuming a TLS session (as ours always do).
    TcpUnresumed,
}

impl Service {
    pub(crate) const ALL: [Self; 5] = [
        Self::Http1,
        Self::Http2,
        Self::Grpc,
        Self::Tcp,
        Self::TcpUnresumed,
    ];

    /// In the files of the peers.
    fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
            Self::TcpUnresumed => "tcp-unresumed",
        }
    }

    /// Whether proxies know that it is HTTP.
    fn is_http(self) -> bool {
        match self {
            Self::Http1 | Self::Http2 | Self::Grpc => true,
            Self::Tcp | Self::TcpUnresumed => false,
        }
    }
}

/// What is spoken between the two proxies for what they know to be HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Between {
    Http1,
    Http2,
}

/// Who is measured.
#[derive(Debug)]
pub(crate) struct Peer {
    pub name: &'static str,
    /// What it can do.
    pub services: &'static [Service],
    software: Software,
}

#[derive(Debug)]
enum Software {
    Ours,
    Haproxy(Between),
    Envoy(Between),
    Nginx,
}

const WITHOUT_TCP: &[Service] = &[Service::Http1, Service::Http2, Service::Grpc];

/// The peer that all others are compared with.
pub(crate) const BASE: &str = "haproxy";

/// Ours.
pub(crate) const OURS: &str = "isthmus";

/// Of all [`PEERS`].
pub(crate) const NAMES: [&str; PEERS.len()] = {
    let mut names = [""; PEERS.len()];
    let mut at = 0;
    while at < names.len() {
        names[at] = PEERS[at].name;
        at += 1;
    }
    names
};

/// In the order of the table's columns.
pub(crate) const PEERS: &[Peer] = &[
    Peer {
        name: OURS,
        services: &Service::ALL,
        software: Software::Ours,
    },
    Peer {
        name: BASE,
        services: &Service::ALL,
        software: Software::Haproxy(Between::Http1),
    },
    Peer {
        name: "haproxy-h2",
        services: WITHOUT_TCP,
        software: Software::Haproxy(Between::Http2),
    },
    Peer {
        name: "envoy",
        // Over HTTP/1.1 it drops the trailers that a call of gRPC ends with.
        services: &[
            Service::Http1,
            Service::Http2,
            Service::Tcp,
            Service::TcpUnresumed,
        ],
        software: Software::Envoy(Between::Http1),
    },
    Peer {
        name: "envoy-h2",
        services: WITHOUT_TCP,
        software: Software::Envoy(Between::Http2),
    },
    Peer {
        name: "nginx",
        services: WITHOUT_TCP,
        software: Software::Nginx,
    },
];

/// What all pairs have in common.
#[derive(Debug)]
pub(crate) struct Site<'a> {
    pub world: &'a World,
    pub application: &'a Application,
    /// An Envoy somebody brought.
    pub envoy: Option<&'a Path>,
}

/// Which of the two proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Takes plain connections, passes them on with TLS.
    Client,
    /// Takes TLS, passes plain connections on.
    Server,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// One of the two proxies, from which its configuration is made.
#[derive(Debug)]
struct Side<'a> {
    role: Role,
    between: Between,
    hops: Vec<Hop>,
    certificates: &'a Certificates,
    /// Unique among all processes of the run; a folder of this name in `directory` is its own.
    name: String,
    directory: &'a Path,
}

/// Where one service comes in, and where it goes next; both on 127.0.0.1.
#[derive(Debug, Clone, Copy)]
struct Hop {
    service: Service,
    listen: u16,
    next: u16,
}

impl Peer {
    pub(crate) fn serves(&self, service: Service) -> bool {
        self.services.contains(&service)
    }

    /// What must be installed.
    pub(crate) fn program(&self) -> Option<&'static str> {
        match self.software {
            Software::Haproxy(_) => Some("haproxy"),
            Software::Nginx => Some("nginx"),
            Software::Ours | Software::Envoy(_) => None,
        }
    }

    /// Whether it comes from somewhere else when it is needed, which may fail.
    pub(crate) fn is_brought(&self) -> bool {
        matches!(self.software, Software::Envoy(_))
    }

    /// Starts both proxies, with what belongs to them.
    pub(crate) fn start(&self, site: &Site<'_>) -> anyhow::Result<Chain> {
        match self.software {
            Software::Ours => isthmus::start(self.name, site),
            Software::Haproxy(between) => {
                let program = PathBuf::from("haproxy");
                self.pair(site, between, "cfg", haproxy::config, |_, file| {
                    Recipe::new(&program).arg("-db").flag("-f", file)
                })
            }
            Software::Envoy(between) => {
                let program = envoy::binary(site)?;
                self.pair(site, between, "yaml", envoy::config, |role, file| {
                    envoy::recipe(&program, self.name, role, file)
                })
            }
            Software::Nginx => {
                let program = PathBuf::from("nginx");
                self.pair(site, Between::Http1, "conf", nginx::config, |_, file| {
                    Recipe::new(&program).flag("-c", file)
                })
            }
        }
    }

    /// Ports, certificates, two files, two processes.
    fn pair(
        &self,
        site: &Site<'_>,
        between: Between,
        extension: &str,
        config: fn(&Side<'_>) -> String,
        recipe: impl Fn(Role, PathBuf) -> Recipe,
    ) -> anyhow::Result<Chain> {
        let certificates = Certificates::make(site.world, self.name)?;
        let (mut to_client, mut to_server, mut entries) = (Vec::new(), Vec::new(), Vec::new());
        for &service in self.services {
            let (entry, middle) = (site.world.port()?, site.world.port()?);
            let application = match service {
                // nginx can not speak HTTP/2 to an application, but for gRPC.
                Service::Http2 if matches!(self.software, Software::Nginx) => {
                    site.application.port(Service::Http1)
                }
                _ => site.application.port(service),
            };
            let hop = |listen, next| Hop {
                service,
                listen,
                next,
            };
            to_client.push(hop(entry, middle));
            to_server.push(hop(middle, application));
            entries.push((service, SocketAddr::from((Ipv4Addr::LOCALHOST, entry))));
        }
        let start = |role: Role, hops: Vec<Hop>| {
            let side = Side {
                role,
                between,
                hops,
                certificates: &certificates,
                name: format!("{}-{}", self.name, role.name()),
                directory: site.world.directory(),
            };
            std::fs::create_dir_all(side.directory.join(&side.name))?;
            let file = format!("{}.{extension}", side.name);
            let file = site.world.file(&file, &config(&side))?;
            Process::start(site.world, &side.name, recipe(role, file))
        };
        let server = start(Role::Server, to_server)?;
        let client = start(Role::Client, to_client)?;
        Ok(Chain::new(self.name, entries, client, server))
    }
}

/// Whether a program is in one of the folders that `PATH` names.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
