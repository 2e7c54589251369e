//! An outbox gets a new owner: whatever was on its way out under the old one is given back. Only the old owner, which
//! may be this agent, knows the file's old name; most likely it was delivered, but nobody here can tell.

use std::{ffi::OsStr, io};

use cap_fs_ext::DirExt;
use cap_std::fs::Dir;
use dropwire_protocol::RemotePath;

use super::{beside::rename_beside, removal, steps::make_folders};
use crate::{
    failpoints,
    fs::{border, confined, durable, own_folder},
};

/// Most that one go through a folder moves.
const TOGETHER: usize = 1024;

/// Moves what is in `leaving` of the outbox `root`, and of what is mounted in it, back to the path in the outbox that
/// `path_of` says its name in `leaving` stands for, else to the top of each, durably; to be called before `root` gets
/// another folder id. May be repeated.
pub fn give_back_all(root: &Dir, path_of: &dyn Fn(&str) -> Option<RemotePath>) -> io::Result<()> {
    give_back(root, path_of)?;
    for path in border::noted(root)? {
        let below = |name: &str| {
            let known = path_of(name)?;
            let rest = known.as_bytes().strip_prefix(path.as_bytes())?;
            RemotePath::parse(rest.strip_prefix(b"/")?).ok()
        };
        match confined::open_folder(root, &path) {
            Ok(top) => give_back(&top, &below)?,
            Err(e) if confined::is_absent(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn give_back(top: &Dir, path_of: &dyn Fn(&str) -> Option<RemotePath>) -> io::Result<()> {
    let leaving = top
        .open_dir_nofollow(own_folder::NAME)
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
        if names.is_empty() || failpoints::mutant("adopt-leaving") {
            return Ok(());
        }
        for name in names {
            match one(top, &leaving, &name, path_of) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {} // with another one of them
                other => other?,
            }
        }
        durable::sync_dir(top)?;
        durable::sync_dir(&leaving)?;
    }
}

fn one(
    top: &Dir,
    leaving: &Dir,
    name: &OsStr,
    path_of: &dyn Fn(&str) -> Option<RemotePath>,
) -> io::Result<()> {
    let text = name.to_string_lossy();
    if let Some(of) = text.strip_suffix(".gone")
        && let Some(list) = removal::find_list(leaving, of)?
        && removal::remove(leaving, name, list, &|| false)?
    {
        return removal::forget_list(leaving, of); // its removal was decided
    }
    if let Some(of) = text.strip_suffix(".list") {
        let gone = removal::decided_name(of);
        return match leaving.symlink_metadata(&gone) {
            Ok(_) => one(top, leaving, &gone, path_of),
            Err(e) if confined::is_absent(&e) => removal::forget_list(leaving, of),
            Err(e) => Err(e),
        };
    }
    let is_marker = text.ends_with(".marker") && leaving.symlink_metadata(name)?.len() == 0;
    if is_marker {
        return durable::unlink(leaving, name);
    }
    let own = path_of(text.strip_suffix(".gone").unwrap_or(&text));
    match own.filter(|_| !failpoints::mutant("adopt-name")) {
        Some(path) => under_its_path(top, leaving, name, &path),
        None => rename_beside(leaving, name, top, name),
    }
}

/// At the top, where something stands in the way of its folders.
fn under_its_path(top: &Dir, leaving: &Dir, name: &OsStr, path: &RemotePath) -> io::Result<()> {
    let wanted = confined::os_str(path.file_name())?;
    match make_folders(top, path, durable::sync_dir) {
        Ok(folder) => {
            rename_beside(leaving, name, &folder, wanted)?;
            durable::sync_dir(&folder)
        }
        Err(_) => rename_beside(leaving, name, top, wanted),
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
        let unknown = |_: &str| None;
        give_back_all(&root, &unknown).unwrap();
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
        let disk = RemotePath::parse(b"disk").unwrap();
        border::note(&own_folder::open_or_make(&root).unwrap(), &disk).unwrap();
        fs::write(at("1"), "another").unwrap();
        give_back_all(&root, &unknown).unwrap();
        give_back_all(&root, &unknown).unwrap();
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

    #[test]
    fn what_is_known_comes_back_under_its_own_name() {
        let temp = tempfile::tempdir().unwrap();
        let at = |path: &str| temp.path().join(path);
        let root = confined::root(temp.path()).unwrap();
        let paths = [
            ("1", "report.pdf"),
            ("2", "sub/deep/file"),
            ("3", "way/file"),
            ("4", "whole"),
            ("5", "disk/sub/file"),
            ("6", "elsewhere/file"),
        ];
        for leaving in [".dropwire/leaving/4.gone", "disk/.dropwire/leaving"] {
            fs::create_dir_all(at(leaving)).unwrap();
        }
        for n in [1, 2, 3, 9] {
            fs::write(at(&format!(".dropwire/leaving/{n}")), n.to_string()).unwrap();
        }
        for n in [5, 6] {
            fs::write(at(&format!("disk/.dropwire/leaving/{n}")), n.to_string()).unwrap();
        }
        let disk = RemotePath::parse(b"disk").unwrap();
        border::note(&own_folder::open_or_make(&root).unwrap(), &disk).unwrap();
        fs::write(at("report.pdf"), "another").unwrap();
        fs::write(at("way"), "a file where a folder was").unwrap();
        let path_of = |name: &str| {
            let (_, path) = paths.iter().find(|(known, _)| *known == name)?;
            RemotePath::parse(path.as_bytes()).ok()
        };
        give_back_all(&root, &path_of).unwrap();
        for (path, bytes) in [
            ("report.pdf", "another"),
            ("report (1).pdf", "1"),
            ("sub/deep/file", "2"),
            ("file", "3"),
            ("9", "9"),
            ("disk/sub/file", "5"),
            ("disk/6", "6"),
        ] {
            assert_eq!(fs::read_to_string(at(path)).unwrap(), bytes, "{path}");
        }
        assert!(at("whole").is_dir());
    }
}
