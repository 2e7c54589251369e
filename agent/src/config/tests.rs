//! The table of bad configs (tests/bad-configs), the example, and what holds where nothing is written.

use std::path::{Path, PathBuf};

use super::{table::TABLES, *};
use crate::error::Exit;

const EXAMPLE: &str = include_str!("../../../config.example.toml");

fn read_here(source: &str) -> Result<Config, Invalid> {
    parse(source, Path::new("/c.toml"), Some(Path::new("/home/ana")))
}

/// Each file's first line: `# expect: LINE: part of the message | part of the hint`.
#[test]
fn bad_configs_are_told_with_line_and_hint() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/bad-configs");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() >= 40, "{} bad configs", files.len());
    let mut wrong = Vec::new();
    for file in &files {
        let source = std::fs::read(file).unwrap();
        let source = String::from_utf8_lossy(&source);
        let expected = source.lines().next().unwrap().strip_prefix("# expect: ").unwrap();
        let (line, rest) = expected.split_once(": ").unwrap();
        let (message, hint) = rest.split_once(" | ").unwrap();
        let Err(fatal) = load(file) else {
            wrong.push(format!("{}: is taken", file.display()));
            continue;
        };
        let place = match line {
            "-" => file.display().to_string(),
            line => format!("{}:{line}:", file.display()),
        };
        let place = dropwire_protocol::name::escape(place.as_bytes());
        let told = fatal.message + "\n" + fatal.hint.as_deref().unwrap_or_default();
        let complete =
            fatal.exit == Exit::Config && [&place, message, hint].iter().all(|part| told.contains(*part));
        if !complete || told.contains('\u{1b}') {
            wrong.push(format!(
                "{}\nexpected: {expected}\ntold: {told}\n",
                file.display()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a hint proposes as it stands, to be put in place of what is wrong: a TOML string, a list, a key, a header.
fn proposals<'a>(hint: &'a str, source: &str, diagnostic: &Diagnostic) -> Vec<&'a str> {
    let is_key = hint.starts_with("did you mean ");
    let is_header =
        source[..diagnostic.span.start].ends_with('\n') && source[diagnostic.span.clone()].starts_with('[');
    hint.split('`')
        .skip(1)
        .step_by(2)
        .filter(|text| match is_header {
            true => text.starts_with('['),
            false => is_key || text.starts_with('"') || text.starts_with("[\""),
        })
        .collect()
}

/// None leads from one error to the next.
#[test]
fn what_a_hint_proposes_is_right() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/bad-configs");
    let mut proposed = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let source = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        let Err(Invalid::Content { diagnostics, .. }) = read_here(&source) else {
            panic!("{} is taken", path.display());
        };
        let [diagnostic] = &diagnostics[..] else {
            continue; // what one of them proposes does not cure the others
        };
        for text in proposals(&diagnostic.hint, &source, diagnostic) {
            let mut right = source.clone();
            right.replace_range(diagnostic.span.clone(), text);
            proposed += 1;
            if let Err(still) = read_here(&right) {
                panic!("{}: {}\n{still:?}", path.display(), diagnostic.hint);
            }
        }
    }
    assert!(proposed >= 30, "{proposed}");
}

#[test]
fn the_example_holds_every_key_with_its_default() {
    let as_is = read_here(EXAMPLE).unwrap();
    let with_defaults: String = EXAMPLE
        .lines()
        .map(|line| {
            let shown = line.strip_prefix("# ").filter(|rest| {
                let key = rest.split_once(" = ").map_or("", |(key, _)| key);
                !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
            });
            format!("{}\n", shown.unwrap_or(line))
        })
        .collect();
    assert_ne!(with_defaults, EXAMPLE);
    assert_eq!(read_here(&with_defaults).unwrap(), as_is);
    let table: toml::Table = toml::from_str(&with_defaults).unwrap();
    for (name, keys) in TABLES {
        let name = name.trim_matches(['[', ']']);
        let table = match table.get(name) {
            Some(toml::Value::Array(tables)) => tables[0].as_table().unwrap(),
            Some(value) => value.as_table().unwrap(),
            None => &table,
        };
        for key in keys {
            assert!(table.contains_key(*key), "{name}: {key}");
        }
    }
}

#[test]
fn an_empty_file_has_all_defaults() {
    let config = read_here("").unwrap();
    assert!(!config.name.is_empty());
    assert_eq!(config.listen, None);
    assert!(config.outboxes.is_empty() && config.inbox.is_none() && config.peers.is_empty());
    assert_eq!(config.retry.first, Duration::from_secs(1));
    assert_eq!(config.retry.max, Duration::from_secs(300));
    assert_eq!(config.retry.give_up_after, None);
    assert_eq!(config.limits, Limits::default());
}

#[test]
fn what_is_written_holds() {
    let source = EXAMPLE
        .replace("# quiet = \"2s\"", "quiet = \"100ms\"")
        .replace("# watch = \"auto\"", "watch = \"poll\"")
        .replace("# layout = \"flat\"", "layout = \"by-peer\"")
        .replace("# give_up_after = \"never\"", "give_up_after = \"5d\"")
        .replace("# upload = \"unlimited\"", "upload = \"20 MiB/s\"")
        .replace("/home/ana/Outbox", "~/Out");
    let config = read_here(&source).unwrap();
    let outbox = &config.outboxes[0];
    assert_eq!(outbox.path, Path::new("/home/ana/Out"));
    assert_eq!(outbox.to, [config.peers[0].id]);
    assert_eq!(
        (outbox.quiet, outbox.watch),
        (Duration::from_millis(100), Watch::Poll)
    );
    let inbox = config.inbox.as_ref().unwrap();
    assert_eq!((inbox.layout, inbox.min_free), (Layout::ByPeer, Some(1 << 30)));
    assert_eq!(inbox.on_arrival, ["/usr/local/bin/import", "{path}"]);
    assert_eq!(config.retry.give_up_after, Some(Duration::from_secs(5 * 86_400)));
    assert_eq!(config.limits.upload, Some(20 << 20));
    // Written out in full, it reads as the same.
    assert_eq!(read_here(&effective(&config)).unwrap(), config);
}

#[test]
fn an_outbox_without_to_goes_to_every_peer() {
    let source = EXAMPLE.replace("to = [\"office\"]", "");
    assert_eq!(read_here(&source).unwrap().outboxes[0].to.len(), 1);
}

#[test]
fn several_faults_are_told_at_once_in_their_order() {
    let Err(Invalid::Content { diagnostics, .. }) =
        read_here("listen = \":1\"\nname = \"\"\n[retry]\nmax = \"1x\"\n")
    else {
        panic!("taken");
    };
    let starts: Vec<usize> = diagnostics
        .iter()
        .map(|diagnostic| diagnostic.span.start)
        .collect();
    assert_eq!(diagnostics.len(), 3);
    assert!(starts.is_sorted());
}

/// What is missing, empty or unknown may be so because of another mistake.
#[test]
fn one_mistake_is_told_once() {
    for (source, expected) in [
        (
            "[[outbox]]\npaht = \"/o\"",
            vec!["unknown key `paht` in [[outbox]]"],
        ),
        (
            "[inbox]\npath = \"/i\"\non_arrival = [5]",
            vec!["invalid type: integer `5`, expected a string"],
        ),
        (
            "[peer]\nname = \"a\"\n[[outbox]]\npath = \"/o\"\nto = [\"a\"]",
            vec!["`peer` is one of several tables"],
        ),
        ("[[peer]]", vec!["[[peer]] lacks `name`", "[[peer]] lacks `id`"]),
    ] {
        let Err(Invalid::Content { diagnostics, .. }) = read_here(source) else {
            panic!("taken");
        };
        let told: Vec<&str> = diagnostics.iter().map(|told| told.message.as_str()).collect();
        assert_eq!(told, expected);
    }
}

#[test]
fn a_missing_file_and_a_folder_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = load(&dir.path().join("none.toml")).unwrap_err();
    assert_eq!(missing.exit, Exit::Config);
    assert!(missing.message.contains("none.toml") && missing.hint.unwrap().contains("dropwire init"));
    assert_eq!(load(dir.path()).unwrap_err().exit, Exit::Config);
}

#[test]
fn bytes_that_are_not_utf8_are_pointed_at() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("latin1.toml");
    std::fs::write(&file, b"# ok\nname = \"b\xfcro\"\n").unwrap();
    let fatal = load(&file).unwrap_err();
    assert_eq!(fatal.exit, Exit::Config);
    assert!(fatal.message.contains("latin1.toml:2:10"), "{}", fatal.message);
    assert!(fatal.message.contains("save the file as UTF-8"));
}

#[test]
fn colours_come_only_when_asked_for() {
    let error = || read_here("nmae = 1").unwrap_err();
    assert!(error().into_fatal(true).message.contains('\u{1b}'));
    let plain = error().into_fatal(false).message;
    assert!(
        plain.contains("/c.toml:1:1") && !plain.contains('\u{1b}'),
        "{plain}"
    );
    assert!(!plain.starts_with("error"), "{plain}");
}

#[test]
fn our_own_id_and_places_are_checked_against_the_config() {
    let config = read_here(EXAMPLE).unwrap();
    assert_eq!(
        config.check_own_id(config.peers[0].id).unwrap_err().exit,
        Exit::Config
    );
    assert!(config.check_own_id(AgentId([7; 32])).is_ok());
    let paths = |state: &str, control: &str| paths::Paths {
        config: "/c.toml".into(),
        state_dir: state.into(),
        control: control.into(),
    };
    assert!(
        config
            .check_paths(&paths("/home/ana/state", "/run/c.sock"))
            .is_ok()
    );
    assert!(
        config
            .check_paths(&paths("/home/ana/Outbox/state", "/run/c.sock"))
            .is_err()
    );
    assert!(
        config
            .check_paths(&paths("/home/ana/state", "/home/ana/Inbox/c.sock"))
            .is_err()
    );
}

/// Whatever stands in a file, it is judged and the judgement can be shown, without a character that moves a terminal.
mod any_text {
    use super::*;
    use proptest::prelude::*;

    fn judge(source: &str) -> Result<(), TestCaseError> {
        if let Err(invalid) = read_here(source) {
            let plain = invalid.into_fatal(false).message;
            let moving = |c: char| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c);
            prop_assert!(!plain.contains(moving), "{plain:?}");
            prop_assert!(plain.contains("/c.toml:"), "{plain}");
        }
        if let Err(invalid) = read_here(source) {
            invalid.into_fatal(true);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn of_an_example_that_was_damaged(
            at in 0..EXAMPLE.len(),
            cut in 0usize..40,
            put in "[\\x00-\\x7f\u{e9}\u{4e2d}\u{202e}\u{1f600}]{0,6}",
        ) {
            let at = EXAMPLE.floor_char_boundary(at);
            let end = EXAMPLE.ceil_char_boundary((at + cut).min(EXAMPLE.len()));
            judge(&format!("{}{put}{}", &EXAMPLE[..at], &EXAMPLE[end..]))?;
        }

        #[test]
        fn of_any_characters(text in any::<String>()) {
            judge(&text)?;
        }
    }
}
