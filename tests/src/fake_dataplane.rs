//! A client of a zone that acknowledges or refuses as it is told, and remembers all it was sent.
//!
//! It costs a task instead of a process, so that a test can have many; and it keeps the key and certificate a zone gave
//! it, so that a test can try what a stolen one is good for.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use mesh_proto::{
    discovery::{
        Ack, Certificate, CertificateRequest, DocumentNack, DocumentVersion, Documents, Heartbeat,
        Hello, Nack, NackKind, Role, ToDataplane, ToZone, discovery_client::DiscoveryClient,
        to_dataplane, to_zone,
    },
    features,
    proxy::Document,
};
use mesh_runtime::{
    pki,
    tls::{self, PinVerifier},
    transport,
};
use rustls_pki_types::CertificateDer;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    wait::{SOON, eventually},
    world::{World, runtime},
};

/// A registered dataplane without a proxy. Its stream ends when this is dropped.
#[derive(Debug)]
pub struct FakeDataplane {
    seen: Arc<Mutex<Seen>>,
    to_zone: mpsc::Sender<ToZone>,
    task: JoinHandle<()>,
}

/// What a zone said to one dataplane.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The documents in force, by name.
    pub documents: BTreeMap<String, Document>,
    /// How many documents were ever sent, repeated ones included.
    pub documents_sent: usize,
    /// The newest revision the zone named.
    pub revision: u64,
    /// Documents whose name begins so are refused, with the reason.
    refuses: Option<(String, String)>,
    certificate: Option<Certificate>,
    /// How the stream ended, where it did.
    pub ended: Option<String>,
}

/// A certificate that a zone issued, with its key, as files that openssl reads.
#[derive(Debug, Clone)]
pub struct IssuedIdentity {
    /// PEM of the chain, leaf first.
    pub chain: PathBuf,
    /// PEM of the key.
    pub key: PathBuf,
}

impl IssuedIdentity {
    /// Arguments with which `openssl s_client` presents it to the dataplane that answers to `server_name`.
    #[must_use]
    pub fn openssl_arguments(&self, server_name: &str) -> Vec<String> {
        let path = |path: &PathBuf| path.display().to_string();
        let alpn = String::from_utf8_lossy(mesh_proto::MESH_ALPN).into_owned();
        [
            "-tls1_3",
            "-quiet",
            "-cert",
            &path(&self.chain),
            "-cert_chain",
            &path(&self.chain),
            "-key",
            &path(&self.key),
            "-servername",
            server_name,
            "-alpn",
            &alpn,
        ]
        .map(str::to_owned)
        .to_vec()
    }
}

/// The CA pin in a dataplane token, which its holder need not verify.
///
/// # Errors
/// Where the text is no such token.
pub fn pin_of(token: &str) -> anyhow::Result<String> {
    let payload = token.split('.').nth(1).context("not a JWT")?;
    let claims: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload)?)?;
    Ok(claims["pin"]
        .as_str()
        .context("the token has no pin")?
        .to_owned())
}

impl FakeDataplane {
    /// Registers `resource` (a Dataplane as YAML) at `zone` (`host:port`) with `token`, and waits for the first documents.
    /// Calls again, as a dataplane does, while the zone says that it can not tell yet.
    ///
    /// # Errors
    /// Where the zone refuses, with its words.
    pub fn start(zone: &str, token: &str, resource: &str) -> anyhow::Result<Self> {
        let pin = pin_of(token)?;
        eventually(SOON, "the zone sends documents", || {
            let fake = Self::connect(zone, &pin, token, resource)?;
            match fake.wait_for_documents()? {
                Ok(()) => Ok(Ok(fake)),
                Err(words) if words.starts_with("Unavailable") => anyhow::bail!(words),
                // Waiting longer changes nothing.
                Err(words) => Ok(Err(anyhow::anyhow!(words))),
            }
        })?
    }

    /// `Err` inside: how the stream ended instead.
    fn wait_for_documents(&self) -> anyhow::Result<Result<(), String>> {
        eventually(SOON, "documents come", || {
            let seen = self.seen();
            match seen.ended {
                Some(ended) => Ok(Err(ended)),
                None if seen.documents.is_empty() => anyhow::bail!("none so far"),
                None => Ok(Ok(())),
            }
        })
    }

    /// Opens a stream with any token to the zone whose CA has `pin`, without waiting for an answer.
    ///
    /// # Errors
    /// Where nobody with that CA listens.
    pub fn connect(zone: &str, pin: &str, token: &str, resource: &str) -> anyhow::Result<Self> {
        let verifier = PinVerifier::new(pin.to_owned(), Arc::new(|_| Ok(())));
        let tls = tls::client_config(None, Arc::new(verifier), transport::GRPC_ALPN);
        let channel = runtime().block_on(transport::channel(zone, Arc::new(tls)))?;
        // 64 messages: a full queue makes the caller wait, which a test may.
        let (to_zone, messages) = mpsc::channel(64);
        to_zone.try_send(message(to_zone::Message::Hello(hello(resource))))?;
        let mut request = tonic::Request::new(ReceiverStream::new(messages));
        request
            .metadata_mut()
            .insert("authorization", format!("Bearer {token}").parse()?);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let task = runtime().spawn(listen(
            DiscoveryClient::new(channel),
            request,
            seen.clone(),
            to_zone.clone(),
        ));
        Ok(Self {
            seen,
            to_zone,
            task,
        })
    }

    /// What the zone said so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }

    /// Versions of the documents in force, by name.
    #[must_use]
    pub fn versions(&self) -> BTreeMap<String, String> {
        let seen = lock(&self.seen);
        let version =
            |(name, document): (&String, &Document)| (name.clone(), document.version.clone());
        seen.documents.iter().map(version).collect()
    }

    /// Refuses from now on documents whose name begins with `prefix`.
    pub fn refuse(&self, prefix: &str, reason: &str) {
        lock(&self.seen).refuses = Some((prefix.to_owned(), reason.to_owned()));
    }

    /// Waits until the zone ends the stream, and returns its words.
    ///
    /// # Errors
    /// Where it does not within `deadline`.
    pub fn wait_for_end(&self, deadline: Duration) -> anyhow::Result<String> {
        eventually(deadline, "the zone ends the stream", || {
            self.seen().ended.context("it is open")
        })
    }

    /// Asks for a certificate for `spiffe_id`, and returns what the zone answers.
    ///
    /// # Errors
    /// Where it refuses, with its words, or does not answer.
    pub fn certificate(
        &self,
        world: &World,
        name: &str,
        spiffe_id: &str,
    ) -> anyhow::Result<IssuedIdentity> {
        let key = pki::new_key()?;
        lock(&self.seen).certificate = None;
        let request = CertificateRequest {
            csr: pki::request(&key)?,
            spiffe_id: spiffe_id.to_owned(),
        };
        runtime().block_on(
            self.to_zone
                .send(message(to_zone::Message::CertificateRequest(request))),
        )?;
        let answer = eventually(SOON, "the zone answers a certificate request", || {
            let seen = self.seen();
            if seen.certificate.is_none() {
                anyhow::ensure!(seen.ended.is_some(), "nothing so far");
            }
            Ok(seen.certificate.ok_or(seen.ended))
        })?
        .map_err(|ended| anyhow::anyhow!("the stream ended: {ended:?}"))?;
        anyhow::ensure!(answer.error.is_empty(), "refused: {}", answer.error);
        let chain: String = answer
            .chain
            .iter()
            .map(|der| pki::to_pem(&CertificateDer::from(der.clone())))
            .collect();
        Ok(IssuedIdentity {
            chain: world.file(&format!("{name}.cert.pem"), &chain)?,
            key: world.file(&format!("{name}.key.pem"), &key.serialize_pem())?,
        })
    }
}

impl Drop for FakeDataplane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn hello(resource: &str) -> Hello {
    Hello {
        version: mesh_proto::VERSION.to_owned(),
        // It is asked nothing, as one of an older version.
        features: features::DATAPLANE
            .iter()
            .filter(|feature| **feature != features::QUESTIONS)
            .map(|feature| (*feature).to_owned())
            .collect(),
        role: Role::Sidecar.into(),
        resource: resource.to_owned(),
        session: format!("{:016x}", mesh_runtime::backoff::random()),
        session_number: 1,
        documents: Vec::new(),
    }
}

fn message(message: to_zone::Message) -> ToZone {
    ToZone {
        message: Some(message),
    }
}

async fn listen(
    mut client: DiscoveryClient<tonic::transport::Channel>,
    request: tonic::Request<ReceiverStream<ToZone>>,
    seen: Arc<Mutex<Seen>>,
    to_zone: mpsc::Sender<ToZone>,
) {
    let end = match client.stream(request).await {
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
        Ok(response) => {
            let mut stream = response.into_inner();
            let mut heartbeat = tokio::time::interval(Duration::from_secs(1));
            loop {
                let received = tokio::select! {
                    received = stream.message() => received,
                    _ = heartbeat.tick() => {
                        let beat = message(to_zone::Message::Heartbeat(Heartbeat::default()));
                        // A zone that takes nothing will end the stream, which is what is looked at.
                        let _ = to_zone.try_send(beat);
                        continue;
                    }
                };
                match received {
                    Ok(Some(ToDataplane {
                        message: Some(received),
                    })) => {
                        let answer = take(&mut lock(&seen), received);
                        if let Some(answer) = answer
                            && to_zone.send(message(answer)).await.is_err()
                        {
                            break "the stream takes nothing more".to_owned();
                        }
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => break "ended without a word".to_owned(),
                    Err(status) => break format!("{:?}: {}", status.code(), status.message()),
                }
            }
        }
    };
    lock(&seen).ended = Some(end);
}

/// Takes one message in, and returns what is to be answered.
fn take(seen: &mut Seen, received: to_dataplane::Message) -> Option<to_zone::Message> {
    match received {
        to_dataplane::Message::Documents(documents) => Some(take_documents(seen, documents)),
        to_dataplane::Message::Certificate(certificate) => {
            seen.certificate = Some(certificate);
            None
        }
        to_dataplane::Message::Heartbeat(heartbeat) => {
            seen.revision = seen.revision.max(heartbeat.revision);
            None
        }
        to_dataplane::Message::Welcome(_)
        | to_dataplane::Message::Endpoints(_)
        | to_dataplane::Message::GoAway(_)
        | to_dataplane::Message::Question(_) => None,
    }
}

fn take_documents(seen: &mut Seen, documents: Documents) -> to_zone::Message {
    seen.revision = seen.revision.max(documents.revision);
    seen.documents_sent += documents.put.len();
    let refused: Vec<_> = documents
        .put
        .iter()
        .filter_map(|document| {
            let (prefix, reason) = seen.refuses.as_ref()?;
            document.name.starts_with(prefix).then(|| DocumentNack {
                name: document.name.clone(),
                version: document.version.clone(),
                reason: reason.clone(),
                kind: NackKind::Content.into(),
            })
        })
        .collect();
    if !refused.is_empty() {
        return to_zone::Message::Nack(Nack {
            revision: documents.revision,
            documents: refused,
        });
    }
    let acknowledged = documents.put.iter().map(|document| DocumentVersion {
        name: document.name.clone(),
        version: document.version.clone(),
    });
    let ack = Ack {
        revision: documents.revision,
        documents: acknowledged.collect(),
    };
    for document in documents.put {
        seen.documents.insert(document.name.clone(), document);
    }
    for name in &documents.remove {
        seen.documents.remove(name);
    }
    to_zone::Message::Ack(ack)
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
