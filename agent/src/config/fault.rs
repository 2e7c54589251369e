//! What is wrong with a config, where, and how to mend it; and how that is shown.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet, renderer::DecorStyle};

use super::units::Wrong;
use crate::error::{Exit, Fatal, shown};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Bytes of the source.
    pub span: Range<usize>,
    /// Names the thing and the cause.
    pub message: String,
    /// What to write instead.
    pub mend: String,
    /// Another place that has to do with it, and what it is.
    pub also: Option<(Range<usize>, &'static str)>,
}

/// A config that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invalid {
    /// The file itself is the trouble: missing, unreadable, too large.
    File {
        /// What the process exits with.
        exit: Exit,
        /// Names file and cause.
        message: String,
        /// What to do.
        mend: String,
    },
    /// What stands in it is.
    Content {
        /// The file.
        path: PathBuf,
        /// What it holds.
        source: String,
        /// One or more, in the order of the file.
        faults: Vec<Fault>,
    },
}

impl Fault {
    /// A fault at `span`.
    pub(super) fn new(span: Range<usize>, message: impl Into<String>, mend: impl Into<String>) -> Fault {
        Fault {
            span,
            message: message.into(),
            mend: mend.into(),
            also: None,
        }
    }

    /// The same, pointing at a second place.
    pub(super) fn also(mut self, span: Range<usize>, label: &'static str) -> Fault {
        self.also = Some((span, label));
        self
    }
}

impl Invalid {
    /// As an error that ends a command. Each fault is shown with `FILE:LINE:COL`, its line and its mend; `styled` adds colours.
    pub fn into_fatal(self, styled: bool) -> Fatal {
        match self {
            Invalid::File { exit, message, mend } => Fatal::new(exit, message).mend(mend),
            Invalid::Content { path, source, faults } => {
                let parts: Vec<String> = faults
                    .iter()
                    .enumerate()
                    .map(|(i, fault)| render(fault, i == 0, &path, &source, styled))
                    .collect();
                Fatal::new(Exit::Config, parts.join("\n\n"))
            }
        }
    }
}

impl From<Invalid> for Fatal {
    fn from(invalid: Invalid) -> Fatal {
        invalid.into_fatal(false)
    }
}

/// Gathers faults, so that several are told at once.
#[derive(Default)]
pub(super) struct Faults(pub Vec<Fault>);

impl Faults {
    pub(super) fn push(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    /// The value, or a fault at `span`.
    pub(super) fn take<T>(&mut self, span: Range<usize>, result: Result<T, Wrong>) -> Option<T> {
        result
            .map_err(|wrong| self.push(Fault::new(span, wrong.message, wrong.mend)))
            .ok()
    }
}

/// The first fault goes without the word `error`: whoever prints a [`Fatal`] begins with it.
fn render(fault: &Fault, first: bool, path: &Path, source: &str, styled: bool) -> String {
    let clamp = |span: &Range<usize>| span.start.min(source.len())..span.end.clamp(span.start, source.len());
    let level = if first {
        Level::ERROR.no_name()
    } else {
        Level::ERROR
    };
    let place = shown(path);
    let also = fault
        .also
        .iter()
        .map(|(span, label)| AnnotationKind::Context.span(clamp(span)).label(*label));
    let snippet = Snippet::source(source)
        .path(place.as_str())
        .annotation(AnnotationKind::Primary.span(clamp(&fault.span)))
        .annotations(also);
    let report = [Group::with_title(level.primary_title(fault.message.as_str()))
        .element(snippet)
        .element(Level::HELP.message(fault.mend.as_str()))];
    let renderer = if styled {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    renderer.decor_style(DecorStyle::Ascii).render(&report)
}
