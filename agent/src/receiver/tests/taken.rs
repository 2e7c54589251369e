//! Somebody takes partials out of the partials' folder while they arrive, or a file cannot get its name: nothing is
//! delivered that is not there, and nothing is sent again that is.

use std::{fs, io, os::unix::fs::MetadataExt as _};

use dropwire_protocol::message::DeclineReason::*;

use super::{order::partial_of, *};
use crate::fs::{
    durable::trace::{self, Call},
    file_system,
};

/// Something is to happen right before the partial of `n` gets its name.
fn before_its_name(rig: &Rig, n: u8, name: &str, hook: impl FnOnce() -> io::Result<()> + Send + 'static) {
    trace::before(&rig.root(), Call::Name(partial_of(n), name.into()), hook);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_that_is_taken_before_it_gets_its_name_is_received_again() {
    if !crate::failpoints::needs::removal_of_open_files() {
        return;
    }
    let rig = Rig::new().await;
    let mut link = rig.link(ANA);
    for (n, bytes) in [(1, b"small".to_vec()), (2, content(2 * CHUNK))] {
        let name = format!("file {n}");
        let partial = rig.root().join(partial_of(n));
        before_its_name(&rig, n, &name, move || fs::remove_file(partial));
        assert_eq!(refused(&link.send(id(n), &name, &bytes).await), Busy);
        assert!(rig.row(ANA, id(n)).await.is_none() && rig.partials() == 0);
        assert_eq!(delivered_as(&link.send(id(n), &name, &bytes).await), name);
    }
    assert_eq!(rig.names(), ["file 1", "file 2"]);
    assert_eq!(rig.inbox.status().await.received_files, 2);
}

/// Right before it would get the name, too, and whether or not a number tells one file from another.
#[tokio::test(flavor = "multi_thread")]
async fn another_file_in_the_partial_s_place_is_not_delivered() {
    for numbers_last in [true, false] {
        if numbers_last && !crate::failpoints::needs::lasting_inodes() {
            continue;
        }
        let rig = Rig::new().await;
        if !numbers_last {
            rig.inbox.shared.handle.distrust_numbers_from_now_on();
        }
        let mut link = rig.link(ANA);
        for (n, bytes) in [(1, b"small".to_vec()), (2, content(2 * CHUNK))] {
            let name = format!("file {n}");
            let other = vec![7; bytes.len()];
            replace_before_its_name(&rig, n, other);
            assert_eq!(refused(&link.send(id(n), &name, &bytes).await), Busy);
            assert!(rig.names().is_empty() && rig.partials() == 0);
            assert_eq!(delivered_as(&link.send(id(n), &name, &bytes).await), name);
            assert!(rig.files() == [(name.clone(), bytes)]);
            fs::remove_file(rig.root().join(name)).unwrap();
        }
    }
}

/// Where no number tells, a copy is as good; it is made durable, as nobody knows whether it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_in_the_partial_s_place_is_delivered_where_bytes_decide() {
    let rig = Rig::new().await;
    rig.inbox.shared.handle.distrust_numbers_from_now_on();
    let mut link = rig.link(ANA);
    for (n, bytes) in [(1, b"small".to_vec()), (2, content(2 * CHUNK))] {
        let name = format!("file {n}");
        replace_before_its_name(&rig, n, bytes.clone());
        assert_eq!(delivered_as(&link.send(id(n), &name, &bytes).await), name);
        assert_eq!(fs::read(rig.root().join(&name)).unwrap(), bytes);
        let partial = partial_of(n);
        let calls = trace::of(&rig.root());
        let of_it = |call: &&Call| match call {
            Call::Sync("sync", at) => *at == partial,
            Call::Name(from, _) => *from == partial,
            _ => false,
        };
        let of_it: Vec<_> = calls.iter().filter(of_it).collect();
        assert!(
            matches!(of_it[..], [.., Call::Sync(..), Call::Sync(..), Call::Name(..)]),
            "{of_it:#?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_replaces_a_partial_while_it_is_read_is_not_delivered() {
    let rig = Rig::new().await;
    rig.inbox.shared.handle.distrust_numbers_from_now_on();
    let (mut link, bytes) = (rig.link(ANA), content(2 * CHUNK));
    let (root, partial) = (rig.root(), rig.root().join(partial_of(1)));
    let other = vec![7; bytes.len() + 1];
    let copy = bytes.clone();
    trace::before(&rig.root(), trace::sync(".dropwire/partial"), move || {
        let swap = partial.clone();
        let read = Call::Sync("sync", partial_of(1));
        trace::before(&root, read, move || replace(&swap, other));
        replace(&partial, copy)
    });
    assert_eq!(refused(&link.send(id(1), "file", &bytes).await), Busy);
    assert!(rig.names().is_empty());
    assert_eq!(delivered_as(&link.send(id(1), "file", &bytes).await), "file");
    assert!(rig.files() == [("file".into(), bytes)]);
}

/// When the verified one is durable.
fn replace_before_its_name(rig: &Rig, n: u8, bytes: Vec<u8>) {
    let partial = rig.root().join(partial_of(n));
    trace::before(&rig.root(), trace::sync(".dropwire/partial"), move || {
        replace(&partial, bytes)
    });
}

/// By another file with the same times.
fn replace(partial: &Path, bytes: Vec<u8>) -> io::Result<()> {
    let (old, new) = (fs::metadata(partial)?, partial.with_extension("new"));
    fs::write(&new, bytes)?;
    file_system::set_modified(&fs::File::options().write(true).open(&new)?, old.modified()?)?;
    fs::rename(new, partial)
}

/// Not only once all of it came.
#[tokio::test(flavor = "multi_thread")]
async fn a_partial_that_is_taken_while_it_arrives_is_noticed_at_the_next_checkpoint() {
    let rig = Rig::new().await;
    let (mut link, bytes) = (rig.link(ANA), content(17 << 20));
    let (sequence, _) = link.opened(id(1), "file", 20 << 20).await;
    fs::remove_file(rig.root().join(partial_of(1))).unwrap();
    link.write(id(1), sequence, 0, &bytes, 0, bytes.len()).await;
    assert_eq!(refused(&link.next().await), Busy);
    let (_, again) = link.opened(id(1), "file", 20 << 20).await;
    assert!(matches!(again, Outcome::Opened { offset: 0, .. }), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_folder_of_which_a_piece_is_taken_is_made_again() {
    if !crate::failpoints::needs::renames() {
        return;
    }
    let rig = Rig::new().await;
    let mut link = Link {
        kind: Kind::Folder,
        ..rig.link(ANA)
    };
    let stream = whole::stream();
    let unpacked = rig.root().join(partial_of(1)).with_extension("d");
    let partials = trace::sync(".dropwire/partial");
    trace::before(&rig.root(), partials, move || fs::remove_file(unpacked.join("a")));
    assert_eq!(refused(&link.send(id(1), "folder", &stream).await), Busy);
    assert!(rig.names().is_empty());
    let (sequence, first) = link.opened(id(1), "folder", stream.len() as u64).await;
    assert!(matches!(first, Outcome::Opened { offset, .. } if offset == stream.len() as u64));
    link.finish(id(1), sequence, 0, digest(&stream)).await;
    assert_eq!(delivered_as(&link.next().await), "folder");
    assert_eq!(rig.files(), whole::files_of("folder"));
}

/// Its commit may take long: nobody is to see what is short, nor is it told as delivered.
#[tokio::test(flavor = "multi_thread")]
async fn a_whole_folder_that_loses_a_piece_while_it_is_committed_is_made_again() {
    if !crate::failpoints::needs::renames() {
        return;
    }
    let folder = partial_of(1).with_extension("d");
    let stream = whole::stream();
    for late in [false, true] {
        let rig = Rig::new().await;
        let piece = rig.root().join(&folder).join("sub/b");
        let takes = move || fs::remove_file(&piece);
        let named = Call::Name(folder.clone(), "folder".into());
        let rig = match late {
            true => {
                trace::before(&rig.root(), named.clone(), takes);
                rig
            }
            false => rig.signing(move || drop(takes())).await,
        };
        let mut link = Link {
            kind: Kind::Folder,
            ..rig.link(ANA)
        };
        assert_eq!(refused(&link.send(id(1), "folder", &stream).await), Busy);
        assert_eq!(trace::of(&rig.root()).contains(&named), late);
        assert!(rig.names().is_empty() && !rig.root().join("folder").exists());
        assert_eq!(rig.inbox.status().await.received_files, 0);
        assert_eq!(delivered_as(&link.send(id(1), "folder", &stream).await), "folder");
        assert_eq!((rig.files(), rig.partials()), (whole::files_of("folder"), 0));
    }
}

/// Who moves it away as soon as it is seen has it.
#[tokio::test(flavor = "multi_thread")]
async fn another_folder_that_has_the_name_by_then_is_left_alone() {
    if !crate::failpoints::needs::lasting_inodes() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let inbox_dir = inbox_dir::InboxDir::alone(temp.path());
    let (key, name) = ((ANA, id(1)), std::ffi::OsStr::new("folder"));
    let check = |inode| {
        evidence::named_whole(
            &inbox_dir,
            inbox_dir.names,
            key,
            inode,
            &inbox_dir.partials,
            (&inbox_dir.root, name),
        )
    };
    assert!(check(1).is_ok(), "it was taken, all of it");
    inbox_dir.root.create_dir(name).unwrap();
    let inode = fs::metadata(temp.path().join(name)).unwrap().ino();
    assert!(check(inode + 1).is_err() && temp.path().join(name).exists());
    assert!(check(inode).is_err() && !temp.path().join(name).exists());
    assert!(partial::folder(&inbox_dir, key).is_ok());
}

/// As after an error that makes it read-only: the receiver says so too.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_takes_nothing_is_told_at_the_receiver() {
    let rig = Rig::new().await;
    let mut link = rig.link(ANA);
    for code in [libc::EROFS, libc::EACCES, libc::EIO] {
        before_its_name(&rig, 1, "file", move || Err(io::Error::from_raw_os_error(code)));
        refused(&link.send(id(1), "file", b"x").await);
        let declined = rig.inbox.status().await.declined.unwrap();
        assert!(declined.contains(&format!("os error {code}")), "{declined}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_whole_and_cannot_be_named_now_is_not_sent_again() {
    let rig = Rig::new().await;
    let (mut link, bytes) = (rig.link(ANA), content(3 * CHUNK + 5));
    let size = bytes.len() as u64;
    before_its_name(&rig, 1, "file", || {
        Err(io::Error::from_raw_os_error(libc::EACCES))
    });
    assert_eq!(refused(&link.send(id(1), "file", &bytes).await), InboxUnavailable);
    let inode = fs::metadata(rig.root().join(partial_of(1))).unwrap().ino();
    let (sequence, first) = link.opened(id(1), "file", size).await;
    assert!(
        matches!(first, Outcome::Opened { offset, .. } if offset == size),
        "{first:?}"
    );
    link.finish(id(1), sequence, 0, digest(&bytes)).await;
    assert_eq!(delivered_as(&link.next().await), "file");
    assert!(rig.files() == [("file".into(), bytes)]);
    assert_eq!(fs::metadata(rig.root().join("file")).unwrap().ino(), inode);
}

/// Nor does the old name speak for a file that is to get one.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_taken_as_soon_as_it_is_linked_arrives_once() {
    let rig = Rig::new().await;
    rig.inbox.shared.handle.link_from_now_on();
    let (mut link, bytes) = (rig.link(ANA), content(2 * CHUNK));
    for (n, bytes) in [(1, b"small".to_vec()), (2, bytes)] {
        let (name, root) = (format!("file {n}"), rig.root());
        let taken = rig.root().join(&name);
        before_its_name(&rig, n, &name, move || {
            let takes = move || {
                fs::remove_file(taken)?;
                Err(io::Error::from_raw_os_error(libc::EMFILE))
            };
            trace::before(&root, Call::Sync("open", "".into()), takes);
            Ok(())
        });
        assert_eq!(refused(&link.send(id(n), &name, &bytes).await), Busy);
        let (_, again) = link.opened(id(n), &name, bytes.len() as u64).await;
        assert_eq!(delivered_as(&again), name);
    }
    assert!(rig.names().is_empty() && rig.partials() == 0);
    assert_eq!(rig.inbox.status().await.received_files, 2);
}

/// Into which a name could be put, and not be made durable.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_read_gets_no_file() {
    let rig = Rig::new().await;
    fs::create_dir(rig.root().join("sub")).unwrap();
    let mut link = rig.link(ANA);
    for (n, bytes) in [(1, b"small".to_vec()), (2, content(2 * CHUNK))] {
        let name = format!("sub/{n}");
        let unreadable = || Err(io::Error::from_raw_os_error(libc::EACCES));
        trace::before(&rig.root(), Call::Sync("open", "sub".into()), unreadable);
        let before = rig.names();
        assert_eq!(refused(&link.send(id(n), &name, &bytes).await), InboxUnavailable);
        assert_eq!(rig.names(), before);
        let row = rig.row(ANA, id(n)).await;
        assert!(!matches!(row, Some(ledger::State::Placing(_))), "{row:?}");
        let declined = rig.inbox.status().await.declined.unwrap();
        assert!(declined.contains("cannot read it"), "{declined}");
        assert_eq!(delivered_as(&link.send(id(n), &name, &bytes).await), name);
    }
}

/// A folder that cannot be opened to be synced has lost nothing: with descriptors again the file is delivered, also if
/// somebody took it out of the inbox meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_shortage_of_descriptors_passes() {
    if !crate::failpoints::needs::renames() {
        return;
    }
    let rig = Rig::new().await;
    let mut link = rig.link(ANA);
    for (n, name) in [(1, "stays"), (2, "taken")] {
        let root = rig.root();
        before_its_name(&rig, n, name, move || {
            let shortage = || Err(io::Error::from_raw_os_error(libc::EMFILE));
            trace::before(&root, Call::Sync("open", "".into()), shortage);
            Ok(())
        });
        assert_eq!(refused(&link.send(id(n), name, b"x").await), Busy);
        if name == "taken" {
            fs::remove_file(rig.root().join(name)).unwrap();
        }
        assert_eq!(delivered_as(&link.opened(id(n), name, 1).await.1), name);
    }
    assert_eq!(delivered_as(&link.send(id(3), "next", b"y").await), "next");
    assert_eq!(rig.names(), ["next", "stays"]);
    assert_eq!(rig.inbox.status().await.received_files, 3);
}
