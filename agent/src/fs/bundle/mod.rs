//! A whole folder as one delivery: what of it is sent, which version it is, and its bytes as one stream.
//!
//! The stream is [`dropwire_protocol::bundle`]'s. Neither it nor the list of what it holds is ever kept: both come from
//! walking the folder, and the listing's digest, which stands in the item's [`Version`], says that a walk met the same
//! files as the one before.

mod stream;
mod walk;

use cap_std::fs::Dir;
use dropwire_protocol::{
    RemotePath, RunningDigest,
    bundle::{END, Entry},
    name::escape,
};

pub use stream::{Halt, digest, read};
pub use walk::{Kind, Step, is_litter, walk};

use crate::{
    error::brief,
    fs::{confined, lease, version::Version},
};

/// Most entries of which [`Listing::left_out`] tells.
const TOLD: usize = 16;

/// Why a folder cannot be sent as it is. Texts name what is in the way, by its path below the folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// It changed while it was walked.
    Changed,
    /// Somebody has this open for writing, or wrote to it a moment ago.
    Writer(String),
    /// It holds what keeps it back.
    Held(String),
}

/// What a folder holds, as of one walk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listing {
    /// Bytes of the stream.
    pub size: u64,
    /// Regular files in it, litter aside.
    pub files: u64,
    /// What is not sent though it lies in it, and why; the first few.
    pub left_out: Vec<(RemotePath, &'static str)>,
    /// Over every path and identity.
    digest: [u8; 32],
    /// Over all that and the ctimes, except for that of the folder itself, which changes with its name.
    ctimes: [u8; 32],
    newest_ns: i64,
}

/// Walks `folder` and lists it. With `ask`, the kernel is asked of each file whether somebody has it open for writing.
/// `inspect` sees every step, and may end the walk.
pub fn list(
    folder: &Dir,
    ask: bool,
    inspect: &mut dyn FnMut(&Step<'_>) -> Result<(), Trouble>,
) -> Result<Listing, Trouble> {
    let (mut size, mut files, mut left_out, mut newest_ns) = (END.len() as u64, 0, Vec::new(), i64::MIN);
    let (mut identity, mut ctimes) = (RunningDigest::default(), RunningDigest::default());
    walk(folder, &mut |step: &Step<'_>| {
        inspect(step)?;
        let Some(node) = step.node() else {
            if let Kind::Other(what) = step.kind
                && left_out.len() < TOLD
            {
                left_out.extend(step.path.clone().map(|path| (path, what)));
            }
            return Ok(());
        };
        let version = &step.version;
        let mut fields = Vec::new();
        let path = step.path.as_ref().map_or(&b""[..], |path| path.as_bytes());
        fields.extend((path.len() as u64).to_be_bytes());
        fields.extend(path);
        if step.kind == Kind::File {
            if ask {
                step.ask()?;
            }
            files += 1;
            fields.extend(version.identity_bytes());
        } else {
            // Its size and time change with what is left out, too.
            fields.extend(version.inode.to_be_bytes());
            fields.extend(version.birth_ns.to_be_bytes());
        }
        identity.update(&fields);
        if step.path.is_some() {
            fields.extend(version.ctime_ns.to_be_bytes());
        }
        ctimes.update(&fields);
        newest_ns = newest_ns.max(version.ctime_ns);
        let entry = Entry {
            path: step.path.clone(),
            node,
        };
        size = entry.length().saturating_add(size);
        Ok::<(), Trouble>(())
    })?;
    if i64::try_from(size).is_err() {
        return Err(Trouble::Held("it is too large".into()));
    }
    Ok(Listing {
        size,
        files,
        left_out,
        digest: identity.value().0,
        ctimes: ctimes.value().0,
        newest_ns,
    })
}

/// [`list`] without asking, and of all that may be sent.
pub fn list_quickly(folder: &Dir) -> Result<Listing, Trouble> {
    list(folder, false, &mut |_| Ok(()))
}

impl Listing {
    /// Which version of the folder this is: 192 bits of the digest in place of inode, birth and mtime, and the newest
    /// ctime.
    pub fn version(&self) -> Version {
        let (parts, _) = self.digest.as_chunks();
        Version {
            inode: u64::from_be_bytes(parts[0]),
            birth_ns: i64::from_be_bytes(parts[1]),
            mtime_ns: i64::from_be_bytes(parts[2]),
            size: self.size,
            ctime_ns: self.newest_ns,
            folder: true,
        }
    }

    /// Nothing in the folder was changed between the two walks (its own name aside).
    pub fn is_undisturbed(&self, since: &Self) -> bool {
        (self.size, self.digest, self.ctimes) == (since.size, since.digest, since.ctimes)
    }

    /// Tells states of the folder apart more finely than its version: for what may only be used while nothing
    /// changes.
    pub fn change_stamp(&self) -> i64 {
        let (parts, _) = self.ctimes.as_chunks();
        i64::from_be_bytes(parts[0])
    }
}

impl Step<'_> {
    /// Its path below the folder, for people.
    pub fn shown(&self) -> String {
        self.path
            .as_ref()
            .map_or_else(|| ".".into(), |path| brief(&path.to_string()))
    }

    /// It can be read, is what the walk saw, and nobody has it open for writing.
    fn ask(&self) -> Result<(), Trouble> {
        let file = self.open()?;
        let Some(looked) = lease::inspect(&file).map_err(|e| self.unreadable(&e))? else {
            return Err(Trouble::Writer(self.shown()));
        };
        let undisturbed = match &looked.lease {
            Some(lease) => lease.whole(),
            None => !looked.version.is_fresh(std::time::SystemTime::now()),
        };
        if undisturbed && looked.version == self.version {
            Ok(())
        } else {
            Err(Trouble::Writer(self.shown()))
        }
    }

    fn open(&self) -> Result<std::fs::File, Trouble> {
        confined::open_file(self.parent, self.name).map_err(|e| match e.kind() {
            std::io::ErrorKind::WouldBlock => Trouble::Writer(self.shown()),
            _ if confined::is_absent(&e) => Trouble::Changed,
            _ => self.unreadable(&e),
        })
    }

    fn unreadable(&self, error: &std::io::Error) -> Trouble {
        Trouble::Held(format!("{} in it cannot be read: {error}", self.shown()))
    }
}

/// For a path that is none that can be sent.
fn unsendable(path: &[u8], reason: &dyn std::fmt::Display) -> Trouble {
    Trouble::Held(format!("{} in it cannot be sent: {reason}", brief(&escape(path))))
}

#[cfg(test)]
mod tests;
