//! Compares what was dropped with what came of it. Every finding is a sentence; none means that all is well.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::{
    harness::files,
    scenario::{Drop, WHOLE, tree_digest},
    world::{Home, Side},
};

/// Both agents' folders, by side.
pub type Homes = [Home; 2];

/// How many times each content is there, with one name it was found under.
type Contents = BTreeMap<String, (usize, String)>;

/// Right after the fault, before anything is started again: what is visible is whole, nothing is there twice, and what
/// the sender let go of is there.
pub fn at_the_fault(homes: &Homes, drops: &[Drop], strangers: &[Drop]) -> Vec<String> {
    let mut found = Vec::new();
    let inbox = contents(&home(homes, Side::Receiver).inbox);
    torn_or_doubled(&inbox, drops, strangers, &mut found);
    let (wanted, left) = (contents_of(drops), still_there(home(homes, Side::Sender)));
    for (digest, (count, name)) in &wanted {
        let lies = left.get(digest).map_or(0, |c| c.0);
        let came = inbox.get(digest).map_or(0, |c| c.0);
        if lies + came < *count {
            found.push(format!(
                "wrongly acknowledged: {name} left the outbox and is not in the inbox"
            ));
        }
    }
    found
}

/// What the job list calls delivered has to be in the inbox, whole and under the name of its receipt.
pub fn receipts_are_true(homes: &Homes, jobs: &[Value]) -> Vec<String> {
    let inbox = &home(homes, Side::Receiver).inbox;
    let mut found = Vec::new();
    for job in jobs.iter().filter(|j| j["state"] == "delivered") {
        let (name, place, digest) = (
            text(&job["name"]),
            text(&job["delivered_as"]),
            text(&job["sha256"]),
        );
        let path = inbox.join(place);
        let there = match path.is_dir() {
            true => tar_digest(&path),
            false => files::sha256(&path),
        };
        match there {
            Ok(there) if there == digest => {}
            Ok(_) => found.push(format!(
                "wrongly acknowledged: {place} ({name}) has other bytes than its receipt"
            )),
            Err(e) => found.push(format!("wrongly acknowledged: {place} ({name}): {e}")),
        }
    }
    found
}

/// The files that are left of drops which nobody had synced before a power cut: from then on these are what was
/// dropped, whatever they hold. Wherever the sender has them; a file under two names is one.
pub fn left_of(homes: &Homes) -> Vec<Drop> {
    let mut left = Vec::new();
    let mut known = BTreeSet::new();
    for path in senders_files(home(homes, Side::Sender)) {
        let Ok(meta) = path.metadata() else { continue };
        if known.insert(meta.ino()) {
            let bytes = fs::read(&path).unwrap_or_default();
            left.push(Drop::new(name_below(&path, home(homes, Side::Sender)), bytes));
        }
    }
    left
}

/// What was queued before the power cut was durable by then: `left` has it whole. `jobs`: all of the sender's, `cut`:
/// when it was, as they write times.
pub fn queued_is_whole(drops: &[Drop], left: &[Drop], jobs: &[Value], cut: &str) -> Vec<String> {
    let mut found = Vec::new();
    for job in jobs.iter().filter(|j| text(&j["queued_at"]) < cut) {
        let name = text(&job["name"]);
        let Some(drop) = drops.iter().find(|d| d.name == name) else {
            found.push(format!("queued: {name}, which nobody dropped"));
            continue;
        };
        if !left.iter().any(|l| l.sha256 == drop.sha256) {
            found.push(format!(
                "torn: {name} was queued, and lost or cut short by the power cut"
            ));
        } else if job["size"] != drop.bytes.len() {
            found.push(format!("torn: {name} was queued with {} bytes", job["size"]));
        }
    }
    found
}

/// Why it is not at rest yet: cheap checks first, `jobs` last.
pub fn at_rest(
    homes: &Homes,
    drops: usize,
    strangers: usize,
    jobs: impl FnOnce() -> Option<Vec<Value>>,
) -> Result<(), String> {
    let (sender, receiver) = (home(homes, Side::Sender), home(homes, Side::Receiver));
    let lying = files::list(&sender.outbox);
    if !lying.is_empty() {
        return Err(format!("{} files lie in the outbox", lying.len()));
    }
    for folder in [sender.leaving(), receiver.partials()] {
        let left = fs::read_dir(&folder).into_iter().flatten().count();
        if left > 0 {
            return Err(format!("{left} files lie in {}", folder.display()));
        }
    }
    let came = files::list(&receiver.inbox).len();
    if came < drops + strangers {
        return Err(format!("{came} of {} files are in the inbox", drops + strangers));
    }
    let jobs = jobs().ok_or("the sender does not answer `jobs`")?;
    let open = jobs.iter().filter(|j| j["state"] != "delivered").count();
    if jobs.len() < drops || open > 0 {
        return Err(format!(
            "{} jobs for {drops} drops, {open} of them not delivered",
            jobs.len()
        ));
    }
    Ok(())
}

/// The last word, at rest. `jobs`: None where the sender does not answer.
pub fn judge(homes: &Homes, drops: &[Drop], strangers: &[Drop], jobs: Option<&[Value]>) -> Vec<String> {
    let mut found = Vec::new();
    let inbox = contents(&home(homes, Side::Receiver).inbox);
    torn_or_doubled(&inbox, drops, strangers, &mut found);
    for (digest, (count, name)) in contents_of(drops) {
        let came = inbox.get(&digest).map_or(0, |c| c.0);
        if came < count {
            found.push(format!("lost: {name} is {came} times in the inbox"));
        }
    }
    for stranger in strangers {
        let path = home(homes, Side::Receiver).inbox.join(&stranger.name);
        if fs::read(&path).ok().as_deref() != Some(&stranger.bytes[..]) {
            found.push(format!("overwritten: {}", stranger.name));
        }
    }
    let archived = contents(&home(homes, Side::Sender).sent());
    let wanted = contents_of(drops);
    for (digest, (count, name)) in &wanted {
        let kept = archived.get(digest).map_or(0, |c| c.0);
        if kept != *count {
            found.push(format!("archive: {name} is {kept} times among the sent files"));
        }
    }
    for (digest, (_, name)) in &archived {
        if !wanted.contains_key(digest) {
            found.push(format!("archive: {name} has bytes that nobody dropped"));
        }
    }
    match jobs {
        None => found.push("the sender does not answer `jobs`".into()),
        Some(jobs) => {
            if jobs.len() != drops.len() {
                found.push(format!("{} jobs for {} drops", jobs.len(), drops.len()));
            }
            found.extend(receipts_are_true(homes, jobs));
        }
    }
    found
}

fn torn_or_doubled(inbox: &Contents, drops: &[Drop], strangers: &[Drop], found: &mut Vec<String>) {
    let mut wanted = contents_of(drops);
    for (digest, (count, name)) in contents_of(strangers) {
        wanted.entry(digest).or_insert((0, name)).0 += count;
    }
    for (digest, (count, name)) in inbox {
        match wanted.get(digest) {
            None => found.push(format!("torn: {name} in the inbox has bytes that nobody dropped")),
            Some((dropped, _)) if count > dropped => found.push(format!(
                "doubled: the bytes of {name} are {count} times in the inbox, dropped {dropped} times"
            )),
            Some(_) => {}
        }
    }
}

/// What the sender still has to send, wherever it is on its way out.
fn still_there(sender: &Home) -> Contents {
    let mut all = contents(&sender.outbox);
    for path in fs::read_dir(sender.leaving()).into_iter().flatten().flatten() {
        let path = path.path();
        let digest = match path.is_dir() {
            true => Ok(folder_digest(&path)),
            false => files::sha256(&path),
        };
        if let Ok(digest) = digest {
            all.entry(digest).or_insert((0, path.display().to_string())).0 += 1;
        }
    }
    all
}

/// All of them: in the outbox, leaving, archived.
fn senders_files(sender: &Home) -> Vec<PathBuf> {
    let below = |root: PathBuf| files::list(&root).into_iter().map(move |path| root.join(path));
    let outbox = below(sender.outbox.clone());
    let leaving = files::files_in(&sender.leaving());
    outbox.chain(leaving).chain(below(sender.sent())).collect()
}

fn name_below(path: &Path, sender: &Home) -> String {
    let name = path.strip_prefix(&sender.outbox).unwrap_or(path);
    name.display().to_string()
}

fn contents(folder: &Path) -> Contents {
    let mut all = Contents::new();
    let whole = |path: &Path| path.display().to_string().starts_with(WHOLE);
    for (path, digest) in files::digests(folder) {
        if !whole(&path) {
            all.entry(digest).or_insert((0, path.display().to_string())).0 += 1;
        }
    }
    // A folder that is one delivery is one thing: a part of it is other bytes.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = PathBuf::from(entry.file_name());
        if whole(&name) {
            let digest = folder_digest(&entry.path());
            all.entry(digest).or_insert((0, name.display().to_string())).0 += 1;
        }
    }
    all
}

fn folder_digest(root: &Path) -> String {
    fn collect(root: &Path, at: &Path, tree: &mut BTreeMap<PathBuf, Option<String>>) {
        for entry in fs::read_dir(at).into_iter().flatten().flatten() {
            let path = entry.path();
            let below = path.strip_prefix(root).unwrap_or(&path).to_path_buf();
            if path.is_dir() {
                tree.insert(below, None);
                collect(root, &path, tree);
            } else {
                let digest = files::sha256(&path).unwrap_or_else(|e| format!("unreadable: {e}"));
                tree.insert(below, Some(digest));
            }
        }
    }
    let mut tree = BTreeMap::new();
    collect(root, root, &mut tree);
    tree_digest(tree)
}

/// What the receipt of a whole folder names, by the command that PROTOCOL.md gives for it.
fn tar_digest(folder: &Path) -> io::Result<String> {
    let script = "set -e; cp -a \"$0\" copy; find copy -type d -exec touch -d @0 {} +
        tar -C copy -c -b1 --format=gnu --sort=name --owner=0 --group=0 --numeric-owner \
            --mode=a-x,u=rwX,go=rX --hard-dereference . | sha256sum | cut -d' ' -f1";
    let temp = tempfile::tempdir()?;
    let mut shell = Command::new("sh");
    let ran = shell
        .args(["-c", script])
        .arg(folder)
        .current_dir(temp.path())
        .output()?;
    match ran.status.success() {
        true => Ok(String::from_utf8_lossy(&ran.stdout).trim().to_owned()),
        false => Err(io::Error::other(
            String::from_utf8_lossy(&ran.stderr).into_owned(),
        )),
    }
}

fn contents_of(drops: &[Drop]) -> Contents {
    let mut all = Contents::new();
    for drop in drops {
        all.entry(drop.sha256.clone()).or_insert((0, drop.name.clone())).0 += 1;
    }
    all
}

fn home(homes: &Homes, side: Side) -> &Home {
    &homes[side as usize]
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests;
