use std::{
    fs,
    path::{Path, PathBuf},
};

use dropwire_protocol::{AgentId, RemotePath, TransferId, bundle::END};

use super::*;

fn target(inbox_dir: &InboxDir) -> Target<'_> {
    Target::of(inbox_dir, Arc::new(Rights::of(&inbox_dir.root, inbox_dir.mode)))
}

struct Place {
    temp: tempfile::TempDir,
    inbox_dir: InboxDir,
}

const KEY: Key = (AgentId([1; 32]), TransferId([2; 16]));

impl Place {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let inbox = temp.path().join("inbox");
        fs::create_dir(&inbox).unwrap();
        let inbox_dir = InboxDir::alone(&inbox);
        Self { temp, inbox_dir }
    }

    fn unpack(&self, stream: &[u8]) -> Result<u64, Failure> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(stream).unwrap();
        let mut hash = RunningDigest::default();
        hash.update(stream);
        survey(&file)?;
        unpack(&target(&self.inbox_dir), KEY, &file, hash.value(), &mut |_| true)
    }

    fn folder(&self) -> PathBuf {
        let name = partial::folder_name(KEY);
        self.temp.path().join("inbox/.dropwire/partial").join(name)
    }

    /// Everything that lies anywhere here, but the inbox's folder id.
    fn everything(&self) -> Vec<PathBuf> {
        fn collect(path: &Path, all: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(path).unwrap() {
                let path = entry.unwrap().path();
                all.push(path.clone());
                if path.is_dir() {
                    collect(&path, all);
                }
            }
        }
        let mut all = Vec::new();
        collect(self.temp.path(), &mut all);
        all
    }
}

fn entry(path: &str, content: Option<&[u8]>) -> Vec<u8> {
    let node = match content {
        None => Node::Folder,
        Some(bytes) => Node::File {
            size: bytes.len() as u64,
            mtime: 1_600_000_000,
        },
    };
    let path = (!path.is_empty()).then(|| RemotePath::parse(path.as_bytes()).unwrap());
    let mut all = Entry { path, node }.header();
    let bytes = content.unwrap_or_default();
    all.extend_from_slice(bytes);
    all.resize(all.len().next_multiple_of(512), 0);
    all
}

fn stream(entries: &[(&str, Option<&[u8]>)]) -> Vec<u8> {
    let mut all = entry("", None);
    for (path, content) in entries {
        all.extend(entry(path, *content));
    }
    all.extend(END);
    all
}

fn refused(result: Result<u64, Failure>) -> (DeclineReason, String) {
    match result {
        Err(Failure::Useless(Answer::Refused(refusal))) => (refusal.reason, refusal.text),
        Err(Failure::NotNow(answer)) => panic!("kept: {answer:?}"),
        _ => panic!("not refused"),
    }
}

#[test]
fn a_folder_is_made_with_its_times_and_modes_in_place_of_a_half_made_one() {
    let place = Place::new();
    fs::create_dir_all(place.folder().join("half")).unwrap();
    let long = "n".repeat(255);
    let entries: &[(&str, Option<&[u8]>)] = &[
        ("a", Some(b"bytes")),
        ("empty", None),
        (&long, Some(b"")),
        ("sub", None),
        ("sub/deep", None),
        ("sub/deep/er", Some(&[7; 5000])),
    ];
    let Ok(inode) = place.unpack(&stream(entries)) else {
        panic!("it is sound")
    };
    let folder = place.folder();
    assert!(!folder.join("half").exists() && folder.join("empty").is_dir());
    assert_eq!(fs::read(folder.join("a")).unwrap(), b"bytes");
    assert_eq!(fs::read(folder.join("sub/deep/er")).unwrap(), [7; 5000]);
    assert!(folder.join(long).is_file());
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        assert_eq!(fs::metadata(&folder).unwrap().ino(), inode);
        let file = fs::metadata(folder.join("a")).unwrap();
        assert_eq!(
            (file.mtime(), file.mode() & 0o777),
            (1_600_000_000, place.inbox_dir.mode)
        );
    }
    partial::remove(&place.inbox_dir, KEY);
    assert!(!place.folder().exists());
}

#[cfg(target_os = "linux")]
#[test]
fn everything_is_durable_before_it_is_placed() {
    use durable::trace::{self, Call};
    let entries: &[(&str, Option<&[u8]>)] = &[("a", Some(b"x")), ("sub", None), ("sub/b", Some(b"y"))];
    for together in [true, false] {
        let mut place = Place::new();
        place.inbox_dir.syncfs &= together;
        assert!(place.unpack(&stream(entries)).is_ok());
        let calls = trace::of(place.temp.path());
        let last = |wanted: &dyn Fn(&Call) -> bool| calls.iter().rposition(wanted);
        let synced = |path: String| last(&|call| *call == trace::sync(&path));
        let name = partial::folder_name(KEY).into_string().unwrap();
        let partials = synced("inbox/.dropwire/partial".into()).expect("its name");
        if place.inbox_dir.syncfs {
            let all = last(&|call| matches!(call, Call::Sync("syncfs", _)));
            assert!(all.is_some_and(|all| all < partials), "{calls:#?}");
            continue;
        }
        let below = |path: &str| synced(format!("inbox/.dropwire/partial/{name}{path}"));
        let order = ["/sub/b", "/sub", ""].map(below);
        assert!(order.is_sorted() && order[0].is_some(), "bottom-up: {calls:#?}");
        assert!(below("/a").is_some() && order[2] < Some(partials), "{calls:#?}");
    }
}

/// None of these leaves a name anywhere but in the folder that nobody sees; most are refused before even that is made.
#[test]
fn hostile_streams_are_refused_and_nothing_lies_outside() {
    let place = Place::new();
    let before = place.everything();
    let named = |name: &[u8], kind: u8| {
        let mut header = entry("innocent", Some(b""));
        header[..8].fill(0);
        header[..name.len()].copy_from_slice(name);
        header[156] = kind;
        if kind == b'2' {
            header[157..168].copy_from_slice(b"/etc/passwd");
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        [entry("", None), header, END.to_vec()].concat()
    };
    let cut = |by: usize| {
        let mut whole = stream(&[("a", Some(&[7; 3000]))]);
        whole.truncate(whole.len() - by);
        whole
    };
    let hostile = [
        named(b"./../../../evil", b'0'),
        named(b"../evil", b'0'),
        named(b"/tmp/evil", b'0'),
        named(b"./.dropwire/id", b'0'),
        named(b"./link", b'2'),
        named(b"./hard", b'1'),
        named(b"./fifo", b'6'),
        named(b"./device", b'3'),
        stream(&[("a", Some(b"1")), ("a", Some(b"2"))]),
        stream(&[("a", Some(b"1")), ("a/b", Some(b"2"))]),
        stream(&[("b", None), ("a", None)]),
        stream(&[("no/folder", Some(b"1"))]),
        cut(1),
        cut(1024),
        cut(2000),
        [stream(&[]), vec![0; 512]].concat(),
        Vec::new(),
        vec![0; 4096],
        b"not a stream at all, but long enough to be read as a header".repeat(20),
    ];
    for bytes in hostile {
        let (reason, text) = refused(place.unpack(&bytes));
        assert!(
            matches!(reason, DeclineReason::Conflict | DeclineReason::BadName),
            "{text}"
        );
        assert_eq!(place.everything(), before, "{text}");
    }
}

/// Damage on the disk between the receiving and the unpacking.
#[test]
fn what_reads_back_otherwise_is_refused() {
    let place = Place::new();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&stream(&[("a", Some(b"bytes"))])).unwrap();
    let other = {
        let mut hash = RunningDigest::default();
        hash.update(&stream(&[("a", Some(b"other"))]));
        hash.value()
    };
    let (reason, _) = refused(unpack(&target(&place.inbox_dir), KEY, &file, other, &mut |_| {
        true
    }));
    assert_eq!(reason, DeclineReason::DiskError);
    assert!(matches!(
        unpack(&target(&place.inbox_dir), KEY, &file, other, &mut |_| false),
        Err(Failure::Stopped)
    ));
}

#[cfg(unix)]
#[test]
fn only_a_failing_disk_costs_the_stream() {
    let kept = |code| {
        let error = io::Error::from_raw_os_error(code);
        matches!(Failure::of("making it", &error), Failure::NotNow(_))
    };
    for code in [
        libc::ENOSPC,
        libc::EDQUOT,
        libc::EMFILE,
        libc::EACCES,
        libc::EROFS,
    ] {
        assert!(kept(code), "{code}");
    }
    assert!(!kept(libc::EIO));
}
