//! When a file counts as finished, and which ones are never inspected.

use std::{fs::File, io::Write as _};

use crate::harness::{
    Fault, Pair, Toward, eventually,
    files::{self, noise},
    until,
};

#[test]
fn a_file_that_is_being_written_waits_for_its_close() {
    let pair = Pair::linked();
    let path = pair.laptop.outbox.join("growing");
    let mut file = File::create(&path).expect("a file in the outbox");
    file.write_all(b"first half, ").expect("written");
    // A whole one that came later goes first: the agent is awake and has seen both.
    pair.laptop.drop_file("whole", b"whole");
    pair.office.receives("whole", b"whole");
    let why = pair.laptop.run(&["why", path.to_str().expect("a plain path")]);
    assert!(why.code == Some(0) && !why.out().trim().is_empty(), "{why}");
    assert!(
        pair.laptop
            .jobs_of("growing")
            .iter()
            .all(|j| j["state"] != "delivered")
    );
    assert!(!pair.office.inbox.join("growing").exists());
    file.write_all(b"second half").expect("written");
    drop(file);
    pair.office.receives("growing", b"first half, second half");
    pair.laptop.delivers(2);
    assert_eq!(pair.office.received().len(), 2);
}

#[test]
fn an_editors_save_arrives_once_in_its_last_version() {
    let pair = Pair::linked();
    let outbox = &pair.laptop.outbox;
    let mut swap = File::create(outbox.join(".letter.txt.swp")).expect("the editor's own file");
    swap.write_all(b"scratch").expect("written");
    std::fs::write(outbox.join(".letter.txt.tmp"), b"dear all").expect("written aside");
    std::fs::rename(outbox.join(".letter.txt.tmp"), outbox.join("letter.txt")).expect("renamed over");
    drop(swap);
    pair.laptop.delivers(1);
    pair.office.receives("letter.txt", b"dear all");
    assert_eq!(pair.office.received().len(), 1);
}

#[test]
fn hidden_and_empty_files_are_sent() {
    let pair = Pair::linked();
    pair.laptop.drop_file(".hidden", b"seen");
    pair.laptop.drop_file("empty", b"");
    pair.laptop.drop_file(".hidden-folder/inner", b"inner");
    pair.laptop.delivers(3);
    pair.office.receives(".hidden", b"seen");
    pair.office.receives("empty", b"");
    pair.office.receives(".hidden-folder/inner", b"inner");
}

#[test]
fn unfinished_names_wait_for_their_rename_and_litter_stays() {
    let pair = Pair::with(|laptop, _| {
        laptop
            .settings
            .outbox
            .push("ignore = [\"*.secret\", \"sub/only-here\"]".into());
    });
    let ignored = [
        "a.part",
        "b.crdownload",
        "c.tmp",
        "d~",
        "~$e.docx",
        ".DS_Store",
        "my.secret",
        "sub/only-here",
    ];
    for name in ignored {
        pair.laptop.drop_file(name, b"unfinished");
    }
    pair.laptop.drop_file("only-here", b"not in sub");
    pair.laptop.drop_file("done", b"done");
    pair.laptop.delivers(2);
    for (name, pattern) in [
        ("a.part", "*.part"),
        ("my.secret", "*.secret"),
        (".DS_Store", ".DS_Store"),
    ] {
        let path = pair.laptop.outbox.join(name);
        let why = pair
            .laptop
            .run(&["why", path.to_str().expect("a plain path")])
            .exits(0);
        assert!(why.out().contains(pattern), "`{pattern}` is not named\n{why}");
    }
    let from = pair.laptop.outbox.join("a.part");
    std::fs::rename(from, pair.laptop.outbox.join("a")).expect("the download is done");
    pair.laptop.delivers(3);
    pair.office.receives("a", b"unfinished");
    assert_eq!(pair.office.received().len(), 3);
}

#[test]
fn links_and_pipes_are_left_alone() {
    let pair = Pair::linked();
    std::fs::write(pair.laptop.root.join("outside"), b"private").expect("a file outside");
    std::os::unix::fs::symlink(pair.laptop.root.join("outside"), pair.laptop.outbox.join("link"))
        .expect("a symlink");
    let pipe = pair.laptop.outbox.join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.is_ok_and(|s| s.success()), "mkfifo");
    pair.laptop.drop_file("plain", b"plain");
    pair.office.receives("plain", b"plain");
    pair.laptop.delivers(1);
    assert_eq!(pair.office.received().len(), 1);
}

#[test]
fn an_outbox_that_comes_back_is_watched_again() {
    let pair = Pair::linked();
    let (outbox, aside) = (&pair.laptop.outbox, pair.laptop.root.join("elsewhere"));
    std::fs::rename(outbox, &aside).expect("moved away");
    eventually("the outbox is missed", || {
        let status = pair.laptop.status();
        (status["outboxes"][0]["watch"] != "native" || status["outboxes"][0]["held"].is_string())
            .then_some(())
    });
    std::fs::rename(&aside, outbox).expect("moved back");
    pair.laptop.drop_file("after", b"after");
    pair.office.receives("after", b"after");
}

#[test]
fn an_unreadable_file_holds_nothing_up() {
    if rustix::process::geteuid().is_root() {
        return crate::harness::skip("an_unreadable_file_holds_nothing_up", "root reads everything");
    }
    let pair = Pair::linked();
    let locked = pair.laptop.drop_file("locked", b"locked");
    std::fs::set_permissions(&locked, std::os::unix::fs::PermissionsExt::from_mode(0o000)).expect("chmod");
    pair.laptop.drop_file("open", b"open");
    pair.office.receives("open", b"open");
    until("`why` says that it cannot be read", || {
        let why = pair.laptop.run(&["why", locked.to_str().expect("a plain path")]);
        why.out().to_lowercase().contains("permission")
    });
}

/// `quiet` of the tests, several times over.
const LONGER_THAN_QUIET: std::time::Duration = std::time::Duration::from_millis(1500);

#[test]
fn a_writer_that_pauses_longer_than_quiet_is_waited_for() {
    let pair = Pair::linked();
    let mut file = File::create(pair.laptop.outbox.join("slow")).expect("a file in the outbox");
    file.write_all(b"first half, ").expect("written");
    // It has to be checked all the while: nothing else can tell that it is not sent too soon.
    std::thread::sleep(LONGER_THAN_QUIET);
    file.write_all(b"second half").expect("written");
    drop(file);
    pair.office.receives("slow", b"first half, second half");
    pair.laptop.delivers(1);
    assert_eq!(pair.office.received().len(), 1);
}

#[test]
fn a_file_written_through_memory_is_waited_for() {
    if !crate::harness::needs::seeing_writers() {
        return;
    }
    use std::os::fd::AsRawFd as _;
    const SIZE: usize = 8192;
    let pair = Pair::linked();
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(pair.laptop.outbox.join("mapped"))
        .expect("a file in the outbox");
    file.set_len(SIZE as u64).expect("its size");
    // SAFETY: a new shared mapping of the whole file, which lives until it is unmapped below.
    let map = unsafe {
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(
            std::ptr::null_mut(),
            SIZE,
            rights,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    assert_ne!(map, libc::MAP_FAILED);
    drop(file); // only the mapping holds it now
    let fill = |from: usize, byte: u8| {
        // SAFETY: within the mapping, which nobody else in this process touches.
        unsafe { std::ptr::write_bytes(map.cast::<u8>().add(from), byte, SIZE / 2) };
    };
    fill(0, b'1');
    std::thread::sleep(LONGER_THAN_QUIET);
    assert!(pair.office.received().is_empty(), "sent while it is mapped");
    fill(SIZE / 2, b'2');
    // SAFETY: the mapping made above, used no more.
    assert_eq!(unsafe { libc::munmap(map, SIZE) }, 0);
    pair.office
        .receives("mapped", &[[b'1'; SIZE / 2], [b'2'; SIZE / 2]].concat());
    pair.laptop.delivers(1);
    assert_eq!(pair.office.received().len(), 1);
}

/// The kernel would hold the opener up for `lease-break-time`, 45 s by default, if the agent did not answer.
#[test]
fn opening_for_writing_waits_for_no_stalled_link() {
    const SIZE: usize = 16 << 20;
    let pair = Pair::linked();
    pair.wire.set(Toward::Listener, Fault::Stall(1 << 20));
    let path = pair.laptop.drop_file("large", &noise(1, SIZE));
    eventually("some of it was sent", || {
        let jobs = pair.laptop.jobs_of("large");
        (jobs.first()?["state"] == "sending").then_some(())
    });
    until("the stall came about", || {
        pair.wire.passed(Toward::Listener) >= 1 << 20
    });
    let begun = std::time::Instant::now();
    let mut writer = File::options().append(true).open(&path).expect("opened");
    let waited = begun.elapsed();
    assert!(waited.as_secs() < 20, "held up for {waited:?}");
    writer.write_all(b"more").expect("written");
    drop(writer);
    pair.wire.set(Toward::Listener, Fault::None);
    let mut whole = noise(1, SIZE);
    whole.extend_from_slice(b"more");
    pair.office.receives("large", &whole);
    pair.laptop.empties_outbox();
    assert_eq!(pair.office.received().len(), 1, "no torn one");
}

#[test]
fn with_markers_a_file_waits_for_its_own() {
    let pair = Pair::with(|laptop, _| laptop.settings.outbox.push("ready = \"marker\"".into()));
    let at = |name: &str| pair.laptop.outbox.join(name);
    pair.laptop.drop_file("sub/early", b"early");
    pair.laptop.drop_file("marked", b"marked");
    pair.laptop.drop_file("marked.done", b"");
    pair.office.receives("marked", b"marked");
    // The marker leaves after its file.
    until("only what waits is left", || {
        files::list(&pair.laptop.outbox) == [std::path::Path::new("sub/early")]
    });
    let why = |name: &str| {
        pair.laptop
            .run(&["why", at(name).to_str().expect("a plain path")])
    };
    let waits = why("sub/early").exits(0).out();
    assert!(waits.contains("waits for its marker early.done"), "{waits}");
    // Grown bit by bit, closed each time, as the marker's users do it.
    for _ in 0..3 {
        let mut file = File::options()
            .append(true)
            .open(at("sub/early"))
            .expect("opened");
        file.write_all(b", more").expect("written");
    }
    pair.laptop.drop_file("sub/early.done", b"");
    pair.office.receives("sub/early", b"early, more, more, more");
    pair.laptop.delivers(2);
    pair.laptop.empties_outbox();
    assert_eq!(pair.office.received().len(), 2, "no marker is sent");
}

/// A shortage is nobody's fault in the folder: its files wait, and the log does not tell of each.
#[test]
fn files_wait_for_descriptors_without_a_word_for_each() {
    const FILES: usize = 200;
    let mut pair = Pair::idle();
    pair.office.start();
    pair.laptop.descriptors = Some(64);
    pair.laptop.start();
    pair.connects();
    for n in 0..FILES {
        pair.laptop.drop_file(format!("{n}"), &noise(n as u64, 10));
    }
    pair.laptop.delivers(FILES);
    pair.laptop.empties_outbox();
    let log = pair.laptop.log_text();
    for text in ["\"not sent\"", "cannot leave the outbox yet"] {
        assert_eq!(
            log.lines().filter(|line| line.contains(text)).count(),
            0,
            "{text}"
        );
    }
    pair.laptop.stop();
}
