//! Which passed files may be sent: none of dropwire's own, and none that an outbox sends by itself.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use crate::{
    config::Config,
    control::api::SendFile,
    error::{Exit, Fatal, shown},
    failpoints,
    fs::{confined, dev_ino::DevIno, file_system::FileSystem, own_folder},
    leaving::spool,
    outbox::Outbox,
    owner,
    receiver::Inbox,
};

/// What the archive is called, in dropwire's own folder in an outbox: what is in it may be sent again.
const ARCHIVE: &str = "sent";
/// Longest path that is told for people.
const MAX_PATH: usize = 16 * 1024;

/// The folders that the rules are about.
#[derive(Default)]
pub(crate) struct Folders {
    state: PathBuf,
    /// Those that are there.
    boxes: Vec<Place>,
    /// As the config names them, and without symlinks.
    outboxes: Vec<PathBuf>,
}

/// An outbox or inbox that is there.
struct Place {
    path: PathBuf,
    device: u64,
}

impl Folders {
    /// As they are now. Asks no disk: one of them may not answer.
    pub(crate) fn of(state: &Path, config: &Config, outboxes: &[Outbox], inbox: &Inbox) -> Self {
        let there: Vec<_> = outboxes.iter().filter_map(Outbox::place).collect();
        let mut paths = config.outbox_paths();
        paths.extend(there.iter().map(|(path, _)| path.clone()));
        let boxes = there.into_iter().chain(inbox.place());
        Self {
            state: state.to_owned(),
            boxes: boxes.map(|(path, device)| Place { path, device }).collect(),
            outboxes: paths,
        }
    }
}

/// The rules of one `send`.
pub(super) struct Rules {
    folders: Folders,
    /// Dropwire's own files on a device, sorted; each device is listed once, when the first file on it comes that has
    /// several names.
    own: Vec<(u64, Vec<u64>)>,
    /// The last folder that was checked, and whether it is the state folder or in that.
    last: Option<(PathBuf, bool)>,
}

impl Rules {
    /// Nothing is listed yet.
    pub(super) fn new(folders: Folders) -> Self {
        Self {
            folders,
            own: Vec::new(),
            last: None,
        }
    }

    /// Whether `file` may be sent, which was passed as what `named` says.
    pub(super) fn check(&mut self, named: &SendFile, file: &File) -> Result<(), Fatal> {
        let claimed = named.path.0.as_path();
        let failed = |error: io::Error| Fatal::io(format_args!("cannot take {}", shown(claimed)), &error);
        if !claimed.is_absolute() || claimed.as_os_str().len() > MAX_PATH {
            return Err(Fatal::new(
                Exit::Usage,
                "a file was passed without the path where it is",
            ));
        }
        let identity = system::readable(file).map_err(failed)?;
        let Some(identity) = identity else {
            let message = format!(
                "cannot take {}: it is no regular file, open for reading",
                shown(claimed)
            );
            return Err(Fatal::new(Exit::NoInput, message));
        };
        if (identity.device, identity.inode) != named.file && !failpoints::mutant("send-identity") {
            let message = format!("another file was passed as {}", shown(claimed));
            return Err(Fatal::new(Exit::Failed, message));
        }
        let real = system::path(file);
        let paths = [Some(claimed), real.as_deref()];
        for path in paths.into_iter().flatten() {
            if !failpoints::mutant("send-own-name") && (is_own_name(path) || self.is_in_state(path)) {
                return Err(is_own(claimed));
            }
        }
        let has_further_names = system::links(file).map_err(failed)? > 1;
        if has_further_names
            && !failpoints::mutant("send-own")
            && self.holds(identity, file).map_err(failed)?
        {
            return Err(is_own(claimed));
        }
        let outbox = paths
            .into_iter()
            .flatten()
            .find_map(|path| self.outbox_of(path, identity));
        match outbox {
            Some(outbox) => Err(Fatal::new(
                Exit::Usage,
                format_args!("{} is in the outbox {}", shown(claimed), shown(outbox)),
            )
            .hint(
                "what is in an outbox is sent from there by itself (`dropwire why FILE` says when and to whom); \
                 copy it elsewhere to send it to others",
            )),
            None => Ok(()),
        }
    }

    /// The outbox in which `path` leads to this very file, not counting what was archived there, nor what is
    /// in a folder that the outbox does not send from.
    fn outbox_of(&self, path: &Path, identity: DevIno) -> Option<&Path> {
        let holds = |outbox: &&PathBuf| {
            let Ok(below) = confined::below(outbox, path) else {
                return false;
            };
            let found = confined::root(outbox).and_then(|root| {
                let folder = confined::parent_through(&root, &below, owner::unclaimed)?;
                folder.symlink_metadata(confined::os_str(below.file_name())?)
            });
            found.is_ok_and(|found| DevIno::of_found(&found) == identity)
        };
        self.folders.outboxes.iter().find(holds).map(PathBuf::as_path)
    }

    /// Is one of the folders above it the state folder, by whatever way `path` leads there?
    fn is_in_state(&mut self, path: &Path) -> bool {
        let Some(folder) = path.parent() else {
            return false;
        };
        if let Some((last, is_in_state)) = &self.last
            && last == folder
        {
            return *is_in_state;
        }
        let identity = |folder: &Path| fs::metadata(folder).ok().as_ref().and_then(DevIno::of);
        // What cannot be read is not the agent's.
        let is_in_state = identity(&self.folders.state)
            .is_some_and(|state| folder.ancestors().any(|above| identity(above) == Some(state)));
        self.last = Some((folder.to_owned(), is_in_state));
        is_in_state
    }

    /// Is it one of dropwire's own files, under whatever name? Not a copy of the spool: whoever links to one may send it.
    fn holds(&mut self, DevIno { device, inode }: DevIno, file: &File) -> io::Result<bool> {
        let at = match self.own.iter().position(|(listed, _)| *listed == device) {
            Some(at) => at,
            None => {
                let on = FileSystem::of(file)?;
                self.own.push((device, self.folders.own(device, on)?));
                self.own.len() - 1
            }
        };
        Ok(self.own[at].1.binary_search(&inode).is_ok())
    }
}

impl Folders {
    /// The inodes of dropwire's own files on `device`, which is `on` such a file system; sorted.
    fn own(&self, device: u64, on: FileSystem) -> io::Result<Vec<u64>> {
        let mut inodes = Vec::new();
        list(&self.state, OsStr::new(spool::FOLDER), device, &mut inodes)?;
        for place in &self.boxes {
            // Only a disk that the file itself is on is asked: another may not answer.
            if place.device == device || on.spreads_devices() {
                let own = place.path.join(own_folder::NAME);
                list(&own, OsStr::new(ARCHIVE), device, &mut inodes)?;
            }
        }
        inodes.sort_unstable();
        Ok(inodes)
    }
}

/// Adds the inodes of the files in `folder`, at any depth, except what is in `except` directly below it.
fn list(folder: &Path, except: &OsStr, device: u64, inodes: &mut Vec<u64>) -> io::Result<()> {
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        let entries = match fs::read_dir(&at) {
            Err(error) if confined::is_absent(&error) => continue, // it went meanwhile
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let meta = match entry.metadata() {
                Err(error) if confined::is_absent(&error) => continue,
                meta => meta?,
            };
            let is_left_out = at == folder && entry.file_name() == except;
            if meta.is_dir() && !is_left_out {
                folders.push(entry.path());
            } else if meta.is_file() {
                let its = DevIno::of(&meta).filter(|its| its.device == device);
                inodes.extend(its.map(|its| its.inode));
            }
        }
    }
    Ok(())
}

/// Is a part of it one of dropwire's own folders, and not the archive in that?
fn is_own_name(path: &Path) -> bool {
    let mut parts = path.components().map(|part| part.as_os_str()).peekable();
    while let Some(part) = parts.next() {
        if part == own_folder::NAME && parts.peek().is_none_or(|next| *next != ARCHIVE) {
            return true;
        }
    }
    false
}

fn is_own(path: &Path) -> Fatal {
    Fatal::new(
        Exit::Permission,
        format_args!(
            "{} is one of dropwire's own files, which are never sent",
            shown(path)
        ),
    )
    .hint("only what is in `.dropwire/sent` of an outbox can be sent again")
}

#[cfg(unix)]
mod system {
    use std::{fs::File, io, os::unix::fs::MetadataExt, path::PathBuf};

    use rustix::fs::OFlags;

    use crate::fs::dev_ino::DevIno;

    /// The identity of a regular file that is open for reading.
    pub(super) fn readable(file: &File) -> io::Result<Option<DevIno>> {
        let flags = rustix::fs::fcntl_getfl(file)?;
        let mode = flags & OFlags::RWMODE;
        let reads = (mode == OFlags::RDONLY || mode == OFlags::RDWR) && !is_name_only(flags);
        let meta = file.metadata()?;
        Ok(DevIno::of(&meta).filter(|_| reads && meta.is_file()))
    }

    #[cfg(target_os = "linux")]
    fn is_name_only(flags: OFlags) -> bool {
        flags.contains(OFlags::PATH)
    }

    #[cfg(not(target_os = "linux"))]
    fn is_name_only(_: OFlags) -> bool {
        false
    }

    /// How many names it has.
    pub(super) fn links(file: &File) -> io::Result<u64> {
        Ok(file.metadata()?.nlink())
    }

    /// Where the system itself says that the open file is.
    #[cfg(target_os = "linux")]
    pub(super) fn path(file: &File) -> Option<PathBuf> {
        use std::os::fd::AsRawFd;
        std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
    }

    #[cfg(target_vendor = "apple")]
    pub(super) fn path(file: &File) -> Option<PathBuf> {
        use std::os::unix::ffi::OsStringExt;
        let path = rustix::fs::getpath(file).ok()?;
        Some(std::ffi::OsString::from_vec(path.into_bytes()).into())
    }

    #[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
    pub(super) fn path(_: &File) -> Option<PathBuf> {
        None
    }
}

/// Here nobody can pass a file.
#[cfg(not(unix))]
mod system {
    use std::{fs::File, io, path::PathBuf};

    use crate::fs::dev_ino::DevIno;

    pub(super) fn readable(_: &File) -> io::Result<Option<DevIno>> {
        Ok(None)
    }

    pub(super) fn links(_: &File) -> io::Result<u64> {
        Ok(1)
    }

    pub(super) fn path(_: &File) -> Option<PathBuf> {
        None
    }
}

#[cfg(all(test, unix))]
mod tests;
