//! The types that Raft is used with.

use std::{fmt, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mesh_proto::{
    raft::{Entry, EntryResult},
    zone::NodeAddresses,
};
use openraft::StorageError;
use prost::Message;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::snapshot::SnapshotFile;

openraft::declare_raft_types!(
    /// How Isthmus uses openraft.
    pub TypeConfig:
        D = Bundle,
        R = Answers,
        NodeId = u64,
        Node = Peer,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = SnapshotFile,
);

/// The id of a log entry.
pub type LogId = openraft::LogId<u64>;
/// A vote.
pub type Vote = openraft::Vote<u64>;
/// A log entry.
pub type LogEntry = openraft::Entry<TypeConfig>;
/// A membership and the entry that made it.
pub type StoredMembership = openraft::StoredMembership<u64, Peer>;
/// What a snapshot says of itself.
pub type SnapshotMeta = openraft::SnapshotMeta<u64, Peer>;
/// What Raft is told when the store fails; the node stops then.
pub type StoreError = StorageError<u64>;

/// What one log record carries: the entries that came in while the one before was being written. Each is still done on
/// its own, with its own revision; together they cost one sync (see `docs/decisions/004-a-log-record-carries-several-entries.md`).
#[derive(Clone, PartialEq)]
pub struct Bundle(pub Arc<Vec<Entry>>);

/// One answer for each entry of a [`Bundle`].
#[derive(Clone, PartialEq, Default)]
pub struct Answers(pub Vec<EntryResult>);

#[derive(Clone, PartialEq, Message)]
struct EncodedBundle {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<Entry>,
}

#[derive(Clone, PartialEq, Message)]
struct EncodedAnswers {
    #[prost(message, repeated, tag = "1")]
    answers: Vec<EntryResult>,
}

impl Bundle {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes =
            Vec::with_capacity(prost::encoding::message::encoded_len_repeated(1, &self.0));
        prost::encoding::message::encode_repeated(1, &self.0, &mut bytes);
        bytes
    }

    /// What [`Self::encode`] wrote.
    ///
    /// # Errors
    /// Where it is something else.
    pub fn decode(bytes: &[u8]) -> Result<Self, prost::DecodeError> {
        EncodedBundle::decode(bytes).map(|bundle| Self(Arc::new(bundle.entries)))
    }
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bundle of {} entries", self.0.len())
    }
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} answers", self.0.len())
    }
}

// openraft's messages travel as JSON; in them these are base64 of protobuf.

impl Serialize for Bundle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.encode()))
    }
}

impl<'de> Deserialize<'de> for Bundle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = bytes_from_base64(deserializer)?;
        Self::decode(&bytes).map_err(D::Error::custom)
    }
}

impl Serialize for Answers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let encoded = EncodedAnswers {
            answers: self.0.clone(),
        };
        serializer.serialize_str(&STANDARD.encode(encoded.encode_to_vec()))
    }
}

impl<'de> Deserialize<'de> for Answers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = bytes_from_base64(deserializer)?;
        EncodedAnswers::decode(bytes.as_slice())
            .map(|encoded| Self(encoded.answers))
            .map_err(D::Error::custom)
    }
}

fn bytes_from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
    STANDARD.decode(text.as_bytes()).map_err(D::Error::custom)
}

/// What the membership knows of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Address of its API.
    pub api: String,
    /// Address of its zone port.
    pub zone: String,
    /// Address of its Raft port.
    pub raft: String,
    /// Made on its data disk at its first start: tells it from a node that lost its disk and took its id again.
    pub node_uuid: String,
}

impl Peer {
    /// A node with these addresses and disk.
    #[must_use]
    pub fn new(addresses: NodeAddresses, node_uuid: &str) -> Self {
        let NodeAddresses { api, zone, raft } = addresses;
        Self {
            api,
            zone,
            raft,
            node_uuid: node_uuid.to_owned(),
        }
    }

    /// Where it is reached.
    #[must_use]
    pub fn addresses(&self) -> NodeAddresses {
        NodeAddresses {
            api: self.api.clone(),
            zone: self.zone.clone(),
            raft: self.raft.clone(),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.raft)
    }
}
