//! A top-level folder that is one delivery: when it is ready, and made durable (S1).
//!
//! All of it is sent, or nothing: a name in it that is never sent because it looks unfinished, or by a pattern of the
//! config, keeps it back until that is renamed or gone, and so does what cannot be read. Only litter, what systems keep
//! for themselves, and what is neither file nor folder, is left out.

use std::{
    fs::File,
    io,
    time::{Duration, SystemTime},
};

use cap_std::fs::Dir;
use dropwire_protocol::RemotePath;

use super::{
    ignore::Ignore,
    inspect::{self, Inspection, PERHAPS_UNFINISHED, Rules},
    stability::Observation,
};
use crate::{
    error::brief,
    failpoints,
    fs::{
        bundle::{self, Kind, Listing, Step, Trouble},
        confined, durable,
        file_system::FileSystem,
        snapshot, unsent,
        version::Version,
    },
    owner,
};

/// Inspects the folder `path` below `root`: a walk through all of it. Blocks only for the disk.
pub(super) fn inspect(root: &Dir, path: &RemotePath, rules: &Rules, ignore: &Ignore) -> Inspection {
    let quiet = match &rules.marker {
        None => rules.quiet,
        Some(suffix) if !crate::fs::marker::is_there(root, path.file_name(), suffix) => {
            return Inspection::Unmarked(crate::fs::marker::missing(path.file_name(), suffix));
        }
        Some(_) => Duration::ZERO,
    };
    let folder = match confined::open_folder_through(root, path, owner::unclaimed) {
        Ok(folder) => folder,
        Err(e) if confined::is_absent(&e) => return Inspection::Nothing,
        Err(e) => return inspect::unread(&e),
    };
    let least = FileSystem::of_folder(&folder).unwrap_or_default().least_rest();
    let may_be_unfinished = std::cell::Cell::new(false);
    let mut inspect = |step: &Step<'_>| {
        if step.kind == Kind::File && unsent::is_rsync_temporary(step.name.as_encoded_bytes()).is_some() {
            may_be_unfinished.set(rules.marker.is_none() && !failpoints::mutant("S1-whole-perhaps"));
        }
        keep_back(step, path, ignore)
    };
    let quiet = || match may_be_unfinished.get() {
        true => quiet.max(PERHAPS_UNFINISHED),
        false => quiet,
    };
    if snapshot::is_one(&folder) {
        return held(snapshot::REASON, snapshot::REASON.into());
    }
    // The kernel is asked of each file only once the rest is over: while it is being filled that would be in vain.
    let listing = match bundle::list(&folder, false, &mut inspect) {
        Ok(listing) if rests(&listing.version(), quiet()) => bundle::list(&folder, true, &mut inspect),
        other => other,
    };
    match listing {
        Ok(Listing { files: 0, .. }) => {
            held("there is no file in it yet", "there is no file in it yet".into())
        }
        Ok(listing) => {
            let version = listing.version();
            let observation = Observation::Still {
                version,
                rest: quiet().max(version.clock_step()).max(least),
                why: match may_be_unfinished.get() {
                    true => {
                        "a file in it may be one that rsync has not finished: nothing in it may change for 10 minutes"
                    }
                    false => "nothing in it may change for a while",
                },
            };
            Inspection::Whole {
                observation,
                left_out: listing.left_out,
            }
        }
        Err(Trouble::Changed) => Inspection::File {
            observation: Observation::Writer,
            file: None,
            of_others: false,
        },
        Err(Trouble::Writer(which)) => held(
            "a program has a file in it open for writing",
            format!("a program has {which} in it open for writing"),
        ),
        Err(Trouble::Held(reason)) => held("something in it cannot be sent", reason),
    }
}

/// Its version as a scan lists it; where it cannot be listed, one that no item has, so that it is inspected.
pub(super) fn listed(
    folder: &Dir,
    visit: &mut dyn FnMut(&RemotePath),
) -> (Version, Vec<(RemotePath, &'static str)>) {
    let listing = bundle::list(folder, false, &mut |step| {
        if let (Kind::Folder, Some(path)) = (step.kind, &step.path) {
            visit(path);
        }
        Ok(())
    });
    let unknown = Version {
        inode: 0,
        birth_ns: 0,
        size: 0,
        mtime_ns: 0,
        ctime_ns: 0,
        folder: true,
    };
    match listing {
        Ok(listing) => (listing.version(), listing.left_out),
        Err(_) => (unknown, Vec::new()),
    }
}

/// Why something in a folder stays out of its delivery, for people.
pub(super) fn left_out(what: &str) -> String {
    format!("left out of its folder: it is {what}")
}

/// S1: after Ok everything in the folder survives a power cut.
pub(super) fn sync(root: &Dir, path: &RemotePath) -> io::Result<()> {
    let folder = confined::open_folder(root, path)?;
    let sync_handle = open(&folder)?;
    if durable::supports_syncfs(&sync_handle) {
        return failpoints::step("S1-folder-syncfs", || durable::sync_filesystem(&sync_handle));
    }
    sync_each(&folder)
}

fn sync_each(folder: &Dir) -> io::Result<()> {
    let mut failed = None;
    let walked = bundle::walk(folder, &mut |step: &Step<'_>| {
        let sync = || match (step.kind, &step.path) {
            (Kind::File, _) => {
                confined::open_file(step.parent, step.name).and_then(|file| durable::sync_file(&file))
            }
            (Kind::Folder, Some(path)) => {
                confined::open_folder(folder, path).and_then(|dir| durable::sync_dir(&dir))
            }
            (Kind::Folder, None) => durable::sync_dir(folder),
            (Kind::Other(_), _) => Ok(()),
        };
        failpoints::step("S1-folder-each", sync).map_err(|e| {
            failed = Some(e);
            Trouble::Changed
        })
    });
    match (walked, failed) {
        (_, Some(error)) => Err(error),
        (Ok(()), None) => Ok(()),
        (Err(trouble), None) => Err(io::Error::other(format!("{trouble:?}"))),
    }
}

fn keep_back(step: &Step<'_>, folder: &RemotePath, ignore: &Ignore) -> Result<(), Trouble> {
    let Some(below) = &step.path else {
        return Ok(());
    };
    let path = [folder.as_bytes(), b"/", below.as_bytes()].concat();
    match ignore.keeps_back(below.file_name(), &path) {
        Some(pattern) => {
            let pattern = dropwire_protocol::name::escape(pattern.as_bytes());
            Err(Trouble::Held(format!(
                "{} in it matches {pattern}; it is sent whole once that is renamed or gone",
                brief(&below.to_string())
            )))
        }
        None => Ok(()),
    }
}

/// Nothing in it was changed for `quiet` by the clock on the wall, or that cannot be told.
fn rests(version: &Version, quiet: Duration) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_nanos());
    let age = now.checked_sub(u128::try_from(version.ctime_ns).unwrap_or(0));
    age.is_none_or(|age| age >= quiet.as_nanos())
}

fn held(why: &'static str, reason: String) -> Inspection {
    Inspection::Held { why, reason }
}

/// A handle that can be synced.
fn open(folder: &Dir) -> io::Result<File> {
    #[cfg(unix)]
    {
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(folder, ".", flags, Mode::empty())?))
    }
    #[cfg(not(unix))]
    {
        Ok(folder.try_clone()?.into_std_file())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn batch() -> (tempfile::TempDir, RemotePath) {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir_all(temp.path().join("batch/sub/empty")).unwrap();
        fs::write(temp.path().join("batch/sub/file"), "bytes").unwrap();
        (temp, RemotePath::parse(b"batch").unwrap())
    }

    fn sees(temp: &tempfile::TempDir, path: &RemotePath) -> Inspection {
        crate::fs::version::rests(temp.path());
        let root = confined::root(temp.path()).unwrap();
        let rules = Rules {
            quiet: Duration::ZERO,
            keep: false,
            marker: None,
        };
        inspect(&root, path, &rules, &Ignore::new(&["*.raw".into()]).unwrap())
    }

    #[track_caller]
    fn held_by(seen: Inspection) -> String {
        match seen {
            Inspection::Held { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_not_sent_from_an_outbox_keeps_the_folder_back() {
        let (temp, path) = batch();
        let at = |name: &str| temp.path().join("batch").join(name);
        assert!(matches!(sees(&temp, &path), Inspection::Whole { .. }));
        for name in ["sub/x.part", "sub/x.raw", "~$letter.doc"] {
            fs::write(at(name), "").unwrap();
            let reason = held_by(sees(&temp, &path));
            assert!(reason.contains(name), "{reason}");
            fs::remove_file(at(name)).unwrap();
        }
        fs::create_dir(at("@eaDir")).unwrap();
        for name in [".DS_Store", "@eaDir/x.part", "._a"] {
            fs::write(at(name), "").unwrap();
        }
        match sees(&temp, &path) {
            Inspection::Whole { left_out, .. } => {
                let left_out: Vec<_> = left_out.iter().map(|(path, _)| path.to_string()).collect();
                assert_eq!(left_out, ["@eaDir"], "litter does not");
            }
            other => panic!("{other:?}"),
        }
        let rest = |seen| match seen {
            Inspection::Whole {
                observation: Observation::Still { rest, .. },
                ..
            } => rest,
            other => panic!("{other:?}"),
        };
        assert!(rest(sees(&temp, &path)) < PERHAPS_UNFINISHED);
        fs::write(at("sub/.env.sample"), "").unwrap();
        assert_eq!(rest(sees(&temp, &path)), PERHAPS_UNFINISHED);
        fs::remove_file(at("sub/.env.sample")).unwrap();
        fs::remove_file(at("._a")).unwrap();
        fs::remove_file(at("sub/file")).unwrap();
        assert!(held_by(sees(&temp, &path)).contains("no file"));
        fs::remove_dir_all(at("")).unwrap();
        assert!(matches!(sees(&temp, &path), Inspection::Nothing));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn everything_in_it_is_synced() {
        use durable::trace::{self, Call};
        let (temp, path) = batch();
        let root = confined::root(temp.path()).unwrap();
        sync(&root, &path).unwrap();
        let together = |c: &Call| matches!(c, Call::Sync("syncfs", _));
        let calls = trace::of(temp.path());
        let supported = durable::supports_syncfs(&open(&root).unwrap());
        assert!(!supported || calls.iter().any(together), "{calls:#?}");
        sync_each(&confined::open_folder(&root, &path).unwrap()).unwrap();
        let calls = trace::of(temp.path());
        for path in ["batch", "batch/sub", "batch/sub/empty", "batch/sub/file"] {
            assert!(calls.contains(&trace::sync(path)), "{path}: {calls:#?}");
        }
    }
}
