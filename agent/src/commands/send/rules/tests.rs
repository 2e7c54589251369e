//! Each kind of file, under each kind of name that leads to it.

use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};

use super::*;
use crate::control::wire::{LocalPath, Raw};

/// A state folder, an outbox, an inbox and a place elsewhere, each with files.
fn world() -> (tempfile::TempDir, Folders) {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().canonicalize().unwrap();
    let at = |path: &str| root.join(path);
    for path in [
        "state/identity.key",
        "state/spool/0123/copy",
        "outbox/.dropwire/id",
        "outbox/.dropwire/leaving/1",
        "outbox/.dropwire/sent/archived",
        "outbox/inner/waiting",
        "outbox/of another agent/waiting",
        "outbox/of another agent/.dropwire/owner",
        "inbox/.dropwire/partial/1",
        "inbox/arrived",
        "elsewhere/file",
        "elsewhere/.dropwire/of another agent",
    ] {
        fs::create_dir_all(at(path).parent().unwrap()).unwrap();
        fs::write(at(path), path).unwrap();
    }
    for (link, to) in [
        ("elsewhere/key", "state/identity.key"),
        ("elsewhere/copy", "state/spool/0123/copy"),
        ("elsewhere/partial", "inbox/.dropwire/partial/1"),
        ("elsewhere/archived", "outbox/.dropwire/sent/archived"),
    ] {
        fs::hard_link(at(to), at(link)).unwrap();
    }
    std::os::unix::fs::symlink("../state", at("elsewhere/link")).unwrap();
    std::os::unix::fs::symlink("outbox", at("linked outbox")).unwrap();
    let device = fs::metadata(&root).unwrap().dev();
    let place = |path: &str| Place {
        path: at(path),
        device,
    };
    let folders = Folders {
        state: at("state"),
        boxes: vec![place("outbox"), place("inbox")],
        outboxes: vec![at("linked outbox"), at("outbox")],
    };
    (temp, folders)
}

fn named(path: &Path, file: &File) -> SendFile {
    let meta = file.metadata().unwrap();
    SendFile {
        named: 0,
        name: Raw(b"name".to_vec()),
        path: LocalPath(path.to_owned()),
        file: (meta.dev(), meta.ino()),
    }
}

/// What becomes of the file at `path`, which is said to be at `claimed`.
fn check(folders: &(tempfile::TempDir, Folders), path: &str, claimed: &str) -> Option<Exit> {
    let root = folders.0.path().canonicalize().unwrap();
    let file = File::open(root.join(path)).unwrap();
    let of = &folders.1;
    let mut rules = Rules::new(Folders {
        state: of.state.clone(),
        boxes: of
            .boxes
            .iter()
            .map(|b| Place {
                path: b.path.clone(),
                ..*b
            })
            .collect(),
        outboxes: of.outboxes.clone(),
    });
    let checked = rules.check(&named(&root.join(claimed), &file), &file);
    checked.err().map(|fatal| fatal.exit)
}

#[test]
fn own_files_are_refused_whatever_leads_to_them() {
    let world = world();
    for path in [
        "state/identity.key",
        "state/spool/0123/copy",
        "outbox/.dropwire/id",
        "outbox/.dropwire/leaving/1",
        "inbox/.dropwire/partial/1",
        "elsewhere/key",
        "elsewhere/partial",
        "elsewhere/link/identity.key",
    ] {
        assert_eq!(check(&world, path, path), Some(Exit::Permission), "{path}");
        let claimed = "elsewhere/file";
        assert_eq!(
            check(&world, path, claimed),
            Some(Exit::Permission),
            "{path} as {claimed}"
        );
    }
    // Of another agent: only its name tells.
    let others = "elsewhere/.dropwire/of another agent";
    assert_eq!(check(&world, others, others), Some(Exit::Permission));
    for path in [
        "outbox/.dropwire/sent/archived",
        "elsewhere/archived",
        "elsewhere/copy",
        "elsewhere/file",
        "inbox/arrived",
    ] {
        assert_eq!(check(&world, path, path), None, "{path}");
    }
}

#[test]
fn an_outbox_keeps_what_is_in_it_and_no_more() {
    let world = world();
    for path in ["outbox/inner/waiting", "linked outbox/inner/waiting"] {
        assert_eq!(check(&world, path, path), Some(Exit::Usage), "{path}");
    }
    // It does not send that.
    let theirs = "outbox/of another agent/waiting";
    assert_eq!(check(&world, theirs, theirs), None);
    let elsewhere = "elsewhere/file";
    #[cfg(target_os = "linux")]
    assert_eq!(
        check(&world, "outbox/inner/waiting", elsewhere),
        Some(Exit::Usage)
    );
    // A claim that is not true is not believed.
    for claimed in ["outbox/inner/waiting", "outbox/missing", "outbox/../x"] {
        assert_eq!(check(&world, elsewhere, claimed), None, "{claimed}");
    }
}

#[test]
fn only_regular_files_that_are_open_for_reading_are_taken() {
    let (temp, folders) = world();
    let at = |path: &str| temp.path().join(path);
    rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo"), 0o600.into()).unwrap();
    let open = |path: &Path, flags: i32, write: bool| {
        let mut options = fs::OpenOptions::new();
        options
            .read(!write)
            .write(write)
            .custom_flags(flags)
            .open(path)
            .unwrap()
    };
    let file = at("elsewhere/file");
    let mut rules = Rules::new(folders);
    let mut exit = |file: &File| {
        let checked = rules.check(&named(&at("elsewhere/file"), file), file);
        checked.err().map(|fatal| fatal.exit)
    };
    assert_eq!(exit(&open(&file, 0, false)), None);
    assert_eq!(
        exit(&open(&file, 0, true)),
        Some(Exit::NoInput),
        "for writing only"
    );
    #[cfg(target_os = "linux")]
    assert_eq!(exit(&open(&file, libc::O_PATH, false)), Some(Exit::NoInput));
    assert_eq!(
        exit(&open(&at("elsewhere"), 0, false)),
        Some(Exit::NoInput),
        "a folder"
    );
    assert_eq!(
        exit(&open(&at("fifo"), libc::O_NONBLOCK, false)),
        Some(Exit::NoInput)
    );
    assert_eq!(exit(&open(Path::new("/dev/null"), 0, false)), Some(Exit::NoInput));
}

#[test]
fn a_file_is_not_taken_for_another_one() {
    let (temp, folders) = world();
    let at = |path: &str| temp.path().join(path);
    let (one, other) = (
        File::open(at("elsewhere/file")).unwrap(),
        File::open(at("inbox/arrived")).unwrap(),
    );
    let mut rules = Rules::new(folders);
    let mut check = |claimed: &SendFile| rules.check(claimed, &one).err().map(|fatal| fatal.exit);
    assert_eq!(check(&named(&at("elsewhere/file"), &one)), None);
    assert_eq!(check(&named(&at("elsewhere/file"), &other)), Some(Exit::Failed));
    assert_eq!(check(&named(Path::new("relative"), &one)), Some(Exit::Usage));
}
