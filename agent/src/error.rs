//! Errors that end a command, with the exit code that scripts rely on. Survivable ones have types of their own, where
//! they occur.

use std::{fmt, path::Path};

use crate::io_error::{self, Wait};

/// The exit codes of every command (sysexits where there is one).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// Also after SIGTERM.
    Done = 0,
    /// It did not work.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Damaged data: key, job list, receipt.
    Data = 65,
    /// No such job or file.
    NoInput = 66,
    /// Agent not running, or peer not reachable.
    Unavailable = 69,
    /// Cannot create, or a second agent on one state folder.
    CannotCreate = 73,
    /// The disk failed.
    Disk = 74,
    /// Not delivered yet.
    NotYet = 75,
    /// Permissions.
    Permission = 77,
    /// The config is wrong.
    Config = 78,
}

/// An error that ends the command: what happened to what, why, and how to fix it.
#[derive(Debug)]
pub struct Fatal {
    /// What the process exits with.
    pub exit: Exit,
    /// Names the thing and the cause.
    pub message: String,
    /// What the user can do about it.
    pub hint: Option<String>,
    /// What an agent that starts may wait for, as it passes by itself or by somebody's making room.
    pub passes: Option<Wait>,
}

impl Fatal {
    /// A new error without a hint.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self {
            exit,
            message: message.to_string(),
            hint: None,
            passes: None,
        }
    }

    /// Adds a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// A failed file operation: permission, missing and full disks get their own codes; `doing` names action and path.
    pub fn io(doing: impl fmt::Display, error: &std::io::Error) -> Self {
        use std::io::ErrorKind::*;
        let exit = match error.kind() {
            PermissionDenied => Exit::Permission,
            NotFound => Exit::NoInput,
            AlreadyExists | ReadOnlyFilesystem => Exit::CannotCreate,
            _ => Exit::Disk,
        };
        Self {
            passes: io_error::passes(error),
            ..Self::new(exit, format_args!("{doing}: {error}"))
        }
    }
}

/// An error and all that caused it, as one text: `what: why: why that`. A cause that the text ends with already is not
/// said again, for some errors name theirs themselves; nor is what SQLite says of a failure beside its words: a code and
/// the same in other words.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause.filter(|error| !error.is::<rusqlite::ffi::Error>()) {
        let why = error.to_string();
        if !text.ends_with(&why) {
            text = format!("{text}: {why}");
        }
        cause = error.source();
    }
    text
}

/// A path, safe to show.
pub fn shown(path: &Path) -> String {
    dropwire_protocol::name::escape(path.as_os_str().as_encoded_bytes())
}

/// A `text` with a name of any length in it, as part of a sentence: what is longer than people read loses its middle.
pub fn brief(text: &str) -> String {
    const MOST: usize = 240;
    const EACH_END: usize = 100;
    if text.len() <= MOST || crate::failpoints::mutant("brief") {
        return text.to_owned();
    }
    let (mut begin, mut end) = (EACH_END, text.len() - EACH_END);
    while !text.is_char_boundary(begin) {
        begin -= 1;
    }
    while !text.is_char_boundary(end) {
        end += 1;
    }
    format!("{}…{}", &text[..begin], &text[end..])
}

/// A number of bytes as people read it: `1.5 MiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let unit = UNITS[unit];
    if unit == "B" {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {unit}")
    }
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fatal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_shown_with_each_cause_once() {
        #[derive(Debug, thiserror::Error)]
        enum Failed {
            #[error("cannot begin")]
            Begin(#[source] Box<Self>),
            #[error("cannot read: {0}")]
            Read(#[source] std::io::Error),
        }
        let ended = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        let error = Failed::Begin(Failed::Read(ended).into());
        assert_eq!(chain(&error), "cannot begin: cannot read: unexpected end of file");
    }

    #[test]
    fn what_is_long_loses_its_middle() {
        assert_eq!(brief("a/b"), "a/b");
        let long = "ä/".repeat(20_000) + "end";
        let brief = brief(&long);
        assert!(brief.len() < 210, "{brief}");
        assert!(
            brief.starts_with("ä/ä") && brief.contains('…') && brief.ends_with("/end"),
            "{brief}"
        );
    }
}
