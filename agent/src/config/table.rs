//! Reads a table of the file key by key. What is missing, unknown or of a wrong type becomes a diagnostic.

use std::ops::Range;

use dropwire_protocol::name::escape;
use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use super::{
    diagnostic::{Checked, Diagnostic, Diagnostics},
    value::{nearest, quoted, wrong_type},
};

type Key = &'static str;

const TOP: &str = "the top of the file";

/// Every table and its keys.
#[rustfmt::skip] // one key a line otherwise
pub(super) const TABLES: [(&str, &[&str]); 6] = [
    (TOP, &["name", "listen", "state_dir", "control", "outbox", "inbox", "peer", "retry", "limits"]),
    ("[[outbox]]", &["path", "to", "after_send", "ready", "marker", "quiet", "max_wait", "linger", "ignore", "watch",
        "rescan", "folder"]),
    ("[inbox]", &["path", "layout", "min_free", "on_arrival"]),
    ("[[peer]]", &["name", "id", "address", "max_file_size"]),
    ("[retry]", &["first", "max", "give_up_after"]),
    ("[limits]", &["upload", "download"]),
];

/// A table that is being read: each key is taken out of it, and what is left at the end is unknown.
pub(super) struct Table<'a> {
    /// Its name in [`TABLES`].
    header: String,
    span: Range<usize>,
    unread: DeTable<'a>,
    missing: Vec<Key>,
    pub diagnostics: &'a Diagnostics,
    /// How many diagnostics there were before this table's.
    earlier: usize,
}

impl<'a> Table<'a> {
    /// Reads the whole file.
    pub(super) fn file<T>(
        file: Spanned<DeTable<'a>>,
        diagnostics: &'a Diagnostics,
        read: impl FnOnce(&mut Self) -> T,
    ) -> T {
        let span = file.span();
        Table::whole(TOP.into(), span, file.into_inner(), diagnostics, read)
    }

    /// Reads the table `[key]`, if there is one.
    pub(super) fn table<T>(&mut self, key: Key, read: impl FnOnce(&mut Self) -> T) -> Option<T> {
        let header = format!("[{key}]");
        let value = self.take(key)?;
        let span = value.span();
        let (message, hint) = match value.into_inner() {
            DeValue::Table(table) => {
                return Some(Table::whole(header, span, table, self.diagnostics, read));
            }
            DeValue::Array(_) => (
                format!("there can be only one `{header}`"),
                format!("write `{header}`, in single brackets, and only once"),
            ),
            _ => (
                format!("`{key}` is a table"),
                format!("write `{header}` on a line of its own, and its keys below"),
            ),
        };
        self.diagnostics.push(Diagnostic::new(span, message, hint));
        None
    }

    /// Reads every table `[[key]]`.
    pub(super) fn tables<T>(&mut self, key: Key, mut read: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let header = format!("[[{key}]]");
        let wrong = |span| {
            let message = format!("`{key}` is one of several tables");
            let hint =
                format!("write `{header}`, in double brackets, on a line of its own, and its keys below");
            Diagnostic::new(span, message, hint)
        };
        let Some(value) = self.take(key) else {
            return Vec::new();
        };
        let span = value.span();
        let DeValue::Array(items) = value.into_inner() else {
            self.diagnostics.push(wrong(span));
            return Vec::new();
        };
        let mut tables = Vec::new();
        for item in items {
            let span = item.span();
            match item.into_inner() {
                DeValue::Table(table) => {
                    let header = header.clone();
                    tables.push(Table::whole(header, span, table, self.diagnostics, &mut read));
                }
                _ => self.diagnostics.push(wrong(span)),
            }
        }
        tables
    }

    /// Reads the value of `key`, if it is there.
    pub(super) fn read<T>(&mut self, key: Key, read: impl FnOnce(&DeValue<'a>) -> Checked<T>) -> Option<T> {
        self.spanned(key, read).map(Spanned::into_inner)
    }

    /// Reads the value of `key`, if it is there, with its place.
    pub(super) fn spanned<T>(
        &mut self,
        key: Key,
        read: impl FnOnce(&DeValue<'a>) -> Checked<T>,
    ) -> Option<Spanned<T>> {
        let value = self.take(key)?;
        self.diagnostics.read(&value, read)
    }

    /// Reads the value of a `key` that has to be there.
    pub(super) fn required<T>(
        &mut self,
        key: Key,
        read: impl FnOnce(&DeValue<'a>) -> Checked<T>,
    ) -> Option<Spanned<T>> {
        if !self.unread.contains_key(key) {
            self.missing.push(key);
        }
        self.spanned(key, read)
    }

    /// Reads the list of `key` item by item, if it is there.
    pub(super) fn list<T>(
        &mut self,
        key: Key,
        read: impl Fn(&DeValue<'_>) -> Checked<T>,
    ) -> Option<Spanned<Vec<Spanned<T>>>> {
        let list = self.spanned(key, |value| {
            match value {
                DeValue::Array(items) => Ok(items.clone()),
                DeValue::String(text) => Err(format!("write a list in brackets: `[{}]`", quoted(text))),
                _ => Err("write a list of texts in brackets, each in double quotes".into()),
            }
            .map_err(|hint| wrong_type(value, "a list", hint))
        })?;
        let items = list.get_ref().iter();
        let items = items
            .filter_map(|item| self.diagnostics.read(item, &read))
            .collect();
        Some(Spanned::new(list.span(), items))
    }

    /// Whether nothing of what was read of it is wrong.
    pub(super) fn is_sound(&self) -> bool {
        self.diagnostics.count() == self.earlier
    }

    fn take(&mut self, key: Key) -> Option<Spanned<DeValue<'a>>> {
        debug_assert!(keys(&self.header).contains(&key), "{key} is not in TABLES");
        self.unread.remove(key)
    }

    fn whole<T>(
        header: String,
        span: Range<usize>,
        unread: DeTable<'a>,
        diagnostics: &'a Diagnostics,
        read: impl FnOnce(&mut Self) -> T,
    ) -> T {
        let mut table = Table {
            header,
            span,
            unread,
            missing: Vec::new(),
            diagnostics,
            earlier: diagnostics.count(),
        };
        let result = read(&mut table);
        table.finish();
        result
    }

    /// Tells what is unknown. Only if nothing is, what is missing: it may be there with a typo.
    fn finish(&self) {
        for (key, value) in &self.unread {
            self.diagnostics.push(self.unknown(key, value.get_ref()));
        }
        for key in self.missing.iter().filter(|_| self.unread.is_empty()) {
            let message = format!("{} lacks `{key}`", self.header);
            let hint = format!("add `{key} = \"…\"` to it");
            self.diagnostics
                .push(Diagnostic::new(self.span.clone(), message, hint));
        }
    }

    fn unknown(&self, key: &Spanned<DeString<'_>>, value: &DeValue<'_>) -> Diagnostic {
        let (span, key) = (key.span(), key.get_ref().as_ref());
        let shown = escape(key.as_bytes());
        let is_table = match value {
            DeValue::Array(items) => items.iter().any(|item| item.get_ref().as_table().is_some()),
            other => other.as_table().is_some(),
        };
        let message = match self.header == TOP {
            true if is_table => format!("unknown table `{shown}`"),
            true => format!("unknown key `{shown}` at {TOP}"),
            false => format!("unknown key `{shown}` in {}", self.header),
        };
        let homes = TABLES.iter().filter(|(_, keys)| keys.contains(&key));
        let homes: Vec<&str> = homes.map(|(header, _)| *header).collect();
        let known = keys(&self.header);
        let hint = if homes.contains(&TOP) {
            format!("`{key}` stands at the top of the file, before the first line in brackets: move it there")
        } else if !homes.is_empty() {
            format!("`{key}` belongs in `{}`: move it there", homes.join("` or `"))
        } else if let Some(near) = nearest(key, known.iter().copied()) {
            format!("did you mean `{near}`?")
        } else {
            format!("take it out; known here are {}", known.join(", "))
        };
        Diagnostic::new(span, message, hint)
    }
}

fn keys(header: &str) -> &'static [&'static str] {
    let table = TABLES.iter().find(|(known, _)| *known == header);
    table.map_or(&[], |(_, keys)| keys)
}
