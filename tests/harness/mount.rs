//! A small disk of its own, for what happens when it is full.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A tmpfs mounted over a folder; unmounted when dropped.
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts `mebibytes` at `path` (made if missing); the reason when that is not allowed here.
    pub fn mount(path: &Path, mebibytes: u32) -> Result<SmallDisk, String> {
        fs::create_dir_all(path).map_err(|e| e.to_string())?;
        let size = format!("size={mebibytes}m,mode=700");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "dropwire-test"])
            .arg(path)
            .output();
        match mount {
            Ok(ran) if ran.status.success() => Ok(SmallDisk { path: path.into() }),
            Ok(ran) => Err(String::from_utf8_lossy(&ran.stderr).trim().to_owned()),
            Err(e) => Err(format!("mount: {e}")),
        }
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        use std::io::Write as _;
        let mut file = fs::File::create(self.filler()).expect("a file that takes the room");
        // Ever smaller pieces, so that the last page goes too.
        for size in [1 << 20, 1 << 12, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
    }

    /// Gives the room back.
    pub fn free(&self) {
        fs::remove_file(self.filler()).expect("what fill() made");
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: an agent of a failing test may still have files open there.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}
