//! The system calls that are points: those that change or ask storage, and those that move bytes of the link.

/// What kind of thing a call does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Changes what is on disk, or asks for it to be durable. Refused with EIO and ENOSPC too.
    Storage,
    /// Only reads from the disk. Refused with EIO; a kill there is a kill before the next change.
    Look,
    /// Moves bytes of the link, makes or ends it.
    Socket,
}

/// In which arguments a call names what it works on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Names {
    /// A descriptor.
    Fd,
    /// A path.
    Path,
    /// A folder's descriptor and a path below it.
    At,
    /// Two of these, as renames and links have: the second is what counts.
    TwoAt,
    /// Two paths.
    TwoPaths,
    /// A descriptor and a command, which has to be F_SETLEASE.
    Lease,
}

/// One call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// As strace calls it.
    pub name: &'static str,
    /// Its number.
    pub number: i64,
    /// What it does.
    pub kind: Kind,
    /// What it works on.
    pub names: Names,
}

/// The call with this number.
pub fn by_number(number: u64) -> Option<&'static Call> {
    CALLS.iter().find(|call| call.number as u64 == number)
}

/// The call with this name.
pub fn by_name(name: &str) -> Option<&'static Call> {
    CALLS.iter().find(|call| call.name == name)
}

const fn call(name: &'static str, number: i64, kind: Kind, names: Names) -> Call {
    Call {
        name,
        number,
        kind,
        names,
    }
}

/// All points. What is not here (clocks, memory, waiting, pipes) leaves nothing behind when it is the last.
pub const CALLS: &[Call] = &[
    call("open", libc::SYS_open, Kind::Storage, Names::Path),
    call("openat", libc::SYS_openat, Kind::Storage, Names::At),
    call("openat2", libc::SYS_openat2, Kind::Storage, Names::At),
    call("creat", libc::SYS_creat, Kind::Storage, Names::Path),
    call("write", libc::SYS_write, Kind::Storage, Names::Fd),
    call("pwrite64", libc::SYS_pwrite64, Kind::Storage, Names::Fd),
    call("writev", libc::SYS_writev, Kind::Storage, Names::Fd),
    call("pwritev", libc::SYS_pwritev, Kind::Storage, Names::Fd),
    call("pwritev2", libc::SYS_pwritev2, Kind::Storage, Names::Fd),
    call(
        "copy_file_range",
        libc::SYS_copy_file_range,
        Kind::Storage,
        Names::Fd,
    ),
    call("fsync", libc::SYS_fsync, Kind::Storage, Names::Fd),
    call("fdatasync", libc::SYS_fdatasync, Kind::Storage, Names::Fd),
    call("syncfs", libc::SYS_syncfs, Kind::Storage, Names::Fd),
    call(
        "sync_file_range",
        libc::SYS_sync_file_range,
        Kind::Storage,
        Names::Fd,
    ),
    call("ftruncate", libc::SYS_ftruncate, Kind::Storage, Names::Fd),
    call("fallocate", libc::SYS_fallocate, Kind::Storage, Names::Fd),
    call("rename", libc::SYS_rename, Kind::Storage, Names::TwoPaths),
    call("renameat", libc::SYS_renameat, Kind::Storage, Names::TwoAt),
    call("renameat2", libc::SYS_renameat2, Kind::Storage, Names::TwoAt),
    call("link", libc::SYS_link, Kind::Storage, Names::TwoPaths),
    call("linkat", libc::SYS_linkat, Kind::Storage, Names::TwoAt),
    call("unlink", libc::SYS_unlink, Kind::Storage, Names::Path),
    call("unlinkat", libc::SYS_unlinkat, Kind::Storage, Names::At),
    call("rmdir", libc::SYS_rmdir, Kind::Storage, Names::Path),
    call("mkdir", libc::SYS_mkdir, Kind::Storage, Names::Path),
    call("mkdirat", libc::SYS_mkdirat, Kind::Storage, Names::At),
    call("chmod", libc::SYS_chmod, Kind::Storage, Names::Path),
    call("fchmod", libc::SYS_fchmod, Kind::Storage, Names::Fd),
    call("fchmodat", libc::SYS_fchmodat, Kind::Storage, Names::At),
    call("utimensat", libc::SYS_utimensat, Kind::Storage, Names::At),
    call("fcntl", libc::SYS_fcntl, Kind::Look, Names::Lease),
    call("read", libc::SYS_read, Kind::Look, Names::Fd),
    call("pread64", libc::SYS_pread64, Kind::Look, Names::Fd),
    call("getdents64", libc::SYS_getdents64, Kind::Look, Names::Fd),
    call("connect", libc::SYS_connect, Kind::Socket, Names::Fd),
    call("accept4", libc::SYS_accept4, Kind::Socket, Names::Fd),
    call("sendto", libc::SYS_sendto, Kind::Socket, Names::Fd),
    call("sendmsg", libc::SYS_sendmsg, Kind::Socket, Names::Fd),
    call("recvfrom", libc::SYS_recvfrom, Kind::Socket, Names::Fd),
    call("recvmsg", libc::SYS_recvmsg, Kind::Socket, Names::Fd),
    call("shutdown", libc::SYS_shutdown, Kind::Socket, Names::Fd),
];
