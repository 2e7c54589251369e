//! Whose a folder is: one agent at a time has an inbox or outbox, and a person hands it over.

use std::fs;

use crate::harness::{Agent, Pair, mount::SmallDisk, settings::Settings, skip, until};

/// Why the folder is held, by `status`.
fn held(agent: &Agent, folder: &str) -> String {
    let status = agent.status();
    let held = match folder {
        "inbox" => &status["inbox"]["held"],
        _ => &status["outboxes"][0]["held"],
    };
    held.as_str().unwrap_or_default().to_owned()
}

/// The one's outbox is the other's too, and the inbox as well, the other way round: it goes on without them.
#[test]
fn a_second_agent_is_refused_until_it_adopts() {
    let mut pair = Pair::linked();
    let mut other = Agent::new("other", Settings::default());
    (other.outbox, other.inbox) = (pair.office.inbox.clone(), pair.laptop.outbox.clone());
    other.start();
    for folder in ["outbox", "inbox"] {
        until("it is held with both names", || {
            let held = held(&other, folder);
            held.contains("\"other\"")
                && held.contains("belongs to the agent")
                && held.contains("dropwire adopt")
        });
    }
    let check = other.run(&["check"]).exits(73);
    assert!(
        check.err().contains("belongs to the agent \"office\""),
        "{}",
        check.err()
    );
    pair.laptop.drop_file("file", b"bytes");
    pair.office.receives("file", b"bytes");
    pair.laptop.delivers(1);

    // Handed over, running: what is in it is sent by its new agent, and by nobody else.
    pair.laptop.stop();
    let path = other.inbox.to_str().expect("plain").to_owned();
    other.run(&["adopt", &path]).exits(2);
    let adopted = other.run(&["adopt", &path, "--yes"]).exits(0);
    assert!(
        adopted.err().contains("That agent must no longer use it"),
        "{}",
        adopted.err()
    );
    until("it is used", || held(&other, "inbox").is_empty());
    let again = other.run(&["adopt", &path, "--yes"]).exits(0);
    assert!(again.out().contains("nothing to adopt"), "{}", again.out());
    pair.laptop.start();
    until("the former agent is held", || {
        held(&pair.laptop, "outbox").contains("\"other\"")
    });
}

#[test]
fn folders_that_were_made_anew_are_held_until_they_are_adopted() {
    let mut pair = Pair::linked();
    pair.office.stop();
    pair.laptop.drop_file("lost", b"bytes");
    until("it is queued", || !pair.laptop.jobs().is_empty());
    pair.laptop.stop();
    for folder in [&pair.laptop.outbox, &pair.office.inbox] {
        fs::remove_dir_all(folder).expect("the folder");
        fs::create_dir(folder).expect("a new one");
    }
    // Without a running agent, and with one.
    let outbox = pair.laptop.outbox.to_str().expect("plain").to_owned();
    let check = pair.laptop.run(&["check"]).exits(73);
    assert!(check.err().contains("dropwire adopt"), "{}", check.err());
    let adopted = pair.laptop.run(&["adopt", &outbox, "--yes"]).exits(0);
    assert!(adopted.err().contains("(1) end as failed"), "{}", adopted.err());
    pair.office.start();
    pair.laptop.start();
    until("the inbox is held", || {
        held(&pair.office, "inbox").contains("dropwire adopt")
    });
    pair.laptop.drop_file("new", b"other");
    let inbox = pair.office.inbox.to_str().expect("plain").to_owned();
    pair.office.run(&["adopt", &inbox, "--yes"]).exits(0);
    pair.office.receives("new", b"other");
    let lost = pair.laptop.jobs_of("lost").pop().expect("its job");
    assert_eq!(
        (lost["state"].as_str(), lost["error"].as_str()),
        (Some("failed"), Some("its outbox was replaced"))
    );
}

/// A disk inside the inbox that was unmounted: both sides say so, and a person may give it up.
#[test]
fn a_disk_inside_the_inbox_is_missed_until_it_is_given_up() {
    let mut pair = Pair::linked();
    let sub = pair.office.inbox.join("sub");
    let disk = match SmallDisk::mount(&sub, 4) {
        Ok(disk) => disk,
        Err(why) => return skip("a_disk_inside_the_inbox_is_missed_until_it_is_given_up", &why),
    };
    pair.laptop.drop_file("sub/first", b"1");
    pair.office.receives("sub/first", b"1");
    pair.laptop.delivers(1);
    drop(disk);
    let second = pair.laptop.drop_file("sub/second", b"2");
    let why = || pair.laptop.run(&["why", second.to_str().expect("plain")]).out();
    until("the sender is told", || why().contains("was a disk of its own"));
    until("the receiver says so", || {
        held(&pair.office, "inbox").contains("was a disk of its own")
    });
    assert_eq!(fs::read_dir(&sub).expect("the mount point").count(), 0);
    pair.laptop.drop_file("other", b"3");
    pair.office.receives("other", b"3");
    pair.office.stop();
    let check = pair.office.run(&["check"]);
    assert!(check.err().contains("was a disk of its own"), "{}", check.err());
    pair.office.start();
    let inbox = pair.office.inbox.to_str().expect("plain").to_owned();
    let id = || fs::read(pair.office.inbox.join(".dropwire/id")).expect("the inbox's id");
    let before = id();
    pair.office.run(&["adopt", &inbox, "--yes"]).exits(0);
    assert_eq!(id(), before, "nothing else changes");
    pair.connects();
    pair.laptop.run(&["retry", "--all"]).exits(0);
    pair.office.receives("sub/second", b"2");
    until("nothing is missed", || held(&pair.office, "inbox").is_empty());
}

/// No rename leads out of what is mounted on the inbox's own folder: `check` says so, and the agent runs and waits.
#[test]
fn an_inbox_waits_while_something_is_mounted_on_its_partials() {
    let mut pair = Pair::linked();
    pair.office.stop();
    let disk = match SmallDisk::mount(&pair.office.inbox.join(".dropwire/partial"), 4) {
        Ok(disk) => disk,
        Err(why) => return skip("an_inbox_waits_while_something_is_mounted_on_its_partials", &why),
    };
    let check = pair.office.run(&["check"]).exits(73);
    assert!(check.err().contains("Unmount it"), "{}", check.err());
    let inbox = pair.office.inbox.to_str().expect("plain").to_owned();
    let adopt = pair.office.run(&["adopt", &inbox, "--yes"]).exits(78);
    assert!(adopt.err().contains("Unmount it"), "{}", adopt.err());
    pair.office.start();
    pair.connects();
    let file = pair.laptop.drop_file("f", b"1");
    let why = || pair.laptop.run(&["why", file.to_str().expect("plain")]).out();
    until("the sender is told", || why().contains("Unmount it"));
    assert!(held(&pair.office, "inbox").contains("Unmount it"));
    drop(disk);
    until("it is used again", || held(&pair.office, "inbox").is_empty());
    pair.laptop.run(&["retry", "--all"]).exits(0);
    pair.office.receives("f", b"1");
}

/// The original goes on, whichever comes first in the config.
#[test]
fn a_copied_outbox_is_held_and_then_gets_an_id_of_its_own() {
    let mut pair = Pair::linked();
    pair.laptop.drop_file("one", b"1");
    pair.office.receives("one", b"1");
    pair.laptop.delivers(1);
    pair.laptop.empties_outbox();
    pair.laptop.stop();
    let copy = pair.laptop.root.join("copy");
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([&pair.laptop.outbox, &copy])
        .status();
    assert!(copied.expect("cp").success());
    let original = std::mem::replace(&mut pair.laptop.outbox, copy.clone());
    let table = format!("[[outbox]]\npath = {original:?}\nquiet = \"300ms\"");
    pair.laptop.settings.tables.push(table);
    pair.laptop.start();
    until("the copy is held", || {
        held(&pair.laptop, "outbox").contains("same id")
    });
    fs::write(original.join("two"), b"2").expect("a file");
    pair.office.receives("two", b"2");
    fs::write(copy.join("three"), b"3").expect("a file");
    pair.laptop
        .run(&["adopt", copy.to_str().expect("plain"), "--yes"])
        .exits(0);
    pair.office.receives("three", b"3");
    fs::write(original.join("four"), b"4").expect("a file");
    pair.office.receives("four", b"4");
    pair.laptop.delivers(4);
}

/// Their ids and files travel with the folders: each goes on where it is found.
#[test]
fn outboxes_that_change_places_go_on() {
    let second = |agent: &mut Agent| {
        let other = agent.root.join("other");
        fs::create_dir(&other).expect("a folder");
        let table = format!("[[outbox]]\npath = {:?}", other.to_str().expect("plain"));
        agent.settings.tables.push(table);
    };
    let pair = Pair::with(|laptop, _| second(laptop));
    let (outbox, other) = (pair.laptop.outbox.clone(), pair.laptop.root.join("other"));
    fs::write(other.join("two"), b"2").expect("a file");
    pair.laptop.drop_file("one", b"1");
    pair.office.receives("one", b"1");
    pair.office.receives("two", b"2");
    pair.laptop.empties_outbox();
    let aside = pair.laptop.root.join("aside");
    for (from, to) in [(&outbox, &aside), (&other, &outbox), (&aside, &other)] {
        fs::rename(from, to).expect("renamed");
    }
    fs::write(outbox.join("three"), b"3").expect("a file");
    fs::write(other.join("four"), b"4").expect("a file");
    pair.office.receives("three", b"3");
    pair.office.receives("four", b"4");
    pair.laptop.delivers(4);
    assert!(other.join(".dropwire/sent/one").exists(), "it went along");
}
