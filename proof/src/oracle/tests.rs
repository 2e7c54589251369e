//! Each verdict, on folders made by hand.

use serde_json::json;

use super::*;

struct Scene {
    _temp: tempfile::TempDir,
    homes: Homes,
    drops: Vec<Drop>,
    jobs: Vec<Value>,
}

impl Scene {
    /// Two drops that arrived and were archived, and nothing else.
    fn all_well() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let homes = Side::BOTH.map(|side| {
            let path = temp.path().join(side.name());
            Home::new(&path, &path)
        });
        let drops = vec![Drop::new("a", b"one".to_vec()), Drop::new("b", b"two".to_vec())];
        let jobs = drops.iter().map(delivered).collect();
        let scene = Self {
            _temp: temp,
            homes,
            drops,
            jobs,
        };
        for drop in &scene.drops {
            write(&scene.inbox(&drop.name), &*drop.bytes);
            write(&scene.archived(&drop.name), &*drop.bytes);
        }
        scene
    }

    fn sender(&self) -> &Home {
        home(&self.homes, Side::Sender)
    }

    fn inbox(&self, name: &str) -> PathBuf {
        home(&self.homes, Side::Receiver).inbox.join(name)
    }

    fn outbox(&self, name: &str) -> PathBuf {
        self.sender().outbox.join(name)
    }

    fn archived(&self, name: &str) -> PathBuf {
        self.sender().sent().join(name)
    }

    fn judged(&self) -> Vec<String> {
        judge(&self.homes, &self.drops, &[], Some(&self.jobs))
    }

    fn cut(&self) -> Vec<String> {
        at_the_fault(&self.homes, &self.drops, &[])
    }

    fn rests(&self) -> Result<(), String> {
        at_rest(&self.homes, self.drops.len(), 0, || Some(self.jobs.clone()))
    }
}

fn delivered(drop: &Drop) -> Value {
    json!({"name": drop.name, "size": drop.bytes.len(), "state": "delivered", "delivered_as": drop.name,
           "sha256": drop.sha256, "queued_at": "2026-01-01T00:00:00.000Z"})
}

fn write(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// One sentence, which begins like that.
#[track_caller]
fn only(found: &[String], verdict: &str) {
    assert!(
        found.len() == 1 && found[0].starts_with(verdict),
        "{verdict}: {found:#?}"
    );
}

#[test]
fn all_is_well() {
    let scene = Scene::all_well();
    assert_eq!(scene.judged(), [""; 0]);
    assert_eq!(scene.cut(), [""; 0]);
    assert_eq!(scene.rests(), Ok(()));
}

#[test]
fn lost() {
    let mut scene = Scene::all_well();
    fs::remove_file(scene.inbox("a")).unwrap();
    scene.jobs.clear(); // of its receipt another verdict speaks
    assert!(scene.judged().iter().any(|f| f.starts_with("lost: a")));
}

#[test]
fn doubled() {
    let scene = Scene::all_well();
    write(&scene.inbox("a (1)"), "one");
    only(&scene.judged(), "doubled");
    only(&scene.cut(), "doubled");
}

#[test]
fn two_drops_of_equal_bytes_are_two_files() {
    let mut scene = Scene::all_well();
    let third = Drop::new("c", b"one".to_vec());
    write(&scene.inbox("c"), "one");
    write(&scene.archived("c"), "one");
    scene.jobs.push(delivered(&third));
    scene.drops.push(third);
    assert_eq!(scene.judged(), [""; 0]);
    fs::remove_file(scene.inbox("c")).unwrap();
    assert!(scene.judged().iter().any(|f| f.starts_with("lost: a is 1 times")));
}

#[test]
fn torn() {
    let scene = Scene::all_well();
    write(&scene.inbox("c"), "on");
    only(&scene.judged(), "torn");
    only(&scene.cut(), "torn");
}

#[test]
fn overwritten() {
    let scene = Scene::all_well();
    let stranger = Drop::new("theirs", b"before".to_vec());
    let strangers = std::slice::from_ref(&stranger);
    write(&scene.inbox("theirs"), "before");
    let judged = || judge(&scene.homes, &scene.drops, strangers, Some(&scene.jobs));
    assert_eq!(judged(), [""; 0]);
    fs::remove_file(scene.inbox("theirs")).unwrap();
    only(&judged(), "overwritten");
}

#[test]
fn wrongly_acknowledged() {
    let mut scene = Scene::all_well();
    fs::remove_file(scene.inbox("a")).unwrap();
    only(&scene.cut(), "wrongly acknowledged: a left");
    only(
        &receipts_are_true(&scene.homes, &scene.jobs),
        "wrongly acknowledged: a",
    );
    write(&scene.inbox("a"), "other");
    only(
        &receipts_are_true(&scene.homes, &scene.jobs),
        "wrongly acknowledged: a",
    );
    scene.jobs[0]["state"] = "queued".into();
    assert_eq!(receipts_are_true(&scene.homes, &scene.jobs), [""; 0]);
    // On its way out it has not left.
    write(&scene.sender().leaving().join("job"), "one");
    fs::remove_file(scene.inbox("a")).unwrap();
    assert_eq!(scene.cut(), [""; 0]);
}

#[test]
fn the_archive_is_counted() {
    let scene = Scene::all_well();
    write(&scene.archived("a (1)"), "one");
    only(&scene.judged(), "archive: a is 2 times");
    fs::remove_file(scene.archived("a (1)")).unwrap();
    fs::remove_file(scene.archived("a")).unwrap();
    only(&scene.judged(), "archive: a is 0 times");
    write(&scene.archived("a"), "one");
    write(&scene.archived("c"), "what is this");
    only(&scene.judged(), "archive");
}

#[test]
fn one_job_for_each_drop() {
    let mut scene = Scene::all_well();
    scene.jobs.push(delivered(&scene.drops[0]));
    only(&scene.judged(), "3 jobs for 2 drops");
    only(
        &judge(&scene.homes, &scene.drops, &[], None),
        "the sender does not answer",
    );
}

#[test]
fn stuck() {
    let waits: [fn(&mut Scene); 6] = [
        |s| write(&s.outbox("a"), "one"),
        |s| write(&s.sender().leaving().join("job"), "one"),
        |s| write(&home(&s.homes, Side::Receiver).partials().join("part"), "o"),
        |s| fs::remove_file(s.inbox("a")).unwrap(),
        |s| s.jobs[1]["state"] = "queued".into(),
        |s| drop(s.jobs.pop()),
    ];
    for (case, make) in waits.into_iter().enumerate() {
        let mut scene = Scene::all_well();
        make(&mut scene);
        assert!(scene.rests().is_err(), "{case}");
    }
    let scene = Scene::all_well();
    assert!(at_rest(&scene.homes, 2, 0, || None).is_err());
}

/// The sender's files after a cut, of drops that nobody had synced.
#[test]
fn what_is_left_is_the_drop() {
    let scene = Scene::all_well();
    write(&scene.outbox("c"), "");
    write(&scene.sender().leaving().join("job"), "three");
    // The same file under a second name.
    fs::hard_link(scene.sender().leaving().join("job"), scene.outbox("d")).unwrap();
    let mut left: Vec<_> = left_of(&scene.homes).iter().map(|d| d.bytes.to_vec()).collect();
    left.sort();
    assert_eq!(left, [&b""[..], b"one", b"three", b"two"]);
}

#[test]
fn once_queued_it_is_whole() {
    let scene = Scene::all_well();
    let cut = |time: &str| queued_is_whole(&scene.drops, &scene.drops[..1], &scene.jobs, time);
    only(&cut("2026-01-01T00:00:00.001Z"), "torn: b was queued, and lost");
    assert_eq!(
        cut("2026-01-01T00:00:00.000Z"),
        [""; 0],
        "queued only after the cut"
    );
    let short = [delivered(&Drop::new("a", b"on".to_vec()))];
    let found = queued_is_whole(&scene.drops, &scene.drops, &short, "2027");
    only(&found, "torn: a was queued with 2 bytes");
}
