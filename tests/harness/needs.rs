//! What a test needs of the file system that its temporary folder is on: where that is not so, the test is left out, and
//! that is said with the reason.

use std::fs::File;

use dropwire::fs::file_system::FileSystem;
use rustix::fs::RenameFlags;

/// A name is given by a rename that replaces nothing: so a whole folder can have one.
pub fn renames() -> bool {
    let temp = tempfile::tempdir().expect("a folder");
    let dir = File::open(temp.path()).expect("opened");
    File::create(temp.path().join("a")).expect("made");
    let renamed = rustix::fs::renameat_with(&dir, "a", &dir, "b", RenameFlags::NOREPLACE);
    is(renamed.is_ok(), "cannot rename without replacing")
}

/// This system sees whoever writes to a file, through a mapping too.
pub fn seeing_writers() -> bool {
    is(file_system().sees_writers, "does not show every writer")
}

/// It tells of every change, so an outbox there is watched.
pub fn telling_of_changes() -> bool {
    is(file_system().tells_changes, "does not tell of what others change")
}

/// What is trusted where the temporary folder is.
pub fn file_system() -> FileSystem {
    let folder = File::open(std::env::temp_dir()).expect("the temporary folder");
    FileSystem::of(&folder).expect("its file system")
}

fn is(so: bool, otherwise: &str) -> bool {
    if !so {
        let thread = std::thread::current(); // the test runner names it after the test
        super::skip(
            thread.name().unwrap_or("a test"),
            &format!("the file system of the temporary folder {otherwise}"),
        );
    }
    so
}
