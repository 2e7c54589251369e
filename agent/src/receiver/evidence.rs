//! What is found of a transfer whose row is *placing*: at its final name, and among the partials.

use std::{
    ffi::{OsStr, OsString},
    io,
};

use cap_fs_ext::{DirExt, MetadataExt};
use cap_std::fs::{Dir, Metadata};
use dropwire_protocol::{Digest, Kind, Manifest};

use super::{
    inbox_dir::InboxDir,
    ledger::Checkpoint,
    naming::{Names, os_name},
    partial,
    place::{self, Folder},
    placing::Placing,
    staging,
    transfer_locks::Key,
    unpack,
};
use crate::{
    failpoints,
    fs::{
        durable::{self, How},
        file_system::{self, FileSystem},
        version::Version,
    },
};

/// What there is of a transfer whose row is *placing*.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// Under both names, or it was before somebody took the new one.
    Linked,
    /// The partial, as it was verified; its final name was not given.
    Partial,
    /// Under its final name alone.
    Named,
    /// Neither: the partial was taken away, or is another one.
    Nothing,
}

/// Checks both names.
pub(super) fn find(
    inbox_dir: &InboxDir,
    key: Key,
    manifest: &Manifest,
    placing: &Placing,
) -> io::Result<Found> {
    // Nothing is concluded from what is missing where a disk is.
    let place: Vec<_> = placing.place.components().map(<[u8]>::to_vec).collect();
    inbox_dir.disks.on_the_way(&inbox_dir.root, &place)?;
    let partial = partial::look(inbox_dir, key, manifest.kind)?;
    let same = |meta: &Metadata, partial: &Metadata| {
        meta.is_file() && meta.ino() == partial.ino() && meta.dev() == partial.dev()
    };
    let named = match (at_its_name(inbox_dir, &placing.place)?, &partial) {
        (Some((.., meta)), Some(partial)) if inbox_dir.lasting_inodes && placing.how != How::Copied => {
            same(&meta, partial)
        }
        (Some((folders, name, meta)), _) => {
            is_named(inbox_dir, key, manifest, placing, &folders, &name, &meta)?
        }
        (None, _) => false,
    };
    let was_named = placing.how != How::Renamed
        && inbox_dir.named.has(&placing.receipt)
        && !failpoints::mutant("rule-was-named");
    Ok(match partial {
        Some(_) if was_named => Found::Linked,
        Some(_) if named && (manifest.kind == Kind::File || placing.how == How::Copied) => Found::Linked,
        Some(partial) if is_verified(inbox_dir, key, manifest, placing, &partial)? => Found::Partial,
        None if named => Found::Named,
        _ => Found::Nothing,
    })
}

/// A whole folder has just got its name: was all of it there? Nobody has been told of it yet. If a piece is missing, it
/// goes back to `from`, and that is the error. One that somebody took at once, all of it, counts as named.
pub(super) fn named_whole(
    inbox_dir: &InboxDir,
    names: Names,
    key: Key,
    inode: u64,
    from: &Dir,
    (parent, name): (&Dir, &OsStr),
) -> io::Result<()> {
    let folder = match parent.open_dir_nofollow(name) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        folder => folder?,
    };
    if is_whole(inbox_dir, names, key, &folder)? || failpoints::mutant("R7-whole") {
        return Ok(());
    }
    // Never another's folder, which may have the name by now.
    if !inbox_dir.lasting_inodes || partial::is_inode(&folder.dir_metadata()?, inode) {
        durable::rename_noreplace(parent, name, from, &partial::folder_name(key))?;
    }
    let text = "a piece of it was taken before it had its name";
    Err(io::Error::new(io::ErrorKind::ResourceBusy, text))
}

/// What has the name, the folders on the way and how it is called there; None: nothing.
fn at_its_name(
    inbox_dir: &InboxDir,
    place: &dropwire_protocol::RemotePath,
) -> io::Result<Option<(Vec<Folder>, OsString, Metadata)>> {
    let folders = place::existing_folders(inbox_dir, place)?;
    let name = os_name(place.file_name());
    let meta = match folders.last() {
        Some((_, dir)) if folders.len() == place.components().count() => dir.symlink_metadata(&name),
        _ => return Ok(None),
    };
    match meta {
        Ok(meta) => Ok(Some((folders, name, meta))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Is what has the final name what was verified? By its inode where that lasts, and its time (a number is used again once
/// its file is gone), else by what is in it.
fn is_named(
    inbox_dir: &InboxDir,
    key: Key,
    manifest: &Manifest,
    placing: &Placing,
    folders: &[Folder],
    name: &OsString,
    meta: &Metadata,
) -> io::Result<bool> {
    let Some((_, dir)) = folders.last() else {
        return Ok(false);
    };
    let dated = manifest.kind == Kind::Folder || Version::of_listing(meta).mtime() == manifest.mtime;
    let told_by_inode = inbox_dir.lasting_inodes
        && placing.inode != 0
        && placing.how != How::Copied
        && (dated || failpoints::mutant("rule-time"));
    match manifest.kind {
        Kind::Folder if !meta.is_dir() => Ok(false),
        Kind::File if !meta.is_file() || meta.len() != manifest.size => Ok(false),
        _ if told_by_inode && meta.ino() != placing.inode => Ok(false),
        Kind::File if told_by_inode => Ok(true),
        // Its stream goes only once all is durable.
        Kind::Folder if told_by_inode => partial::open(inbox_dir, key)?.map_or(Ok(true), |stream| {
            let folder = dir.open_dir_nofollow(name)?;
            Ok(unpack::is_whole(inbox_dir.names, &folder, &stream)? || failpoints::mutant("rule-whole"))
        }),
        Kind::Folder => {
            let names = match placing.how {
                How::Copied if !failpoints::mutant("rule-dialect") => staging::names(inbox_dir, folders)?,
                _ => inbox_dir.names,
            };
            is_whole(inbox_dir, names, key, &dir.open_dir_nofollow(name)?)
        }
        Kind::File => {
            let file = partial::open_in(dir, name)?;
            file.map_or(Ok(false), |file| {
                Ok(has_the_bytes(&file, manifest.size, placing.digest, &|| false))
            })
        }
    }
}

/// Is this the partial that was verified? By its inode, or (restored from a copy) by its bytes.
fn is_verified(
    inbox_dir: &InboxDir,
    key: Key,
    manifest: &Manifest,
    placing: &Placing,
    meta: &Metadata,
) -> io::Result<bool> {
    let same = partial::is_inode(meta, placing.inode);
    if manifest.kind == Kind::Folder {
        // Of a copy nobody knows whether it was synced: the stream is unpacked again.
        let ours = meta.is_dir() && (same || !inbox_dir.lasting_inodes);
        return Ok(ours && is_whole(inbox_dir, inbox_dir.names, key, &partial::folder(inbox_dir, key)?)?);
    }
    if !meta.is_file() || meta.len() != manifest.size {
        return Ok(false);
    }
    if (same && inbox_dir.lasting_inodes) || failpoints::mutant("rule-bytes") {
        return Ok(true);
    }
    let good = is_good(inbox_dir, key, manifest.size, placing.digest, &|| false)?;
    durable::sync_dir(&inbox_dir.partials)?; // R5, whose work a copy has not
    Ok(good)
}

/// Has what lies among the partials these bytes? They are durable then: of a copy nobody knows whether it was synced.
/// An error also where something was put in its place meanwhile.
pub(super) fn is_good(
    inbox_dir: &InboxDir,
    key: Key,
    size: u64,
    digest: Digest,
    stops: &dyn Fn() -> bool,
) -> io::Result<bool> {
    let look = || Version::looked(&inbox_dir.partials, &partial::file_name(key));
    let before = look()?;
    let Some(file) = partial::open(inbox_dir, key)? else {
        return Ok(false);
    };
    if !FileSystem::of(&file).is_ok_and(|on| on.sees_writers) {
        file_system::read_anew(&file);
    }
    let good = has_the_bytes(&file, size, digest, stops);
    durable::sync_file(&file)?;
    match before.looks_as(&look()?) || failpoints::mutant("R7-read") {
        true => Ok(good),
        false => Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "it changed while it was read",
        )),
    }
}

fn has_the_bytes(file: &std::fs::File, size: u64, digest: Digest, stops: &dyn Fn() -> bool) -> bool {
    let whole = Checkpoint {
        offset: size,
        digest,
        hash_state: Vec::new(),
    };
    let good = partial::good_prefix(file, &[whole], stops);
    good.length() == size && good.value() == digest
}

/// Is everything in `folder` that its stream says? Without the stream nobody can tell.
pub(super) fn is_whole(inbox_dir: &InboxDir, names: Names, key: Key, folder: &Dir) -> io::Result<bool> {
    match partial::open(inbox_dir, key)? {
        Some(stream) => unpack::is_whole(names, folder, &stream),
        None => Ok(false),
    }
}
