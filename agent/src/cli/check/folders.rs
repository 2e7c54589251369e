//! Outboxes and inbox: rights, room, times, and what their file systems are trusted with.

use std::{io, path::Path};

use cap_fs_ext::DirExt;
use cap_std::fs::Dir;

use super::{Assessment, Finding};
use crate::{
    config::{self, AfterSend, Config},
    control::api::StatusReport,
    error::{Exit, Fatal, shown},
    fs::{
        border, confined,
        disk::Disk,
        file_system::{self, FileSystem},
        own_folder,
    },
    owner,
};

/// `trouble` says why an agent that does not run would hold a folder.
pub(super) fn check(
    config: &Config,
    agent: Option<&StatusReport>,
    trouble: &dyn Fn(&Path) -> Option<String>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for outbox in &config.outboxes {
        let subject = format!("outbox {}", shown(&outbox.path));
        let seen = agent.and_then(|agent| {
            let seen = agent.outboxes.iter();
            seen.into_iter()
                .find(|seen| seen.raw_path() == outbox.path.as_os_str().as_encoded_bytes())
        });
        let held = match seen {
            Some(seen) => seen.held.clone().or_else(|| seen.disposal_held.clone()),
            None => trouble(&outbox.path),
        };
        findings.push(Finding::new(&subject, folder(&outbox.path, held.as_deref())));
        let watch = seen.and_then(|seen| seen.watch_reason.clone());
        findings.extend(watch.map(|reason| Finding::new(&subject, Assessment::Note(reason))));
        let cannot_leave = seen.is_some_and(|seen| seen.cannot_leave_count > 0);
        findings.extend(mounts(outbox, cannot_leave).map(|told| match told {
            Ok(note) => Finding::new(&subject, note),
            Err(fatal) => Finding::new(&subject, Err(fatal)),
        }));
        findings.extend(waits(outbox).map(|fatal| Finding::new(&subject, Err(fatal))));
        findings.extend(caution(&outbox.path).map(|text| Finding::new(&subject, Assessment::Note(text))));
        // Only files that lie there show it.
        if seen.is_some_and(|seen| seen.cautions.iter().any(|told| told == file_system::OTHERS)) {
            findings.push(Finding::new(
                &subject,
                Assessment::Note(file_system::OTHERS.into()),
            ));
        }
    }
    if let Some(inbox) = &config.inbox {
        let subject = format!("inbox {}", shown(&inbox.path));
        let held = match agent.and_then(|agent| agent.inbox.as_ref()) {
            Some(seen) => seen.held.clone(),
            None => trouble(&inbox.path),
        };
        findings.push(Finding::new(&subject, folder(&inbox.path, held.as_deref())));
        let disk = confined::root(&inbox.path).and_then(|folder| Disk::of(&folder));
        findings.extend(
            disk.ok()
                .flatten()
                .map(|disk| Finding::new(&subject, room(disk, inbox.min_free))),
        );
        findings.extend(caution(&inbox.path).map(|text| Finding::new(&subject, Assessment::Note(text))));
    }
    findings
}

/// Can the agent work in it? `held`: why it does not.
fn folder(path: &Path, held: Option<&str>) -> Result<String, Fatal> {
    let metadata = path.metadata().map_err(|error| {
        let fatal = Fatal::io(shown(path), &error);
        match error.kind() {
            io::ErrorKind::NotFound => fatal.hint("make it, or run `dropwire init`; the agent waits for it"),
            _ => fatal.hint("let this user enter the folders above it"),
        }
    })?;
    if !metadata.is_dir() {
        return Err(Fatal::new(
            Exit::CannotCreate,
            format_args!("{} is not a folder", shown(path)),
        )
        .hint("name a folder"));
    }
    writable(path).map_err(|error| {
        Fatal::io(format_args!("cannot read and write in {}", shown(path)), &error)
            .hint("let the user that runs the agent read and write there")
    })?;
    match held {
        None => Ok("can be read and written".into()),
        Some(reason) => Err(Fatal::new(
            Exit::CannotCreate,
            format_args!("the running agent says: {reason}"),
        )),
    }
}

/// Asks without writing: a file made for a test would be sent.
#[cfg(unix)]
pub(super) fn writable(path: &Path) -> io::Result<()> {
    use rustix::fs::Access;
    Ok(rustix::fs::access(
        path,
        Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK,
    )?)
}

#[cfg(not(unix))]
pub(super) fn writable(path: &Path) -> io::Result<()> {
    match path.metadata()?.permissions().readonly() {
        true => Err(io::ErrorKind::PermissionDenied.into()),
        false => Ok(()),
    }
}

/// Why what is delivered from a mount inside the outbox could not leave.
/// Whether something waits to is known of a running agent.
fn mounts(outbox: &config::Outbox, cannot_leave: bool) -> Option<Result<Assessment, Fatal>> {
    if outbox.after_send == AfterSend::Keep {
        return None;
    }
    let root = confined::root(&outbox.path).ok();
    if outbox.after_send == AfterSend::Archive && root.as_ref().is_some_and(has_archive_elsewhere) {
        let fatal = Fatal::new(Exit::Config, border::NO_ARCHIVE);
        return Some(Err(fatal.hint(border::NO_ARCHIVE_HELP)));
    }
    let missing = root.and_then(|root| border::missing(&root).ok());
    if let Some(at) = missing.iter().flatten().next() {
        let what = format!("what was mounted at {at} in it is not there");
        let adopt = owner::adopt(&outbox.path);
        return Some(match cannot_leave {
            true => Err(Fatal::new(
                Exit::NoInput,
                format_args!("{what}: what was delivered from it cannot leave"),
            )
            .hint(format_args!("mount it again; if it is gone for good: `{adopt}`"))),
            false => Ok(Assessment::Note(format!(
                "{what}; if it is gone for good: `{adopt}`"
            ))),
        });
    }
    let mounted = border::mounted_below(&outbox.path);
    mounted.iter().find_map(|mounted| {
        let at = shown(&mounted.at);
        if outbox.folder == config::Folder::Whole {
            let fatal = Fatal::new(
                Exit::Config,
                format_args!(
                    "{at} is a mount point: a folder with one in it is not sent as a whole, and one that is \
                              one cannot leave"
                ),
            );
            return Some(Err(fatal.hint(
                "set `folder = \"files\"` or `after_send = \"keep\"`, or mount it elsewhere",
            )));
        }
        let error = writable(&mounted.at).err()?;
        let what = format_args!(
            "cannot read and write in {at}, which is mounted in it: what is delivered cannot leave"
        );
        Some(Err(Fatal::io(what, &error).hint(
            "let the user that runs the agent write there, or set `after_send = \"keep\"`",
        )))
    })
}

/// Does no rename lead into the outbox's archive?
fn has_archive_elsewhere(outbox: &Dir) -> bool {
    let own = outbox.open_dir_nofollow(own_folder::NAME);
    own.is_ok_and(|own| border::is_archive_elsewhere(&own)) // a missing one is made there
}

/// Times of an outbox that cannot both be meant.
fn waits(outbox: &config::Outbox) -> Option<Fatal> {
    let [max_wait, quiet] = [outbox.max_wait, outbox.quiet].map(config::format_duration);
    (outbox.max_wait < outbox.quiet).then(|| {
        Fatal::new(
            Exit::Config,
            format_args!(
                "`max_wait` ({max_wait}) is shorter than `quiet` ({quiet}), so that files are reported while they only rest"
            ),
        )
        .hint("make `max_wait` longer than `quiet`")
    })
}

fn room(disk: Disk, min_free: Option<u64>) -> Result<String, Fatal> {
    let min_free = disk.min_free(min_free);
    let [free, size, kept] = [disk.free, disk.size, min_free].map(super::super::online::size);
    if disk.free > min_free {
        return Ok(format!("{free} of {size} are free, `min_free` keeps {kept}"));
    }
    let fatal = Fatal::new(
        Exit::Disk,
        format_args!("only {free} of {size} are free and `min_free` keeps {kept}: every file is declined"),
    );
    Err(fatal.hint("free space on its disk, or lower `min_free`"))
}

/// What its file system is not trusted with.
fn caution(path: &Path) -> Option<String> {
    let on = confined::root(path).and_then(|folder| FileSystem::of_folder(&folder));
    let on = on.ok()?; // told already
    let cautions = on.cautions();
    (!cautions.is_empty()).then(|| format!("its file system ({}): {}", on.name, cautions.join("; ")))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn an_archive_that_is_a_link_is_noticed() {
        let temp = tempfile::tempdir().unwrap();
        let root = confined::root(temp.path()).unwrap();
        assert!(!has_archive_elsewhere(&root));
        let sent = temp.path().join(own_folder::NAME).join("sent");
        std::fs::create_dir_all(&sent).unwrap();
        assert!(!has_archive_elsewhere(&root));
        std::fs::remove_dir(&sent).unwrap();
        std::os::unix::fs::symlink(temp.path(), &sent).unwrap();
        assert!(has_archive_elsewhere(&root));
    }

    #[test]
    fn folders_are_looked_at_without_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        assert!(folder(dir.path(), None).is_ok());
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
        let held = folder(dir.path(), Some("another one has it")).unwrap_err();
        assert!(held.message.contains("another one has it"), "{held}");
        let missing = folder(&dir.path().join("none"), None).unwrap_err();
        assert_eq!(missing.exit, Exit::NoInput);
        assert!(missing.hint.is_some());
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(folder(&file, None).unwrap_err().exit, Exit::CannotCreate);
    }

    #[test]
    fn room_is_held_against_what_stays_free() {
        let disk = Disk {
            device: 0,
            free: 10 << 30,
            size: 100 << 30,
            inodes: None,
        };
        assert!(room(disk, Some(0)).is_ok() && room(disk, Some(9 << 30)).is_ok() && room(disk, None).is_ok());
        for min_free in [10 << 30, 900 << 30] {
            let fatal = room(disk, Some(min_free)).unwrap_err();
            assert!(fatal.message.contains("10.0 GiB of 100.0 GiB"), "{fatal}");
        }
    }

    #[test]
    fn max_wait_is_held_against_quiet() {
        let waits = |times: &str| {
            let text = format!("[[outbox]]\npath = \"/o\"\n{times}");
            let config = config::parse(&text, Path::new("/c.toml"), None).unwrap();
            waits(&config.outboxes[0]).map(|fatal| fatal.message)
        };
        assert_eq!(waits(""), None);
        assert_eq!(waits("quiet = \"1s\"\nmax_wait = \"1s\""), None);
        for times in ["max_wait = \"1s\"", "quiet = \"1h\""] {
            assert!(waits(times).is_some(), "{times}");
        }
    }

    #[test]
    fn what_is_not_trusted_is_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let _untrusted = file_system::pretend(FileSystem::default());
        let text = caution(dir.path()).unwrap();
        assert!(text.contains("unknown") && !text.contains('\n'), "{text}");
    }
}
