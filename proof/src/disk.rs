//! Loop-mounted file systems whose power can be cut: what was not on the disk then is gone.
//!
//! ext4 and xfs are told to stop at once without writing their log (FS_IOC_SHUTDOWN, NOLOGFLUSH), and mounted again.
//! btrfs refuses that; there the image is copied as it is, and the copy mounted. The images of btrfs lie on an xfs of
//! their own, where a copy shares the blocks and is of one moment: a copy made a piece at a time would mix the tree of
//! one commit with the roots of the next. Needs root and loop devices.

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::world::wait;

/// A file system to prove on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Kind {
    /// ext4.
    Ext4,
    /// xfs.
    Xfs,
    /// btrfs.
    Btrfs,
}

impl Kind {
    /// As mount calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// Why it cannot be proven here, if so.
    pub fn missing(self) -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("mounting needs root".into());
        }
        if !Path::new("/dev/loop-control").exists() {
            return Some("there are no loop devices".into());
        }
        let tools: &[&str] = match self {
            Self::Ext4 => &["mkfs.ext4"],
            Self::Xfs => &["mkfs.xfs"],
            Self::Btrfs => &["mkfs.btrfs", "mkfs.xfs"], // of the latter, what its images lie on
        };
        let missing = |tool: &&str| Command::new(tool).arg("-V").output().err();
        let why = |tool: &&str| missing(tool).map(|e| format!("{tool}: {e}"));
        tools.iter().find_map(why)
    }
}

/// Mounts made from now on are seen by this process and its children alone, and go with the last of them however they
/// end, with their loop devices. To be called before there are threads.
pub fn mount_in_private() -> io::Result<()> {
    // SAFETY: neither call touches memory but the strings it is given; the null pointers are what mount(2) wants here.
    let result = unsafe {
        match libc::unshare(libc::CLONE_NEWNS) {
            0 => libc::mount(
                std::ptr::null(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            ),
            failed => failed,
        }
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A folder in `base` for images and worlds. Images that a killed run left in such a one are removed.
pub fn folder_in(base: &Path) -> io::Result<tempfile::TempDir> {
    for folder in fs::read_dir(base)?.flatten() {
        let name = folder.file_name();
        let pid = name
            .to_str()
            .and_then(|n| n.strip_prefix(FOLDER)?.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let left = crate::harness::files::files_in(&folder.path());
            let images = left
                .iter()
                .filter(|path| path.extension().is_some_and(|e| e == "img"));
            images.for_each(|image| drop(fs::remove_file(image)));
        }
    }
    let prefix = format!("{FOLDER}{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir_in(base)
}

const FOLDER: &str = "powercut-";

/// A mounted image; unmounted and removed when dropped.
pub struct Disk {
    kind: Kind,
    image: PathBuf,
    mount: PathBuf,
}

impl Disk {
    /// Makes an empty file system in `folder` and mounts it there, both called `name`. Of btrfs, `folder` has to be on
    /// a [`Disk::for_images`].
    pub fn make(kind: Kind, folder: &Path, name: &str) -> io::Result<Self> {
        Self::of_size(kind, folder, name, SIZE)
    }

    /// An xfs in `folder` for other disks' images, large enough for `count` of them.
    pub fn for_images(folder: &Path, count: usize) -> io::Result<Self> {
        Self::of_size(Kind::Xfs, folder, "images", SIZE * (2 * count as u64 + 1))
    }

    fn of_size(kind: Kind, folder: &Path, name: &str, size: u64) -> io::Result<Self> {
        let disk = Self {
            kind,
            image: folder.join(format!("{name}.img")),
            mount: folder.join(name),
        };
        File::create(&disk.image)?.set_len(size)?;
        let quiet = if kind == Kind::Ext4 { "-qF" } else { "-qf" };
        run(Command::new(format!("mkfs.{}", kind.name()))
            .arg(quiet)
            .arg(&disk.image))?;
        fs::create_dir_all(&disk.mount)?;
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Everything so far survives.
    pub fn sync(&self) -> io::Result<()> {
        rustix::fs::syncfs(File::open(&self.mount)?)?;
        Ok(())
    }

    /// The power goes, and comes again. Nobody may have anything open there.
    pub fn cut(&self) -> io::Result<()> {
        match self.kind {
            Kind::Ext4 | Kind::Xfs => {
                shut_down(&File::open(&self.mount)?)?;
                self.unmount()?;
            }
            Kind::Btrfs => {
                let copy = self.image.with_extension("copy");
                rustix::fs::ioctl_ficlone(File::create(&copy)?, File::open(&self.image)?)?;
                self.unmount()?; // the old one writes to its own image, which goes
                fs::rename(&copy, &self.image)?;
            }
        }
        self.mount()
    }

    fn mount(&self) -> io::Result<()> {
        let options = match self.kind {
            Kind::Xfs => "loop,discard", // what is removed there takes no room
            Kind::Ext4 | Kind::Btrfs => "loop,commit=300", // nothing becomes durable by waiting
        };
        run(Command::new("mount")
            .args(["-t", self.kind.name(), "-o", options])
            .arg(&self.image)
            .arg(&self.mount))
    }

    /// A program that another thread starts just now holds our descriptors until its exec: busy is tried again.
    fn unmount(&self) -> io::Result<()> {
        let mut last = Ok(());
        let unmounted = wait(UNMOUNTS_WITHIN, || {
            last = run(Command::new("umount").arg(&self.mount));
            last.is_ok().then_some(())
        });
        unmounted.map_or(last, Ok)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.mount).output();
        let _ = fs::remove_file(&self.image);
    }
}

/// How long an unmount may find its disk busy.
const UNMOUNTS_WITHIN: Duration = Duration::from_secs(10);

/// Room for a few large files, and for the least that xfs takes.
const SIZE: u64 = 512 << 20;

/// FS_IOC_SHUTDOWN: `_IOR('X', 125, __u32)`.
const SHUTDOWN: libc::c_ulong = 0x8004_587D;
const NOLOGFLUSH: u32 = 2;

fn shut_down(folder: &File) -> io::Result<()> {
    let how = NOLOGFLUSH;
    // SAFETY: the call reads the number that it is given a pointer to.
    let result = unsafe { libc::ioctl(folder.as_raw_fd(), SHUTDOWN, &raw const how) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn run(command: &mut Command) -> io::Result<()> {
    let ran = command.output()?;
    if ran.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ran.stderr).trim().to_owned();
    Err(io::Error::other(format!("{command:?}: {said}")))
}
