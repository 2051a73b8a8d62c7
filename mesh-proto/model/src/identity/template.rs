//! Templates of SPIFFE IDs: text with `{{ .Mesh }}`, `{{ .Zone }}`, `{{ .Workload }}` and `{{ label "key" }}`, the part of
//! Go's templates that Kuma's users write here.

use crate::labels;

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// As it stands.
    Text(&'a str),
    Mesh,
    Zone,
    Workload,
    /// The value of the dataplane's label with this key.
    Label(String),
}

/// Takes a template apart; also how it is validated.
pub(super) fn pieces(template: &str) -> Result<Vec<Piece<'_>>, String> {
    let mut pieces = Vec::new();
    let mut rest = template;
    while let Some((literal, after)) = rest.split_once("{{") {
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal));
        }
        let (action, after) = after.split_once("}}").ok_or("\"{{\" without its \"}}\"")?;
        pieces.push(piece(action.trim())?);
        rest = after;
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest));
    }
    Ok(pieces)
}

fn piece(action: &str) -> Result<Piece<'_>, String> {
    match action {
        ".Mesh" => return Ok(Piece::Mesh),
        ".Zone" => return Ok(Piece::Zone),
        ".Workload" => return Ok(Piece::Workload),
        _ => {}
    }
    let label = action
        .strip_prefix("label")
        .map(str::trim)
        .and_then(|quoted| quoted.strip_prefix('"')?.strip_suffix('"'))
        .filter(|key| labels::key_error(key).is_none());
    match label {
        Some(key) => Ok(Piece::Label(labels::canonical_key(key).into_owned())),
        None => Err(format!(
            "{{{{ {action} }}}} is not known; there are {{{{ .Mesh }}}}, {{{{ .Zone }}}}, {{{{ .Workload }}}} and {{{{ label \"key\" }}}}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_taken_apart() {
        assert_eq!(
            pieces(r#"a{{.Mesh}}{{  .Zone }}/{{ label "kuma.io/x" }}{{ .Workload }}"#),
            Ok(vec![
                Piece::Text("a"),
                Piece::Mesh,
                Piece::Zone,
                Piece::Text("/"),
                Piece::Label("isthmus.io/x".to_owned()),
                Piece::Workload,
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
            assert!(pieces(bad).is_err(), "{bad}");
        }
    }
}
