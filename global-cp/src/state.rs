//! The replicated state machine: what a committed entry does, and how its result is read.
//!
//! Everything global knows is one ordered map from bytes to bytes, the [`image::Image`]. [`apply`] turns an entry into a
//! batch of writes to that map, a plain synchronous function without clock or randomness; the store writes the batch
//! to disk and then publishes the new image. Readers hold one image for as long as they like: what they see is one
//! revision, whole, whatever is written meanwhile.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`apply`] | the rules: one entry and the map before it give writes and a result |
//! | [`image`] | the map, and the typed questions to it |
//! | [`keys`] | how records are named in the map |
//! | [`records`] | how records are written in the map |

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use mesh_proto::zone::ResourceKey;
use prost::Message as _;

pub mod apply;
pub mod image;
pub mod keys;
pub mod records;

use image::Image;

/// A resource as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub key: ResourceKey,
    /// Canonical JSON, as it was put.
    pub json: Vec<u8>,
    /// Revision that created it.
    pub created_revision: u64,
    /// Revision that last changed it.
    pub modified_revision: u64,
    /// Unix time in milliseconds of `created_revision`.
    pub created_ms: u64,
    /// Unix time in milliseconds of `modified_revision`.
    pub modified_ms: u64,
}

impl Stored {
    /// Reads the record of a resource; `None` where it is not readable.
    #[must_use]
    pub fn read(key: ResourceKey, record: &Bytes) -> Option<Self> {
        let record = records::Resource::decode(record.clone()).ok()?;
        Some(Self::from_record(key, record))
    }

    fn from_record(key: ResourceKey, record: records::Resource) -> Self {
        Self {
            key,
            json: record.json.to_vec(),
            created_revision: record.created_revision,
            modified_revision: record.modified_revision,
            created_ms: record.created_ms,
            modified_ms: record.modified_ms,
        }
    }
}

/// One change of one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Revision that made it. A batch makes several changes with one revision.
    pub revision: u64,
    /// The resource.
    pub key: ResourceKey,
    /// The resource after the change; `None` where it was deleted.
    pub stored: Option<Stored>,
}

/// The revision asked for lies before what the bounded history still holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "changes after revision {asked} are no longer kept (the oldest that can be asked for is {oldest}): read everything anew"
)]
pub struct TooOld {
    /// What was asked for.
    pub asked: u64,
    /// The oldest revision whose successors are all kept.
    pub oldest: u64,
}

/// One change in the history of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRecord {
    /// Revision that made it.
    pub revision: u64,
    /// Unix time in milliseconds.
    pub time_ms: u64,
    /// Who, as `token/<id>`, `zone/<name>`, `node/<id>` or `system`.
    pub actor: String,
    /// The resource after the change; `None` where it was deleted.
    pub stored: Option<Stored>,
}

/// Who did what, kept in the same entry as the change itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRecord {
    /// Counts up by one for each record.
    pub number: u64,
    /// Revision of the change; where the entry changed cluster facts only, the revision at that time.
    pub revision: u64,
    /// Unix time in milliseconds.
    pub time_ms: u64,
    /// Who, as in [`HistoryRecord::actor`].
    pub actor: String,
    /// From where, as far as known.
    pub address: String,
    /// Human words on what was asked.
    pub summary: String,
    /// The resources changed.
    pub changed: Vec<ResourceKey>,
    /// The request id, "" if there was none.
    pub request_id: String,
}

/// The read side of the state machine. Cheap to clone; all clones see the newest applied image.
///
/// Each method reads one image. To ask several questions of the *same* image, take it with [`State::image`].
#[derive(Debug, Clone)]
pub struct State {
    current: Arc<ArcSwap<Image>>,
}

impl State {
    /// A state that holds nothing yet.
    #[must_use]
    pub fn empty() -> Self {
        Self::from_image(Image::default())
    }

    /// A state that holds `image`.
    #[must_use]
    pub fn from_image(image: Image) -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(image)),
        }
    }

    /// The newest image: all that is read from it belongs to one revision.
    #[must_use]
    pub fn image(&self) -> Arc<Image> {
        self.current.load_full()
    }

    /// Replaces the image. Only the store does this, after the same change is in its database.
    pub(crate) fn publish(&self, image: Image) {
        self.current.store(Arc::new(image));
    }

    /// Newest applied revision.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.image().revision()
    }

    /// Which history revisions belong to; "" before the first entry of a new cluster is applied.
    #[must_use]
    pub fn history_id(&self) -> String {
        self.image().history_id()
    }

    /// One resource.
    #[must_use]
    pub fn get(&self, key: &ResourceKey) -> Option<Stored> {
        self.image().get(key)
    }

    /// Resources of one kind, ordered by mesh, zone and name; of one mesh, where `mesh` is given ("" : outside any
    /// mesh). `after` continues a listing behind that key. At most `limit`.
    #[must_use]
    pub fn list(
        &self,
        kind: &str,
        mesh: Option<&str>,
        after: Option<&ResourceKey>,
        limit: usize,
    ) -> Vec<Stored> {
        self.image().list(kind, mesh, after, limit)
    }

    /// Every resource of one mesh ("" : outside any mesh), ordered by kind, zone and name.
    #[must_use]
    pub fn all_in_mesh(&self, mesh: &str) -> Vec<Stored> {
        self.image().all_in_mesh(mesh)
    }

    /// Changes of one resource, newest first, and whether older ones are no longer kept.
    #[must_use]
    pub fn history(&self, key: &ResourceKey) -> (Vec<HistoryRecord>, bool) {
        self.image().history(key)
    }

    /// A fact of the cluster itself, as `SetSystem` wrote it.
    #[must_use]
    pub fn system(&self, name: &str) -> Option<Vec<u8>> {
        self.image().system(name)
    }

    /// The newest audit records, newest first.
    #[must_use]
    pub fn audit(&self, limit: usize) -> Vec<AuditRecord> {
        self.image().audit(limit)
    }
}
