//! Host names of services, by the templates of `HostnameGenerator`s: text with `{{ .DisplayName }}`, `{{ .Name }}`,
//! `{{ .Namespace }}`, `{{ .Mesh }}`, `{{ .Zone }}` and `{{ label "key" }}`.

use mesh_proto::names;

use crate::template::{self, Piece};

/// What a template may hold.
const FIELDS: &[&str] = &["DisplayName", "Name", "Namespace", "Mesh", "Zone"];

/// Whether `template` gives a host name, whatever the service.
pub(crate) fn check(template: &str) -> Result<(), String> {
    if template.is_empty() {
        return Err("must not be empty".to_owned());
    }
    let rendered: String = template::pieces(template, FIELDS)?
        .into_iter()
        .map(|piece| match piece {
            Piece::Text(text) => text.to_owned(),
            Piece::Field(name) => name.to_ascii_lowercase(),
            Piece::Label(_) => "label".to_owned(),
        })
        .collect();
    if names::is_subdomain(&rendered) {
        Ok(())
    } else {
        Err(format!(
            "gives names such as {rendered:?}, which are not DNS names: use lower-case letters, digits, '-' and '.'"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_gives_a_dns_name() {
        for good in [
            "{{ .DisplayName }}.svc.mesh.local",
            r#"{{ label "kuma.io/service" }}.{{ .Zone }}.mesh"#,
            "{{.Name}}-{{ .Namespace }}.{{ .Mesh }}",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "{{ .DisplayName",
            "{{ .Service }}.x",
            "{{ .Name }}_x",
            "{{ .Name }}.",
            "*.{{ .Name }}",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
