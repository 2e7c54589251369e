//! Outboxes on file systems that tell less than the usual ones: each file arrives once, and whole.

use std::{fs, io::Write as _, os::unix::fs::PermissionsExt as _, time::Instant};

use crate::harness::{Pair, files, mount::Mounted, skip, until};

/// An outbox on what `mount` mounts there; None: not possible here, which was said.
fn pair(
    test: &str,
    after_send: &str,
    mount: impl FnOnce(&std::path::Path) -> Result<Mounted, String>,
) -> Option<(Pair, Mounted)> {
    let mut pair = Pair::idle();
    let mounted = match mount(&pair.laptop.outbox) {
        Ok(mounted) => mounted,
        Err(why) => {
            skip(test, &why);
            return None;
        }
    };
    let lines = &mut pair.laptop.settings.outbox;
    lines.push(format!("after_send = \"{after_send}\""));
    lines.push("rescan = \"1s\"".into());
    pair.office.start();
    pair.laptop.start();
    pair.connects();
    Some((pair, mounted))
}

/// A lease says nothing of whoever writes at the other side of a FUSE mount.
#[test]
fn a_writer_at_the_other_side_is_waited_for() {
    let real = tempfile::tempdir().expect("a folder");
    let mount = |at: &std::path::Path| {
        let args = [&*real.path().to_string_lossy(), &*at.to_string_lossy()];
        Mounted::by("bindfs", &args, at)
    };
    let Some((mut pair, _mounted)) = pair("a_writer_at_the_other_side_is_waited_for", "delete", mount) else {
        return;
    };
    let bytes = files::noise(7, 4 << 20);
    let mut file = fs::File::create(real.path().join("growing")).expect("a file at the other side");
    for piece in bytes.chunks(1 << 20) {
        file.write_all(piece).expect("written");
        let begun = Instant::now();
        until("the agent had time to see it", || {
            begun.elapsed().as_millis() > 700
        });
    }
    drop(file);
    pair.office.receives("growing", &bytes);
    pair.laptop.empties_outbox();
    assert_eq!(pair.office.received().len(), 1);
    let shown = pair.laptop.status()["outboxes"][0]["cautions"].clone();
    assert!(shown.to_string().contains("every writer"), "{shown}");
    pair.laptop.kill();
}

/// With `kernel_cache` the kernel shows old bytes under new times.
#[test]
fn bytes_that_this_machine_keeps_are_not_sent() {
    let real = tempfile::tempdir().expect("a folder");
    let mount = |at: &std::path::Path| {
        let (from, at_text) = (real.path().to_string_lossy(), at.to_string_lossy());
        Mounted::by("bindfs", &["-o", "kernel_cache", &from, &at_text], at)
    };
    let Some((mut pair, _mounted)) = pair("bytes_that_this_machine_keeps_are_not_sent", "keep", mount) else {
        return;
    };
    fs::write(real.path().join("f"), "old bytes").expect("a file at the other side");
    pair.office.receives("f", b"old bytes");
    fs::write(real.path().join("f"), "new bytes").expect("written at the other side");
    pair.office.receives("f (1)", b"new bytes");
    pair.laptop.kill();
}

/// On sshfs a file has another inode number at each lookup.
#[test]
fn where_numbers_do_not_last_a_file_arrives_once() {
    let test = "where_numbers_do_not_last_a_file_arrives_once";
    for after_send in ["delete", "keep"] {
        let real = tempfile::tempdir().expect("a folder");
        let server = real.path().with_extension("server");
        fs::write(&server, "#!/bin/sh\nexec /usr/lib/openssh/sftp-server\n").expect("a script");
        fs::set_permissions(&server, fs::Permissions::from_mode(0o755)).expect("chmod");
        let mount = |at: &std::path::Path| {
            let command = format!("ssh_command={}", server.to_string_lossy());
            let from = format!("localhost:{}", real.path().to_string_lossy());
            let args = ["-o", &command, "-o", "dir_cache=no", &from, &at.to_string_lossy()];
            Mounted::by("sshfs", &args, at)
        };
        let begun = pair(test, after_send, mount);
        let Some((mut pair, _mounted)) = begun else {
            return;
        };
        fs::write(real.path().join("one"), "bytes").expect("a file at the other side");
        pair.office.receives("one", b"bytes");
        if after_send == "delete" {
            pair.laptop.empties_outbox();
        }
        // Whatever comes again would come before this.
        fs::write(real.path().join("two"), "bytes").expect("another");
        pair.office.receives("two", b"bytes");
        assert_eq!(pair.office.received().len(), 2, "after_send = {after_send}");
        pair.laptop.kill();
        let _ = fs::remove_file(server);
    }
}

#[test]
fn listings_without_types() {
    let mount = |at: &std::path::Path| Mounted::ext4(&["-O", "^filetype,^has_journal"], at);
    let Some((mut pair, _mounted)) = pair("listings_without_types", "delete", mount) else {
        return;
    };
    pair.laptop.kill();
    // Only a scan tells of it.
    fs::create_dir(pair.laptop.outbox.join("sub")).expect("a folder");
    fs::write(pair.laptop.outbox.join("sub/file"), "bytes").expect("a file");
    pair.laptop.start();
    pair.office.receives("sub/file", b"bytes");
    pair.laptop.empties_outbox();
    pair.laptop.kill();
}

/// Whole seconds, inodes that are used again, no time of birth: the next file looks like the one that left.
#[test]
fn files_that_look_alike_each_arrive_where_the_clock_is_coarse() {
    let test = "files_that_look_alike_each_arrive_where_the_clock_is_coarse";
    let mount = |at: &std::path::Path| Mounted::ext4(&["-I", "128", "-O", "^has_journal"], at);
    let Some((mut pair, _mounted)) = pair(test, "delete", mount) else {
        return;
    };
    let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    for (bytes, name) in [("one", "f"), ("two", "f (1)"), ("two", "f (2)")] {
        let mut file = fs::File::create(pair.laptop.outbox.join("f")).expect("a file");
        file.write_all(bytes.as_bytes()).expect("written");
        files::set_modified(&file, time).expect("a time");
        drop(file);
        pair.laptop.empties_outbox();
        pair.office.receives(name, bytes.as_bytes());
    }
    assert_eq!(pair.office.received().len(), 3);
    pair.laptop.kill();
}

#[test]
fn a_kept_file_is_sent_again_for_new_bytes_only() {
    let mut pair = Pair::with(|laptop, _| laptop.settings.outbox.push("after_send = \"keep\"".into()));
    let path = pair.laptop.drop_file("f", b"bytes");
    pair.office.receives("f", b"bytes");
    let file = || fs::File::options().write(true).open(&path).expect("the file");
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(3600);
    files::set_modified(&file(), later).expect("a time");
    pair.laptop.drop_file("aside", b"bytes");
    pair.office.receives("aside", b"bytes");
    fs::rename(pair.laptop.outbox.join("aside"), &path).expect("replaced by a copy");
    pair.laptop.stop();
    files::set_modified(&file(), later + std::time::Duration::from_secs(3600)).expect("a time");
    pair.laptop.start();
    pair.connects();
    pair.laptop.drop_file("last", b"bytes");
    pair.office.receives("last", b"bytes");
    fs::write(&path, "BYTES").expect("written");
    pair.office.receives("f (1)", b"BYTES");
    assert_eq!(pair.office.received().len(), 4);
}

/// No event tells of what lies on a disk when it is mounted inside an outbox, nor is that watched by then.
#[test]
fn a_disk_mounted_inside_is_looked_at_and_watched() {
    let mut pair = Pair::idle();
    pair.laptop.settings.outbox.push("rescan = \"10m\"".into()); // or a scan would find it in time
    pair.office.start();
    pair.laptop.start();
    pair.connects();
    pair.laptop.drop_file("before", b"before");
    pair.office.receives("before", b"before");
    let (disk, at) = (
        tempfile::tempdir().expect("a folder"),
        pair.laptop.outbox.join("disk"),
    );
    fs::write(disk.path().join("there"), b"there already").expect("a file on the disk");
    let args = ["--bind", &*disk.path().to_string_lossy(), &*at.to_string_lossy()];
    let _mounted = match Mounted::by("mount", &args, &at) {
        Ok(mounted) => mounted,
        Err(why) => return skip("a_disk_mounted_inside_is_looked_at_and_watched", &why),
    };
    pair.office.receives("disk/there", b"there already");
    fs::write(at.join("later"), b"later").expect("a file on the disk");
    pair.office.receives("disk/later", b"later");
    pair.laptop.kill();
}
