//! Who this agent is: one Ed25519 key, its id, what it signs, and the TLS settings that pin both ways.

mod receipts;
mod tls;

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
    sync::Arc,
};

use aws_lc_rs::{digest, hmac, signature::Ed25519KeyPair};
use dropwire_protocol::{AgentId, TransferId};

use crate::{
    error::{Exit, Fatal, shown},
    failpoints,
    fs::{durable, version::Version},
};

pub use receipts::{ReceiptError, Verifier, verify};
pub use tls::{NotPaired, Role, agreed};

/// This agent's key. The file is `identity.key` in the state folder, PKCS#8 PEM, 0600.
pub struct Identity {
    key: Ed25519KeyPair,
    spki: Vec<u8>,
    id: AgentId,
    transfer_key: hmac::Key,
    tls: tls::Credentials,
}

impl Identity {
    /// Reads the key; None when there is none yet. Readable by others: [`Exit::Permission`]; damaged, or missing where it
    /// once was: [`Exit::Data`].
    pub fn load(state_dir: &Path) -> Result<Option<Self>, Fatal> {
        let path = state_dir.join(KEY_FILE);
        let cannot_open = |error| Fatal::io(format_args!("cannot open {}", shown(&path)), &error);
        // Before it is opened, for that alone may never end.
        match (path.metadata(), path.symlink_metadata()) {
            (Ok(there), _) if there.is_dir() => return Err(unusable(state_dir, "is a folder")),
            (Ok(there), _) if !there.is_file() => return Err(unusable(state_dir, "is no ordinary file")),
            (Err(e), Ok(_)) if e.kind() == io::ErrorKind::NotFound => {
                return Err(unusable(state_dir, "is a link to a file that is not there"));
            }
            _ => {}
        }
        let file = match open_if_there(&path).map_err(cannot_open)? {
            Some(file) => file,
            // A job list that cannot be checked for may be there.
            None if matches!(state_dir.join(JOB_LIST).try_exists(), Ok(false))
                || failpoints::mutant("identity-lost") =>
            {
                return Ok(None);
            }
            // The key is made before the job list: where both are being made, it is there now.
            None => match open_if_there(&path).map_err(cannot_open)? {
                Some(file) => file,
                None => return Err(lost(state_dir)),
            },
        };
        check_private(&file, &path)?;
        let mut pem = Vec::new();
        file.take(MAX_KEY_FILE)
            .read_to_end(&mut pem)
            .map_err(|error| Fatal::io(format_args!("cannot read {}", shown(&path)), &error))?;
        let no_key = |_| {
            unusable(
                state_dir,
                "holds no private key: it is damaged, or something else",
            )
        };
        // What the parser says of it means nothing to people.
        let pem = String::from_utf8(pem).map_err(|_| no_key(()))?;
        let pair = rcgen::KeyPair::from_pkcs8_pem_and_sign_algo(&pem, &rcgen::PKCS_ED25519)
            .map_err(|_| no_key(()))?;
        Self::from_pair(&pair).map(Some).map_err(|_| no_key(()))
    }

    /// Reads the key or makes one, durably (0600 whatever the umask), before it is first used.
    ///
    /// Crash promise: afterwards the file is whole or not there. A key that is there is never replaced: of several
    /// programs that make one at the same time, all get the key of the first.
    pub fn load_or_create(state_dir: &Path) -> Result<Self, Fatal> {
        if let Some(identity) = Self::load(state_dir)? {
            return Ok(identity);
        }
        let path = state_dir.join(KEY_FILE);
        let pem = new_pair().serialize_pem();
        let written = match failpoints::mutant("identity-once") {
            false => durable::write_new(&path, pem.as_bytes()),
            true => durable::write_file(&path, pem.as_bytes()),
        };
        match written {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Fatal::io(format_args!("cannot write {}", shown(&path)), &error));
            }
            _ => {} // another was quicker: its key counts
        }
        Self::load(state_dir)?.ok_or_else(|| {
            Fatal::new(
                Exit::Disk,
                format_args!("{} vanished after it was written", shown(&path)),
            )
        })
    }

    /// A throw-away identity, for tests.
    pub fn generate() -> Self {
        Self::from_pair(&new_pair()).expect("a key that was just made is sound")
    }

    /// SHA-256 of the public key's SubjectPublicKeyInfo.
    pub fn id(&self) -> AgentId {
        self.id
    }

    /// The id of an item for a peer: 128 bits of an HMAC-SHA-256 under a key derived from this identity, over peer,
    /// outbox, path, version and counter.
    ///
    /// Each field goes in with its length before it, so that no two items share an input.
    pub fn transfer_id(
        &self,
        peer: AgentId,
        outbox: [u8; 16],
        path: &[u8],
        version: &Version,
        counter: u64,
    ) -> TransferId {
        let mut context = hmac::Context::with_key(&self.transfer_key);
        for field in [
            &peer.0[..],
            &outbox,
            path,
            &version.identity_bytes(),
            &counter.to_be_bytes(),
        ] {
            context.update(&(field.len() as u64).to_be_bytes());
            context.update(field);
        }
        let mut id = [0; 16];
        id.copy_from_slice(&context.sign().as_ref()[..16]);
        TransferId(id)
    }

    /// For accepting: any key in `pins` is let in, nothing else (our own never).
    pub fn server_config(&self, pins: Vec<AgentId>) -> Arc<rustls::ServerConfig> {
        self.tls.server_config(self.id, pins)
    }

    /// For dialling: exactly this peer, by a connection that is all of a link.
    pub fn client_config(&self, peer: AgentId) -> Arc<rustls::ClientConfig> {
        self.client_config_for(peer, &[Role::Whole])
    }

    /// For dialling: exactly this peer, who chooses one of these roles for the connection.
    pub fn client_config_for(&self, peer: AgentId, roles: &[Role]) -> Arc<rustls::ClientConfig> {
        self.tls.client_config(self.id, peer, roles)
    }

    fn from_pair(pair: &rcgen::KeyPair) -> Result<Self, String> {
        let pkcs8 = pair.serialized_der();
        let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8).map_err(|e| e.to_string())?;
        let spki = rcgen::PublicKeyData::subject_public_key_info(pair);
        Ok(Self {
            transfer_key: transfer_key(&key)?,
            tls: tls::Credentials::new(pair)?,
            id: id_of(&spki),
            spki,
            key,
        })
    }
}

fn id_of(spki: &[u8]) -> AgentId {
    let mut id = [0; 32];
    id.copy_from_slice(digest::digest(&digest::SHA256, spki).as_ref());
    AgentId(id)
}

fn new_pair() -> rcgen::KeyPair {
    rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("the system gives random bytes")
}

/// The seed itself stays out of every other computation: ids are made under a key of their own.
fn transfer_key(key: &Ed25519KeyPair) -> Result<hmac::Key, String> {
    use aws_lc_rs::encoding::AsBigEndian as _;
    let seed = key.seed().map_err(|e| e.to_string())?;
    let seed = seed.as_be_bytes().map_err(|e| e.to_string())?;
    let root = hmac::Key::new(hmac::HMAC_SHA256, seed.as_ref());
    let derived = hmac::sign(&root, b"dropwire transfer id v1\n");
    Ok(hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()))
}

fn open_if_there(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The agent that the job list belongs to cannot be known without its key.
fn lost(state_dir: &Path) -> Fatal {
    let folder = shown(state_dir);
    Fatal::new(
        Exit::Data,
        format_args!("{KEY_FILE} is missing from {folder}, where the job list {JOB_LIST} belongs to it"),
    )
    .hint(ways_out(state_dir))
}

/// What has the key's name is none.
fn unusable(state_dir: &Path, is: &str) -> Fatal {
    let path = shown(&state_dir.join(KEY_FILE));
    Fatal::new(Exit::Data, format_args!("this agent's key {path} {is}")).hint(ways_out(state_dir))
}

/// A key beside a job list is never replaced by a new one, so the folder has to go with it.
fn ways_out(state_dir: &Path) -> String {
    let folder = shown(state_dir);
    format!(
        "put {KEY_FILE} back from a backup. If it is lost for good, move the folder {folder} away and run `dropwire init`: \
         that makes a new agent with a new id, which has to replace the old id in every peer's config; files in the \
         outboxes are sent as new ones, and what `send` had queued is in the folder that was moved, below `spool`"
    )
}

/// Asked of the open file, so that what was checked is what is read.
#[cfg(unix)]
fn check_private(file: &File, path: &Path) -> Result<(), Fatal> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = file
        .metadata()
        .map_err(|error| Fatal::io(format_args!("cannot look at {}", shown(path)), &error))?;
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(Fatal::new(
        Exit::Permission,
        format_args!(
            "others may read the private key {} (mode {mode:04o})",
            shown(path)
        ),
    )
    .hint(format_args!("chmod 600 '{}'", shown(path))))
}

/// Elsewhere the file inherits the access list of the user's own folder.
#[cfg(not(unix))]
fn check_private(_file: &File, _path: &Path) -> Result<(), Fatal> {
    Ok(())
}

const KEY_FILE: &str = "identity.key";
/// The job list, beside the key; it is never there before the key.
pub const JOB_LIST: &str = "jobs.db";
/// A PKCS#8 Ed25519 key takes some 150 bytes.
const MAX_KEY_FILE: u64 = 16 * 1024;
#[cfg(test)]
mod tests {
    use super::*;

    fn version() -> Version {
        Version {
            inode: 1,
            birth_ns: 2,
            size: 3,
            mtime_ns: 4,
            ctime_ns: 5,
            folder: false,
        }
    }

    #[test]
    fn transfer_ids_differ_by_each_field_and_by_the_key_only() {
        let identity = Identity::generate();
        let [peer, other] = [AgentId([1; 32]), AgentId([2; 32])];
        let id = identity.transfer_id(peer, [3; 16], b"p", &version(), 0);
        assert_eq!(
            id,
            identity.transfer_id(
                peer,
                [3; 16],
                b"p",
                &Version {
                    ctime_ns: 6,
                    ..version()
                },
                0
            )
        );
        for different in [
            identity.transfer_id(other, [3; 16], b"p", &version(), 0),
            identity.transfer_id(peer, [4; 16], b"p", &version(), 0),
            identity.transfer_id(peer, [3; 16], b"q", &version(), 0),
            identity.transfer_id(peer, [3; 16], b"p", &Version { size: 4, ..version() }, 0),
            identity.transfer_id(peer, [3; 16], b"p", &version(), 1),
            Identity::generate().transfer_id(peer, [3; 16], b"p", &version(), 0),
        ] {
            assert_ne!(id, different);
        }
    }

    #[test]
    fn a_key_survives_and_is_never_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Identity::load(dir.path()).unwrap().is_none());
        let first = Identity::load_or_create(dir.path()).unwrap();
        let again = Identity::load_or_create(dir.path()).unwrap();
        assert_eq!(first.id(), again.id());
        assert_eq!(
            first.transfer_id(first.id(), [0; 16], b"p", &version(), 0),
            again.transfer_id(first.id(), [0; 16], b"p", &version(), 0)
        );

        let path = dir.path().join(KEY_FILE);
        let ecdsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .unwrap()
            .serialize_pem();
        let cut = std::fs::read_to_string(&path).unwrap()[..60].to_owned();
        for bad in [ecdsa, cut, String::new(), "\u{0}".repeat(100_000)] {
            std::fs::write(&path, &bad).unwrap();
            let error = Identity::load_or_create(dir.path()).err().unwrap();
            assert_eq!(error.exit, Exit::Data, "{error}");
            assert!(error.hint.is_some());
            assert_eq!(
                std::fs::read_to_string(&path).unwrap(),
                bad,
                "a damaged key stays as it is"
            );
        }
        std::fs::write(&path, [0xff; 10]).unwrap();
        assert_eq!(Identity::load(dir.path()).err().unwrap().exit, Exit::Data);

        #[cfg(unix)]
        for (make, is) in [
            ("mkdir", "is a folder"),
            ("mkfifo", "is no ordinary file"),
            ("ln -s /nowhere/at/all", "is a link"),
        ] {
            std::fs::remove_file(&path).unwrap();
            let made = std::process::Command::new("sh")
                .args(["-c", &format!("{make} \"$0\"")])
                .arg(&path)
                .status();
            assert!(made.unwrap().success());
            for result in [
                Identity::load(dir.path()),
                Identity::load_or_create(dir.path()).map(Some),
            ] {
                let error = result.err().unwrap();
                assert_eq!(error.exit, Exit::Data);
                assert!(
                    error.message.contains("identity.key") && error.message.contains(is),
                    "{error}"
                );
                assert!(error.hint.unwrap().contains("backup"));
            }
            std::fs::remove_dir(&path)
                .or_else(|_| std::fs::remove_file(&path))
                .unwrap();
            std::fs::write(&path, "").unwrap();
        }
    }

    #[test]
    fn of_many_who_make_a_key_at_once_all_have_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let ids: Vec<AgentId> = std::thread::scope(|threads| {
            let make = || Identity::load_or_create(dir.path()).unwrap().id();
            let made: Vec<_> = (0..12).map(|_| threads.spawn(make)).collect();
            made.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        assert_eq!(dir.path().read_dir().unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_key_that_is_missing_beside_its_job_list_is_not_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let id = Identity::load_or_create(dir.path()).unwrap().id();
        let key = dir.path().join(KEY_FILE);
        let backup = std::fs::read(&key).unwrap();
        std::fs::write(dir.path().join(JOB_LIST), "").unwrap();
        std::fs::remove_file(&key).unwrap();
        for result in [
            Identity::load(dir.path()).map(|_| ()),
            Identity::load_or_create(dir.path()).map(|_| ()),
        ] {
            let error = result.unwrap_err();
            assert_eq!(error.exit, Exit::Data);
            let hint = error.hint.unwrap();
            assert!(hint.contains("backup") && hint.contains("new id"), "{hint}");
        }
        assert!(!key.exists());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::write(&key, backup).unwrap();
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
            assert_eq!(Identity::load(dir.path()).unwrap().unwrap().id(), id);
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let id = Identity::load_or_create(dir.path()).unwrap().id();
        let path = dir.path().join(KEY_FILE);
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
            0o600
        );
        for (mode, fine) in [
            (0o640, false),
            (0o604, false),
            (0o620, false),
            (0o400, true),
            (0o600, true),
        ] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            match Identity::load(dir.path()) {
                Ok(identity) => assert!(fine && identity.unwrap().id() == id, "{mode:o}"),
                Err(error) => {
                    assert!(!fine, "{mode:o}: {error}");
                    assert_eq!(error.exit, Exit::Permission);
                    assert!(error.hint.unwrap().starts_with("chmod 600 "));
                }
            }
        }
    }
}
