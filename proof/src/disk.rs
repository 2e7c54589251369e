//! Loop-mounted file systems whose power can be cut: what was not on the disk then is gone.
//!
//! ext4 and xfs are told to stop at once without writing their log (FS_IOC_SHUTDOWN, NOLOGFLUSH), and mounted anew.
//! btrfs refuses that; there the image is copied as it is, and the copy mounted. Needs root and loop devices.

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
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
            Kind::Btrfs => "btrfs",
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
        let tool = format!("mkfs.{}", self.name());
        match Command::new(&tool).arg("-V").output() {
            Ok(_) => None,
            Err(e) => Some(format!("{tool}: {e}")),
        }
    }
}

/// A mounted image; unmounted and removed when dropped.
pub struct Disk {
    kind: Kind,
    image: PathBuf,
    mount: PathBuf,
}

impl Disk {
    /// Makes an empty file system in `folder` and mounts it there, both called `name`.
    pub fn make(kind: Kind, folder: &Path, name: &str) -> io::Result<Disk> {
        let disk = Disk {
            kind,
            image: folder.join(format!("{name}.img")),
            mount: folder.join(name),
        };
        File::create(&disk.image)?.set_len(SIZE)?;
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
                run(Command::new("cp")
                    .arg("--sparse=always")
                    .arg(&self.image)
                    .arg(&copy))?;
                self.unmount()?; // the old one writes to its own image, which goes
                fs::rename(&copy, &self.image)?;
            }
        }
        self.mount()
    }

    fn mount(&self) -> io::Result<()> {
        let options = match self.kind {
            Kind::Xfs => "loop",
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
