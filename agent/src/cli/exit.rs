//! How a command ends in error: one rendering, on stderr, and the exit code that scripts rely on.

use std::{io::Write as _, process::ExitCode};

use anstyle::{AnsiColor, Style};

use crate::{config::Invalid, error::Fatal};

/// Prints what happened and the mend; colours are taken out where stderr is no terminal or `NO_COLOR` is set.
pub fn report(fatal: &Fatal) -> ExitCode {
    let (error, help) = (bold(AnsiColor::Red), bold(AnsiColor::Cyan));
    let mut stderr = anstream::stderr().lock();
    // Nobody can be told when stderr is gone; the exit code still says it.
    let _ = writeln!(stderr, "{error}error{error:#}: {}", fatal.message);
    if let Some(mend) = &fatal.mend {
        let _ = writeln!(stderr, "{help}help{help:#}: {mend}");
    }
    ExitCode::from(fatal.exit as u8)
}

/// A config's faults as an error, to be printed by [`report`].
pub fn invalid(invalid: Invalid) -> Fatal {
    invalid.into_fatal(true)
}

fn bold(color: AnsiColor) -> Style {
    Style::new().bold().fg_color(Some(color.into()))
}
