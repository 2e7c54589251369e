//! A FUSE file system that passes everything on to a folder, with two faults that real ones have: a file gets another
//! inode number whenever it is asked (as on sshfs and many others), and folders cannot be synced.
//!
//! A node is a number for one lookup of a file; all nodes of one file share an `O_PATH` handle on it, so that a rename
//! needs no bookkeeping, and the file's own inode number is not used again meanwhile.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::{self, File, Permissions},
    io,
    os::{
        fd::{AsFd, AsRawFd as _},
        unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite,
    Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{AtFlags, Mode, OFlags};

/// The kernel is to keep nothing: every lookup asks.
const TTL: Duration = Duration::ZERO;

/// Shows the folder `real` at `mount` until the session is dropped.
pub(super) fn mount(real: &Path, mount: &Path) -> io::Result<BackgroundSession> {
    allow_many_handles()?;
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("dropwire-proof".into()),
        MountOption::DefaultPermissions,
    ];
    fuser::spawn_mount(PassThrough::new(real)?, mount, &config)
}

/// The kernel lets go of a node when it needs memory, so there are many.
fn allow_many_handles() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let current = maximum;
    Ok(setrlimit(Resource::Nofile, Rlimit { current, maximum })?)
}

type Listing = Vec<(OsString, FileType)>;

struct PassThrough {
    nodes: Mutex<HashMap<u64, Arc<File>>>,
    /// By their own inode numbers.
    files: Mutex<HashMap<u64, Weak<File>>>,
    open: Mutex<HashMap<u64, Arc<File>>>,
    /// What open folders had in them when they were read from the start.
    listings: Mutex<HashMap<u64, Listing>>,
    /// Numbers of nodes and of open files.
    next: AtomicU64,
}

impl PassThrough {
    fn new(real: &Path) -> io::Result<Self> {
        let root = File::from(rustix::fs::open(real, OFlags::PATH, Mode::empty())?);
        Ok(Self {
            nodes: Mutex::new(HashMap::from([(INodeNo::ROOT.0, Arc::new(root))])),
            files: Mutex::default(),
            open: Mutex::default(),
            listings: Mutex::default(),
            next: AtomicU64::new(INodeNo::ROOT.0 + 1),
        })
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn nodes(&self) -> MutexGuard<'_, HashMap<u64, Arc<File>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self, number: INodeNo) -> io::Result<Arc<File>> {
        let found = self.nodes().get(&number.0).cloned();
        found.ok_or_else(|| io::Error::from_raw_os_error(libc::ESTALE))
    }

    fn opened(&self, handle: FileHandle) -> io::Result<Arc<File>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let found = open.get(&handle.0).cloned();
        found.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    fn keep_open(&self, file: File) -> FileHandle {
        let number = self.number();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert(number, Arc::new(file));
        FileHandle(number)
    }

    fn close(&self, handle: FileHandle) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.remove(&handle.0);
    }

    /// A new node for what has this name: no two lookups of a file agree on its number.
    fn look(&self, parent: INodeNo, name: &OsStr) -> io::Result<FileAttr> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let file = File::from(rustix::fs::openat(
            &*self.node(parent)?,
            name,
            flags,
            Mode::empty(),
        )?);
        let number = self.number();
        let attributes = attributes(&file, INodeNo(number))?;
        let file = self.shared(file)?;
        self.nodes().insert(number, file);
        Ok(attributes)
    }

    /// The handle of a file that is known already, else the one just opened.
    fn shared(&self, file: File) -> io::Result<Arc<File>> {
        let own = file.metadata()?.ino();
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = files.get(&own).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let file = Arc::new(file);
        files.insert(own, Arc::downgrade(&file));
        Ok(file)
    }

    fn set(
        &self,
        number: INodeNo,
        mode: Option<u32>,
        owner: (Option<u32>, Option<u32>),
        size: Option<u64>,
        times: [Option<TimeOrNow>; 2],
    ) -> io::Result<FileAttr> {
        let node = self.node(number)?;
        let path = path_of(&node);
        if let Some(mode) = mode {
            fs::set_permissions(&path, Permissions::from_mode(mode & 0o7777))?;
        }
        if owner != (None, None) {
            std::os::unix::fs::chown(&path, owner.0, owner.1)?;
        }
        if let Some(size) = size {
            File::options().write(true).open(&path)?.set_len(size)?;
        }
        if times.iter().any(Option::is_some) {
            let [accessed, modified] = times.map(timestamp);
            let times = rustix::fs::Timestamps {
                last_access: accessed,
                last_modification: modified,
            };
            rustix::fs::utimensat(rustix::fs::CWD, &path, &times, AtFlags::empty())?;
        }
        attributes(&node, number)
    }

    /// Each entry once, whatever comes and goes while a folder is read in pieces: it is looked through at the first.
    fn list(
        &self,
        number: INodeNo,
        handle: FileHandle,
        from: u64,
        mut add: impl FnMut(u64, FileType, &OsStr) -> bool,
    ) -> io::Result<()> {
        let mut listings = self.listings();
        let listing = listings.entry(handle.0).or_default();
        if from == 0 {
            *listing = self.entries(number)?;
        }
        for (at, (name, kind)) in listing.iter().enumerate().skip(from as usize) {
            if add(at as u64 + 1, *kind, name) {
                break;
            }
        }
        Ok(())
    }

    fn entries(&self, number: INodeNo) -> io::Result<Listing> {
        let path = path_of(&*self.node(number)?);
        let entry = |entry: io::Result<fs::DirEntry>| {
            let entry = entry?;
            Ok((entry.file_name(), kind(entry.file_type()?)))
        };
        fs::read_dir(path)?.map(entry).collect()
    }

    fn listings(&self) -> MutexGuard<'_, HashMap<u64, Listing>> {
        self.listings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers with what `work` gave, or with its error.
macro_rules! answer {
    ($reply:ident, $work:expr, $good:ident => $said:expr) => {
        match $work {
            Ok($good) => $said,
            Err(error) => $reply.error(Errno::from(io::Error::from(error))),
        }
    };
}

impl Filesystem for PassThrough {
    fn init(&mut self, _: &Request, _: &mut KernelConfig) -> io::Result<()> {
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        answer!(reply, self.look(parent, name), attr => reply.entry(&TTL, &attr, Generation(0)));
    }

    fn forget(&self, _: &Request, number: INodeNo, _: u64) {
        if number != INodeNo::ROOT {
            self.nodes().remove(&number.0); // each was looked up once
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let work = self.node(number).and_then(|node| attributes(&node, number));
        answer!(reply, work, attr => reply.attr(&TTL, &attr));
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let work = self.set(number, mode, (uid, gid), size, [accessed, modified]);
        answer!(reply, work, attr => reply.attr(&TTL, &attr));
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        let work = self
            .node(number)
            .and_then(|node| Ok(rustix::fs::readlinkat(&*node, "", Vec::new())?));
        answer!(reply, work, target => reply.data(target.as_bytes()));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let work = self.node(parent).and_then(|node| {
            rustix::fs::mkdirat(&*node, name, Mode::from_raw_mode(mode & !umask))?;
            self.look(parent, name)
        });
        answer!(reply, work, attr => reply.entry(&TTL, &attr, Generation(0)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let gone = |node: Arc<File>| Ok(rustix::fs::unlinkat(&*node, name, AtFlags::empty())?);
        answer!(reply, self.node(parent).and_then(gone), _done => reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let gone = |node: Arc<File>| Ok(rustix::fs::unlinkat(&*node, name, AtFlags::REMOVEDIR)?);
        answer!(reply, self.node(parent).and_then(gone), _done => reply.ok());
    }

    fn symlink(&self, _: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let work = self.node(parent).and_then(|node| {
            rustix::fs::symlinkat(target, &*node, name)?;
            self.look(parent, name)
        });
        answer!(reply, work, attr => reply.entry(&TTL, &attr, Generation(0)));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
        let work = self.node(parent).and_then(|from| {
            let to = self.node(new_parent)?;
            Ok(rustix::fs::renameat_with(&*from, name, &*to, new_name, flags)?)
        });
        answer!(reply, work, _done => reply.ok());
    }

    fn link(&self, _: &Request, number: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        let work = self.node(number).and_then(|node| {
            let (path, to) = (path_of(&node), self.node(new_parent)?);
            rustix::fs::linkat(rustix::fs::CWD, path, &*to, new_name, AtFlags::SYMLINK_FOLLOW)?;
            self.look(new_parent, new_name)
        });
        answer!(reply, work, attr => reply.entry(&TTL, &attr, Generation(0)));
    }

    fn open(&self, _: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let work = self.node(number).and_then(|node| reopen(&node, flags.0));
        answer!(reply, work, file => reply.opened(self.keep_open(file), FopenFlags::empty()));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let work = self.node(parent).and_then(|node| {
            let flags = OFlags::from_bits_retain(flags as u32) | OFlags::CREATE | OFlags::NOFOLLOW;
            let mode = Mode::from_raw_mode(mode & !umask);
            let file = File::from(rustix::fs::openat(&*node, name, flags, mode)?);
            Ok((self.look(parent, name)?, self.keep_open(file)))
        });
        answer!(reply, work, made => reply.created(&TTL, &made.0, Generation(0), made.1, FopenFlags::empty()));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut buffer = vec![0; size as usize];
        let work = self
            .opened(handle)
            .and_then(|file| file.read_at(&mut buffer, offset));
        answer!(reply, work, length => reply.data(&buffer[..length]));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let work = self.opened(handle).and_then(|file| file.write_at(data, offset));
        answer!(reply, work, length => reply.written(length as u32));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.close(handle);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        let work = self.opened(handle).and_then(|file| file.sync_all());
        answer!(reply, work, _done => reply.ok());
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::EINVAL);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(self.number()), FopenFlags::empty());
    }

    fn readdir(
        &self,
        _: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let add = |at, kind, name: &OsStr| reply.add(INodeNo(self.number()), at, kind, name);
        let work = self.list(number, handle, offset, add);
        answer!(reply, work, _done => reply.ok());
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.listings().remove(&handle.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let work = self
            .node(INodeNo::ROOT)
            .and_then(|root| Ok(rustix::fs::fstatvfs(&*root)?));
        answer!(reply, work, s => reply.statfs(
            s.f_blocks,
            s.f_bfree,
            s.f_bavail,
            s.f_files,
            s.f_ffree,
            s.f_bsize as u32,
            s.f_namemax as u32,
            s.f_frsize as u32,
        ));
    }
}

/// Leads to the real file, whatever its name is by now.
fn path_of(node: &File) -> PathBuf {
    format!("/proc/self/fd/{}", node.as_raw_fd()).into()
}

fn reopen(node: &File, flags: i32) -> io::Result<File> {
    let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
    let keep = flags & (libc::O_APPEND | libc::O_TRUNC | libc::O_NONBLOCK);
    let mut options = File::options();
    options
        .read(flags & libc::O_ACCMODE != libc::O_WRONLY)
        .write(writes)
        .custom_flags(keep)
        .open(path_of(node))
}

fn attributes(file: &impl AsFd, number: INodeNo) -> io::Result<FileAttr> {
    let meta = File::from(file.as_fd().try_clone_to_owned()?).metadata()?;
    let time = |seconds: i64, nanos: i64| {
        SystemTime::UNIX_EPOCH + Duration::new(seconds.max(0) as u64, nanos.max(0) as u32)
    };
    Ok(FileAttr {
        ino: number,
        size: meta.len(),
        blocks: meta.blocks(),
        atime: time(meta.atime(), meta.atime_nsec()),
        mtime: time(meta.mtime(), meta.mtime_nsec()),
        ctime: time(meta.ctime(), meta.ctime_nsec()),
        crtime: SystemTime::UNIX_EPOCH,
        kind: kind(meta.file_type()),
        perm: (meta.mode() & 0o7777) as u16,
        nlink: meta.nlink() as u32,
        uid: meta.uid(),
        gid: meta.gid(),
        rdev: meta.rdev() as u32,
        blksize: 4096,
        flags: 0,
    })
}

fn kind(file: fs::FileType) -> FileType {
    if file.is_dir() {
        FileType::Directory
    } else if file.is_symlink() {
        FileType::Symlink
    } else {
        FileType::RegularFile // the proofs make no others
    }
}

fn timestamp(time: Option<TimeOrNow>) -> rustix::fs::Timespec {
    let special = |nanos| rustix::fs::Timespec {
        tv_sec: 0,
        tv_nsec: nanos,
    };
    match time {
        None => special(rustix::fs::UTIME_OMIT),
        Some(TimeOrNow::Now) => special(rustix::fs::UTIME_NOW),
        Some(TimeOrNow::SpecificTime(time)) => {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            rustix::fs::Timespec {
                tv_sec: since.as_secs() as i64,
                tv_nsec: since.subsec_nanos().into(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_changes_while_it_is_read_has_each_entry_once() {
        let real = tempfile::tempdir().unwrap();
        let put = |name| fs::write(real.path().join(name), "").unwrap();
        put("m");
        put("n");
        let passes = PassThrough::new(real.path()).unwrap();
        let read = |from: usize, most: usize| {
            let mut names = Vec::new();
            let add = |_, _, name: &OsStr| {
                names.push(name.to_owned());
                names.len() == most
            };
            passes
                .list(INodeNo::ROOT, FileHandle(7), from as u64, add)
                .unwrap();
            names
        };
        let mut names = read(0, 1);
        put("a");
        put("z");
        names.extend(read(names.len(), 9));
        assert_eq!(read(names.len(), 9), [""; 0]);
        names.sort();
        assert_eq!(names, ["m", "n"]);
        assert_eq!(read(0, 9).len(), 4, "rewound, it is looked through again");
    }
}
