//! The sending half: reads and hashes on one thread, encrypts and sends on another; small files on one.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    sync::mpsc::{channel, sync_channel},
    thread,
};

use rustls::{ClientConnection, pki_types::CertificateDer};
use sha2::{Digest as _, Sha256};

use super::{BATCH, BUFFER, Buffers, Header, LARGE, Line, PIECE, PIECES, client};
use crate::failed;

/// Sends each file or folder in `outbox` that is named on standard input, until that ends.
pub fn run(outbox: &Path, card: &Path, buffers: Buffers) -> io::Result<()> {
    let card = fs::read(card)?;
    let end = card
        .iter()
        .position(|b| *b == b'\n')
        .ok_or_else(|| failed("not a card"))?;
    let address = String::from_utf8_lossy(&card[..end]).into_owned();
    let trusted = CertificateDer::from(card[end + 1..].to_vec());
    let mut line = Line::new(client(trusted)?, TcpStream::connect(address)?, buffers)?;
    println!("connected");
    for name in io::stdin().lock().lines() {
        let name = name?;
        if outbox.join(&name).is_dir() {
            folder(&mut line, outbox, &name)?;
        } else {
            file(&mut line, &outbox.join(&name), &name)?;
        }
        println!("durable");
    }
    Ok(())
}

fn folder(line: &mut Line<ClientConnection>, outbox: &Path, folder: &str) -> io::Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(outbox.join(folder))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    let mut ready = Vec::with_capacity(2 * BUFFER);
    for batch in names.chunks(BATCH) {
        for name in batch {
            small(
                &mut ready,
                &outbox.join(folder).join(name),
                &format!("{folder}/{name}"),
            )?;
            if ready.len() >= BUFFER {
                line.send(&ready)?;
                ready.clear();
            }
        }
        ready.extend(Header::COMMIT.encode());
        line.send(&ready)?;
        ready.clear();
    }
    answers(line, names.len().div_ceil(BATCH))
}

fn file(line: &mut Line<ClientConnection>, path: &Path, name: &str) -> io::Result<()> {
    let mut ready = Vec::new();
    if fs::metadata(path)?.len() >= LARGE {
        ready.extend(large(line, path, name)?);
    } else {
        small(&mut ready, path, name)?;
    }
    ready.extend(Header::COMMIT.encode());
    line.send(&ready)?;
    answers(line, 1)
}

fn small(ready: &mut Vec<u8>, path: &Path, name: &str) -> io::Result<()> {
    let mut file = File::open(path)?;
    begin(ready, name, file.metadata()?.len());
    let start = ready.len();
    file.read_to_end(ready)?;
    let digest = Sha256::digest(&ready[start..]);
    ready.extend(digest);
    Ok(())
}

/// All of a large file but its digest, which it gives.
fn large(line: &mut Line<ClientConnection>, path: &Path, name: &str) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut header = Vec::new();
    begin(&mut header, name, file.metadata()?.len());
    line.send(&header)?;
    thread::scope(|scope| {
        let (full, pieces) = sync_channel::<(Vec<u8>, usize)>(PIECES);
        let (empty, used) = channel();
        for _ in 0..PIECES {
            let _ = empty.send(vec![0; PIECE]);
        }
        let reader = scope.spawn(move || -> io::Result<Vec<u8>> {
            let mut hash = Sha256::new();
            while let Ok(mut piece) = used.recv() {
                let length = file.read(&mut piece)?;
                if length == 0 {
                    break;
                }
                hash.update(&piece[..length]);
                if full.send((piece, length)).is_err() {
                    break;
                }
            }
            Ok(hash.finalize().to_vec())
        });
        for (piece, length) in pieces {
            line.send(&piece[..length])?;
            let _ = empty.send(piece);
        }
        reader.join().map_err(|_| failed("the reader"))?
    })
}

fn begin(ready: &mut Vec<u8>, name: &str, size: u64) {
    let header = Header {
        name: name.len() as u16,
        size,
    };
    ready.extend(header.encode());
    let _ = ready.write_all(name.as_bytes());
}

fn answers(line: &mut Line<ClientConnection>, count: usize) -> io::Result<()> {
    match line.read(&mut vec![0; count])? {
        true => Ok(()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
