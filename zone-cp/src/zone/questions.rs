//! What people, and global for them, ask of the zone.

use std::sync::Arc;

use mesh_proto::zone::PlanChanges;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::Zone;

use crate::{
    discovery::unix_ms,
    event::{Answer, Question, Unknown},
    explain, inspect,
    mesh::Mesh,
    plan::{self, PlanOf},
};

/// Hears an answer.
pub(super) type Reply = Box<dyn FnOnce(Answer) + Send>;

/// Plans that are computed at a time, each on a thread of its own. More are refused: whoever asked asks again.
const PLANS_MAX: usize = 2;

/// Counts the plans under way.
#[derive(Debug, Clone)]
pub(super) struct Plans(Arc<Semaphore>);

impl Default for Plans {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(PLANS_MAX)))
    }
}

impl Zone {
    pub(super) fn handle_question(&mut self, question: Question, reply: Reply) {
        // What was said before the question counts.
        self.settle();
        let answer = match question {
            Question::Plan(changes) => return self.plan(changes, reply),
            Question::Requests { mesh, service } => {
                return self.gather_requests(&mesh, service, reply);
            }
            Question::Tap {
                mesh,
                dataplane,
                tap,
            } => {
                return self.gather_tapped(&mesh, &dataplane, tap, reply);
            }
            Question::Status => Ok(self.view()),
            Question::Resources { mesh } => self.resources(&mesh),
            Question::Dataplanes { mesh } => {
                let of = |mesh: &Mesh| Ok(inspect::dataplanes(mesh, &self.name));
                self.find(&mesh).and_then(of)
            }
            Question::Dataplane { mesh, name } => {
                let of = |mesh| inspect::dataplane(mesh, &self.name, &name);
                self.find(&mesh).and_then(of)
            }
            Question::Services { mesh } => {
                let of = |mesh: &Mesh| Ok(inspect::services(mesh, unix_ms()));
                self.find(&mesh).and_then(of)
            }
            Question::Service { mesh, name } => {
                let of = |mesh: &Mesh| Ok(json!(inspect::service(mesh, &name)));
                self.find(&mesh).and_then(of)
            }
            Question::Policy(key) => {
                let of = |mesh| inspect::policy(mesh, &key);
                self.find(&key.mesh).and_then(of)
            }
            Question::Call { mesh, call } => {
                let of = |mesh: &Mesh| Ok(json!(explain::call(mesh, &call)));
                self.find(&mesh).and_then(of)
            }
            Question::Inbound {
                mesh,
                service,
                port,
                caller,
            } => {
                let of = |mesh: &Mesh| Ok(json!(explain::inbound(mesh, &service, port, &caller)));
                self.find(&mesh).and_then(of)
            }
        };
        reply(answer);
    }

    /// Computed apart from the loop, from what is known now, for it may take a second in a big mesh.
    fn plan(&self, changes: PlanChanges, reply: Reply) {
        let Ok(permit) = self.plans.0.clone().try_acquire_owned() else {
            let busy = "this zone computes other plans at the moment: ask again".to_owned();
            return reply(Err(Unknown(busy)));
        };
        let of = PlanOf {
            zone: self.name.clone(),
            global: self.global.clone(),
            surroundings: self.surroundings.clone(),
            meshes: self
                .meshes
                .iter()
                .filter(|(name, _)| plan::concerns(&changes, name))
                .map(|(name, slot)| (name.clone(), slot.mesh.snapshot()))
                .collect(),
            changes,
        };
        tokio::task::spawn_blocking(move || {
            reply(Ok(json!(plan::plan(&of))));
            drop(permit);
        });
    }

    pub(super) fn find(&self, mesh: &str) -> Result<&Mesh, Unknown> {
        let slot = self.meshes.get(mesh).map(|slot| &slot.mesh);
        slot.ok_or_else(|| Unknown(format!("mesh {mesh} is not known in zone {}", self.name)))
    }

    fn resources(&self, mesh: &str) -> Answer {
        let scope = match mesh {
            "" => &self.global,
            mesh => self.find(mesh)?.scope(),
        };
        Ok(inspect::resources(scope, unix_ms()))
    }

    fn view(&self) -> Value {
        let connected = self.link.is_some();
        inspect::zone(&self.name, &self.status(), connected, &self.ingresses)
    }
}
