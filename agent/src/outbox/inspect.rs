//! One inspection of a file: opened without waiting and without following, leased, its version read; and step S1, which
//! makes what was seen durable before it is queued.

use std::{
    fs::File,
    io,
    time::{Duration, SystemTime},
};

use cap_std::fs::Dir;
use dropwire_protocol::RemotePath;

use super::stability::Observation;
use crate::{
    failpoints,
    fs::{
        confined::{self, Parents},
        durable,
        lease::{self, Inspected, Lease},
        own_files,
        unsent::{self, Why},
    },
    io_error::{self, Meaning, Wait},
    owner::Claimed,
};

/// Above this many, one sync of the file system replaces a sync for each file.
const SYNC_EACH: usize = 8;
/// How many times `quiet` an unfinished download beside a file holds it up.
const DOWNLOAD_FACTOR: u32 = 15;
/// How long a file rests that only may be one that rsync has not finished.
pub(super) const PERHAPS_UNFINISHED: Duration = Duration::from_secs(600);

/// What lies under a path.
#[derive(Debug)]
pub(super) enum Inspection {
    /// A regular file; `file` is what was inspected.
    File {
        observation: Observation,
        file: Option<File>,
        /// See [`crate::fs::file_system::OTHERS`].
        of_others: bool,
    },
    /// A folder: to be scanned.
    Folder,
    /// A folder that is one delivery; paths in it that are left out, and why.
    Whole {
        observation: Observation,
        left_out: Vec<(RemotePath, &'static str)>,
    },
    /// Kept back by this; `why` in few words.
    Held { why: &'static str, reason: String },
    /// It waits for its marker; the reason says so. The marker's coming is an event, and scans look again.
    Unmarked(String),
    /// Nothing (any more).
    Nothing,
    /// It cannot be sent, for this reason: no regular file, or unreadable.
    Refused(String),
    /// A folder on the way to it is not this outbox's to send from.
    Claimed {
        /// The folder's path.
        at: Vec<u8>,
        reason: String,
    },
}

/// What an outbox's config says of readiness.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) quiet: Duration,
    /// What was delivered stays.
    pub(super) keep: bool,
    /// What a marker's name adds to its file's.
    pub(super) marker: Option<String>,
}

/// Inspects `path`. Blocks only for the disk.
pub(super) fn inspect(parents: &mut Parents, path: &RemotePath, rules: &Rules) -> Inspection {
    match try_look(parents, path, rules) {
        Ok(seen) => seen,
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Inspection::File {
            observation: Observation::Writer, // somebody holds a write lease
            file: None,
            of_others: false,
        },
        Err(e) if confined::is_absent(&e) => Inspection::Nothing,
        Err(e) => unread(&e),
    }
}

/// What follows from an error that says nothing of whether it is there.
pub(super) fn unread(error: &io::Error) -> Inspection {
    if let Some(Claimed { at, reason }) = Claimed::of(error) {
        return Inspection::Claimed {
            at: at.clone(),
            reason: reason.clone(),
        };
    }
    let reason = |what: &str| format!("it cannot be read{what}: {error}");
    match passing(error) {
        Some(why) => Inspection::Held {
            why,
            reason: reason(" now"),
        },
        None => Inspection::Refused(reason("")),
    }
}

/// Why something could not be asked or done now, where that passes by itself: nothing is wrong with what it was asked
/// of, and many others meet the same. Who may read it is for people to change.
pub(super) fn passing(error: &io::Error) -> Option<&'static str> {
    match io_error::meaning(error) {
        _ if failpoints::mutant("S1-unread") => None,
        Meaning::NotNow(Wait::Shortage) => Some("this machine is short of memory or open files"),
        Meaning::NotNow(Wait::Busy) => Some("somebody else uses it"),
        Meaning::NotNow(Wait::Device | Wait::Space) => Some("its disk does not answer as it should"),
        Meaning::NotNow(Wait::Access) | Meaning::Lost | Meaning::Never | Meaning::NotOurs => None,
    }
}

fn try_look(parents: &mut Parents, path: &RemotePath, rules: &Rules) -> io::Result<Inspection> {
    let folder = parents.of(path)?;
    let name = confined::os_str(path.file_name())?;
    let meta = folder.symlink_metadata(name)?;
    let kind = meta.file_type();
    if kind.is_dir() {
        return Ok(Inspection::Folder);
    }
    if !kind.is_file() {
        return Ok(Inspection::Refused(no_file(kind).into()));
    }
    if own_files::holds(&meta)? {
        return Ok(Inspection::Refused(own_files::REASON.into()));
    }
    if let Some(suffix) = &rules.marker {
        let name = path.file_name();
        if crate::fs::marker::stem(name, suffix).is_some() {
            return Ok(match crate::fs::marker::is_one(&meta) {
                true => Inspection::Nothing,
                false => Inspection::Refused(crate::fs::marker::HAS_BYTES.into()),
            });
        }
        if !crate::fs::marker::is_there(folder, name, suffix) {
            return Ok(Inspection::Unmarked(crate::fs::marker::missing(name, suffix)));
        }
    }
    if let Some(suffix) = beside(folder, path.file_name(), Why::InPlace) {
        return Ok(Inspection::Held {
            why: "a download of it has not finished",
            reason: format!("a download of it has not finished: its file {suffix} is beside it"),
        });
    }
    let file = confined::open_seen_file(folder, name, &meta)?;
    let inspected = lease::inspect(&file)?;
    let Some(inspected) = inspected.filter(|inspected| inspected.lease.as_ref().is_none_or(Lease::whole))
    else {
        return Ok(Inspection::File {
            observation: Observation::Writer,
            file: None,
            of_others: false,
        });
    };
    let version = inspected.version;
    let (rest, why) = rest(folder, path.file_name(), &inspected, rules);
    Ok(Inspection::File {
        observation: Observation::Still { version, rest, why },
        of_others: is_unasked(&inspected) && !is_ours(&meta),
        file: Some(file),
    })
}

/// The kernel knows who writes to it, but did not tell.
fn is_unasked(inspected: &Inspected) -> bool {
    inspected.lease.is_none() && inspected.on.sees_writers && !failpoints::mutant("S1-others")
}

/// Is it this user's?
fn is_ours(meta: &cap_std::fs::Metadata) -> bool {
    #[cfg(unix)]
    return cap_std::fs::MetadataExt::uid(meta) == rustix::process::geteuid().as_raw();
    #[cfg(not(unix))]
    {
        let _ = meta;
        true
    }
}

/// How long it has to rest although nobody has it open, and the reason.
fn rest(folder: &Dir, name: &[u8], inspected: &Inspected, rules: &Rules) -> (Duration, &'static str) {
    let (quiet, version) = (rules.quiet, &inspected.version);
    let step = version.clock_step();
    let least = match inspected.lease {
        // What is written within the step would pass for this version. Where a delivered file leaves, its bytes are
        // compared at the end; whole seconds are too long to count on that.
        Some(_)
            if (rules.keep || version.has_coarse_clock())
                && version.is_fresh(SystemTime::now())
                && !failpoints::mutant("S1-step") =>
        {
            step
        }
        Some(_) => Duration::ZERO,
        None => step.max(inspected.on.least_rest()),
    };
    let (rest, why) = if rules.marker.is_some() {
        (Duration::ZERO, "its marker is there")
    } else if beside(folder, name, Why::Download).is_some() {
        (
            quiet * DOWNLOAD_FACTOR,
            "an unfinished download of that name lies beside it",
        )
    } else if unsent::is_rsync_temporary(name).is_some() {
        (
            quiet.max(PERHAPS_UNFINISHED),
            "it may be one that rsync has not finished, and has to rest for 10 minutes",
        )
    } else if version.size == 0 {
        (quiet, "it is empty, and has to rest first")
    } else if name.first() == Some(&b'.') {
        (quiet, "it is hidden, and has to rest first")
    } else if inspected.lease.is_none() {
        (quiet, "it has to rest first: nobody can say here who has it open")
    } else {
        (Duration::ZERO, "it is ready, unless it is changed in this moment")
    };
    (rest.max(least), why)
}

/// Why what is neither file nor folder is not sent.
pub(super) fn no_file(kind: cap_std::fs::FileType) -> &'static str {
    #[cfg(unix)]
    {
        use cap_std::fs::FileTypeExt;
        if kind.is_fifo() {
            return "it is a FIFO, not a regular file";
        }
        if kind.is_socket() {
            return "it is a socket, not a regular file";
        }
        if kind.is_block_device() || kind.is_char_device() {
            return "it is a device, not a regular file";
        }
    }
    if kind.is_symlink() {
        "it is a symbolic link, which is not followed, and not a regular file"
    } else {
        "it is not a regular file"
    }
}

/// What is added to the file's name for one of this kind that lies beside it.
fn beside(folder: &Dir, name: &[u8], of: Why) -> Option<&'static str> {
    unsent::suffixes(&[of]).find(|suffix| {
        let beside = [name, suffix.as_bytes()].concat();
        confined::os_str(&beside).is_ok_and(|beside| folder.symlink_metadata(beside).is_ok())
    })
}

/// S1: after Ok the bytes of the version that was read before survive a power cut; an error for each that may not.
pub(super) fn sync(files: &[File]) -> Vec<io::Result<()>> {
    if files.len() > SYNC_EACH && sync_together(files).is_ok() {
        return files.iter().map(|_| Ok(())).collect();
    }
    let sync = |file| failpoints::step("S1-source", || durable::sync_file(file));
    files.iter().map(sync).collect()
}

/// The first file stands for the file system (a folder's handle may be one that only names it).
fn sync_together(files: &[File]) -> io::Result<()> {
    match files.first() {
        Some(sync_handle)
            if durable::supports_syncfs(sync_handle) && one_file_system(sync_handle, files)? =>
        {
            failpoints::step("S1-syncfs", || durable::sync_filesystem(sync_handle))
        }
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Another file system may be mounted on a folder below the outbox.
#[cfg(unix)]
fn one_file_system(sync_handle: &File, files: &[File]) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let device = sync_handle.metadata()?.dev();
    for file in files {
        if file.metadata()?.dev() != device {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(not(unix))]
fn one_file_system(_: &File, _: &[File]) -> io::Result<bool> {
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::fs::{
        file_system::{self, FileSystem, TRUSTED},
        version::Version,
    };

    const QUIET: Duration = Duration::from_secs(2);
    const RULES: Rules = Rules {
        quiet: QUIET,
        keep: false,
        marker: None,
    };

    fn at(root: &std::path::Path, path: &str) -> Inspection {
        let dir = confined::root(root).unwrap();
        inspect(
            &mut Parents::new(dir.try_clone().unwrap()),
            &RemotePath::parse(path.as_bytes()).unwrap(),
            &RULES,
        )
    }

    fn rest_of(seen: Inspection) -> Duration {
        match seen {
            Inspection::File {
                observation: Observation::Still { rest, .. },
                ..
            } => rest,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn closed_files_are_ready_and_some_rest_first() {
        let _trusted = file_system::pretend(TRUSTED);
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        for name in [
            "file",
            ".hidden",
            ".env.sample",
            "x.iso",
            "x.iso.part",
            "y",
            "y.crdownload",
            "z",
            "z.aria2",
        ] {
            fs::write(root.join(name), "bytes").unwrap();
        }
        fs::write(root.join("empty"), "").unwrap();
        crate::fs::version::clock_steps(root);
        for (name, rest) in [
            ("empty", QUIET),
            (".hidden", QUIET),
            (".env.sample", PERHAPS_UNFINISHED),
            ("x.iso", QUIET * 15),
            ("y", QUIET * 15),
        ] {
            assert_eq!(rest_of(at(root, name)), rest, "{name}");
        }
        #[cfg(target_os = "linux")]
        assert_eq!(rest_of(at(root, "file")), Duration::ZERO);
        assert!(matches!(at(root, "z"), Inspection::Held { .. }));
        assert!(matches!(at(root, "missing"), Inspection::Nothing));
        assert!(matches!(at(root, "file/below"), Inspection::Nothing));
    }

    #[test]
    fn files_whose_writers_the_kernel_does_not_tell_are_known() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("file"), "bytes").unwrap();
        let file = File::open(temp.path().join("file")).unwrap();
        let inspected = |on| Inspected {
            lease: None,
            version: Version::read(&file).unwrap().0,
            on,
        };
        assert!(is_unasked(&inspected(TRUSTED)));
        assert!(
            !is_unasked(&inspected(FileSystem::default())),
            "told of the file system"
        );
    }

    #[cfg(unix)]
    #[test]
    fn what_passes_by_itself_is_looked_at_again() {
        let seen = |code| unread(&io::Error::from_raw_os_error(code));
        for code in [
            libc::EMFILE,
            libc::ENOMEM,
            libc::EBUSY,
            libc::EIO,
            libc::ENOTCONN,
            libc::ETIMEDOUT,
        ] {
            assert!(matches!(seen(code), Inspection::Held { .. }), "{code}");
        }
        for code in [libc::EACCES, libc::ENAMETOOLONG, libc::ENOTSUP] {
            assert!(matches!(seen(code), Inspection::Refused(_)), "{code}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_may_be_changed_unseen_rests_past_the_clocks_step() {
        let _trusted = file_system::pretend(TRUSTED);
        let temp = tempfile::tempdir().unwrap();
        let version = |age_ms: u64, coarse: bool| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
            let changed = now - Duration::from_millis(age_ms);
            let fraction = if coarse { 0 } else { changed.subsec_nanos().max(1) };
            Version {
                inode: 1,
                birth_ns: 0,
                size: 1,
                mtime_ns: 0,
                ctime_ns: changed.as_secs() as i64 * 1_000_000_000 + i64::from(fraction),
                folder: false,
            }
        };
        let rest_of = |version: Version, keep: bool| {
            fs::write(temp.path().join("file"), "bytes").unwrap();
            let mut inspected = lease::inspect(&File::open(temp.path().join("file")).unwrap())
                .unwrap()
                .unwrap();
            assert!(inspected.lease.is_some());
            inspected.version = version;
            let folder = confined::root(temp.path()).unwrap();
            rest(&folder, b"file", &inspected, &Rules { keep, ..RULES }).0
        };
        let (second, none) = (Duration::from_secs(2), Duration::ZERO);
        assert_eq!(rest_of(version(0, true), false), second);
        assert_eq!(rest_of(version(5000, true), false), none);
        assert_eq!(rest_of(version(5000, false), true), none);
        assert_eq!(rest_of(version(0, false), false), none, "compared when it leaves");
        // Unless the machine is so busy that the step is over by then.
        let step = Duration::from_millis(20);
        assert!((0..1000).any(|_| rest_of(version(0, false), true) == step));
    }

    /// As on FUSE: the kernel grants a lease while somebody writes at the other side.
    #[test]
    fn where_writers_cannot_be_seen_a_lease_says_nothing() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("file"), "bytes").unwrap();
        let _untrusted = file_system::pretend(FileSystem::default());
        assert!(
            rest_of(at(temp.path(), "file")) > QUIET,
            "past the attribute caches"
        );
        let seen = at(temp.path(), "file");
        assert!(
            matches!(seen, Inspection::File { observation: Observation::Still { version, .. }, .. } if version.inode == 0)
        );
        let _writer = File::options()
            .append(true)
            .open(temp.path().join("file"))
            .unwrap();
        if cfg!(target_os = "linux") {
            let seen = at(temp.path(), "file");
            assert!(
                matches!(
                    seen,
                    Inspection::File {
                        observation: Observation::Writer,
                        ..
                    }
                ),
                "on this side they are seen"
            );
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_without_its_marker_is_not_seen() {
        let _trusted = file_system::pretend(TRUSTED);
        let temp = tempfile::tempdir().unwrap();
        let dir = confined::root(temp.path()).unwrap();
        let marker = Some(".ok".into());
        let rules = Rules { marker, ..RULES };
        let at = |path: &str| {
            inspect(
                &mut Parents::new(dir.try_clone().unwrap()),
                &RemotePath::parse(path.as_bytes()).unwrap(),
                &rules,
            )
        };
        fs::create_dir(temp.path().join("sub.ok")).unwrap();
        fs::write(temp.path().join("file"), "").unwrap();
        crate::fs::version::clock_steps(temp.path());
        assert!(matches!(at("file"), Inspection::Unmarked(why) if why.ends_with("file.ok")));
        let writer = File::create(temp.path().join("file.ok")).unwrap();
        assert_eq!(rest_of(at("file")), Duration::ZERO, "empty ones too");
        drop(writer);
        assert!(matches!(at("file.ok"), Inspection::Nothing));
        assert!(matches!(at("sub.ok"), Inspection::Folder));
        fs::write(temp.path().join("other.ok"), "bytes").unwrap();
        assert!(matches!(at("other.ok"), Inspection::Refused(why) if why.contains("not empty")));
        let _writer = File::options()
            .append(true)
            .open(temp.path().join("file"))
            .unwrap();
        let Inspection::File { observation, .. } = at("file") else {
            panic!("it is marked")
        };
        assert_eq!(observation, Observation::Writer, "whatever the marker says");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_writer_is_seen() {
        let temp = tempfile::tempdir().unwrap();
        let writer = File::create(temp.path().join("file")).unwrap();
        let is_writer = |seen| {
            matches!(
                seen,
                Inspection::File {
                    observation: Observation::Writer,
                    ..
                }
            )
        };
        assert!(is_writer(at(temp.path(), "file")));
        drop(writer);
        assert!(!is_writer(at(temp.path(), "file")));
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_skipped_without_waiting() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        fs::write(root.join("file"), "bytes").unwrap();
        std::os::unix::fs::symlink("file", root.join("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        let fifo = std::ffi::CString::new(root.join("fifo").into_os_string().into_encoded_bytes()).unwrap();
        // SAFETY: a NUL-terminated path that outlives the call.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
        fs::create_dir(root.join("sub")).unwrap();
        std::os::unix::fs::symlink("sub", root.join("sublink")).unwrap();
        fs::write(root.join("sub/file"), "bytes").unwrap();
        for (name, kind) in [
            ("link", "link"),
            ("socket", "socket"),
            ("fifo", "FIFO"),
            ("sublink", "link"),
        ] {
            assert!(
                matches!(at(root, name), Inspection::Refused(why) if why.contains(kind)),
                "{name}"
            );
        }
        assert!(matches!(at(root, "sublink/file"), Inspection::Nothing));
        let devices = confined::root(std::path::Path::new("/dev")).unwrap();
        let null = inspect(
            &mut Parents::new(devices),
            &RemotePath::parse(b"null").unwrap(),
            &RULES,
        );
        assert!(matches!(null, Inspection::Refused(why) if why.contains("device")));
        assert!(matches!(at(root, "sub"), Inspection::Folder));
    }

    #[test]
    fn many_and_few_are_synced() {
        let temp = tempfile::tempdir().unwrap();
        for count in [1, 20] {
            let files: Vec<File> = (0..count)
                .map(|i| File::create(temp.path().join(i.to_string())).unwrap())
                .collect();
            let synced = sync(&files);
            assert_eq!(synced.len(), count);
            assert!(synced.iter().all(Result::is_ok));
            #[cfg(target_os = "linux")]
            {
                use durable::trace::{self, Call};
                let calls = trace::of(temp.path());
                let together = |c: &Call| matches!(c, Call::Sync("syncfs", _));
                let each = (0..count).all(|i| calls.contains(&trace::sync(&i.to_string())));
                assert!(each || calls.iter().any(together), "{calls:#?}");
            }
        }
    }
}
