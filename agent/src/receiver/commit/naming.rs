//! R7: a file gets its final name, by whatever way there is; and what becomes of it when it does not.

use std::io;

use dropwire_protocol::{Kind, Manifest};

use super::{
    intent::{Intent, Ready, Way, Whole, give_up, intend, row, write_down},
    make_durable::{is_lost, make_durable},
    told::By,
};
use crate::{
    failpoints,
    fs::{
        durable::{self, How},
        version::Version,
    },
    io_error::blames_the_name,
    receiver::{
        Shared, elsewhere,
        evidence::{self, Found},
        inbox_dir::InboxDir,
        ledger,
        naming::Names,
        partial,
        reply::{self, Answer},
        transfer_locks::Key,
    },
};

/// How often another name is looked for when somebody keeps taking them.
const TRIES: usize = 100;

/// What gets a name.
#[derive(Clone, Copy)]
pub(super) struct Work<'a> {
    pub shared: &'a Shared,
    pub inbox_dir: &'a InboxDir,
    pub key: Key,
    pub manifest: &'a Manifest,
    /// See [`super::Ready::keep`].
    pub keep: Option<&'a Whole>,
}

/// For what is not just renamed, the old name goes before R8: by then the way to the new one has to be durable.
pub(super) fn way_first(make_durable: impl FnOnce() -> Result<(), Answer>) -> Result<(), Answer> {
    failpoints::step("R7-link-way", make_durable)
}

/// Right before R7: did nobody take the partial, or put another file in its place?
pub(super) fn still_there(work: Work<'_>, file: &Ready) -> Result<(), Answer> {
    let Work {
        shared,
        inbox_dir,
        key,
        manifest,
        ..
    } = work;
    let looking = |e: &io::Error| Answer::io("looking for the partial", e);
    let give_up = || give_up(shared, inbox_dir, key, manifest.kind);
    match is_it(work, file) {
        Ok(false) if !failpoints::mutant("R7-there") => {
            give_up()?;
            Err(reply::taken())
        }
        Ok(_) => Ok(()),
        Err(e) if is_lost(&e) => {
            give_up()?;
            Err(looking(&e))
        }
        Err(e) => Err(looking(&e)), // the rule decides later
    }
}

fn is_it(work: Work<'_>, file: &Ready) -> io::Result<bool> {
    let Work {
        shared,
        inbox_dir,
        key,
        manifest,
        ..
    } = work;
    let Some(found) = partial::look(inbox_dir, key, manifest.kind)? else {
        return Ok(false);
    };
    let same_number = partial::is_inode(&found, file.told.inode);
    match &file.told.by {
        By::Number if inbox_dir.lasting_inodes && !same_number => return Ok(false),
        By::Number if manifest.kind == Kind::Folder && !failpoints::mutant("R6-whole") => {
            return evidence::is_whole(inbox_dir, inbox_dir.names, key, &partial::folder(inbox_dir, key)?);
        }
        By::Number => return Ok(true),
        By::Times(seen) => {
            let now = Version::looked(&inbox_dir.partials, &partial::staged_name(key, manifest.kind))?;
            if same_number && seen.is_surely(&now) {
                return Ok(true);
            }
        }
        By::Bytes => {}
    }
    if failpoints::mutant("R7-bytes") {
        return Ok(true);
    }
    let stops = || shared.cancel.is_cancelled();
    let good = evidence::is_good(inbox_dir, key, manifest.size, file.verified.digest, &stops)?;
    match stops() {
        true => Err(io::Error::new(io::ErrorKind::Interrupted, "the agent stops")),
        false => Ok(good),
    }
}

/// R7. Gives the intent under which the file lies now. `is_durable`: R8 has ended for the folders on the way.
pub(super) fn give(work: Work<'_>, mut intent: Intent, mut is_durable: bool) -> Result<Intent, Answer> {
    let Work {
        shared,
        inbox_dir,
        key,
        manifest,
        ..
    } = work;
    let from = partial::staged_name(key, manifest.kind);
    for _ in 0..TRIES {
        let how = intent.placing.how;
        if how != How::Renamed && !is_durable {
            way_first(|| make_durable(shared, inbox_dir, &intent.place.folders))?;
        }
        let given = intent.place.parent().and_then(|parent| match how {
            How::Copied => {
                elsewhere::give_name(shared, inbox_dir, key, manifest, &intent.placing, &intent.place)
            }
            how => {
                let (partials, name) = (&inbox_dir.partials, &intent.place.name);
                let note = || inbox_dir.named.note(&intent.placing.receipt);
                match manifest.kind {
                    Kind::File => durable::give_name(how, partials, &from, parent, name, note),
                    Kind::Folder => durable::give_name(how, partials, &from, parent, name, || ())
                        .and_then(|()| {
                            let inode = intent.placing.inode;
                            evidence::named_whole(
                                inbox_dir,
                                inbox_dir.names,
                                key,
                                inode,
                                partials,
                                (parent, name),
                            )
                        })
                        .map(|()| note()),
                }
            }
        });
        let mut way = Way {
            names: intent.place.names,
            how,
        };
        match given {
            Ok(()) => {
                if how == How::Copied {
                    partial::remove_staged(inbox_dir, key, manifest.kind)
                        .map_err(|e| Answer::io("removing the partial of a copy", &e))?;
                }
                return Ok(intent);
            }
            // It may be ours: a file server did as asked, and its answer got lost.
            Err(e)
                if e.kind() == io::ErrorKind::AlreadyExists
                    && how == How::Linked
                    && inbox_dir.lasting_inodes
                    && matches!(
                        evidence::find(inbox_dir, key, manifest, &intent.placing),
                        Ok(Found::Linked)
                    ) =>
            {
                make_durable(shared, inbox_dir, &intent.place.folders)?;
                partial::remove_staged(inbox_dir, key, manifest.kind)
                    .map_err(|e| Answer::io("removing the partial of a linked file", &e))?;
                inbox_dir.named.note(&intent.placing.receipt);
                return Ok(intent);
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) if blames_the_name(&e) && way.names != Names::STRICT => way.names = Names::STRICT,
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices && how != How::Copied => {
                way.how = How::Copied;
            }
            Err(e) => return not_named(work, intent, &e),
        }
        let Intent { place, placing } = intent;
        drop(place); // the name may be the same
        intent = intend(
            shared,
            inbox_dir,
            way,
            key,
            manifest,
            placing.digest,
            placing.inode,
        )?;
        is_durable = false;
        failpoints::step("R6-next-name", || {
            write_down(shared, inbox_dir, vec![row(key, manifest, &intent)])
        })?;
    }
    let busy = io::Error::other("other programs keep taking the names that were free");
    not_named(work, intent, &busy)
}

/// R7 gave an error. The file may have its name all the same (a file server's answer that got lost); the row is taken
/// back only where both names were checked, and it has not.
fn not_named(work: Work<'_>, intent: Intent, error: &io::Error) -> Result<Intent, Answer> {
    let Work {
        shared,
        inbox_dir,
        key,
        manifest,
        keep,
    } = work;
    let failed = match blames_the_name(error) {
        true => Answer::bad_name(error),
        false => Answer::io("giving the file its name", error),
    };
    match evidence::find(inbox_dir, key, manifest, &intent.placing) {
        Err(e) if is_lost(&e) => {
            give_up(shared, inbox_dir, key, manifest.kind)?;
            Err(failed)
        }
        Err(_) => Err(failed), // the rule decides later
        Ok(Found::Named) => {
            inbox_dir.named.note(&intent.placing.receipt);
            Ok(intent)
        }
        // Nothing was asked of the disk yet: the rule goes on.
        Ok(Found::Linked) if !is_lost(error) || failpoints::mutant("R7-link-hold") => Err(failed),
        Ok(Found::Linked) => {
            let reason = format!("a file of the inbox has its name, but not durably: {error}");
            shared.handle.break_off(reason); // asked again, the folder's sync would say that all is well
            Err(failed)
        }
        Ok(Found::Nothing) => {
            give_up(shared, inbox_dir, key, manifest.kind)?;
            Err(reply::taken())
        }
        Ok(Found::Partial) => {
            match keep.filter(|_| !elsewhere::is_spoilt(error)) {
                Some(whole) => {
                    shared.db.call_blocking(move |tx| ledger::unplace(tx, key))?;
                    whole.keep(shared, key);
                }
                None => give_up(shared, inbox_dir, key, manifest.kind)?,
            }
            Err(failed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::told::Told, *};
    use crate::fs::file_system::{FileSystem, TRUSTED, pretend};

    #[test]
    fn what_an_open_file_tells_is_believed_where_the_kernel_keeps_it() {
        let temp = tempfile::tempdir().unwrap();
        let mut inbox_dir = InboxDir::alone(temp.path());
        inbox_dir.lasting_inodes = false;
        let file = tempfile::tempfile().unwrap();
        let overlay = FileSystem {
            name: "overlay",
            ..FileSystem::default()
        };
        for (on, believed) in [(TRUSTED, true), (overlay, true), (FileSystem::default(), false)] {
            let _pretence = pretend(on);
            let told = Told::of(&inbox_dir, &file, 1).unwrap();
            assert_eq!(matches!(told.by, By::Times(_)), believed, "{}: {told:?}", on.name);
        }
    }
}
