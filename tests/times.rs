//! Times that a program sets after it has closed a file, whenever that is: no second file.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use crate::harness::{Agent, Fault, Pair, Toward, files, mount::Mounted, skip, until};

/// Even seconds, which FAT keeps too.
fn late() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)
}

fn set_late(path: &Path) {
    let file = fs::File::open(path).expect("left in place");
    files::set_modified(&file, late()).expect("another time");
}

/// When its only job was queued, which is told again when its file is found with other times.
fn queued_at(laptop: &Agent) -> String {
    laptop.jobs()[0]["queued_at"].to_string()
}

/// The office has the file, the laptop does not know it, and is killed. With when it had queued the file.
fn unanswered(file: &[u8]) -> (Pair, std::path::PathBuf, String) {
    let mut pair = Pair::linked();
    pair.wire.set(Toward::Dialler, Fault::Stall(0));
    let path = pair.laptop.drop_file("file", file);
    pair.office.receives("file", file);
    let queued = queued_at(&pair.laptop);
    pair.laptop.kill();
    pair.wire.set(Toward::Dialler, Fault::None);
    (pair, path, queued)
}

/// It is offered under the id that it had, so the office says that it has it.
#[test]
fn set_while_the_answer_is_lost() {
    let (mut pair, path, _) = unanswered(b"content");
    set_late(&path);
    pair.laptop.start();
    pair.laptop.delivers(1);
    pair.laptop.empties_outbox();
    let arrived = pair.office.inbox.join("file");
    assert_eq!(files::files_in(&pair.office.inbox), [arrived]);
    assert_eq!(pair.laptop.jobs().len(), 1);
}

/// What looks like a late time may be another content of the same size.
#[test]
fn other_bytes_that_look_like_a_late_time_arrive_too() {
    let (mut pair, path, queued) = unanswered(b"content");
    let file = fs::File::options().write(true).open(&path).expect("in place");
    std::io::Write::write_all(&mut &file, b"CONTENT").expect("written");
    drop(file);
    set_late(&path);
    // It is found before the answer comes: a file has to rest where writers are not seen.
    pair.wire.refuse(true);
    pair.laptop.start();
    until("it is found", || queued_at(&pair.laptop) != queued);
    pair.wire.refuse(false);
    pair.office.receives("file (1)", b"CONTENT");
    pair.laptop.delivers(1);
    pair.laptop.empties_outbox();
    assert_eq!(pair.office.received().len(), 2);
}

/// Neither inode numbers that last nor times of birth, but leases.
#[test]
fn set_where_the_disk_keeps_no_numbers() {
    let test = "set_where_the_disk_keeps_no_numbers";
    for (make, options) in [
        ("mkfs.ext4", &["-q", "-F", "-I", "128"][..]),
        ("mkfs.vfat", &[][..]),
        ("mkfs.exfat", &[][..]),
    ] {
        let mut pair = Pair::idle();
        let _mounted = match Mounted::image(make, options, &pair.laptop.outbox) {
            Ok(mounted) => mounted,
            Err(why) => {
                skip(test, &why);
                continue;
            }
        };
        pair.laptop.settings.outbox = vec!["linger = \"1s\"".into()];
        pair.office.start();
        pair.laptop.start();
        pair.connects();
        let path = pair.laptop.outbox.join("file");
        fs::write(&path, "content").expect("a file on that disk");
        pair.laptop.delivers(1);
        set_late(&path);
        pair.laptop.empties_outbox();
        let arrived = pair.office.inbox.join("file");
        assert_eq!(files::files_in(&pair.office.inbox), [arrived], "{make}");
        pair.laptop.kill();
    }
}
