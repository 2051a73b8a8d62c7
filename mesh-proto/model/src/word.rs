//! What to say of a word that is none of those that can stand there.

/// The choice there is, and the word that was probably meant.
pub(crate) fn not_one_of(text: &str, words: &[&str]) -> String {
    let choice = match words {
        [only] => format!("must be {only}"),
        several => format!("must be one of {}", several.join(", ")),
    };
    match nearest(text, words) {
        Some(near) if words.len() > 1 => format!("{choice}; did you mean {near}?"),
        _ => format!("{choice}, not {text:?}"),
    }
}

/// The most similar of `words`, where one is similar enough to be meant.
pub(crate) fn nearest<'w>(text: &str, words: &[&'w str]) -> Option<&'w str> {
    near(text, words.iter().copied()).into_iter().next()
}

/// Those of `words` that are similar enough to `text` to be meant by it, the most similar first.
#[must_use]
pub fn near<'w>(text: &str, words: impl IntoIterator<Item = &'w str>) -> Vec<&'w str> {
    let similarity = |word: &str| strsim::jaro_winkler(&text.to_lowercase(), &word.to_lowercase());
    let mut near: Vec<_> = words
        .into_iter()
        .map(|word| (similarity(word), word))
        .filter(|(similarity, _)| *similarity > 0.8)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.into_iter().map(|(_, word)| word).collect()
}
