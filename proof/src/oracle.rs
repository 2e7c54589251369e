//! Compares what was dropped with what came of it. Every finding is a sentence; none means that all is well.

use std::{collections::BTreeMap, fs, path::Path};

use crate::{
    harness::files,
    scenario::Drop,
    world::{Side, World},
};

/// How many times each content is there, with one name it was found under.
type Contents = BTreeMap<String, (usize, String)>;

/// Right after the fault, before anything is started again: what is visible is whole, nothing is there twice, and what
/// the sender let go of is there. `taken`: what the job list calls delivered, where it could be asked.
pub fn at_the_fault(world: &World, drops: &[Drop], strangers: &[Drop]) -> Vec<String> {
    let mut found = Vec::new();
    let inbox = inbox(world);
    torn_or_doubled(&inbox, drops, strangers, &mut found);
    let (wanted, left) = (contents_of(drops), still_there(world));
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
pub fn receipts_are_true(world: &World, jobs: &[serde_json::Value]) -> Vec<String> {
    let inbox = &world.home(Side::Receiver).inbox;
    let mut found = Vec::new();
    for job in jobs.iter().filter(|j| j["state"] == "delivered") {
        let (name, place, digest) = (
            text(&job["name"]),
            text(&job["delivered_as"]),
            text(&job["sha256"]),
        );
        match files::sha256(&inbox.join(place)) {
            Ok(there) if there == digest => {}
            Ok(_) => found.push(format!(
                "wrongly acknowledged: {place} ({name}) has other bytes than its receipt"
            )),
            Err(e) => found.push(format!("wrongly acknowledged: {place} ({name}): {e}")),
        }
    }
    found
}

/// Why it is not at rest yet: cheap looks first.
pub fn at_rest(world: &World, drops: usize, strangers: usize) -> Result<(), String> {
    let (sender, receiver) = (world.home(Side::Sender), world.home(Side::Receiver));
    let lying = files::list(&sender.outbox);
    if !lying.is_empty() {
        return Err(format!("{} files lie in the outbox", lying.len()));
    }
    for folder in [sender.leaving(), receiver.partials()] {
        let left = files::files_in(&folder);
        if !left.is_empty() {
            return Err(format!("{} files lie in {}", left.len(), folder.display()));
        }
    }
    let came = files::list(&receiver.inbox).len();
    if came < drops + strangers {
        return Err(format!("{came} of {} files are in the inbox", drops + strangers));
    }
    let jobs = world.jobs().ok_or("the sender does not answer `jobs`")?;
    let open = jobs.iter().filter(|j| j["state"] != "delivered").count();
    if jobs.len() < drops || open > 0 {
        return Err(format!(
            "{} jobs for {drops} drops, {open} of them not delivered",
            jobs.len()
        ));
    }
    Ok(())
}

/// The last word, at rest.
pub fn judge(world: &World, drops: &[Drop], strangers: &[Drop]) -> Vec<String> {
    let mut found = Vec::new();
    let inbox = inbox(world);
    torn_or_doubled(&inbox, drops, strangers, &mut found);
    for (digest, (count, name)) in contents_of(drops) {
        let came = inbox.get(&digest).map_or(0, |c| c.0);
        if came < count {
            found.push(format!("lost: {name} is {came} times in the inbox"));
        }
    }
    for stranger in strangers {
        let path = world.home(Side::Receiver).inbox.join(&stranger.name);
        if fs::read(&path).ok().as_deref() != Some(&stranger.bytes[..]) {
            found.push(format!("overwritten: {}", stranger.name));
        }
    }
    let archived = contents(&world.home(Side::Sender).sent());
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
    match world.jobs() {
        None => found.push("the sender does not answer `jobs`".into()),
        Some(jobs) => {
            if jobs.len() != drops.len() {
                found.push(format!("{} jobs for {} drops", jobs.len(), drops.len()));
            }
            found.extend(receipts_are_true(world, &jobs));
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

/// What the inbox shows.
fn inbox(world: &World) -> Contents {
    contents(&world.home(Side::Receiver).inbox)
}

/// What the sender still has, wherever on its way out.
fn still_there(world: &World) -> Contents {
    let home = world.home(Side::Sender);
    let mut all = contents(&home.outbox);
    for path in files::files_in(&home.leaving()) {
        if let Ok(digest) = files::sha256(&path) {
            all.entry(digest).or_insert((0, path.display().to_string())).0 += 1;
        }
    }
    all
}

fn contents(folder: &Path) -> Contents {
    let mut all = Contents::new();
    for (path, digest) in files::digests(folder) {
        all.entry(digest).or_insert((0, path.display().to_string())).0 += 1;
    }
    all
}

fn contents_of(drops: &[Drop]) -> Contents {
    let mut all = Contents::new();
    for drop in drops {
        all.entry(drop.sha256.clone()).or_insert((0, drop.name.clone())).0 += 1;
    }
    all
}

fn text(value: &serde_json::Value) -> &str {
    value.as_str().unwrap_or_default()
}
