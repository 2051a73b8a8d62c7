//! Resources as an administrator writes them.

/// A zone that may join.
#[must_use]
pub fn zone(name: &str) -> String {
    format!("type: Zone\nname: {name}\n---\n")
}

/// A mesh with everything a new mesh gets by default.
#[must_use]
pub fn mesh(name: &str) -> String {
    format!("type: Mesh\nname: {name}\n---\n")
}

/// Everyone in the mesh may call everyone.
#[must_use]
pub fn allow_everyone(mesh: &str, name: &str) -> String {
    permission(mesh, name, None, &[("Prefix", "spiffe://")])
}

/// Who may call the dataplanes with the label `isthmus.io/service: <service>` (all without one), as
/// (`Exact` or `Prefix`, SPIFFE ID).
#[must_use]
pub fn permission(
    mesh: &str,
    name: &str,
    service: Option<&str>,
    allowed: &[(&str, &str)],
) -> String {
    let target = service.map_or_else(String::new, |service| {
        format!("  targetRef: {{kind: Dataplane, labels: {{isthmus.io/service: {service}}}}}\n")
    });
    let allow: Vec<_> = allowed
        .iter()
        .map(|(kind, value)| format!("{{spiffeID: {{type: {kind}, value: \"{value}\"}}}}"))
        .collect();
    format!(
        "type: MeshTrafficPermission\nmesh: {mesh}\nname: {name}\nspec:\n{target}  rules:\n    - default:\n        allow: [{}]\n---\n",
        allow.join(", ")
    )
}

/// The SPIFFE ID of a workload as a mesh gives it by default.
#[must_use]
pub fn spiffe_id(mesh: &str, zone: &str, workload: &str) -> String {
    format!("spiffe://{mesh}.{zone}.mesh.local/workload/{workload}")
}

/// Where a permission is reached in the API.
#[must_use]
pub fn permission_path(mesh: &str, name: &str) -> String {
    format!("/v1/meshes/{mesh}/meshtrafficpermissions/{name}")
}

/// A Dataplane with one inbound.
#[must_use]
pub fn dataplane(
    mesh: &str,
    name: &str,
    address: &str,
    port: u16,
    service_port: u16,
    service: &str,
) -> String {
    format!(
        "type: Dataplane\nmesh: {mesh}\nname: {name}\nlabels: {{isthmus.io/service: {service}}}\nnetworking:\n  address: {address}\n  inbound:\n    - port: {port}\n      servicePort: {service_port}\n"
    )
}

/// The server name under which `port` of `service` in `zone` is called, as it is on the wire: a port number, last in the
/// name, gets a '_', since host names may not end with a number.
#[must_use]
pub fn server_name(mesh: &str, zone: &str, service: &str, port: &str) -> String {
    format!("sni.msvc.{mesh}.{zone}.{service}._{port}")
}
