//! Whose an inbox or outbox is: a record in its `.dropwire/` names the one agent that uses the folder.
//!
//! The record (`.dropwire/owner`) reaches wherever the folder reaches, other hosts on a share included, and stays when
//! the agent stops: another agent would take its partials for litter, or deliver its files a second time. Only a person
//! hands a folder over, with `dropwire adopt`, which also gives it a new id, so that the former agent stops at its next
//! look. Agents are told apart by their ids; a clone with the same key counts as the same agent.
//!
//! An inbox is also locked (`.dropwire/lock`) while it is open, which tells clones on one machine apart. An outbox is
//! not: an open lock would keep its disk from being unmounted, and a file that two clones find has one transfer id, so
//! that it is delivered once. Where the file system has no locks, the record alone counts.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read as _},
    path::Path,
    sync::Mutex,
};

use cap_fs_ext::DirExt;
use cap_std::fs::Dir;
use dropwire_protocol::{AgentId, name::escape};
use serde::{Deserialize, Serialize};

use crate::{
    error::shown,
    failpoints,
    fs::{confined, durable, own_folder},
    id,
    io_error::{self, Meaning, Wait},
    poison::Unpoisoned as _,
};

const RECORD: &str = "owner";
/// The record, as seen from the folder that it is about.
const CLAIM: &str = ".dropwire/owner";
const LOCK: &str = "lock";
/// Longer records are not ours.
const MOST: u64 = 4096;

/// The agent that asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Me {
    /// By this agents are told apart.
    pub id: AgentId,
    /// For people.
    pub name: String,
}

/// What the record says. Others may have written it: it is escaped when shown.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Owner {
    /// The agent's name.
    pub name: String,
    /// Its id, as people read it.
    pub id: String,
    /// The machine that it ran on.
    pub host: String,
    /// When it took the folder.
    pub since: String,
    /// Its process, as of its last start.
    pub pid: u32,
}

impl Owner {
    fn of(me: &Me, since: Option<String>) -> Self {
        let now = || humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
        Self {
            name: me.name.clone(),
            id: id::format(me.id),
            host: host(),
            since: since.unwrap_or_else(now),
            pid: std::process::id(),
        }
    }

    fn is(&self, me: &Me) -> bool {
        id::parse(&self.id).is_ok_and(|id| id == me.id) || failpoints::mutant("owner")
    }

    fn text(&self) -> io::Result<String> {
        let record = toml::to_string(self).map_err(io::Error::other)?;
        Ok(format!(
            "# The dropwire agent that this folder belongs to. `dropwire adopt FOLDER` hands it over.\n{record}"
        ))
    }

    /// Does the agent run on this machine, as far as can be told?
    pub fn runs_here(&self) -> bool {
        self.host == host() && self.pid != std::process::id() && is_dropwire(self.pid)
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [name, id, host, since] =
            [&self.name, &self.id, &self.host, &self.since].map(|text| escape(text.as_bytes()));
        write!(f, "the agent \"{name}\" ({id}) on {host}, since {since}")
    }
}

/// The record in the folder `root`; None where there is none. `InvalidData` where it cannot be understood.
pub fn read(root: &Dir) -> io::Result<Option<Owner>> {
    let Some(file) = own_folder::open_file(root, RECORD)? else {
        return Ok(None);
    };
    let mut text = String::new();
    file.take(MOST).read_to_string(&mut text)?;
    toml::from_str(&text)
        .map(Some)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is damaged"))
}

/// A folder inside an outbox that is an outbox or inbox by itself, of this agent or another one: what lies in it is not
/// the outer outbox's to send.
#[derive(Debug, thiserror::Error)]
#[error("{} in the outbox is itself an outbox or inbox: {reason}", escape(at))]
pub struct Claimed {
    /// Below the outer outbox.
    pub at: Vec<u8>,
    /// Whose it is, and the way out.
    pub reason: String,
}

impl Claimed {
    /// Is it that by which [`unclaimed`] failed?
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

/// A [`confined::Gate`]: an outbox's files lie in folders that have no owner of their own. The tops of what is mounted in
/// an outbox have none, though they have a `.dropwire`. A record that cannot be read counts; one system call where there
/// is none.
pub fn unclaimed(folder: &Dir, at: &[u8]) -> io::Result<()> {
    let whose = match folder.symlink_metadata(CLAIM) {
        Err(e) if confined::is_absent(&e) => return Ok(()),
        Err(e) => Err(e),
        Ok(_) => read(folder),
    };
    let whose = match whose {
        Ok(Some(owner)) => owner.to_string(),
        Ok(None) => return Ok(()), // it went meanwhile
        Err(e) if is_passing(&e) => return Err(e),
        Err(e) => format!("an agent whose record cannot be read ({e})"),
    };
    if failpoints::mutant("S1-claimed") {
        return Ok(());
    }
    let claimed = Claimed {
        at: at.to_vec(),
        reason: format!(
            "it belongs to {whose}, so nothing in it is sent; if no agent uses it any more, remove {CLAIM} in it"
        ),
    };
    Err(io::Error::new(io::ErrorKind::Unsupported, claimed))
}

/// Does it say nothing of the record, and pass by itself?
fn is_passing(error: &io::Error) -> bool {
    !io_error::is_damage(error)
        && matches!(io_error::meaning(error), Meaning::NotNow(wait) if wait != Wait::Access)
}

/// Whether this agent may use the folder `root`, which is at `path`: the error is a sentence that says why not.
pub fn check(root: &Dir, path: &Path, me: &Me) -> Result<(), String> {
    owned(root, path, me).map(drop)
}

fn owned(root: &Dir, path: &Path, me: &Me) -> Result<Option<Owner>, String> {
    match read(root) {
        Ok(Some(owner)) if !owner.is(me) => Err(format!(
            "{} belongs to {owner}, and not to this agent, \"{}\" ({}); if that agent no longer uses it: `{}`",
            shown(path),
            escape(me.name.as_bytes()),
            id::format(me.id),
            adopt(path)
        )),
        Ok(owner) => Ok(owner),
        Err(e) => {
            let what = format!("the owner of {} (.dropwire/owner)", shown(path));
            Err(unreadable(&what, &e, path, "if no other agent uses it"))
        }
    }
}

/// Takes the folder `root` for this agent, unless another one has it. The folder [`own_folder::NAME`] has to be there.
///
/// Of two agents that take it at the same time one is refused. Where a full disk has no room for a first record the
/// folder is taken without one: what empties an outbox must not wait for space.
pub fn take(root: &Dir, path: &Path, me: &Me) -> Result<(), String> {
    let cannot = |e: io::Error| format!("{} cannot be written: {e}", shown(path));
    let folder = root.open_dir_nofollow(own_folder::NAME).map_err(cannot)?;
    let known = owned(root, path, me)?;
    let record = Owner::of(me, known.as_ref().map(|owner| owner.since.clone()));
    let text = record.text().map_err(cannot)?;
    match known {
        Some(known) if known == record => Ok(()),
        Some(_) => {
            // Ours already: what is older in it does no harm.
            if let Err(error) = durable::replace_file(&folder, OsStr::new(RECORD), text.as_bytes()) {
                tracing::debug!(%error, path = %shown(path), "the owner's record stays as it was");
            }
            Ok(())
        }
        None => match durable::write_new_file(&folder, OsStr::new(RECORD), text.as_bytes()) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => check(root, path, me),
            Err(e) if io_error::meaning(&e) == Meaning::NotNow(Wait::Space) => Ok(()),
            Err(e) => Err(cannot(e)),
        },
    }
}

/// Takes the folder `root` for this agent, whoever had it. After Ok that survives a power cut.
pub fn replace(root: &Dir, me: &Me) -> io::Result<()> {
    let folder = own_folder::open_or_make(root)?;
    durable::sync_dir(root)?;
    durable::replace_file(
        &folder,
        OsStr::new(RECORD),
        Owner::of(me, None).text()?.as_bytes(),
    )
}

/// The command that takes the folder at `path`, as it is typed.
pub fn adopt(path: &Path) -> String {
    let shown = shown(path);
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    match shown.chars().all(plain) {
        true => format!("dropwire adopt {shown}"),
        false => format!("dropwire adopt '{}'", shown.replace('\'', r"'\''")),
    }
}

/// Why `what` in the `.dropwire/` of the folder at `path` cannot be read, with the way out. To adopt the folder is one
/// only where its content is damaged: a disk or a program that does not answer comes back, and the folder with it.
pub fn unreadable(what: &str, error: &io::Error, path: &Path, adopting: &str) -> String {
    match io_error::is_damage(error) || failpoints::mutant("adopt-damaged") {
        true => format!("{what} cannot be read: {error}; {adopting}: `{}`", adopt(path)),
        false => format!("{what} cannot be read now: {error}; it is waited for"),
    }
}

/// The lock of one folder at a time, for as long as this lives or until [`Lock::release`].
#[derive(Default, Debug)]
pub struct Lock(Mutex<Option<File>>);

impl Lock {
    /// Locks the folder `root`, in which [`own_folder::NAME`] has to be; once more for the same folder changes nothing.
    /// `WouldBlock`: another process has the lock. Ok without a lock where the file system has none.
    pub fn hold(&self, root: &Dir) -> io::Result<()> {
        let file = durable::open_private(&root.open_dir_nofollow(own_folder::NAME)?, OsStr::new(LOCK))?;
        let mut held = self.0.lock().unpoisoned();
        if held.as_ref().is_some_and(|held| is_same(held, &file)) || failpoints::mutant("inbox-lock") {
            return Ok(());
        }
        *held = None;
        match file.try_lock() {
            Ok(()) => *held = Some(file),
            Err(std::fs::TryLockError::WouldBlock) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(std::fs::TryLockError::Error(error)) => {
                tracing::debug!(%error, "no locks here: the owner's record alone counts");
            }
        }
        Ok(())
    }

    /// Lets it go.
    pub fn release(&self) {
        let held = self.0.lock().unpoisoned().take();
        // A program that is being started right now has the file open too for a moment.
        let _ = held.map(|file| file.unlock());
    }
}

#[cfg(unix)]
fn is_same(a: &File, b: &File) -> bool {
    use crate::fs::dev_ino::DevIno;
    let of = |file: &File| file.metadata().ok().as_ref().and_then(DevIno::of);
    of(a).is_some() && of(a) == of(b)
}

/// There is one handle a process and folder.
#[cfg(not(unix))]
fn is_same(_: &File, _: &File) -> bool {
    true
}

fn host() -> String {
    hostname::get().map_or_else(|_| "?".into(), |name| name.to_string_lossy().into_owned())
}

#[cfg(target_os = "linux")]
fn is_dropwire(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("dropwire"))
}

/// Not asked on other systems: a person was told to look.
#[cfg(not(target_os = "linux"))]
fn is_dropwire(_: u32) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::folder_id;

    fn me(n: u8, name: &str) -> Me {
        Me {
            id: AgentId([n; 32]),
            name: name.into(),
        }
    }

    fn folder() -> (tempfile::TempDir, Dir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_ambient_dir(temp.path(), cap_std::ambient_authority()).unwrap();
        folder_id::create(&dir).unwrap();
        (temp, dir)
    }

    #[test]
    fn only_what_is_damaged_is_adopted() {
        let told = |error: io::Error| unreadable("its id", &error, Path::new("/in"), "to give it a new one");
        let damaged = told(io::ErrorKind::InvalidData.into());
        assert!(
            damaged.contains("to give it a new one: `dropwire adopt /in`"),
            "{damaged}"
        );
        #[cfg(unix)]
        for code in [
            libc::ENOTCONN,
            libc::EIO,
            libc::EMFILE,
            libc::EACCES,
            libc::ESTALE,
        ] {
            let waits = told(io::Error::from_raw_os_error(code));
            assert!(
                waits.ends_with("it is waited for") && !waits.contains("adopt"),
                "{waits}"
            );
        }
    }

    #[test]
    fn a_folder_is_one_agents_until_it_is_handed_over() {
        let (temp, dir) = folder();
        let (a, b) = (me(1, "a"), me(2, "b\u{1b}"));
        assert_eq!(read(&dir).unwrap(), None);
        check(&dir, temp.path(), &a).unwrap();
        take(&dir, temp.path(), &a).unwrap();
        let since = read(&dir).unwrap().unwrap().since;
        for refused in [check(&dir, temp.path(), &b), take(&dir, temp.path(), &b)] {
            let text = refused.unwrap_err();
            assert!(
                text.contains("\"a\"") && text.contains("\"b\\u{1b}\""),
                "both names: {text}"
            );
            assert!(text.contains("dropwire adopt /"), "{text}");
        }
        // Under another name, after a crash: the same one.
        take(&dir, temp.path(), &me(1, "renamed")).unwrap();
        let owner = read(&dir).unwrap().unwrap();
        assert_eq!((owner.name.as_str(), owner.since), ("renamed", since));
        replace(&dir, &b).unwrap();
        take(&dir, temp.path(), &b).unwrap();
        assert!(check(&dir, temp.path(), &a).is_err());
    }

    #[test]
    fn what_cannot_be_understood_is_nobodys_to_take() {
        let (temp, dir) = folder();
        for text in [
            "",
            "half",
            "name = 1",
            "name='a'\nid='x'\nhost=''\nsince=''\npid=1",
        ] {
            std::fs::write(temp.path().join(".dropwire/owner"), text).unwrap();
            assert!(take(&dir, temp.path(), &me(1, "a")).is_err(), "{text}");
            assert_eq!(
                std::fs::read_to_string(temp.path().join(".dropwire/owner")).unwrap(),
                text
            );
        }
    }

    #[test]
    fn a_folder_with_a_record_lets_no_outer_outbox_through() {
        let (temp, dir) = folder();
        // As at the top of what is mounted in an outbox.
        for own in ["leaving", "sent"] {
            std::fs::create_dir(temp.path().join(".dropwire").join(own)).unwrap();
        }
        unclaimed(&dir, b"sub").unwrap();
        let refused = || {
            let error = unclaimed(&dir, b"sub\x1b").unwrap_err();
            assert!(!confined::is_absent(&error));
            let claimed = Claimed::of(&error).unwrap();
            assert_eq!(claimed.at, b"sub\x1b");
            assert!(error.to_string().contains(&claimed.reason) && !error.to_string().contains('\x1b'));
            claimed.reason.clone()
        };
        take(&dir, temp.path(), &me(1, "a")).unwrap();
        let reason = refused();
        assert!(
            reason.contains("the agent \"a\"") && reason.contains("remove .dropwire/owner"),
            "{reason}"
        );
        let record = temp.path().join(".dropwire/owner");
        std::fs::write(&record, "half").unwrap();
        assert!(refused().contains("it is damaged"));
        std::fs::remove_file(&record).unwrap();
        unclaimed(&dir, b"sub").unwrap();
        std::fs::create_dir(&record).unwrap();
        assert!(refused().contains("cannot be read"));
        // What says nothing of the record, and passes, is no claim.
        for (kind, passes) in [
            (io::ErrorKind::PermissionDenied, false),
            (io::ErrorKind::InvalidData, false),
            (io::ErrorKind::OutOfMemory, true),
            (io::ErrorKind::TimedOut, true),
        ] {
            assert_eq!(is_passing(&kind.into()), passes, "{kind}");
        }
    }

    #[test]
    fn a_lock_is_held_once_and_free_again() {
        let (_temp, dir) = folder();
        let (first, second) = (Lock::default(), Lock::default());
        first.hold(&dir).unwrap();
        first.hold(&dir).unwrap();
        assert_eq!(second.hold(&dir).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        first.release();
        second.hold(&dir).unwrap();
    }

    #[test]
    fn a_command_can_be_typed_as_it_is_shown() {
        for (path, command) in [
            ("/srv/in", "dropwire adopt /srv/in"),
            ("/srv/in box", "dropwire adopt '/srv/in box'"),
            ("/srv/it's", r"dropwire adopt '/srv/it'\''s'"),
        ] {
            assert_eq!(adopt(Path::new(path)), command);
        }
    }
}
