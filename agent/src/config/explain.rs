//! Turns the TOML reader's own errors into diagnostics with a hint: near names, keys in the wrong table, missing brackets.

use std::ops::Range;

use serde::de::DeserializeOwned;

use super::{
    diagnostic::Diagnostic,
    raw::{RawConfig, RawInbox, RawLimits, RawOutbox, RawPeer, RawRetry},
};

/// What `error`, met while reading `source`, means for the person who wrote it.
pub(super) fn explain(error: &toml::de::Error, source: &str) -> Diagnostic {
    let span = error.span().unwrap_or(0..0);
    // Some messages bring a second line, which only repeats the place.
    let said = error.message().lines().next().unwrap_or_default();
    let (message, hint) = match said.split_once(" `") {
        // An array of tables where one table is expected is read as a list of its values.
        _ if let Some(single) = doubled_brackets(source, span.start) => (
            format!("there can be only one `{single}`"),
            format!("write `{single}`, in single brackets, and only once"),
        ),
        Some(("unknown field", rest)) => unknown_key(rest, &table_at(source, span.start)),
        Some(("unknown variant", rest)) => unknown_value(rest),
        Some(("missing field", rest)) => {
            let key = rest.trim_end_matches('`');
            (
                format!(
                    "{} lacks `{key}`",
                    which_lacks(key, &table_at(source, span.start))
                ),
                format!("add `{key} = \"…\"` to it"),
            )
        }
        _ => wrong_shape(said, source, &span),
    };
    Diagnostic::new(span, message, hint)
}

/// The nearest of `known`, when it is near enough to be meant.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (word.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|candidate| {
            (
                distance(&word.to_lowercase(), &candidate.to_lowercase()),
                candidate,
            )
        })
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Every table with its keys; the first is the file itself.
pub(super) fn all_keys() -> [(&'static str, Vec<String>); 6] {
    [
        (TOP, keys::<RawConfig>()),
        ("[[outbox]]", keys::<RawOutbox>()),
        ("[inbox]", keys::<RawInbox>()),
        ("[[peer]]", keys::<RawPeer>()),
        ("[retry]", keys::<RawRetry>()),
        ("[limits]", keys::<RawLimits>()),
    ]
}

fn unknown_key(rest: &str, around: &str) -> (String, String) {
    let (key, known) = word_and_list(rest);
    let shown = dropwire_protocol::name::escape(key.as_bytes());
    let all = all_keys();
    // The known keys tell the table, however it is written.
    let table = all.iter().find(|(_, keys)| *keys == known);
    let table = table.map_or(around, |(name, _)| name);
    let message = match table {
        TOP if around != TOP => format!("unknown table `{shown}`"),
        TOP => format!("unknown key `{shown}` at {TOP}"),
        table => format!("unknown key `{shown}` in {table}"),
    };
    let homes: Vec<&str> = all
        .iter()
        .filter(|(name, keys)| *name != table && keys.iter().any(|known| known == key))
        .map(|(name, _)| *name)
        .collect();
    let hint = if let [TOP, ..] = homes[..] {
        format!("`{key}` stands at the top of the file, before the first line in brackets: move it there")
    } else if !homes.is_empty() {
        format!("`{key}` belongs in `{}`: move it there", homes.join("` or `"))
    } else if let Some(near) = nearest(key, known.iter().copied()) {
        format!("did you mean `{near}`?")
    } else {
        format!("take it out; known here are {}", known.join(", "))
    };
    (message, hint)
}

/// The table that a key is missing from: the one `around` the place, if it has such a key.
fn which_lacks(key: &str, around: &str) -> String {
    let all = all_keys();
    let having: Vec<&str> = all
        .iter()
        .filter(|(name, keys)| *name != TOP && keys.iter().any(|known| known == key))
        .map(|(name, _)| *name)
        .collect();
    match having.iter().find(|name| **name == around) {
        Some(name) => (*name).to_owned(),
        None => having.join(" or "),
    }
}

fn unknown_value(rest: &str) -> (String, String) {
    let (value, known) = word_and_list(rest);
    let shown = dropwire_protocol::name::escape(value.as_bytes());
    let hint = match nearest(value, known.iter().copied()) {
        Some(near) => format!("did you mean `\"{near}\"`?"),
        None => format!("write one of `\"{}\"`", known.join("\"`, `\"")),
    };
    (format!("`\"{shown}\"` is not known here"), hint)
}

/// Splits serde's ``word`, expected one of `a`, `b` ``.
fn word_and_list(rest: &str) -> (&str, Vec<&str>) {
    let (word, list) = rest.rsplit_once("`, expected ").unwrap_or((rest, ""));
    (word, list.split('`').skip(1).step_by(2).collect())
}

fn wrong_shape(said: &str, source: &str, span: &Range<usize>) -> (String, String) {
    let told = |hint: &str| (said.to_owned(), hint.to_owned());
    let expected = said.rsplit_once("expected ").map_or("", |(_, expected)| expected);
    if said.starts_with("duplicate key") {
        return told("keep one of the two");
    }
    let key = key_at(source, span.start);
    let all = all_keys();
    let table = all
        .iter()
        .map(|(name, _)| *name)
        .find(|name| *name != TOP && name.trim_matches(['[', ']']) == key);
    match table {
        Some(table) if table.starts_with("[[") => (
            format!("`{key}` is one of several tables"),
            format!("write `{table}`, in double brackets, on a line of its own, and its keys below"),
        ),
        Some(table) => (
            format!("`{key}` is a table"),
            format!("write `{table}` on a line of its own, and its keys below"),
        ),
        None if said.contains("string or table") => {
            let choices = choices(key);
            let list: Vec<String> = choices.iter().map(|choice| format!("`\"{choice}\"`")).collect();
            (
                format!("`{key}` is one of some words"),
                format!("write one of {}", list.join(", ")),
            )
        }
        None if expected.starts_with("a string") => told("write one text in double quotes"),
        None if expected.starts_with("a sequence") => match source.get(span.clone()) {
            Some(text) if text.starts_with('"') && text.ends_with('"') => {
                told(&format!("write a list in brackets: `[{text}]`"))
            }
            _ => told("write a list of texts in brackets, each in double quotes"),
        },
        None => told(
            "write `key = \"value\"`, each on a line of its own, with straight double quotes; config.example.toml shows \
             every key",
        ),
    }
}

/// What the value at `offset` is written for: its key, or the name of the table whose header is there.
fn key_at(source: &str, offset: usize) -> &str {
    let start = source
        .get(..offset)
        .and_then(|text| text.rfind('\n'))
        .map_or(0, |at| at + 1);
    let line = source
        .get(start..)
        .and_then(|rest| rest.lines().next())
        .unwrap_or_default();
    if let Some(header) = line.trim_start().strip_prefix('[') {
        let name = header.trim_start_matches('[');
        return name.split([']', '.']).next().unwrap_or_default().trim();
    }
    let before = source.get(start..offset).unwrap_or_default();
    let (key, _) = before
        .split_once('=')
        .unwrap_or((line.split('=').next().unwrap_or_default(), ""));
    key.split('.').next().unwrap_or_default().trim()
}

/// The right header where one is in double brackets whose table is there once.
fn doubled_brackets(source: &str, offset: usize) -> Option<&'static str> {
    let name = source
        .get(offset..)?
        .strip_prefix("[[")?
        .split(']')
        .next()?
        .trim();
    let single = format!("[{name}]");
    all_keys()
        .into_iter()
        .map(|(table, _)| table)
        .find(|table| *table == single)
}

/// The words that a key takes, as its reader tells them of itself.
fn choices(key: &str) -> Vec<String> {
    let probe = format!("{key} = \"no-such-word\"");
    let asked = [
        toml::from_str::<RawOutbox>(&probe).err(),
        toml::from_str::<RawInbox>(&probe).err(),
    ];
    asked
        .into_iter()
        .flatten()
        .filter_map(|error| Some(error.message().split_once("unknown variant `")?.1.to_owned()))
        .flat_map(|rest| {
            word_and_list(&rest)
                .1
                .into_iter()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect()
}

/// The header of the table that `offset` lies in, or the top of the file.
fn table_at(source: &str, offset: usize) -> String {
    let line_end = source
        .get(offset..)
        .and_then(|rest| rest.find('\n'))
        .map_or(source.len(), |n| offset + n);
    let header = source.get(..line_end).and_then(|text| {
        text.lines()
            .rev()
            .map(str::trim)
            .find(|line| line.starts_with('['))
    });
    match header.and_then(|line| Some((line, line.find(']')?))) {
        Some((line, end)) if line.starts_with("[[") => format!("{}]]", &line[..end]),
        Some((line, end)) => line[..=end].to_owned(),
        None => TOP.into(),
    }
}

/// The keys of a table, as its reader tells them of itself.
fn keys<T: DeserializeOwned>() -> Vec<String> {
    match toml::from_str::<T>("no-such-key = 0") {
        Ok(_) => Vec::new(),
        Err(error) => error
            .message()
            .split_once(" `")
            .map(|(_, rest)| word_and_list(rest).1.into_iter().map(str::to_owned).collect())
            .unwrap_or_default(),
    }
}

const TOP: &str = "the top of the file";

/// Edits (change, insert, remove, swap of neighbours) between two words.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = match (i, j) {
                (0, n) | (n, 0) => n,
                _ => {
                    let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    let mut least = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                    if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                        least = least.min(rows[i - 2][j - 2] + 1);
                    }
                    least
                }
            };
        }
    }
    rows[a.len()][b.len()]
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

    #[test]
    fn every_table_tells_its_keys() {
        for (table, keys) in all_keys() {
            assert!(keys.len() >= 2, "{table}: {keys:?}");
        }
    }

    #[test]
    fn words_are_told_by_their_reader() {
        assert_eq!(choices("watch"), ["auto", "native", "poll"]);
        assert_eq!(choices("layout"), ["flat", "by-peer"]);
        assert!(choices("path").is_empty());
    }

    #[test]
    fn what_a_value_is_written_for() {
        let source = "a = 1\nretry = 5\n [[ peer.x ]]\nignore = [\"a\", 5]\nname.first = 2";
        let at = |needle: &str| key_at(source, source.find(needle).unwrap());
        assert_eq!(at("5\n"), "retry");
        assert_eq!(at("peer"), "peer");
        assert_eq!(at("5]"), "ignore");
        assert_eq!(at("name"), "name");
        assert_eq!(at("2"), "name");
    }

    #[test]
    fn the_table_around_a_place() {
        let source = "a = 1\n[inbox] # [x]\nb = 2\n[[peer]]\nc = 3\n";
        let at = |needle: &str| table_at(source, source.find(needle).unwrap());
        assert_eq!(at("a ="), "the top of the file");
        assert_eq!(at("b ="), "[inbox]");
        assert_eq!(at("c ="), "[[peer]]");
        assert_eq!(at("[[peer"), "[[peer]]");
    }
}
