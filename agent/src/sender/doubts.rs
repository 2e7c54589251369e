//! Found versions that may be known, whatever their times and numbers say: the disk is asked, and the answer decides
//! whether they are queued.
//!
//! Each outbox has a lane of its own, since a disk may hang and comparing takes as long as reading. What is in it is
//! bounded: what finds no room is found again by a scan.

use std::{
    collections::BTreeMap,
    mem,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use dropwire_protocol::RemotePath;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    outboxes::Outboxes,
    presence::{self, Presence},
    source,
};
use crate::{
    blocking::blocking,
    clock::{now_ms, reached},
    config::Current,
    db::DbError,
    error::chain,
    failpoints,
    fs::version::Found,
    poison::Unpoisoned as _,
    queue::{Doubt, Question, Queue},
};

/// Most that wait in a lane.
const MOST: usize = 16 * 1024;
/// Answered together, unless they hold more than [`BYTES`].
const TOGETHER: usize = 64;
/// What is read before the answers so far go to the job list.
const BYTES: u64 = 8 << 20;
/// What gave no answer (it was changed, written to or could not be read) is compared again after this.
const AGAIN: Duration = Duration::from_secs(30);

/// What answering works with; cheap to clone.
#[derive(Clone)]
pub(super) struct Task {
    pub(super) config: Current,
    pub(super) queue: Queue,
    pub(super) outboxes: Outboxes,
}

/// The doubts of one outbox.
#[derive(Default)]
pub(super) struct Doubts {
    waiting: Mutex<Waiting>,
    /// One for each lane.
    more: [Notify; 2],
}

#[derive(Default)]
struct Waiting {
    /// The last one of each path.
    doubts: BTreeMap<RemotePath, Doubt>,
    /// Some found no room.
    missed: bool,
}

/// What the disk says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Comparison {
    /// It is another item than the earlier one.
    New,
    /// It is the earlier one.
    Same,
    /// It is not there any more.
    Nothing,
    /// That cannot be told now.
    Unclear,
}

impl Doubts {
    /// Takes these in; the latest of a path counts.
    pub(super) fn add(&self, doubts: Vec<Doubt>) {
        if doubts.is_empty() {
            return;
        }
        let mut waiting = self.lock();
        for doubt in doubts {
            let path = doubt.new.found.path.clone();
            if waiting.doubts.len() < MOST || waiting.doubts.contains_key(&path) {
                waiting.doubts.insert(path, doubt);
            } else {
                waiting.missed = true;
            }
        }
        self.more.iter().for_each(Notify::notify_one);
    }

    /// Answers them until cancelled, in two lanes: what takes long to read holds up nothing else.
    pub(super) async fn run(&self, task: &Task, cancel: &CancellationToken) {
        tokio::join!(
            self.run_lane(task, cancel, false),
            self.run_lane(task, cancel, true)
        );
    }

    /// One after the other.
    async fn run_lane(&self, task: &Task, cancel: &CancellationToken, large: bool) {
        let (mut unclear, mut again_at) = (BTreeMap::new(), None);
        while !cancel.is_cancelled() {
            let doubts = self.take(large);
            if doubts.is_empty() {
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = self.more[usize::from(large)].notified() => {}
                    () = reached(again_at) => {
                        again_at = None;
                        mem::take(&mut unclear).into_values().for_each(|found| task.outboxes.recheck(&found));
                    }
                }
                continue;
            }
            let outbox = doubts.first().map(|doubt| doubt.new.found.outbox);
            let stop = cancel.clone();
            let answered = blocking(move || answer_some(doubts, &|| stop.is_cancelled()));
            let Some(Ok((answered, rest))) = cancel.run_until_cancelled(answered).await else {
                return; // a disk that hangs holds up no end
            };
            self.put_back(rest);
            for (doubt, answer) in &answered {
                if *answer == Comparison::Unclear && unclear.len() < MOST {
                    let found: &Found = &doubt.new.found;
                    unclear.insert(found.path.clone(), found.clone());
                    again_at = again_at.or(Some(Instant::now() + AGAIN));
                }
            }
            let acted = self.act_on(task, answered).await;
            if let Err(error) = &acted {
                warn!(error = %chain(error), "files could not be queued");
            }
            if (acted.is_err() || self.is_done_but_missed())
                && let Some(outbox) = outbox.and_then(|outbox| task.outboxes.with_id(outbox))
            {
                outbox.find_again();
            }
        }
    }

    async fn act_on(&self, task: &Task, answered: Vec<(Doubt, Comparison)>) -> Result<(), DbError> {
        let (mut new, mut same) = (Vec::new(), Vec::new());
        let mut linger = Duration::ZERO; // one outbox, one linger
        for (doubt, answer) in answered {
            let Doubt {
                new: mut item,
                earlier,
                ..
            } = doubt;
            match answer {
                Comparison::New => {
                    item.is_not = Some(earlier);
                    new.push(item);
                }
                Comparison::Same => {
                    debug!(path = %item.found.path, "touched, but its bytes were delivered already");
                    linger = task.config.get().linger(&item.root);
                    same.push((earlier, item.found));
                }
                Comparison::Nothing | Comparison::Unclear => {}
            }
        }
        if !same.is_empty() {
            let told = task.queue.same(same, now_ms(), linger).await?;
            told.into_iter().for_each(|peer| task.queue.wake(peer));
        }
        if !new.is_empty() {
            self.add(task.queue.enqueue(new, now_ms()).await?.doubts);
        }
        Ok(())
    }

    /// Of a lane, those that are answered the soonest.
    fn take(&self, large: bool) -> Vec<Doubt> {
        let mut waiting = self.lock();
        let its = waiting
            .doubts
            .iter()
            .filter(|(_, doubt)| is_large(doubt) == large);
        let mut its: Vec<_> = its.map(|(path, doubt)| (cost(doubt), path)).collect();
        if its.len() > TOGETHER {
            its.select_nth_unstable(TOGETHER);
            its.truncate(TOGETHER);
        }
        its.sort_unstable();
        let paths: Vec<_> = its.into_iter().map(|(_, path)| path.clone()).collect();
        paths
            .iter()
            .filter_map(|path| waiting.doubts.remove(path))
            .collect()
    }

    /// Unless a later one of the same path came meanwhile.
    fn put_back(&self, doubts: Vec<Doubt>) {
        let mut waiting = self.lock();
        for doubt in doubts {
            waiting
                .doubts
                .entry(doubt.new.found.path.clone())
                .or_insert(doubt);
        }
    }

    fn is_done_but_missed(&self) -> bool {
        let mut waiting = self.lock();
        waiting.doubts.is_empty() && mem::take(&mut waiting.missed)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unpoisoned()
    }
}

/// Bytes that are read for the answer.
fn cost(doubt: &Doubt) -> u64 {
    match doubt.question {
        Question::IsThere => 0,
        Question::IsOther(_) => doubt.new.found.version.size,
    }
}

fn is_large(doubt: &Doubt) -> bool {
    cost(doubt) >= BYTES && !failpoints::mutant("doubt-lanes")
}

/// Those that were answered, and the rest. Blocks for the disk.
fn answer_some(doubts: Vec<Doubt>, stopped: &dyn Fn() -> bool) -> (Vec<(Doubt, Comparison)>, Vec<Doubt>) {
    let (mut answered, mut read) = (Vec::new(), 0_u64);
    let mut doubts = doubts.into_iter();
    for doubt in doubts.by_ref() {
        let answer = answer(&doubt, stopped);
        read = read.saturating_add(cost(&doubt));
        answered.push((doubt, answer));
        if read >= BYTES || stopped() {
            break;
        }
    }
    (answered, doubts.collect())
}

fn answer(doubt: &Doubt, stopped: &dyn Fn() -> bool) -> Comparison {
    let (root, found) = (&doubt.new.root, &doubt.new.found);
    match doubt.question {
        Question::IsThere => match presence::find(root, found) {
            Presence::There(_) => Comparison::New,
            Presence::Missing => Comparison::Nothing,
            Presence::Spooled | Presence::Unknown => Comparison::Unclear,
        },
        Question::IsOther(delivered) => match source::digest_of(root, found, stopped) {
            Ok((digest, _)) if digest == delivered => Comparison::Same,
            Ok(_) => Comparison::New,
            Err(_) => Comparison::Unclear,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use dropwire_protocol::{Digest, RunningDigest};

    use super::*;
    use crate::{
        config::AfterSend,
        fs::{
            confined, folder_id, own_folder,
            version::{Found, OutboxId, Version},
        },
        queue::{ItemId, NewItem},
    };

    fn doubt(root: &Path, outbox: OutboxId, name: &str, question: Question) -> Doubt {
        let version = Version::read(&fs::File::open(root.join(name)).unwrap())
            .unwrap()
            .0;
        let found = Found {
            outbox,
            path: RemotePath::parse(name.as_bytes()).unwrap(),
            version,
        };
        let new = NewItem {
            found,
            root: root.to_owned(),
            origin: None,
            after_send: AfterSend::Keep,
            marker: None,
            peers: Vec::new(),
            is_not: None,
        };
        Doubt {
            new,
            earlier: ItemId(1),
            question,
        }
    }

    fn digest(bytes: &[u8]) -> Digest {
        let mut hash = RunningDigest::default();
        hash.update(bytes);
        hash.value()
    }

    #[test]
    fn the_disk_decides() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        let outbox = OutboxId(folder_id::create(&confined::root(root).unwrap()).unwrap());
        fs::write(root.join("file"), "bytes").unwrap();
        crate::fs::version::rests(root);
        let ask = |question| doubt(root, outbox, "file", question);
        let (there, same, other) = (
            ask(Question::IsThere),
            ask(Question::IsOther(digest(b"bytes"))),
            ask(Question::IsOther(digest(b"other"))),
        );
        let asked = |doubt: &Doubt| answer(doubt, &|| false);
        assert_eq!(asked(&there), Comparison::New);
        assert_eq!(asked(&same), Comparison::Same);
        assert_eq!(asked(&other), Comparison::New);
        assert_eq!(answer(&same, &|| true), Comparison::Unclear, "stopped");
        fs::write(root.join("file"), "changed").unwrap();
        assert_eq!(
            (asked(&there), asked(&same)),
            (Comparison::Nothing, Comparison::Unclear)
        );
        fs::rename(root.join(own_folder::NAME), root.join("aside")).unwrap();
        assert_eq!(asked(&there), Comparison::Unclear, "it may be another folder");
    }

    #[test]
    fn what_takes_long_to_read_holds_up_nothing_else() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("file"), "bytes").unwrap();
        let other = Question::IsOther(digest(b"other"));
        let one = doubt(temp.path(), OutboxId([1; 16]), "file", other);
        let sized = |(name, size)| {
            let mut one = one.clone();
            let found = &mut one.new.found;
            (found.path, found.version.size) = (RemotePath::parse(name).unwrap(), size);
            one
        };
        let all: [(&[u8], u64); 4] = [(b"a", 1 << 40), (b"b", BYTES), (b"c", 5), (b"d", 1)];
        let doubts = Doubts::default();
        doubts.add(all.into_iter().map(sized).collect());
        let names = |large| -> Vec<String> {
            let taken = doubts.take(large).into_iter();
            taken.map(|doubt| doubt.new.found.path.to_string()).collect()
        };
        assert_eq!(names(false), ["d", "c"]);
        assert_eq!(names(true), ["b", "a"]);
    }

    #[test]
    fn many_wait_in_bounded_room_and_are_answered_a_few_at_a_time() {
        let temp = tempfile::tempdir().unwrap();
        let outbox = OutboxId([1; 16]);
        fs::write(temp.path().join("file"), "bytes").unwrap();
        let one = doubt(temp.path(), outbox, "file", Question::IsThere);
        let named = |name: String| {
            let mut one = one.clone();
            one.new.found.path = RemotePath::parse(name.as_bytes()).unwrap();
            one
        };
        let doubts = Doubts::default();
        doubts.add((0..MOST).map(|n| named(n.to_string())).collect());
        doubts.add(vec![named("0".into())]);
        assert!(!doubts.lock().missed, "known there");
        doubts.add(vec![named("one too many".into())]);
        assert!(doubts.lock().missed && !doubts.is_done_but_missed());
        assert_eq!(doubts.lock().doubts.len(), MOST);
        let taken = doubts.take(false);
        assert_eq!(taken.len(), TOGETHER);
        let mut large = taken.clone();
        large[0].new.found.version.size = BYTES;
        large[0].question = Question::IsOther(digest(b"other"));
        let (answered, rest) = answer_some(large, &|| false);
        assert_eq!((answered.len(), rest.len()), (1, TOGETHER - 1));
        doubts.put_back(taken);
        while !doubts.take(false).is_empty() {}
        assert!(
            doubts.is_done_but_missed() && !doubts.is_done_but_missed(),
            "a scan finds it, once"
        );
    }
}
