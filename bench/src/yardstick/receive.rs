//! The receiving half: decrypts and hashes on one thread, writes a large file on another; small files on one.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    net::TcpListener,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, Sender, channel, sync_channel},
    thread,
};

use rustls::ServerConnection;
use sha2::{Digest as _, Sha256};

use super::{Buffers, DIGEST, HEADER, Header, LARGE, Line, PIECE, PIECES, server, wrong_digest};
use crate::failed;

/// What direct writes need: addresses, offsets and lengths are multiples of it.
const ALIGNED: usize = 4096;

/// Takes one connection at `address`, of which `card` tells, and what comes over it into `inbox`.
pub fn run(inbox: &Path, address: &str, card: &Path, direct: bool, buffers: Buffers) -> io::Result<()> {
    let listener = TcpListener::bind((address, 0))?;
    let (tls, certificate) = server()?;
    let aside = card.with_extension("new");
    let mut text = format!("{}\n", listener.local_addr()?).into_bytes();
    text.extend_from_slice(&certificate);
    fs::write(&aside, text)?;
    fs::rename(aside, card)?;
    let mut line = Line::new(tls, listener.accept()?.0, buffers)?;
    let mut batch = Batch::new(inbox, direct);
    let mut header = [0; HEADER];
    while line.read(&mut header)? {
        match Header::decode(header) {
            Header::COMMIT => {
                batch.commit()?;
                line.send(&[1])?;
            }
            header => batch.take(&mut line, header)?,
        }
    }
    Ok(())
}

/// Files that are written but not durable yet, each under a temporary name.
struct Batch {
    inbox: PathBuf,
    direct: bool,
    files: Vec<(File, PathBuf, PathBuf)>,
    bytes: Vec<u8>,
}

impl Batch {
    fn new(inbox: &Path, direct: bool) -> Self {
        Self {
            inbox: inbox.into(),
            direct,
            files: Vec::new(),
            bytes: Vec::new(),
        }
    }

    fn take(&mut self, line: &mut Line<ServerConnection>, header: Header) -> io::Result<()> {
        let mut name = vec![0; header.name.into()];
        line.read(&mut name)?;
        let name = String::from_utf8(name).map_err(io::Error::other)?;
        let path = self.inbox.join(&name);
        let aside = self.inbox.join(format!(".{}", name.replace('/', "-")));
        let large = header.size >= LARGE;
        let mut options = File::options();
        options.write(true).create_new(true);
        if large && self.direct {
            options.custom_flags(libc::O_DIRECT);
        }
        let file = options.open(&aside)?;
        let digest = match large {
            true => large_file(line, &file, header.size)?,
            false => {
                self.bytes.resize(header.size as usize, 0);
                line.read(&mut self.bytes)?;
                (&file).write_all(&self.bytes)?;
                Sha256::digest(&self.bytes).into()
            }
        };
        let mut said = [0; DIGEST];
        line.read(&mut said)?;
        if said != digest {
            return Err(wrong_digest(&name));
        }
        self.files.push((file, aside, path));
        Ok(())
    }

    fn commit(&mut self) -> io::Result<()> {
        let folder = match &self.files[..] {
            [] => return Ok(()),
            [(file, ..)] => {
                file.sync_all()?;
                self.inbox.clone()
            }
            [(file, _, path), ..] => {
                rustix::fs::syncfs(file)?;
                path.parent().unwrap_or(&self.inbox).to_owned()
            }
        };
        fs::create_dir_all(&folder)?;
        for (_, aside, path) in self.files.drain(..) {
            fs::rename(aside, path)?;
        }
        File::open(folder)?.sync_all()
    }
}

/// A large file's bytes, written while the next are decrypted; their digest.
fn large_file(line: &mut Line<ServerConnection>, file: &File, size: u64) -> io::Result<[u8; DIGEST]> {
    thread::scope(|scope| {
        let (full, pieces) = sync_channel::<Piece>(PIECES);
        let (empty, used) = channel();
        for _ in 0..PIECES {
            let _ = empty.send(Piece::new());
        }
        let writer = scope.spawn(move || write(file, size, pieces, empty));
        let mut hash = Sha256::new();
        let mut left = size;
        while left > 0 {
            // The writer has ended: its error says why.
            let Ok(mut piece) = used.recv() else { break };
            let length = left.min(PIECE as u64) as usize;
            let mut at = 0;
            while at < length {
                let rest = &mut piece.bytes()[at..length];
                let took = line.next(rest.len(), |bytes| {
                    hash.update(bytes);
                    rest[..bytes.len()].copy_from_slice(bytes);
                    bytes.len()
                })?;
                at += took.ok_or(io::ErrorKind::UnexpectedEof)?;
            }
            left -= length as u64;
            if full.send(piece).is_err() {
                break;
            }
        }
        drop(full);
        writer.join().map_err(|_| failed("the writer"))??;
        Ok(hash.finalize().into())
    })
}

fn write(file: &File, size: u64, pieces: Receiver<Piece>, empty: Sender<Piece>) -> io::Result<()> {
    let mut at = 0;
    for mut piece in pieces {
        let length = (size - at).min(PIECE as u64) as usize;
        // What is too much at the end is cut off again.
        file.write_all_at(&piece.bytes()[..length.next_multiple_of(ALIGNED)], at)?;
        at += length as u64;
        let _ = empty.send(piece);
    }
    file.set_len(size)
}

/// Memory at an address that direct writes can begin at.
struct Piece {
    memory: Vec<u8>,
    start: usize,
}

impl Piece {
    fn new() -> Self {
        let memory = vec![0; PIECE + ALIGNED];
        let start = memory.as_ptr().align_offset(ALIGNED);
        Self { memory, start }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..PIECE]
    }
}
