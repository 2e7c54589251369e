//! Markers: where `ready = "marker"`, a file is only complete once an empty one beside it, `report.pdf.done` say, tells
//! so. A marker is never sent itself, and leaves with its file.

use std::{ffi::OsString, io};

use cap_std::fs::Dir;
use dropwire_protocol::RemotePath;

use crate::{confined, durable, fault};

/// The file whose marker has the name `name`; None if that is no marker's name.
pub(super) fn stem<'a>(name: &'a [u8], suffix: &str) -> Option<&'a [u8]> {
    name.strip_suffix(suffix.as_bytes())
        .filter(|stem| !stem.is_empty())
}

/// Whether the file `name` in `folder` has its marker.
pub(super) fn is_there(folder: &Dir, name: &[u8], suffix: &str) -> bool {
    let marker = [name, suffix.as_bytes()].concat();
    confined::os_str(&marker)
        .and_then(|marker| folder.symlink_metadata(marker))
        .is_ok_and(|meta| meta.is_file())
}

/// Removes the marker of the file that left from `path`, whose name in `leaving` was `name`.
///
/// It goes by way of `leaving` too: where a new file has the path by now, the marker may be that one's, and is given
/// back; looked at first and removed then, it might come in between and the new file wait for its marker for ever.
/// Cut short at any point, it is gone on with by the next call. Durable once `folder` and `leaving` are synced; what is
/// given back is durable on return.
pub(super) fn remove(
    folder: &Dir,
    leaving: &Dir,
    path: &RemotePath,
    name: &str,
    suffix: &str,
) -> io::Result<()> {
    let file = confined::os_str(path.file_name())?;
    let marker = [path.file_name(), suffix.as_bytes()].concat();
    let marker = confined::os_str(&marker)?;
    let held = OsString::from(format!("{name}.marker"));
    if leaving.symlink_metadata(&held).is_err() {
        match folder.symlink_metadata(marker) {
            Ok(meta) if meta.is_file() => {}
            Ok(_) => return Ok(()), // a folder, say: not ours to remove
            Err(e) if confined::is_absent(&e) => return Ok(()),
            Err(e) => return Err(e),
        }
        match durable::rename_noreplace(folder, marker, leaving, &held) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        }
    }
    if folder.symlink_metadata(file).is_err() {
        return durable::unlink(leaving, &held);
    }
    match durable::rename_noreplace(leaving, &held, folder, marker) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => durable::unlink(leaving, &held)?,
        Err(e) => return Err(e),
    }
    fault::step("S5-marker-dir", || durable::sync_dir(folder))?;
    fault::step("S5-marker-leaving-dir", || durable::sync_dir(leaving))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn names() {
        for (name, stem_of) in [
            ("a.done", Some("a")),
            ("a.done.done", Some("a.done")),
            (".done", None),
            ("done", None),
            ("a.DONE", None),
        ] {
            assert_eq!(
                stem(name.as_bytes(), ".done"),
                stem_of.map(str::as_bytes),
                "{name}"
            );
        }
    }

    /// The outbox's folder and `leaving`.
    fn folders() -> (tempfile::TempDir, Dir, Dir) {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("leaving")).unwrap();
        let (folder, leaving) = (temp.path(), temp.path().join("leaving"));
        let (folder, leaving) = (confined::root(folder).unwrap(), confined::root(&leaving).unwrap());
        (temp, folder, leaving)
    }

    fn names_in(dir: &Dir) -> Vec<String> {
        let names = dir
            .entries()
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name != "leaving").collect();
        names.sort();
        names
    }

    #[test]
    fn a_marker_goes_with_its_file_but_not_with_the_next_one() {
        let (temp, folder, leaving) = folders();
        let path = RemotePath::parse(b"x").unwrap();
        let remove = || remove(&folder, &leaving, &path, "name", ".done").unwrap();
        remove();
        folder.write("x.done", "").unwrap();
        assert!(is_there(&folder, b"x", ".done"));
        remove();
        assert!(names_in(&folder).is_empty());
        folder.write("x.done", "").unwrap();
        folder.write("x", "the next one").unwrap();
        remove();
        assert_eq!(names_in(&folder), ["x", "x.done"]);
        assert!(names_in(&leaving).is_empty());
        #[cfg(target_os = "linux")]
        {
            let calls = durable::trace::of(temp.path());
            let given_back = [durable::trace::sync(""), durable::trace::sync("leaving")];
            assert!(calls.ends_with(&given_back), "{calls:#?}");
        }
        #[cfg(not(target_os = "linux"))]
        drop(temp);
        folder.remove_file("x").unwrap();
        folder.remove_file("x.done").unwrap();
        folder.create_dir("x.done").unwrap();
        assert!(!is_there(&folder, b"x", ".done"));
        remove();
        assert_eq!(names_in(&folder), ["x.done"]);
    }

    #[test]
    fn what_a_crash_left_is_gone_on_with() {
        let (_temp, folder, leaving) = folders();
        let path = RemotePath::parse(b"x").unwrap();
        let remove = || remove(&folder, &leaving, &path, "name", ".done").unwrap();
        leaving.write("name.marker", "").unwrap();
        remove();
        assert!(names_in(&leaving).is_empty());
        leaving.write("name.marker", "").unwrap();
        folder.write("x", "the next one").unwrap();
        remove();
        assert_eq!(names_in(&folder), ["x", "x.done"]);
        leaving.write("name.marker", "").unwrap();
        remove();
        assert_eq!(names_in(&folder), ["x", "x.done"], "it has its own already");
        assert!(names_in(&leaving).is_empty());
    }
}
