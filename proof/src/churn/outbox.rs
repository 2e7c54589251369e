//! One outbox that is churned: every step is done on the disk and noted, with what may and what has to arrive of it.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rustix::fs::{Mode, OFlags};

use crate::{
    harness::files::{self, OWN},
    soak::{
        chance::Chance,
        ledger::{Item, Ledger, unnumbered},
    },
};

/// Files of one folder; few, so that steps meet.
const NAMES: u64 = 5;
/// Folders of one folder.
const FOLDERS: u64 = 2;
/// Most writers that keep their file open over other steps.
const WRITERS: usize = 3;
/// The largest content that is made in one go.
const LARGEST: u64 = 300 << 10;
/// Past a step of coarse file system clocks: two writes of one size within one look the same in an outbox that keeps.
const CLOCK_STEP: Duration = Duration::from_millis(12);

/// An outbox and what its driver knows of it.
pub(super) struct Outbox {
    folder: PathBuf,
    /// That folder on the disk itself, where each file has one number and an open one is known by its name: a FUSE file
    /// system need not tell either.
    beneath: PathBuf,
    /// Where steps prepare what is renamed in; the same disk.
    aside: PathBuf,
    /// Where its files arrive, as the ledger calls it.
    place: String,
    keeps: bool,
    /// What was last put at each path. The agent may have disposed of them since.
    lying: BTreeMap<PathBuf, Lying>,
    writers: Vec<Writer>,
    /// A folder was moved: what arrives under the new path, and the old one under which it may have arrived instead.
    moved: BTreeMap<Item, Item>,
    written: u64,
}

/// What was last put at a path.
#[derive(Clone)]
struct Lying {
    bytes: Vec<u8>,
    /// Nobody was writing any more.
    settled: bool,
}

/// Somebody who takes their time: the file stays open over other steps, which may write to it too, move or delete it.
struct Writer {
    file: File,
    /// That file on the disk itself; no descriptor that the agent could take for a writer's.
    itself: File,
    /// Where it lay at first.
    path: PathBuf,
}

/// Of a file that a writer has open.
enum Whereabouts {
    At(PathBuf),
    /// The agent gave it back beside this path, which was taken, or is about to.
    Beside(PathBuf),
    /// Deleted or replaced.
    Nowhere,
}

/// What a step does; the weights make most of them meet a file.
const STEPS: [(u64, Step); 15] = [
    (16, Outbox::create),
    (12, Outbox::append),
    (10, Outbox::save),
    (10, Outbox::overwrite),
    (6, Outbox::truncate),
    (8, Outbox::rename),
    (6, Outbox::delete),
    (4, Outbox::chmod),
    (3, Outbox::make_folders),
    (3, Outbox::move_folder),
    (2, Outbox::remove_folder),
    (3, Outbox::swap_for_symlink),
    (5, Outbox::begin_writing),
    (6, Outbox::go_on_writing),
    (4, Outbox::end_writing),
];
type Step = fn(&mut Outbox, &mut Chance, &mut Ledger) -> io::Result<()>;

impl Outbox {
    /// `place`: see [`Item::place`].
    pub(super) fn new(folder: &Path, beneath: PathBuf, aside: &Path, place: &str, keeps: bool) -> Self {
        Self {
            folder: folder.into(),
            beneath,
            aside: aside.into(),
            place: place.into(),
            keeps,
            lying: BTreeMap::new(),
            writers: Vec::new(),
            moved: BTreeMap::new(),
            written: 0,
        }
    }

    /// One step. That a file or folder is not there (any more) is no error: the agent takes some away.
    pub(super) fn step(&mut self, chance: &mut Chance, ledger: &mut Ledger) -> io::Result<()> {
        let mut at = chance.below(STEPS.iter().map(|(weight, _)| weight).sum());
        let chosen = STEPS.iter().find(|(weight, _)| {
            let here = at < *weight;
            at = at.saturating_sub(*weight);
            here
        });
        match chosen.map(|(_, step)| step(self, chance, ledger)) {
            Some(Err(e)) if !is_absent(&e) => Err(e),
            _ => Ok(()),
        }
    }

    /// Everybody closes what they have open.
    pub(super) fn rest(&mut self, chance: &mut Chance, ledger: &mut Ledger) -> io::Result<()> {
        while !self.writers.is_empty() {
            self.end_writing(chance, ledger)?;
        }
        Ok(())
    }

    /// What the agent has left there and should not have.
    pub(super) fn left(&self) -> Vec<PathBuf> {
        if self.keeps {
            return Vec::new();
        }
        files::list(&self.folder)
    }

    /// Was it delivered under a path that its folder had before? The agent has the folder open when it takes a file
    /// away, and so may take it from there after a move.
    pub(super) fn arrived_before(&self, item: &Item, ledger: &Ledger) -> bool {
        let mut at = item;
        for _ in 0..self.moved.len() {
            match self.moved.get(at) {
                Some(before) if ledger.has_found(before) => return !self.keeps,
                Some(before) => at = before,
                None => return false,
            }
        }
        false
    }

    fn create(&mut self, chance: &mut Chance, ledger: &mut Ledger) -> io::Result<()> {
        let path = self.any_path(chance);
        let bytes = self.content(chance, &path);
        self.prepare(&path)?;
        let mut options = OpenOptions::new();
        self.change(path, options.create(true).truncate(true), ledger, |file| {
            file.write_all(&bytes)
        })
    }

    fn append(&mut self, chance: &mut Chance, ledger: &mut Ledger) -> io::Result<()> {
        let Some((path, _)) = self.known(chance) else {
            return Ok(());
        };
        let more = self.content(chance, &path);
        let mut options = OpenOptions::new();
        self.change(path, options.append(true), ledger, |file| file.write_all(&more))
    }

    /// Other bytes, of the same number, in place.
    fn overwrite(&mut self, chance: &mut Chance, ledger: &mut Ledger) -> io::Result<()> {
        let Some((path, old)) = self.known(chance) else {
            return Ok(());
        };
        if self.keeps {
            thread::sleep(CLOCK_STEP);
        }
        let mut bytes = self.content(chance, &path);
        bytes.resize(old.bytes.len(), b'=');
        self.change(path, &mut OpenOptions::new(), ledger, |file| {
            file.write_all(&bytes)
        })
    }

    fn truncate(&mut self, chance: &mut Chance, ledger: &mut Ledger) -> io::Result<()> {
        let Some((path, old)) = self.known(chance) else {
            return Ok(());
        };
        if self.keeps {
            thread::sleep(CLOCK_STEP);
        }
        let length = chance.below(old.bytes.len() as u64 + 1);
        self.change(path, &mut OpenOptions::new(), ledger, |file| file.set_len(length))
    }

    /// Opens a file, changes and closes it. Nothing is written through a link: what lies behind it is nobody's drop.
    fn change(
        &mut self,
        path: PathBuf,
        options: &mut OpenOptions,
        ledger: &mut Ledger,
        change: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.write(true).custom_flags(libc::O_NOFOLLOW);
        let was_held = self.is_held(&path);
        let mut file = options.open(self.folder.join(&path))?;
        change(&mut file)?;
        let bytes = fs::read(own_name(&file))?; // another writer may have put more there
        let settled = !was_held && !self.is_held(&path); // the agent may have taken it away, or given it back
        self.lies(path, Lying { bytes, settled }, ledger);
        Ok(())
    }

    /// As editors do: beside, then renamed over.
    fn save(&mut self, chance: &mut Chance, ledger: &mut Ledger) -> io::Result<()> {
        let path = self.any_path(chance);
        let bytes = self.content(chance, &path);
        self.prepare(&path)?;
        let beside = match chance.percent(50) {
            true => self.folder.join(path.with_extension("tmp")), // ignored by its name
            false => self.aside.join("saved"),
        };
        fs::write(&beside, &bytes)?;
        if let Err(e) = fs::rename(&beside, self.folder.join(&path)) {
            return fs::remove_file(&beside).and(Err(e));
        }
        self.lies(path, Lying { bytes, settled: true }, ledger);
        Ok(())
    }

    fn rename(&mut self, chance: &mut Chance, ledger: &mut Ledger) -> io::Result<()> {
        let Some((from, lying)) = self.known(chance) else {
            return Ok(());
        };
        let to = self.any_path(chance);
        if from == to {
            return Ok(());
        }
        self.prepare(&to)?;
        fs::rename(self.folder.join(&from), self.folder.join(&to))?;
        self.gone(&from, ledger);
        self.lies(to, lying, ledger);
        Ok(())
    }

    fn delete(&mut self, chance: &mut Chance, ledger: &mut Ledger) -> io::Result<()> {
        let path = self.any_path(chance);
        fs::remove_file(self.folder.join(&path))?;
        self.gone(&path, ledger);
        Ok(())
    }

    fn chmod(&mut self, chance: &mut Chance, _: &mut Ledger) -> io::Result<()> {
        let Some((path, _)) = self.known(chance) else {
            return Ok(());
        };
        let mode = [0o600, 0o640, 0o644, 0o755][chance.index(4)];
        fs::set_permissions(self.folder.join(path), fs::Permissions::from_mode(mode))
    }

    fn make_folders(&mut self, chance: &mut Chance, _: &mut Ledger) -> io::Result<()> {
        let path = self.any_path(chance);
        self.prepare(&path)
    }

    /// A folder under another name, with all that lies in it.
    fn move_folder(&mut self, chance: &mut Chance, ledger: &mut Ledger) -> io::Result<()> {
        let (from, to) = (any_folder(chance), any_folder(chance));
        if to.starts_with(&from) || from.starts_with(&to) {
            return Ok(());
        }
        self.prepare(&to)?;
        match fs::rename(self.folder.join(&from), self.folder.join(&to)) {
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => return Ok(()),
            moved => moved?,
        }
        for (path, lying) in self.below(&from) {
            let Ok(below) = path.strip_prefix(&from) else {
                continue;
            };
            let now = to.join(below);
            if fs::symlink_metadata(self.folder.join(&now)).is_err() {
                continue; // delivered under its old path
            }
            self.gone(&path, ledger);
            let (new, old) = (self.item(&now, &lying.bytes), self.item(&path, &lying.bytes));
            self.moved.insert(new, old);
            self.lies(now, lying, ledger);
        }
        Ok(())
    }

    fn remove_folder(&mut self, chance: &mut Chance, ledger: &mut Ledger) -> io::Result<()> {
        let folder = any_folder(chance);
        for (path, _) in self.below(&folder) {
            if fs::remove_file(self.folder.join(&path)).is_ok() {
                self.gone(&path, ledger);
            }
        }
        match fs::remove_dir(self.folder.join(&folder)) {
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            removed => removed,
        }
    }

    /// What lies behind the link is nobody's drop.
    fn swap_for_symlink(&mut self, chance: &mut Chance, ledger: &mut Ledger) -> io::Result<()> {
        let Some((path, _)) = self.known(chance) else {
            return Ok(());
        };
        let (secret, link) = (self.aside.join("secret"), self.aside.join("link"));
        fs::write(&secret, "never to be sent")?;
        let _ = fs::remove_file(&link); // of a step that found no folder
        std::os::unix::fs::symlink(&secret, &link)?;
        fs::rename(&link, self.folder.join(&path))?;
        self.gone(&path, ledger);
        Ok(())
    }

    fn begin_writing(&mut self, chance: &mut Chance, _: &mut Ledger) -> io::Result<()> {
        let Some((path, _)) = self.known(chance) else {
            return Ok(());
        };
        if self.writers.len() < WRITERS && !self.is_held(&path) {
            let itself = rustix::fs::open(
                self.beneath.join(&path),
                OFlags::PATH | OFlags::NOFOLLOW,
                Mode::empty(),
            )?;
            let file = File::options().append(true).open(self.folder.join(&path))?;
            let itself = itself.into();
            self.writers.push(Writer { file, itself, path });
        }
        Ok(())
    }

    fn go_on_writing(&mut self, chance: &mut Chance, ledger: &mut Ledger) -> io::Result<()> {
        if self.writers.is_empty() {
            return Ok(());
        }
        let index = chance.index(self.writers.len());
        let more = self.content(chance, &self.writers[index].path.clone());
        let writer = &mut self.writers[index];
        writer.file.write_all(&more)?;
        let bytes = fs::read(own_name(&writer.file))?;
        if let Whereabouts::At(path) = writer.whereabouts(&self.beneath)? {
            self.lies(
                path,
                Lying {
                    bytes,
                    settled: false,
                },
                ledger,
            );
        }
        Ok(())
    }

    fn end_writing(&mut self, chance: &mut Chance, ledger: &mut Ledger) -> io::Result<()> {
        if self.writers.is_empty() {
            return Ok(());
        }
        let writer = self.writers.swap_remove(chance.index(self.writers.len()));
        let bytes = fs::read(own_name(&writer.file))?;
        match writer.whereabouts(&self.beneath)? {
            Whereabouts::At(path) => {
                let known = self.lying.get(&path);
                // Opened and closed alone makes no other version.
                if known.is_none_or(|known| !known.settled || known.bytes != bytes) {
                    self.lies(path, Lying { bytes, settled: true }, ledger);
                }
            }
            Whereabouts::Beside(path) => ledger.allow(self.item(&path, &bytes)),
            Whereabouts::Nowhere => {}
        }
        Ok(())
    }

    /// This is at `path` now. Settled: it has to arrive, unless others follow.
    fn lies(&mut self, path: PathBuf, lying: Lying, ledger: &mut Ledger) {
        self.gone(&path, ledger);
        if lying.settled {
            let item = self.item(&path, &lying.bytes);
            ledger.expect(item);
        }
        self.lying.insert(path, lying);
    }

    /// What lay at `path` need not arrive any more.
    fn gone(&mut self, path: &Path, ledger: &mut Ledger) {
        if let Some(old) = self.lying.remove(path)
            && old.settled
        {
            ledger.excuse(&self.item(path, &old.bytes));
        }
    }

    fn is_held(&self, path: &Path) -> bool {
        let Ok(meta) = fs::symlink_metadata(self.beneath.join(path)) else {
            return false;
        };
        let same = |held: fs::Metadata| (held.dev(), held.ino()) == (meta.dev(), meta.ino());
        self.writers
            .iter()
            .any(|writer| writer.itself.metadata().is_ok_and(same))
    }

    fn item(&self, path: &Path, bytes: &[u8]) -> Item {
        Item {
            place: self.place.clone(),
            path: path.into(),
            digest: files::sha256_of(bytes),
        }
    }

    /// Bytes that tell where they belong and that nothing else has.
    fn content(&mut self, chance: &mut Chance, path: &Path) -> Vec<u8> {
        self.written += 1;
        let length = match chance.below(20) {
            0 => 0,
            1 => chance.magnitude(64 << 10, LARGEST),
            _ => chance.magnitude(1, 8 << 10),
        };
        let mut bytes =
            format!("{} version {} of {length} bytes\n", path.display(), self.written).into_bytes();
        bytes.extend(files::noise(chance.number(), length as usize));
        bytes
    }

    /// A path with what was put there last.
    fn known(&self, chance: &mut Chance) -> Option<(PathBuf, Lying)> {
        let chosen = self.lying.iter().nth(chance.index(self.lying.len()))?;
        Some((chosen.0.clone(), chosen.1.clone()))
    }

    fn below(&self, folder: &Path) -> Vec<(PathBuf, Lying)> {
        let below = self.lying.iter().filter(|(path, _)| path.starts_with(folder));
        below.map(|(path, lying)| (path.clone(), lying.clone())).collect()
    }

    fn any_path(&self, chance: &mut Chance) -> PathBuf {
        let name = format!("file{}.txt", chance.below(NAMES));
        match chance.percent(40) {
            true => name.into(),
            false => any_folder(chance).join(name),
        }
    }

    fn prepare(&self, path: &Path) -> io::Result<()> {
        path.parent()
            .map_or(Ok(()), |folder| fs::create_dir_all(self.folder.join(folder)))
    }
}

impl Writer {
    fn whereabouts(&self, beneath: &Path) -> io::Result<Whereabouts> {
        let place = fs::read_link(own_name(&self.itself))?;
        let Ok(at) = place.strip_prefix(beneath) else {
            return Ok(Whereabouts::Nowhere);
        };
        let is_there = fs::symlink_metadata(&place).is_ok(); // else its name says that it was deleted
        Ok(if at.starts_with(OWN) {
            Whereabouts::Beside(self.path.clone()) // about to be given back
        } else if !is_there {
            Whereabouts::Nowhere
        } else if unnumbered(at) != at {
            Whereabouts::Beside(unnumbered(at))
        } else {
            Whereabouts::At(at.into())
        })
    }
}

/// A name by which an open file is read, wherever it lies.
fn own_name(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

fn any_folder(chance: &mut Chance) -> PathBuf {
    let mut folder = PathBuf::from(format!("folder{}", chance.below(FOLDERS)));
    if chance.percent(40) {
        folder.push(format!("inner{}", chance.below(FOLDERS)));
    }
    folder
}

/// Or a link, which O_NOFOLLOW refuses.
fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ELOOP)
}
