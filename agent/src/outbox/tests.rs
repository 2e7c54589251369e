//! A running outbox on a real folder. Every wait is for an event, with a generous deadline.

use std::{collections::HashSet, fs, sync::atomic::AtomicU32, time::Duration};

use super::*;
use crate::config::{AfterSend, Watch};

mod folders;

const DEADLINE: Duration = Duration::from_secs(20);

/// A job list: what was settled once is known from then on.
#[derive(Default)]
struct List {
    known: Mutex<HashSet<Found>>,
    /// So many questions are not answered.
    fails: AtomicU32,
    /// Why the outbox is not at home.
    copy: Mutex<Option<String>>,
    /// Told where it is.
    home: Mutex<Option<mpsc::UnboundedSender<OutboxId>>>,
}

fn me() -> Me {
    Me {
        id: dropwire_protocol::AgentId([1; 32]),
        name: "me".into(),
    }
}

impl Known for List {
    fn claim_home(&self, outbox: OutboxId, _: bool) -> Claiming<'_> {
        let copy = self.copy.lock().unwrap().clone();
        if let (None, Some(home)) = (&copy, &*self.home.lock().unwrap()) {
            home.send(outbox).unwrap();
        }
        Box::pin(async move { Some(copy.map_or(Ok(()), Err)) })
    }

    fn unknown(&self, found: Vec<Found>) -> Result<Vec<Found>, String> {
        assert!(found.len() <= 1000);
        let failed = self
            .fails
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        if failed.is_ok() {
            return Err("the job list is away".into());
        }
        let known = self.known.lock().unwrap();
        let is_new = |found: &Found| {
            !known
                .iter()
                .any(|k| k.path == found.path && k.version.same_identity(&found.version))
        };
        Ok(found.into_iter().filter(is_new).collect())
    }

    /// What is called so once held what was delivered.
    fn emptied(
        &self,
        _: OutboxId,
        folders: Vec<RemotePath>,
    ) -> Pin<Box<dyn Future<Output = Option<Vec<RemotePath>>> + Send + '_>> {
        let emptied = |folder: &RemotePath| folder.file_name() == b"emptied";
        Box::pin(async move { Some(folders.into_iter().filter(emptied).collect()) })
    }
}

struct Running {
    temp: tempfile::TempDir,
    outbox: Outbox,
    list: Arc<List>,
    ready: mpsc::Receiver<Ready>,
    homes: mpsc::UnboundedReceiver<OutboxId>,
    cancel: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn config(path: PathBuf) -> config::Outbox {
    config::Outbox {
        path,
        to: Vec::new(),
        after_send: AfterSend::Delete,
        marker: None,
        quiet: Duration::from_millis(100),
        max_wait: Duration::from_secs(600),
        linger: Duration::ZERO,
        ignore: Vec::new(),
        watch: Watch::Auto,
        folder: Folder::Files,
        rescan: Duration::from_secs(3600),
    }
}

fn started(temp: tempfile::TempDir, config: config::Outbox) -> Running {
    let (give, ready) = mpsc::channel(16);
    let (home, homes) = mpsc::unbounded_channel();
    let list = Arc::new(List {
        home: Mutex::new(Some(home)),
        ..List::default()
    });
    let cancel = CancellationToken::new();
    Running {
        temp,
        outbox: start(config, me(), None, list.clone(), give, cancel.clone()),
        list,
        ready,
        homes,
        cancel,
    }
}

/// Prepares a folder beside which others can lie, then starts its outbox, and waits until it is watched.
async fn run(prepare: impl FnOnce(&Path), change: impl FnOnce(&mut config::Outbox)) -> Running {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("outbox");
    fs::create_dir(&root).unwrap();
    prepare(&root);
    let mut config = config(root);
    change(&mut config);
    let mut running = started(temp, config);
    running.marked().await;
    running
}

/// Waits also for the first scan's end, so that only hints can tell of what comes later.
async fn run_watched() -> Running {
    let mut running = run(|root| fs::write(root.join("first"), "bytes").unwrap(), |_| {}).await;
    running.settles(&["first"]).await;
    running
}

impl Running {
    fn at(&self, path: &str) -> PathBuf {
        self.temp.path().join("outbox").join(path)
    }

    async fn ready(&mut self) -> Vec<Found> {
        let ready = tokio::time::timeout(DEADLINE, self.ready.recv()).await;
        let status = self.outbox.status();
        ready
            .unwrap_or_else(|_| panic!("nothing is ready; {status:?}"))
            .expect("the outbox ended")
            .found
    }

    async fn marked(&mut self) -> OutboxId {
        let marked = async {
            loop {
                tokio::select! {
                    biased;
                    id = self.homes.recv() => return id.unwrap(),
                    // The same one may come again.
                    ready = self.ready.recv() => {
                        let (found, known) = (ready.unwrap().found, self.list.known.lock().unwrap());
                        assert!(found.iter().all(|found| known.contains(found)), "{found:?}");
                    }
                }
            }
        };
        tokio::time::timeout(DEADLINE, marked)
            .await
            .expect("it is not found")
    }

    /// Until all of these, and nothing else, came; gives the versions in that order.
    async fn settles(&mut self, paths: &[&str]) -> Vec<Found> {
        let mut got: BTreeMap<String, Found> = BTreeMap::new();
        while got.len() < paths.len() {
            for found in self.ready().await {
                if !self.list.known.lock().unwrap().insert(found.clone()) {
                    continue; // the same one may come again
                }
                let path = found.path.to_string();
                assert!(paths.contains(&path.as_str()), "{path} settled");
                got.insert(path, found);
            }
        }
        paths.iter().map(|path| got[*path].clone()).collect()
    }

    async fn until(&self, text: &str, done: impl Fn(&Outbox) -> bool) {
        let wait = async {
            while !done(&self.outbox) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let status = self.outbox.status();
        let waited = tokio::time::timeout(DEADLINE, wait).await;
        waited.unwrap_or_else(|_| panic!("never {text}; {status:?}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn written_and_moved_in_files_settle() {
    if !crate::failpoints::needs::telling_of_changes() {
        return;
    }
    let mut running = run_watched().await;
    assert_eq!(running.outbox.status().watch, "native");
    fs::write(running.at("written"), "bytes").unwrap();
    let found = running.settles(&["written"]).await;
    assert_eq!(found[0].version, version(&running.at("written")));
    fs::write(running.temp.path().join("outside"), "bytes").unwrap();
    fs::rename(running.temp.path().join("outside"), running.at("moved in")).unwrap();
    running.settles(&["moved in"]).await;
    fs::write(running.at("written"), "new content").unwrap();
    running.settles(&["written"]).await;
    fs::write(running.at("atomic.tmp"), "saved").unwrap();
    fs::rename(running.at("atomic.tmp"), running.at("atomic")).unwrap();
    running.settles(&["atomic"]).await;
}

/// No scan comes by itself for an hour, and the folder does not change.
#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_queued_is_found_again() {
    let mut running = run_watched().await;
    running.list.fails.store(1, Ordering::Relaxed);
    fs::write(running.at("file"), "bytes").unwrap();
    running.settles(&["file"]).await;
    // As if the job list had lost it.
    running.list.known.lock().unwrap().clear();
    running.outbox.find_again();
    running.settles(&["file", "first"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_without_a_marker_are_listed_until_it_comes() {
    let mut running = run(
        |root| {
            fs::write(root.join("early"), "bytes").unwrap();
            fs::write(root.join("bytes.done"), "bytes").unwrap();
        },
        |config| {
            config.marker = Some(".done".into());
            config.rescan = Duration::from_millis(50);
        },
    )
    .await;
    let listed = |outbox: &Outbox| outbox.status().not_sent_count == 2;
    running.until("listed", listed).await;
    let why = running.outbox.why(&running.at("early")).unwrap();
    assert!(why.ends_with("waits for its marker early.done"), "{why}");
    let why = running.outbox.why(&running.at("bytes.done")).unwrap();
    assert!(why.contains("not empty"), "{why}");
    fs::write(running.at("early.done"), "").unwrap();
    running.settles(&["early"]).await;
    let listed = |outbox: &Outbox| outbox.status().not_sent_count == 1;
    running.until("one is left", listed).await;
}

fn version(path: &Path) -> crate::fs::version::Version {
    crate::fs::version::Version::read(&fs::File::open(path).unwrap())
        .unwrap()
        .0
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_there_at_the_start_is_found_and_known_files_are_not_told_again() {
    let prepare = |root: &Path| {
        fs::create_dir_all(root.join("sub/.dropwire")).unwrap();
        for name in ["one", "sub/two", "no.part", "sub/.dropwire/own"] {
            fs::write(root.join(name), "bytes").unwrap();
        }
    };
    let mut running = run(prepare, |_| {}).await;
    running.settles(&["one", "sub/two"]).await;
    running.outbox.recheck(RemotePath::parse(b"one").unwrap());
    fs::write(running.at("three"), "bytes").unwrap();
    running.settles(&["three"]).await;
    let why = |name| running.outbox.why(&running.at(name));
    assert_eq!(why("no.part").unwrap(), "ignored: matches *.part");
    running
        .until("at rest", |outbox| outbox.why(&running.at("one")).is_none())
        .await;
    assert_eq!(running.outbox.why(running.temp.path()), None);
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_file_waits_for_its_writer() {
    use std::io::Write;
    let mut running = run_watched().await;
    let mut writer = fs::File::create(running.at("growing")).unwrap();
    writer.write_all(b"half").unwrap();
    fs::write(running.at("other"), "bytes").unwrap();
    running.settles(&["other"]).await;
    running
        .until("waited for", |outbox| outbox.status().settling == 1)
        .await;
    let why = running.outbox.why(&running.at("growing")).unwrap();
    assert!(why.contains("open for writing"), "{why}");
    writer.write_all(b" and half").unwrap();
    drop(writer);
    let found = running.settles(&["growing"]).await;
    assert_eq!(found[0].version.size, 13);
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_hidden_and_still_downloading_files_rest_first() {
    let mut running = run_watched().await;
    for (name, bytes) in [("empty", ""), (".hidden", "bytes")] {
        fs::write(running.at(name), bytes).unwrap();
    }
    running.settles(&["empty", ".hidden"]).await;
    for name in ["x.part", "x"] {
        fs::write(running.at(name), "bytes").unwrap(); // before the file that it holds up
    }
    let x = running.at("x");
    let waits = |outbox: &Outbox| outbox.why(&x).is_some_and(|why| why.contains("download"));
    running.until("waits for a download", waits).await;
    fs::remove_file(running.at("x.part")).unwrap();
    running.settles(&["x"]).await;
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_file_is_skipped() {
    let mut running = run_watched().await;
    std::os::unix::fs::symlink("first", running.at("link")).unwrap();
    let fifo = std::ffi::CString::new(running.at("fifo").into_os_string().into_encoded_bytes()).unwrap();
    // SAFETY: a NUL-terminated path that outlives the call.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    fs::write(running.at("file"), "bytes").unwrap();
    running.settles(&["file"]).await;
    for name in ["link", "fifo"] {
        let why = running.outbox.why(&running.at(name)).unwrap();
        assert!(why.contains("not a regular file"), "{why}");
    }
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_file_is_reported_and_the_others_go_on() {
    use std::os::unix::fs::PermissionsExt;
    let mut running = run_watched().await;
    fs::write(running.at("secret.tmp"), "bytes").unwrap();
    fs::set_permissions(running.at("secret.tmp"), fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(running.at("secret.tmp")).is_ok() {
        crate::failpoints::skip("this user reads everything");
        return;
    }
    fs::rename(running.at("secret.tmp"), running.at("secret")).unwrap();
    fs::write(running.at("file"), "bytes").unwrap();
    running.settles(&["file"]).await;
    let why = |outbox: &Outbox| outbox.why(&running.at("secret")).unwrap_or_default();
    running
        .until("reported", |outbox| why(outbox).contains("cannot be read"))
        .await;
    fs::set_permissions(running.at("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    running.settles(&["secret"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_at_once_all_settle() {
    let mut running = run_watched().await;
    let names: Vec<String> = (0..2000).map(|i| format!("sub{}/{i}", i % 10)).collect();
    for sub in 0..10 {
        fs::create_dir(running.at(&format!("sub{sub}"))).unwrap();
    }
    for name in &names {
        fs::write(running.at(name), "bytes").unwrap();
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    running.settles(&names).await;
    running
        .until("at rest", |outbox| outbox.status().settling == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn polling_finds_the_same() {
    let poll = |config: &mut config::Outbox| {
        config.watch = Watch::Poll;
        config.rescan = Duration::from_millis(50);
    };
    let mut running = run(|_| {}, poll).await;
    fs::create_dir(running.at("sub")).unwrap();
    fs::write(running.at("sub/file"), "bytes").unwrap();
    running.settles(&["sub/file"]).await;
    assert_eq!(running.outbox.status().watch, "poll");
    // What tells files apart is what they are, not when: this one is older than all that was seen.
    let outside = running.temp.path().join("outside");
    fs::write(&outside, "old").unwrap();
    let old = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let outside_file = fs::File::options().append(true).open(&outside).unwrap();
    crate::fs::file_system::set_modified(&outside_file, old).unwrap();
    drop(outside_file);
    fs::rename(&outside, running.at("moved in")).unwrap();
    running.settles(&["moved in"]).await;
    // Written to in its place: the folder does not change with it.
    fs::write(running.at("sub/file"), "other bytes").unwrap();
    running.settles(&["sub/file"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_that_leave_out_unchanged_folders_find_what_is_new() {
    if !crate::failpoints::needs::telling_of_changes() {
        return;
    }
    let mut running = run(
        |root| fs::create_dir_all(root.join("a/b")).unwrap(),
        |config| config.rescan = Duration::from_millis(50),
    )
    .await;
    fs::write(running.at("a/b/one"), "bytes").unwrap();
    running.settles(&["a/b/one"]).await;
    running
        .until("proven", |outbox| outbox.status().latency.is_some())
        .await;
    for i in 0..10 {
        let name = format!("a/b/{i}");
        fs::write(running.at(&name), "bytes").unwrap();
        running.settles(&[&name]).await;
        fs::write(running.at("a/b/one"), format!("bytes {i}")).unwrap();
        running.settles(&["a/b/one"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_not_there_is_waited_for_and_never_made() {
    // Only a watch tells a folder that was removed from one that is away.
    if !crate::failpoints::needs::telling_of_changes() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let (root, aside) = (temp.path().join("outbox"), temp.path().join("aside"));
    let mut running = started(temp, config(root.clone()));
    let held = |outbox: &Outbox| outbox.status().held.unwrap_or_default();
    running
        .until("held", |outbox| held(outbox).contains("not there"))
        .await;
    assert!(!root.exists());
    fs::create_dir(&root).unwrap();
    let id = running.marked().await;
    running.until("there", |outbox| outbox.id() == Some(id)).await;

    // Moved away: the place is held, whatever comes there without the folder id.
    fs::rename(&root, &aside).unwrap();
    running
        .until("held", |outbox| held(outbox).contains("not there"))
        .await;
    fs::create_dir(&root).unwrap();
    running
        .until("held", |outbox| held(outbox).contains("lost its id"))
        .await;
    fs::remove_dir(&root).unwrap();
    fs::rename(&aside, &root).unwrap();
    assert_eq!(running.marked().await, id);
    running.until("there", |outbox| outbox.id() == Some(id)).await;
    fs::write(root.join("file"), "bytes").unwrap();
    running.settles(&["file"]).await;

    // Removed for good: a new folder there is a new outbox. (A probe may be made in it meanwhile.)
    while fs::remove_dir_all(&root).is_err_and(|e| e.kind() == std::io::ErrorKind::DirectoryNotEmpty) {}
    running
        .until("held", |outbox| held(outbox).contains("not there"))
        .await;
    fs::create_dir(&root).unwrap();
    assert_ne!(running.marked().await, id);
    fs::write(root.join("again"), "bytes").unwrap();
    running.settles(&["again"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_finds_nothing_until_it_has_an_id_of_its_own() {
    let mut running = run(|_| {}, |config| config.rescan = Duration::from_millis(50)).await;
    *running.list.copy.lock().unwrap() = Some("a copy".into());
    crate::fs::folder_id::replace(&confined::root(&running.at("")).unwrap()).unwrap();
    running
        .until("held", |outbox| outbox.status().held.as_deref() == Some("a copy"))
        .await;
    fs::write(running.at("file"), "bytes").unwrap();
    *running.list.copy.lock().unwrap() = None;
    running.outbox.find_folder();
    running.marked().await;
    running.settles(&["file"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_pattern_holds_the_outbox() {
    let temp = tempfile::tempdir().unwrap();
    let mut config = config(temp.path().to_path_buf());
    config.ignore = vec!["[".into()];
    let (ready, _kept) = mpsc::channel(1);
    let outbox = start(
        config,
        me(),
        None,
        Arc::new(List::default()),
        ready,
        CancellationToken::new(),
    );
    assert!(outbox.status().held.unwrap().contains('['));
}
