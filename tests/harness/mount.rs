//! A small disk of its own, for what happens when it is full.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A small file system mounted over a folder; unmounted when dropped.
pub struct SmallDisk(Mounted);

impl SmallDisk {
    /// Mounts a tmpfs of so many `mebibytes` at `path` (made if missing); the reason when that is not allowed here.
    pub fn mount(path: &Path, mebibytes: u32) -> Result<Self, String> {
        let size = format!("size={mebibytes}m,mode=700");
        let args = [
            "-t",
            "tmpfs",
            "-o",
            &size,
            "dropwire-test",
            &path.to_string_lossy(),
        ];
        Mounted::by("mount", &args, path).map(SmallDisk)
    }

    /// An ext4 that keeps a part for root, as it does by default.
    pub fn ext4(path: &Path) -> Result<Self, String> {
        fs::create_dir_all(path).map_err(|e| e.to_string())?;
        Mounted::ext4(&["-m", "20"], path).map(SmallDisk)
    }

    /// An XFS, which makes room for further files' names in steps.
    pub fn xfs(path: &Path) -> Result<Self, String> {
        fs::create_dir_all(path).map_err(|e| e.to_string())?;
        Mounted::image_of(320, "mkfs.xfs", &["-q"], path).map(SmallDisk)
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
        self.0.path.join("filler")
    }
}

/// A file system mounted on a folder by some command; unmounted when dropped.
pub struct Mounted {
    path: PathBuf,
}

impl Mounted {
    /// Runs `program` with `args`, which mounts something at `path`; the reason when that is not possible here.
    pub fn by(program: &str, args: &[&str], path: &Path) -> Result<Self, String> {
        fs::create_dir_all(path).map_err(|e| e.to_string())?;
        run(program, args)?;
        Ok(Self { path: path.into() })
    }

    /// A small ext4 file system made with `options`, in a file beside `path`.
    pub fn ext4(options: &[&str], path: &Path) -> Result<Self, String> {
        Self::image("mkfs.ext4", &[&["-q", "-F"], options].concat(), path)
    }

    /// A small file system that `make` makes with `options` in a file beside `path`.
    pub fn image(make: &str, options: &[&str], path: &Path) -> Result<Self, String> {
        Self::image_of(64, make, options, path)
    }

    fn image_of(mebibytes: u64, make: &str, options: &[&str], path: &Path) -> Result<Self, String> {
        let image = path.with_extension("img");
        let file = fs::File::create(&image).map_err(|e| e.to_string())?;
        file.set_len(mebibytes << 20).map_err(|e| e.to_string())?;
        let (image, at) = (image.to_string_lossy(), path.to_string_lossy());
        run(make, &[options, &[&image]].concat())?;
        Self::by("mount", &["-o", "loop", &image, &at], path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: an agent of a failing test may still have files open there.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    match Command::new(program).args(args).output() {
        Ok(ran) if ran.status.success() => Ok(()),
        Ok(ran) => Err(format!(
            "{program}: {}",
            String::from_utf8_lossy(&ran.stderr).trim()
        )),
        Err(e) => Err(format!("{program}: {e}")),
    }
}
