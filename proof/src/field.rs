//! The field: what surrounds an agent on other people's machines, for proofs to run in.
//!
//! Each [`Field`] is one such surrounding: a file system that tells less than ext4, a program that tidies up, a machine
//! that is short of something. [`Field::enter`] prepares it for the whole program, before there are threads.

mod pass_through;

use std::{
    fs::{self, File},
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{
    disk,
    harness::Agent,
    point::Ground,
    world::{Home, Side, wait},
};

/// One surrounding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Field {
    /// Something removes files out of `.dropwire/partial` while they arrive.
    Sweeper,
    /// Producers set the time of a file some milliseconds after they closed it.
    LateTimes,
    /// A second agent with a key of its own tries to use the same folders.
    SecondAgent,
    /// Whole-second times and inode numbers that are used again (`ext4 -I 128`).
    CoarseTimes,
    /// Listings without file types (`ext4 -O ^filetype`).
    NoFileTypes,
    /// bindfs: a FUSE file system over another folder.
    Bindfs,
    /// FUSE with other inode numbers at each lookup, which cannot sync folders.
    Unstable,
    /// The disk of the job list is full again and again.
    FullState,
    /// 128 descriptors.
    FewDescriptors,
    /// No more than 48 threads.
    FewThreads,
    /// Standard error is a pipe that nobody reads.
    BlockedLog,
}

/// Descriptors of an agent that is short of them.
const DESCRIPTORS: u32 = 128;
/// Threads of an agent that is short of them.
const THREADS: u32 = 48;
/// Bytes of a file system's image; only what is used takes room.
const SIZE: u64 = 2 << 30;
/// How long a mount may take to come about.
const PATIENCE: Duration = Duration::from_secs(10);
const THREADS_SOURCE: &str = include_str!("field/threads.c");

/// A prepared surrounding; what it mounted goes with it.
pub struct Entered {
    /// Which it is.
    pub field: Field,
    /// Where outboxes and inboxes have to be, if that matters.
    pub boxes: Option<PathBuf>,
    /// The folder that is shown there, where numbers and names of open files have to be asked of it. (Not below bindfs,
    /// which tells both, and gives a deleted file that is open another name beneath.)
    real: Option<PathBuf>,
    preload: Option<PathBuf>,
    session: Option<fuser::BackgroundSession>,
    program: Option<Child>,
    mount: Option<PathBuf>,
    folder: tempfile::TempDir,
}

impl Field {
    /// Prepares it; the error says why it cannot be had here.
    pub fn enter(self) -> Result<Entered, String> {
        let folder = tempfile::Builder::new().prefix("field-").tempdir();
        let mut entered = Entered {
            field: self,
            boxes: None,
            real: None,
            preload: None,
            session: None,
            program: None,
            mount: None,
            folder: folder.map_err(|e| e.to_string())?,
        };
        match self {
            Self::CoarseTimes => entered.mount_ext4(&["-I", "128"])?,
            Self::NoFileTypes => entered.mount_ext4(&["-O", "^filetype"])?,
            Self::Bindfs => entered.mount_bindfs()?,
            Self::Unstable => entered.mount_pass_through()?,
            Self::FewThreads => entered.compile_threads()?,
            _ => {}
        }
        Ok(entered)
    }
}

impl Entered {
    /// Where the file at `path` is seen past a file system that does not tell which file it is.
    pub fn beneath(&self, path: &Path) -> PathBuf {
        let shown = self.boxes.as_ref().zip(self.real.as_ref());
        let below = shown.and_then(|(boxes, real)| Some(real.join(path.strip_prefix(boxes).ok()?)));
        below.unwrap_or_else(|| path.into())
    }

    /// An agent that does not run yet, put into the surrounding.
    pub fn surround(&self, agent: &mut Agent) {
        if let Some(boxes) = &self.boxes {
            move_boxes(agent, boxes);
        }
        match self.field {
            Field::FewDescriptors => agent.descriptors = Some(DESCRIPTORS),
            Field::BlockedLog => agent.log_is_read = false,
            _ => {}
        }
        if let Some(library) = &self.preload {
            preload(agent, library);
            agent.env.push(("FIELD_THREADS".into(), THREADS.to_string()));
        }
    }

    fn ready(&mut self) -> Result<(PathBuf, PathBuf), String> {
        if !rustix::process::geteuid().is_root() {
            return Err("mounting needs root".into());
        }
        disk::mount_in_private().map_err(|e| format!("a mount name space: {e}"))?;
        let (real, mount) = (self.folder.path().join("real"), self.folder.path().join("mount"));
        for folder in [&real, &mount] {
            fs::create_dir(folder).map_err(|e| e.to_string())?;
        }
        self.mount = Some(mount.clone());
        self.boxes = Some(mount.clone());
        Ok((real, mount))
    }

    fn mount_ext4(&mut self, options: &[&str]) -> Result<(), String> {
        let (_, mount) = self.ready()?;
        let image = self.folder.path().join("image");
        File::create(&image)
            .and_then(|file| file.set_len(SIZE))
            .map_err(|e| e.to_string())?;
        run(Command::new("mkfs.ext4").args(["-qF"]).args(options).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount))
    }

    fn mount_bindfs(&mut self) -> Result<(), String> {
        let (real, mount) = self.ready()?;
        let mut command = Command::new("bindfs");
        command.arg("-f").arg(&real).arg(&mount).stdin(Stdio::null());
        // SAFETY: between fork and exec, one system call.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        self.program = Some(command.spawn().map_err(|e| format!("bindfs: {e}"))?);
        self.until_mounted(&mount)
    }

    fn mount_pass_through(&mut self) -> Result<(), String> {
        let (real, mount) = self.ready()?;
        let session = pass_through::mount(&real, &mount).map_err(|e| format!("FUSE: {e}"))?;
        self.session = Some(session);
        self.real = Some(real);
        self.until_mounted(&mount)
    }

    fn until_mounted(&self, mount: &Path) -> Result<(), String> {
        use std::os::unix::fs::MetadataExt as _;
        let device = |path: &Path| fs::metadata(path).map(|m| m.dev()).ok();
        let outside = device(self.folder.path());
        wait(PATIENCE, || (device(mount)? != outside?).then_some(()))
            .ok_or_else(|| format!("nothing was mounted within {PATIENCE:?}"))
    }

    fn compile_threads(&mut self) -> Result<(), String> {
        let source = self.folder.path().join("threads.c");
        let library = source.with_extension("so");
        fs::write(&source, THREADS_SOURCE).map_err(|e| e.to_string())?;
        run(Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source]))?;
        self.preload = Some(library);
        Ok(())
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        drop(self.session.take());
        if let Some(mount) = &self.mount {
            let _ = Command::new("umount").arg("-l").arg(mount).output();
        }
        if let Some(program) = &mut self.program {
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}

/// Both agents' folders lie there, each run's in folders of its own; job lists lie elsewhere.
pub struct There {
    boxes: PathBuf,
    worker: usize,
    runs: u64,
}

impl There {
    /// For the runs of one worker, below `boxes`.
    pub fn new(boxes: &Path, worker: usize) -> Self {
        Self {
            boxes: boxes.into(),
            worker,
            runs: 0,
        }
    }

    fn run(&self) -> PathBuf {
        self.boxes.join(format!("run-{}-{}", self.worker, self.runs))
    }
}

impl Ground for There {
    fn homes(&mut self, root: &Path, _: Side) -> io::Result<[Home; 2]> {
        self.runs += 1;
        let run = self.run();
        Ok(Side::BOTH.map(|side| Home::new(&run.join(side.name()), &root.join(side.name()))))
    }

    fn over(&mut self, keep: Option<&Path>) {
        let run = self.run();
        if let Some(keep) = keep {
            let copy = Command::new("cp")
                .arg("-a")
                .arg(&run)
                .arg(keep.join("boxes"))
                .status();
            drop(copy); // a finding can be read without it
        }
        let _ = fs::remove_dir_all(run); // only to make room for the next run
    }
}

/// Its outbox and inbox, which are empty yet, are in a new folder below `place` from now on.
fn move_boxes(agent: &mut Agent, place: &Path) {
    let boxes = place.join(agent.root.file_name().unwrap_or_default());
    agent.outbox = boxes.join("outbox");
    agent.inbox = boxes.join("inbox");
    agent.write_config();
    agent.run(&["init"]).exits(0);
}

/// Loads a library before the agent, beside those that were named before.
pub(crate) fn preload(agent: &mut Agent, library: &Path) {
    let library = library.display().to_string();
    match agent.env.iter_mut().find(|(name, _)| name == "LD_PRELOAD") {
        Some((_, libraries)) => *libraries = format!("{libraries}:{library}"),
        None => agent.env.push(("LD_PRELOAD".into(), library)),
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let ran = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    match ran.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&ran.stderr).trim().to_owned()),
    }
}
