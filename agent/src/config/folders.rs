//! Folders as they are written, and which may not lie in which.

use std::{
    ffi::OsString,
    path::{Component, Path, PathBuf},
};

use dropwire_protocol::name::escape;
use toml::Spanned;

use super::diagnostic::{Checked, Diagnostic, Diagnostics, ValueError};
use crate::error::shown;

/// The user's home folder.
pub fn home() -> Option<PathBuf> {
    directories::BaseDirs::new().map(|dirs| dirs.home_dir().to_owned())
}

/// Reads a path: absolute, or below the home folder as `~/…`; without `..`.
pub(super) fn absolute(text: &str, home: Option<&Path>) -> Checked<PathBuf> {
    let path = match (text.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest.trim_start_matches('/')),
        _ => PathBuf::from(text),
    };
    let (why, hint) = if text.is_empty() {
        let hint = "write where the folder is, from `/` or `~/` on";
        return Err(ValueError::new("the path is empty", hint));
    } else if text.contains('\0') {
        ("a path cannot hold a NUL character", "take it out")
    } else if text.starts_with("~/") && home.is_none() {
        (
            "`~/` has no meaning without a home folder",
            "write the path from `/` on",
        )
    } else if text.starts_with('~') && !text.starts_with("~/") {
        (
            "only `~/` at the start is read as the home folder",
            "write the path from `/` or `~/` on",
        )
    } else if !path.is_absolute() {
        (
            "a relative path would depend on where the agent starts",
            "write it from `/` or `~/` on",
        )
    } else if path.components().any(|c| c == Component::ParentDir) {
        ("a path here goes without `..`", "write the folder's own path")
    } else {
        return Ok(path.components().collect());
    };
    let message = format!("`{}`: {why}", escape(text.as_bytes()));
    Err(ValueError::new(message, hint))
}

/// What a path is for; decides what it may lie in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// Watched and sent from.
    Outbox,
    /// Received into.
    Inbox,
    /// The agent's own: keys, job list.
    State,
    /// The agent's own: the socket commands talk to.
    Control,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Outbox => "outbox",
            Self::Inbox => "inbox",
            Self::State => "state folder",
            Self::Control => "control socket",
        }
    }

    fn is_box(self) -> bool {
        matches!(self, Self::Outbox | Self::Inbox)
    }
}

/// The places that are named in the file; some may not be in others.
#[derive(Default)]
pub(super) struct Places(Vec<(Role, Spanned<PathBuf>)>);

impl Places {
    /// Notes a place, and gives it back.
    pub(super) fn add(&mut self, role: Role, path: Option<Spanned<PathBuf>>) -> Option<PathBuf> {
        let path = path?;
        self.0.push((role, path.clone()));
        Some(path.into_inner())
    }

    /// Tells which are where they may not be.
    pub(super) fn check(mut self, diagnostics: &Diagnostics) {
        self.0.sort_by_key(|(_, path)| path.span().start);
        let (roots, places): (Vec<_>, Vec<_>) = self
            .0
            .into_iter()
            .partition(|(_, path)| path.get_ref().parent().is_none());
        for (_, path) in roots {
            diagnostics.push(Diagnostic::new(
                path.span(),
                "the root of the file system can be no folder of dropwire's",
                "name a folder of its own",
            ));
        }
        for (i, (role, path)) in places.iter().enumerate() {
            for (other_role, other) in places.iter().take(i) {
                if let Some(wrong) = clash((*role, path.get_ref()), (*other_role, other.get_ref())) {
                    diagnostics.push(wrong.at(path.span()).also(other.span(), "this one"));
                }
            }
        }
    }
}

/// Whether two may not be together: boxes are apart from each other, and the agent's own things outside of every box.
/// Symbolic links are looked through where the folders exist.
pub(super) fn clash(a: (Role, &Path), b: (Role, &Path)) -> Option<ValueError> {
    let (inner, outer) = if within(a.1, b.1) {
        (a, b)
    } else if within(b.1, a.1) {
        (b, a)
    } else {
        return None;
    };
    // Two things at one place are within each other: then it counts that either is a box.
    let same = within(outer.1, inner.1);
    if !(outer.0.is_box() || same && inner.0.is_box()) {
        return None;
    }
    let [name, outer_name] = [inner.0.name(), outer.0.name()];
    let place = if same { "is also" } else { "lies inside" };
    let hint = match inner.0.is_box() {
        true => "give each outbox and inbox a folder of its own, side by side".into(),
        false => format!("put the {name} outside of every outbox and inbox"),
    };
    Some(ValueError::new(
        format!(
            "the {name} {} {place} the {outer_name} {}",
            shown(inner.1),
            shown(outer.1)
        ),
        hint,
    ))
}

fn within(inner: &Path, outer: &Path) -> bool {
    inner.starts_with(outer) || resolved(inner).starts_with(resolved(outer))
}

/// Symbolic links resolved as far as the path exists; the rest stays as it is.
fn resolved(path: &Path) -> PathBuf {
    let mut rest: Vec<OsString> = Vec::new();
    for ancestor in path.ancestors() {
        if let Ok(real) = ancestor.canonicalize() {
            return rest.iter().rev().fold(real, |path, part| path.join(part));
        }
        rest.extend(ancestor.file_name().map(OsString::from));
    }
    path.to_owned()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read() {
        let home = Path::new("/home/ana");
        let read = |text| absolute(text, Some(home)).ok();
        assert_eq!(read("/a//b/./c/"), Some("/a/b/c".into()));
        assert_eq!(read("~/Inbox"), Some("/home/ana/Inbox".into()));
        assert_eq!(read("~//etc"), Some("/home/ana/etc".into()));
        for text in ["", "a", "./a", "../a", "~", "~bob/x", "/a/../b", "/a\0b"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert!(absolute("~/x", None).is_err());
    }

    #[test]
    fn what_may_lie_where() {
        use Role::*;
        let clashes = |a, x, b, y| clash((a, Path::new(x)), (b, Path::new(y))).is_some();
        for (a, x, b, y, expected) in [
            (Outbox, "/nil/a", Outbox, "/nil/b", false),
            (Outbox, "/nil/a", Outbox, "/nil/ab", false),
            (Outbox, "/nil/a", Outbox, "/nil/a", true),
            (Outbox, "/nil/a/b", Inbox, "/nil/a", true),
            (Outbox, "/nil/a", Inbox, "/nil/a/b/c", true),
            (State, "/nil/a/b", Inbox, "/nil/a", true),
            (State, "/nil/a", Inbox, "/nil/a/b", false),
            (State, "/nil/a", Inbox, "/nil/a", true),
            (Control, "/nil/a/s", State, "/nil/a", false),
            (Control, "/nil/a/s", Outbox, "/nil/a", true),
        ] {
            assert_eq!(clashes(a, x, b, y), expected, "{a:?} {x} {b:?} {y}");
            assert_eq!(clashes(b, y, a, x), expected, "{b:?} {y} {a:?} {x}");
        }
    }

    #[test]
    fn links_are_looked_through() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        let link = dir.path().join("link");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert!(clash((Role::Outbox, &real), (Role::Inbox, &link.join("not/there"))).is_some());
        assert!(clash((Role::Outbox, &real), (Role::Inbox, &link)).is_some());
    }
}
