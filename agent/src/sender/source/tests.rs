use std::{fs, path::Path};

use dropwire_protocol::{RemotePath, RunningDigest, message::MAX_CHUNK};

use super::{pass::Pass, *};
use crate::fs::{
    border, confined, folder_id, own_folder,
    version::{OutboxId, Version},
};

struct Outbox {
    temp: tempfile::TempDir,
    id: OutboxId,
}

impl Outbox {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let id = OutboxId(folder_id::create(&confined::root(temp.path()).unwrap()).unwrap());
        Self { temp, id }
    }

    fn root(&self) -> &Path {
        self.temp.path()
    }

    /// A file written and closed, and its version.
    fn file(&self, name: &str, bytes: &[u8]) -> (RemotePath, Version) {
        fs::write(self.root().join(name), bytes).unwrap();
        crate::fs::version::rests(self.root());
        let version = Version::read(&fs::File::open(self.root().join(name)).unwrap())
            .unwrap()
            .0;
        (RemotePath::parse(name.as_bytes()).unwrap(), version)
    }

    fn source(&self, path: &RemotePath, version: Version) -> FileSource {
        FileSource::new(
            self.root().to_path_buf(),
            self.found(path, version),
            SmallReads::default(),
        )
    }

    fn found(&self, path: &RemotePath, version: Version) -> Found {
        Found {
            outbox: self.id,
            path: path.clone(),
            version,
        }
    }
}

fn digest(bytes: &[u8]) -> Digest {
    let mut hash = RunningDigest::default();
    hash.update(bytes);
    hash.value()
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

/// All pieces of a pass: the bytes, checked for order and digests, and how it ended.
async fn pass(source: &FileSource, offset: u64, before: &[u8]) -> (Vec<u8>, Result<Digest, Voided>) {
    let (out, mut pieces) = mpsc::channel(2);
    source.read(offset, digest(before), out);
    let (mut all, mut sent) = (before.to_vec(), Vec::new());
    while let Some(piece) = pieces.recv().await {
        match piece {
            Piece::Chunk {
                offset,
                bytes,
                digest: claimed,
            } => {
                assert_eq!(offset, all.len() as u64);
                assert!(!bytes.is_empty() && bytes.len() <= MAX_CHUNK);
                all.extend_from_slice(&bytes);
                sent.extend_from_slice(&bytes);
                assert_eq!(claimed, digest(&all));
            }
            Piece::End { digest } => return (sent, Ok(digest)),
            Piece::Void(why) => return (sent, Err(why)),
        }
    }
    panic!("neither End nor Void");
}

#[tokio::test]
async fn files_of_every_size_come_whole() {
    let outbox = Outbox::new();
    for size in [0, 1, MAX_CHUNK - 1, MAX_CHUNK, MAX_CHUNK + 1, 3 * MAX_CHUNK + 7] {
        let bytes = pattern(size);
        let (path, version) = outbox.file("file", &bytes);
        let (sent, end) = pass(&outbox.source(&path, version), 0, &[]).await;
        assert_eq!(end, Ok(digest(&bytes)), "{size}");
        assert!(sent == bytes, "{size}");
        assert_eq!(
            digest_of(outbox.root(), &outbox.found(&path, version), &|| false),
            Ok((digest(&bytes), version.ctime_ns))
        );
        let stopped = digest_of(outbox.root(), &outbox.found(&path, version), &|| true);
        assert_eq!(stopped.is_err(), size > 0, "{size}");
    }
}

#[tokio::test]
async fn a_resumed_pass_checks_the_prefix() {
    let outbox = Outbox::new();
    for size in [1000, 2 * MAX_CHUNK] {
        let bytes = pattern(size);
        let (path, version) = outbox.file("file", &bytes);
        let source = outbox.source(&path, version);
        let (before, after) = bytes.split_at(700);
        let (sent, end) = pass(&source, 700, before).await;
        assert!(sent == after && end == Ok(digest(&bytes)));
        let (sent, end) = pass(&source, size as u64, &bytes).await;
        assert!(sent.is_empty() && end == Ok(digest(&bytes)));
        let (sent, end) = pass(&source, 700, &vec![0; 700]).await;
        assert_eq!((sent.len(), end), (0, Err(Voided::PrefixDiffers)));
        let (_, end) = pass(&source, size as u64 + 1, &[]).await;
        assert_eq!(end, Err(Voided::PrefixDiffers));
    }
}

#[tokio::test]
async fn a_rewind_begins_at_a_kept_state() {
    let outbox = Outbox::new();
    let bytes = pattern((33 << 20) + 5);
    let (path, version) = outbox.file("file", &bytes);
    let source = outbox.source(&path, version);
    assert_eq!(pass_end(&source, 0, digest(&[])).await, Ok(digest(&bytes)));
    let kept = source.subject.checkpoints().best(version.ctime_ns, 20 << 20);
    assert_eq!(kept.length(), 16 << 20);
    let touched = source.subject.checkpoints().best(version.ctime_ns + 1, 20 << 20);
    assert_eq!(touched.length(), 0);
    let prefix = digest(&bytes[..20 << 20]);
    assert_eq!(pass_end(&source, 20 << 20, prefix).await, Ok(digest(&bytes)));
}

async fn pass_end(source: &FileSource, offset: u64, prefix: Digest) -> Result<Digest, Voided> {
    let (out, mut pieces) = mpsc::channel(4);
    source.read(offset, prefix, out);
    loop {
        match pieces.recv().await.expect("neither End nor Void") {
            Piece::Chunk { .. } => {}
            Piece::End { digest } => return Ok(digest),
            Piece::Void(why) => return Err(why),
        }
    }
}

#[tokio::test]
async fn another_version_is_not_read() {
    let outbox = Outbox::new();
    let (path, version) = outbox.file("file", b"one");
    let source = outbox.source(&path, version);
    outbox.file("file", b"longer");
    assert_eq!(pass(&source, 0, &[]).await.1, Err(Voided::Changed));
    fs::remove_file(outbox.root().join("file")).unwrap();
    assert_eq!(pass(&source, 0, &[]).await.1, Err(Voided::Gone));
    fs::create_dir(outbox.root().join("file")).unwrap();
    assert_eq!(pass(&source, 0, &[]).await.1, Err(Voided::Gone));
}

#[cfg(unix)]
#[tokio::test]
async fn symlinks_are_not_followed() {
    let outbox = Outbox::new();
    fs::create_dir(outbox.root().join("dir")).unwrap();
    let (path, version) = outbox.file("dir/file", b"bytes");
    let source = outbox.source(&path, version);
    fs::rename(outbox.root().join("dir"), outbox.root().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", outbox.root().join("dir")).unwrap();
    assert_eq!(pass(&source, 0, &[]).await.1, Err(Voided::Gone));
}

/// One that was queued before its folder came to be that.
#[tokio::test]
async fn what_lies_in_a_folder_of_an_agent_of_its_own_is_not_read() {
    let outbox = Outbox::new();
    fs::create_dir_all(outbox.root().join("theirs/sub")).unwrap();
    let (path, version) = outbox.file("theirs/sub/file", b"bytes");
    let source = outbox.source(&path, version);
    assert!(pass(&source, 0, &[]).await.1.is_ok());
    fs::create_dir(outbox.root().join("theirs/.dropwire")).unwrap();
    fs::write(outbox.root().join("theirs/.dropwire/owner"), "damaged").unwrap();
    match pass(&source, 0, &[]).await {
        (read, Err(Voided::Unreadable(why))) => assert!(read.is_empty() && why.contains("theirs"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn without_its_id_nothing_is_gone() {
    let outbox = Outbox::new();
    let (path, version) = outbox.file("file", b"bytes");
    let source = outbox.source(&path, version);
    fs::remove_dir_all(outbox.root().join(".dropwire")).unwrap();
    fs::remove_file(outbox.root().join("file")).unwrap();
    assert!(matches!(
        pass(&source, 0, &[]).await.1,
        Err(Voided::Unreadable(_))
    ));
    fs::remove_dir_all(outbox.root()).unwrap();
    assert!(matches!(
        pass(&source, 0, &[]).await.1,
        Err(Voided::Unreadable(_))
    ));
}

/// Else its peers' jobs would end, and those who have it would get it twice once it is mounted again.
#[tokio::test]
async fn what_lies_on_a_disk_that_is_not_mounted_is_not_gone() {
    let outbox = Outbox::new();
    let root = confined::root(outbox.root()).unwrap();
    fs::create_dir(outbox.root().join("disk")).unwrap();
    border::note(
        &own_folder::open_or_make(&root).unwrap(),
        &RemotePath::parse(b"disk").unwrap(),
    )
    .unwrap();
    let (path, version) = outbox.file("disk/file", b"bytes");
    let source = outbox.source(&path, version);
    for unmounted in ["disk/file", "disk"] {
        let _ = fs::remove_file(outbox.root().join(unmounted));
        let _ = fs::remove_dir(outbox.root().join(unmounted));
        let end = pass(&source, 0, &[]).await.1;
        assert!(
            matches!(&end, Err(Voided::Unreadable(why)) if why.contains("mounted at disk")),
            "{end:?}"
        );
    }
    border::forget_missing(&root).unwrap();
    assert_eq!(pass(&source, 0, &[]).await.1, Err(Voided::Gone));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_writer_voids_the_pass() {
    let outbox = Outbox::new();
    let (path, version) = outbox.file("file", &pattern(64 * MAX_CHUNK));
    let source = outbox.source(&path, version);
    let (out, mut pieces) = mpsc::channel(1);
    source.read(0, digest(&[]), out);
    assert!(matches!(pieces.recv().await, Some(Piece::Chunk { .. })));
    // The pass stands still on its full channel; the writer's open must not wait for it.
    let name = outbox.root().join("file");
    let open = move || fs::OpenOptions::new().write(true).open(name).unwrap();
    let writer = tokio::task::spawn_blocking(open).await.unwrap();
    let end = loop {
        match pieces.recv().await {
            Some(Piece::Chunk { .. }) => {}
            end => break end,
        }
    };
    // Where no lease was broken, the check after the last read finds the writer.
    assert!(
        matches!(end, Some(Piece::Void(Voided::Changed | Voided::Writer))),
        "{end:?}"
    );
    while version.is_fresh(std::time::SystemTime::now()) {
        tokio::task::yield_now().await; // else that alone would void it
    }
    assert_eq!(pass(&source, 0, &[]).await.1, Err(Voided::Writer));
    drop(writer);
    assert!(pass(&source, 0, &[]).await.1.is_ok());
}

/// Only the check after the last read can tell.
#[cfg(target_os = "linux")]
#[test]
fn what_happens_to_the_file_after_the_last_read_voids_the_pass() {
    let _trusted = crate::fs::file_system::pretend(crate::fs::file_system::TRUSTED);
    use std::os::unix::fs::OpenOptionsExt;
    let harms: [fn(&Path); 2] = [
        |file| {
            fs::write(file.with_file_name("other"), "bytes").unwrap();
            fs::rename(file.with_file_name("other"), file).unwrap();
        },
        |file| {
            let mut options = fs::OpenOptions::new();
            let writer = options.append(true).custom_flags(libc::O_NONBLOCK).open(file);
            assert!(writer.is_err(), "the lease holds it up");
        },
    ];
    for (number, harm) in harms.into_iter().enumerate() {
        let outbox = Outbox::new();
        let (path, version) = outbox.file("file", b"bytes");
        let found = outbox.found(&path, version);
        let pass = Pass::begin(&mut Opened::default(), outbox.root(), &found).unwrap();
        let mut hash = Default::default();
        pass.read(&mut hash, version.size, &mut |_, _, _| true).unwrap();
        assert_eq!(pass.check(), Ok(()));
        let touched = fs::File::open(outbox.root().join("file")).unwrap();
        crate::fs::file_system::set_modified(&touched, std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(pass.check(), Ok(()), "the lease speaks for its bytes");
        harm(&outbox.root().join("file"));
        assert_eq!(pass.check(), Err(Voided::Changed), "{number}");
    }
}

#[tokio::test]
async fn stalled_ones_hold_up_no_small_one() {
    let outbox = Outbox::new();
    let (large, large_version) = outbox.file("large", &pattern(8 * MAX_CHUNK));
    let (small, small_version) = outbox.file("small", b"small");
    let mut stalled = Vec::new();
    for _ in 0..40 {
        for (path, version) in [(&large, large_version), (&small, small_version)] {
            let (out, pieces) = mpsc::channel(1);
            outbox.source(path, version).read(0, digest(&[]), out);
            stalled.push(pieces);
        }
    }
    for _ in 0..100 {
        let end = pass(&outbox.source(&small, small_version), 0, &[]).await.1;
        assert_eq!(end, Ok(digest(b"small")));
    }
}

#[tokio::test]
async fn a_resume_in_another_life_does_not_read_the_prefix() {
    const CHECKPOINT: usize = 16 << 20;
    let outbox = Outbox::new();
    let bytes = pattern(CHECKPOINT + 3 * MAX_CHUNK);
    let (path, version) = outbox.file("large", &bytes);
    // The checkpoint is of other bytes than lie there: only a source that does not read them agrees with it.
    let other = vec![9; CHECKPOINT];
    let mut hash = RunningDigest::default();
    hash.update(&other);
    let mut checkpoints = Checkpoints::default();
    assert!(checkpoints.note(version.ctime_ns, &hash));
    let kept = checkpoints.to_bytes();
    let root = outbox.root().to_path_buf();
    let source = FileSource::resumable(
        root,
        outbox.found(&path, version),
        SmallReads::default(),
        &kept,
        Box::new(|_| {}),
    );
    let (sent, end) = pass(&source, CHECKPOINT as u64, &other).await;
    assert!(sent == bytes[CHECKPOINT..]);
    hash.update(&sent);
    assert_eq!(end, Ok(hash.value()));
}

#[tokio::test]
async fn checkpoints_are_handed_out_while_a_large_file_is_read() {
    let outbox = Outbox::new();
    let bytes = pattern((16 << 20) + 1);
    let (path, version) = outbox.file("large", &bytes);
    let (kept_in, kept) = std::sync::mpsc::channel();
    let keep = Box::new(move |bytes: Vec<u8>| kept_in.send(bytes).unwrap());
    let source = FileSource::resumable(
        outbox.root().to_path_buf(),
        outbox.found(&path, version),
        SmallReads::default(),
        &[],
        keep,
    );
    let (_, end) = pass(&source, 0, &[]).await;
    assert_eq!(end, Ok(digest(&bytes)));
    let last = kept.try_iter().last().unwrap();
    assert_eq!(
        Checkpoints::from_bytes(&last)
            .best(version.ctime_ns, u64::MAX)
            .length(),
        16 << 20
    );
}

impl Outbox {
    /// A folder with a small file and then a large one.
    fn folder(&self) -> (RemotePath, Version) {
        fs::create_dir_all(self.root().join("batch/sub")).unwrap();
        fs::write(self.root().join("batch/a"), "small").unwrap();
        fs::write(self.root().join("batch/sub/b"), pattern(20 * MAX_CHUNK)).unwrap();
        let folder = confined::root(&self.root().join("batch")).unwrap();
        let version = crate::fs::bundle::list_quickly(&folder).unwrap().version();
        (RemotePath::parse(b"batch").unwrap(), version)
    }
}

/// Again while it was written to a moment ago.
async fn rested_pass(source: &FileSource, before: &[u8]) -> (Vec<u8>, Result<Digest, Voided>) {
    loop {
        match pass(source, before.len() as u64, before).await {
            (_, Err(Voided::Writer)) => tokio::task::yield_now().await,
            other => return other,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_folder_is_sent_from_any_offset_under_one_digest() {
    let outbox = Outbox::new();
    let (path, version) = outbox.folder();
    let source = outbox.source(&path, version);
    let (all, end) = rested_pass(&source, b"").await;
    assert_eq!((all.len() as u64, end), (version.size, Ok(digest(&all))));
    for offset in [1, 511, 2000, 3 * MAX_CHUNK + 7, all.len()] {
        let (rest, end) = rested_pass(&source, &all[..offset]).await;
        assert!(rest == all[offset..], "{offset}");
        assert_eq!(end, Ok(digest(&all)));
    }
    assert_eq!(
        rested_pass(&source, b"other bytes").await.1,
        Err(Voided::PrefixDiffers)
    );
    let read = digest_of(outbox.root(), &outbox.found(&path, version), &|| false);
    assert_eq!(read, Ok((digest(&all), version.ctime_ns)));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_of_a_folder_is_not_sent() {
    let outbox = Outbox::new();
    let (path, version) = outbox.folder();
    fs::rename(outbox.root().join("batch/a"), outbox.root().join("batch/c")).unwrap();
    let source = outbox.source(&path, version);
    assert_eq!(rested_pass(&source, b"").await, (vec![], Err(Voided::Changed)));
    fs::rename(outbox.root().join("batch"), outbox.root().join("elsewhere")).unwrap();
    assert_eq!(rested_pass(&source, b"").await, (vec![], Err(Voided::Gone)));
}

/// Nobody holds a lease on it any more, and its size is the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_to_a_file_that_was_read_already_voids_the_pass() {
    let outbox = Outbox::new();
    let (path, version) = outbox.folder();
    let source = outbox.source(&path, version);
    let (sender, mut pieces) = mpsc::channel(1);
    assert!(rested_pass(&source, b"").await.1.is_ok());
    source.read(0, digest(b""), sender);
    assert!(matches!(pieces.recv().await, Some(Piece::Chunk { .. })));
    let small = outbox.root().join("batch/a");
    let mtime = fs::metadata(&small).unwrap().modified().unwrap();
    fs::write(&small, "other").unwrap();
    let file = fs::File::options().write(true).open(&small).unwrap();
    crate::fs::file_system::set_modified(&file, mtime).unwrap();
    drop(file);
    let mut last = None;
    while let Some(piece) = pieces.recv().await {
        last = Some(piece);
    }
    assert!(matches!(last, Some(Piece::Void(Voided::Changed))), "{last:?}");
}

/// As on FUSE and network file systems, where an open file's times may be as old as its opening.
#[test]
fn where_others_write_unseen_the_path_is_opened_again_after_the_last_read() {
    let outbox = Outbox::new();
    fs::create_dir(outbox.root().join("sub")).unwrap();
    let (path, version) = outbox.file("sub/file", b"bytes");
    let found = outbox.found(&path, version);
    while version.is_fresh(std::time::SystemTime::now()) {
        thread::yield_now();
    }
    let _untrusted = crate::fs::file_system::pretend(Default::default());
    assert!(digest_of(outbox.root(), &found, &|| false).is_ok());
    let swapped = std::cell::Cell::new(false);
    let swap = || {
        if !swapped.replace(true) {
            let at = |name: &str| outbox.root().join(name);
            let mtime = fs::metadata(at("sub/file")).unwrap().modified().unwrap();
            fs::rename(at("sub"), at("aside")).unwrap();
            fs::create_dir(at("sub")).unwrap();
            fs::write(at("sub/file"), "OTHER").unwrap();
            let file = fs::File::options().write(true).open(at("sub/file")).unwrap();
            crate::fs::file_system::set_modified(&file, mtime).unwrap();
        }
        false
    };
    assert_eq!(digest_of(outbox.root(), &found, &swap), Err(Voided::Changed));
}

/// Another folder, or one that another agent took over, may hold a file of the same name and version.
#[tokio::test]
async fn nothing_is_read_from_a_folder_with_another_id() {
    let outbox = Outbox::new();
    for size in [10, 2 * MAX_CHUNK] {
        let (path, version) = outbox.file("file", &pattern(size));
        let source = outbox.source(&path, version);
        assert!(pass(&source, 0, &[]).await.1.is_ok());
        folder_id::replace(&confined::root(outbox.root()).unwrap()).unwrap();
        let (sent, end) = pass(&source, 0, &[]).await;
        assert!(
            sent.is_empty() && matches!(end, Err(Voided::Unreadable(_))),
            "{end:?}"
        );
        fs::write(
            outbox.root().join(".dropwire/id"),
            data_encoding::HEXLOWER.encode(&outbox.id.0),
        )
        .unwrap();
    }
}
