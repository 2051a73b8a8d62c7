//! Paths of fields, as violations show them: `spec.rules[0].default`, `labels["isthmus.io/team"]`.

/// The path of field `name` of the object at `path`.
pub(crate) fn field(path: &str, name: &str) -> String {
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    match (path.is_empty(), plain) {
        (true, true) => name.to_owned(),
        (false, true) => format!("{path}.{name}"),
        // As JavaScript and jq write it; the name may hold anything.
        (_, false) => format!("{path}[{name:?}]"),
    }
}

/// The path of item `index` of the list at `path`.
pub(crate) fn item(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}

/// The path around `path`.
pub(crate) fn parent(path: &str) -> &str {
    if let Some(inner) = path.strip_suffix("\"]") {
        // A quote inside the name is escaped, so no `["` of the name looks like the one that opens it: that is the first one
        // whose name reaches to the end. Names that hold `["` are rare; a wrong guess costs a less exact place.
        return inner.rfind("[\"").map_or("", |at| &path[..at]);
    }
    path.rfind(['.', '[']).map_or("", |at| &path[..at])
}

/// `path` with the indexes of its lists left out: `spec.rules[].default`.
pub(crate) fn without_indexes(path: &str) -> String {
    path.chars().filter(|c| !c.is_ascii_digit()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_up_from_a_path() {
        let up = |path| parent(path).to_owned();
        assert_eq!(up("spec.rules[0].default"), "spec.rules[0]");
        assert_eq!(up("spec.rules[0]"), "spec.rules");
        assert_eq!(up("labels[\"isthmus.io/service\"]"), "labels");
        assert_eq!(up("labels"), "");
        assert_eq!(field("labels", "a/b"), "labels[\"a/b\"]");
        assert_eq!(field("", "a b"), "[\"a b\"]");
        assert_eq!(up("[\"a b\"]"), "");
    }
}
