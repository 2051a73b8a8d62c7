//! Machines: a dataplane brings the resource that describes it.

use mesh_model::{Dataplane, Resource, ZoneIngress};
use mesh_proto::{discovery::Role, names::ZoneName};

/// The longest resource text that is read, in bytes.
const RESOURCE_BYTES_MAX: usize = 256 * 1024;

/// The resource that a newcomer in `role` describes itself with, owned by `zone`.
///
/// # Errors
/// What is wrong with the text, for the person who wrote it.
pub fn resource_of(role: Role, text: &str, zone: &ZoneName) -> Result<Resource, String> {
    let wanted = match role {
        Role::Sidecar => "Dataplane",
        Role::Ingress => "ZoneIngress",
        Role::Unspecified => return Err("hello says no role: update the dataplane".to_owned()),
    };
    if text.len() > RESOURCE_BYTES_MAX {
        return Err(format!(
            "the {wanted} has more than {RESOURCE_BYTES_MAX} bytes"
        ));
    }
    let mut resources = mesh_model::parse(text, wanted)
        .map_err(|violations| format!("the {wanted} is refused:\n{violations}"))?;
    let (Some(mut resource), true) = (resources.pop(), resources.is_empty()) else {
        return Err(format!("exactly one {wanted} is needed"));
    };
    let fits = match role {
        Role::Ingress => resource.get::<ZoneIngress>().is_some(),
        _ => resource.get::<Dataplane>().is_some(),
    };
    if !fits {
        return Err(format!(
            "a {wanted} is needed, this is a {}",
            resource.kind().name
        ));
    }
    resource.meta.zone = zone.to_string();
    Ok(resource)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_brings_exactly_one_resource_of_its_kind() {
        let zone: ZoneName = "east".parse().unwrap();
        let dataplane =
            "type: Dataplane\nmesh: pay\nname: web-1\nnetworking: {address: 10.0.0.1}\n";
        let read = resource_of(Role::Sidecar, dataplane, &zone).unwrap();
        assert_eq!(
            (read.meta.name.as_str(), read.meta.zone.as_str()),
            ("web-1", "east")
        );
        for (role, text, words) in [
            (Role::Ingress, dataplane, "a ZoneIngress is needed"),
            (Role::Unspecified, dataplane, "no role"),
            (Role::Sidecar, "", "exactly one"),
            (
                Role::Sidecar,
                "type: Dataplane\nname: web-1\nnetworking: {adress: x}\n",
                "adress",
            ),
        ] {
            let refused = resource_of(role, text, &zone).unwrap_err();
            assert!(refused.contains(words), "{refused}");
        }
        let two = format!("{dataplane}---\n{dataplane}");
        assert!(resource_of(Role::Sidecar, &two, &zone).is_err());
    }
}
