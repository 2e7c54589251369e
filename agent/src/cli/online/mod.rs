//! Commands that ask a running agent over its control socket. Each is one question, and how its answer is shown.

pub mod cancel;
pub mod jobs;
pub mod retry;
pub mod send;
pub mod status;
pub mod why;

mod render;
mod wait;

pub(super) use render::size;

use std::{
    io,
    path::{Component, Path, PathBuf},
};

use crate::{
    control::api::Selection,
    error::{Exit, Fatal, shown},
};

/// Which jobs a command means.
#[derive(clap::Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub struct Which {
    /// Jobs, by their ids or unique beginnings of them
    #[arg(value_name = "JOB")]
    jobs: Vec<String>,
    /// All jobs for this peer
    #[arg(long, value_name = "PEER")]
    peer: Option<String>,
    /// All jobs
    #[arg(long)]
    all: bool,
}

impl From<Which> for Selection {
    fn from(which: Which) -> Self {
        let jobs = which.jobs.iter().map(|job| job.to_ascii_lowercase()).collect();
        Self {
            jobs,
            peer: which.peer,
            all: which.all,
        }
    }
}

/// Why a command ends early.
#[derive(Debug)]
enum Stop {
    /// Nobody reads the output any more: no error.
    Unread,
    Fatal(Fatal),
}

impl From<Fatal> for Stop {
    fn from(fatal: Fatal) -> Self {
        Self::Fatal(fatal)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Unread,
            _ => Self::Fatal(Fatal::io("cannot write the output", &error)),
        }
    }
}

/// Runs one command to its end.
fn run(command: impl Future<Output = Result<(), Stop>>) -> Result<(), Fatal> {
    match runtime()?.block_on(command) {
        Ok(()) | Err(Stop::Unread) => Ok(()),
        Err(Stop::Fatal(fatal)) => Err(fatal),
    }
}

/// The runtime of one question.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Fatal> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Fatal::new(Exit::Failed, format_args!("cannot start: {error}")))
}

/// `path` from the root, its last component as it is: a symlink there is not followed.
///
/// Symlinks on the way stay too, since outboxes are known by the paths in the config; only where a `..` has to be taken
/// away are they resolved, as the system would do it.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, Fatal> {
    let from_root = std::path::absolute(path)
        .map_err(|error| Fatal::io(format_args!("cannot tell where {} is", shown(path)), &error))?;
    if !from_root.components().any(|part| part == Component::ParentDir) {
        return Ok(from_root);
    }
    let (parent, name) = match (from_root.parent(), from_root.file_name()) {
        (Some(parent), Some(name)) => (parent, Some(name)),
        _ => (from_root.as_path(), None),
    };
    let parent = parent
        .canonicalize()
        .map_err(|error| Fatal::io(format_args!("cannot tell where {} is", shown(path)), &error))?;
    Ok(name.map_or(parent.clone(), |name| parent.join(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser, Debug)]
    struct Line {
        #[command(flatten)]
        which: Which,
    }

    #[test]
    fn jobs_a_peer_or_all_and_exactly_one_of_them() {
        let jobs = Line::try_parse_from(["retry", "ABcd", "12"]).unwrap().which;
        assert_eq!(Selection::from(jobs).jobs, ["abcd", "12"]);
        assert!(Selection::from(Line::try_parse_from(["retry", "--all"]).unwrap().which).all);
        let peer = Line::try_parse_from(["retry", "--peer", "office"]).unwrap().which;
        assert_eq!(Selection::from(peer).peer.as_deref(), Some("office"));
        for wrong in [
            &["retry"][..],
            &["retry", "ab", "--all"],
            &["retry", "--all", "--peer", "p"],
            &["retry", "ab", "--peer", "p"],
        ] {
            assert!(Line::try_parse_from(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn nobody_reading_is_no_error() {
        assert!(run(async { Err(io::Error::from(io::ErrorKind::BrokenPipe).into()) }).is_ok());
        let full = run(async { Err(io::Error::from(io::ErrorKind::StorageFull).into()) }).unwrap_err();
        assert_eq!(full.exit, Exit::Disk);
        let fatal = run(async { Err(Fatal::new(Exit::NotYet, "x").into()) }).unwrap_err();
        assert_eq!(fatal.exit, Exit::NotYet);
    }

    #[cfg(unix)]
    #[test]
    fn a_path_is_made_absolute_without_following_its_last_component() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("real/below")).unwrap();
        std::os::unix::fs::symlink("real/below", root.join("link")).unwrap();
        std::os::unix::fs::symlink("nowhere", root.join("dangling")).unwrap();
        let cases = [
            ("real/./x", "real/x"),
            ("link/x", "link/x"),
            ("dangling", "dangling"),
            ("real/below/../x", "real/x"),
            // As the system goes: up from where the link leads to.
            ("link/../x", "real/x"),
            ("link/..", "real"),
        ];
        for (given, expected) in cases {
            assert_eq!(
                absolute(&root.join(given)).unwrap(),
                root.join(expected),
                "{given}"
            );
        }
        assert_eq!(
            absolute(Path::new("x")).unwrap(),
            std::env::current_dir().unwrap().join("x")
        );
        assert_eq!(
            absolute(&root.join("missing/../x")).unwrap_err().exit,
            Exit::NoInput
        );
    }
}
