use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use dropwire_protocol::RunningDigest;

use super::{
    check::{COMPARED_BELOW, shows_too_little},
    *,
};
use crate::{
    fs::{
        durable,
        file_system::{self, FileSystem, TRUSTED},
        lease::{Asked, Lease},
    },
    io_error::LostWrite,
};

struct Outbox {
    temp: tempfile::TempDir,
    id: OutboxId,
    _trusted: file_system::Pretence,
}

impl Outbox {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let id = OutboxId(folder_id::create(&confined::root(temp.path()).unwrap()).unwrap());
        Self {
            temp,
            id,
            _trusted: file_system::pretend(TRUSTED),
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.temp.path().join(path)
    }

    /// A file of these bytes and what disposes of it.
    fn delivered(&self, path: &str, bytes: &str, after: AfterSend) -> Disposal {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), bytes).unwrap();
        // A test beside this one may start a program at this moment, which has a copy of the descriptor until it runs.
        while matches!(Lease::take(&File::open(self.at(path)).unwrap()), Asked::Writer) {
            std::thread::yield_now();
        }
        let mut hash = RunningDigest::default();
        hash.update(bytes.as_bytes());
        Disposal {
            name: "00112233445566778899aabbccddeeff".into(),
            outbox: self.id,
            root: self.temp.path().to_path_buf(),
            path: RemotePath::parse(path.as_bytes()).unwrap(),
            version: Version::read(&File::open(self.at(path)).unwrap()).unwrap().0,
            digest: hash.value(),
            after,
            marker: None,
            linger: Duration::ZERO,
        }
    }

    /// As a crash after the rename leaves it.
    fn in_leaving(&self, disposal: &Disposal) -> PathBuf {
        fs::create_dir_all(self.at(".dropwire/leaving")).unwrap();
        let leaving = self.at(".dropwire/leaving").join(&disposal.name);
        fs::rename(confined::join(self.temp.path(), &disposal.path), &leaving).unwrap();
        leaving
    }

    fn leaving_is_empty(&self) -> bool {
        fs::read_dir(self.at(".dropwire/leaving")).unwrap().count() == 0
    }
}

fn dispose_all(disposals: &[Disposal], stopped: &dyn Fn() -> bool) -> Vec<Result<Disposed, DisposeError>> {
    crate::fs::version::rests(&disposals[0].root);
    super::dispose_all(disposals, &Siblings::default(), stopped)
}

fn dispose(disposal: &Disposal) -> Result<Disposed, DisposeError> {
    dispose_all(std::slice::from_ref(disposal), &|| false).remove(0)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

/// Another content of the same length, with the mtime put back.
fn overwrite_unseen(path: &Path, bytes: &str) {
    let mtime = fs::metadata(path).unwrap().modified().unwrap();
    fs::write(path, bytes).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    file_system::set_modified(&file, mtime).unwrap();
}

#[test]
fn archived_and_deleted() {
    let outbox = Outbox::new();
    let first = outbox.delivered("a/b/file.txt", "one", AfterSend::Archive);
    assert_eq!(dispose(&first).unwrap(), Disposed::Done);
    let second = outbox.delivered("a/b/file.txt", "two", AfterSend::Archive);
    assert_eq!(dispose(&second).unwrap(), Disposed::Done);
    assert_eq!(read(&outbox.at(".dropwire/sent/a/b/file.txt")), "one");
    assert_eq!(read(&outbox.at(".dropwire/sent/a/b/file (1).txt")), "two");
    let third = outbox.delivered("a/b/file.txt", "three", AfterSend::Delete);
    assert_eq!(dispose(&third).unwrap(), Disposed::Done);
    assert!(!outbox.at("a/b/file.txt").exists() && outbox.leaving_is_empty());
    assert_eq!(dispose(&third).unwrap(), Disposed::Gone, "repeated");
    let kept = outbox.delivered("kept", "four", AfterSend::Keep);
    assert_eq!(dispose(&kept).unwrap(), Disposed::Done);
    assert_eq!(read(&outbox.at("kept")), "four");
}

/// It was delivered before the folder became an outbox or inbox by itself: whose it is now, that agent decides.
#[test]
fn nothing_leaves_a_folder_that_became_another_agents() {
    for after in [AfterSend::Archive, AfterSend::Delete] {
        let outbox = Outbox::new();
        let disposal = outbox.delivered("theirs/sub/file", "bytes", after);
        fs::create_dir(outbox.at("theirs/.dropwire")).unwrap();
        fs::write(outbox.at("theirs/.dropwire/owner"), "somebody").unwrap();
        let error = dispose(&disposal).unwrap_err();
        assert!(error.to_string().contains("theirs"), "{error}");
        assert_eq!(read(&outbox.at("theirs/sub/file")), "bytes");
        fs::remove_dir_all(outbox.at("theirs/.dropwire")).unwrap();
        assert_eq!(dispose(&disposal).unwrap(), Disposed::Done);
    }
}

/// A file was archived under the name that a folder has now.
#[test]
fn the_archive_finds_a_free_name_for_a_folder_too() {
    for left_over in [false, true] {
        let outbox = Outbox::new();
        let file = outbox.delivered("report", "a file", AfterSend::Archive);
        assert_eq!(dispose(&file).unwrap(), Disposed::Done);
        fs::create_dir_all(outbox.at(".dropwire/sent/deep")).unwrap();
        fs::write(outbox.at(".dropwire/sent/report (1)"), "another").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("/", outbox.at(".dropwire/sent/deep/report")).unwrap();
        let below = outbox.delivered("report/x", "in it", AfterSend::Archive);
        let deeper = outbox.delivered("deep/report/y", "deeper", AfterSend::Archive);
        for disposal in [&below, &deeper] {
            if left_over {
                outbox.in_leaving(disposal);
            }
            assert_eq!(dispose(disposal).unwrap(), Disposed::Done);
            assert_eq!(dispose(disposal).unwrap(), Disposed::Gone, "repeated");
        }
        assert_eq!(read(&outbox.at(".dropwire/sent/report (2)/x")), "in it");
        #[cfg(unix)]
        assert_eq!(read(&outbox.at(".dropwire/sent/deep/report (1)/y")), "deeper");
        assert_eq!(read(&outbox.at(".dropwire/sent/report")), "a file");
    }
}

#[test]
fn another_version_stays() {
    let outbox = Outbox::new();
    let disposal = outbox.delivered("file", "old", AfterSend::Delete);
    fs::write(outbox.at("file"), "newer").unwrap();
    assert_eq!(dispose(&disposal).unwrap(), Disposed::Changed);
    let disposal = outbox.delivered("file", "old", AfterSend::Delete);
    overwrite_unseen(&outbox.at("file"), "new");
    assert_eq!(
        dispose(&disposal).unwrap(),
        Disposed::OtherBytes,
        "only the bytes tell"
    );
    fs::write(outbox.at("other"), "new").unwrap();
    fs::rename(outbox.at("other"), outbox.at("file")).unwrap();
    assert_eq!(dispose(&disposal).unwrap(), Disposed::Changed);
    assert_eq!(read(&outbox.at("file")), "new");
}

/// A large file that nothing but its bytes tells from what was delivered.
#[test]
fn where_a_change_may_not_show_large_files_are_compared_too() {
    let version = |ctime_ns| Version {
        inode: 1,
        birth_ns: 1,
        size: COMPARED_BELOW,
        mtime_ns: 1,
        ctime_ns,
        folder: false,
    };
    assert!(!shows_too_little(&version(1), TRUSTED));
    assert!(
        shows_too_little(&version(1), FileSystem::default()),
        "others write past it"
    );
    assert!(
        shows_too_little(&version(1_000_000_000), TRUSTED),
        "whole seconds"
    );
    let outbox = Outbox::new();
    let mut disposal = outbox.delivered("file", "old", AfterSend::Delete);
    let file = File::options().write(true).open(outbox.at("file")).unwrap();
    file.set_len(COMPARED_BELOW).unwrap();
    drop(file);
    disposal.version = Version::read(&File::open(outbox.at("file")).unwrap()).unwrap().0;
    while disposal.version.is_fresh(SystemTime::now()) {
        std::thread::yield_now();
    }
    let _untrusted = file_system::pretend(FileSystem::default());
    assert_eq!(dispose(&disposal).unwrap(), Disposed::OtherBytes);
}

/// As where a cache tells late what the move did to its times.
#[test]
fn what_the_move_itself_changed_holds_nothing_up() {
    let outbox = Outbox::new();
    let disposal = outbox.delivered("file", "bytes", AfterSend::Delete);
    while disposal.version.is_fresh(SystemTime::now()) {
        std::thread::yield_now();
    }
    let _untrusted = file_system::pretend(FileSystem::default());
    let moved = outbox.at(".dropwire/leaving").join(&disposal.name);
    let asked = std::cell::Cell::new(0);
    let stopped = || {
        if moved.exists() {
            asked.set(asked.get() + 1);
            if asked.get() == 2 {
                fs::set_permissions(&moved, fs::Permissions::from_mode(0o640)).unwrap();
            }
        }
        false
    };
    let told = dispose_all(std::slice::from_ref(&disposal), &stopped).remove(0);
    assert_eq!(told.unwrap(), Disposed::Done);
}

/// Its times may still be set by whoever wrote it.
#[test]
fn it_stays_in_place_for_a_while_after_its_last_change() {
    let outbox = Outbox::new();
    let mut disposal = outbox.delivered("file", "bytes", AfterSend::Archive);
    disposal.linger = Duration::from_secs(3600);
    assert_eq!(dispose(&disposal).unwrap(), Disposed::Lingers);
    assert!(outbox.at("file").exists());
    disposal.linger = Duration::ZERO;
    assert_eq!(dispose(&disposal).unwrap(), Disposed::Done);
    assert_eq!(dispose(&disposal).unwrap(), Disposed::Gone);
}

/// Our own steps with one name are no change of the others; anybody else's are.
#[cfg(unix)]
#[test]
fn further_names_of_a_file_leave_with_it() {
    use std::os::unix::fs::PermissionsExt;
    let outbox = Outbox::new();
    let linger = Duration::from_millis(500);
    for after in [AfterSend::Archive, AfterSend::Delete] {
        let first = outbox.delivered("0", "bytes", after);
        let links: Vec<_> = (0..5)
            .map(|n| {
                let path = RemotePath::parse(n.to_string().as_bytes()).unwrap();
                if n > 0 {
                    fs::hard_link(outbox.at("0"), outbox.at(&n.to_string())).unwrap();
                }
                Disposal {
                    name: n.to_string(),
                    path,
                    linger,
                    ..first.clone()
                }
            })
            .collect();
        let siblings = Siblings::default();
        let dispose = |links: &[Disposal]| -> Vec<_> {
            let answers = super::dispose_all(links, &siblings, &|| false);
            answers.into_iter().map(Result::unwrap).collect()
        };
        std::thread::sleep(linger);
        crate::fs::version::rests(&first.root);
        assert_eq!(dispose(&links[..2]), [Disposed::Done; 2], "in one go");
        assert_eq!(dispose(&links[2..3]), [Disposed::Done], "and by themselves");
        fs::set_permissions(outbox.at("3"), fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(dispose(&links[3..]), [Disposed::Lingers; 2], "touched");
        std::thread::sleep(linger);
        assert_eq!(dispose(&links[3..]), [Disposed::Done; 2]);
    }
}

#[test]
fn what_is_stopped_stays_where_it_is() {
    let outbox = Outbox::new();
    let disposal = outbox.delivered("file", "bytes", AfterSend::Delete);
    let asked = std::cell::Cell::new(0);
    for after in 0..2 {
        asked.set(0);
        let stopped = || asked.replace(asked.get() + 1) >= after;
        let answer = dispose_all(std::slice::from_ref(&disposal), &stopped).remove(0);
        assert!(matches!(answer, Err(DisposeError::Stopped)), "{answer:?}");
        assert_eq!(read(&outbox.at("file")), "bytes");
    }
    assert_eq!(dispose(&disposal).unwrap(), Disposed::Done);
}

#[cfg(unix)]
#[test]
fn a_touched_inode_with_the_same_bytes_leaves() {
    use std::os::unix::fs::PermissionsExt;
    let outbox = Outbox::new();
    let disposal = outbox.delivered("file", "bytes", AfterSend::Delete);
    fs::set_permissions(outbox.at("file"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(outbox.at("file"), outbox.at("link")).unwrap();
    assert_eq!(dispose(&disposal).unwrap(), Disposed::Done);
    assert_eq!(read(&outbox.at("link")), "bytes");
}

#[cfg(target_os = "linux")]
#[test]
fn a_writer_keeps_it_busy() {
    let outbox = Outbox::new();
    let disposal = outbox.delivered("file", "bytes", AfterSend::Delete);
    let writer = File::options().append(true).open(outbox.at("file")).unwrap();
    assert_eq!(dispose(&disposal).unwrap(), Disposed::Busy);
    drop(writer);
    assert_eq!(dispose(&disposal).unwrap(), Disposed::Done);
}

#[test]
fn begun_again_from_leaving() {
    for (after, archived) in [(AfterSend::Delete, false), (AfterSend::Archive, true)] {
        let outbox = Outbox::new();
        let disposal = outbox.delivered("sub/file", "bytes", after);
        outbox.in_leaving(&disposal);
        fs::remove_dir(outbox.at("sub")).unwrap();
        assert_eq!(dispose(&disposal).unwrap(), Disposed::Done);
        assert!(outbox.leaving_is_empty());
        assert_eq!(outbox.at(".dropwire/sent/sub/file").exists(), archived);
        assert_eq!(dispose(&disposal).unwrap(), Disposed::Gone);
    }
}

/// As a crash leaves it between the syncs of a rename's two directories, or between link and unlink.
#[cfg(unix)]
mod under_two_names {
    use super::*;

    fn twice(outbox: &Outbox, from: &Path, to: &str) {
        fs::create_dir_all(outbox.at(to).parent().unwrap()).unwrap();
        fs::hard_link(from, outbox.at(to)).unwrap();
    }

    #[test]
    fn its_path_and_leaving() {
        for (after, archived) in [(AfterSend::Delete, false), (AfterSend::Archive, true)] {
            let outbox = Outbox::new();
            let disposal = outbox.delivered("sub/file", "bytes", after);
            let leaving = outbox.in_leaving(&disposal);
            twice(&outbox, &leaving, "sub/file");
            // Where no lease tells of writers, the name that goes makes it fresh.
            let mut ended = (0..9).map(|_| dispose(&disposal).unwrap());
            assert_eq!(ended.find(|ended| *ended != Disposed::Busy), Some(Disposed::Done));
            assert!(!outbox.at("sub/file").exists() && outbox.leaving_is_empty());
            assert_eq!(outbox.at(".dropwire/sent/sub/file").exists(), archived);
            assert_eq!(dispose(&disposal).unwrap(), Disposed::Gone);
        }
    }

    #[test]
    fn its_path_and_leaving_and_written_to_since() {
        let outbox = Outbox::new();
        let disposal = outbox.delivered("file", "bytes", AfterSend::Delete);
        let leaving = outbox.in_leaving(&disposal);
        twice(&outbox, &leaving, "file");
        fs::write(outbox.at("file"), "newer").unwrap();
        assert_ne!(dispose(&disposal).unwrap(), Disposed::Done);
        assert_eq!(read(&outbox.at("file")), "newer");
        assert!(outbox.leaving_is_empty());
    }

    #[test]
    fn leaving_and_the_archive() {
        for (taken, on) in [0, 1, 5]
            .into_iter()
            .flat_map(|taken| [(taken, TRUSTED), (taken, FileSystem::default())])
        {
            let outbox = Outbox::new();
            let _on = file_system::pretend(on);
            let folder = outbox.at(".dropwire/sent/sub");
            fs::create_dir_all(&folder).unwrap();
            let archived = |n| match n {
                0 => folder.join("file.txt"),
                n => folder.join(format!("file ({n}).txt")),
            };
            (0..taken).for_each(|n| fs::write(archived(n), "older").unwrap());
            let disposal = outbox.delivered("sub/file.txt", "bytes", AfterSend::Archive);
            fs::hard_link(outbox.in_leaving(&disposal), archived(taken)).unwrap();
            // Another of that name was archived behind it.
            fs::write(archived(taken + 1), "younger").unwrap();
            assert_eq!(dispose(&disposal).unwrap(), Disposed::Done);
            assert!(outbox.leaving_is_empty());
            assert_eq!(read(&archived(taken)), "bytes");
            assert_eq!(fs::read_dir(&folder).unwrap().count() as u64, taken + 2);
            assert_eq!(dispose(&disposal).unwrap(), Disposed::Gone);
        }
    }

    #[test]
    fn leaving_and_a_name_beside_its_path() {
        let outbox = Outbox::new();
        let disposal = outbox.delivered("file.txt", "old", AfterSend::Archive);
        let leaving = outbox.in_leaving(&disposal);
        fs::write(&leaving, "changed").unwrap();
        fs::write(outbox.at("file.txt"), "taken").unwrap();
        twice(&outbox, &leaving, "file (1).txt");
        assert_eq!(dispose(&disposal).unwrap(), Disposed::Changed);
        assert_eq!(read(&outbox.at("file (1).txt")), "changed");
        assert!(outbox.leaving_is_empty() && !outbox.at("file (2).txt").exists());
    }

    /// Its own name in the archive is free: a link of the same file elsewhere is another item's.
    #[test]
    fn a_link_of_it_elsewhere_is_another_drops() {
        let outbox = Outbox::new();
        let disposal = outbox.delivered("file", "bytes", AfterSend::Archive);
        let leaving = outbox.in_leaving(&disposal);
        twice(&outbox, &leaving, ".dropwire/sent/other");
        twice(&outbox, &leaving, "other");
        assert_eq!(dispose(&disposal).unwrap(), Disposed::Done);
        assert_eq!(read(&outbox.at(".dropwire/sent/file")), "bytes");
        assert!(outbox.at("other").exists());
    }
}

#[test]
fn a_new_drop_of_the_name_is_not_touched_by_the_old_ones_disposal() {
    let outbox = Outbox::new();
    let disposal = outbox.delivered("file", "old", AfterSend::Delete);
    outbox.in_leaving(&disposal);
    fs::write(outbox.at("file"), "new drop").unwrap();
    assert_eq!(dispose(&disposal).unwrap(), Disposed::Done);
    assert_eq!(read(&outbox.at("file")), "new drop");
    assert_eq!(dispose(&disposal).unwrap(), Disposed::Changed);
    assert_eq!(read(&outbox.at("file")), "new drop");
}

#[test]
fn changed_in_leaving_is_given_back() {
    let outbox = Outbox::new();
    let disposal = outbox.delivered("sub/file.txt", "old", AfterSend::Delete);
    let leaving = outbox.in_leaving(&disposal);
    fs::remove_dir(outbox.at("sub")).unwrap();
    overwrite_unseen(&leaving, "new");
    assert_eq!(dispose(&disposal).unwrap(), Disposed::OtherBytes);
    assert_eq!(read(&outbox.at("sub/file.txt")), "new");

    let leaving = outbox.in_leaving(&disposal);
    fs::write(outbox.at("sub/file.txt"), "taken").unwrap();
    assert!(leaving.exists());
    assert_eq!(dispose(&disposal).unwrap(), Disposed::Changed);
    assert_eq!(read(&outbox.at("sub/file.txt")), "taken");
    assert_eq!(read(&outbox.at("sub/file (1).txt")), "new");
    assert!(outbox.leaving_is_empty());
}

#[test]
fn a_file_that_went_is_gone_and_an_outbox_without_mark_says_nothing() {
    let outbox = Outbox::new();
    let disposal = outbox.delivered("a/b/file", "bytes", AfterSend::Delete);
    fs::remove_dir_all(outbox.at("a")).unwrap();
    assert_eq!(dispose(&disposal).unwrap(), Disposed::Gone);
    let stranger = Disposal {
        outbox: OutboxId([7; 16]),
        ..disposal.clone()
    };
    assert!(matches!(dispose(&stranger), Err(DisposeError::Held(..))));
    fs::remove_file(outbox.at(".dropwire/id")).unwrap();
    assert!(matches!(dispose(&disposal), Err(DisposeError::Held(..))));
}

#[cfg(unix)]
#[test]
fn no_symlink_is_followed() {
    let outbox = Outbox::new();
    let disposal = outbox.delivered("a/file", "bytes", AfterSend::Delete);
    fs::rename(outbox.at("a"), outbox.at("b")).unwrap();
    std::os::unix::fs::symlink("b", outbox.at("a")).unwrap();
    assert_eq!(dispose(&disposal).unwrap(), Disposed::Gone);
    assert_eq!(read(&outbox.at("b/file")), "bytes");
}

#[cfg(target_os = "linux")]
#[test]
fn busy_in_leaving_gets_its_name_back_or_waits_there() {
    if !failpoints::needs::removal_of_open_files() {
        return;
    }
    let outbox = Outbox::new();
    let disposal = outbox.delivered("file", "bytes", AfterSend::Delete);
    let leaving = outbox.in_leaving(&disposal);
    let writer = File::options().append(true).open(&leaving).unwrap();
    assert_eq!(dispose(&disposal).unwrap(), Disposed::Busy);
    assert!(outbox.at("file").exists() && outbox.leaving_is_empty());
    outbox.in_leaving(&disposal);
    fs::write(outbox.at("file"), "taken").unwrap();
    assert_eq!(dispose(&disposal).unwrap(), Disposed::Busy);
    assert!(leaving.exists());
    drop(writer);
    assert_eq!(dispose(&disposal).unwrap(), Disposed::Done);
    assert_eq!(read(&outbox.at("file")), "taken");
}

#[test]
fn many_share_their_syncs_and_are_answered_one_by_one() {
    let (one, other) = (Outbox::new(), Outbox::new());
    let mut disposals = Vec::new();
    for i in 0..150 {
        let outbox = if i < 140 { &one } else { &other };
        let path = format!("sub{}/{i}", i % 3);
        let mut disposal = outbox.delivered(&path, &path, AfterSend::Archive);
        disposal.name = format!("{i:032x}");
        disposals.push(disposal);
    }
    fs::write(one.at("sub1/7"), "changed").unwrap();
    fs::remove_file(one.at("sub2/8")).unwrap();
    let answers = dispose_all(&disposals, &|| false);
    assert_eq!(answers.len(), disposals.len());
    for (i, (answer, disposal)) in answers.iter().zip(&disposals).enumerate() {
        let expected = match i {
            7 => Disposed::Changed,
            8 => Disposed::Gone,
            _ => Disposed::Done,
        };
        assert_eq!(*answer.as_ref().unwrap(), expected, "{i}");
        let archive = disposal.root.join(".dropwire/sent");
        let archived = confined::join(&archive, &disposal.path).exists();
        assert_eq!(archived, expected == Disposed::Done, "{i}");
    }
    assert!(one.leaving_is_empty() && other.leaving_is_empty());
}

#[cfg(target_os = "linux")]
mod order {
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;
    use crate::fs::durable::trace::{self, Call, sync};

    fn calls(outbox: &Outbox, work: impl FnOnce()) -> Vec<Call> {
        let before = trace::of(outbox.temp.path()).len();
        work();
        trace::of(outbox.temp.path()).split_off(before)
    }

    fn named(from: &str, to: &str) -> Call {
        Call::Name(from.into(), to.into())
    }

    #[test]
    fn each_step_is_durable_before_the_next() {
        if !failpoints::needs::renames() {
            return;
        }
        let outbox = Outbox::new();
        let disposal = outbox.delivered("sub/file", "bytes", AfterSend::Archive);
        let leaving = format!(".dropwire/leaving/{}", disposal.name);
        let archived = calls(&outbox, || {
            assert_eq!(dispose(&disposal).unwrap(), Disposed::Done);
        });
        let into_leaving = [
            sync(".dropwire"),
            named("sub/file", &leaving),
            sync(".dropwire/leaving"),
            sync("sub"),
        ];
        let into_sent = [
            sync(".dropwire"), // its new folder `sent`
            sync(".dropwire/sent"),
            named(&leaving, ".dropwire/sent/sub/file"),
            sync(".dropwire/sent/sub"),
            sync(".dropwire/leaving"),
        ];
        assert_eq!(archived, [&into_leaving[..], &into_sent].concat());

        let disposal = outbox.delivered("sub/file", "bytes", AfterSend::Delete);
        let deleted = calls(&outbox, || {
            assert_eq!(dispose(&disposal).unwrap(), Disposed::Done);
        });
        let gone = [Call::Unlink(leaving.clone().into()), sync(".dropwire/leaving")];
        assert_eq!(deleted, [&into_leaving[..], &gone].concat());

        let repeated = calls(&outbox, || {
            assert_eq!(dispose(&disposal).unwrap(), Disposed::Gone);
        });
        assert!(repeated.contains(&sync("sub")), "{repeated:#?}");

        // What a kill left in `leaving` has left its path, but nobody synced that.
        let disposal = outbox.delivered("sub/file", "bytes", AfterSend::Delete);
        outbox.in_leaving(&disposal);
        let begun_again = calls(&outbox, || {
            assert_eq!(dispose(&disposal).unwrap(), Disposed::Done);
        });
        let removed = begun_again.iter().position(|c| *c == gone[0]).unwrap();
        let synced = [sync(".dropwire/leaving"), sync("sub")];
        assert!(begun_again[..removed].ends_with(&synced), "{begun_again:#?}");

        let disposal = outbox.delivered("sub/file", "bytes", AfterSend::Delete);
        fs::write(outbox.in_leaving(&disposal), "other").unwrap();
        let back = calls(&outbox, || {
            assert_ne!(dispose(&disposal).unwrap(), Disposed::Done);
        });
        let at = back
            .iter()
            .position(|c| *c == named(&leaving, "sub/file"))
            .unwrap();
        assert!(
            back[..at].contains(&sync("")),
            "the folder it came from may be new"
        );
        assert_eq!(back[at + 1..at + 3], [sync("sub"), sync(".dropwire/leaving")]);
    }

    /// One sync of the file system stands for those of many folders; `leaving` still comes first, and last.
    #[test]
    fn many_folders_are_synced_together_in_the_same_order() {
        let root = confined::root(&std::env::temp_dir()).unwrap();
        if !durable::sync_handle(&root).is_ok_and(|sync_handle| durable::supports_syncfs(&sync_handle)) {
            return failpoints::skip("no trusted syncfs in the temporary folder");
        }
        let outbox = Outbox::new();
        let _syncfs = file_system::pretend(FileSystem {
            syncfs_reports: true,
            ..TRUSTED
        });
        let delivered = |i: usize| {
            let path = format!("sub{i}/file");
            let name = format!("{i:032x}");
            Disposal {
                name,
                ..outbox.delivered(&path, &path, AfterSend::Archive)
            }
        };
        let disposals: Vec<Disposal> = (0..20).map(delivered).collect();
        let calls = calls(&outbox, || {
            assert!(
                dispose_all(&disposals, &|| false)
                    .iter()
                    .all(|a| *a.as_ref().unwrap() == Disposed::Done)
            );
        });
        let leaving = ".dropwire/leaving";
        let together = Call::Sync("syncfs", leaving.into());
        let named = |from: fn(&Disposal) -> String, to: fn(&Disposal) -> String| {
            disposals.iter().map(move |d| named(&from(d), &to(d)))
        };
        let path = |d: &Disposal| d.path.to_string();
        let on_its_way = |d: &Disposal| format!(".dropwire/leaving/{}", d.name);
        let archived = |d: &Disposal| format!(".dropwire/sent/{}", d.path);
        let mut expected = vec![sync(".dropwire")];
        expected.extend(named(path, on_its_way));
        expected.extend([sync(leaving), together.clone()]);
        expected.extend(named(on_its_way, archived));
        expected.extend([together, sync(leaving)]);
        assert_eq!(calls, expected);
    }

    #[test]
    fn a_folder_whose_sync_failed_is_not_asked_again() {
        if !failpoints::needs::renames() {
            return;
        }
        for at in [".dropwire", ".dropwire/leaving", "sub", ".dropwire/sent/sub"] {
            let outbox = Outbox::new();
            let disposal = outbox.delivered("sub/file", "bytes", AfterSend::Archive);
            let mut beside = outbox.delivered("sub/beside", "bytes", AfterSend::Archive);
            beside.name = "11112233445566778899aabbccddeeff".into();
            trace::before(outbox.temp.path(), sync(at), trace::disk_error);
            let answers = dispose_all(&[disposal, beside], &|| false);
            let unsynced = |answer: &_| matches!(answer, Err(DisposeError::Unsynced(..)));
            assert!(answers.iter().all(unsynced), "{at}: {answers:?}");
            assert_eq!(
                trace::of(outbox.temp.path()).last(),
                Some(&sync(at)),
                "nothing after it"
            );
        }
    }

    /// What could not be asked of the disk lost nothing: tried again, without a restart.
    #[test]
    fn only_a_sync_that_the_disk_refused_holds_the_outbox() {
        let outbox = Outbox::new();
        let disposal = outbox.delivered("sub/file", "bytes", AfterSend::Archive);
        let refused = |code| io::Error::from_raw_os_error(code);
        for (error, holds) in [
            (refused(libc::EMFILE), false),
            (refused(libc::ENFILE), false),
            (refused(libc::ENOMEM), false),
            (refused(libc::EINTR), false),
            (refused(libc::EACCES), false),
            (refused(libc::EIO), false), // of the opening
            (LostWrite::wrap(refused(libc::EIO)), true),
            (LostWrite::wrap(refused(libc::ENOMEM)), true),
        ] {
            let root = open(&disposal).unwrap();
            let top = Tops::of(&root).unwrap().find(&disposal.path).unwrap();
            let siblings = Siblings::default();
            let steps = Steps::begin(&disposal, &root, &top, &siblings, &|| false).unwrap();
            let text = error.to_string();
            assert!(steps.synced(|| Err(error)).is_err());
            assert_eq!(steps.trusted().is_err(), holds, "{text}");
        }
    }

    /// A shortage came after the rename into the archive: that name is made durable before the old one's absence.
    #[test]
    fn what_may_be_in_the_archive_already_is_synced_there_first() {
        let outbox = Outbox::new();
        let disposal = outbox.delivered("sub/file", "bytes", AfterSend::Archive);
        assert_eq!(dispose(&disposal).unwrap(), Disposed::Done);
        let calls = calls(&outbox, || {
            assert_eq!(dispose(&disposal).unwrap(), Disposed::Gone);
        });
        let at = |path: &str| calls.iter().position(|call| *call == sync(path));
        let place = at(".dropwire/sent/sub");
        assert!(place.is_some() && place < at(".dropwire/leaving"), "{calls:#?}");
    }

    #[test]
    fn what_is_swapped_in_at_the_last_moment_is_given_back() {
        let outbox = Outbox::new();
        let disposal = outbox.delivered("file", "bytes", AfterSend::Delete);
        let leaving = format!(".dropwire/leaving/{}", disposal.name);
        fs::write(outbox.at("other"), "other").unwrap();
        let (other, file) = (outbox.at("other"), outbox.at("file"));
        trace::before(outbox.temp.path(), named("file", &leaving), move || {
            fs::rename(other, file)
        });
        // Where it has no number of its own, its bytes tell.
        let told = dispose(&disposal).unwrap();
        assert!(
            matches!(told, Disposed::Changed | Disposed::OtherBytes),
            "{told:?}"
        );
        assert_eq!(read(&outbox.at("file")), "other");
    }

    #[test]
    fn what_is_swapped_in_is_given_back_also_where_only_its_bytes_tell() {
        let outbox = Outbox::new();
        let _untrusted = file_system::pretend(FileSystem::default());
        let disposal = outbox.delivered("file", "bytes", AfterSend::Delete);
        let leaving = format!(".dropwire/leaving/{}", disposal.name);
        let time = fs::metadata(outbox.at("file")).unwrap().modified().unwrap();
        fs::write(outbox.at("other"), "other").unwrap();
        let other = File::options().write(true).open(outbox.at("other")).unwrap();
        file_system::set_modified(&other, time).unwrap();
        drop(other);
        let (other, file) = (outbox.at("other"), outbox.at("file"));
        trace::before(outbox.temp.path(), named("file", &leaving), move || {
            fs::rename(other, file)
        });
        assert_eq!(dispose(&disposal).unwrap(), Disposed::OtherBytes);
        assert_eq!(read(&outbox.at("file")), "other");
    }

    /// The lease held it up; it must not write to a file without a name.
    #[test]
    fn a_writer_that_came_meanwhile_gets_its_file_back() {
        if !failpoints::needs::renames() {
            return;
        }
        for step in [sync("sub"), sync(".dropwire/leaving")] {
            let outbox = Outbox::new();
            let disposal = outbox.delivered("sub/file", "bytes", AfterSend::Delete);
            let leaving = outbox.at(".dropwire/leaving").join(&disposal.name);
            trace::before(outbox.temp.path(), step, move || {
                let mut options = File::options();
                let writer = options.append(true).custom_flags(libc::O_NONBLOCK).open(leaving);
                assert_eq!(writer.unwrap_err().kind(), io::ErrorKind::WouldBlock);
                Ok(())
            });
            assert_eq!(dispose(&disposal).unwrap(), Disposed::Busy);
            assert_eq!(read(&outbox.at("sub/file")), "bytes");
        }
    }
}

#[test]
fn a_marker_leaves_with_its_file() {
    let outbox = Outbox::new();
    for after in [AfterSend::Delete, AfterSend::Archive] {
        let mut disposal = outbox.delivered("sub/x", "bytes", after);
        disposal.marker = Some(".done".into());
        let held = outbox
            .at(".dropwire/leaving")
            .join(format!("{}.marker", disposal.name));
        fs::write(outbox.at("other"), "other bytes").unwrap();
        fs::write(outbox.at("sub/x.done"), "").unwrap();
        assert_eq!(dispose(&disposal).unwrap(), Disposed::Done);
        assert_eq!(fs::read_dir(outbox.at("sub")).unwrap().count(), 0);
        assert!(!held.exists());
        // A crash came after the file had left, and before its marker was removed.
        fs::write(&held, "").unwrap();
        assert_eq!(dispose(&disposal).unwrap(), Disposed::Gone);
        assert!(!held.exists());
        // Another file has the path, written before its marker was taken: it is not complete by that one.
        fs::write(&held, "").unwrap();
        fs::rename(outbox.at("other"), outbox.at("sub/x")).unwrap();
        assert_eq!(dispose(&disposal).unwrap(), Disposed::Changed);
        assert_eq!(fs::read_dir(outbox.at("sub")).unwrap().count(), 1);
        assert!(!held.exists());
        fs::remove_dir_all(outbox.at("sub")).unwrap();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_marker_goes_before_its_file() {
    use crate::fs::durable::trace::{self, Call};
    let outbox = Outbox::new();
    let mut disposal = outbox.delivered("x", "bytes", AfterSend::Delete);
    disposal.marker = Some(".done".into());
    fs::write(outbox.at("x.done"), "").unwrap();
    assert_eq!(dispose(&disposal).unwrap(), Disposed::Done);
    let calls = trace::of(outbox.temp.path());
    let moved = |from: &str| {
        let from = Path::new(from);
        calls
            .iter()
            .position(|call| matches!(call, Call::Name(was, _) if was == from))
            .unwrap()
    };
    assert!(moved("x.done") < moved("x"), "{calls:#?}");
    let unlinked = |call: &Call| matches!(call, Call::Unlink(path) if path.extension().is_some());
    let removed = calls.iter().position(unlinked).unwrap();
    assert!(
        calls
            .iter()
            .skip(removed)
            .any(|c| *c == trace::sync(".dropwire/leaving")),
        "{calls:#?}"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn what_a_writer_has_keeps_its_marker() {
    let outbox = Outbox::new();
    let mut disposal = outbox.delivered("x", "bytes", AfterSend::Delete);
    disposal.marker = Some(".done".into());
    let held = outbox
        .at(".dropwire/leaving")
        .join(format!("{}.marker", disposal.name));
    fs::create_dir_all(outbox.at(".dropwire/leaving")).unwrap();
    fs::write(&held, "").unwrap(); // a crash came between the two renames
    let writer = File::options().append(true).open(outbox.at("x")).unwrap();
    assert_eq!(dispose(&disposal).unwrap(), Disposed::Busy);
    assert!(outbox.at("x.done").exists() && !held.exists());
    drop(writer);
    assert_eq!(dispose(&disposal).unwrap(), Disposed::Done);
    assert!(!outbox.at("x").exists() && !outbox.at("x.done").exists() && !held.exists());
}

#[cfg(target_os = "linux")]
#[path = "mount_tests.rs"]
mod mounts;
