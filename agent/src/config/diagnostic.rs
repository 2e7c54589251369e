//! What is wrong with a config, where, and what to write instead; and how that is shown.

use std::{
    cell::RefCell,
    ops::Range,
    path::{Path, PathBuf},
};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet, renderer::DecorStyle};
use toml::Spanned;

use crate::error::{Exit, Fatal, shown};

/// What is wrong with one value, wherever it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ValueError {
    /// Names the cause.
    pub message: String,
    /// What to write instead.
    pub hint: String,
}

/// A value that was read, or what is wrong with it.
pub(super) type Checked<T> = Result<T, ValueError>;

impl ValueError {
    pub(super) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: hint.into(),
        }
    }

    /// Makes it a diagnostic at this place of the file, as users see it.
    pub(super) fn at(self, span: Range<usize>) -> Diagnostic {
        Diagnostic::new(span, self.message, self.hint)
    }
}

/// One thing that is wrong, and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Bytes of the source.
    pub span: Range<usize>,
    /// Names the thing and the cause.
    pub message: String,
    /// What to write instead.
    pub hint: String,
    /// Another place that has to do with it, and what it is.
    pub also: Option<(Range<usize>, &'static str)>,
}

/// A config that cannot be used.
#[derive(Debug)]
pub enum Invalid {
    /// The file itself is the trouble: missing, unreadable, too large.
    File(Fatal),
    /// What stands in it is.
    Content {
        /// The file.
        path: PathBuf,
        /// What it holds.
        source: String,
        /// One or more, in the order of the file.
        diagnostics: Vec<Diagnostic>,
    },
}

impl Diagnostic {
    /// A diagnostic at `span`.
    pub(super) fn new(span: Range<usize>, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            span,
            message: message.into(),
            hint: hint.into(),
            also: None,
        }
    }

    /// Adds a second place for the diagnostic to point at.
    pub(super) fn also(mut self, span: Range<usize>, label: &'static str) -> Self {
        self.also = Some((span, label));
        self
    }
}

impl Invalid {
    /// As an error that ends a command. Each diagnostic is shown with `FILE:LINE:COL`, its line and its hint; `styled`
    /// adds colours.
    pub fn into_fatal(self, styled: bool) -> Fatal {
        match self {
            Self::File(fatal) => fatal,
            Self::Content {
                path,
                source,
                diagnostics,
            } => {
                let parts: Vec<String> = diagnostics
                    .iter()
                    .enumerate()
                    .map(|(i, diagnostic)| render(diagnostic, i == 0, &path, &source, styled))
                    .collect();
                Fatal::new(Exit::Config, parts.join("\n\n"))
            }
        }
    }
}

impl From<Invalid> for Fatal {
    fn from(invalid: Invalid) -> Self {
        invalid.into_fatal(false)
    }
}

/// Gathers diagnostics, so that several are told at once.
#[derive(Default)]
pub(super) struct Diagnostics(RefCell<Vec<Diagnostic>>);

impl Diagnostics {
    pub(super) fn push(&self, diagnostic: Diagnostic) {
        self.0.borrow_mut().push(diagnostic);
    }

    /// What `read` makes of `written`; its error becomes a diagnostic at that place.
    pub(super) fn read<W, T>(
        &self,
        written: &Spanned<W>,
        read: impl FnOnce(&W) -> Checked<T>,
    ) -> Option<Spanned<T>> {
        let value = read(written.get_ref()).map_err(|wrong| self.push(wrong.at(written.span())));
        Some(Spanned::new(written.span(), value.ok()?))
    }

    pub(super) fn count(&self) -> usize {
        self.0.borrow().len()
    }

    /// Those there are, in the order of the file; `value` if there are none.
    pub(super) fn or<T>(self, value: T) -> Result<T, Vec<Diagnostic>> {
        let mut all = self.0.into_inner();
        all.sort_by_key(|diagnostic| diagnostic.span.start);
        if all.is_empty() { Ok(value) } else { Err(all) }
    }
}

/// The first diagnostic goes without the word `error`: whoever prints a [`Fatal`] begins with it.
fn render(diagnostic: &Diagnostic, first: bool, path: &Path, source: &str, styled: bool) -> String {
    let clamp = |span: &Range<usize>| span.start.min(source.len())..span.end.clamp(span.start, source.len());
    let level = if first {
        Level::ERROR.no_name()
    } else {
        Level::ERROR
    };
    let place = shown(path);
    let also = diagnostic
        .also
        .iter()
        .map(|(span, label)| AnnotationKind::Context.span(clamp(span)).label(*label));
    let snippet = Snippet::source(source)
        .path(place.as_str())
        .annotation(AnnotationKind::Primary.span(clamp(&diagnostic.span)))
        .annotations(also);
    let report = [
        Group::with_title(level.primary_title(diagnostic.message.as_str()))
            .element(snippet)
            .element(Level::HELP.message(diagnostic.hint.as_str())),
    ];
    let renderer = if styled {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    renderer.decor_style(DecorStyle::Ascii).render(&report)
}
