//! How a command ends in error: one rendering, on stderr, and the exit code that scripts rely on.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anstream::AutoStream;
use anstyle::{AnsiColor, Style};

use super::logs;
use crate::{config::Invalid, error::Fatal};

/// Prints what happened and the hint; colours are taken out where stderr is no terminal or `NO_COLOR` is set.
pub(super) fn report(fatal: &Fatal) -> ExitCode {
    let (error, help) = (bold(AnsiColor::Red), bold(AnsiColor::Cyan));
    let mut text = format!("{error}error{error:#}: {}\n", fatal.message);
    if let Some(hint) = &fatal.hint {
        text += &format!("{help}help{help:#}: {hint}\n");
    }
    let mut shown = AutoStream::new(Vec::new(), AutoStream::choice(&io::stderr()));
    let _ = shown.write_all(text.as_bytes()); // into memory
    logs::last_words(&String::from_utf8_lossy(&shown.into_inner()));
    ExitCode::from(fatal.exit as u8)
}

/// What is wrong with a config as an error, to be printed by [`report`].
pub(super) fn invalid(invalid: Invalid) -> Fatal {
    invalid.into_fatal(true)
}

fn bold(color: AnsiColor) -> Style {
    Style::new().bold().fg_color(Some(color.into()))
}
