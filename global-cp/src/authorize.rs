//! Who may do what: one function, called by every handler (invariant 12).
//!
//! Pure. Where nothing here says yes, the answer is no. A refusal never depends on whether the thing asked for
//! exists, so that a tenant can not find out about another mesh by asking.

use mesh_model::api::Role;
use mesh_proto::zone::ResourceKey;

/// Who asks, as established by its token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// `token/<id>`, as the audit shows it.
    pub name: String,
    /// Where the request came from.
    pub address: String,
    /// What the token grants.
    pub role: Role,
    /// Meshes the role is bound to. Empty: all for `admin` and `viewer`, none for `mesh-admin`.
    pub meshes: Vec<String>,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Look at a resource, list or watch it (never the value of a secret).
    Read,
    /// Create or replace a resource.
    Write,
    /// Delete a resource.
    Delete,
    /// See the value of a secret.
    ReadSecret,
    /// Make, list or revoke a token.
    Tokens,
    /// Look at what belongs to the installation: nodes, zones' connections.
    ReadInstallation,
    /// Read who did what.
    ReadAudit,
}

impl Action {
    fn verb(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Delete => "delete",
            Self::ReadSecret => "read the value of",
            Self::Tokens => "manage tokens for",
            Self::ReadInstallation => "see the status of",
            Self::ReadAudit => "read the audit of",
        }
    }
}

/// A refusal, in words for the one who asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{actor} may not {verb} {what}: {reason}")]
pub struct Denied {
    /// Who.
    pub actor: String,
    /// What for.
    pub verb: &'static str,
    /// On what.
    pub what: String,
    /// What would be needed.
    pub reason: &'static str,
}

impl Actor {
    /// The installation itself; used where no person or zone asks.
    #[must_use]
    pub fn system() -> Self {
        Self {
            name: "system".to_owned(),
            address: String::new(),
            role: Role::Admin,
            meshes: Vec::new(),
        }
    }

    /// True where the role covers every mesh, present and future.
    #[must_use]
    pub fn covers_all_meshes(&self) -> bool {
        self.meshes.is_empty() && self.role != Role::MeshAdmin
    }

    /// True where the role is bound to `mesh`, or to all.
    #[must_use]
    pub fn covers(&self, mesh: &str) -> bool {
        self.covers_all_meshes() || self.meshes.iter().any(|bound| bound == mesh)
    }
}

/// Kinds outside any mesh that everybody may look at: where a zone is and whether it is enabled is nobody's secret,
/// and a tenant needs the names to read a roll-out.
const READABLE_BY_ALL: &[&str] = &["Zone"];

/// Says whether `actor` may do `action` on resources of `kind`.
///
/// `mesh` is the mesh the resource belongs to, and the mesh itself where `kind` is `Mesh` (or the issuer of a mesh's
/// tokens); "" for everything outside any mesh.
///
/// # Errors
/// Where it may not.
pub fn authorize(actor: &Actor, action: Action, mesh: &str, kind: &str) -> Result<(), Denied> {
    let in_mesh = !mesh.is_empty();
    let covered = if in_mesh {
        actor.covers(mesh)
    } else {
        actor.covers_all_meshes()
    };
    let allowed = match (actor.role, action) {
        // Bound to meshes, an admin is no more than their mesh-admin.
        (Role::Admin, _) if actor.meshes.is_empty() => true,
        (_, Action::Read) if !in_mesh && READABLE_BY_ALL.contains(&kind) => true,
        (_, Action::ReadInstallation) => true,
        (_, Action::Read) => covered,
        (
            Role::Admin | Role::MeshAdmin,
            Action::Write
            | Action::Delete
            | Action::ReadSecret
            | Action::Tokens
            | Action::ReadAudit,
        ) => in_mesh && covered && kind != "Mesh" && kind != "TokenIssuer",
        (
            Role::Viewer,
            Action::Write
            | Action::Delete
            | Action::ReadSecret
            | Action::Tokens
            | Action::ReadAudit,
        ) => false,
    };
    if allowed {
        return Ok(());
    }
    Err(Denied {
        actor: actor.name.clone(),
        verb: action.verb(),
        what: match (kind, mesh) {
            ("", "") => "the installation".to_owned(),
            (kind, "") => format!("{kind} resources"),
            ("Mesh", mesh) => format!("mesh {mesh}"),
            ("", mesh) => format!("mesh {mesh}"),
            (kind, mesh) => format!("{kind} resources of mesh {mesh}"),
        },
        reason: match (actor.role, action) {
            (Role::Viewer, Action::Read) | (Role::MeshAdmin | Role::Admin, _)
                if in_mesh && !covered =>
            {
                "its token is not bound to that mesh"
            }
            (Role::Viewer, Action::Read) => "its token is bound to certain meshes",
            (Role::Viewer, _) => "a viewer only reads, and no secrets",
            _ => "that takes the role admin",
        },
    })
}

/// The mesh that decides who may see and change `key`: its own, the mesh itself for `Mesh` and for the issuer of its
/// tokens; "" for what is outside any mesh.
#[must_use]
pub fn mesh_of(key: &ResourceKey) -> &str {
    match key.kind.as_str() {
        "Mesh" => &key.name,
        // The issuer of a zone's ingress tokens is named `zone.<zone>`; a mesh's name holds no dot.
        "TokenIssuer" if !key.name.contains('.') => &key.name,
        _ => &key.mesh,
    }
}

/// Whether `actor` may know of `key` at all, for lists and watches. Tokens are shown by their own list only.
#[must_use]
pub fn sees(actor: &Actor, key: &ResourceKey) -> bool {
    key.kind != "Token" && authorize(actor, Action::Read, mesh_of(key), &key.kind).is_ok()
}

/// Says whether `actor` may hand out an API token with `role` bound to `meshes`: nobody gives away more than they
/// have.
///
/// # Errors
/// Where it may not.
pub fn authorize_grant(actor: &Actor, role: Role, meshes: &[String]) -> Result<(), Denied> {
    if actor.role == Role::Admin && actor.meshes.is_empty() {
        return Ok(());
    }
    let within = actor.role != Role::Viewer
        && role != Role::Admin
        && !meshes.is_empty()
        && meshes.iter().all(|mesh| actor.covers(mesh));
    if within {
        return Ok(());
    }
    Err(Denied {
        actor: actor.name.clone(),
        verb: "grant",
        what: if meshes.is_empty() {
            "a role in all meshes".to_owned()
        } else {
            format!("a role in {}", meshes.join(", "))
        },
        reason: "nobody can grant more than they have",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actor(role: Role, meshes: &[&str]) -> Actor {
        Actor {
            name: "token/t".into(),
            address: String::new(),
            role,
            meshes: meshes.iter().map(|m| (*m).to_owned()).collect(),
        }
    }

    /// One line a rule: who, what, mesh (`-`: none), kind, and whether.
    #[test]
    fn the_roles_matrix() {
        let actors = [
            ("admin", actor(Role::Admin, &[])),
            ("pay-admin", actor(Role::MeshAdmin, &["pay"])),
            ("pay-bound-admin", actor(Role::Admin, &["pay"])),
            ("unbound-mesh-admin", actor(Role::MeshAdmin, &[])),
            ("viewer", actor(Role::Viewer, &[])),
            ("pay-viewer", actor(Role::Viewer, &["pay"])),
        ];
        let table = "
            admin              Write            -     Zone                  yes
            admin              ReadSecret       ana   Secret                yes
            admin              ReadAudit        -     -                     yes
            pay-admin          Read             pay   MeshService           yes
            pay-admin          Write            pay   MeshTrafficPermission yes
            pay-admin          Delete           pay   MeshTrafficPermission yes
            pay-admin          ReadSecret       pay   Secret                yes
            pay-admin          Tokens           pay   Token                 yes
            pay-admin          Read             pay   Mesh                  yes
            pay-admin          Write            pay   Mesh                  no
            pay-admin          Delete           pay   Mesh                  no
            pay-admin          Read             ana   Mesh                  no
            pay-admin          Read             ana   MeshService           no
            pay-admin          Write            ana   MeshTrafficPermission no
            pay-admin          ReadSecret       ana   Secret                no
            pay-admin          Write            -     Zone                  no
            pay-admin          Read             -     Zone                  yes
            pay-admin          Read             -     ZoneIngress           no
            pay-admin          Read             -     Token                 no
            pay-admin          Tokens           -     Token                 no
            pay-admin          ReadAudit        -     -                     no
            pay-bound-admin    Write            pay   MeshService           yes
            pay-bound-admin    Write            -     Zone                  no
            pay-bound-admin    Write            ana   MeshService           no
            unbound-mesh-admin Read             pay   MeshService           no
            unbound-mesh-admin Write            pay   MeshService           no
            viewer             Read             pay   MeshService           yes
            viewer             Read             ana   Mesh                  yes
            viewer             Read             -     ZoneIngress           yes
            viewer             Write            pay   MeshService           no
            viewer             Delete           pay   MeshService           no
            viewer             ReadSecret       pay   Secret                no
            viewer             Tokens           pay   Token                 no
            viewer             ReadInstallation -     -                     yes
            pay-viewer         Read             pay   MeshService           yes
            pay-viewer         Read             ana   MeshService           no
            pay-viewer         Read             ana   Mesh                  no
            pay-viewer         Write            pay   MeshService           no
            pay-viewer         ReadSecret       pay   Secret                no
        ";
        for line in table.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let actor = &actors.iter().find(|(name, _)| *name == words[0]).unwrap().1;
            let action = match words[1] {
                "Read" => Action::Read,
                "Write" => Action::Write,
                "Delete" => Action::Delete,
                "ReadSecret" => Action::ReadSecret,
                "Tokens" => Action::Tokens,
                "ReadInstallation" => Action::ReadInstallation,
                "ReadAudit" => Action::ReadAudit,
                other => panic!("{other}"),
            };
            let dash = |w: &'static str| if w == "-" { "" } else { w };
            let words: Vec<&'static str> = words
                .iter()
                .map(|w| dash(Box::leak((*w).to_owned().into_boxed_str())))
                .collect();
            let answer = authorize(actor, action, words[2], words[3]);
            assert_eq!(answer.is_ok(), words[4] == "yes", "{line}: {answer:?}");
        }
    }

    #[test]
    fn a_refusal_reads_the_same_whether_or_not_the_mesh_exists() {
        let tenant = actor(Role::MeshAdmin, &["pay"]);
        let one = authorize(&tenant, Action::Read, "real", "Mesh").unwrap_err();
        let other = authorize(&tenant, Action::Read, "imagined", "Mesh").unwrap_err();
        assert_eq!(
            one.to_string().replace("real", "X"),
            other.to_string().replace("imagined", "X")
        );
    }

    #[test]
    fn nobody_grants_more_than_they_have() {
        let tenant = actor(Role::MeshAdmin, &["pay"]);
        let pay = ["pay".to_owned()];
        assert!(authorize_grant(&tenant, Role::Viewer, &pay).is_ok());
        assert!(authorize_grant(&tenant, Role::MeshAdmin, &pay).is_ok());
        assert!(authorize_grant(&tenant, Role::Admin, &pay).is_err());
        assert!(authorize_grant(&tenant, Role::Viewer, &[]).is_err());
        assert!(authorize_grant(&tenant, Role::Viewer, &["ana".to_owned()]).is_err());
        assert!(authorize_grant(&actor(Role::Viewer, &[]), Role::Viewer, &pay).is_err());
        assert!(authorize_grant(&actor(Role::Admin, &[]), Role::Admin, &[]).is_ok());
    }
}
