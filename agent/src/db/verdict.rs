//! What an error of SQLite means, decided in one place for the writer, the readers and the start.

use std::io;

use rusqlite::{Connection, ffi};

use crate::io_error::{self, Meaning, Wait};

/// What to do about an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// The statement's own fault: only the change that asked for it fails.
    Change,
    /// The database cannot do it now. Nothing was committed, so it is asked again.
    NotNow(Wait),
    /// The file is damaged, or its disk lost what it was told to keep: only a new start can tell what is there.
    Fatal,
}

/// What `error` means, which `connection` has just given.
pub(super) fn verdict(connection: &Connection, error: &rusqlite::Error) -> Verdict {
    // SAFETY: the handle is used for this one call, while the connection is borrowed.
    let system = unsafe { ffi::sqlite3_system_errno(connection.handle()) };
    of_error(error, system)
}

/// What `error` means, with the system's error number, where that is known.
pub(super) fn of_error(error: &rusqlite::Error, system: i32) -> Verdict {
    let rusqlite::Error::SqliteFailure(failure, _) = error else {
        return Verdict::Change;
    };
    judge(failure.extended_code, system)
}

/// In a log, a commit has happened once its last frame is written whole and synced. `SQLITE_FULL` comes before that frame
/// is complete, `SQLITE_BUSY` before the first one; after each SQLite has rolled back, or nothing had begun. An error
/// that comes later than the sync (the index of the log cannot grow) leaves frames that no connection sees, and that the
/// next commit overwrites; a crash before it makes them count: a commit of which nobody was told, as after any crash.
/// Only after a failed sync nobody knows what is on the disk.
fn judge(code: i32, system: i32) -> Verdict {
    match code {
        ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC | ffi::SQLITE_IOERR_CORRUPTFS => {
            return Verdict::Fatal;
        }
        ffi::SQLITE_IOERR_NOMEM => return Verdict::NotNow(Wait::Shortage),
        _ => {}
    }
    match code & 0xff {
        ffi::SQLITE_FULL => Verdict::NotNow(Wait::Space),
        ffi::SQLITE_BUSY | ffi::SQLITE_LOCKED | ffi::SQLITE_PROTOCOL => Verdict::NotNow(Wait::Busy),
        ffi::SQLITE_NOMEM => Verdict::NotNow(Wait::Shortage),
        ffi::SQLITE_IOERR | ffi::SQLITE_CANTOPEN => {
            match io_error::meaning(&io::Error::from_raw_os_error(system)) {
                // A descriptor of a disk that went away stays dead when it comes back.
                Meaning::NotNow(Wait::Device) => Verdict::Fatal,
                Meaning::NotNow(wait) => Verdict::NotNow(wait),
                Meaning::Lost | Meaning::Never | Meaning::NotOurs => Verdict::Fatal,
            }
        }
        ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB | ffi::SQLITE_READONLY => Verdict::Fatal,
        _ => Verdict::Change,
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_one_verdict() {
        use Verdict::*;
        let table = [
            (ffi::SQLITE_FULL, 0, NotNow(Wait::Space)),
            (ffi::SQLITE_BUSY, 0, NotNow(Wait::Busy)),
            (ffi::SQLITE_BUSY_RECOVERY, 0, NotNow(Wait::Busy)),
            (ffi::SQLITE_PROTOCOL, 0, NotNow(Wait::Busy)),
            (ffi::SQLITE_NOMEM, 0, NotNow(Wait::Shortage)),
            (ffi::SQLITE_IOERR_NOMEM, 0, NotNow(Wait::Shortage)),
            (ffi::SQLITE_IOERR_WRITE, libc::EDQUOT, NotNow(Wait::Space)),
            (ffi::SQLITE_IOERR_SHMSIZE, libc::ENOSPC, NotNow(Wait::Space)),
            (ffi::SQLITE_IOERR_WRITE, libc::EROFS, NotNow(Wait::Access)),
            (ffi::SQLITE_CANTOPEN, libc::EMFILE, NotNow(Wait::Shortage)),
            (ffi::SQLITE_CANTOPEN, libc::ENOSPC, NotNow(Wait::Space)),
            (ffi::SQLITE_CANTOPEN, libc::ENOENT, Fatal),
            (ffi::SQLITE_IOERR_READ, libc::EIO, Fatal),
            (ffi::SQLITE_IOERR_FSYNC, libc::ENOSPC, Fatal),
            (ffi::SQLITE_IOERR_DIR_FSYNC, libc::EINTR, Fatal),
            (ffi::SQLITE_CORRUPT, 0, Fatal),
            (ffi::SQLITE_NOTADB, 0, Fatal),
            (ffi::SQLITE_READONLY_DBMOVED, 0, Fatal),
            (ffi::SQLITE_CONSTRAINT_UNIQUE, 0, Change),
            (ffi::SQLITE_ERROR, libc::ENOSPC, Change),
        ];
        for (code, system, expected) in table {
            assert_eq!(judge(code, system), expected, "{code} with {system}");
        }
        assert_eq!(of_error(&rusqlite::Error::QueryReturnedNoRows, 0), Change);
    }
}
