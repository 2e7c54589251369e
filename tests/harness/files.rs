//! Making files and comparing folders.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File, FileTimes},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use sha2::{Digest as _, Sha256};

/// Sets the time of the last change, with that of the last reading: older FUSE programs set none of them alone.
pub fn set_modified(file: &File, time: SystemTime) -> io::Result<()> {
    let times = FileTimes::new().set_modified(time);
    file.set_times(times.set_accessed(SystemTime::now()))
}

/// The folder that belongs to dropwire inside an outbox or inbox.
pub const OWN: &str = ".dropwire";

/// `size` bytes that look random and depend on `seed` alone.
pub fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// A file of `size` bytes that is quick to make: holes, with a block of noise in every `every` bytes and at the end.
pub fn sparse(path: &Path, size: u64, every: u64) -> io::Result<()> {
    const BLOCK: usize = 64 * 1024;
    let mut file = File::create_new(path)?;
    file.set_len(size)?;
    let starts = (0..size).step_by(every as usize);
    for start in starts.chain([size.saturating_sub(BLOCK as u64)]) {
        file.seek(SeekFrom::Start(start))?;
        let length = BLOCK.min((size - start) as usize);
        file.write_all(&noise(start + 1, length))?;
    }
    Ok(())
}

/// SHA-256 as `sha256sum` prints it.
pub fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// The SHA-256 of bytes.
pub fn sha256_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Every regular file below `root` but dropwire's own, by relative path.
pub fn list(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(root, &mut |path| {
        let relative = path.strip_prefix(root).expect("below root").to_path_buf();
        if !relative.starts_with(OWN) {
            found.push(relative);
        }
        true
    });
    found.sort();
    found
}

/// [`list`] with each file's digest.
pub fn digests(root: &Path) -> BTreeMap<PathBuf, String> {
    let digest = |path: &PathBuf| sha256(&root.join(path)).unwrap_or_else(|e| format!("unreadable: {e}"));
    list(root)
        .into_iter()
        .map(|path| (path.clone(), digest(&path)))
        .collect()
}

/// Regular files directly in `folder`, whole paths; none when it is not there.
pub fn files_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(|p| p.is_file()).collect()
}

/// Calls `each` for the regular files below `root`, folders in the order of their names, until it says false.
pub fn walk(root: &Path, each: &mut dyn FnMut(&Path) -> bool) -> bool {
    let mut entries: Vec<PathBuf> = fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .collect();
    entries.sort();
    for path in entries {
        let Ok(meta) = path.symlink_metadata() else {
            continue;
        }; // gone meanwhile
        let go_on = if meta.is_dir() {
            walk(&path, each)
        } else {
            !meta.is_file() || each(&path)
        };
        if !go_on {
            return false;
        }
    }
    true
}

/// Changes one byte of a file in place.
pub fn flip(path: &Path, offset: u64) {
    let mut file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("the file to damage");
    let mut byte = [0];
    file.seek(SeekFrom::Start(offset))
        .and_then(|_| file.read_exact(&mut byte))
        .expect("a byte there");
    byte[0] ^= 0xFF;
    file.seek(SeekFrom::Start(offset))
        .and_then(|_| file.write_all(&byte))
        .expect("to write it back");
    file.sync_all().expect("on disk");
}

/// Whether the first `length` bytes of both files are equal.
pub fn same_start(a: &Path, b: &Path, length: u64) -> bool {
    let start = |path: &Path| -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(length).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    matches!((start(a), start(b)), (Ok(a), Ok(b)) if a.len() as u64 == length && a == b)
}

/// A name from bytes, whatever they are.
pub fn name(bytes: &[u8]) -> &OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
