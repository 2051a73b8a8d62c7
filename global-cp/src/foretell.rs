//! What a request to change resources would do, without doing it: by the very rules that would do it.
//!
//! A dry run, a diff and a plan are three ways to show the same [`Foretold`].

use std::collections::HashMap;

use axum::http::StatusCode;
use mesh_model::api::{WriteResult, Written};
use mesh_proto::{raft::Entry, zone::ResourceKey};

use crate::{
    api::problem::Problem,
    changes::Plan,
    state::{
        Stored,
        apply::{ENTRY_VERSION, LIMITS, apply},
        image::Image,
        keys,
    },
    writes,
};

/// What would happen.
#[derive(Debug, Clone, PartialEq)]
pub struct Foretold {
    /// Revision of the state it would happen to.
    pub revision: u64,
    /// What would become of each resource asked for, in order.
    pub results: Vec<WriteResult>,
    /// Every resource that would change: first those asked for, in order, then those that follow from them, by key.
    pub changes: Vec<FutureChange>,
    /// What is accepted but may surprise.
    pub warnings: Vec<String>,
}

/// One resource that would change. The values of secrets are sealed in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FutureChange {
    /// The resource.
    pub key: ResourceKey,
    /// As it is; `None` where it does not exist.
    pub before: Option<Stored>,
    /// As it would be; `None` where it would be deleted.
    pub after: Option<Stored>,
}

impl Foretold {
    /// As the answer to a dry run.
    #[must_use]
    pub fn written(self) -> Written {
        Written {
            revision: self.revision,
            dry_run: true,
            results: self.results,
            warnings: self.warnings,
            conditions: Vec::new(),
        }
    }
}

/// What `plan`, made for `image`, would change in it.
///
/// # Errors
/// Where it would be refused.
pub fn of_plan(image: &Image, plan: Plan) -> Result<Foretold, Problem> {
    let entry = Entry {
        version: ENTRY_VERSION,
        operations: plan.operations,
        ..Entry::default()
    };
    let applied = apply(image, &entry, &LIMITS).map_err(|error| Problem::internal(&error))?;
    if let Some(refusal) = applied.result.refusal {
        return Err(Problem::new(
            StatusCode::PRECONDITION_FAILED,
            "conflict",
            refusal.reason,
        ));
    }
    let mut changes: Vec<FutureChange> = applied
        .writes
        .into_iter()
        .filter_map(|(name, value)| {
            let key = keys::parse_resource(&name)?;
            Some(FutureChange {
                before: image.get(&key),
                after: value.and_then(|value| Stored::read(key.clone(), &value)),
                key,
            })
        })
        .collect();
    let places: HashMap<Vec<u8>, usize> = plan
        .asked
        .iter()
        .enumerate()
        .map(|(place, key)| (keys::resource(key), place))
        .collect();
    changes.sort_by_cached_key(|change| {
        let place = places.get(&keys::resource(&change.key));
        place.copied().unwrap_or(usize::MAX)
    });
    Ok(Foretold {
        revision: image.revision(),
        results: writes::results(&plan.asked, &applied.result),
        changes,
        warnings: plan.warnings,
    })
}
