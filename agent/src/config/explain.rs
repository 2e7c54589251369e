//! Turns the TOML reader's own errors into faults with a mend: near names, keys in the wrong table, missing brackets.

use serde::de::DeserializeOwned;

use super::{
    fault::Fault,
    raw::{RawConfig, RawInbox, RawLimits, RawOutbox, RawPeer, RawRetry},
};

/// What `error`, met while reading `source`, means for the person who wrote it.
pub(super) fn explain(error: &toml::de::Error, source: &str) -> Fault {
    let span = error.span().unwrap_or(0..0);
    // Some messages bring a second line, which only repeats the place.
    let said = error.message().lines().next().unwrap_or_default();
    let table = table_at(source, span.start);
    let (message, mend) = match said.split_once(" `") {
        // An array of tables where one table is expected is read as a list of its values.
        _ if ["[[inbox]]", "[[retry]]", "[[limits]]"].contains(&table.as_str()) => {
            let single = table.get(1..table.len() - 1).unwrap_or_default();
            (
                format!("there can be only one `{single}`"),
                format!("write `{single}`, in single brackets, and only once"),
            )
        }
        Some(("unknown field", rest)) => unknown_key(rest, &table),
        Some(("unknown variant", rest)) => unknown_value(rest),
        Some(("missing field", rest)) => {
            let key = rest.trim_end_matches('`');
            (
                format!("{table} lacks `{key}`"),
                format!("add `{key} = \"…\"` to it"),
            )
        }
        _ => (said.to_owned(), wrong_shape(said).to_owned()),
    };
    Fault::new(span, message, mend)
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

/// Keys that are planned; naming them is no typo.
const LATER: [&str; 10] = [
    "sent_keep",
    "mode",
    "file_mode",
    "ready",
    "folder",
    "on_problem",
    "metrics",
    "quiet_hours",
    "priority",
    "log",
];

fn unknown_key(rest: &str, table: &str) -> (String, String) {
    let (key, known) = word_and_list(rest);
    let shown = dropwire_protocol::name::escape(key.as_bytes());
    let preposition = if table == TOP { "at" } else { "in" };
    let message = format!("unknown key `{shown}` {preposition} {table}");
    if LATER.contains(&key) {
        return (message, "this version does not have it yet: take it out".into());
    }
    if let Some(near) = nearest(key, known.iter().copied()) {
        return (message, format!("did you mean `{near}`?"));
    }
    let all = all_keys();
    let home = all
        .iter()
        .find(|(name, keys)| *name != table && keys.iter().any(|known| known == key));
    let mend = match home {
        Some((name, _)) if *name == TOP => {
            format!("`{key}` stands at the top of the file, before the first line in brackets: move it there")
        }
        Some((name, _)) => format!("`{key}` belongs in `{name}`: move it there"),
        None => format!("take it out; known here are {}", known.join(", ")),
    };
    (message, mend)
}

fn unknown_value(rest: &str) -> (String, String) {
    let (value, known) = word_and_list(rest);
    let shown = dropwire_protocol::name::escape(value.as_bytes());
    let mend = match nearest(value, known.iter().copied()) {
        Some(near) => format!("did you mean `\"{near}\"`?"),
        None => format!("write one of \"{}\"", known.join("\", \"")),
    };
    (format!("`\"{shown}\"` is not known here"), mend)
}

/// Splits serde's ``word`, expected one of `a`, `b` ``.
fn word_and_list(rest: &str) -> (&str, Vec<&str>) {
    let (word, list) = rest.rsplit_once("`, expected ").unwrap_or((rest, ""));
    (word, list.split('`').skip(1).step_by(2).collect())
}

fn wrong_shape(said: &str) -> &'static str {
    let expected = said.rsplit_once("expected ").map_or("", |(_, expected)| expected);
    if said.starts_with("duplicate key") {
        "keep one of the two"
    } else if said.starts_with("invalid type: map") && expected.starts_with("a sequence") {
        "write the table's name in double brackets, such as `[[outbox]]`, for it may stand there more than once"
    } else if said.starts_with("invalid type: sequence") && expected.starts_with("a table") {
        "write the table's name in single brackets, such as `[inbox]`, and only once"
    } else if expected.starts_with("a string with a unit") {
        "write a string with a unit, such as `\"10m\"` or `\"1 GiB\"`"
    } else if expected.starts_with("a string") || expected.starts_with("string or table") {
        "write it in double quotes"
    } else if expected.starts_with("a sequence") {
        "write a list in brackets, such as `[\"office\"]`"
    } else if expected.starts_with("a table") {
        "write it as a table: its name in brackets, the keys below"
    } else {
        "write `key = \"value\"`, each on a line of its own, with straight double quotes; config.example.toml shows every key"
    }
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
    fn the_table_around_a_place() {
        let source = "a = 1\n[inbox] # [x]\nb = 2\n[[peer]]\nc = 3\n";
        let at = |needle: &str| table_at(source, source.find(needle).unwrap());
        assert_eq!(at("a ="), "the top of the file");
        assert_eq!(at("b ="), "[inbox]");
        assert_eq!(at("c ="), "[[peer]]");
        assert_eq!(at("[[peer"), "[[peer]]");
    }
}
