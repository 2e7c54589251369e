//! Folders that come, rest empty, or go whole.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn new_folders_are_searched_and_watched() {
    let mut running = run_watched().await;
    fs::create_dir_all(running.at("a/b/c/d")).unwrap();
    fs::write(running.at("a/b/c/d/at once"), "bytes").unwrap();
    running.settles(&["a/b/c/d/at once"]).await;
    fs::write(running.at("a/b/later"), "bytes").unwrap();
    running.settles(&["a/b/later"]).await;
    let tree = running.temp.path().join("tree");
    fs::create_dir_all(tree.join("x/y")).unwrap();
    fs::write(tree.join("x/y/file"), "bytes").unwrap();
    fs::rename(&tree, running.at("tree")).unwrap();
    running.settles(&["tree/x/y/file"]).await;
    fs::rename(running.at("tree"), running.at("renamed")).unwrap();
    running.settles(&["renamed/x/y/file"]).await;
    fs::write(running.at("renamed/x/new"), "bytes").unwrap();
    running.settles(&["renamed/x/new"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_named_as_a_systems_folder_is_any_file() {
    let mut running = run_watched().await;
    for folder in ["@eaDir", "sub"] {
        fs::create_dir(running.at(folder)).unwrap();
    }
    for file in ["@eaDir/index", "lost+found", "sub/@eaDir"] {
        fs::write(running.at(file), "bytes").unwrap();
    }
    running.settles(&["lost+found", "sub/@eaDir"]).await;
    let why = running.outbox.why(&running.at("@eaDir/index")).unwrap();
    assert_eq!(why, "ignored: matches @eaDir");
}

/// It came to be one while it was watched.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_an_agent_of_its_own_is_left_to_that() {
    let mut running = run_watched().await;
    fs::create_dir_all(running.at("theirs/sub")).unwrap();
    fs::write(running.at("theirs/sub/before"), "bytes").unwrap();
    running.settles(&["theirs/sub/before"]).await;
    let theirs = confined::root(&running.at("theirs")).unwrap();
    let other = Me {
        id: dropwire_protocol::AgentId([2; 32]),
        name: "other".into(),
    };
    crate::fs::folder_id::create(&theirs).unwrap();
    owner::take(&theirs, &running.at("theirs"), &other).unwrap();
    fs::write(running.at("theirs/sub/after"), "bytes").unwrap();
    let told = |outbox: &Outbox| outbox.status().not_sent.iter().any(|(at, _)| at == b"theirs");
    running.until("told", told).await;
    let status = running.outbox.status();
    assert_eq!(
        status.not_sent_count, 1,
        "once for all that lies in it: {status:?}"
    );
    let why = running.outbox.why(&running.at("theirs/sub/after")).unwrap();
    assert!(
        why.contains("theirs in the outbox") && why.contains("\"other\""),
        "{why}"
    );
    fs::write(running.at("here"), "bytes").unwrap();
    running.settles(&["here"]).await; // nothing else does
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_that_a_disposal_emptied_go() {
    let mut running = run_watched().await;
    fs::create_dir_all(running.at("a/b")).unwrap();
    fs::write(running.at("a/b/file"), "bytes").unwrap();
    let found = running.settles(&["a/b/file"]).await;
    fs::remove_file(running.at("a/b/file")).unwrap();
    running.outbox.emptied(found[0].path.parent().unwrap());
    running.until("gone", |_| !running.at("a").exists()).await;
    assert!(running.at("").exists());
}

/// By an agent that ended before they had rested.
#[tokio::test(flavor = "multi_thread")]
async fn folders_emptied_before_the_start_go_and_other_empty_ones_stay() {
    let prepare = |root: &Path| {
        fs::create_dir_all(root.join("a/emptied")).unwrap();
        fs::create_dir_all(root.join("b/mine")).unwrap();
        fs::create_dir_all(root.join("c/emptied")).unwrap();
        fs::write(root.join("c/emptied/file"), "refilled").unwrap();
    };
    let mut running = run(prepare, |_| {}).await;
    running.settles(&["c/emptied/file"]).await;
    running.until("gone", |_| !running.at("a").exists()).await;
    assert!(running.at("b/mine").exists() && running.at("c/emptied/file").exists());
}

/// More than are kept in mind at once.
#[tokio::test]
async fn however_many_folders_were_emptied_they_go() {
    let prepare = |root: &Path| {
        for n in 0..5000 {
            fs::create_dir_all(root.join(format!("{n}/emptied"))).unwrap();
        }
    };
    let running = run(prepare, |_| {}).await;
    let begun = Instant::now();
    while fs::read_dir(running.at("")).unwrap().count() > 1 {
        assert!(begun.elapsed() < 3 * DEADLINE, "some stay");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Scans list only what inspections have not told of again, and inspections of what is held become rare.
#[tokio::test]
async fn a_folder_that_is_held_back_is_listed_until_a_look_says_otherwise() {
    let prepare = |root: &Path| {
        fs::create_dir(root.join("held")).unwrap();
        fs::write(root.join("held/x.part"), "bytes").unwrap();
    };
    let mut running = run(prepare, |config| {
        config.folder = Folder::Whole;
        config.watch = Watch::Poll;
        config.quiet = Duration::ZERO;
    })
    .await;
    let lists = |outbox: &Outbox| outbox.status().not_sent.iter().any(|(path, _)| path == b"held");
    running.until("it is listed", lists).await;
    for number in 0..20 {
        // Only a scan finds it.
        let name = format!("file {number}");
        fs::write(running.at(&name), "bytes").unwrap();
        running.outbox.find_again();
        running.settles(&[&name]).await;
        assert!(lists(&running.outbox), "after {number} scans");
    }
    fs::rename(running.at("held/x.part"), running.at("held/x")).unwrap();
    running.settles(&["held"]).await;
    assert!(!lists(&running.outbox));
}
