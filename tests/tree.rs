//! A real tree of files, both ways at once, compared by digest.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::harness::{Agent, Pair, files, within};

const MOST_FILES: usize = 1500;
const MOST_BYTES: u64 = 50 << 20;

#[test]
fn a_real_tree_arrives_both_ways_at_once() {
    let pair = Pair::linked();
    let sources = sources();
    let mut found = Vec::new();
    for source in &sources {
        let mut bytes = 0;
        files::walk(source, &mut |path| {
            bytes += path.metadata().map_or(0, |m| m.len());
            found.push((source.clone(), path.to_path_buf()));
            bytes < 2 * MOST_BYTES && found.len() < 2 * MOST_FILES
        });
    }
    assert!(
        found.len() > 100,
        "only {} files to send in {sources:?}",
        found.len()
    );
    let (to_office, to_laptop) = found.split_at(found.len() / 2);
    let sent = [copy(to_office, &pair.laptop), copy(to_laptop, &pair.office)];
    for (sent, from, at) in [
        (&sent[0], &pair.laptop, &pair.office),
        (&sent[1], &pair.office, &pair.laptop),
    ] {
        within(
            Duration::from_secs(180),
            &format!("{} files at {}", sent.len(), at.name),
            || (at.received().len() >= sent.len()).then_some(()),
        );
        assert!(
            files::digests(&at.inbox) == *sent,
            "what {} sent is not what {} has",
            from.name,
            at.name
        );
        from.delivers(sent.len());
        from.empties_outbox();
    }
}

/// Copies whole folders aside and moves them into the outbox; gives what has to arrive.
fn copy(files: &[(PathBuf, PathBuf)], to: &Agent) -> BTreeMap<PathBuf, String> {
    let aside = to.root.join("aside");
    let mut expected = BTreeMap::new();
    for (source, path) in files {
        let relative = Path::new("tree").join(path.strip_prefix(source).expect("below its source"));
        let target = aside.join(&relative);
        fs::create_dir_all(target.parent().expect("a folder")).expect("the folder");
        fs::copy(path, &target).expect("a copy");
        expected.insert(relative, files::sha256(&target).expect("its digest"));
    }
    fs::rename(aside.join("tree"), to.outbox.join("tree")).expect("moved in");
    expected
}

/// Rust's own documentation and support files, and what the system documents.
fn sources() -> Vec<PathBuf> {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output();
    let sysroot = sysroot
        .map(|o| PathBuf::from(String::from_utf8_lossy(&o.stdout).trim()))
        .unwrap_or_default();
    [
        sysroot.join("lib/rustlib/etc"),
        sysroot.join("share"),
        "/usr/share/doc".into(),
    ]
    .into_iter()
    .filter(|p| p.is_absolute() && p.is_dir())
    .collect()
}
