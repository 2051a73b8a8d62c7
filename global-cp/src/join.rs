//! Joining: zones and further nodes of the global control plane turn a single-use token and a certificate request into
//! an identity.
//!
//! The token is used up by a compare-and-set in the Raft log, in the same entry as everything else the join changes, so
//! that of two that use it at once one is refused.

use mesh_model::{
    Resource, Token,
    api::{CreateToken, TokenUse},
};
use mesh_proto::{
    names::ZoneName,
    raft::Operation,
    zone::{
        JoinNodeRequest, JoinNodeResponse, JoinZoneRequest, JoinZoneResponse, ResourceKey,
        join_client::JoinClient, join_server,
    },
};
use mesh_runtime::{
    pki::{self, KeyPair},
    tls::{self, PinVerifier},
    transport,
};
use std::sync::Arc;
use time::OffsetDateTime;
use tonic::{Request, Response, Status};

use crate::{
    api::problem::Problem,
    app::App,
    authorize::Actor,
    ca::{self, InstallationCa, Signer as _},
    changes::put_operation,
    clock, facts, issue,
    sealing::SealingKey,
    settings,
    state::{Stored, image::Image},
    tokens::{self, Claims, Issuer, JoinRefused},
    writes,
    zone_sync::service::zone_addresses,
};

/// Fact that holds the last node id given out, in decimal. Ids are never given twice.
pub const LAST_NODE_ID: &str = "last-node-id";
/// Life of the token that a joining zone gets for its ingress. It is listed, and revoked, like any other.
const INGRESS_TOKEN_SECONDS: u64 = 366 * 24 * 3600;
const ATTEMPTS_MAX: usize = 8;

/// The service.
#[derive(Clone)]
pub struct Join {
    app: App,
}

impl Join {
    /// Serves what `app` holds.
    #[must_use]
    pub fn new(app: App) -> Self {
        Self { app }
    }
}

#[tonic::async_trait]
impl join_server::Join for Join {
    async fn join_zone(
        &self,
        request: Request<JoinZoneRequest>,
    ) -> Result<Response<JoinZoneResponse>, Status> {
        let address = address(&request);
        let request = request.into_inner();
        let response = self.zone(request, &address).await;
        response.map(Response::new).inspect_err(|status| {
            self.app
                .refused_stranger("anonymous", &address, "join as a zone", status.message());
        })
    }

    async fn join_node(
        &self,
        request: Request<JoinNodeRequest>,
    ) -> Result<Response<JoinNodeResponse>, Status> {
        let address = address(&request);
        let request = request.into_inner();
        let response = self.node(request, &address).await;
        response.map(Response::new).inspect_err(|status| {
            self.app
                .refused_stranger("anonymous", &address, "join as a node", status.message());
        })
    }
}

fn address<T>(request: &Request<T>) -> String {
    transport::peer_address(request)
        .map(|address| address.ip().to_string())
        .unwrap_or_default()
}

/// A token that may be used.
struct Ticket {
    claims: Claims,
    stored: Stored,
    resource: Resource,
    token: Token,
}

impl Ticket {
    /// Uses it up; refused where somebody else was faster.
    fn use_up(&self) -> Operation {
        let used = Token {
            used: true,
            ..self.token.clone()
        };
        let json = Resource::new(self.resource.meta.clone(), used).to_json();
        put_operation(
            self.stored.key.clone(),
            json,
            Some(self.stored.modified_revision),
        )
    }
}

impl Join {
    async fn zone(
        &self,
        request: JoinZoneRequest,
        address: &str,
    ) -> Result<JoinZoneResponse, Status> {
        let app = &self.app;
        for _ in 0..ATTEMPTS_MAX {
            app.cluster.linearize().await.map_err(unavailable)?;
            let image = app.image();
            let ticket = self.ticket(&image, &request.token, TokenUse::ZoneJoin)?;
            let zone: ZoneName = ticket
                .claims
                .zone
                .as_deref()
                .unwrap_or_default()
                .parse()
                .map_err(|error| Status::invalid_argument(format!("the token's zone: {error}")))?;
            if image
                .get(&ResourceKey::global("Zone", "", zone.as_str()))
                .is_none()
            {
                return Err(Status::failed_precondition(format!(
                    "zone {zone} was deleted: make a new token for it, which makes the zone too"
                )));
            }
            let ca = open_ca(app, &image)?;
            // Signed before the token is used up: a bad request costs no token.
            let leaf = ca
                .sign(
                    &request.csr,
                    &ca::zone_subject(&zone),
                    OffsetDateTime::now_utc(),
                    ca::ZONE_LIFETIME,
                )
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
            let ingress = issue::make(
                app,
                &image,
                &ingress_token(&zone),
                clock::now_seconds(),
                Some("zone-join"),
            )
            .map_err(failed)?;
            let mut operations = vec![ticket.use_up()];
            operations.extend(ingress.operations);
            operations.push(facts::guard(&image, "Zone", zone.as_str()));
            // Its control plane starts anew, and may count its reports from the beginning.
            operations.push(facts::set(
                &facts::zone_report_name(zone.as_str()),
                Vec::new(),
                None,
            ));
            let actor = joining(&format!("zone/{zone}"), address);
            match writes::write_operations(app, &actor, operations, format!("zone {zone} joins"))
                .await
            {
                Ok(_) => {}
                // Perhaps somebody else has used the token: looking again says so in the right words.
                Err(problem) if problem.body.status == 409 => continue,
                Err(problem) => return Err(failed(problem)),
            }
            app.streams.forget_position(zone.as_str());
            tracing::info!(%zone, version = %request.version, "a zone has joined");
            return Ok(JoinZoneResponse {
                zone: zone.to_string(),
                certificate: pki::to_pem(&leaf),
                anchors: ca.bundle().iter().map(pki::to_pem).collect(),
                global_addresses: zone_addresses(app),
                cluster_id: app.cluster.cluster_id().to_owned(),
                ingress_token: ingress.text,
            });
        }
        Err(Status::aborted(
            "what the join depends on keeps changing: try again",
        ))
    }

    async fn node(
        &self,
        request: JoinNodeRequest,
        address: &str,
    ) -> Result<JoinNodeResponse, Status> {
        let app = &self.app;
        let addresses = request
            .addresses
            .clone()
            .ok_or_else(|| Status::invalid_argument("the node does not say where it is reached"))?;
        let host = addresses
            .raft
            .rsplit_once(':')
            .map(|(host, _)| host.trim_matches(['[', ']']).to_owned())
            .filter(|host| !host.is_empty())
            .ok_or_else(|| Status::invalid_argument("the node's Raft address is not host:port"))?;
        for _ in 0..ATTEMPTS_MAX {
            app.cluster.linearize().await.map_err(unavailable)?;
            let image = app.image();
            let ticket = self.ticket(&image, &request.token, TokenUse::NodeJoin)?;
            let before = image.system(LAST_NODE_ID).unwrap_or_default();
            let node_id = next_node_id(&before, app)?;
            let ca = open_ca(app, &image)?;
            let leaf = ca
                .sign(
                    &request.csr,
                    &ca::node_subject(node_id, &host),
                    OffsetDateTime::now_utc(),
                    ca::NODE_LIFETIME,
                )
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
            let operations = vec![
                ticket.use_up(),
                facts::set(LAST_NODE_ID, node_id.to_string().into_bytes(), Some(before)),
            ];
            let actor = joining(&format!("node/{node_id}"), address);
            match writes::write_operations(app, &actor, operations, format!("node {node_id} joins"))
                .await
            {
                Ok(_) => {}
                Err(problem) if problem.body.status == 409 => continue,
                Err(problem) => return Err(failed(problem)),
            }
            tracing::info!(node_id, uuid = %request.node_uuid, "a node joins");
            let members = app.cluster.status().members;
            return Ok(JoinNodeResponse {
                node_id,
                certificate: pki::to_pem(&leaf),
                anchors: ca.bundle().iter().map(pki::to_pem).collect(),
                cluster_id: app.cluster.cluster_id().to_owned(),
                sealing_key: app.sealing.bytes().to_vec(),
                sealing_key_id: app.sealing.id().to_owned(),
                raft_addresses: members.into_iter().map(|m| m.addresses.raft).collect(),
            });
        }
        Err(Status::aborted(
            "what the join depends on keeps changing: try again",
        ))
    }

    /// Whether a token may be used for `usage`; every refusal in its own words.
    fn ticket(&self, image: &Image, token: &str, usage: TokenUse) -> Result<Ticket, Status> {
        let refused = |refused: JoinRefused| Status::unauthenticated(refused.to_string());
        let key = facts::stored_token_key(image, facts::JOIN_KEY)
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let pins = ca::pins(image).map_err(|error| Status::unavailable(error.to_string()))?;
        let issuer = Issuer {
            cluster_id: self.app.cluster.cluster_id(),
            pins: &pins,
            public_pem: &key.public_key,
        };
        let claims =
            tokens::verify_join(token, usage, issuer, clock::now_seconds()).map_err(refused)?;
        // Without a record it was deleted, with its zone or long after it ended.
        let stored = image
            .get(&ResourceKey::global("Token", "", &claims.jti))
            .ok_or_else(|| refused(JoinRefused::Revoked))?;
        let resource = Resource::from_json(&stored.json)
            .map_err(|error| Status::internal(error.to_string()))?;
        let token = resource
            .get::<Token>()
            .cloned()
            .ok_or_else(|| refused(JoinRefused::Revoked))?;
        if token.used {
            return Err(refused(JoinRefused::Used));
        }
        if token.revoked {
            return Err(refused(JoinRefused::Revoked));
        }
        Ok(Ticket {
            claims,
            stored,
            resource,
            token,
        })
    }
}

fn open_ca(app: &App, image: &Image) -> Result<InstallationCa, Status> {
    InstallationCa::open(image, &app.sealing).map_err(|error| {
        tracing::error!(%error, "the installation CA does not open");
        Status::internal(error.to_string())
    })
}

fn ingress_token(zone: &ZoneName) -> CreateToken {
    CreateToken {
        usage: TokenUse::Ingress,
        valid_for_seconds: Some(INGRESS_TOKEN_SECONDS),
        description: "made when the zone joined".to_owned(),
        mesh: None,
        name: None,
        labels: std::collections::BTreeMap::new(),
        zone: Some(zone.to_string()),
        user: None,
        role: None,
        meshes: vec![],
    }
}

fn next_node_id(last: &[u8], app: &App) -> Result<u64, Status> {
    let last: u64 = if last.is_empty() {
        0
    } else {
        std::str::from_utf8(last)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| Status::internal("the last node id is not readable"))?
    };
    let members = app.cluster.status().members;
    let highest = members.iter().map(|member| member.id).max();
    Ok(last.max(highest.unwrap_or_default()).max(1) + 1)
}

fn joining(name: &str, address: &str) -> Actor {
    Actor {
        name: name.to_owned(),
        address: address.to_owned(),
        ..Actor::system()
    }
}

fn unavailable(error: crate::cluster::Unavailable) -> Status {
    Status::unavailable(error.to_string())
}

fn failed(problem: Problem) -> Status {
    if problem.body.status >= 500 {
        Status::unavailable(problem.body.title)
    } else {
        Status::invalid_argument(problem.body.title)
    }
}

// === the joining node's side ===

/// What a node has when it has joined.
pub struct Joined {
    /// What the cluster answered.
    pub response: JoinNodeResponse,
    /// The key that seals secrets.
    pub sealing: SealingKey,
}

/// Why a node can not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token is none.
    #[error(
        "--token: this is not a join token; make one with `meshctl token create` at the installation to join"
    )]
    Token,
    /// The node to join is not reached, or not the one the token is for.
    #[error("cannot join at {address}: {reason}")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
    /// The installation refuses.
    #[error("the installation refuses this node: {0}")]
    Refused(String),
    /// Its answer makes no sense.
    #[error("the installation's answer is not usable: {0}")]
    Answer(String),
}

/// Joins at `join.address`, checking the server by the pin in the token.
///
/// # Errors
/// Why not, with what to do.
pub async fn join(
    join: &settings::Join,
    key: &KeyPair,
    node_uuid: &str,
    addresses: mesh_proto::zone::NodeAddresses,
) -> Result<Joined, JoinError> {
    let claims = tokens::unverified_claims(&join.token).ok_or(JoinError::Token)?;
    let accept = Arc::new(
        |id: &mesh_proto::spiffe::SpiffeId| match id.as_global_node() {
            Some(_) => Ok(()),
            None => Err("not a node of the global control plane".to_owned()),
        },
    );
    let verifier = PinVerifier::new(claims.pin, accept);
    let config = tls::client_config(None, Arc::new(verifier), transport::GRPC_ALPN);
    let connect = |reason: String| JoinError::Connect {
        address: join.address.clone(),
        reason,
    };
    let channel = transport::channel(&join.address, Arc::new(config))
        .await
        .map_err(|error| connect(error.to_string()))?;
    let csr = pki::request(key).map_err(|error| JoinError::Answer(error.to_string()))?;
    let request = JoinNodeRequest {
        token: join.token.clone(),
        csr,
        version: mesh_proto::VERSION.to_owned(),
        node_uuid: node_uuid.to_owned(),
        addresses: Some(addresses),
    };
    let response = JoinClient::new(channel)
        .join_node(request)
        .await
        .map_err(|status| match status.code() {
            tonic::Code::Unavailable => connect(status.message().to_owned()),
            _ => JoinError::Refused(status.message().to_owned()),
        })?
        .into_inner();
    let sealing = SealingKey::from_bytes(&response.sealing_key)
        .filter(|key| key.id() == response.sealing_key_id)
        .ok_or_else(|| JoinError::Answer("the sealing key does not fit its id".to_owned()))?;
    Ok(Joined { response, sealing })
}
