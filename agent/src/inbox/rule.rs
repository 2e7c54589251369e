//! The rule for a row *placing*: what a crash, or another link, left between intent and certainty is finished, or taken
//! back.
//!
//! | partial | its final name | means |
//! |---|---|---|
//! | there | the same file, or its copy | named by a link or a copy, or both names survived a power cut: the new one is synced, the old one goes |
//! | there, of a link or a copy that [`super::named`] has | anything | somebody took what was named: the old name goes |
//! | there, as verified | free, or another file | R7 again |
//! | gone | the verified file, or the folder and all of it | R8 again, then delivered |
//! | gone | free, or another file | delivered if [`super::named`] has it, else the row is taken back: it is received again |
//!
//! A partial that is gone proves nothing by itself: whoever cleans up, imports or scans for viruses may have taken it.

use std::{
    ffi::{OsStr, OsString},
    io,
};

use cap_fs_ext::{DirExt, MetadataExt};
use cap_std::fs::{Dir, Metadata};
use dropwire_protocol::{Digest, Kind, Manifest, Receipt, message::DeclineReason};

use super::{
    Shared,
    claims::Key,
    commit, elsewhere,
    ledger::{self, Checkpoint},
    naming::Names,
    partial,
    place::{self, Folder, os_name},
    placing::Placing,
    reply::Answer,
    site::Site,
    unpack,
};
use crate::{
    clock::now_ms,
    db::DbError,
    durable::{self, How},
    fault,
    file_system::{self, FileSystem},
    io_error::{Meaning, meaning},
    version::Version,
};

/// What there is of a transfer whose row is *placing*.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// Under both names, or it was before somebody took the new one.
    Linked,
    /// The partial, as it was verified; its final name was not given.
    Partial,
    /// Under its final name alone.
    Named,
    /// Neither: the partial was taken away, or is another one.
    Nothing,
}

/// Applies the rule; None: the file is nowhere, and its row says no more that it is *placing*. The caller has claimed
/// `key` and read the inbox's mark, and it is the row's. Repeatable after any crash.
pub fn resolve(
    shared: &Shared,
    site: &Site,
    key: Key,
    manifest: &Manifest,
    placing: Placing,
) -> Result<Option<Receipt>, Answer> {
    if shared.is_certain(key) {
        return Ok(Some(placing.receipt));
    }
    let unknown = |e: io::Error| Answer::io("looking for the partial", &e);
    let found = match find(site, key, manifest, &placing) {
        // A sync of what was found failed: asked again, it would be called good.
        Err(e) if meaning(&e) == Meaning::Lost => {
            give_up(shared, site, key, manifest.kind)?;
            return Err(unknown(e));
        }
        found => found.map_err(unknown)?,
    };
    let placing = match found {
        Found::Linked => {
            // As when it was linked: the name that stays is durable before the other goes.
            let folders = place::existing_folders(site, &placing.place).map_err(unknown)?;
            fault::step("rule-link", || commit::make_certain(shared, site, &folders))?;
            partial::remove_staged(site, key, manifest.kind).map_err(unknown)?;
            placing
        }
        Found::Partial => commit::place_again(shared, site, key, manifest, placing)?,
        Found::Named => placing,
        Found::Nothing if site.named.has(&placing.receipt) || fault::mutant("rule-absence") => placing,
        Found::Nothing => {
            give_up(shared, site, key, manifest.kind)?;
            return Ok(None);
        }
    };
    let folders = place::existing_folders(site, &placing.place).map_err(unknown)?;
    fault::step("rule-R8", || commit::make_certain(shared, site, &folders))?;
    let (certain, now) = ((key, manifest.kind, manifest.size), now_ms());
    if shared
        .db
        .call_blocking(move |tx| ledger::deliver(tx, &[certain], now))?
        > 0
    {
        shared.delivered(site, key, &placing.place, manifest.size);
    }
    site.named.forget(&placing.receipt);
    partial::remove_stream(site, key, manifest.kind);
    Ok(Some(placing.receipt))
}

/// Looks at both names.
pub fn find(site: &Site, key: Key, manifest: &Manifest, placing: &Placing) -> io::Result<Found> {
    // Nothing is concluded from what is missing where a disk is.
    let place: Vec<_> = placing.place.components().map(<[u8]>::to_vec).collect();
    site.disks.on_the_way(&site.root, &place)?;
    let partial = partial::look(site, key, manifest.kind)?;
    let same = |meta: &Metadata, partial: &Metadata| {
        meta.is_file() && meta.ino() == partial.ino() && meta.dev() == partial.dev()
    };
    let named = match (at_its_name(site, &placing.place)?, &partial) {
        (Some((.., meta)), Some(partial)) if site.lasting_inodes && placing.how != How::Copied => {
            same(&meta, partial)
        }
        (Some((folders, name, meta)), _) => is_named(site, key, manifest, placing, &folders, &name, &meta)?,
        (None, _) => false,
    };
    let was_named =
        placing.how != How::Renamed && site.named.has(&placing.receipt) && !fault::mutant("rule-was-named");
    Ok(match partial {
        Some(_) if was_named => Found::Linked,
        Some(_) if named && (manifest.kind == Kind::File || placing.how == How::Copied) => Found::Linked,
        Some(partial) if is_verified(site, key, manifest, placing, &partial)? => Found::Partial,
        None if named => Found::Named,
        _ => Found::Nothing,
    })
}

/// Nothing of it counts any more: *receiving* again. A folder's stream, if it is there, is what it is made of again.
pub fn give_up(shared: &Shared, site: &Site, key: Key, kind: Kind) -> Result<(), DbError> {
    shared.db.call_blocking(move |tx| {
        ledger::unplace(tx, key)?;
        match kind {
            Kind::File => ledger::drop_receiving(tx, key).map(drop),
            Kind::Folder => Ok(()),
        }
    })?;
    match kind {
        Kind::File => partial::remove(site, key),
        Kind::Folder => {
            let _ = partial::remove_folder(site, key); // else the next try does
        }
    }
    Ok(())
}

/// A whole folder has just got its name: was all of it there? Nobody has been told of it yet. If a piece is missing, it goes
/// back to `from`, and that is the error. One that somebody took at once, all of it, counts as named.
pub fn named_whole(
    site: &Site,
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
    if is_whole(site, names, key, &folder)? || fault::mutant("R7-whole") {
        return Ok(());
    }
    // Never another's folder, which may have the name by now.
    if !site.lasting_inodes || partial::is_inode(&folder.dir_metadata()?, inode) {
        durable::rename_noreplace(parent, name, from, &partial::folder_name(key))?;
    }
    let text = "a piece of it was taken before it had its name";
    Err(io::Error::new(io::ErrorKind::ResourceBusy, text))
}

/// Said of a partial that somebody took out of the partials' folder.
pub fn taken() -> Answer {
    let text = "its partial was taken out of the inbox's .dropwire/partial before it was delivered; it is received again";
    Answer::refused(DeclineReason::Busy, text, Some(1_000))
}

/// What has the name, the folders on the way and how it is called there; None: nothing.
fn at_its_name(
    site: &Site,
    place: &dropwire_protocol::RemotePath,
) -> io::Result<Option<(Vec<Folder>, OsString, Metadata)>> {
    let folders = place::existing_folders(site, place)?;
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
    site: &Site,
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
    let told_by_inode = site.lasting_inodes
        && placing.inode != 0
        && placing.how != How::Copied
        && (dated || fault::mutant("rule-time"));
    match manifest.kind {
        Kind::Folder if !meta.is_dir() => Ok(false),
        Kind::File if !meta.is_file() || meta.len() != manifest.size => Ok(false),
        _ if told_by_inode && meta.ino() != placing.inode => Ok(false),
        Kind::File if told_by_inode => Ok(true),
        // Its stream goes only once all is certain.
        Kind::Folder if told_by_inode => partial::open(site, key)?.map_or(Ok(true), |stream| {
            let folder = dir.open_dir_nofollow(name)?;
            Ok(unpack::is_whole(site.names, &folder, &stream)? || fault::mutant("rule-whole"))
        }),
        Kind::Folder => {
            let names = match placing.how {
                How::Copied if !fault::mutant("rule-dialect") => elsewhere::names(site, folders)?,
                _ => site.names,
            };
            is_whole(site, names, key, &dir.open_dir_nofollow(name)?)
        }
        Kind::File => {
            let file = partial::open_in(dir, name)?;
            file.map_or(Ok(false), |file| {
                Ok(has_the_bytes(&file, manifest.size, digest(placing)?, &|| false))
            })
        }
    }
}

/// Is this the partial that was verified? By its inode, or (restored from a copy) by its bytes.
fn is_verified(
    site: &Site,
    key: Key,
    manifest: &Manifest,
    placing: &Placing,
    meta: &Metadata,
) -> io::Result<bool> {
    let same = partial::is_inode(meta, placing.inode);
    if manifest.kind == Kind::Folder {
        // Of a copy nobody knows whether it was synced: the stream is unpacked again.
        let ours = meta.is_dir() && (same || !site.lasting_inodes);
        return Ok(ours && is_whole(site, site.names, key, &partial::folder(site, key)?)?);
    }
    if !meta.is_file() || meta.len() != manifest.size {
        return Ok(false);
    }
    if (same && site.lasting_inodes) || fault::mutant("rule-bytes") {
        return Ok(true);
    }
    let good = is_good(site, key, manifest.size, digest(placing)?, &|| false)?;
    durable::sync_dir(&site.partials)?; // R5, whose work a copy has not
    Ok(good)
}

/// Has what lies among the partials these bytes? They are durable then: of a copy nobody knows whether it was synced. An error
/// also where something was put in its place meanwhile.
pub fn is_good(
    site: &Site,
    key: Key,
    size: u64,
    digest: Digest,
    stops: &dyn Fn() -> bool,
) -> io::Result<bool> {
    let look = || Version::looked(&site.partials, &partial::file_name(key));
    let before = look()?;
    let Some(file) = partial::open(site, key)? else {
        return Ok(false);
    };
    if !FileSystem::of(&file).is_ok_and(|on| on.sees_writers) {
        file_system::read_anew(&file);
    }
    let good = has_the_bytes(&file, size, digest, stops);
    durable::sync_file(&file)?;
    match before.looks_as(&look()?) || fault::mutant("R7-read") {
        true => Ok(good),
        false => Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "it changed while it was read",
        )),
    }
}

fn digest(placing: &Placing) -> io::Result<Digest> {
    let body = placing.receipt.decode_body_unverified();
    Ok(body.map_err(io::Error::other)?.digest)
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
pub fn is_whole(site: &Site, names: Names, key: Key, folder: &Dir) -> io::Result<bool> {
    match partial::open(site, key)? {
        Some(stream) => unpack::is_whole(names, folder, &stream),
        None => Ok(false),
    }
}
