//! `folder = "whole"`: a top-level folder is one delivery, there at once and complete, or not at all.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use crate::harness::{Agent, Fault, Pair, Toward, files, needs, until};

fn pair(after_send: &'static str) -> Pair {
    Pair::with(|laptop, _| whole(laptop, after_send))
}

fn whole(laptop: &mut Agent, after_send: &str) {
    laptop.settings.outbox.push("folder = \"whole\"".into());
    laptop
        .settings
        .outbox
        .push(format!("after_send = {after_send:?}"));
}

/// Everything in `folder` by its path: folders as None, files with their content.
fn content(folder: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    fn collect(root: &Path, at: &Path, all: &mut BTreeMap<PathBuf, Option<Vec<u8>>>) {
        for entry in fs::read_dir(at).expect("a folder") {
            let path = entry.expect("an entry").path();
            let below = path.strip_prefix(root).expect("below it").to_path_buf();
            if path.is_dir() {
                all.insert(below, None);
                collect(root, &path, all);
            } else {
                all.insert(below, Some(fs::read(&path).expect("a file")));
            }
        }
    }
    let mut all = BTreeMap::new();
    collect(folder, folder, &mut all);
    all
}

/// A folder beside the outbox, in the making: `files` of them, over subfolders, and empty folders.
fn made(agent: &Agent, name: &str, files: usize, size: usize) -> PathBuf {
    let folder = agent.root.join(name);
    fs::create_dir_all(folder.join("empty/in/empty")).expect("folders");
    for n in 0..files {
        let at = folder.join(format!("sub-{}/deeper-{}", n % 7, n % 3));
        fs::create_dir_all(&at).expect("folders");
        fs::write(
            at.join(format!("file {n}")),
            files::noise(n as u64 + 1, size + n % 600),
        )
        .expect("a file");
    }
    folder
}

/// Moves it into the outbox.
fn drop_folder(agent: &Agent, folder: &Path) -> PathBuf {
    let path = agent.outbox.join(folder.file_name().expect("a name"));
    fs::rename(folder, &path).expect("into the outbox");
    path
}

/// Arrives as `name`, and is all there at the first look.
#[track_caller]
fn arrives(agent: &Agent, name: &str, expected: &BTreeMap<PathBuf, Option<Vec<u8>>>) {
    let folder = agent.inbox.join(name);
    until(&format!("{name} in the inbox"), || folder.exists());
    assert!(content(&folder) == *expected, "{name} arrived otherwise");
}

#[test]
fn a_thousand_files_appear_at_once() {
    if !needs::renames() {
        return;
    }
    let pair = Pair::with(|laptop, office| {
        whole(laptop, "archive");
        let (script, log) = ("echo \"$1\" >> \"$2\"", office.root.join("arrivals"));
        let told = format!("on_arrival = [\"/bin/sh\", \"-c\", {script:?}, \"sh\", \"{{path}}\", {log:?}]");
        office.settings.inbox.push(told);
    });
    let folder = made(&pair.laptop, "batch", 1000, 100);
    let expected = content(&folder);
    let stop = Arc::new(AtomicBool::new(false));
    let watcher = thread::spawn({
        let (inbox, stop, expected) = (pair.office.inbox.clone(), stop.clone(), expected.len());
        move || {
            // Whatever is seen below the inbox at any time is all of it.
            let mut seen = 0;
            while !stop.load(Ordering::Relaxed) {
                let batch = inbox.join("batch");
                if batch.exists() {
                    seen = content(&batch).len();
                    assert_eq!(seen, expected, "a part was seen");
                }
                thread::yield_now();
            }
            seen
        }
    });
    let dropped = drop_folder(&pair.laptop, &folder);
    arrives(&pair.office, "batch", &expected);
    pair.laptop.delivers(1);
    stop.store(true, Ordering::Relaxed);
    assert_eq!(watcher.join().expect("no part was seen"), expected.len());
    until("it is archived", || {
        let sent = pair.laptop.outbox.join(files::OWN).join("sent/batch");
        !dropped.exists() && sent.exists() && content(&sent) == expected
    });
    let job = &pair.laptop.jobs()[0];
    let inside = dropped.join("sub-0/deeper-0/file 0");
    let why = pair
        .laptop
        .run(&["why", &inside.to_string_lossy()])
        .exits(0)
        .out();
    assert!(why.contains("delivered"), "{why}");
    assert_eq!((&job["name"], &job["kind"]), (&"batch".into(), &"folder".into()));
    assert_eq!(pair.laptop.status()["outboxes"][0]["folder"], "whole");
    assert!(job["size"].as_u64().expect("a size") > 100_000, "{job}");
    assert!(pair.office.partials().is_empty(), "{:?}", pair.office.partials());
    assert_eq!(pair.office.status()["inbox"]["received_files"], 1);
    let arrivals = pair.office.root.join("arrivals");
    until("the program ran", || arrivals.exists());
    let batch = pair.office.inbox.join("batch");
    assert_eq!(
        fs::read_to_string(arrivals).expect("what it wrote"),
        format!("{}\n", batch.display())
    );
    assert_eq!(job["sha256"], tar_digest(&pair.office.inbox.join("batch")));
}

/// As PROTOCOL.md says that anyone can have it.
fn tar_digest(folder: &Path) -> String {
    let script = "set -e; rm -rf copy; cp -a \"$0\" copy; find copy -type d -exec touch -d @0 {} +
        tar -C copy -c -b1 --format=gnu --sort=name --owner=0 --group=0 --numeric-owner \
            --mode=a-x,u=rwX,go=rX --hard-dereference . | sha256sum | cut -d' ' -f1";
    let temp = tempfile::tempdir().expect("a folder");
    let out = Command::new("sh")
        .args(["-c", script])
        .arg(folder)
        .current_dir(temp.path())
        .output()
        .expect("sh");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

#[test]
fn equal_names_are_two_folders_and_loose_files_go_as_ever() {
    if !needs::renames() {
        return;
    }
    let pair = pair("delete");
    for (n, name) in ["v1.2", "v1.2 (1)"].into_iter().enumerate() {
        let folder = made(&pair.laptop, "v1.2", n + 1, 10);
        let expected = content(&folder);
        let dropped = drop_folder(&pair.laptop, &folder);
        arrives(&pair.office, name, &expected);
        until("it left", || !dropped.exists());
    }
    pair.laptop.drop_file("loose", b"loose");
    pair.office.receives("loose", b"loose");
    pair.laptop.delivers(3);
    let leaving = pair.laptop.outbox.join(files::OWN).join("leaving");
    until("nothing is left of it", || content(&leaving).is_empty());
}

/// Copied slowly, file by file: nothing goes before the last of it.
#[test]
fn a_folder_waits_until_all_of_it_is_there() {
    if !needs::renames() {
        return;
    }
    let pair = pair("archive");
    let folder = pair.laptop.outbox.join("slow");
    fs::create_dir(&folder).expect("a folder");
    until("it is known that nothing is in it", || {
        let why = pair.laptop.run(&["why", &folder.to_string_lossy()]);
        why.out().contains("no file in it yet")
    });
    let writer = fs::File::create(folder.join("open")).expect("a file");
    fs::write(folder.join("done"), b"done").expect("a file");
    fs::write(folder.join("film.mkv.part"), b"half").expect("a file");
    let why = || pair.laptop.run(&["why", &folder.to_string_lossy()]).out();
    until("it is known what keeps it back", || {
        why().contains("film.mkv.part")
    });
    fs::rename(folder.join("film.mkv.part"), folder.join("film.mkv")).expect("finished");
    until("the writer keeps it back", || why().contains("open for writing"));
    assert!(pair.laptop.jobs().is_empty());
    std::io::Write::write_all(&mut &writer, b"late").expect("written");
    drop(writer);
    pair.laptop.delivers(1);
    let log = pair.laptop.log_text();
    assert!(!log.contains("WARN"), "to wait is nothing to warn of: {log}");
    let names: Vec<_> = pair.office.received();
    let expected = ["slow/done", "slow/film.mkv", "slow/open"].map(PathBuf::from);
    assert_eq!(names, expected);
    pair.office.receives("slow/open", b"late");
}

/// A pair whose transfer of a folder hangs after 8 of some 20 MiB.
fn hanging(after_send: &'static str) -> (Pair, BTreeMap<PathBuf, Option<Vec<u8>>>) {
    let pair = pair(after_send);
    let folder = made(&pair.laptop, "big", 40, 512 << 10);
    let expected = content(&folder);
    pair.wire.set(Toward::Listener, Fault::Stall(8 << 20));
    drop_folder(&pair.laptop, &folder);
    until("the transfer hangs", || pair.wire.fired(Toward::Listener) == 1);
    (pair, expected)
}

fn finishes(pair: &Pair, expected: &BTreeMap<PathBuf, Option<Vec<u8>>>) {
    pair.wire.set(Toward::Listener, Fault::None);
    arrives(&pair.office, "big", expected);
    pair.laptop.delivers(1);
    // A second delivery would have been queued before this one.
    pair.laptop.drop_file("marker", b"marker");
    pair.laptop.delivers(2);
    let mut names: Vec<_> = fs::read_dir(&pair.office.inbox)
        .expect("the inbox")
        .map(|e| e.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, [files::OWN, "big", "marker"]);
    assert!(pair.office.partials().is_empty(), "{:?}", pair.office.partials());
}

#[test]
fn both_are_killed_in_the_middle() {
    if !needs::renames() {
        return;
    }
    let (mut pair, expected) = hanging("archive");
    pair.laptop.kill();
    pair.office.kill();
    assert!(!pair.office.inbox.join("big").exists());
    pair.office.start();
    pair.laptop.start();
    finishes(&pair, &expected);
}

/// What was sent of the older version is of no use, and never seen.
#[test]
fn changed_while_it_is_sent_the_newer_arrives_once() {
    if !needs::renames() {
        return;
    }
    let (mut pair, mut expected) = hanging("archive");
    let path = pair.laptop.outbox.join("big");
    fs::write(path.join("sub-0/added"), b"added").expect("one more file");
    fs::write(path.join("sub-1/deeper-1/file 1"), b"changed").expect("another content");
    expected.insert("sub-0/added".into(), Some(b"added".to_vec()));
    expected.insert("sub-1/deeper-1/file 1".into(), Some(b"changed".to_vec()));
    pair.laptop.kill();
    pair.wire.set(Toward::Listener, Fault::None);
    pair.laptop.start();
    arrives(&pair.office, "big", &expected);
    until("it left", || !path.exists());
    let delivered: Vec<_> = pair.laptop.jobs_of("big");
    let states: Vec<_> = delivered
        .iter()
        .map(|j| j["state"].as_str().expect("a state"))
        .collect();
    assert_eq!(
        states.iter().filter(|s| **s == "delivered").count(),
        1,
        "{states:?}"
    );
    assert!(!pair.office.inbox.join("big (1)").exists());
}

#[test]
fn a_kept_folder_is_sent_again_when_something_deep_in_it_changes() {
    if !needs::renames() {
        return;
    }
    let mut pair = pair("keep");
    let folder = made(&pair.laptop, "kept", 3, 10);
    let expected = content(&folder);
    let dropped = drop_folder(&pair.laptop, &folder);
    arrives(&pair.office, "kept", &expected);
    pair.laptop.delivers(1);
    pair.laptop.restart();
    pair.laptop.drop_file("marker", b"marker");
    pair.laptop.delivers(2); // after the scan of the start
    fs::write(dropped.join("sub-0/deeper-0/file 0"), b"changed").expect("another content");
    arrives(&pair.office, "kept (1)", &content(&dropped));
    pair.laptop.delivers(3);
    assert!(!pair.office.inbox.join("kept (2)").exists());
}

/// Symlinks and the like stay out of the delivery, are told of, and are never removed with what was delivered.
#[test]
fn what_is_no_file_is_left_out_and_said() {
    if !needs::renames() {
        return;
    }
    let pair = pair("delete");
    let folder = made(&pair.laptop, "linked", 2, 10);
    let expected = content(&folder);
    std::os::unix::fs::symlink("/etc/passwd", folder.join("link")).expect("a symlink");
    let dropped = drop_folder(&pair.laptop, &folder);
    arrives(&pair.office, "linked", &expected);
    let sent = pair.laptop.outbox.join(files::OWN).join("sent/linked/link");
    until("it left", || !dropped.exists() && sent.is_symlink());
    assert!(pair.laptop.log_text().contains("linked/link"));
}

/// With markers a folder has one of its own; what lies in it needs none.
#[test]
fn a_folder_waits_for_its_marker() {
    if !needs::renames() {
        return;
    }
    let pair = Pair::with(|laptop, _| {
        whole(laptop, "archive");
        laptop.settings.outbox.push("ready = \"marker\"".into());
    });
    let folder = made(&pair.laptop, "marked", 3, 10);
    fs::write(folder.join("x.done"), b"no marker").expect("a file");
    let expected = content(&folder);
    let dropped = drop_folder(&pair.laptop, &folder);
    pair.laptop.drop_file("first", b"first");
    pair.laptop.drop_file("first.done", b"");
    pair.office.receives("first", b"first");
    assert!(pair.laptop.jobs_of("marked").is_empty());
    let marker = pair.laptop.drop_file("marked.done", b"");
    arrives(&pair.office, "marked", &expected);
    until("both left", || !dropped.exists() && !marker.exists());
    pair.laptop.delivers(2);
}

/// An editor's, say: what was delivered leaves once it is that again.
#[test]
fn a_swap_file_that_comes_and_goes_makes_no_second_delivery() {
    if !needs::renames() {
        return;
    }
    let pair = pair("archive");
    let folder = made(&pair.laptop, "edited", 3, 200 << 10);
    let expected = content(&folder);
    pair.wire.set(Toward::Listener, Fault::Stall(100 << 10));
    let dropped = drop_folder(&pair.laptop, &folder);
    until("the transfer hangs", || pair.wire.fired(Toward::Listener) == 1);
    pair.wire.set(Toward::Dialler, Fault::Stall(0)); // the receipt has to wait
    pair.wire.set(Toward::Listener, Fault::None);
    arrives(&pair.office, "edited", &expected);
    let swap = dropped.join(".file 0.swp");
    fs::write(&swap, b"open in an editor").expect("a swap file");
    pair.wire.set(Toward::Dialler, Fault::None);
    pair.laptop.delivers(1);
    until("it is kept back", || {
        pair.laptop.log_text().contains("changed since it was delivered")
    });
    fs::remove_file(&swap).expect("the editor ends");
    until("it left", || !dropped.exists());
    pair.laptop.delivers(1);
    assert!(!pair.office.inbox.join("edited (1)").exists());
}

/// Edits `folder`, with the office away until more is dropped. Nothing goes both ways.
#[track_caller]
fn changes_way(mut pair: Pair, whole: bool, restart: bool) {
    let way = |laptop: &mut Agent, whole: bool| {
        let way = if whole { "whole" } else { "files" };
        laptop.settings.outbox.retain(|line| !line.starts_with("folder"));
        laptop.settings.outbox.push(format!("folder = {way:?}"));
        laptop.write_config();
    };
    pair.wire.refuse(true);
    pair.wire.cut_all();
    let jobs = |whole: bool, files: usize| if whole { 1 } else { files };
    let before = made(&pair.laptop, "before", 3, 10);
    drop_folder(&pair.laptop, &before);
    until("it is queued", || pair.laptop.jobs().len() == jobs(!whole, 3));
    if restart {
        pair.laptop.stop();
        way(&mut pair.laptop, whole);
    } else {
        let told = |agent: &Agent| agent.log_text().matches("the new config holds").count();
        let so_often = told(&pair.laptop);
        way(&mut pair.laptop, whole);
        until("it holds", || told(&pair.laptop) > so_often);
    }
    let after = made(&pair.laptop, "after", 3, 10);
    drop_folder(&pair.laptop, &after);
    if restart {
        pair.laptop.start();
    }
    let both = jobs(!whole, 3) + jobs(whole, 3);
    until("both are queued", || pair.laptop.jobs().len() >= both);
    pair.wire.refuse(false);
    pair.laptop.delivers(both);
    pair.laptop.drop_file("last", b"last");
    pair.laptop.delivers(both + 1);
    assert_eq!(pair.office.received().len(), 3 + 3 + 1);
    let states: Vec<_> = pair.laptop.jobs_of(if whole { "after" } else { "before" });
    assert_eq!(states.len(), 1, "{states:?}");
}

#[test]
fn files_that_are_queued_do_not_go_again_within_their_folder() {
    if !needs::renames() {
        return;
    }
    for restart in [false, true] {
        changes_way(Pair::linked(), true, restart);
    }
}

#[test]
fn files_of_a_folder_that_is_queued_do_not_go_again_by_themselves() {
    if !needs::renames() {
        return;
    }
    for restart in [false, true] {
        changes_way(pair("archive"), false, restart);
    }
}

/// What stays goes on as it went, also where it changes.
#[test]
fn what_is_kept_is_not_sent_again_the_other_way() {
    if !needs::renames() {
        return;
    }
    let mut pair = Pair::with(|laptop, _| laptop.settings.outbox.push("after_send = \"keep\"".into()));
    let folder = made(&pair.laptop, "kept", 2, 10);
    let dropped = drop_folder(&pair.laptop, &folder);
    pair.laptop.delivers(2);
    pair.laptop.stop();
    pair.laptop.settings.outbox.push("folder = \"whole\"".into());
    pair.laptop.start();
    drop_folder(&pair.laptop, &made(&pair.laptop, "fresh", 2, 10));
    pair.laptop.delivers(3);
    fs::write(dropped.join("sub-0/deeper-0/file 0"), b"changed").expect("another content");
    pair.office.receives("kept/sub-0/deeper-0/file 0 (1)", b"changed");
    pair.laptop.delivers(4);
    assert_eq!(pair.office.received().len(), 2 + 2 + 1);
}
