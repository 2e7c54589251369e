//! Which names the inbox's file system takes: asked once, when the inbox is opened, by making files among the partials.
//!
//! NTFS, exFAT and SMB refuse what Windows refuses, macOS and some others all that is not UTF-8, and file systems that
//! encrypt names (eCryptfs, encfs, gocryptfs) refuse long ones. What is refused is known so before any byte comes.

use std::{ffi::OsStr, io};

use cap_std::fs::Dir;

use super::naming::{Names, Rules, os_name};
use crate::{
    failpoints,
    fs::durable,
    io_error::{blames_the_name, is_shortage},
};

/// Every kind of name at once that Windows refuses: a device, characters, a control character, a dot at the end.
pub(super) const WINDOWS: &[u8] = b"con.probe <>:\"|?*\\\x01.";
const NOT_UTF8: &[u8] = b"probe \xff";
/// The partials' own names are as long.
const SHORTEST: usize = 99;

/// Asks the file system of `folder`; an error is a shortage, which tells nothing.
pub(super) fn probe(folder: &Dir) -> io::Result<Names> {
    #[cfg(unix)]
    let told = rustix::fs::fstatvfs(folder).map_or(0, |stat| stat.f_namemax);
    #[cfg(not(unix))]
    let told = 0;
    let mut short = None;
    let names = names(told, |name| match is_refused(folder, &os_name(name)) {
        Ok(refused) => refused,
        Err(error) => {
            short = Some(error);
            false
        }
    });
    short.map_or(Ok(names), Err)
}

/// `told`: how long a name may be, as the file system says.
fn names(told: u64, mut refuses: impl FnMut(&[u8]) -> bool) -> Names {
    let mut names = Names::HERE;
    if failpoints::mutant("R6-dialect") {
        return names;
    }
    if names.rules == Rules::Bytes {
        names.rules = match (refuses(WINDOWS), refuses(NOT_UTF8)) {
            (true, _) => Rules::Windows,
            (_, true) => Rules::Utf8,
            _ => Rules::Bytes,
        };
    }
    if let Ok(told @ SHORTEST..) = usize::try_from(told) {
        names.longest = names.longest.min(told);
    }
    names.longest = longest(names.longest, |length| refuses(&vec![b'n'; length]));
    names
}

/// The greatest length up to `most` that is not refused.
fn longest(most: usize, mut refuses: impl FnMut(usize) -> bool) -> usize {
    let (mut good, mut bad) = (SHORTEST, most + 1);
    if !refuses(most) {
        return most;
    }
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        match refuses(middle) {
            true => bad = middle,
            false => good = middle,
        }
    }
    good
}

/// Any other error, a full disk say, is not the name's fault.
fn is_refused(folder: &Dir, name: &OsStr) -> io::Result<bool> {
    let made = durable::create_private(folder, name);
    match made {
        Ok(_) => {
            let _ = durable::unlink(folder, name); // else the next start does
            Ok(false)
        }
        Err(e) if is_shortage(&e) => Err(e),
        Err(e) => Ok(e.kind() != io::ErrorKind::AlreadyExists && blames_the_name(&e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn what_a_file_system_refuses_is_known() {
        let ntfs = |name: &[u8]| name.contains(&b':') || name.ends_with(b".") || name.starts_with(b"con.");
        let utf8 = |name: &[u8]| std::str::from_utf8(name).is_err();
        let encrypted = |name: &[u8]| name.len() > 176;
        let names = |rules, longest| Names { rules, longest };
        assert_eq!(super::names(255, ntfs), names(Rules::Windows, 255));
        assert_eq!(super::names(1530, utf8), names(Rules::Utf8, 255));
        assert_eq!(super::names(255, encrypted), names(Rules::Bytes, 176));
        assert_eq!(super::names(143, |_| false), names(Rules::Bytes, 143));
        assert_eq!(super::names(0, |_| false), Names::HERE);
    }

    #[test]
    fn the_longest_name_is_found() {
        for limit in [99, 100, 143, 254, 255] {
            assert_eq!(longest(255, |length| length > limit), limit);
        }
        assert_eq!(longest(255, |_| true), SHORTEST);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_disk_of_this_system_takes_any_name_and_keeps_nothing_of_the_question() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_ambient_dir(temp.path(), cap_std::ambient_authority()).unwrap();
        let on = crate::fs::file_system::FileSystem::of(&durable::sync_handle(&dir).unwrap()).unwrap();
        if !on.sees_writers || !on.lasting_inodes {
            failpoints::skip(&format!("the temporary folder is on {}", on.name));
            return;
        }
        assert_eq!(probe(&dir).unwrap(), Names::HERE);
        assert_eq!(temp.path().read_dir().unwrap().count(), 0);
    }
}
