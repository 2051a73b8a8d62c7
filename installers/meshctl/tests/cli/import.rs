//! Importing: what is written where, what is told, and what the exit code says.

use std::{fs, os::unix::fs::PermissionsExt as _};

use serde_json::Value;

use crate::server::{meshctl, run};

const KEPT: &str = "type: MeshHealthCheck\nname: checks\nspec:\n  to:\n  - targetRef: {kind: Mesh}\n    default: {interval: 5s, tcp: {}}\n";
const PERMISSION: &str = "type: TrafficPermission\nmesh: pay\nname: a\nsources:\n- match: {kuma.io/service: web}\ndestinations:\n- match: {kuma.io/service: api}\n";
const GATEWAY: &str = "type: MeshGateway\nmesh: pay\nname: edge\n";
const DATAPLANE: &str = "type: Dataplane\nmesh: pay\nname: web-1\nnetworking:\n  address: 10.0.0.1\n  inbound:\n  - port: 80\n    tags: {kuma.io/service: web, kuma.io/zone: east}\n";

fn import(line: &str, input: &str) -> (i32, String, String) {
    let mut command = meshctl(&format!("import kuma {line}"));
    command.write_stdin(input);
    run(command)
}

#[test]
fn what_comes_out_goes_to_standard_output_and_the_report_to_standard_error() {
    let (code, out, err) = import("- --zone east,west", &format!("{KEPT}---\n{PERMISSION}"));
    assert_eq!(code, 0, "{err}");
    let read = mesh_model::parse(&out, "out").unwrap();
    assert_eq!(read.len(), 2);
    assert!(
        out.contains("spiffe://pay.east.mesh.local/workload/web"),
        "{out}"
    );
    assert!(
        out.contains("spiffe://pay.west.mesh.local/workload/web"),
        "{out}"
    );
    assert!(
        err.contains(
            "standard input:14: changed: TrafficPermission a in mesh pay: destinations[0]"
        ),
        "{err}"
    );
    assert!(
        err.ends_with("1 kept as they are, 1 changed, 0 not kept\n"),
        "{err}"
    );
    // What names no mesh gets the one that was typed.
    let (_, out, _) = import("- -m ana", KEPT);
    assert!(out.contains("mesh: ana"), "{out}");
}

#[test]
fn what_could_not_be_kept_is_told_with_its_place_and_exits_4() {
    let (code, out, err) = import("-", &format!("{KEPT}---\n{GATEWAY}"));
    assert_eq!(code, 4);
    assert!(out.contains("MeshHealthCheck"), "{out}");
    let line = "standard input:8: NOT KEPT: MeshGateway edge in mesh pay: there are no gateways in this version";
    assert!(err.contains(line), "{err}");
    assert!(err.ends_with("one thing could not be kept\n"), "{err}");
}

#[test]
fn a_folder_gets_a_file_for_each_resource_and_the_report_one_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("kuma");
    fs::create_dir(&input).unwrap();
    fs::write(input.join("a.yaml"), PERMISSION).unwrap();
    fs::write(input.join("b.yaml"), DATAPLANE).unwrap();
    fs::write(input.join("c.yaml"), GATEWAY).unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let line = format!(
        "{} -o {} --report {}",
        at("kuma"),
        at("out"),
        at("report.json")
    );
    let (code, out, err) = import(&line, "");
    assert_eq!((code, out.as_str()), (4, ""), "{err}");
    let permission = dir
        .path()
        .join("out/apply/pay/meshtrafficpermission-a.yaml");
    let text = fs::read_to_string(&permission).unwrap();
    assert!(
        text.contains("spiffe://pay.east.mesh.local/workload/web"),
        "{text}"
    );
    let mode = fs::metadata(&permission).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "secrets may be among them");
    assert!(
        dir.path()
            .join("out/beside/pay/dataplane-web-1.yaml")
            .exists()
    );
    let report: Value =
        serde_json::from_str(&fs::read_to_string(at("report.json")).unwrap()).unwrap();
    let items = report["items"].as_array().unwrap();
    let lost = items
        .iter()
        .find(|item| item["outcome"] == "notKept")
        .unwrap();
    assert_eq!(lost["resource"], "MeshGateway edge in mesh pay");
    assert_eq!(lost["line"], 1);
    assert!(lost["file"].as_str().unwrap().ends_with("c.yaml"));

    let (_, _, _) = import(&format!("{} --report {}", at("kuma"), at("report.txt")), "");
    let text = fs::read_to_string(at("report.txt")).unwrap();
    assert!(text.contains("NOT KEPT"), "{text}");
}

#[test]
fn what_stands_beside_a_workload_needs_a_folder() {
    let (code, out, err) = import("-", &format!("{KEPT}---\n{DATAPLANE}"));
    assert_eq!(code, 4);
    assert!(!out.contains("Dataplane"), "{out}");
    assert!(
        err.contains("dataplane/web-1 stands beside a workload"),
        "{err}"
    );
    assert!(err.contains("name a folder by -o"), "{err}");
}

#[test]
fn what_can_not_be_read_is_told_and_nothing_comes_out() {
    for (input, words) in [
        ("a: [\n", "standard input:"),
        ("name: x\n", "type: is required"),
        ("type: Mesh\n", "name: is required"),
        ("- 1\n", "a resource is an object"),
        ("", "there is no resource"),
        (PERMISSION, "name every zone of the mesh by --zone"),
    ] {
        let (code, out, err) = import("-", input);
        assert_eq!((code, out.as_str()), (2, ""), "{input}: {err}");
        assert!(err.contains(words), "{input}: {err}");
    }
    for (line, words) in [
        ("", "PATH"),
        ("/no/such/file", "/no/such/file"),
        ("- --zone Ea/st", "is not a name"),
    ] {
        let (code, _, err) = import(line, KEPT);
        assert_eq!(code, 2, "{line}: {err}");
        assert!(err.contains(words), "{line}: {err}");
    }
    let (code, _, err) = run(meshctl("import istio x"));
    assert_eq!(code, 2);
    assert!(err.contains("istio"), "{err}");
}
