//! What a command answers goes to stdout, remarks beside it to stderr; a reader that went away early is no error.

use std::{
    fmt::Display,
    io::{self, Write as _},
};

use serde::Serialize;

use crate::error::Fatal;

/// A line of the answer.
pub(super) fn say(line: impl Display) -> Result<(), Fatal> {
    ended(writeln!(io::stdout().lock(), "{line}"))
}

/// The answer as one line of JSON.
pub(super) fn say_json(value: &impl Serialize) -> Result<(), Fatal> {
    say(serde_json::to_string(value).map_err(|e| cannot(&io::Error::other(e)))?)
}

/// A remark beside the answer.
pub(super) fn remark(line: impl Display) {
    // A remark that nobody can read changes nothing.
    let _ = writeln!(anstream::stderr().lock(), "{line}");
}

fn ended(result: io::Result<()>) -> Result<(), Fatal> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(cannot(&error)),
        _ => Ok(()),
    }
}

fn cannot(error: &io::Error) -> Fatal {
    Fatal::io("cannot write the answer", error)
}
