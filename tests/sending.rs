//! `send`: whose rights count, and what becomes of what is named.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        process::CommandExt as _,
    },
    path::Path,
    process::Command,
};

use crate::harness::{Agent, Pair, Ran, files, skip, until};

/// `send` with these paths, given by whatever names.
fn send(agent: &Agent, paths: &[&Path]) -> Ran {
    let mut command = agent.command(&["send", "--to", "office", "--wait"]);
    command.args(paths);
    Ran::run(command)
}

fn until_spool_is_empty(agent: &Agent) {
    let spool = agent.state.join("spool");
    until("nothing stays in the spool", || {
        fs::read_dir(&spool).map_or(true, |mut sends| sends.next().is_none())
    });
}

fn write(path: &Path, bytes: &str) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("its folder");
    fs::write(path, bytes).expect("a file");
}

/// The agent may read what another user of its control socket may not: it opens nothing for them.
#[test]
fn a_member_of_the_group_sends_what_they_can_read_themselves() {
    if !rustix::process::geteuid().is_root() {
        return skip("a_member_of_the_group…", "it takes root to act as two users");
    }
    const OTHER: u32 = 54_321;
    let pair = Pair::linked();
    let laptop = &pair.laptop;
    let at = |path: &str| laptop.root.join(path);
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    };
    for (path, bits) in [
        (&laptop.root, 0o755),
        (&laptop.config, 0o644),
        (&laptop.state, 0o711),
    ] {
        mode(path, bits);
    }
    // As the system's service makes it.
    let socket = laptop.state.join("control.sock");
    std::os::unix::fs::chown(&socket, None, Some(OTHER)).expect("chgrp");
    mode(&socket, 0o660);
    let key = laptop.state.join("identity.key");
    write(&at("secret"), "secret");
    mode(&at("secret"), 0o600);
    for (path, bytes) in [("own/file", "their own"), ("own/inner/file", "also")] {
        write(&at(path), bytes);
    }
    write(&at("mixed/secret"), "secret");
    mode(&at("mixed/secret"), 0o600);
    symlink(&key, at("own/link")).expect("a symlink");
    fs::hard_link(&key, at("hard link")).expect("a link");
    let as_other = |path: &Path| {
        let mut command = laptop.command(&["send", "--to", "office", "--wait"]);
        command.arg(path).uid(OTHER).gid(OTHER);
        Ran::run(command)
    };
    for path in [
        &key,
        &at("own/link"),
        &at("hard link"),
        &at("secret"),
        &at("mixed"),
    ] {
        let ran = as_other(path).exits(77);
        assert!(ran.out().is_empty(), "{ran}");
    }
    as_other(&at("own")).exits(0);
    pair.office.receives("own/file", b"their own");
    pair.office.receives("own/inner/file", b"also");
    assert_eq!(pair.office.received().len(), 2, "no link was followed");
    // Who may read the key is kept from sending it by mistake.
    let ran = send(laptop, &[&at("hard link")]).exits(77);
    assert!(ran.err().contains("never sent"), "{ran}");
    until_spool_is_empty(&pair.laptop);
}

#[test]
fn things_of_one_name_arrive_as_several() {
    let pair = Pair::linked();
    let at = |path: &str| pair.laptop.root.join(path);
    for folder in ["a", "b"] {
        write(&at(folder).join("report.csv"), folder);
        write(&at(folder).join("same/inner.csv"), folder);
    }
    let all = ["a/report.csv", "b/report.csv", "a/same", "b/same"].map(&at);
    send(&pair.laptop, &all.each_ref().map(|path| path.as_path())).exits(0);
    for (name, numbered) in [
        ("report.csv", "report (1).csv"),
        ("same/inner.csv", "same/inner (1).csv"),
    ] {
        let mut both = [name, numbered].map(|name| fs::read(pair.office.inbox.join(name)).expect("arrived"));
        both.sort();
        assert_eq!(both, [b"a", b"b"], "{name}");
    }
}

#[test]
fn folders_without_files_are_an_error_and_nothing_is_sent() {
    let pair = Pair::linked();
    let at = |path: &str| pair.laptop.root.join(path);
    write(&at("file"), "file");
    fs::create_dir_all(at("empty/in/depth")).expect("folders");
    fs::create_dir(at("links")).expect("a folder");
    symlink("../file", at("links/link")).expect("a symlink");
    write(&at("own/.dropwire/id"), "no content");
    for folder in ["empty", "links", "own"] {
        for paths in [vec![at(folder)], vec![at("file"), at(folder)]] {
            let paths: Vec<_> = paths.iter().map(|path| path.as_path()).collect();
            let ran = send(&pair.laptop, &paths).exits(1);
            assert!(
                ran.err().contains("no file in") && ran.err().contains(folder),
                "{ran}"
            );
        }
    }
    assert!(pair.laptop.jobs().is_empty());
    until_spool_is_empty(&pair.laptop);
}

#[test]
fn what_was_archived_is_sent_again_and_an_outbox_keeps_the_rest() {
    let mut pair = Pair::linked();
    pair.laptop.drop_file("x", b"x");
    pair.laptop.delivers(1);
    let archived = pair.laptop.outbox.join(".dropwire/sent/x");
    until("it is archived", || archived.exists());
    send(&pair.laptop, &[&archived]).exits(0);
    pair.office.receives("x (1)", b"x");
    assert!(archived.exists());
    let linked = pair.laptop.root.join("linked");
    symlink(&pair.laptop.outbox, &linked).expect("a symlink");
    pair.office.stop();
    pair.laptop.drop_file("waits", b"waits");
    for folder in [&pair.laptop.outbox, &linked] {
        let ran = send(&pair.laptop, &[&folder.join("waits")]).exits(2);
        assert!(ran.err().contains("is in the outbox"), "{ran}");
    }
    let ran = send(&pair.laptop, &[&pair.laptop.outbox.join(".dropwire/id")]).exits(77);
    assert!(ran.err().contains("never sent"), "{ran}");
}

/// The agent tells nobody what a link in an outbox leads to.
#[test]
fn why_follows_no_link() {
    let pair = Pair::linked();
    symlink("/dev", pair.laptop.outbox.join("link")).expect("a symlink");
    for name in ["link/null", "link/missing"] {
        let path = pair.laptop.outbox.join(name);
        let ran = pair.laptop.run(&["why", path.to_str().expect("plain")]).exits(66);
        assert!(ran.err().contains("there is no file"), "{ran}");
    }
}

/// Neither the command nor the agent has more open at a time than a group of files.
#[test]
fn a_folder_of_more_files_than_may_be_open_is_sent() {
    let pair = Pair::linked();
    let folder = pair.laptop.root.join("many");
    for n in 0..100 {
        write(&folder.join(format!("{}/{n}", n % 7)), &n.to_string());
    }
    let odd = folder.join(files::name(b"odd\xff"));
    write(&odd, "odd");
    let command = pair.laptop.command(&["send"]);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "ulimit -n 64 && exec \"$0\" \"$@\" < 3/3"])
        .arg(command.get_program())
        .args(command.get_args())
        .args([
            "--to",
            "office",
            "--wait",
            "../many/2/../../many",
            "/proc/self/fd/0",
        ])
        .env_clear()
        .envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .current_dir(&folder);
    let ran = Ran::run(shell).exits(0);
    assert_eq!(
        ran.out().lines().filter(|line| line.len() == 32).count(),
        102,
        "{ran}"
    );
    for n in 0..100 {
        pair.office
            .receives(format!("many/{}/{n}", n % 7), n.to_string().as_bytes());
    }
    let odd = odd.strip_prefix(&pair.laptop.root).expect("below it");
    pair.office.receives(odd, b"odd");
    pair.office.receives("0", b"3");
}
