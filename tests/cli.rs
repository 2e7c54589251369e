//! The commands as scripts meet them: exit codes, first steps, what they print.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use crate::harness::{Agent, Pair, Ran, settings::Settings};
use crate::program;

#[test]
fn exit_codes_of_what_goes_wrong() {
    let agent = Agent::new("alone", Settings::default());
    let outbox = agent.outbox.join("missing");
    let missing = outbox.to_str().expect("a plain path");
    let not_running: [&[&str]; 7] = [
        &["status"],
        &["status", "--json"],
        &["jobs"],
        &["jobs", "--json"],
        &["why", missing],
        &["retry", "--all"],
        &["cancel", "0123"],
    ];
    for args in not_running {
        let ran = agent.run(args).exits(69);
        assert!(ran.err().contains("dropwire run"), "no hint is named\n{ran}");
        assert!(ran.stdout.is_empty(), "errors go to stderr\n{ran}");
    }
    let misused: [&[&str]; 6] = [
        &[],
        &["no-such-command"],
        &["status", "--no-such-flag"],
        &["send"],
        &["why"],
        &["jobs", "--state", "lost"],
    ];
    for args in misused {
        agent.run(args).exits(2);
    }
    let mut no_config = Command::new(program());
    no_config
        .arg("--config")
        .arg(agent.root.join("no-such.toml"))
        .arg("check")
        .env_clear();
    Ran::run(no_config).exits(78);
}

#[test]
fn exit_codes_of_a_running_agent() {
    let pair = Pair::linked();
    let missing = pair.laptop.root.join("missing");
    let missing = missing.to_str().expect("a plain path");
    let unknown = "0123456789abcdef0123456789abcdef";
    let folder = pair.laptop.outbox.join("folder");
    fs::create_dir(&folder).expect("a folder in the outbox");
    let none: [&[&str]; 7] = [
        &["why", missing],
        &["why", folder.to_str().expect("a plain path")],
        &["send", "/dev/null", "--to", "office"],
        &["why", unknown],
        &["retry", unknown],
        &["cancel", unknown],
        &["send", missing, "--to", "office"],
    ];
    for args in none {
        let ran = pair.laptop.run(args).exits(66);
        assert!(!ran.err().trim().is_empty(), "{ran}");
    }
    let ran = pair.laptop.run(&["why", folder.to_str().expect("a plain path")]);
    assert!(!ran.err().contains("in no outbox"), "it lies in one\n{ran}");
    let ran = pair.laptop.run(&[
        "send",
        folder.parent().expect("the outbox").to_str().expect("plain"),
        "--to",
        "office",
    ]);
    assert!(ran.err().contains("outbox"), "{ran}");
    let file = pair.laptop.root.join("file");
    fs::write(&file, b"file").expect("a file elsewhere");
    let file = file.to_str().expect("a plain path");
    let ran = pair.laptop.run(&["send", file, "--to", "nobody"]);
    assert!(!matches!(ran.code, Some(0) | None), "an unknown peer\n{ran}");
    assert!(ran.err().contains("nobody"), "{ran}");
}

#[test]
fn a_second_agent_on_one_state_folder_is_refused() {
    let pair = Pair::linked();
    let ran = pair.laptop.run(&["run"]).exits(73);
    assert!(ran.err().contains("state"), "{ran}");
    pair.laptop.drop_file("still-there", b"still-there");
    pair.office.receives("still-there", b"still-there");
}

#[test]
fn keys_and_state_that_others_can_read_are_refused() {
    let mut agent = Agent::new("careless", Settings::default());
    let key = agent.state.join("identity.key");
    assert_eq!(
        fs::metadata(&key).expect("the key").permissions().mode() & 0o777,
        0o600
    );
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("chmod");
    let ran = agent.run(&["run"]).exits(77);
    assert!(
        ran.err().contains("identity.key") && ran.err().contains("chmod"),
        "{ran}"
    );
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("chmod");
    agent.start();
    agent.stop();
}

#[test]
fn the_key_is_private_whatever_the_umask() {
    let agent = Agent::new("open", Settings::default());
    fs::remove_dir_all(&agent.state).expect("its state");
    let mut command = Command::new("sh");
    command
        .args(["-c", "umask 000; exec \"$@\"", "sh"])
        .arg(program());
    command
        .arg("--config")
        .arg(&agent.config)
        .arg("init")
        .env_clear()
        .env("HOME", &agent.root);
    Ran::run(command).exits(0);
    let key = agent.state.join("identity.key");
    assert_eq!(
        fs::metadata(key).expect("the key").permissions().mode() & 0o777,
        0o600
    );
    let mode = fs::metadata(&agent.state)
        .expect("the folder")
        .permissions()
        .mode();
    assert_eq!(
        mode & 0o022,
        0,
        "the state folder can be written by others: {mode:o}"
    );
}

#[test]
fn a_damaged_key_is_refused() {
    let agent = Agent::new("damaged", Settings::default());
    fs::write(agent.state.join("identity.key"), b"-----BEGIN NOTHING-----\n").expect("damaged");
    agent.run(&["run"]).exits(65);
}

#[test]
fn init_writes_what_is_missing_and_changes_nothing_else() {
    let home = tempfile::tempdir().expect("a home");
    let dropwire = |args: &[&str]| {
        let mut command = Command::new(program());
        command
            .args(args)
            .env_clear()
            .env("HOME", home.path())
            .env("NO_COLOR", "1");
        Ran::run(command)
    };
    let first = dropwire(&["init", "--name", "ana", "--listen", "127.0.0.1:0"]).exits(0);
    let id = dropwire(&["id"]).exits(0).out();
    let id = id.trim();
    assert!(is_id(id), "{id}");
    assert!(
        first.out().contains(id) && first.out().contains("[[peer]]"),
        "{first}"
    );
    let config = home.path().join(".config/dropwire/config.toml");
    let written = fs::read_to_string(&config).expect("the config");
    assert!(written.contains("name = \"ana\""), "{written}");
    dropwire(&["check"]).exits(0);
    fs::write(&config, format!("{written}\n# mine\n")).expect("a comment of the user's");
    let again = dropwire(&["init"]).exits(0);
    assert!(again.out().contains(id), "{again}");
    assert!(
        fs::read_to_string(&config)
            .expect("the config")
            .ends_with("# mine\n")
    );
    assert_eq!(dropwire(&["id"]).exits(0).out().trim(), id);
    let paths = dropwire(&["paths"]).exits(0);
    assert!(
        paths.out().contains(config.to_str().expect("a plain path")),
        "{paths}"
    );
}

/// The config of one of them counts, and all print the one id.
#[test]
fn many_inits_at_once_make_one_agent() {
    let home = tempfile::tempdir().expect("a home");
    let init = |number: usize| {
        let mut command = Command::new(program());
        command
            .args(["init", "--name", &format!("name-{number}")])
            .env_clear()
            .env("HOME", home.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().expect("init starts")
    };
    let all: Vec<_> = (0..12).map(init).collect();
    let ended: Vec<_> = all
        .into_iter()
        .map(|init| init.wait_with_output().expect("its end"))
        .collect();
    let said: std::collections::BTreeSet<String> = ended
        .iter()
        .map(|output| {
            assert!(output.status.success(), "{output:?}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
        .collect();
    assert_eq!(said.len(), 1, "{said:?}");
}

#[test]
fn a_lost_key_is_told_by_every_command_that_needs_it() {
    let mut agent = Agent::new("forgetful", Settings::default());
    agent.start();
    agent.stop();
    fs::remove_file(agent.state.join("identity.key")).expect("its key");
    for command in ["run", "init", "id", "check"] {
        let ran = agent.run(&[command]).exits(65);
        assert!(
            ran.err().contains("backup") && ran.err().contains("new id"),
            "{ran}"
        );
    }
    assert!(!agent.state.join("identity.key").exists());
}

#[test]
fn check_says_what_it_found_and_what_is_in_effect() {
    let mut agent = Agent::new(
        "checked",
        Settings {
            listen: true,
            ..Settings::default()
        },
    );
    let folders = [&agent.outbox, &agent.inbox].map(|path| path.to_str().expect("plain").to_owned());
    let ran = agent.run(&["check"]).exits(0);
    for word in ["checked", "127.0.0.1:0", &folders[0], &folders[1], "all is well"] {
        assert!(ran.out().contains(word), "{word} was not looked at\n{ran}");
    }
    let ran = agent.run(&["check", "--settings"]).exits(0);
    for word in ["name = \"checked\"", "rescan = \"10m\"", &folders[0], &folders[1]] {
        assert!(ran.out().contains(word), "{word} is not in effect\n{ran}");
    }
    assert!(ran.err().contains("all is well"), "{ran}");
    for (outbox, inbox, code, told) in [
        ("max_wait = \"100ms\"", "", 78, "`max_wait` (100ms) is shorter"),
        ("", "min_free = \"1000000 TiB\"", 74, "every file is declined"),
        ("", "on_arrival = [\"/no/such/program\"]", 66, "/no/such/program"),
        ("", "on_arrival = [\"/etc/passwd\", \"{path}\"]", 77, "chmod +x"),
    ] {
        agent.settings.outbox = vec![outbox.into()];
        agent.settings.inbox = vec![inbox.into()];
        agent.write_config();
        let ran = agent.run(&["check"]).exits(code);
        assert!(
            ran.out().contains(told) && ran.out().contains("1 problem"),
            "{ran}"
        );
    }
}

#[test]
fn check_knows_its_own_agent_and_tries_its_peers() {
    let mut pair = Pair::linked();
    let ran = pair.laptop.run(&["check"]).exits(0);
    assert!(ran.out().contains("is linked"), "{ran}");
    pair.office.run(&["check"]).exits(0);

    // The office's port is in use by an agent, but not by the laptop's own.
    let taken = pair.office.status()["listen"]
        .as_str()
        .expect("an address")
        .to_owned();
    let config = fs::read_to_string(&pair.laptop.config).expect("the config");
    fs::write(&pair.laptop.config, format!("listen = {taken:?}\n{config}")).expect("the config");
    let ran = pair.laptop.run(&["check"]);
    assert!(
        ran.code != Some(0) && ran.out().contains("trouble  listen"),
        "{ran}"
    );

    // Without its agent it dials.
    pair.laptop.stop();
    fs::write(&pair.laptop.config, &config).expect("the config");
    let ran = pair.laptop.run(&["check"]).exits(0);
    assert!(ran.out().contains("answers at"), "{ran}");
    pair.office.settings.peers.clear();
    pair.office.restart();
    let ran = pair.laptop.run(&["check"]).exits(69);
    assert!(ran.out().contains("`dropwire id` prints here"), "{ran}");
    pair.office.stop();
    let ran = pair.laptop.run(&["check"]).exits(0);
    assert!(ran.out().contains("does not answer now"), "{ran}");

    // Nobody can dial.
    pair.laptop.settings.peers[0].address = None;
    pair.laptop.write_config();
    let ran = pair.laptop.run(&["check"]).exits(78);
    assert!(ran.out().contains("nobody can dial"), "{ran}");
}

#[test]
fn completions_and_version() {
    let agent = Agent::new("shell", Settings::default());
    for shell in ["bash", "zsh", "fish"] {
        let ran = agent.run(&["completions", shell]).exits(0);
        assert!(ran.out().contains("dropwire"), "{ran}");
    }
    let script = agent.root.join("completions.bash");
    fs::write(&script, agent.run(&["completions", "bash"]).stdout).expect("the script");
    if let Ok(status) = Command::new("bash").arg("-n").arg(&script).status() {
        assert!(status.success(), "bash does not read it");
    }
    let version = agent.run(&["--version"]).exits(0).out();
    let protocol = dropwire_protocol::message::VERSION_MAX;
    let expected = format!("dropwire {} (protocol {protocol})", env!("CARGO_PKG_VERSION"));
    assert_eq!(version.trim_end(), expected);
    assert!(agent.run(&["--help"]).exits(0).out().contains("demo"));
}

#[test]
fn demo_once_delivers_and_tidies_up() {
    let agent = Agent::new("visitor", Settings::default());
    let folder = agent.root.join("tmp");
    fs::create_dir(&folder).expect("a folder");
    let mut command = agent.command(&[]);
    command.args(["demo", "--once"]).env("TMPDIR", &folder);
    let ran = Ran::run(command).exits(0);
    assert!(ran.out().to_lowercase().contains("receipt"), "{ran}");
    let digest = ran
        .out()
        .split(|c: char| !c.is_ascii_hexdigit())
        .any(|word| word.len() == 64);
    assert!(digest, "the receipt's digest is not shown\n{ran}");
    let left: Vec<_> = fs::read_dir(&folder).expect("the folder").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn demo_goes_on_with_files_of_ones_own() {
    let agent = Agent::new("visitor", Settings::default());
    let folder = agent.root.join("tmp");
    fs::create_dir(&folder).expect("a folder");
    let mut command = agent.command(&["demo"]);
    command.env("TMPDIR", &folder).stdout(Stdio::piped());
    let mut demo = command.spawn().expect("the demo");
    let said = BufReader::new(demo.stdout.take().expect("its stdout"));
    let mut outboxes = Vec::new();
    for line in said.lines().map(|line| line.expect("a line")) {
        if let Some((_, outbox)) = line.split_once("what is dropped into  ") {
            outboxes.push(outbox.to_owned());
        } else if line.contains("Ctrl-C") {
            let name = "of one's own";
            fs::write(Path::new(&outboxes[1]).join(name), name).expect("dropped at the other side");
        } else if let Some((_, path)) = line.split_once("delivered  ") {
            assert_eq!(fs::read_to_string(path).expect("it lies there"), "of one's own");
            let pid = rustix::process::Pid::from_child(&demo);
            rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("Ctrl-C");
        }
    }
    assert!(demo.wait().expect("its end").success());
    assert_eq!(fs::read_dir(&folder).expect("the folder").count(), 0);
}

fn is_id(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    groups.len() == 8
        && groups
            .iter()
            .all(|g| g.len() == 7 && g.bytes().all(|b| matches!(b, b'A'..=b'Z' | b'2'..=b'7')))
}
