//! The state folder: made private, locked against a second agent, its key and database opened.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite_migration::{M, Migrations};

use crate::{
    blocking::blocking,
    commands,
    db::{self, Db, OpenError, Waits},
    error::{Exit, Fatal, chain, shown},
    homes,
    identity::{Identity, JOB_LIST},
    queue, receiver, running_time,
};

/// Every change to the tables, oldest first; only ever appended to.
fn migrations() -> Vec<M<'static>> {
    vec![
        M::up(running_time::SCHEMA_1),
        M::up(queue::SCHEMA_1),
        M::up(receiver::SCHEMA_1),
        // The ids of outboxes, which `homes` took over.
        M::up("CREATE TABLE outbox_mark (path BLOB PRIMARY KEY, id BLOB NOT NULL) STRICT, WITHOUT ROWID;"),
        M::up(commands::SCHEMA_1),
        M::up(homes::SCHEMA_1),
        M::up(homes::FROM_MARKS),
        M::up(queue::SCHEMA_2),
        M::up(queue::SCHEMA_3),
        M::up(receiver::SCHEMA_2),
        receiver::digests(),
    ]
}

/// A state folder that is this process's alone as long as this lives.
pub(super) struct Locked {
    folder: PathBuf,
    _lock: fs::File,
}

impl Locked {
    /// Locks the folder, making it (0700) where it is missing. A second agent on the same folder gets
    /// [`Exit::CannotCreate`].
    pub(super) fn take(folder: &Path) -> Result<Self, Fatal> {
        private_folder(folder)?;
        only_files(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
            _lock: lock(&folder.join("lock"))?,
        })
    }

    /// Reads the key and opens the job list, or makes them; damaged ones get [`Exit::Data`].
    pub(super) fn open(&self, waits: &Waits) -> Result<(Arc<Identity>, Db), Fatal> {
        let identity = Identity::load_or_create(&self.folder)?;
        let file = self.folder.join(JOB_LIST);
        let migrations = Migrations::new(migrations());
        let db = Db::try_open(&file, &migrations, waits).map_err(|e| open_failed(&file, &e))?;
        Ok((Arc::new(identity), db))
    }
}

/// What the job list in the state folder waits for.
pub(super) fn waits(folder: &Path) -> Waits {
    Waits::new(&folder.join(JOB_LIST))
}

/// Takes a `step` until it is done, or can never be. What is waited for is said once, and known to whoever asks.
pub(super) async fn patiently<T: Send + 'static>(
    waits: &Waits,
    step: impl Fn() -> Result<T, Fatal> + Clone + Send + 'static,
) -> Result<T, Fatal> {
    let done = loop {
        let fatal = match blocking(step.clone()).await? {
            Ok(done) => break done,
            Err(fatal) => fatal,
        };
        match fatal.passes {
            Some(wait) if !crate::failpoints::mutant("start-waits") => waits.begin(wait, &fatal.message),
            _ => return Err(fatal),
        }
        tokio::time::sleep(db::PAUSE).await;
    };
    waits.end();
    Ok(done)
}

/// Makes `dir` where it is missing, for its owner alone. One that others can enter is refused, for key and job list
/// lie there; one without anything in it is closed to them instead.
pub fn private_folder(dir: &Path) -> Result<(), Fatal> {
    let failed =
        |error: &io::Error| Fatal::io(format_args!("cannot make the state folder {}", shown(dir)), error);
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder
        .recursive(true)
        .create(dir)
        .map_err(|error| match error.kind() {
            // Something else has the name, or stands on the way.
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
                Fatal::new(Exit::CannotCreate, format_args!("{} is not a folder", shown(dir)))
                    .hint("name another with `state_dir` or `--state-dir`")
            }
            _ => failed(&error),
        })?;
    close_if_empty(dir).map_err(|error| failed(&error))?;
    check_private(dir)
}

/// Whether only its owner can enter `dir`.
#[cfg(unix)]
pub fn check_private(dir: &Path) -> Result<(), Fatal> {
    use std::os::unix::fs::PermissionsExt as _;
    let metadata = fs::metadata(dir).map_err(|error| {
        Fatal::io(
            format_args!("cannot look at the state folder {}", shown(dir)),
            &error,
        )
    })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(Fatal::new(
        Exit::Permission,
        format_args!(
            "the state folder {} is open to others (mode {mode:o})",
            shown(dir)
        ),
    )
    .hint(format_args!(
        "chmod 700 {} (where that changes nothing, as on FAT and NTFS, choose another `state_dir`)",
        shown(dir)
    )))
}

/// Access lists of other systems are left to whoever made the folder.
#[cfg(not(unix))]
pub fn check_private(_: &Path) -> Result<(), Fatal> {
    Ok(())
}

#[cfg(unix)]
fn close_if_empty(dir: &Path) -> io::Result<()> {
    match fs::read_dir(dir)?.next() {
        None => fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)),
        Some(_) => Ok(()),
    }
}

#[cfg(not(unix))]
fn close_if_empty(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Nothing else has the name of a file that is kept there: opening a FIFO may never end, and what SQLite says of a folder
/// helps nobody. The key has its own words.
fn only_files(folder: &Path) -> Result<(), Fatal> {
    for name in ["lock", JOB_LIST, "jobs.db-wal", "jobs.db-shm"] {
        let path = folder.join(name);
        if path.metadata().is_ok_and(|there| !there.is_file()) && !crate::failpoints::mutant("state-files") {
            let text = format!(
                "{} is no ordinary file, as one of dropwire's own has to be",
                shown(&path)
            );
            return Err(Fatal::new(Exit::CannotCreate, text).hint("move it away, then start the agent again"));
        }
    }
    Ok(())
}

fn lock(path: &Path) -> Result<fs::File, Fatal> {
    let doing = || format!("cannot lock the state folder ({})", shown(path));
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|e| Fatal::io(doing(), &e).hint("let the user that runs the agent write in that folder"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Fatal::new(
            Exit::CannotCreate,
            format_args!("{}: another agent uses it", doing()),
        )
        .hint("stop that agent, or give this one a state folder of its own (state_dir)")),
        Err(fs::TryLockError::Error(e)) => Err(Fatal::io(doing(), &e)),
    }
}

fn open_failed(file: &Path, error: &OpenError) -> Fatal {
    let message = format!("{}: {}", shown(file), chain(error));
    match error {
        OpenError::Damaged(_) => Fatal::new(Exit::Data, message).hint(
            "nothing was sent or changed; restore the file from a backup, or move it away: then whatever still \
             lies in the outboxes is offered again, and peers that kept their ledger take nothing twice",
        ),
        OpenError::Newer(_) => Fatal::new(Exit::Data, message).hint("install that newer dropwire again"),
        OpenError::NotNow(wait, reason) => Fatal {
            passes: Some(*wait),
            ..Fatal::new(Exit::Disk, message).hint(db::told(*wait, reason, file).1)
        },
        OpenError::Cannot(_) => Fatal::new(Exit::Disk, message).hint("free space, or fix the disk or its permissions"),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_state_folder_is_the_owners_alone() {
        let root = tempfile::tempdir().unwrap();
        let mode = |dir: &Path| fs::metadata(dir).unwrap().permissions().mode() & 0o777;
        let open = |dir: &Path| fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();

        let missing = root.path().join("a/b");
        private_folder(&missing).unwrap();
        assert_eq!(mode(&missing), 0o700);
        open(&missing);
        private_folder(&missing).unwrap();
        assert_eq!(mode(&missing), 0o700, "an empty one is closed");

        fs::write(missing.join("x"), "").unwrap();
        private_folder(&missing).unwrap();
        open(&missing);
        let refused = private_folder(&missing).unwrap_err();
        assert_eq!(refused.exit, Exit::Permission);
        assert!(refused.hint.unwrap().starts_with("chmod 700"));
        assert_eq!(mode(&missing), 0o755, "and is left as it is");

        let state = missing.join("state");
        drop(Locked::take(&state).unwrap());
        let lock = state.join("lock");
        fs::remove_file(&lock).unwrap();
        for make in ["mkdir", "mkfifo"] {
            let made = std::process::Command::new(make).arg(&lock).status();
            assert!(made.unwrap().success());
            let refused = Locked::take(&state).err().unwrap();
            assert_eq!(refused.exit, Exit::CannotCreate);
            assert!(refused.message.contains("state/lock"), "{refused}");
            fs::remove_dir(&lock).or_else(|_| fs::remove_file(&lock)).unwrap();
        }

        let error = private_folder(&missing.join("x")).unwrap_err();
        assert_eq!(error.exit, Exit::CannotCreate);
    }

    /// The tables of an earlier version.
    fn first(n: usize) -> Migrations<'static> {
        Migrations::new(migrations().drain(..n).collect())
    }

    /// The tables are only ever added to, and what earlier versions kept is still there.
    #[test]
    fn an_older_job_list_keeps_what_it_knows_of_folders() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("jobs.db");
        let mut db = rusqlite::Connection::open(&file).unwrap();
        first(4).to_latest(&mut db).unwrap();
        db.execute_batch("INSERT INTO outbox_mark VALUES (x'2f6f', zeroblob(16)); INSERT INTO inbox_mark VALUES (x'2f69', randomblob(16));")
            .unwrap();
        Migrations::new(migrations()).to_latest(&mut db).unwrap();
        assert_eq!(homes::expected(&db, Path::new("/o")).unwrap(), Some([0; 16]));
        assert!(homes::expected(&db, Path::new("/i")).unwrap().is_some());
    }

    /// The inbox's indexes are rebuilt over the rows that were there.
    #[test]
    fn an_older_job_list_keeps_what_arrived() {
        let folder = tempfile::tempdir().unwrap();
        let mut db = rusqlite::Connection::open(folder.path().join("jobs.db")).unwrap();
        first(9).to_latest(&mut db).unwrap();
        for state in 0..4 {
            let row = "INSERT INTO inbox_transfer (sender, id, state, changed_ms, idle_since)
                       VALUES (zeroblob(32), randomblob(16), ?1, 1, ?2)";
            for idle_since in [None, Some(1)] {
                db.execute(row, rusqlite::params![state, idle_since]).unwrap();
            }
        }
        Migrations::new(migrations()).to_latest(&mut db).unwrap();
        let number = |sql| db.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(number("SELECT count(*) FROM inbox_transfer"), 8);
        assert_eq!(
            number(
                "SELECT count(*) FROM inbox_transfer INDEXED BY inbox_known WHERE state = 2 AND idle_since IS NOT NULL"
            ),
            1
        );
        let sound = db.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
        assert_eq!(sound.unwrap(), "ok");
    }

    /// What an earlier version was placing has its digest in the receipt alone.
    #[test]
    fn an_older_job_list_keeps_the_digests_of_what_was_being_placed() {
        use dropwire_protocol::{AgentId, Digest, Receipt, ReceiptBody, RemotePath, TransferId};
        let mut db = rusqlite::Connection::open_in_memory().unwrap();
        first(10).to_latest(&mut db).unwrap();
        let path = RemotePath::parse(b"x").unwrap();
        for n in 0..5 {
            let body = ReceiptBody {
                transfer: TransferId([n; 16]),
                sender: AgentId([1; 32]),
                receiver: AgentId([2; 32]),
                path: path.clone(),
                delivered_as: path.clone(),
                size: 5,
                digest: Digest([n + 10; 32]),
                delivered_at: 7,
                salt: [0; 16],
            };
            let receipt = Receipt {
                body: minicbor::to_vec(&body).unwrap(),
                key: Vec::new(),
                signature: Vec::new(),
                audit_path: Vec::new(),
            };
            let (state, receipt) = match n {
                0 => (0, None),
                1 | 2 => (1, Some(receipt.to_bytes())),
                3 => (1, Some(b"damaged".to_vec())),
                _ => (2, Some(receipt.to_bytes())),
            };
            let row = "INSERT INTO inbox_transfer (sender, id, state, receipt, changed_ms) VALUES (?1, ?2, ?3, ?4, 1)";
            let values = rusqlite::params![[1u8; 32], [n; 16], state, receipt];
            db.execute(row, values).unwrap();
        }
        Migrations::new(migrations()).to_latest(&mut db).unwrap();
        let mut read = db
            .prepare("SELECT digest FROM inbox_transfer ORDER BY id")
            .unwrap();
        let digests = read
            .query_map([], |row| row.get::<_, Option<[u8; 32]>>(0))
            .unwrap();
        let digests: Vec<_> = digests.map(Result::unwrap).collect();
        assert_eq!(digests, [None, Some([11; 32]), Some([12; 32]), None, None]);
    }

    /// What peers had yet to be told before times could wait is told at once.
    #[tokio::test]
    async fn an_older_job_list_keeps_what_peers_are_to_be_told() {
        let folder = tempfile::tempdir().unwrap();
        let identity = Arc::new(Identity::load_or_create(folder.path()).unwrap());
        let file = folder.path().join("jobs.db");
        let mut db = rusqlite::Connection::open(&file).unwrap();
        first(8).to_latest(&mut db).unwrap();
        let closing = "INSERT INTO closing VALUES (x'01010101010101010101010101010101', zeroblob(32), 1, 5),
                                                  (x'02020202020202020202020202020202', zeroblob(32), 0, NULL)";
        db.execute_batch(closing).unwrap();
        drop(db);
        let db = Db::open(&file, &Migrations::new(migrations())).unwrap();
        let queue = queue::Queue::open(db, identity, 0, std::time::Duration::ZERO)
            .await
            .unwrap();
        let peer = dropwire_protocol::AgentId([0; 32]);
        let todo = queue
            .todo(peer, Default::default(), Default::default(), 0)
            .await
            .unwrap();
        let id = |n| dropwire_protocol::TransferId([n; 16]);
        assert_eq!((todo.forget, todo.withdraw), (vec![id(1)], vec![id(2)]));
        assert_eq!(
            (todo.times[0].id, todo.times.len(), todo.retimed.len()),
            (id(1), 1, 0)
        );
    }
}
