//! What is sent: random bytes, made once, and hard links to them for each run. And pages: memory that the system has not
//! handed out before is dear on many virtual machines, so it is taken before it counts.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

/// Of each small file of `small`.
pub const SMALL: usize = 4096;

/// Made files, by what they are.
pub struct Sources {
    folder: PathBuf,
    filler: Filler,
}

impl Sources {
    /// In `folder`, which has to be on the disk that is measured.
    pub fn new(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        Ok(Self {
            folder: folder.into(),
            filler: Filler::new(&folder.join("filler"))?,
        })
    }

    /// One file of `size` bytes.
    pub fn large(&self, size: u64) -> io::Result<PathBuf> {
        let path = self.folder.join(format!("large-{size}"));
        if !path.exists() {
            let mut noise = Noise(size | 1);
            let mut file = File::create(&path)?;
            let mut left = size;
            while left > 0 {
                let piece = noise.bytes(left.min(1 << 20) as usize);
                file.write_all(&piece)?;
                left -= piece.len() as u64;
            }
            file.sync_all()?;
        }
        Ok(path)
    }

    /// A folder of `count` files of [`SMALL`] bytes.
    pub fn small(&self, count: usize) -> io::Result<PathBuf> {
        let path = self.folder.join(format!("small-{count}"));
        if !path.exists() {
            fs::create_dir(&path)?;
            let mut noise = Noise(count as u64 | 1);
            for n in 0..count {
                fs::write(path.join(format!("{n:06}")), noise.bytes(SMALL))?;
            }
            sync(&path)?;
        }
        Ok(path)
    }

    /// Takes the memory that nobody uses for the page cache, except for a rest.
    pub fn fill_memory(&self) -> io::Result<()> {
        self.filler.fill()
    }
}

/// `source` as `to`, a file or a folder of files: hard links, so that nothing is copied and the source stays; on disk.
pub fn link(source: &Path, to: &Path) -> io::Result<()> {
    if source.is_dir() {
        fs::create_dir(to)?;
        for entry in fs::read_dir(source)? {
            let entry = entry?;
            fs::hard_link(entry.path(), to.join(entry.file_name()))?;
        }
    } else {
        fs::hard_link(source, to)?;
    }
    sync(to)
}

/// All of the file system that `path` is on is on disk.
pub fn sync(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(path)?)?)
}

/// Whether `arrived` (a file, or a folder of files) has the names and sizes of `source`; with `bytes`, its bytes too.
pub fn same(source: &Path, arrived: &Path, bytes: bool) -> io::Result<bool> {
    if !source.is_dir() {
        let length = |path| fs::metadata(path).map(|m| m.len());
        return Ok(length(source)? == length(arrived)? && (!bytes || same_bytes(source, arrived)?));
    }
    for entry in fs::read_dir(source)? {
        let name = entry?.file_name();
        if !same(&source.join(&name), &arrived.join(&name), bytes)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn same_bytes(a: &Path, b: &Path) -> io::Result<bool> {
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let length = a.read(&mut left)?;
        if length == 0 {
            return Ok(b.read(&mut right)? == 0);
        }
        b.read_exact(&mut right[..length])?;
        if left[..length] != right[..length] {
            return Ok(false);
        }
    }
}

/// xorshift64: not compressible, quick to make, the same each time.
pub struct Noise(pub u64);

impl Noise {
    /// The next 64 bits.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.number().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

/// An endless hole of a file: reading on in it turns free memory into page cache.
struct Filler {
    hole: File,
}

impl Filler {
    /// Left free, for what runs.
    const REST: u64 = 512 << 20;
    const SIZE: u64 = 8 << 40;

    fn new(path: &Path) -> io::Result<Self> {
        let hole = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        hole.set_len(Self::SIZE)?;
        Ok(Self { hole })
    }

    fn fill(&self) -> io::Result<()> {
        let memory = fs::read_to_string("/proc/meminfo")?;
        let mut left = free_bytes(&memory).unwrap_or(0).saturating_sub(Self::REST);
        let mut buffer = vec![0; 1 << 20];
        while left > 0 {
            let length = (&self.hole).read(&mut buffer)? as u64;
            if length == 0 {
                (&self.hole).seek(SeekFrom::Start(0))?;
            }
            left = left.saturating_sub(length);
        }
        Ok(())
    }
}

fn free_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemFree:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_linked_and_compared() {
        let folder = tempfile::tempdir().unwrap();
        let sources = Sources::new(folder.path()).unwrap();
        let (large, small) = (sources.large(3_000_001).unwrap(), sources.small(3).unwrap());
        for (source, name) in [(&large, "a"), (&small, "b")] {
            let copy = folder.path().join(name);
            link(source, &copy).unwrap();
            assert!(same(source, &copy, true).unwrap());
        }
        fs::remove_file(folder.path().join("b/000001")).unwrap();
        assert!(same(&small, &folder.path().join("b"), false).is_err());
        fs::write(folder.path().join("b/000001"), [1; SMALL]).unwrap();
        assert!(same(&small, &folder.path().join("b"), false).unwrap());
        assert!(!same(&small, &folder.path().join("b"), true).unwrap());
    }

    #[test]
    fn free_memory_is_read_from_the_kernels_text() {
        let text = "MemTotal:  24000 kB\nMemFree:     17 kB\nMemAvailable: 4 kB\n";
        assert_eq!(free_bytes(text), Some(17 * 1024));
        assert_eq!(free_bytes("MemTotal: 3 kB"), None);
    }
}
