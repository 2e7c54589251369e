//! A partial: the file in `.dropwire/partial` that a transfer is written into, and the re-reading of a resumed one.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cap_fs_ext::{DirExt, FollowSymlinks, MetadataExt, OpenOptionsFollowExt};
use cap_std::fs::{Dir, Metadata, OpenOptions};
use data_encoding::HEXLOWER;
use dropwire_protocol::{AgentId, Kind, Mtime, RunningDigest, TransferId};

use super::{
    inbox_dir::InboxDir, ledger::Checkpoint, rights::Rights, transfer_locks::Key,
    verified_prefixes::VerifiedPrefixes,
};
use crate::{
    failpoints,
    fs::{durable, file_system, remove_tree::remove_tree},
    id,
};

/// Bytes read at once.
const READ: usize = 256 * 1024;

/// The partial's name: sender and transfer.
pub(super) fn file_name(key: Key) -> OsString {
    format!("{}-{}", HEXLOWER.encode(&key.0.0), HEXLOWER.encode(&key.1.0)).into()
}

/// Where a whole folder is unpacked: the folder that gets the final name.
pub(super) fn folder_name(key: Key) -> OsString {
    let mut name = file_name(key);
    name.push(".d");
    name
}

/// What gets the final name.
pub(super) fn staged_name(key: Key, kind: Kind) -> OsString {
    match kind {
        Kind::File => file_name(key),
        Kind::Folder => folder_name(key),
    }
}

/// A new, empty partial, exclusive and private; what an earlier run left under the name goes. The caller knows by
/// the ledger that the transfer is not *placing*.
pub(super) fn create(inbox_dir: &InboxDir, key: Key) -> io::Result<File> {
    create_in(&inbox_dir.partials, &file_name(key), durable::PRIVATE)
}

/// As [`create`], in any of our folders and with other permissions.
pub(super) fn create_in(dir: &Dir, name: &OsStr, mode: u32) -> io::Result<File> {
    match durable::create(dir, name, mode) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            remove_all(dir, name)?;
            durable::create(dir, name, mode)
        }
        created => created,
    }
}

/// The partial as an earlier run left it; None when it is not there (or no plain file).
pub(super) fn open(inbox_dir: &InboxDir, key: Key) -> io::Result<Option<File>> {
    open_in(&inbox_dir.partials, &file_name(key))
}

/// The plain file of this name in `dir`.
pub(super) fn open_in(dir: &Dir, name: &OsStr) -> io::Result<Option<File>> {
    match dir.symlink_metadata(name) {
        Ok(meta) if meta.is_file() => {}
        Ok(_) => return Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).follow(FollowSymlinks::No);
    Ok(Some(dir.open_with(name, &options)?.into_std()))
}

/// A partial to go on with.
pub(super) struct Resumed {
    /// Ends with the resume point.
    pub file: File,
    /// Nobody touched it since this run verified every byte of it.
    pub sealed: bool,
    /// Over all of it, as the ledger has it.
    pub digest: RunningDigest,
    /// Up to the resume point, ordered by offset.
    pub checkpoints: Vec<Checkpoint>,
}

/// The partial cut to its last checkpoint; None: start over.
pub(super) fn resume(
    inbox_dir: &InboxDir,
    verified_prefixes: &VerifiedPrefixes,
    key: Key,
    checkpoints: Vec<Checkpoint>,
) -> io::Result<Option<Resumed>> {
    let (Some(file), Some(last)) = (open(inbox_dir, key)?, checkpoints.last()) else {
        return Ok(None);
    };
    let sealed = verified_prefixes.take(key, &file);
    if file.metadata()?.len() < last.offset && !failpoints::mutant("R3-short-partial") {
        return Ok(None);
    }
    let digest = match RunningDigest::restore(&last.hash_state, last.offset, last.digest) {
        Some(digest) => digest,
        // The state is of no use (another version's): the bytes are.
        None => good_prefix(&file, &checkpoints, &|| false),
    };
    let checkpoints: Vec<Checkpoint> = checkpoints
        .into_iter()
        .filter(|c| c.offset <= digest.length())
        .collect();
    file.set_len(digest.length())?;
    Ok(Some(Resumed {
        file,
        sealed,
        digest,
        checkpoints,
    }))
}

/// What is there to get the final name; None: nothing.
pub(super) fn look(inbox_dir: &InboxDir, key: Key, kind: Kind) -> io::Result<Option<Metadata>> {
    match inbox_dir.partials.symlink_metadata(staged_name(key, kind)) {
        Ok(meta) => Ok(Some(meta)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// What a whole folder was unpacked to.
pub(super) fn folder(inbox_dir: &InboxDir, key: Key) -> io::Result<Dir> {
    inbox_dir.partials.open_dir_nofollow(folder_name(key))
}

/// Has `file`, which is open, its partial's name still? Whoever cleans up, imports or scans for viruses may take it.
pub(super) fn is_there(inbox_dir: &InboxDir, key: Key, file: &File) -> io::Result<bool> {
    let inode = inode(&file.metadata()?);
    let found = look(inbox_dir, key, Kind::File)?;
    Ok(found.is_some_and(|meta| !inbox_dir.lasting_inodes || is_inode(&meta, inode)))
}

/// Removes a partial whose row is not *placing*. Not synced: come back after a crash, it is litter.
pub(super) fn remove(inbox_dir: &InboxDir, key: Key) {
    let folder = remove_folder(inbox_dir, key);
    match folder.and(durable::unlink(&inbox_dir.partials, &file_name(key))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let (peer, job) = key;
            tracing::warn!(peer = %id::format(peer), %job, %error, "a partial could not be removed");
        }
        _ => {}
    }
}

/// Removes what a whole folder was unpacked to, as far as that came; only while its row is not *placing*.
pub(super) fn remove_folder(inbox_dir: &InboxDir, key: Key) -> io::Result<()> {
    match remove_tree(&inbox_dir.partials, &folder_name(key)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Removes what a copy of got the final name.
pub(super) fn remove_staged(inbox_dir: &InboxDir, key: Key, kind: Kind) -> io::Result<()> {
    match kind {
        Kind::File => durable::unlink(&inbox_dir.partials, &file_name(key)),
        Kind::Folder => remove_folder(inbox_dir, key),
    }
}

/// Removes a placed folder's stream, which is of no use any more. Not synced: come back after a crash, it is litter.
pub(super) fn remove_stream(inbox_dir: &InboxDir, key: Key, kind: Kind) {
    if kind == Kind::Folder {
        let _ = durable::unlink(&inbox_dir.partials, &file_name(key)); // else the next start does
    }
}

/// What lies among the partials.
pub(super) fn names(inbox_dir: &InboxDir) -> io::Result<Vec<OsString>> {
    let entries = inbox_dir.partials.entries()?;
    entries.map(|entry| Ok(entry?.file_name())).collect()
}

/// Whose partial, stream or unpacked folder has this name; None: nobody's.
pub(super) fn key_of(name: &OsStr) -> Option<Key> {
    let name = name.to_str()?;
    let (peer, job) = name.strip_suffix(".d").unwrap_or(name).split_once('-')?;
    let bytes = |hex: &str| HEXLOWER.decode(hex.as_bytes()).ok();
    let (peer, job) = (bytes(peer)?.try_into().ok()?, bytes(job)?.try_into().ok()?);
    Some((AgentId(peer), TransferId(job)))
}

/// Removes what has this name in `dir`, whatever it is, if there is anything.
pub(super) fn remove_all(dir: &Dir, name: &OsStr) -> io::Result<()> {
    let removed = dir.symlink_metadata(name).and_then(|meta| match meta.is_dir() {
        true => remove_tree(dir, name),
        false => durable::unlink(dir, name),
    });
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// The first half of R5: the file's permissions and times become those it will be seen with. Failing at that is no
/// reason to keep the file back. `meta` is what is known of the file.
pub(super) fn set_metadata(file: &File, meta: &fs::Metadata, rights: &Rights, mtime: Mtime) {
    rights.give(file, meta);
    set_mtime(file, mtime);
}

/// Failing at that is no reason for anything.
pub(super) fn set_mtime(file: &File, mtime: Mtime) {
    let second = Duration::from_secs(mtime.seconds.unsigned_abs());
    let whole = if mtime.seconds < 0 {
        UNIX_EPOCH.checked_sub(second)
    } else {
        UNIX_EPOCH.checked_add(second)
    };
    let nanos = Duration::from_nanos(mtime.nanos.min(999_999_999).into());
    let time: Option<SystemTime> = whole.and_then(|t| t.checked_add(nanos));
    if let Some(time) = time {
        let _ = file_system::set_modified(file, time);
    }
}

/// Bytes that a partial takes of its disk. Its length does not say, where it has that from the beginning; and where it
/// has not, a file system need not know the blocks.
pub(super) fn occupied(inbox_dir: &InboxDir, meta: &Metadata) -> u64 {
    #[cfg(unix)]
    if inbox_dir.keeps_holes {
        const SECTOR: u64 = 512;
        return cap_std::fs::MetadataExt::blocks(meta).saturating_mul(SECTOR);
    }
    #[cfg(not(unix))]
    let _ = inbox_dir;
    meta.len()
}

/// The inode (0 where the system has none), by which a partial is known again.
pub(super) fn inode(meta: &fs::Metadata) -> u64 {
    #[cfg(unix)]
    return std::os::unix::fs::MetadataExt::ino(meta);
    #[cfg(not(unix))]
    {
        let _ = meta;
        0
    }
}

/// Whether the metadata found under the partial's name are of the file with this inode.
pub(super) fn is_inode(meta: &Metadata, inode: u64) -> bool {
    inode == 0 || meta.ino() == inode
}

/// Reads the bytes before a resume point once more, while the rest comes in.
pub(super) struct Reread {
    thread: Option<JoinHandle<RunningDigest>>,
    done: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    until: u64,
}

/// What the re-reading found.
pub(super) enum Verdict {
    /// Every byte is as it was hashed then.
    Whole,
    /// Only so far: the digest of the longest checkpoint that re-reads right.
    Good(RunningDigest),
}

impl Reread {
    /// Begins; `checkpoints` are ordered by offset, the last one is the resume point. `file` is opened for this alone;
    /// `wake` is called once [`Reread::is_done`].
    pub(super) fn start(
        file: File,
        checkpoints: Vec<Checkpoint>,
        wake: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicBool::new(false));
        let until = checkpoints.last().map_or(0, |c| c.offset);
        let thread = thread::Builder::new().name("inbox-reread".into()).spawn({
            let (stop, done) = (stop.clone(), done.clone());
            move || {
                let good = good_prefix(&file, &checkpoints, &|| stop.load(Ordering::Relaxed));
                done.store(true, Ordering::Release);
                wake();
                good
            }
        })?;
        Ok(Self {
            thread: Some(thread),
            done,
            stop,
            until,
        })
    }

    /// Would [`Reread::verdict`] answer at once?
    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// Waits for the end.
    pub(super) fn verdict(mut self) -> Verdict {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(good)) if good.length() == self.until => Verdict::Whole,
            Some(Ok(good)) => Verdict::Good(good),
            Some(Err(_)) | None => Verdict::Good(RunningDigest::default()),
        }
    }
}

/// Breaks off, and waits for that.
impl Drop for Reread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The digest over the file up to the last checkpoint that re-reads right, all before it right too. A byte that
/// cannot be read is a wrong one, and so is each after `stops` says so.
pub(super) fn good_prefix(
    file: &File,
    checkpoints: &[Checkpoint],
    stops: &dyn Fn() -> bool,
) -> RunningDigest {
    let mut good = RunningDigest::default();
    let mut digest = RunningDigest::default();
    let mut buffer = vec![0; READ];
    for checkpoint in checkpoints {
        while digest.length() < checkpoint.offset {
            let wanted = (checkpoint.offset - digest.length()).min(READ as u64) as usize;
            match read_at(file, digest.length(), &mut buffer[..wanted]) {
                Ok(n) if n > 0 && !stops() => digest.update(&buffer[..n]),
                _ => return good,
            }
        }
        if digest.value() != checkpoint.digest {
            return good;
        }
        good = digest.clone();
    }
    good
}

/// Reads what is there at `offset`; 0 at the end.
pub(super) fn read_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    #[cfg(unix)]
    {
        loop {
            match std::os::unix::fs::FileExt::read_at(file, buffer, offset) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }
    #[cfg(not(unix))]
    {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = file;
        file.seek(SeekFrom::Start(offset))?;
        file.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receiver::output::write_at;
    use dropwire_protocol::{AgentId, TransferId};

    fn checkpoints(bytes: &[u8], at: &[usize]) -> Vec<Checkpoint> {
        at.iter()
            .map(|&n| {
                let mut digest = RunningDigest::default();
                digest.update(&bytes[..n]);
                Checkpoint {
                    offset: n as u64,
                    digest: digest.value(),
                    hash_state: Vec::new(),
                }
            })
            .collect()
    }

    #[test]
    fn a_reread_finds_the_last_good_checkpoint() {
        let bytes: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
        let points = checkpoints(&bytes, &[300_000, 600_000, 900_000]);
        let table = [
            (None, 900_000),
            (Some(950_000), 900_000),
            (Some(700_000), 600_000),
            (Some(3), 0),
        ];
        for (flipped, good) in table {
            let mut on_disk = bytes.clone();
            if let Some(at) = flipped {
                on_disk[at] ^= 1;
            }
            let file = tempfile::tempfile().unwrap();
            write_at(&file, 0, &on_disk).unwrap();
            let verdict = Reread::start(file, points.clone(), || ()).unwrap().verdict();
            match verdict {
                Verdict::Whole => assert_eq!(good, 900_000),
                Verdict::Good(digest) => assert_eq!(digest.length(), good),
            }
        }
    }

    #[test]
    fn a_short_file_is_not_whole() {
        let file = tempfile::tempfile().unwrap();
        write_at(&file, 0, b"ab").unwrap();
        let good = good_prefix(&file, &checkpoints(b"abc", &[2, 3]), &|| false);
        assert_eq!(good.length(), 2);
    }

    #[test]
    fn partials_are_private_new_and_named_by_their_key() {
        let temp = tempfile::tempdir().unwrap();
        let inbox_dir = InboxDir::alone(temp.path());
        let key = (AgentId([1; 32]), TransferId([2; 16]));
        assert!(open(&inbox_dir, key).unwrap().is_none());
        write_at(&create(&inbox_dir, key).unwrap(), 0, b"old").unwrap();
        assert_eq!(create(&inbox_dir, key).unwrap().metadata().unwrap().len(), 0);
        assert!(open(&inbox_dir, key).unwrap().is_some());
        assert_eq!(names(&inbox_dir).unwrap(), [file_name(key)]);
        for name in [file_name(key), folder_name(key)] {
            assert_eq!(key_of(&name), Some(key));
        }
        for name in ["", "-", "litter", "00-00", "00-00.d"] {
            assert_eq!(key_of(OsStr::new(name)), None, "{name}");
        }
        remove_all(&inbox_dir.partials, &file_name(key)).unwrap();
        assert!(look(&inbox_dir, key, Kind::File).unwrap().is_none());
    }

    #[cfg(unix)]
    #[test]
    fn mode_and_time_are_set_and_setuid_never_is() {
        use std::os::unix::fs::MetadataExt;
        let file = tempfile::tempfile().unwrap();
        let time = UNIX_EPOCH - Duration::from_millis(4750);
        let mtime = Mtime {
            seconds: -5,
            nanos: 250_000_000,
        };
        let folder = Dir::open_ambient_dir(std::env::temp_dir(), cap_std::ambient_authority()).unwrap();
        set_metadata(
            &file,
            &file.metadata().unwrap(),
            &Rights::of(&folder, 0o6755),
            mtime,
        );
        let meta = file.metadata().unwrap();
        assert_eq!(meta.mode() & 0o7777, 0o644);
        let kept = crate::fs::version::as_kept(&std::env::temp_dir(), time);
        assert_eq!(meta.modified().unwrap(), kept);
    }
}
