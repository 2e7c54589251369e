//! A marker leaves with its file.

use std::{
    ffi::{OsStr, OsString},
    io,
};

use cap_std::fs::Dir;

use super::{Disposal, beside::rename_beside};
use crate::{
    failpoints,
    fs::{
        confined, durable,
        marker::{is_one, is_there, name_of},
        version::Version,
    },
};

/// Its name in `leaving`.
fn held(what: &Disposal) -> OsString {
    format!("{}.marker", what.name).into()
}

/// Takes the marker along into `leaving`; to be called before its file goes there from `folder`. Left for after that,
/// it would mark the next file of that name, however unfinished. Durable with the file's own rename; after a crash in
/// between, called again, or [`end`], goes on.
pub(super) fn take(folder: &Dir, leaving: &Dir, what: &Disposal) -> io::Result<()> {
    let Some(suffix) = what.marker.as_deref() else {
        return Ok(());
    };
    if !is_there(folder, what.path.file_name(), suffix) {
        return Ok(());
    }
    let marker = name_of(what.path.file_name(), suffix);
    let (marker, held) = (confined::os_str(&marker)?, held(what));
    let rename = || durable::rename_noreplace(folder, marker, leaving, &held);
    let taken = match rename() {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            discard(folder, leaving, what, suffix)?; // of the time before a crash; this one may be newer
            rename()
        }
        other => other,
    };
    match taken {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Ends what [`take`] began. With a file that `left` its marker goes for good; durable once `leaving` is synced. With
/// one that is back, or did not go, it goes back, durably; but not to another file, which needs a marker of its own.
/// It waits while its file waits in `leaving`. `own` is inode and birth of that file (or folder); `folder` opens what it
/// was taken from, `sync` makes a folder durable.
pub(super) fn end(
    leaving: &Dir,
    what: &Disposal,
    left: bool,
    own: Option<(u64, i64)>,
    folder: impl FnOnce() -> io::Result<Dir>,
    sync: impl Fn(&Dir) -> io::Result<()>,
) -> io::Result<()> {
    let Some(suffix) = what.marker.as_deref() else {
        return Ok(());
    };
    let held = held(what);
    match leaving.symlink_metadata(&held) {
        Ok(meta) if left && is_one(&meta) => return durable::unlink(leaving, &held),
        Ok(_) => {}
        Err(e) if confined::is_absent(&e) => return Ok(()),
        Err(e) => return Err(e),
    }
    let inspect = |folder: &Dir, name: &OsStr| match folder.symlink_metadata(name) {
        Ok(meta) => Ok(Some(Version::listed(folder, name, &meta))),
        Err(e) if confined::is_absent(&e) => Ok(None),
        Err(e) => Err(e), // says nothing of what is there
    };
    if !left && inspect(leaving, OsStr::new(&what.name))?.is_some() {
        return Ok(());
    }
    let folder = folder()?;
    let there = inspect(&folder, confined::os_str(what.path.file_name())?)?;
    // One without a lasting number cannot be told from another.
    let is_its_own =
        there.is_some_and(|there| there.inode != 0 && own == Some((there.inode, there.birth_ns)));
    let marker = name_of(what.path.file_name(), suffix);
    let back = || durable::rename_noreplace(leaving, &held, &folder, confined::os_str(&marker)?);
    match (!left && is_its_own).then(back) {
        Some(Ok(_)) => {}
        Some(Err(e)) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => discard(&folder, leaving, what, suffix)?,
    }
    failpoints::step("S5-marker-dir", || sync(&folder))?;
    failpoints::step("S5-marker-leaving-dir", || sync(leaving))
}

/// Removes it from `leaving`. Should it have got bytes meanwhile, it goes back, or beside.
fn discard(folder: &Dir, leaving: &Dir, what: &Disposal, suffix: &str) -> io::Result<()> {
    let held = held(what);
    if is_one(&leaving.symlink_metadata(&held)?) {
        return durable::unlink(leaving, &held);
    }
    let marker = name_of(what.path.file_name(), suffix);
    rename_beside(leaving, &held, folder, confined::os_str(&marker)?)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use dropwire_protocol::RemotePath;

    use super::*;
    use crate::{config::AfterSend, fs::version::OutboxId};

    /// A folder with the file `x`, whose name in the folder `leaving` in it is `name`.
    struct Outbox {
        temp: tempfile::TempDir,
        folder: Dir,
        leaving: Dir,
        what: Disposal,
    }

    impl Outbox {
        fn new() -> Self {
            let temp = tempfile::tempdir().unwrap();
            fs::create_dir(temp.path().join("leaving")).unwrap();
            let open = |path: &Path| confined::root(path).unwrap();
            let (folder, leaving) = (open(temp.path()), open(&temp.path().join("leaving")));
            folder.write("x", "bytes").unwrap();
            let what = Disposal {
                name: "name".into(),
                outbox: OutboxId([0; 16]),
                root: temp.path().into(),
                path: RemotePath::parse(b"x").unwrap(),
                version: Version::listed(&folder, "x".as_ref(), &folder.symlink_metadata("x").unwrap()),
                digest: dropwire_protocol::RunningDigest::default().value(),
                after: AfterSend::Delete,
                marker: Some(".done".into()),
                linger: std::time::Duration::ZERO,
            };
            Self {
                temp,
                folder,
                leaving,
                what,
            }
        }

        fn take(&self) {
            take(&self.folder, &self.leaving, &self.what).unwrap();
        }

        fn end(&self, left: bool) {
            let folder = || self.folder.try_clone();
            let own = Some((self.what.version.inode, self.what.version.birth_ns));
            end(&self.leaving, &self.what, left, own, folder, durable::sync_dir).unwrap();
        }

        /// What lies in both.
        fn names(&self) -> Vec<String> {
            let names_in = |dir: &Dir, prefix: &str| -> Vec<String> {
                let names = dir.entries().unwrap();
                let names = names.map(|e| e.unwrap().file_name().into_string().unwrap());
                names.map(|name| format!("{prefix}{name}")).collect()
            };
            let mut names = names_in(&self.folder, "");
            names.extend(names_in(&self.leaving, "leaving/"));
            names.retain(|name| name != "leaving");
            names.sort();
            names
        }
    }

    #[test]
    fn a_marker_goes_with_its_file_or_back_with_it() {
        let _trusted = crate::fs::file_system::pretend(crate::fs::file_system::TRUSTED);
        let outbox = Outbox::new();
        outbox.take();
        outbox.end(true);
        assert_eq!(outbox.names(), ["x"], "it has none");
        for again in 0..2 {
            outbox.folder.write("x.done", "").unwrap();
            assert!(is_there(&outbox.folder, b"x", ".done"));
            outbox.take();
            for _ in 0..again {
                outbox.take(); // after a crash
            }
            assert_eq!(outbox.names(), ["leaving/name.marker", "x"]);
            outbox.end(false);
            outbox.end(false);
            assert_eq!(outbox.names(), ["x", "x.done"]);
            #[cfg(target_os = "linux")]
            {
                let calls = durable::trace::of(outbox.temp.path());
                let given_back = [durable::trace::sync(""), durable::trace::sync("leaving")];
                assert!(calls.ends_with(&given_back), "{calls:#?}");
            }
            outbox.take();
            outbox.end(true);
            assert_eq!(outbox.names(), ["x"]);
        }
        drop(outbox.temp);
    }

    #[test]
    fn one_that_lies_under_both_names_after_a_crash_is_one() {
        let outbox = Outbox::new();
        for left in [true, false] {
            outbox.folder.write("x.done", "").unwrap();
            outbox.leaving.write("name.marker", "").unwrap();
            outbox.take();
            assert_eq!(outbox.names(), ["leaving/name.marker", "x"]);
            outbox.folder.write("x.done", "").unwrap();
            outbox.end(left);
            assert_eq!(outbox.names(), ["x", "x.done"]);
        }
    }

    #[test]
    fn it_never_marks_another_file() {
        let outbox = Outbox::new();
        outbox.folder.write("x.done", "").unwrap();
        outbox.take();
        outbox.folder.rename("x", &outbox.leaving, "name").unwrap(); // so the next x is another inode
        outbox.folder.write("x", "unfinished").unwrap();
        outbox.end(false);
        assert_eq!(
            outbox.names(),
            ["leaving/name", "leaving/name.marker", "x"],
            "its file waits"
        );
        outbox.leaving.rename("name", &outbox.folder, "x (1)").unwrap();
        outbox.end(false);
        assert_eq!(outbox.names(), ["x", "x (1)"]);
    }

    #[test]
    fn what_holds_bytes_is_no_marker_and_stays() {
        let mut outbox = Outbox::new();
        outbox.folder.write("x.done", "not a marker").unwrap();
        assert!(!is_there(&outbox.folder, b"x", ".done"));
        outbox.take();
        outbox.end(true);
        assert_eq!(outbox.names(), ["x", "x.done"]);
        // Written to while it left.
        outbox.leaving.write("name.marker", "late bytes").unwrap();
        outbox.end(true);
        assert_eq!(outbox.names(), ["x", "x (1).done", "x.done"]);
        outbox.folder.remove_file("x.done").unwrap();
        outbox.folder.create_dir("x.done").unwrap();
        assert!(!is_there(&outbox.folder, b"x", ".done"));
        outbox.take();
        assert_eq!(outbox.names(), ["x", "x (1).done", "x.done"]);
        // A marker's name would be too long.
        outbox.what.path = RemotePath::parse("n".repeat(252).as_bytes()).unwrap();
        outbox.take();
        outbox.end(true);
    }
}
