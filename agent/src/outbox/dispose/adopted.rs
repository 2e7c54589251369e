//! An outbox gets a new owner: whatever was on its way out under the old one is given back. Who knows its old name is
//! the old owner alone; it has been delivered, most likely, but nobody here can tell.

use std::{ffi::OsStr, io};

use cap_fs_ext::DirExt;
use cap_std::fs::Dir;

use super::{beside::rename_beside, removal};
use crate::{border, confined, durable, fault, mark};

/// Most that one go through a folder moves.
const TOGETHER: usize = 1024;

/// Moves what is in `leaving` of the outbox `root`, and of what is mounted in it, to the top of each, durably; to be
/// called before `root` gets another mark. May be repeated.
pub fn give_back_all(root: &Dir) -> io::Result<()> {
    give_back(root)?;
    for path in border::noted(root)? {
        match confined::open_folder(root, &path) {
            Ok(top) => give_back(&top)?,
            Err(e) if confined::is_absent(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn give_back(top: &Dir) -> io::Result<()> {
    let leaving = top
        .open_dir_nofollow(mark::FOLDER)
        .and_then(|own| own.open_dir_nofollow("leaving"));
    let leaving = match leaving {
        Err(e) if confined::is_absent(&e) => return Ok(()),
        leaving => leaving?,
    };
    loop {
        let names = leaving
            .entries()?
            .take(TOGETHER)
            .map(|entry| Ok(entry?.file_name()));
        let names = names.collect::<io::Result<Vec<_>>>()?;
        if names.is_empty() || fault::mutant("adopt-leaving") {
            return Ok(());
        }
        for name in names {
            match one(top, &leaving, &name) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {} // with another one of them
                other => other?,
            }
        }
        durable::sync_dir(top)?;
        durable::sync_dir(&leaving)?;
    }
}

fn one(top: &Dir, leaving: &Dir, name: &OsStr) -> io::Result<()> {
    let text = name.to_string_lossy();
    if let Some(of) = text.strip_suffix(".gone")
        && let Some(list) = removal::find_list(leaving, of)?
        && removal::remove(leaving, name, list)?
    {
        return removal::forget_list(leaving, of); // its removal was decided
    }
    if let Some(of) = text.strip_suffix(".list") {
        let gone = removal::decided_name(of);
        return match leaving.symlink_metadata(&gone) {
            Ok(_) => one(top, leaving, &gone),
            Err(e) if confined::is_absent(&e) => removal::forget_list(leaving, of),
            Err(e) => Err(e),
        };
    }
    let is_marker = text.ends_with(".marker") && leaving.symlink_metadata(name)?.len() == 0;
    match is_marker {
        true => durable::unlink(leaving, name),
        false => rename_beside(leaving, name, top, name),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_on_its_way_out_comes_back() {
        let temp = tempfile::tempdir().unwrap();
        let at = |path: &str| temp.path().join(path);
        let root = confined::root(temp.path()).unwrap();
        give_back_all(&root).unwrap();
        for folder in ["", "disk/"] {
            let leaving = format!("{folder}.dropwire/leaving");
            fs::create_dir_all(at(&format!("{leaving}/folder"))).unwrap();
            fs::create_dir_all(at(&format!("{leaving}/half"))).unwrap();
            for name in ["1", "2", "2.marker", "folder/file", "half/a", "half/b"] {
                fs::write(at(&format!("{leaving}/{name}")), "").unwrap();
            }
            fs::write(at(&format!("{leaving}/1")), "bytes").unwrap();
            let dir = confined::root(&at(&leaving)).unwrap();
            let half = confined::root(&at(&format!("{leaving}/half"))).unwrap();
            assert!(removal::write_list(&dir, "half", &half).is_ok());
            fs::rename(
                at(&format!("{leaving}/half")),
                at(&format!("{leaving}/half.gone")),
            )
            .unwrap();
            fs::remove_file(at(&format!("{leaving}/half.gone/a"))).unwrap();
        }
        let disk = dropwire_protocol::RemotePath::parse(b"disk").unwrap();
        border::note(&mark::folder(&root).unwrap(), &disk).unwrap();
        fs::write(at("1"), "another").unwrap();
        give_back_all(&root).unwrap();
        give_back_all(&root).unwrap();
        let names = |path: &str| {
            let mut names: Vec<_> = fs::read_dir(at(path))
                .unwrap()
                .map(|e| e.unwrap().file_name())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(""), [".dropwire", "1", "1 (1)", "2", "disk", "folder"]);
        assert_eq!(names("disk"), [".dropwire", "1", "2", "folder"]);
        assert_eq!(names("folder"), ["file"]);
        assert_eq!(fs::read(at("1 (1)")).unwrap(), b"bytes");
        for leaving in [".dropwire/leaving", "disk/.dropwire/leaving"] {
            assert!(names(leaving).is_empty(), "{leaving}");
        }
    }
}
