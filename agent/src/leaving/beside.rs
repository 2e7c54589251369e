//! A free name beside one that is taken, as the archive and a file that is given back need it.

use std::{
    ffi::{OsStr, OsString},
    io,
};

use cap_fs_ext::{DirExt, MetadataExt};
use cap_std::fs::{Dir, Metadata};
use dropwire_protocol::Kind;

use crate::{
    failpoints,
    fs::{
        confined, durable,
        free_name::{self, LONGEST, first_free},
        version::Version,
    },
};

/// Gives the file `name` in `from` the name `wanted` in `to`, or that with the first number found free. One that has such
/// a name already, because a crash cut this off, only loses the old one. Durable after a sync of `to`, then of `from`.
pub(super) fn rename_beside(from: &Dir, name: &OsStr, to: &Dir, wanted: &OsStr) -> io::Result<()> {
    match durable::rename_noreplace(from, name, to, wanted) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        other => return other.map(drop),
    }
    let file = from.symlink_metadata(name)?;
    let kind = match file.is_dir() {
        true => Kind::Folder,
        false => Kind::File,
    };
    let numbered = |n| numbered(wanted, kind, n);
    let mut number = first_free(|n| Ok::<_, io::Error>(to.symlink_metadata(numbered(n)).is_ok()))?;
    let is_it = |n: u64| same_file((from, name), (to, &numbered(n))).unwrap_or(false);
    if has_further_names(&file) && (0..number).any(is_it) && !failpoints::mutant("S5-twice") {
        return durable::unlink(from, name);
    }
    loop {
        match durable::rename_noreplace(from, name, to, &numbered(number)) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => number += 1,
            other => return other.map(drop),
        }
    }
}

/// The folder `wanted` in `dir`, or, where anything else has that name, the first with a number that is one. `makes`: or
/// could be; its name is durable only after a sync of `dir`. Otherwise it is absent.
pub(super) fn folder_beside(dir: &Dir, wanted: &OsStr, makes: bool) -> io::Result<Dir> {
    const MOST: u64 = 1000;
    for number in 0..MOST {
        let name = numbered(wanted, Kind::Folder, number);
        let folder = match makes {
            true => durable::open_or_make_dir(dir, &name),
            false => dir.open_dir_nofollow(&name),
        };
        let is_taken = |dir: &Dir| dir.symlink_metadata(&name).is_ok_and(|meta| !meta.is_dir());
        match folder {
            Err(_) if is_taken(dir) && !failpoints::mutant("archive-taken") => {}
            other => return other,
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// `wanted` with a number, as the system names files.
fn numbered(wanted: &OsStr, kind: Kind, number: u64) -> OsString {
    let bytes = free_name::numbered(wanted.as_encoded_bytes(), kind, number, LONGEST);
    confined::os_str(&bytes).map_or_else(|_| OsString::from(format!("{number}")), OsStr::to_os_string)
}

/// Are these two names of one file? Where its number does not last, by all else that is listed, which its names share.
pub(super) fn same_file(one: (&Dir, &OsStr), other: (&Dir, &OsStr)) -> io::Result<bool> {
    let seen = |(folder, name): (&Dir, &OsStr)| {
        let meta = folder.symlink_metadata(name)?;
        Ok::<_, io::Error>((meta.dev(), Version::listed(folder, name, &meta)))
    };
    let ((device, one), (other_device, other)) = (seen(one)?, seen(other)?);
    let same = match one.inode {
        0 => one.same_identity(&other) && one.ctime_ns == other.ctime_ns && !failpoints::mutant("S5-numbers"),
        number => number == other.inode,
    };
    Ok(same && device == other_device)
}

#[cfg(unix)]
fn has_further_names(file: &Metadata) -> bool {
    file.nlink() > 1
}

#[cfg(not(unix))]
fn has_further_names(_: &Metadata) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_name_gets_a_number_as_in_an_inbox() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_ambient_dir(temp.path(), cap_std::ambient_authority()).unwrap();
        dir.create_dir("to").unwrap();
        let to = dir.open_dir_nofollow("to").unwrap();
        for (name, beside) in [("archive.tar.gz", "archive (1).tar.gz"), ("v1.2/", "v1.2 (1)/")] {
            let make = |dir: &Dir| match name.strip_suffix('/') {
                Some(folder) => dir.create_dir(folder),
                None => dir.write(name, b"bytes"),
            };
            make(&dir).unwrap();
            make(&to).unwrap();
            let name = OsStr::new(name.trim_end_matches('/'));
            rename_beside(&dir, name, &to, name).unwrap();
            assert!(to.metadata(beside).is_ok(), "{beside}");
        }
    }

    #[test]
    fn a_folder_of_the_archive_whose_name_a_file_has_gets_a_number_at_its_end() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_ambient_dir(temp.path(), cap_std::ambient_authority()).unwrap();
        dir.write("v1.2", b"bytes").unwrap();
        folder_beside(&dir, OsStr::new("v1.2"), true).unwrap();
        assert!(dir.symlink_metadata("v1.2 (1)").unwrap().is_dir());
    }
}
