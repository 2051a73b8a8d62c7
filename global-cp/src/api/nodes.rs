//! Members of the global control plane.

use axum::{Json, extract::State};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    caller::{Caller, Segments},
    problem::Problem,
};
use crate::{
    app::App, authorize::Action, cluster::membership::NotAdded, facts, writes::write_operations,
};

/// A node was removed.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Removed {
    /// Its id.
    removed: u64,
}

/// `DELETE /v1/nodes/{id}`: takes a node out for good, so that the quorum does not count on it. What it left behind is of
/// no use any more: a machine that comes back joins with a new token, and is another node.
pub async fn remove(
    State(app): State<App>,
    caller: Caller,
    Segments(id): Segments<u64>,
) -> Result<Json<Removed>, Problem> {
    caller.may(&app, Action::Delete, "", "Node")?;
    let status = app.cluster.status();
    if !status.members.iter().any(|member| member.id == id) {
        return Err(Problem::not_found(format!("there is no node {id}"))
            .detail("`meshctl global status` shows the nodes"));
    }
    if status.leader == Some(id) {
        return Err(Problem::conflict(format!("node {id} leads now"))
            .detail("stop its process: another node leads within two seconds; then remove it"));
    }
    match app.cluster.remove_node(id).await {
        Ok(()) => {}
        Err(NotAdded::NotLeader(leader)) => {
            let at = leader
                .and_then(|leader| status.members.iter().find(|member| member.id == leader))
                .map(|leader| format!("ask the leader: --server https://{}", leader.addresses.api))
                .unwrap_or_else(|| "nobody leads now: most nodes must be up".to_owned());
            return Err(Problem::conflict("this node does not lead").detail(at));
        }
        Err(error) => return Err(Problem::unavailable(error.to_string()).retry_after(1)),
    }
    // Membership is Raft's own record; this one is for the audit.
    let gone = facts::set(&facts::removed_node_name(id), Vec::new(), None);
    let summary = format!("node {id} removed");
    write_operations(&app, &caller.actor, vec![gone], summary).await?;
    Ok(Json(Removed { removed: id }))
}
