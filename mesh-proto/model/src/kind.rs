//! What a kind of resource is: its names, its scope, who writes it, its fields and its rules.

use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    check::Checker,
    kinds::{Spec, kinds},
    policy::{BuiltIn, Policy, PolicyShape},
    resource::{Meta, Resource},
};

/// A kind of resource. Implemented once for each, in its own file of [`mod@crate::kinds`].
pub trait Kind:
    Registered + Serialize + DeserializeOwned + JsonSchema + Clone + PartialEq + Send + Sync + 'static
{
    /// Its names and how it is handled.
    const DESCRIPTOR: Descriptor;

    /// Reports what is wrong and can be known from this resource alone. Shape and ranges were checked before, against
    /// the schema; what is left are rules over several fields and the syntax of texts.
    fn validate(&self, meta: &Meta, out: &mut Checker);

    /// For kinds of policies: what they may say.
    const POLICY: Option<PolicyShape> = None;

    /// For kinds of policies: what holds where no policy says anything.
    const BUILT_IN: BuiltIn = BuiltIn::NOTHING;

    /// For kinds of policies: the policy, without its kind.
    fn policy(&self) -> Option<&dyn Policy> {
        None
    }

    /// The content of `resource`, where it is of this kind.
    #[must_use]
    fn of(resource: &Resource) -> Option<&Self> {
        Self::of_spec(&resource.spec)
    }
}

/// That a kind is in the list of [`mod@crate::kinds`]; implemented there for all of them.
pub trait Registered: Into<Spec> {
    /// The content, where it is of this kind.
    fn of_spec(spec: &Spec) -> Option<&Self>;
}

/// Names of a kind, and how it is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Descriptor {
    /// As in `type:`, such as `MeshService`.
    pub name: &'static str,
    /// Segment of URLs and word of `meshctl`, such as `meshservices`.
    pub plural: &'static str,
    /// Short word of `meshctl`, such as `msvc`.
    pub short: &'static str,
    /// Whether it lives in a mesh.
    pub scope: Scope,
    /// Who may write it.
    pub writers: Writers,
    /// True where the fields stand under `spec:`; false where they stand beside `name:` (as in Kuma's older kinds).
    pub spec_field: bool,
    /// What its name must look like.
    pub name_rule: NameRule,
}

impl Descriptor {
    /// True for kinds whose value is sealed where it is stored, and shown to those only who may read secrets.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        is_secret(self.name)
    }
}

/// True for the names of kinds whose value is sealed.
#[must_use]
pub fn is_secret(kind: &str) -> bool {
    matches!(kind, "Secret" | "GlobalSecret")
}

/// Whether a kind lives in a mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Outside any mesh.
    Global,
    /// In one mesh.
    Mesh,
}

/// Who may write a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writers {
    /// Administrators.
    Admin,
    /// Administrators, and zones for what is theirs.
    AdminOrZone,
    /// Zones only.
    Zone,
    /// The control planes themselves; no text of a user is ever read as such a kind.
    System,
}

/// What a resource's name must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    /// An RFC 1035 label, because the name becomes part of host names.
    Label,
    /// An RFC 1123 subdomain.
    Subdomain,
}

/// The kind with this name, plural or short name; letter case does not matter.
#[must_use]
pub fn find_kind(word: &str) -> Option<&'static Descriptor> {
    kinds().iter().find(|kind| {
        [kind.name, kind.plural, kind.short]
            .iter()
            .any(|name| name.eq_ignore_ascii_case(word))
    })
}
