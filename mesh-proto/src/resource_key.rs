//! What names a resource everywhere: kind, mesh, owning zone and name.

use std::fmt;

use crate::zone::ResourceKey;

impl ResourceKey {
    /// The key of what an administrator wrote. `mesh` is "" for kinds outside any mesh.
    #[must_use]
    pub fn global(kind: &str, mesh: &str, name: &str) -> Self {
        Self::in_zone(kind, mesh, "", name)
    }

    /// The key of what `zone` owns ("" : what administrators wrote).
    #[must_use]
    pub fn in_zone(kind: &str, mesh: &str, zone: &str, name: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            mesh: mesh.to_owned(),
            zone: zone.to_owned(),
            name: name.to_owned(),
        }
    }
}

/// `MeshService store in mesh payments, zone west`: for messages to people.
impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)?;
        if !self.mesh.is_empty() {
            write!(f, " in mesh {}", self.mesh)?;
        }
        if !self.zone.is_empty() {
            write!(f, ", zone {}", self.zone)?;
        }
        Ok(())
    }
}
