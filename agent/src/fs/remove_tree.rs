//! Removes a folder with all that is in it, whatever somebody put there: neither the stack nor the number of open
//! folders grows with the depth of the tree.
//!
//! Each folder's own folders are moved up to the top before it goes, so that nothing is ever deeper than two levels when
//! it is looked at.

use std::{
    ffi::{OsStr, OsString},
    io,
    path::Path,
};

use cap_fs_ext::DirExt;
use cap_std::fs::Dir;

use crate::fs::confined;

/// Removes the folder `name` in `parent`; `NotFound` if it is not there. Follows nothing, and fails where another file
/// system is mounted in it. Not durable; cut off, it may be repeated.
pub fn remove_tree(parent: &Dir, name: &OsStr) -> io::Result<()> {
    let top = parent.open_dir_nofollow(name)?;
    let mut moved = 0;
    loop {
        let mut is_empty = true;
        for entry in top.entries()? {
            let entry = entry?;
            let name = entry.file_name();
            is_empty = false;
            match top.symlink_metadata(&name) {
                Ok(meta) if meta.is_dir() => {
                    absent_is_fine(flatten(&top, &name, &mut moved))?;
                    absent_is_fine(top.remove_dir(&name))?;
                }
                Ok(_) => absent_is_fine(top.remove_file_or_symlink(&name))?,
                Err(e) => absent_is_fine(Err(e))?,
            }
        }
        if is_empty {
            return parent.remove_dir(name);
        }
    }
}

/// Removes a folder of which only the path is known.
pub fn remove_tree_at(path: &Path) -> io::Result<()> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => remove_tree(&confined::root(parent)?, name),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a folder's path")),
    }
}

/// Empties the folder `name` in `top`: what folders it holds are moved beside it.
fn flatten(top: &Dir, name: &OsStr, moved: &mut u64) -> io::Result<()> {
    let folder = top.open_dir_nofollow(name)?;
    for entry in folder.entries()? {
        let name = entry?.file_name();
        let is_dir = match folder.symlink_metadata(&name) {
            Ok(meta) => meta.is_dir(),
            Err(e) => {
                absent_is_fine(Err(e))?;
                continue;
            }
        };
        match is_dir {
            true => absent_is_fine(move_up(&folder, &name, top, moved))?,
            false => absent_is_fine(folder.remove_file_or_symlink(&name))?,
        }
    }
    Ok(())
}

fn move_up(folder: &Dir, name: &OsStr, top: &Dir, moved: &mut u64) -> io::Result<()> {
    loop {
        *moved += 1;
        let free = OsString::from(format!(".moved.{moved}"));
        // At most an empty folder is replaced.
        match folder.rename(name, top, &free) {
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::DirectoryNotEmpty
                        | io::ErrorKind::AlreadyExists
                        | io::ErrorKind::NotADirectory
                ) => {}
            renamed => return renamed,
        }
    }
}

/// It went by somebody else's doing.
fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(e) if confined::is_absent(&e) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;

    /// Makes a chain of `depth` folders named `d` below `root`, with a file in the last.
    pub(crate) fn make_deep(root: &Dir, depth: usize) {
        let mut at = root.try_clone().unwrap();
        for _ in 0..depth {
            at.create_dir("d").unwrap();
            at = at.open_dir("d").unwrap();
        }
        at.write("file", "bytes").unwrap();
    }

    #[test]
    fn a_tree_of_any_depth_goes_and_nothing_else() {
        if !crate::failpoints::needs::deep_trees() {
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        let parent = confined::root(temp.path()).unwrap();
        fs::create_dir_all(temp.path().join("top/a/b")).unwrap();
        fs::create_dir_all(temp.path().join("top/.moved.1/x")).unwrap();
        for file in ["beside", "top/one", "top/a/two", "top/a/b/three", "top/.moved.2"] {
            fs::write(temp.path().join(file), "bytes").unwrap();
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink(temp.path().join("beside"), temp.path().join("top/a/link")).unwrap();
        make_deep(&parent.open_dir("top").unwrap(), 20_000);
        // A stack that a recursion of that depth would not fit on.
        let small = std::thread::Builder::new().stack_size(256 * 1024);
        let removed = small.spawn(move || remove_tree(&parent, OsStr::new("top")).map(|()| parent));
        let parent = removed.unwrap().join().unwrap().unwrap();
        assert!(!parent.exists("top") && parent.exists("beside"));
        let absent = remove_tree(&parent, OsStr::new("top")).unwrap_err();
        assert_eq!(absent.kind(), io::ErrorKind::NotFound);
    }
}
