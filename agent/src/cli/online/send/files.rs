//! The files that `send` means, opened one by one with the rights of whoever runs it, and passed in groups.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

use cap_std::fs::Dir;

use super::super::absolute;
use crate::{
    control::{
        api::SendFile,
        passing::GROUP,
        wire::{LocalPath, Raw},
    },
    error::{Exit, Fatal, shown},
    fs::{
        confined,
        dev_ino::DevIno,
        lease::{self, Lease},
        own_folder,
        version::Version,
    },
};

/// How long a file has to rest where the system cannot tell who writes to it.
const QUIET: Duration = Duration::from_secs(2);

/// A file on its way to the agent.
#[derive(Debug)]
pub(super) struct Opened {
    /// What the agent is told.
    pub named: SendFile,
    /// Open for reading.
    pub file: Arc<File>,
    /// Nobody writes to it as long as this is whole; None: the system cannot tell.
    lease: Option<Lease>,
}

impl Opened {
    /// Whether somebody began to write to it; to be asked once it was copied.
    pub(super) fn check(&self) -> Result<(), Fatal> {
        match self.lease.as_ref().is_none_or(Lease::whole) {
            true => Ok(()),
            false => Err(busy(&self.named.path.0, "it changed while it was copied")),
        }
    }
}

/// All files of the things that were named, in their order; folders are gone through as they come.
#[derive(Debug)]
pub(super) struct Files {
    things: std::vec::IntoIter<PathBuf>,
    /// Counts the things.
    named: u32,
    /// The one that is gone through, and whether a file was found in it.
    thing: Option<(PathBuf, bool)>,
    /// Folders in it that are still to be looked into, and the names below which their files are sent.
    folders: Vec<(PathBuf, Vec<u8>)>,
    folder: Option<Listed>,
    /// How many things in folders were no files or folders.
    left_out: usize,
}

/// A folder, and what is in it.
#[derive(Debug)]
struct Listed {
    path: PathBuf,
    below: Vec<u8>,
    dir: Dir,
    names: std::vec::IntoIter<OsString>,
}

impl Files {
    /// Each of `things` has to be there.
    pub(super) fn new(things: &[PathBuf]) -> Result<Self, Fatal> {
        let mut absolutes = Vec::new();
        for thing in things {
            thing.symlink_metadata().map_err(|error| cannot(thing, &error))?;
            absolutes.push(absolute(thing)?);
        }
        Ok(Self {
            things: absolutes.into_iter(),
            named: 0,
            thing: None,
            folders: Vec::new(),
            folder: None,
            left_out: 0,
        })
    }

    /// How many symlinks, devices and the like in folders were left out.
    pub(super) fn left_out(&self) -> usize {
        self.left_out
    }

    /// The next files, at most [`GROUP`]; none: there are no more.
    pub(super) fn group(&mut self) -> Result<Vec<Opened>, Fatal> {
        let mut group = Vec::new();
        while group.len() < GROUP {
            match self.next()? {
                Some(opened) => group.push(opened),
                None => break,
            }
        }
        Ok(group)
    }

    fn next(&mut self) -> Result<Option<Opened>, Fatal> {
        loop {
            let opened = if let Some(listed) = &mut self.folder {
                match listed.names.next() {
                    Some(name) => self.entry(&name)?,
                    None => {
                        self.folder = None;
                        None
                    }
                }
            } else if let Some((path, below)) = self.folders.pop() {
                self.folder = Some(list(path, below)?);
                None
            } else {
                match self.thing.take() {
                    Some((path, false)) => {
                        let message = format!("there is no file in {}, so nothing was sent", shown(&path));
                        return Err(Fatal::new(Exit::Failed, message));
                    }
                    Some((_, true)) => self.named += 1,
                    None => {}
                }
                let Some(thing) = self.things.next() else {
                    return Ok(None);
                };
                self.thing(thing)?
            };
            if opened.is_some() {
                if let Some((_, found)) = &mut self.thing {
                    *found = true;
                }
                return Ok(opened);
            }
        }
    }

    /// Begins with the next thing: a file, or a folder. A symlink that is named itself is followed, under its own name.
    fn thing(&mut self, path: PathBuf) -> Result<Option<Opened>, Fatal> {
        let failed = |error: &io::Error| cannot(&path, error);
        let name = path.file_name().and_then(confined::bytes).map(<[u8]>::to_vec);
        let name = name.ok_or_else(|| failed(&invalid("it has no name under which it could be sent")))?;
        // Looked at before it is opened: to open a device or a pipe may do something to it.
        let meta = fs::metadata(&path).map_err(|error| failed(&error))?;
        self.thing = Some((path.clone(), false));
        if meta.is_dir() {
            self.folders.push((path, name));
            return Ok(None);
        }
        let opened = match meta.is_file() {
            true => open(&path),
            false => Err(invalid("it is neither a file nor a folder")),
        };
        let file = opened.map_err(|error| failed(&error))?;
        self.opened(path, name, file).map(Some)
    }

    /// What has that name in the folder that is gone through.
    fn entry(&mut self, name: &OsString) -> Result<Option<Opened>, Fatal> {
        let Some(listed) = &self.folder else {
            return Ok(None);
        };
        if name == own_folder::NAME {
            return Ok(None); // an outbox's own things are no content
        }
        let path = listed.path.join(name);
        let failed = |error: &io::Error| cannot(&path, error);
        let bytes = confined::bytes(name).ok_or_else(|| failed(&invalid("its name is not Unicode")))?;
        let below = [listed.below.as_slice(), b"/", bytes].concat();
        let meta = listed
            .dir
            .symlink_metadata(name)
            .map_err(|error| failed(&error))?;
        if meta.is_dir() {
            self.folders.push((path, below));
        } else if meta.is_file() {
            let file = confined::open_seen_file(&listed.dir, name, &meta).map_err(|error| failed(&error))?;
            return self.opened(path, below, file).map(Some);
        } else {
            self.left_out += 1;
        }
        Ok(None)
    }

    fn opened(&self, path: PathBuf, name: Vec<u8>, file: File) -> Result<Opened, Fatal> {
        let failed = |error: io::Error| cannot(&path, &error);
        let Some(looked) = lease::inspect(&file).map_err(failed)? else {
            return Err(busy(&path, "a program has it open for writing"));
        };
        if looked.lease.is_none() && !rest(&file).map_err(failed)? {
            return Err(busy(&path, "it is being written"));
        }
        let identity = identity(&file).map_err(|error| cannot(&path, &error))?;
        Ok(Opened {
            named: SendFile {
                named: self.named,
                name: Raw(name),
                path: LocalPath(path),
                file: identity,
            },
            file: Arc::new(file),
            lease: looked.lease,
        })
    }
}

/// Waits until the file has rested; false if it changes again and again.
fn rest(file: &File) -> io::Result<bool> {
    for _ in 0..RESTS {
        let (version, on) = Version::read(file)?;
        let changed = version.mtime_ns.max(version.ctime_ns);
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let now = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
        // A time in the future is another machine's clock, which says nothing.
        let age = Duration::from_nanos(u64::try_from(now.saturating_sub(changed)).unwrap_or(u64::MAX));
        match QUIET.max(on.least_rest()).checked_sub(age) {
            None => return Ok(true),
            Some(wait) => thread::sleep(wait),
        }
    }
    Ok(false)
}

/// How often a file may change while it is waited for.
const RESTS: u32 = 3;

fn list(path: PathBuf, below: Vec<u8>) -> Result<Listed, Fatal> {
    let failed = |error: io::Error| cannot(&path, &error);
    let dir = confined::root(&path).map_err(failed)?;
    let mut names = Vec::new();
    for entry in dir.entries().map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name());
    }
    names.sort_unstable();
    Ok(Listed {
        path,
        below,
        dir,
        names: names.into_iter(),
    })
}

/// Opens what was named, never waiting for it.
fn open(path: &Path) -> io::Result<File> {
    let mut options = fs::OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(invalid("it is not a file any more")),
    }
}

/// As it is passed; where files cannot be passed, zeros.
fn identity(file: &File) -> io::Result<(u64, u64)> {
    let its = DevIno::of(&file.metadata()?);
    Ok(its.map_or((0, 0), |its| (its.device, its.inode)))
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text.to_owned())
}

fn cannot(path: &Path, error: &io::Error) -> Fatal {
    let fatal = Fatal::io(format_args!("cannot send {}", shown(path)), error);
    match error.kind() {
        io::ErrorKind::InvalidInput => Fatal {
            exit: Exit::NoInput,
            ..fatal
        },
        _ => fatal,
    }
}

fn busy(path: &Path, why: &str) -> Fatal {
    let message = format!("cannot send {}: {why}", shown(path));
    Fatal::new(Exit::NotYet, message).hint("try again once it is closed")
}
