//! Who may do what: one function, called by every handler (invariant 12).
//!
//! Pure. Where nothing here says yes, the answer is no. A refusal never depends on whether the thing asked for
//! exists, so that a tenant can not find out about another mesh by asking.
//!
//! Who somebody is, and which rights that gives, is [`crate::access`]'s to find out.

use std::sync::Arc;

use mesh_model::{Role as OwnRole, api::Role, role::RoleAction};
use mesh_proto::zone::ResourceKey;

/// Who asks, as established by its token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// `token/<id>`, or `user/<name>/<token id>` where the token belongs to a user, as the audit shows it.
    pub name: String,
    /// Where the request came from.
    pub address: String,
    /// The user that the token belongs to.
    pub user: Option<String>,
    /// What it may do: what one of them allows.
    pub grants: Vec<Grant>,
    /// What it asks now, such as `PUT /v1/zones/east`, for records of what was refused.
    pub request: String,
    /// The client's id of the request; "" : none.
    pub request_id: String,
}

/// Rights, and where they hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// What may be done.
    pub rights: Rights,
    /// Where.
    pub reach: Reach,
}

/// What may be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rights {
    /// A built-in role.
    BuiltIn(Role),
    /// A `Role` that administrators wrote.
    Own(Arc<OwnRole>),
}

/// Where rights hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// In all meshes, present and future, and outside any.
    Everywhere,
    /// In these meshes.
    Meshes(Vec<String>),
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Learn what there can be: the version, kinds, their schemas.
    Describe,
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
    /// Look at requests as they end.
    Tap,
}

impl Action {
    fn verb(self) -> &'static str {
        match self {
            Self::Describe => "learn about",
            Self::Read => "read",
            Self::Write => "write",
            Self::Delete => "delete",
            Self::ReadSecret => "read the value of",
            Self::Tokens => "manage tokens for",
            Self::ReadInstallation => "see the status of",
            Self::ReadAudit => "read the audit of",
            Self::Tap => "tap requests of",
        }
    }

    /// Its name in a `Role`; what everybody may is not named there.
    fn in_roles(self) -> Option<RoleAction> {
        Some(match self {
            Self::Describe => return None,
            Self::Read => RoleAction::Read,
            Self::Write => RoleAction::Write,
            Self::Delete => RoleAction::Delete,
            Self::ReadSecret => RoleAction::ReadSecret,
            Self::Tokens => RoleAction::Tokens,
            Self::ReadInstallation => RoleAction::ReadInstallation,
            Self::ReadAudit => RoleAction::ReadAudit,
            Self::Tap => RoleAction::Tap,
        })
    }
}

/// Every action that has to be granted.
const GRANTED: [Action; 8] = [
    Action::Read,
    Action::Write,
    Action::Delete,
    Action::ReadSecret,
    Action::Tokens,
    Action::ReadInstallation,
    Action::ReadAudit,
    Action::Tap,
];

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
    /// The kind it is about; "" where it is about none.
    pub kind: String,
}

impl Actor {
    /// The installation itself; used where no person or zone asks.
    #[must_use]
    pub fn system() -> Self {
        Self {
            name: "system".to_owned(),
            address: String::new(),
            user: None,
            grants: vec![Grant::admin()],
            request: String::new(),
            request_id: String::new(),
        }
    }

    /// True where it may do everything.
    #[must_use]
    pub fn is_admin(&self) -> bool {
        self.grants.contains(&Grant::admin())
    }

    /// The meshes in which it may do `action` with resources of `kind`; `None`: in all, present and future.
    #[must_use]
    pub fn meshes_for(&self, action: Action, kind: &str) -> Option<Vec<String>> {
        let may = |mesh: &str| authorize(self, action, mesh, kind).is_ok();
        if may(ANY_MESH) {
            return None;
        }
        let mut meshes: Vec<String> = self
            .grants
            .iter()
            .flat_map(|grant| match &grant.reach {
                Reach::Everywhere => &[],
                Reach::Meshes(bound) => bound.as_slice(),
            })
            .filter(|mesh| may(mesh))
            .cloned()
            .collect();
        meshes.sort();
        meshes.dedup();
        Some(meshes)
    }
}

/// Stands for a mesh that nobody can be bound to: only what holds everywhere holds there.
const ANY_MESH: &str = "*";

impl Grant {
    /// Everything, everywhere.
    #[must_use]
    pub fn admin() -> Self {
        Self::built_in(Role::Admin, &[])
    }

    /// A built-in role bound to `meshes`; to none of them means everywhere, but for a mesh-admin, who is always bound.
    #[must_use]
    pub fn built_in(role: Role, meshes: &[String]) -> Self {
        Self {
            rights: Rights::BuiltIn(role),
            reach: if meshes.is_empty() && role != Role::MeshAdmin {
                Reach::Everywhere
            } else {
                Reach::Meshes(meshes.to_vec())
            },
        }
    }

    fn reaches(&self, mesh: &str) -> bool {
        match &self.reach {
            Reach::Everywhere => true,
            Reach::Meshes(bound) => !mesh.is_empty() && bound.iter().any(|bound| bound == mesh),
        }
    }

    fn allows(&self, action: Action, mesh: &str, kind: &str) -> bool {
        // The installation is in no mesh, and where one's meshes run is no secret of others.
        if !self.reaches(mesh) && action != Action::ReadInstallation {
            return false;
        }
        // What a mesh is, and where it runs, is not for those who are bound to it to say.
        let bound = self.reach != Reach::Everywhere;
        if bound
            && matches!(kind, "Mesh" | "TokenIssuer")
            && !matches!(action, Action::Read | Action::ReadInstallation)
        {
            return false;
        }
        match (&self.rights, action) {
            (Rights::BuiltIn(Role::Admin | Role::MeshAdmin), _)
            | (
                Rights::BuiltIn(Role::Viewer),
                Action::Describe | Action::Read | Action::ReadInstallation,
            ) => true,
            (Rights::BuiltIn(Role::Viewer), _) => false,
            (Rights::Own(role), action) => action
                .in_roles()
                .is_none_or(|action| role.allows(action, kind)),
        }
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
    let allowed = match action {
        Action::Describe => true,
        Action::Read if !in_mesh && READABLE_BY_ALL.contains(&kind) => !actor.grants.is_empty(),
        _ => actor
            .grants
            .iter()
            .any(|grant| grant.allows(action, mesh, kind)),
    };
    if allowed {
        return Ok(());
    }
    let reached = actor.grants.iter().any(|grant| grant.reaches(mesh));
    let all_view = actor
        .grants
        .iter()
        .all(|grant| grant.rights == Rights::BuiltIn(Role::Viewer));
    let all_own = actor
        .grants
        .iter()
        .all(|grant| matches!(grant.rights, Rights::Own(_)));
    Err(Denied {
        actor: actor.name.clone(),
        verb: action.verb(),
        what: match (kind, mesh) {
            ("", "") => "the installation".to_owned(),
            (kind, "") => format!("{kind} resources"),
            ("Mesh" | "", mesh) => format!("mesh {mesh}"),
            (kind, mesh) => format!("{kind} resources of mesh {mesh}"),
        },
        kind: kind.to_owned(),
        reason: if actor.grants.is_empty() {
            "no RoleBinding gives it a role"
        } else if in_mesh && !reached {
            "its token is not bound to that mesh"
        } else if all_view && action == Action::Read {
            "its token is bound to certain meshes"
        } else if all_view {
            "a viewer only reads, and neither secrets nor live requests"
        } else if all_own && reached {
            "its roles do not allow that"
        } else {
            "that takes the role admin"
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

/// Kinds that are no resources and have to be granted all the same.
const OTHER_KINDS: [&str; 2] = ["", "Node"];

/// Says whether `actor` has everything that `grant` gives: nobody gives away more than they have.
///
/// # Errors
/// Where it has not.
pub fn authorize_grant(actor: &Actor, grant: &Grant) -> Result<(), Denied> {
    if actor.is_admin() {
        return Ok(());
    }
    let meshes: Vec<&str> = match &grant.reach {
        Reach::Everywhere => vec!["", ANY_MESH],
        Reach::Meshes(meshes) => meshes.iter().map(String::as_str).collect(),
    };
    let kinds = || {
        let named = mesh_model::kinds().iter().map(|kind| kind.name);
        named.chain(OTHER_KINDS)
    };
    let has = |mesh: &str, kind: &str| {
        GRANTED.into_iter().all(|action| {
            !grant.allows(action, mesh, kind) || authorize(actor, action, mesh, kind).is_ok()
        })
    };
    let everything = *grant == Grant::admin();
    if !everything
        && meshes
            .iter()
            .all(|mesh| kinds().all(|kind| has(mesh, kind)))
    {
        return Ok(());
    }
    Err(Denied {
        actor: actor.name.clone(),
        verb: "grant",
        what: match &grant.reach {
            Reach::Everywhere => "a role in all meshes".to_owned(),
            Reach::Meshes(meshes) => format!("a role in {}", meshes.join(", ")),
        },
        reason: "nobody can grant more than they have",
        kind: "RoleBinding".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actor(role: Role, meshes: &[&str]) -> Actor {
        let meshes: Vec<String> = meshes.iter().map(|m| (*m).to_owned()).collect();
        granted(vec![Grant::built_in(role, &meshes)])
    }

    fn granted(grants: Vec<Grant>) -> Actor {
        Actor {
            name: "token/t".into(),
            grants,
            ..Actor::system()
        }
    }

    fn own(rules: &str, meshes: Option<&[&str]>) -> Grant {
        let role: OwnRole = serde_json::from_value(serde_json::json!({
            "rules": serde_json::from_str::<serde_json::Value>(rules).unwrap(),
        }))
        .unwrap();
        Grant {
            rights: Rights::Own(Arc::new(role)),
            reach: meshes.map_or(Reach::Everywhere, |meshes| {
                Reach::Meshes(meshes.iter().map(|m| (*m).to_owned()).collect())
            }),
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
            ("nobody", granted(vec![])),
            (
                "timeouts-of-pay",
                granted(vec![
                    own(
                        r#"[{"actions": ["read", "write"], "kinds": ["MeshTimeout"]}, {"actions": ["readAudit"]}]"#,
                        Some(&["pay"]),
                    ),
                    Grant::built_in(Role::Viewer, &["ana".to_owned()]),
                ]),
            ),
            (
                "writer-everywhere",
                granted(vec![own(
                    r#"[{"actions": ["read", "write", "delete"]}]"#,
                    None,
                )]),
            ),
            (
                "tapper-of-pay",
                granted(vec![own(r#"[{"actions": ["tap"]}]"#, Some(&["pay"]))]),
            ),
            (
                "mesh-writer-of-pay",
                granted(vec![own(
                    r#"[{"actions": ["write"], "kinds": ["Mesh"]}]"#,
                    Some(&["pay"]),
                )]),
            ),
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
            pay-admin          Tap              pay   -                     yes
            pay-admin          Tap              ana   -                     no
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
            pay-viewer         Tap              pay   -                     no
            tapper-of-pay      Tap              pay   -                     yes
            tapper-of-pay      Tap              ana   -                     no
            tapper-of-pay      Read             pay   Dataplane             no
            nobody             Describe         -     -                     yes
            nobody             Read             -     Zone                  no
            nobody             ReadInstallation -     -                     no
            timeouts-of-pay    Read             pay   MeshTimeout           yes
            timeouts-of-pay    Write            pay   MeshTimeout           yes
            timeouts-of-pay    Delete           pay   MeshTimeout           no
            timeouts-of-pay    Read             pay   Mesh                  no
            timeouts-of-pay    Read             pay   Secret                no
            timeouts-of-pay    ReadAudit        pay   -                     yes
            timeouts-of-pay    ReadAudit        ana   -                     no
            timeouts-of-pay    ReadAudit        -     -                     no
            timeouts-of-pay    Read             ana   MeshService           yes
            timeouts-of-pay    Write            ana   MeshTimeout           no
            timeouts-of-pay    Write            bob   MeshTimeout           no
            writer-everywhere  Write            bob   MeshTimeout           yes
            writer-everywhere  Write            -     Zone                  yes
            writer-everywhere  Delete           -     Node                  yes
            writer-everywhere  ReadSecret       bob   Secret                no
            writer-everywhere  Tokens           -     Token                 no
            writer-everywhere  ReadInstallation -     -                     no
            mesh-writer-of-pay Write            pay   Mesh                  no
        ";
        for line in table.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let actor = &actors.iter().find(|(name, _)| *name == words[0]).unwrap().1;
            let action = match words[1] {
                "Describe" => Action::Describe,
                "Read" => Action::Read,
                "Write" => Action::Write,
                "Delete" => Action::Delete,
                "ReadSecret" => Action::ReadSecret,
                "Tokens" => Action::Tokens,
                "ReadInstallation" => Action::ReadInstallation,
                "ReadAudit" => Action::ReadAudit,
                "Tap" => Action::Tap,
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
        let pay = ["pay".to_owned()];
        let may = |actor: &Actor, grant: Grant| authorize_grant(actor, &grant).is_ok();
        let tenant = actor(Role::MeshAdmin, &["pay"]);
        assert!(may(&tenant, Grant::built_in(Role::Viewer, &pay)));
        assert!(may(&tenant, Grant::built_in(Role::MeshAdmin, &pay)));
        // Bound to a mesh, an admin is no more than its mesh-admin.
        assert!(may(&tenant, Grant::built_in(Role::Admin, &pay)));
        assert!(!may(&tenant, Grant::admin()));
        assert!(!may(&tenant, Grant::built_in(Role::Viewer, &[])));
        assert!(!may(
            &tenant,
            Grant::built_in(Role::Viewer, &["ana".to_owned()])
        ));
        let viewer = actor(Role::Viewer, &[]);
        assert!(may(&viewer, Grant::built_in(Role::Viewer, &pay)));
        assert!(!may(&viewer, Grant::built_in(Role::MeshAdmin, &pay)));
        assert!(may(&actor(Role::Admin, &[]), Grant::admin()));
        // Roles of one's own: each action on each kind counts.
        let everything = r#"[{"actions": ["read", "write", "delete", "readSecret", "tokens", "readAudit", "readInstallation", "tap"]}]"#;
        let keeper = granted(vec![own(everything, None)]);
        assert!(may(&keeper, own(everything, Some(&["pay"]))));
        assert!(may(&keeper, own(everything, None)));
        assert!(
            !may(&keeper, Grant::admin()),
            "what admins may do one day is not in it"
        );
        let timeouts = r#"[{"actions": ["write"], "kinds": ["MeshTimeout"]}]"#;
        let limited = granted(vec![own(timeouts, Some(&["pay", "ana"]))]);
        assert!(may(&limited, own(timeouts, Some(&["pay"]))));
        assert!(!may(&limited, own(timeouts, None)));
        assert!(!may(&limited, own(timeouts, Some(&["pay", "bob"]))));
        assert!(!may(
            &limited,
            own(r#"[{"actions": ["write"]}]"#, Some(&["pay"]))
        ));
        assert!(!may(
            &limited,
            own(
                r#"[{"actions": ["read"], "kinds": ["MeshTimeout"]}]"#,
                Some(&["pay"])
            )
        ));
    }
}
