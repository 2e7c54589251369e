//! A log that cannot be written, or that nobody reads, costs its own lines and nothing else.

use std::{fs, io, os::fd::OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::harness::{Pair, files};

#[test]
fn no_log_stops_the_work_or_the_end() {
    let (_reader, unread) = full_pipe();
    let full = fs::File::options()
        .write(true)
        .open("/dev/full")
        .expect("a disk that is full");
    let (gone, closed) = io::pipe().expect("a pipe");
    drop(gone);
    for (log, stderr) in [
        ("a full disk", OwnedFd::from(full)),
        ("a closed pipe", closed.into()),
        ("a pipe that nobody reads", unread),
    ] {
        let mut pair = Pair::idle();
        pair.office.start();
        pair.laptop.stderr = Some(stderr);
        pair.laptop.start();
        for n in 0..20 {
            pair.laptop.drop_file(format!("{n}"), &files::noise(n, 100));
        }
        pair.laptop.delivers(20);
        pair.laptop.empties_outbox();
        assert_eq!(pair.office.received().len(), 20, "with {log} as the log");
        pair.laptop.stop();
    }
}

/// Its writing end; the reading end has to stay open.
fn full_pipe() -> (io::PipeReader, OwnedFd) {
    use io::Write as _;
    let (reader, mut writer) = io::pipe().expect("a pipe");
    let flags = fcntl_getfl(&writer).expect("flags");
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).expect("flags");
    while writer.write(&[b'x'; 4096]).is_ok() {}
    fcntl_setfl(&writer, flags).expect("flags");
    (reader, writer.into())
}
