//! A whole folder as one stream of bytes: what travels, is hashed and stands in the receipt when a folder is one
//! delivery. It is a tar archive of which there is exactly one for a folder's content (PROTOCOL.md, 'Whole folders').
//!
//! Only this one form is read: what a [`Reader`] takes is encoded again and has to come out the same. So links,
//! devices, extensions and odd numbers need no judging, and neither do names: they are [`RemotePath`]s, each below a
//! folder that came before it, in rising order, none twice.

use std::io::{self, Read, Seek};

use crate::{PathError, RemotePath};

/// Bytes of a tar block: every header, and every file's padded bytes, are a multiple of it.
pub const BLOCK: usize = 512;
/// What ends a stream: two empty blocks.
pub const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];
/// Most entries of one stream, the folder itself included.
pub const MAX_ENTRIES: u64 = 1_000_000;

/// One file or folder in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Below the folder that is sent; None: that folder itself, which comes first.
    pub path: Option<RemotePath>,
    /// What it is.
    pub node: Node,
}

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Node {
    /// A folder; carries no time.
    Folder,
    /// A regular file, whose bytes follow its header.
    File {
        /// Bytes.
        size: u64,
        /// Modification time in whole seconds since 1970.
        mtime: i64,
    },
}

/// Why bytes are no such stream.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the texts say it
pub enum BundleError {
    #[error("it ends before its end")]
    Short(#[source] io::Error),
    #[error("bytes follow its end")]
    Long,
    #[error("an entry is not written the one way it may be")]
    NotCanonical,
    #[error("a name in it cannot be taken: {0}")]
    Name(#[from] PathError),
    #[error("an entry comes twice, out of order, or before its folder")]
    Order,
    #[error("it holds more than {MAX_ENTRIES} entries")]
    TooMany,
    #[error("it does not begin with the folder itself")]
    NoFolder,
}

impl Entry {
    /// Its header: one block, or more where the name needs it.
    pub fn header(&self) -> Vec<u8> {
        let mut name = b"./".to_vec();
        if let Some(path) = &self.path {
            name.extend_from_slice(path.as_bytes());
            if self.node == Node::Folder {
                name.push(b'/');
            }
        }
        let mut header = Vec::with_capacity(BLOCK);
        if name.len() > NAME {
            let length = name.len() as u64 + 1;
            header.extend_from_slice(&block(LONG_NAME, b"0000644", length, 0, b'L'));
            header.extend_from_slice(&name);
            header.resize(header.len().next_multiple_of(BLOCK), 0);
            if name.len().is_multiple_of(BLOCK) {
                header.resize(header.len() + BLOCK, 0); // for the NUL that ends it
            }
        }
        header.extend_from_slice(&match self.node {
            Node::Folder => block(&name, b"0000755", 0, 0, b'5'),
            Node::File { size, mtime } => block(&name, b"0000644", size, mtime, b'0'),
        });
        header
    }

    /// Bytes of header, content and padding.
    pub fn length(&self) -> u64 {
        let content = match self.node {
            Node::Folder => 0,
            Node::File { size, .. } => size,
        };
        (self.header().len() as u64)
            .saturating_add(content)
            .saturating_add(padding(content) as u64)
    }
}

/// How many zeros follow a content of `size` bytes.
pub fn padding(size: u64) -> usize {
    let over = (size % BLOCK as u64) as usize; // below a block
    (BLOCK - over) % BLOCK
}

/// Reads a stream: [`Reader::next`] gives an entry, then [`Read`] its content, which has to be read to its end before
/// the next. Holds one path and one block, whatever comes.
pub struct Reader<R> {
    inner: R,
    /// Bytes of content not read yet, and of padding behind it.
    left: u64,
    padding: usize,
    entries: u64,
    most: u64,
    /// The folders that the last entry lies in, or is, from the top down: each with its last child's name.
    within: Vec<Vec<u8>>,
}

impl<R: Read> Reader<R> {
    /// Of the stream that begins in `inner`.
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            left: 0,
            padding: 0,
            entries: 0,
            most: MAX_ENTRIES,
            within: Vec::new(),
        }
    }

    /// The next entry; None once the stream has ended as it should, and nothing follows.
    #[allow(clippy::should_implement_trait)] // an iterator would go on after an error
    pub fn next(&mut self) -> Result<Option<Entry>, BundleError> {
        if self.left > 0 {
            return Err(BundleError::Order); // its content was not read
        }
        let mut zeros = [0; BLOCK];
        let zeros = &mut zeros[..self.padding];
        self.inner.read_exact(zeros).map_err(BundleError::Short)?;
        if zeros.iter().any(|b| *b != 0) {
            return Err(BundleError::NotCanonical);
        }
        self.padding = 0;
        let mut read = self.block()?.to_vec();
        if read.iter().all(|b| *b == 0) {
            return self.ended();
        }
        self.entries += 1;
        if self.entries > self.most {
            return Err(BundleError::TooMany);
        }
        let long = read.get(TYPE) == Some(&b'L');
        if long {
            let length = number(&read, SIZE).filter(|n| *n <= MOST_NAME);
            let length = length.and_then(|n| usize::try_from(n).ok());
            let length = length.ok_or(BundleError::NotCanonical)?;
            for _ in 0..length.div_ceil(BLOCK) + 1 {
                let next = self.block()?;
                read.extend_from_slice(&next);
            }
        }
        let entry = decode(&read, long)?;
        if entry.header() != read {
            return Err(BundleError::NotCanonical);
        }
        self.place(&entry)?;
        if let Node::File { size, .. } = entry.node {
            (self.left, self.padding) = (size, padding(size));
        }
        Ok(Some(entry))
    }

    /// Gives back what is read from.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// Below a folder that was opened by an entry before, and behind its last child.
    fn place(&mut self, entry: &Entry) -> Result<(), BundleError> {
        let Some(path) = &entry.path else {
            if self.entries != 1 || entry.node != Node::Folder {
                return Err(BundleError::Order);
            }
            self.within.push(Vec::new());
            return Ok(());
        };
        if self.entries == 1 {
            return Err(BundleError::NoFolder);
        }
        let depth = path.components().count();
        let above = path.components().take(depth - 1);
        let folders = self.within.iter().take(depth - 1);
        // The last child of a folder on the way is the next folder on the way, as long as that is open.
        if self.within.len() < depth || folders.zip(above).any(|(last, name)| last != name) {
            return Err(BundleError::Order);
        }
        self.within.truncate(depth);
        match self.within.last_mut() {
            Some(last) if last.as_slice() < path.file_name() => *last = path.file_name().to_vec(),
            _ => return Err(BundleError::Order),
        }
        if entry.node == Node::Folder {
            self.within.push(Vec::new());
        }
        Ok(())
    }

    fn ended(&mut self) -> Result<Option<Entry>, BundleError> {
        if self.entries == 0 {
            return Err(BundleError::NoFolder);
        }
        if self.block()?.iter().any(|b| *b != 0) {
            return Err(BundleError::NotCanonical);
        }
        match self.inner.read(&mut [0]) {
            Ok(0) => Ok(None),
            Ok(_) => Err(BundleError::Long),
            Err(e) => Err(BundleError::Short(e)),
        }
    }

    fn block(&mut self) -> Result<[u8; BLOCK], BundleError> {
        let mut block = [0; BLOCK];
        self.inner.read_exact(&mut block).map_err(BundleError::Short)?;
        Ok(block)
    }
}

impl<R: Read + Seek> Reader<R> {
    /// Passes over what is left of the last entry's content.
    pub fn skip(&mut self) -> io::Result<()> {
        let left = i64::try_from(self.left).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        self.inner.seek_relative(left)?;
        self.left = 0;
        Ok(())
    }
}

/// The content of the last entry.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if most == 0 {
            return Ok(0);
        }
        let read = self.inner.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// What the header (`long`: with its name before it) says; not whether it is the one way to say it.
fn decode(read: &[u8], long: bool) -> Result<Entry, BundleError> {
    let last = read.len().saturating_sub(BLOCK);
    let (before, header) = read.split_at(last);
    let name = match long {
        true => before.get(BLOCK..),
        false => header.get(..NAME),
    };
    let name = name.ok_or(BundleError::NotCanonical)?;
    let name = name.split(|b| *b == 0).next().unwrap_or_default();
    let name = name.strip_prefix(b"./").ok_or(BundleError::NotCanonical)?;
    let (name, node) = match header.get(TYPE) {
        Some(b'5') if name.is_empty() => (name, Node::Folder),
        Some(b'5') => (
            name.strip_suffix(b"/").ok_or(BundleError::NotCanonical)?,
            Node::Folder,
        ),
        Some(b'0') => {
            let size = number(header, SIZE).ok_or(BundleError::NotCanonical)?;
            let mtime = signed(header, MTIME).ok_or(BundleError::NotCanonical)?;
            (name, Node::File { size, mtime })
        }
        _ => return Err(BundleError::NotCanonical),
    };
    let path = match (name, node) {
        (b"", Node::Folder) => None,
        _ => Some(RemotePath::parse(name)?),
    };
    Ok(Entry { path, node })
}

/// One header block, as GNU tar writes it.
fn block(name: &[u8], mode: &[u8; 7], size: u64, mtime: i64, kind: u8) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name[..name.len().min(NAME)]);
    put(100, mode);
    put(108, b"0000000"); // owner
    put(116, b"0000000"); // group
    put(SIZE, &field(i128::from(size)));
    put(MTIME, &field(i128::from(mtime)));
    put(CHECKSUM, b"        ");
    put(TYPE, &[kind]);
    put(257, b"ustar  ");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    let sum = format!("{sum:06o}\0");
    block[CHECKSUM..CHECKSUM + 7].copy_from_slice(sum.as_bytes()); // a block's sum has at most six octal digits
    block
}

/// Eleven octal digits and a NUL; what does not fit as 12 bytes of big-endian two's complement, the first bit set.
fn field(value: i128) -> [u8; 12] {
    let mut field = [0; 12];
    if (0..1 << 33).contains(&value) {
        field[..11].copy_from_slice(format!("{value:011o}").as_bytes());
    } else {
        field.copy_from_slice(&value.to_be_bytes()[4..]);
        field[0] |= 0x80;
    }
    field
}

fn number(block: &[u8], at: usize) -> Option<u64> {
    u64::try_from(value(block, at)?).ok()
}

fn signed(block: &[u8], at: usize) -> Option<i64> {
    i64::try_from(value(block, at)?).ok()
}

fn value(block: &[u8], at: usize) -> Option<i128> {
    let field: [u8; 12] = block.get(at..at + 12)?.try_into().ok()?;
    match field[0] {
        0x80 | 0xff => {
            let filler = if field[0] == 0xff { 0xff } else { 0 };
            let mut bytes = [filler; 16];
            bytes[5..].copy_from_slice(&field[1..]);
            Some(i128::from_be_bytes(bytes))
        }
        _ => {
            let digits = std::str::from_utf8(&field[..11]).ok()?;
            i128::from_str_radix(digits, 8).ok()
        }
    }
}

const NAME: usize = 100;
const SIZE: usize = 124;
const MTIME: usize = 136;
const CHECKSUM: usize = 148;
const TYPE: usize = 156;
const LONG_NAME: &[u8] = b"././@LongLink";
/// `./`, the path, `/` and a NUL.
const MOST_NAME: u64 = RemotePath::MAX_LENGTH as u64 + 4;

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;
