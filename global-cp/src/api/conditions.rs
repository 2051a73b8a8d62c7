//! What this node itself has to say about the resources of a mesh: references to nothing, policies that say nothing,
//! conflicts that one side lost. Zones add what only they can know.
//!
//! It depends on all resources of the mesh at once, and so takes time where they are many. It is worked out beside the
//! requests, so seldom that it stays a small share of the time, and a request waits for it only for a moment.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use mesh_model::{
    Resource,
    api::{Condition, Key},
    policy::{self, Known, destination::Services},
};
use tokio::sync::watch;

use crate::state::image::Image;

/// How long a read waits for what is being worked out.
const PATIENCE: Duration = Duration::from_millis(200);
/// Time from one go to the next, in terms of how long the last one took.
const REST: u32 = 20;
/// Meshes of which something is kept. The one that nobody has asked about for longest is forgotten.
const MESHES_MAX: usize = 64;

/// Conditions of the resources of one mesh.
pub type OfMesh = HashMap<Key, Vec<Condition>>;

/// What was worked out last, of each mesh that somebody asked about. Clones share it.
#[derive(Clone, Default)]
pub struct Conditions(Arc<Mutex<HashMap<String, Last>>>);

struct Last {
    /// Of which revision; 0: of none yet.
    revision: u64,
    found: Arc<OfMesh>,
    asked: Instant,
    done: Instant,
    took: Duration,
    /// Somebody is at it; its other end goes when that is done.
    under_way: Option<watch::Receiver<()>>,
}

impl Conditions {
    /// Conditions of the resources of `mesh`, as `image` has them, or had them a moment ago.
    pub async fn of_mesh(&self, image: &Arc<Image>, mesh: &str) -> Arc<OfMesh> {
        let mut waiting = match self.begin(image, mesh) {
            Ok(found) => return found,
            Err(waiting) => waiting,
        };
        // Done reads as an error: the other end is gone.
        let _ = tokio::time::timeout(PATIENCE, waiting.changed()).await;
        let known = self.lock();
        known
            .get(mesh)
            .map_or_else(Arc::default, |last| last.found.clone())
    }

    /// What is good enough, or else whom to wait for.
    fn begin(&self, image: &Arc<Image>, mesh: &str) -> Result<Arc<OfMesh>, watch::Receiver<()>> {
        let mut known = self.lock();
        if known.len() >= MESHES_MAX && !known.contains_key(mesh) {
            let oldest = known.iter().min_by_key(|(_, last)| last.asked);
            if let Some(oldest) = oldest.map(|(mesh, _)| mesh.clone()) {
                known.remove(&oldest);
            }
        }
        let now = Instant::now();
        let last = known.entry(mesh.to_owned()).or_insert_with(|| Last {
            revision: 0,
            found: Arc::default(),
            asked: now,
            done: now,
            took: Duration::ZERO,
            under_way: None,
        });
        last.asked = now;
        if last.revision == image.revision() {
            return Ok(last.found.clone());
        }
        if let Some(waiting) = &last.under_way {
            return Err(waiting.clone());
        }
        if last.revision > 0 && last.done.elapsed() < last.took * REST {
            return Ok(last.found.clone());
        }
        let (working, waiting) = watch::channel(());
        last.under_way = Some(waiting.clone());
        let (conditions, image, mesh) = (self.clone(), image.clone(), mesh.to_owned());
        tokio::task::spawn_blocking(move || {
            let _working = Working {
                conditions: &conditions,
                mesh: &mesh,
                _done: working,
            };
            let begun = Instant::now();
            let found = Arc::new(work_out(&image, &mesh));
            if let Some(last) = conditions.lock().get_mut(&mesh) {
                last.revision = image.revision();
                last.found = found;
                last.done = Instant::now();
                last.took = begun.elapsed();
            }
        });
        Err(waiting)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Last>> {
        // Nothing in a critical section can leave it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody at work. Whatever becomes of it, those who wait go on then, and the next one may try.
struct Working<'a> {
    conditions: &'a Conditions,
    mesh: &'a str,
    _done: watch::Sender<()>,
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        if let Some(last) = self.conditions.lock().get_mut(self.mesh) {
            last.under_way = None;
        }
    }
}

fn work_out(image: &Image, mesh: &str) -> OfMesh {
    let resources: Vec<Resource> = image
        .all_in_mesh(mesh)
        .iter()
        .filter(|stored| !mesh_model::is_secret(&stored.key.kind))
        .filter_map(|stored| Resource::from_json(&stored.json).ok())
        .collect();
    let services = Services::of(&resources);
    let known = Known {
        services: Some(&services),
        dataplanes: None,
    };
    let resources: Vec<&Resource> = resources.iter().collect();
    let mut found: OfMesh = HashMap::new();
    for condition in policy::conditions(&resources, known) {
        let of_one = found.entry(condition.key.clone()).or_default();
        of_one.push(condition);
    }
    found
}
