//! A free name beside one that is taken, as the archive and a file that is given back need it.

use std::{
    ffi::{OsStr, OsString},
    io,
};

use cap_fs_ext::{DirExt, MetadataExt};
use cap_std::fs::{Dir, Metadata};

use crate::{
    failpoints,
    fs::{confined, durable, version::Version},
};

/// Gives the file `name` in `from` the name `wanted` in `to`, or that with the first number found free. One that has such
/// a name already, because a crash cut this off, only loses the old one. Durable after a sync of `to`, then of `from`.
pub(super) fn rename_beside(from: &Dir, name: &OsStr, to: &Dir, wanted: &OsStr) -> io::Result<()> {
    match durable::rename_noreplace(from, name, to, wanted) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        other => return other.map(drop),
    }
    let taken = |n: u64| to.symlink_metadata(numbered(wanted, n)).is_ok();
    // Doubling, then halving: as quick for the ten thousandth of a name as for the first.
    let (mut low, mut number) = (0, 1);
    while taken(number) {
        (low, number) = (number, number.saturating_mul(2));
    }
    while number - low > 1 {
        let middle = low + (number - low) / 2;
        if taken(middle) {
            low = middle;
        } else {
            number = middle;
        }
    }
    let file = from.symlink_metadata(name)?;
    let is_it = |n: u64| same_file((from, name), (to, &numbered(wanted, n))).unwrap_or(false);
    if has_further_names(&file) && (0..number).any(is_it) && !failpoints::mutant("S5-twice") {
        return durable::unlink(from, name);
    }
    loop {
        match durable::rename_noreplace(from, name, to, &numbered(wanted, number)) {
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
        let name = numbered(wanted, number);
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

/// `report.pdf`, 1 → `report (1).pdf`; 0 is the name itself. The stem is cut so that 255 bytes are enough.
pub(super) fn numbered(name: &OsStr, number: u64) -> OsString {
    const MOST: usize = 255;
    if number == 0 {
        return name.to_os_string();
    }
    let name = name.as_encoded_bytes();
    let dot = name.iter().rposition(|b| *b == b'.').filter(|at| *at > 0);
    let (stem, extension) = name.split_at(dot.unwrap_or(name.len()));
    let suffix = [format!(" ({number})").as_bytes(), extension].concat();
    let room = MOST.saturating_sub(suffix.len());
    let mut cut = stem.len().min(room);
    // Never through the middle of a UTF-8 character.
    while cut > 0 && cut < stem.len() && stem.get(cut).is_some_and(|b| b & 0xc0 == 0x80) {
        cut -= 1;
    }
    let bytes = [&stem[..cut], &suffix].concat();
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
