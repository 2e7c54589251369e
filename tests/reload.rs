//! A config that changes while the agent runs: what is written holds soon, links and transfers go on, and one that is
//! wrong changes nothing.

use std::{fs, net::TcpListener, path::Path};

use crate::harness::{Agent, Pair, eventually, files, pair::peer, settings::Settings, until};

/// Would take far longer than any test waits, at [`SLOW`].
const LARGE: u64 = 128 << 20;
const SLOW: &str = "[limits]\nupload = \"256 KiB/s\"";

#[test]
fn an_outbox_and_another_limit_do_not_touch_what_is_under_way() {
    let mut pair = Pair::with(|laptop, _| laptop.settings.tables.push(SLOW.into()));
    begin_large(&pair);
    let more = pair.laptop.root.join("more");
    fs::create_dir(&more).expect("a second outbox");
    let outbox = format!("[[outbox]]\npath = {more:?}\nquiet = \"300ms\"");
    pair.laptop.settings.tables.push(outbox);
    pair.laptop.write_config();
    until("there are two outboxes", || boxes(&pair.laptop).len() == 2);
    fs::write(more.join("added"), "added").expect("a file in it");
    pair.office.receives("added", b"added");
    assert_undisturbed(&pair);
    let job = &pair.laptop.jobs_of("large")[0];
    assert_eq!(job["state"], "sending", "the limit holds: {job}");

    pair.laptop.settings.tables[0].clear();
    pair.laptop.write_config();
    pair.laptop.delivers(2);
    assert_undisturbed(&pair);
    assert!(files::same_start(
        &pair.office.inbox.join("large"),
        &sent(&pair, "large"),
        LARGE
    ));

    // What is taken out is watched no more, and the rest stays.
    pair.laptop.settings.tables.pop();
    pair.laptop.write_config();
    until("there is one outbox", || boxes(&pair.laptop).len() == 1);
    pair.laptop.drop_file("last", b"last");
    pair.office.receives("last", b"last");
    assert_undisturbed(&pair);
}

#[test]
fn what_an_outbox_found_is_delivered_after_it_was_taken_out() {
    let pair = Pair::with(|laptop, _| laptop.settings.tables.push(SLOW.into()));
    begin_large(&pair);
    let good = fs::read_to_string(&pair.laptop.config).expect("the config");
    let (start, rest) = good.split_once("[[outbox]]").expect("an outbox");
    let (_, rest) = rest.split_once("[inbox]").expect("an inbox");
    let without = format!("{start}[inbox]{rest}");
    fs::write(&pair.laptop.config, &without).expect("a config");
    until("there is no outbox", || boxes(&pair.laptop).is_empty());
    pair.laptop.drop_file("unseen", b"unseen");
    fs::write(&pair.laptop.config, without.replace(SLOW, "")).expect("a config");
    pair.laptop.delivers(1);
    assert_undisturbed(&pair);
    until("only what was not seen stays", || {
        files::list(&pair.laptop.outbox) == [Path::new("unseen")]
    });
}

#[test]
fn a_storm_of_signals_does_no_harm() {
    let mut pair = Pair::with(|laptop, _| laptop.settings.tables.push(SLOW.into()));
    begin_large(&pair);
    for round in 0..50 {
        pair.laptop.settings.outbox = vec![format!("ignore = [\"*.{round}\"]")];
        pair.laptop.write_config();
        pair.laptop.signal(rustix::process::Signal::HUP);
    }
    until("the last pattern holds", || ignores(&pair.laptop, "x.49"));
    pair.laptop.drop_file("small", b"small");
    pair.office.receives("small", b"small");
    assert_undisturbed(&pair);
    pair.laptop.settings.tables[0].clear();
    pair.laptop.write_config();
    pair.laptop.delivers(2);
    assert_undisturbed(&pair);
}

#[test]
fn peers_come_and_go() {
    let mut pair = Pair::linked();
    let listens = Settings {
        listen: true,
        ..Settings::default()
    };
    let mut annex = Agent::new("annex", listens);
    annex.settings.peers.push(peer(&pair.laptop, None));
    annex.start();
    let address = annex.status()["listen"].as_str().map(str::to_owned);
    pair.laptop.settings.peers.push(peer(&annex, address));
    pair.laptop.write_config();
    until("the new peer is connected", || {
        connected(&pair.laptop, "annex") == Some(true) && connected(&annex, "laptop") == Some(true)
    });
    pair.laptop.drop_file("for both", b"for both");
    annex.receives("for both", b"for both");
    pair.office.receives("for both", b"for both");
    pair.laptop.delivers(2);
    assert_eq!(pair.wire.connections(), 1, "the link with the office stays");

    pair.wire.refuse(true);
    pair.wire.cut_all();
    until("the office is away", || {
        connected(&pair.laptop, "office") == Some(false)
    });
    pair.laptop.drop_file("for one", b"for one");
    annex.receives("for one", b"for one");
    let office = pair.laptop.settings.peers.remove(0);
    pair.laptop.write_config();
    until("its job waits for it to be back", || {
        let jobs = pair.laptop.jobs_of("for one");
        jobs.iter()
            .any(|j| j["state"] == "queued" && j["error"] == "office is not in the config")
    });
    let error = pair.laptop.peer("office")["last_error"].to_string();
    assert!(error.contains("office is not in the config"), "{error}");
    let path = pair.laptop.outbox.join("for one");
    let why = pair.laptop.run(&["why", path.to_str().expect("plain")]).exits(0);
    assert!(why.out().contains("office is not in the config"), "{why}");
    assert_eq!(connected(&pair.laptop, "annex"), Some(true));

    // It comes back, under another name.
    pair.wire.refuse(false);
    pair.laptop.settings.peers.push(office);
    pair.laptop.settings.peers[1].name = "the office".into();
    pair.laptop.write_config();
    until("it is connected again", || {
        connected(&pair.laptop, "the office") == Some(true) && connected(&pair.office, "laptop") == Some(true)
    });
    pair.office.receives("for one", b"for one");
    pair.laptop.drop_file("again", b"again");
    pair.office.receives("again", b"again");
    annex.receives("again", b"again");
    assert_eq!(
        count(&annex, "\"linked\""),
        1,
        "nothing of this touched the annex"
    );
}

#[test]
fn a_peer_that_is_taken_out_is_told_and_let_in_no_more() {
    let mut pair = Pair::linked();
    let laptop = pair.office.settings.peers.pop();
    pair.office.write_config();
    let error = eventually("the laptop is told", || {
        let peer = pair.laptop.peer("office");
        let error = peer["last_error"].as_str().map(str::to_owned);
        error.filter(|_| peer["connected"] == false)
    });
    assert!(
        error.contains("paired") || error.contains("let this agent's key in"),
        "{error}"
    );
    until("it is turned away", || {
        pair.office
            .log_text()
            .contains("turned away an agent that is not paired")
    });
    pair.laptop.drop_file("waits", b"waits");
    pair.office.settings.peers.extend(laptop);
    pair.office.write_config();
    pair.office.receives("waits", b"waits");
}

#[test]
fn another_largest_size_holds_for_the_link_there_is() {
    let pair = Pair::linked();
    let good = fs::read_to_string(&pair.office.config).expect("the config");
    let limited = good.replacen("[[peer]]", "[[peer]]\nmax_file_size = \"1 MiB\"", 1);
    fs::write(&pair.office.config, limited).expect("a config");
    until("it was taken up", || {
        count(&pair.office, "the new config is in effect") == 1
    });
    let large = files::noise(1, 2 << 20);
    pair.laptop.drop_file("large", &large);
    until("it is declined", || {
        let jobs = pair.laptop.jobs_of("large");
        jobs.iter()
            .any(|j| j["error"].as_str().is_some_and(|e| e.contains("declined")))
    });
    fs::write(&pair.office.config, good).expect("a config");
    pair.office.receives("large", &large);
    assert_eq!(pair.wire.connections(), 1);
}

#[test]
fn a_wrong_config_changes_nothing_and_is_told() {
    let mut pair = Pair::linked();
    assert!(pair.laptop.status()["config_error"].is_null());
    let good = fs::read_to_string(&pair.laptop.config).expect("the config");
    fs::write(&pair.laptop.config, format!("nonsense = 1\n{good}")).expect("a bad config");
    let error = config_error(&pair.laptop);
    assert!(
        error.contains("nonsense") && error.contains("config.toml:1:1"),
        "{error}"
    );
    let text = pair.laptop.run(&["status"]).exits(0).out();
    assert!(
        text.contains("is invalid") && text.contains("config.toml:1:1"),
        "{text}"
    );
    // Touched, but not changed: told once.
    fs::write(&pair.laptop.config, format!("nonsense = 1\n{good}")).expect("the same");
    pair.laptop.drop_file("still-runs", b"still-runs");
    pair.office.receives("still-runs", b"still-runs");
    fs::write(&pair.laptop.config, format!("{good}\n[[outbox]")).expect("a worse one");
    until("that is told, and commands still find the agent", || {
        config_error(&pair.laptop).contains("[[outbox]")
    });
    // Asked for it, it says so again.
    pair.laptop.signal(rustix::process::Signal::HUP);
    until("it was told again", || {
        count(&pair.laptop, "stays as it was") == 3
    });

    fs::remove_file(&pair.laptop.config).expect("it goes");
    until("that it is gone is told", || {
        count(&pair.laptop, "there is no config") == 1
    });
    fs::write(&pair.laptop.config, "").expect("what a full disk leaves of it");
    until("that nothing is left is told", || {
        count(&pair.laptop, "names no outbox") == 1
    });
    pair.laptop.settings.outbox.push("ignore = [\"*.new\"]".into());
    pair.laptop.write_config();
    until("a good one holds", || {
        pair.laptop.status()["config_error"].is_null()
    });
    assert!(ignores(&pair.laptop, "x.new"));
    assert_eq!(pair.wire.connections(), 1, "the link stays through all of it");
}

#[test]
fn an_edit_counts_however_it_is_made() {
    let pair = Pair::linked();
    let (laptop, config) = (&pair.laptop, &pair.laptop.config);
    let good = fs::read_to_string(config).expect("the config");
    let with = |name: &str| good.replacen("name = \"laptop\"", &format!("name = \"{name}\""), 1);
    let is_called = |name: &str| until(name, || laptop.status()["name"] == name);
    // As most editors save.
    let aside = laptop.root.join("config.toml.new");
    fs::write(&aside, with("renamed")).expect("the new one");
    fs::rename(&aside, config).expect("in its place");
    is_called("renamed");
    // As Kubernetes puts it there.
    for version in ["v1", "v2"] {
        fs::create_dir(laptop.root.join(version)).expect("a version");
        fs::write(laptop.root.join(version).join("config.toml"), with(version)).expect("its config");
    }
    let link = |target: &str, place: &Path| {
        let aside = laptop.root.join("aside");
        std::os::unix::fs::symlink(target, &aside).expect("a link");
        fs::rename(&aside, place).expect("in its place");
    };
    link("v1", &laptop.root.join("..data"));
    link("..data/config.toml", config);
    is_called("v1");
    link("v2", &laptop.root.join("..data"));
    is_called("v2");
    // Asked for, also where a program keeps it open.
    let mut open = fs::File::create(config).expect("the config");
    std::io::Write::write_all(&mut open, with("held").as_bytes()).expect("written");
    laptop.signal(rustix::process::Signal::HUP);
    is_called("held");
}

#[test]
fn it_listens_elsewhere_only_if_it_can() {
    let pair = Pair::linked();
    let good = fs::read_to_string(&pair.office.config).expect("the config");
    let more = pair.office.root.join("more");
    let outbox = format!("[[outbox]]\npath = {more:?}\n");
    let hold = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = hold.local_addr().expect("its address").to_string();
    let before = pair.office.status()["listen"].clone();
    let bad = good.replacen("127.0.0.1:0", &taken, 1) + &outbox;
    fs::write(&pair.office.config, bad).expect("a config");
    let error = config_error(&pair.office);
    assert!(error.contains(&format!("cannot listen on {taken}")), "{error}");
    assert_eq!(pair.office.status()["listen"], before);
    assert_eq!(boxes(&pair.office).len(), 1, "nothing of it holds");
    drop(hold);
    pair.office.signal(rustix::process::Signal::HUP);
    until("it listens there now", || {
        pair.office.status()["listen"] == *taken
    });
    assert_eq!(boxes(&pair.office).len(), 2);
    assert!(pair.office.status()["config_error"].is_null());
    pair.laptop.drop_file("by the old link", b"by the old link");
    pair.office.receives("by the old link", b"by the old link");
    assert_eq!(pair.wire.connections(), 1);
    // And whoever connects again finds it there.
    pair.wire.forward_to(taken.parse().ok());
    pair.wire.cut_all();
    pair.laptop.drop_file("by a new one", b"by a new one");
    pair.office.receives("by a new one", b"by a new one");
    // At the same port only one of the two can listen at a time: the agent restarts inside.
    let (pid, anywhere) = (pair.office.pid(), taken.replace("127.0.0.1", "0.0.0.0"));
    let text = good.replacen("127.0.0.1:0", &anywhere, 1) + &outbox;
    fs::write(&pair.office.config, text).expect("a config");
    until("it listens anywhere", || {
        let ran = pair.office.run(&["status", "--json"]);
        ran.code == Some(0) && ran.out().contains(&format!("{anywhere:?}"))
    });
    assert_eq!(pair.office.status()["pid"], pid);
    pair.laptop.drop_file("after all", b"after all");
    pair.office.receives("after all", b"after all");
}

/// It also takes a peer out, whose jobs fail only with a config that holds.
#[test]
fn a_config_that_cannot_start_costs_no_job() {
    let mut pair = Pair::linked();
    pair.wire.refuse(true);
    pair.wire.cut_all();
    pair.office.drop_file("waits", b"waits");
    until("its job waits", || pair.office.jobs_of("waits").len() == 1);
    let good = fs::read_to_string(&pair.office.config).expect("the config");
    let listen = pair.office.status()["listen"].clone();
    let port = listen
        .as_str()
        .and_then(|l| l.rsplit(':').next())
        .expect("a port");
    let _hold = TcpListener::bind(format!("127.0.0.2:{port}")).expect("the port at another address");
    let annex = Agent::new("annex", Settings::default());
    let laptop = std::mem::replace(&mut pair.office.settings.peers, vec![peer(&annex, None)]);
    pair.office.write_config();
    let anywhere = fs::read_to_string(&pair.office.config)
        .expect("the config")
        .replacen("127.0.0.1:0", &format!("0.0.0.0:{port}"), 1);
    fs::write(&pair.office.config, anywhere).expect("a config");
    until("it restarted, as it was", || {
        let ran = pair.office.run(&["status", "--json"]);
        ran.code == Some(0) && ran.out().contains("cannot listen on")
    });
    pair.office.settings.peers = laptop;
    fs::write(&pair.office.config, good).expect("the config");
    let port = pair.office.status()["listen"]
        .as_str()
        .and_then(|l| l.parse().ok());
    pair.wire.forward_to(port);
    pair.wire.refuse(false);
    pair.laptop.receives("waits", b"waits");
}

#[test]
fn another_inbox_is_taken_by_starting_anew_inside() {
    let mut pair = Pair::linked();
    let pid = pair.office.status()["pid"].clone();
    let good = fs::read_to_string(&pair.office.config).expect("the config");
    let inbox = pair.office.root.join("inbox-2");
    fs::create_dir(&inbox).expect("another inbox");
    let (old, new) = (format!("{:?}", pair.office.inbox), format!("{inbox:?}"));
    fs::write(&pair.office.config, good.replacen(&old, &new, 1)).expect("the config");
    pair.office.inbox = inbox;
    let shown = pair.office.inbox.to_str().map(str::to_owned);
    until("it is the inbox", || {
        // Nobody answers for the moment.
        let ran = pair.office.run(&["status", "--json"]);
        ran.code == Some(0) && shown.as_deref().is_some_and(|inbox| ran.out().contains(inbox))
    });
    assert_eq!(pair.office.status()["pid"], pid);
    let port = pair.office.status()["listen"]
        .as_str()
        .and_then(|a| a.parse().ok());
    pair.wire.forward_to(port);
    pair.laptop.drop_file("there", b"there");
    pair.office.receives("there", b"there");
    // The state folder is taken once and for all.
    let moved = good.replacen("state\"", "state-2\"", 1);
    fs::write(&pair.office.config, moved).expect("the config");
    let error = config_error(&pair.office);
    assert!(error.contains("state_dir"), "{error}");
}

/// A file that is under way until the limit goes.
fn begin_large(pair: &Pair) {
    let aside = pair.laptop.root.join("large");
    files::sparse(&aside, LARGE, 1 << 20).expect("a large file");
    fs::rename(&aside, pair.laptop.outbox.join("large")).expect("into the outbox");
    until("it is under way", || {
        let jobs = pair.laptop.jobs_of("large");
        jobs.iter().any(|j| j["sent_bytes"].as_u64() > Some(0))
    });
}

/// One connection, one link, one attempt.
#[track_caller]
fn assert_undisturbed(pair: &Pair) {
    assert_eq!(pair.wire.connections(), 1, "connected again");
    for agent in [&pair.laptop, &pair.office] {
        assert_eq!(count(agent, "\"linked\""), 1, "{} linked again", agent.name);
        assert_eq!(count(agent, "\"link ended\""), 0, "{} lost the link", agent.name);
    }
    let large = pair.laptop.jobs_of("large");
    assert!(
        large.len() == 1 && large[0]["attempts"] == 1,
        "begun again: {large:?}"
    );
}

/// Where a delivered file lies now.
fn sent(pair: &Pair, name: &str) -> std::path::PathBuf {
    let archive = pair.laptop.outbox.join(files::OWN).join("sent");
    eventually("it is in the archive", || {
        let mut found = None;
        files::walk(&archive, &mut |path| {
            let is_it = path
                .file_name()
                .is_some_and(|n| n.to_string_lossy().contains(name));
            found = found.take().or_else(|| is_it.then(|| path.to_owned()));
            true
        });
        found
    })
}

fn boxes(agent: &Agent) -> Vec<serde_json::Value> {
    agent.status()["outboxes"].as_array().expect("outboxes").clone()
}

fn connected(agent: &Agent, name: &str) -> Option<bool> {
    let status = agent.status();
    let peers = status["peers"].as_array().expect("peers");
    peers.iter().find(|p| p["name"] == name)?["connected"].as_bool()
}

/// Whether a pattern of its outbox fits a file of that name.
fn ignores(agent: &Agent, name: &str) -> bool {
    let path = agent.outbox.join(name);
    let why = agent.run(&["why", path.to_str().expect("plain")]);
    why.out().contains("ignored: matches")
}

/// Waits for one.
#[track_caller]
fn config_error(agent: &Agent) -> String {
    eventually("a config_error", || {
        agent.status()["config_error"].as_str().map(str::to_owned)
    })
}

/// How many lines of its log have `text`.
fn count(agent: &Agent, text: &str) -> usize {
    agent
        .log_text()
        .lines()
        .filter(|line| line.contains(text))
        .count()
}
