use super::*;
use crate::{
    failpoints,
    fs::{durable, version::Version},
};

fn folders() -> (tempfile::TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let spool = temp.path().join("spool");
    (temp, spool)
}

/// What one `send` takes: each thing is a list of files below `folder`, sent by what stands behind a `//`, else whole.
fn take(spool: &Path, folder: &Path, things: &[&[&str]]) -> Result<Vec<Copied>, SpoolError> {
    let mut filling = Filling::new(spool.to_owned());
    let copied = fill(&mut filling, folder, things).and_then(|()| filling.finish());
    if copied.is_err() {
        filling.discard().unwrap();
    }
    copied
}

fn fill(filling: &mut Filling, folder: &Path, things: &[&[&str]]) -> Result<(), SpoolError> {
    for (named, thing) in things.iter().enumerate() {
        for path in *thing {
            let name = path.split_once("//").map_or(*path, |(_, name)| name);
            let path = folder.join(path.replace("//", "/"));
            let file = File::open(&path).unwrap();
            let original = Original {
                named: u32::try_from(named).unwrap(),
                name: name.as_bytes(),
                path: &path,
                file: &file,
            };
            filling.take(&original, &|| true)?;
        }
    }
    Ok(())
}

fn root_of(copied: &[Copied]) -> PathBuf {
    copied[0].root.clone()
}

fn sends(spool: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(spool).into_iter().flatten();
    let mut all: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn only_wanted_copies_stay() {
    let (temp, spool) = folders();
    assert!(discard_unused(&spool, |_| None).unwrap().is_empty());
    fs::write(temp.path().join("file"), "bytes").unwrap();
    let take = || take(&spool, temp.path(), &[&["file"]]).unwrap().pop().unwrap();
    let (kept, _never_queued, forgotten, ended) = (take(), take(), take(), take());
    note_queued(&forgotten.root).unwrap();
    note_queued(&ended.root).unwrap();
    fs::create_dir(spool.join("begun")).unwrap();
    let (wanted, ended) = (kept.found.outbox, ended.found.outbox);
    let is_wanted = |id| (id == wanted || id == ended).then_some(id == wanted);
    let found = discard_unused(&spool, is_wanted).unwrap();
    assert_eq!(found, [(wanted, kept.root.clone())]);
    let mut expected = [kept.root, forgotten.root.clone()];
    expected.sort();
    assert_eq!(sends(&spool), expected);
    fs::remove_file(forgotten.root.join("file")).unwrap();
    discard_unused(&spool, is_wanted).unwrap();
    assert_eq!(sends(&spool).len(), 1);
}

#[test]
fn a_copy_goes_and_the_last_one_takes_the_folder_along() {
    let (temp, spool) = folders();
    fs::create_dir(temp.path().join("folder")).unwrap();
    for name in ["folder/a", "folder/b"] {
        fs::write(temp.path().join(name), name).unwrap();
    }
    let root = root_of(&take(&spool, temp.path(), &[&["folder/a", "folder/b"]]).unwrap());
    let path = |name: &str| RemotePath::parse(name.as_bytes()).unwrap();
    for _ in 0..2 {
        discard_copy(&root, &path("folder/a")).unwrap();
        assert_eq!(fs::read(root.join("folder/b")).unwrap(), b"folder/b");
    }
    discard_copy(&root, &path("folder/b")).unwrap();
    discard_copy(&root, &path("folder/b")).unwrap();
    assert!(!root.exists());
}

#[test]
fn files_and_folders_are_copied_whole() {
    let (temp, spool) = folders();
    let at = |path: &str| temp.path().join(path);
    fs::create_dir_all(at("photos/2026")).unwrap();
    for (name, bytes) in [("one.txt", "one"), ("photos/a", "a"), ("photos/2026/b", "bb")] {
        fs::write(at(name), bytes).unwrap();
    }
    let things: &[&[&str]] = &[&["photos/2026/b", "photos/a"], &["one.txt"]];
    let taken = take(&spool, temp.path(), things).unwrap();
    let root = root_of(&taken);
    let names: Vec<_> = taken.iter().map(|copied| copied.found.path.to_string()).collect();
    assert_eq!(names, ["photos/2026/b", "photos/a", "one.txt"]);
    for copied in &taken {
        let copy = root.join(copied.found.path.to_string());
        assert_eq!(fs::read(&copy).unwrap(), fs::read(&copied.original).unwrap());
        let (of_copy, of_original) = (
            fs::metadata(&copy).unwrap(),
            fs::metadata(&copied.original).unwrap(),
        );
        assert_eq!(of_copy.modified().unwrap(), of_original.modified().unwrap());
        assert!(Version::raw(&of_copy).same_identity(&copied.found.version));
        #[cfg(unix)]
        assert_eq!(std::os::unix::fs::MetadataExt::mode(&of_copy) & 0o777, 0o600);
    }
    #[cfg(target_os = "linux")]
    {
        let calls = durable::trace::of(&root);
        for path in [
            "one.txt",
            "photos/a",
            "photos/2026/b",
            "",
            "photos",
            "photos/2026",
        ] {
            assert!(
                calls.contains(&durable::trace::sync(path)),
                "{path:?}: {calls:#?}"
            );
        }
        let last = |path: &str| calls.iter().rposition(|c| *c == durable::trace::sync(path));
        assert!(
            last("") > last("one.txt"),
            "names before their folder: {calls:#?}"
        );
        let calls = durable::trace::of(temp.path());
        for path in ["", "spool"] {
            assert!(
                calls.contains(&durable::trace::sync(path)),
                "{path:?}: {calls:#?}"
            );
        }
    }
    assert_eq!(sends(&spool), [root]);
}

#[test]
fn nothing_stays_after_a_failure() {
    let (temp, spool) = folders();
    fs::write(temp.path().join("file"), "bytes").unwrap();
    // One thing has no two files of one name.
    let twice = take(&spool, temp.path(), &[&["file", "file"]]).unwrap_err();
    assert_eq!(twice.source.kind(), io::ErrorKind::AlreadyExists);
    assert!(twice.path.ends_with("file"));
    let long = format!("folder//{}", "x".repeat(5000));
    let mut filling = Filling::new(spool.clone());
    let (path, file) = (
        temp.path().join("file"),
        File::open(temp.path().join("file")).unwrap(),
    );
    let original = |name| Original {
        named: 0,
        name,
        path: &path,
        file: &file,
    };
    for name in [long.as_bytes(), b"../out", b"/out", b".dropwire/id", b""] {
        let refused = filling.take(&original(name), &|| true).unwrap_err();
        assert_eq!(refused.source.kind(), io::ErrorKind::InvalidInput, "{name:?}");
    }
    match filling.take(&original(b"file"), &|| false) {
        Err(stopped) => assert_eq!(stopped.source.kind(), io::ErrorKind::Interrupted),
        Ok(_) => failpoints::skip(
            "the temporary folder's disk shares the bytes of a copy: nothing to be stopped at",
        ),
    }
    filling.discard().unwrap();
    assert!(sends(&spool).is_empty());
}

/// The receiver numbers them; here each has a folder of its own, so that none replaces or refuses another.
#[test]
fn things_of_one_name_are_several() {
    let (temp, spool) = folders();
    for folder in ["a", "b", "c"] {
        fs::create_dir(temp.path().join(folder)).unwrap();
        fs::write(temp.path().join(folder).join("report.csv"), folder).unwrap();
    }
    fs::write(temp.path().join("c/REPORT.CSV"), "upper case").unwrap();
    fs::write(temp.path().join("other"), "other").unwrap();
    let things: &[&[&str]] = &[
        &["a//report.csv"],
        &["b//report.csv"],
        &["other"],
        &["c//REPORT.CSV"],
        &["a/report.csv", "b/report.csv"],
        &["a/report.csv"],
    ];
    let taken = take(&spool, temp.path(), things).unwrap();
    for copied in &taken {
        let copy = copied.root.join(copied.found.path.to_string());
        assert_eq!(fs::read(copy).unwrap(), fs::read(&copied.original).unwrap());
    }
    let roots: std::collections::BTreeSet<_> = taken.iter().map(|copied| &copied.root).collect();
    let outboxes: std::collections::BTreeSet<_> = taken.iter().map(|copied| copied.found.outbox).collect();
    assert_eq!(
        (roots.len(), outboxes.len()),
        (3, 3),
        "no more folders than things of one name"
    );
}

/// Whoever opened a file may move its position, or write to it, while it is copied.
#[test]
fn a_copy_is_of_the_whole_file_and_of_one_moment() {
    let (temp, spool) = folders();
    let path = temp.path().join("file");
    let bytes: Vec<u8> = (0..600_000u32).map(|n| n as u8).collect();
    fs::write(&path, &bytes).unwrap();
    let mut file = File::open(&path).unwrap();
    io::Seek::seek(&mut file, io::SeekFrom::End(0)).unwrap();
    let original = Original {
        named: 0,
        name: b"file",
        path: &path,
        file: &file,
    };
    let mut filling = Filling::new(spool);
    filling.take(&original, &|| true).unwrap();
    let copied = filling.finish().unwrap().pop().unwrap();
    assert_eq!(fs::read(copied.root.join("file")).unwrap(), bytes);
    let grows = || {
        io::Write::write_all(&mut File::options().append(true).open(&path).unwrap(), b"more").unwrap();
        true
    };
    let original = Original {
        name: b"again",
        ..original
    };
    match filling.take(&original, &grows) {
        Err(error) => assert_eq!(error.source.kind(), io::ErrorKind::WouldBlock),
        Ok(()) => {
            eprintln!(
                "SKIPPED: the file system shares the blocks of a copy, so nothing can change meanwhile"
            );
        }
    }
}

#[test]
fn a_sends_folder_goes_with_its_last_file() {
    let (temp, spool) = folders();
    fs::create_dir(temp.path().join("folder")).unwrap();
    fs::write(temp.path().join("folder/file"), "bytes").unwrap();
    let root = root_of(&take(&spool, temp.path(), &[&["folder/file"]]).unwrap());
    assert!(!discard_if_done(&root).unwrap());
    fs::create_dir_all(root.join(".dropwire/leaving")).unwrap();
    fs::rename(root.join("folder/file"), root.join(".dropwire/leaving/name")).unwrap();
    assert!(!discard_if_done(&root).unwrap());
    fs::remove_file(root.join(".dropwire/leaving/name")).unwrap();
    assert!(discard_if_done(&root).unwrap() && !root.exists());
    assert!(discard_if_done(&root).unwrap());
}

#[test]
fn too_many_files_of_one_send_are_refused_as_a_whole() {
    let (temp, spool) = folders();
    fs::write(temp.path().join("file"), "bytes").unwrap();
    let most: Vec<&[&str]> = vec![&["file"]; 8];
    assert_eq!(take(&spool, temp.path(), &most).unwrap().len(), 8);
    let before = sends(&spool);
    let more: Vec<&[&str]> = vec![&["file"]; 9];
    let refused = take(&spool, temp.path(), &more).unwrap_err();
    assert!(refused.to_string().contains("more than 8 files"), "{refused}");
    assert_eq!(sends(&spool), before, "nothing of it stays");
}
