//! Readers for the value of a key: a text, one of several words, a word in place of the value.

use std::fmt::Write as _;

use clap::ValueEnum;
use dropwire_protocol::name::{escape, is_unseen};
use toml::de::DeValue;

use super::diagnostic::{Checked, ValueError};

/// Any text.
pub(super) fn string(value: &DeValue<'_>) -> Checked<String> {
    text(|text| Ok(text.to_owned()))(value)
}

/// A text, read by `parse`.
pub(super) fn text<T>(parse: impl Fn(&str) -> Checked<T>) -> impl Fn(&DeValue<'_>) -> Checked<T> {
    move |value| match value {
        DeValue::String(text) => parse(text),
        other => Err(wrong_type(other, "a string", "write one text in double quotes")),
    }
}

/// One of the words of `T`.
pub(super) fn word<T: ValueEnum>(value: &DeValue<'_>) -> Checked<T> {
    let words: Vec<String> = T::value_variants().iter().map(written).collect();
    let listed: Vec<String> = words.iter().map(|word| format!("`{}`", quoted(word))).collect();
    let hint = format!("write one of {}", listed.join(", "));
    let DeValue::String(text) = value else {
        return Err(wrong_type(value, "a string", hint));
    };
    T::from_str(text, false).map_err(|_| {
        let near = nearest(text, words.iter().map(String::as_str));
        ValueError::new(
            format!("`\"{}\"` is not known here", escape(text.as_bytes())),
            near.map_or(hint, |near| format!("did you mean `{}`?", quoted(near))),
        )
    })
}

/// How a word is written.
pub fn written<T: ValueEnum>(word: &T) -> String {
    let word = word.to_possible_value();
    word.map_or_else(String::new, |word| word.get_name().to_owned())
}

/// A TOML string; characters that do not show as themselves are escaped.
pub fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if is_unseen(c) => {
                let _ = write!(out, "\\U{:08X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// None for `word`, else what `read` makes of the value.
pub(super) fn or<T>(
    word: &'static str,
    read: impl Fn(&DeValue<'_>) -> Checked<T>,
) -> impl Fn(&DeValue<'_>) -> Checked<Option<T>> {
    move |value| match value.as_str() == Some(word) {
        true => Ok(None),
        false => read(value).map(Some).map_err(|wrong| ValueError {
            hint: format!("{}; or write `\"{word}\"`", wrong.hint),
            ..wrong
        }),
    }
}

/// What is told where `value` should be `expected`.
pub(super) fn wrong_type(value: &DeValue<'_>, expected: &str, hint: impl Into<String>) -> ValueError {
    let found = match value {
        DeValue::String(text) => format!("string `\"{}\"`", escape(text.as_bytes())),
        DeValue::Integer(number) => format!("integer `{number}`"),
        DeValue::Float(number) => format!("float `{number}`"),
        DeValue::Boolean(value) => format!("boolean `{value}`"),
        DeValue::Datetime(_) => "date".into(),
        DeValue::Array(_) => "list".into(),
        DeValue::Table(_) => "table".into(),
    };
    ValueError::new(format!("invalid type: {found}, expected {expected}"), hint)
}

/// The nearest of `known`, if it is near enough to be meant.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (word.chars().count() / 3).clamp(1, 3);
    let distance = |known: &str| strsim::osa_distance(&word.to_lowercase(), &known.to_lowercase());
    let near = known.into_iter().map(|known| (distance(known), known));
    near.filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        assert_eq!(nearest("nmae", ["name", "listen"]), Some("name"));
        assert_eq!(nearest("outboxes", ["outbox", "inbox"]), Some("outbox"));
        assert_eq!(nearest("Path", ["path", "to"]), Some("path"));
        assert_eq!(nearest("zebra", ["path", "to"]), None);
        assert_eq!(nearest("ot", ["path", "to"]), Some("to"));
    }
}
