//! Templates: text with `{{ .Field }}` and `{{ label "key" }}`, the part of Go's templates that Kuma's users write in
//! SPIFFE IDs and host names.

use crate::labels;

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// As it stands.
    Text(&'a str),
    /// One of the fields a template may hold, without its dot.
    Field(&'static str),
    /// The value of the label with this key.
    Label(String),
}

/// Takes a template apart that may hold `fields`; also how it is validated.
pub(crate) fn pieces<'a>(
    template: &'a str,
    fields: &[&'static str],
) -> Result<Vec<Piece<'a>>, String> {
    let mut pieces = Vec::new();
    let mut rest = template;
    while let Some((literal, after)) = rest.split_once("{{") {
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal));
        }
        let (action, after) = after.split_once("}}").ok_or("\"{{\" without its \"}}\"")?;
        pieces.push(piece(action.trim(), fields)?);
        rest = after;
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest));
    }
    Ok(pieces)
}

fn piece(action: &str, fields: &[&'static str]) -> Result<Piece<'static>, String> {
    let is_field = |field: &&&str| action.strip_prefix('.') == Some(**field);
    if let Some(field) = fields.iter().find(is_field) {
        return Ok(Piece::Field(field));
    }
    let label = action
        .strip_prefix("label")
        .map(str::trim)
        .and_then(|quoted| quoted.strip_prefix('"')?.strip_suffix('"'))
        .filter(|key| labels::key_error(key).is_none());
    match label {
        Some(key) => Ok(Piece::Label(labels::canonical_key(key).into_owned())),
        None => {
            let known: Vec<String> = fields
                .iter()
                .map(|field| format!("{{{{ .{field} }}}}"))
                .collect();
            Err(format!(
                "{{{{ {action} }}}} is not known; there are {} and {{{{ label \"key\" }}}}",
                known.join(", ")
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: &[&str] = &["Mesh", "Zone", "Workload"];

    #[test]
    fn templates_are_taken_apart() {
        assert_eq!(
            pieces(
                r#"a{{.Mesh}}{{  .Zone }}/{{ label "kuma.io/x" }}{{ .Workload }}"#,
                FIELDS
            ),
            Ok(vec![
                Piece::Text("a"),
                Piece::Field("Mesh"),
                Piece::Field("Zone"),
                Piece::Text("/"),
                Piece::Label("isthmus.io/x".to_owned()),
                Piece::Field("Workload"),
            ])
        );
        for bad in [
            "{{",
            "{{}}",
            "{{ .Mesh | upper }}",
            "{{ label }}",
            "{{ label \"\" }}",
            "{{ label x }}",
        ] {
            assert!(pieces(bad, FIELDS).is_err(), "{bad}");
        }
    }
}
