//! Names as odd as a file system allows; and none of them reaches a terminal raw.

use std::{os::unix::ffi::OsStrExt as _, path::Path};

use crate::harness::{Pair, files};

/// Legal on every Unix file system that dropwire is tested on.
fn odd_names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        &b"with space"[..],
        b" leading and trailing ",
        b"-rf",
        b"--help",
        b"new\nline",
        b"tab\tand\x1b[31mred",
        b"quote'\"`$(id)",
        b"%s%n{path}",
        b"back\\slash",
        b"*?[a]",
        b"...",
        b"..two",
        b"not utf-8 \xff\xfe",
        "ünïcode.txt".as_bytes(),
        "u\u{308}nicode-decomposed".as_bytes(),
        "right\u{202e}gnp.exe".as_bytes(),
        "\u{200b}zero-width".as_bytes(),
        "🗂️".as_bytes(),
        b"\x01\x7f",
    ]
    .map(<[u8]>::to_vec)
    .into();
    names.push(vec![b'x'; 255]);
    names.push([vec![b'y'; 251], b".txt".to_vec()].concat());
    names
}

#[test]
fn odd_names_arrive_as_they_are() {
    let pair = Pair::linked();
    for name in odd_names() {
        pair.laptop.drop_file(files::name(&name), &name);
        pair.laptop.drop_file(
            Path::new(files::name(b"f\xffolder")).join(files::name(&name)),
            &name,
        );
    }
    pair.laptop.delivers(2 * odd_names().len());
    for name in odd_names() {
        pair.office.receives(files::name(&name), &name);
        pair.office.receives(
            Path::new(files::name(b"f\xffolder")).join(files::name(&name)),
            &name,
        );
    }
    pair.laptop.empties_outbox();
}

/// Where the disk tells them apart, each is a file of its own; elsewhere the second gets a number.
#[test]
fn names_that_differ_by_case_or_form_alone_are_all_delivered() {
    let pair = Pair::linked();
    let names = [
        "Report.txt",
        "report.txt",
        "REPORT.TXT",
        "\u{fc}ber",
        "u\u{308}ber",
        "STRASSE",
        "stra\u{df}e",
        "Sub/x",
        "sub/x",
    ];
    for name in names {
        pair.laptop.drop_file(name, name.as_bytes());
    }
    pair.laptop.delivers(names.len());
    let mut received: Vec<Vec<u8>> = pair
        .office
        .received()
        .iter()
        .map(|path| std::fs::read(pair.office.inbox.join(path)).expect("readable"))
        .collect();
    received.sort();
    let mut sent: Vec<Vec<u8>> = names.iter().map(|name| name.as_bytes().to_vec()).collect();
    sent.sort();
    assert_eq!(received, sent);
    std::fs::write(pair.laptop.root.join("one case"), "").expect("a file");
    if !pair.laptop.root.join("ONE CASE").exists() {
        for name in names {
            pair.office.receives(name, name.as_bytes());
        }
    }
}

/// Legal here, not everywhere: the receiver's system decides, and the job says what it became.
#[test]
fn names_that_other_systems_refuse_are_delivered() {
    let pair = Pair::linked();
    let names = [
        "CON",
        "nul.txt",
        "COM\u{b9}",
        "a:b",
        "dot.",
        "space ",
        "aux/lpt1",
        "<>|?*\"",
    ];
    for name in names {
        pair.laptop.drop_file(name, name.as_bytes());
    }
    pair.laptop.delivers(names.len());
    for job in pair.laptop.jobs() {
        let path = job["delivered_as"].as_str().expect("where it lies");
        let name = job["name"].as_str().expect("a name");
        pair.office.receives(path, name.as_bytes());
    }
    assert_eq!(pair.office.received().len(), names.len());
}

#[test]
fn a_full_length_name_still_gets_its_number() {
    let pair = Pair::linked();
    let name = "ä".repeat(125) + ".txt"; // 254 bytes
    for (n, bytes) in [b"one", b"two"].into_iter().enumerate() {
        pair.laptop.drop_file(&name, bytes);
        pair.laptop.delivers(n + 1);
    }
    let received = pair.office.received();
    assert_eq!(received.len(), 2);
    for path in received {
        let name = path.to_str().expect("whole characters");
        assert!(name.len() <= 255 && name.ends_with(".txt"), "{name}");
    }
}

#[test]
fn names_that_are_not_utf8_stand_in_full_in_json() {
    let pair = Pair::linked();
    pair.laptop.drop_file(files::name(b"odd\xff"), b"odd");
    pair.laptop.drop_file("plain", b"plain");
    pair.laptop.delivers(2);
    let jobs = pair.laptop.jobs();
    let odd = jobs
        .iter()
        .find(|j| j["name"] == "odd\u{fffd}")
        .expect("shown with a replacement character");
    let decode = |key: &str| data_encoding::BASE64.decode(odd[key].as_str().unwrap_or_default().as_bytes());
    assert_eq!(decode("name_bytes").as_deref(), Ok(&b"odd\xff"[..]));
    assert_eq!(decode("delivered_as_bytes").as_deref(), Ok(&b"odd\xff"[..]));
    let path = pair.laptop.outbox.join(files::name(b"odd\xff"));
    assert_eq!(decode("path_bytes").as_deref(), Ok(path.as_os_str().as_bytes()));
    let plain = jobs.iter().find(|j| j["name"] == "plain").expect("the other");
    assert!(plain.get("name_bytes").is_none(), "{plain}");
}

#[test]
fn no_raw_control_character_reaches_a_terminal() {
    let mut pair = Pair::linked();
    pair.office.stop(); // so that the jobs stay open
    let name = "evil\u{1b}]0;title\u{7}\u{202e}gnp\r\n\u{9b}31m";
    let path = pair.laptop.drop_file(name, b"evil");
    crate::harness::until("its job is queued", || !pair.laptop.jobs().is_empty());
    let job = pair.laptop.jobs()[0]["job"].as_str().expect("an id").to_owned();
    let path = path.to_str().expect("UTF-8");
    let other = pair.laptop.root.join(name);
    std::fs::write(&other, b"sent by hand").expect("a file elsewhere");
    let commands: [&[&str]; 8] = [
        &["jobs"],
        &["jobs", "--json"],
        &["status"],
        &["why", path],
        &["why", &job],
        &["why", "missing\u{1b}[31m"],
        &["send", other.to_str().expect("UTF-8"), "--to", "office"],
        &["cancel", &job],
    ];
    for args in commands {
        let ran = pair.laptop.run(args);
        for text in [ran.out(), ran.err()] {
            let raw: Vec<char> = text.chars().filter(|c| is_dangerous(*c)).collect();
            assert!(raw.is_empty(), "{raw:?} in the output of {args:?}");
        }
    }
    let log = pair.laptop.log_text();
    let raw: Vec<char> = log.chars().filter(|c| is_dangerous(*c)).collect();
    assert!(raw.is_empty(), "{raw:?} in the log");
}

fn is_dangerous(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t')
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{61c}')
}
