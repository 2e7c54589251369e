//! Names that are never sent: files that other programs have not finished, what systems litter folders with, and folders
//! that systems keep for themselves. The one list for single files and for whole folders.

use std::{ffi::OsStr, path::Path, sync::LazyLock};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::failpoints;

/// Why a name is never sent, and so what becomes of it inside a folder that is sent whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// Some program will rename it when it is complete: ignored until then, and a whole folder waits for it.
    Unfinished,
    /// Unfinished, and the file that it becomes may be beside it already, empty or of an earlier download.
    Download,
    /// Stands beside a file that is already written to under its final name, as long as that file is not complete.
    InPlace,
    /// A system makes it again at any time, or has deleted it already: not part of a whole folder, and goes with it.
    Litter,
    /// A system's own folder (a file of that name is any file): never entered; left out of a whole folder, which is
    /// then archived rather than deleted.
    SystemFolder,
    /// Belongs to the file beside it; part of a whole folder like any other file.
    Companion,
}

impl Why {
    /// Does a whole folder wait for it?
    pub fn is_unfinished(self) -> bool {
        matches!(self, Self::Unfinished | Self::Download | Self::InPlace)
    }
}

/// Patterns of names; of those that match, the first is told. Meant whatever their case: Windows programs write capitals.
pub const PATTERNS: &[(&str, Why)] = &[
    // Browsers, download managers and torrent clients.
    ("*.part", Why::Download),
    ("*.partial", Why::Unfinished),
    ("*.crdownload", Why::Download),
    ("*.download", Why::Unfinished),
    ("*.opdownload", Why::Unfinished),
    ("*.aria2", Why::InPlace),
    ("*.!qB", Why::Unfinished),
    ("*.!ut", Why::Unfinished),
    ("*.!bt", Why::Unfinished),
    ("*.bc!", Why::Unfinished),
    ("*.!sync", Why::Unfinished),
    ("*.fdmdownload", Why::Unfinished),
    ("*.dtapart", Why::Unfinished),
    ("*.xltd", Why::Unfinished),
    // File transfer: WinSCP, ProFTPD, lftp, Nextcloud, Pure-FTPd, rsync.
    ("*.filepart", Why::Unfinished),
    (".in.*", Why::Unfinished),
    (".*.~*", Why::Unfinished),
    (".pureftpd-upload.*", Why::Unfinished),
    (".rsync-partial", Why::Unfinished),
    // Editors and desktops that write beside a file and rename.
    ("*.tmp", Why::Unfinished),
    ("*.swp", Why::Unfinished),
    (".*.sw[a-p]", Why::Unfinished),
    ("*.kate-swp", Why::Unfinished),
    ("#*#", Why::Unfinished),
    ("*.crswap", Why::Unfinished),
    (".goutputstream-*", Why::Unfinished),
    ("*.sb-????????-??????", Why::Unfinished),
    ("*~", Why::Unfinished),
    ("~$*", Why::Unfinished),
    (".~lock.*", Why::Unfinished),
    (".~tmp~", Why::Unfinished),
    (".~*", Why::Unfinished),
    (".syncthing.*.tmp", Why::Unfinished),
    ("*.ffs_tmp", Why::Unfinished),
    // Files that were deleted while a program still had them open.
    (
        ".nfs[0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f]*",
        Why::Litter,
    ),
    (".fuse_hidden*", Why::Litter),
    (".smbdelete*", Why::Litter),
    // What file managers leave in each folder that they show.
    (".DS_Store", Why::Litter),
    ("Thumbs.db", Why::Litter),
    ("ehthumbs.db", Why::Litter),
    ("desktop.ini", Why::Litter),
    // What macOS keeps of a file where the file system cannot.
    ("._*", Why::Companion),
    // Trash.
    (".Trash", Why::SystemFolder),
    (".Trash-*", Why::SystemFolder),
    (".Trashes", Why::SystemFolder),
    ("$RECYCLE.BIN", Why::SystemFolder),
    ("#recycle", Why::SystemFolder),
    ("@Recycle", Why::SystemFolder),
    ("RECYCLER", Why::SystemFolder),
    (".recycle", Why::SystemFolder),
    ("Network Trash Folder", Why::SystemFolder),
    // Snapshots of everything that is there.
    (".snapshots", Why::SystemFolder),
    (".snapshot", Why::SystemFolder),
    ("~snapshot", Why::SystemFolder),
    ("#snapshot", Why::SystemFolder),
    ("@Recently-Snapshot", Why::SystemFolder),
    (".zfs", Why::SystemFolder),
    // The rest.
    ("lost+found", Why::SystemFolder),
    ("@eaDir", Why::SystemFolder),
    ("@tmp", Why::SystemFolder),
    (".@__thumb", Why::SystemFolder),
    (".stfolder", Why::SystemFolder),
    (".dropbox.cache", Why::SystemFolder),
    (".AppleDouble", Why::SystemFolder),
    ("System Volume Information", Why::SystemFolder),
    (".Spotlight-V100", Why::SystemFolder),
    (".DocumentRevisions-V100", Why::SystemFolder),
    (".fseventsd", Why::SystemFolder),
    (".TemporaryItems", Why::SystemFolder),
    (".stversions", Why::SystemFolder),
];

/// How the names that [`is_rsync_temporary`] knows are told.
pub const RSYNC: &str = ".*.XXXXXX";

/// How sure it is that a name is one of rsync's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Temporary {
    /// rsync's: ignored until renamed.
    Surely,
    /// May be a person's own (`.env.sample`): sent once it has rested for long.
    Perhaps,
}

/// Is it a name under which rsync receives a file: hidden, with six letters and digits at random behind the last dot?
///
/// People write words and numbers: `.env.sample`, `.list.sha256`, `.app.Config`, `.report.2024Q1`. One in twenty of
/// rsync's looks so too: without a capital letter, without a small one, or with a capital at its beginning alone.
pub fn is_rsync_temporary(name: &[u8]) -> Option<Temporary> {
    let visible = name.strip_prefix(b".")?;
    let dot = visible.iter().rposition(|b| *b == b'.').filter(|at| *at > 0)?;
    let suffix = &visible[dot + 1..];
    if suffix.len() != 6 || !suffix.iter().all(u8::is_ascii_alphanumeric) {
        return None;
    }
    let has = |part: &[u8], is: fn(&u8) -> bool| part.iter().any(is);
    let mixes = has(&suffix[1..], u8::is_ascii_uppercase) && has(suffix, u8::is_ascii_lowercase);
    Some(match mixes {
        true => Temporary::Surely,
        false => Temporary::Perhaps,
    })
}

/// What is added to a file's name for those of [`PATTERNS`] that are of one of these kinds.
pub fn suffixes(of: &[Why]) -> impl Iterator<Item = &'static str> {
    let is_meant = move |(_, why): &&(&str, Why)| of.contains(why);
    let added = |(pattern, _): &(&'static str, Why)| pattern.strip_prefix('*');
    PATTERNS.iter().filter(is_meant).filter_map(added)
}

/// The pattern that the name of a folder, or of a file, matches, and why it is never sent.
pub fn matching(name: &OsStr, is_folder: bool) -> Option<(&'static str, Why)> {
    let patterns = LazyLock::force(&COMPILED).matches(Path::new(name)).into_iter();
    let patterns = patterns.filter_map(|at| Some((at, PATTERNS.get(at).copied()?)));
    let is_meant = |why| is_folder || why != Why::SystemFolder || failpoints::mutant("S1-system-folder");
    let first = patterns
        .filter(|(_, (_, why))| is_meant(*why))
        .min_by_key(|(at, _)| *at);
    first.map(|(_, pattern)| pattern).or_else(|| {
        let temporary = is_rsync_temporary(name.as_encoded_bytes());
        (temporary == Some(Temporary::Surely)).then_some((RSYNC, Why::Unfinished))
    })
}

static COMPILED: LazyLock<GlobSet> = LazyLock::new(|| {
    let glob = |(pattern, _): &(&str, Why)| {
        GlobBuilder::new(pattern)
            .case_insensitive(!failpoints::mutant("S1-case"))
            .build()
            .expect("our own patterns are sound")
    };
    let mut set = GlobSetBuilder::new();
    PATTERNS.iter().map(glob).for_each(|glob| {
        set.add(glob);
    });
    set.build().expect("our own patterns are sound")
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_is_one() {
        assert_eq!(COMPILED.len(), PATTERNS.len());
    }

    #[test]
    fn names_that_are_no_drop() {
        use Why::*;
        let table: &[(&str, Option<Why>)] = &[
            ("up.pdf.filepart", Some(Unfinished)),
            (".in.doc.pdf.", Some(Unfinished)),
            (".goutputstream-X7YZ12", Some(Unfinished)),
            (".pureftpd-upload.5f2c.15.1a2b", Some(Unfinished)),
            ("dl.iso.aria2", Some(InPlace)),
            ("movie.mkv.!qB", Some(Unfinished)),
            ("movie.mkv.!ut", Some(Unfinished)),
            ("notes.txt.crswap", Some(Unfinished)),
            ("page.html.opdownload", Some(Unfinished)),
            ("letter.txt.sb-1a2b3c4d-AbCdEf", Some(Unfinished)),
            (".~report.odt", Some(Unfinished)),
            (".nfs000000000001e2f400000001", Some(Litter)),
            (".nfs0000000001", Some(Litter)),
            (".fuse_hidden01", Some(Litter)),
            ("thumbs.db", Some(Litter)),
            ("._photo.jpg", Some(Companion)),
            (".Trash-1000", Some(SystemFolder)),
            (".Trashes", Some(SystemFolder)),
            ("lost+found", Some(SystemFolder)),
            (".snapshots", Some(SystemFolder)),
            ("@eaDir", Some(SystemFolder)),
            ("#recycle", Some(SystemFolder)),
            ("$Recycle.Bin", Some(SystemFolder)),
            ("System Volume Information", Some(SystemFolder)),
            // rsync's, and what only resembles them.
            (".report.pdf.Ab3dE9", Some(Unfinished)),
            (".x.aaaaaZ", Some(Unfinished)),
            ("report.pdf.Ab3dE9", None),
            (".Ab3dE9", None),
            (".config.backup", None),
            (".list.sha256", None),
            (".app.Config", None),
            (".report.2024Q1", None),
            (".db.Backup", None),
            (".report.pdf.~1a2b", Some(Unfinished)),
            (".in.doc.pdf", Some(Unfinished)),
            (".notes.txt.swo", Some(Unfinished)),
            (".notes.txt.kate-swp", Some(Unfinished)),
            ("#notes.txt#", Some(Unfinished)),
            ("movie.swf", None),
            (".NOTES.BACKUP", None),
            (".report.pdf.Ab3dE", None),
            (".report.pdf.Ab3d-9", None),
            // Names that people give.
            ("report.pdf", None),
            (".bashrc", None),
            (".nfsrc", None),
            (".nfs-notes", None),
            ("trash", None),
            ("snapshot", None),
            ("in.doc.pdf", None),
            ("aria2", None),
            ("SCAN.TMP", Some(Unfinished)),
            ("~RF12ab.TMP", Some(Unfinished)),
            ("big.iso.PART", Some(Download)),
            ("big.iso.Partial", Some(Unfinished)),
            ("photos.ffs_tmp", Some(Unfinished)),
            ("movie.mkv.!Sync", Some(Unfinished)),
            ("movie.mkv.fdmdownload", Some(Unfinished)),
            ("movie.mkv.dtapart", Some(Unfinished)),
            ("movie.mkv.xltd", Some(Unfinished)),
            (".recycle", Some(SystemFolder)),
            ("RECYCLER", Some(SystemFolder)),
            ("Network Trash Folder", Some(SystemFolder)),
            (".@__thumb", Some(SystemFolder)),
            ("@tmp", Some(SystemFolder)),
            (".stfolder", Some(SystemFolder)),
            (".dropbox.cache", Some(SystemFolder)),
            ("tmp", None),
            ("recycler's guide", None),
        ];
        for (name, expected) in table {
            let why = |is_folder| matching(OsStr::new(name), is_folder).map(|(_, why)| why);
            assert_eq!(why(true), *expected, "{name}");
            let of_a_file = expected.filter(|why| *why != SystemFolder);
            assert_eq!(why(false), of_a_file, "the file {name}");
        }
        let beside: Vec<_> = suffixes(&[Download, InPlace]).collect();
        assert_eq!(beside, [".part", ".crdownload", ".aria2"]);
        for (name, expected) in [
            (".env.sample", Some(Temporary::Perhaps)),
            (".NOTES.BACKUP", Some(Temporary::Perhaps)),
            (".env.samples", None),
            ("..sample", None),
        ] {
            assert_eq!(is_rsync_temporary(name.as_bytes()), expected, "{name}");
        }
    }
}
