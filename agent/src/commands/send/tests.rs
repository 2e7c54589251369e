//! Requests of a `send`, with files that the test opened itself.

use std::{fs, path::Path};

use super::*;
use crate::control::wire::{LocalPath, Raw};

fn begin(spool: &Path) -> Box<Begun> {
    Box::new(Begun {
        filling: Filling::new(spool.to_owned()),
        rules: Rules::new(Folders::default()),
    })
}

/// A request for these files below `folder`, each a thing of its own, with the first `passed` of them.
fn request(folder: &Path, names: &[&str], passed: usize, last: bool) -> (SendRequest, Passed) {
    let mut request = SendRequest {
        peers: vec!["office".into()],
        files: vec![],
        last,
    };
    let mut files = Passed::default();
    for (n, name) in names.iter().enumerate() {
        let path = folder.join(name);
        fs::write(&path, name).unwrap();
        let file = File::open(&path).unwrap();
        let meta = cap_std::fs::Metadata::from_file(&file).unwrap();
        request.files.push(SendFile {
            named: u32::try_from(n).unwrap(),
            name: Raw(name.as_bytes().to_vec()),
            path: LocalPath(path),
            file: (
                cap_fs_ext::MetadataExt::dev(&meta),
                cap_fs_ext::MetadataExt::ino(&meta),
            ),
        });
        if n < passed {
            files.files.push(file);
        }
    }
    (request, files)
}

fn sends(spool: &Path) -> usize {
    fs::read_dir(spool).map_or(0, Iterator::count)
}

fn folders() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let (spool, files) = (temp.path().join("spool"), temp.path().join("files"));
    fs::create_dir(&files).unwrap();
    (temp, spool, files)
}

#[test]
fn what_was_not_passed_is_not_taken() {
    let (_temp, spool, files) = folders();
    // The agent had no descriptors for the others: they come again.
    let (group, passed) = request(&files, &["a", "b", "c"], 1, true);
    let Ok(Taken::Some(begun, 1)) = take_group(begin(&spool), &group, passed, &|| true) else {
        panic!("one is taken, and the request was not the last");
    };
    // Named, but not passed: the agent opens no path.
    let (group, passed) = request(&files, &["b", "c"], 0, true);
    let Ok(Taken::Some(begun, 0)) = take_group(begun, &group, passed, &|| true) else {
        panic!("none is taken");
    };
    let (group, passed) = request(&files, &["b"], 1, true);
    match take_group(begun, &group, passed, &|| true) {
        Ok(Taken::Whole(copies, 1)) => assert_eq!(copies.len(), 2),
        _ => panic!("it was the last"),
    }
}

#[test]
fn a_send_without_files_is_an_error() {
    let (_temp, spool, files) = folders();
    let (group, passed) = request(&files, &[], 0, true);
    let error = take_group(begin(&spool), &group, passed, &|| true).err().unwrap();
    assert_eq!(error.exit, Exit::Failed);
    assert_eq!(sends(&spool), 0);
}

#[test]
fn a_send_that_was_broken_off_leaves_nothing() {
    let (_temp, spool, files) = folders();
    let begun = || {
        let (group, passed) = request(&files, &["a"], 1, false);
        match take_group(begin(&spool), &group, passed, &|| true) {
            Ok(Taken::Some(begun, 1)) => begun,
            _ => panic!("it is taken"),
        }
    };
    let (group, passed) = request(&files, &["b"], 1, true);
    assert!(
        take_group(begun(), &group, passed, &|| false).is_err(),
        "nobody waits"
    );
    assert_eq!(sends(&spool), 0);

    let (mut group, passed) = request(&files, &["b"], 1, false);
    group.files[0].name = Raw(b"../b".to_vec());
    let error = take_group(begun(), &group, passed, &|| true).err().unwrap();
    assert_eq!(error.exit, Exit::NoInput, "{error}");
    assert_eq!(sends(&spool), 0, "also what was taken before");

    drop(Sending(Some(begun())));
    assert_eq!(sends(&spool), 0, "the connection ended");
}
