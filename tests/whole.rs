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

use crate::harness::{Agent, Fault, Pair, Toward, eventually, files, needs, until};

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

/// Arrives as `name`, and is all there once it is seen.
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
    until("it is logged", || pair.laptop.log_text().contains("linked/link"));
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

fn set_folder(laptop: &mut Agent, whole: bool) {
    let value = if whole { "whole" } else { "files" };
    laptop.settings.outbox.retain(|line| !line.starts_with("folder"));
    laptop.settings.outbox.push(format!("folder = {value:?}"));
}

/// Edits `folder` while the office is away: refused by the agent that runs, by one that starts and by `check`, until
/// all of it has left.
#[track_caller]
fn changes_once_all_has_left(mut pair: Pair, whole: bool) {
    let is_refused = |text: &str| {
        let (from, to) = if whole {
            ("files", "whole")
        } else {
            ("whole", "files")
        };
        let change = format!("cannot change from {from:?} to {to:?}");
        let items = if whole {
            "3 files of folders"
        } else {
            "1 whole folder"
        };
        let way_out = format!("set `folder = {from:?}` again");
        for part in [
            change.as_str(),
            items,
            "yet to be delivered or to leave",
            &way_out,
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    };
    let jobs = |whole: bool| if whole { 1 } else { 3 };
    pair.wire.refuse(true);
    pair.wire.cut_all();
    drop_folder(&pair.laptop, &made(&pair.laptop, "before", 3, 10));
    until("it is queued", || pair.laptop.jobs().len() == jobs(!whole));

    set_folder(&mut pair.laptop, whole);
    pair.laptop.write_config();
    let error = eventually("it is refused", || {
        pair.laptop.status()["config_error"].as_str().map(str::to_owned)
    });
    is_refused(&error);
    until("it is logged", || {
        pair.laptop.log_text().contains("the config stays as it was")
    });
    is_refused(&pair.laptop.run(&["check"]).exits(78).out());
    drop_folder(&pair.laptop, &made(&pair.laptop, "more", 3, 10));
    until("it goes as before", || {
        pair.laptop.jobs().len() == 2 * jobs(!whole)
    });
    // Beside a change for which all of the agent has to restart, too.
    let another = pair.laptop.root.join("another inbox");
    fs::create_dir(&another).expect("a folder");
    let inbox = std::mem::replace(&mut pair.laptop.inbox, another);
    pair.laptop.write_config();
    until("it is refused again", || {
        let log = pair.laptop.log_text();
        log.matches("the config stays as it was").count() == 2
    });
    assert!(!pair.laptop.log_text().contains("restarts inside this process"));
    pair.laptop.inbox = inbox;

    pair.laptop.stop();
    pair.laptop.spawn();
    assert_eq!(pair.laptop.exit_code(), Some(78), "{}", pair.laptop.log_text());
    let log = pair.laptop.log_text();
    let (_, end) = log.rsplit_once("error: ").expect("its last words");
    assert!(
        end.contains("cannot change from") && end.contains("help: set `folder"),
        "{end}"
    );
    set_folder(&mut pair.laptop, !whole);
    pair.laptop.start();
    pair.wire.refuse(false);
    pair.laptop.delivers(2 * jobs(!whole));

    set_folder(&mut pair.laptop, whole);
    pair.laptop.write_config();
    until("it changes once all has left", || {
        pair.laptop.signal(rustix::process::Signal::HUP);
        pair.laptop.status()["outboxes"][0]["folder"] == if whole { "whole" } else { "files" }
    });
    until("the config is in effect", || {
        pair.laptop.status()["config_error"].is_null()
    });
    drop_folder(&pair.laptop, &made(&pair.laptop, "last", 3, 10));
    pair.laptop.delivers(2 * jobs(!whole) + jobs(whole));
    assert_eq!(pair.office.received().len(), 3 + 3 + 3);
}

#[test]
fn what_goes_by_files_goes_whole_once_all_has_left() {
    if !needs::renames() {
        return;
    }
    changes_once_all_has_left(Pair::linked(), true);
}

#[test]
fn what_goes_whole_goes_by_files_once_all_has_left() {
    if !needs::renames() {
        return;
    }
    changes_once_all_has_left(pair("archive"), false);
}

/// Where the outbox was moved too, only its id tells what is known of it, and that is in its folder.
#[test]
fn a_moved_outbox_is_held_while_it_keeps_what_went_the_other_way() {
    if !needs::renames() {
        return;
    }
    let mut pair = Pair::with(|laptop, _| laptop.settings.outbox.push("after_send = \"keep\"".into()));
    let kept = drop_folder(&pair.laptop, &made(&pair.laptop, "kept", 2, 10));
    pair.laptop.delivers(2);
    pair.laptop.stop();
    let moved = pair.laptop.root.join("moved");
    fs::rename(&pair.laptop.outbox, &moved).expect("the outbox is moved");
    let kept = moved.join(kept.file_name().expect("a name"));
    pair.laptop.outbox = moved;
    set_folder(&mut pair.laptop, true);
    pair.laptop.start();
    let held = eventually("it is held", || {
        pair.laptop.status()["outboxes"][0]["held"]
            .as_str()
            .map(str::to_owned)
    });
    assert!(
        held.contains("2 files of folders are still in it")
            && held.contains("set `folder = \"files\"` again"),
        "{held}"
    );
    let aside = pair.laptop.root.join("aside");
    fs::rename(&kept, &aside).expect("moved out of it");
    until("it is watched", || {
        pair.laptop.status()["outboxes"][0]["held"].is_null()
    });
    fs::rename(&aside, &kept).expect("and back");
    arrives(&pair.office, "kept (1)", &content(&kept));
    pair.laptop.delivers(3);
}
