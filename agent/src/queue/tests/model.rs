//! Random operations on the job list and on a model of it in memory, which have to agree after each one.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::queue::schema::{ItemState, Step};

#[derive(Clone, Debug)]
enum Op {
    /// `same`: whatever its version, its bytes are those that lie there already.
    Find {
        path: u8,
        version: i64,
        same: bool,
    },
    Deliver {
        id: usize,
        digest: u8,
    },
    Retry {
        id: usize,
    },
    GiveUp,
    Cancel {
        id: usize,
    },
    Resend {
        id: usize,
    },
    Recount {
        id: usize,
    },
    Dispose {
        stays: bool,
    },
    Leave {
        resting: usize,
    },
    Withdrawn {
        id: usize,
    },
    Forgotten {
        id: usize,
    },
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let id = 0..100usize;
    prop_oneof![
        6 => (0..2u8, 0..3i64, any::<bool>()).prop_map(|(path, version, same)| Op::Find { path, version, same }),
        8 => (id.clone(), prop_oneof![9 => Just(1u8), 1 => Just(2u8)]).prop_map(|(id, digest)| Op::Deliver { id, digest }),
        1 => id.clone().prop_map(|id| Op::Retry { id }),
        1 => Just(Op::GiveUp),
        2 => id.clone().prop_map(|id| Op::Cancel { id }),
        4 => id.clone().prop_map(|id| Op::Resend { id }),
        2 => id.clone().prop_map(|id| Op::Recount { id }),
        4 => prop::bool::weighted(0.3).prop_map(|stays| Op::Dispose { stays }),
        2 => id.clone().prop_map(|resting| Op::Leave { resting }),
        2 => id.clone().prop_map(|id| Op::Withdrawn { id }),
        2 => id.prop_map(|id| Op::Forgotten { id }),
        1 => Just(Op::Restart),
    ]
}

struct ModelItem {
    path: u8,
    version: i64,
    /// When it became this version.
    since: usize,
    keep: bool,
    retimed: bool,
    state: ItemState,
    jobs: Vec<ModelJob>,
}

struct ModelJob {
    peer: AgentId,
    /// Oldest first; the last one is present. With the digest of its receipt.
    ids: Vec<(TransferId, Option<u8>)>,
    state: JobState,
}

impl ModelJob {
    fn id(&self) -> TransferId {
        self.ids[self.ids.len() - 1].0
    }

    fn digest(&self) -> Option<u8> {
        self.ids[self.ids.len() - 1].1
    }
}

#[derive(Default)]
struct Model {
    items: Vec<ModelItem>,
    closing: BTreeMap<TransferId, Step>,
}

impl Model {
    fn all_ids(&self) -> Vec<TransferId> {
        let jobs = self.items.iter().flat_map(|d| &d.jobs);
        jobs.flat_map(|j| j.ids.iter().map(|(id, _)| *id)).collect()
    }

    /// The item and the job that have this id, and whether it is the present one.
    fn find(&self, id: TransferId) -> Option<(usize, usize, bool)> {
        self.items.iter().enumerate().find_map(|(d, item)| {
            item.jobs.iter().enumerate().find_map(|(j, job)| {
                let at = job.ids.iter().position(|(known, _)| *known == id)?;
                Some((d, j, at + 1 == job.ids.len()))
            })
        })
    }

    /// The newest one of this version.
    fn newest(&self, path: u8, version: i64) -> Option<usize> {
        let same = |d: &usize| self.items[*d].path == path && self.items[*d].version == version;
        (0..self.items.len())
            .filter(same)
            .max_by_key(|d| self.items[*d].since)
    }

    fn is_new(&self, path: u8, version: i64) -> bool {
        let newest = self.newest(path, version);
        newest.is_none_or(|d| self.items[d].state == ItemState::Left)
    }

    /// What has to be asked before a new version is queued.
    fn doubted(&self, path: u8, version: i64, keep: bool) -> Option<(usize, bool)> {
        let delivered = |d: &usize| {
            let jobs = self.items[*d].jobs.iter();
            jobs.into_iter().any(|j| j.state == JobState::Delivered)
        };
        let kept = self.lies(path).filter(|d| keep && delivered(d));
        kept.map(|d| (d, true))
            .or_else(|| Some((self.newest(path, version)?, false)))
    }

    fn lies(&self, path: u8) -> Option<usize> {
        let lying = |d: &ModelItem| matches!(d.state, ItemState::Open | ItemState::Stays);
        self.items.iter().position(|d| d.path == path && lying(d))
    }

    fn leave(&mut self, item: usize) {
        self.items[item].state = ItemState::Left;
        for job in &self.items[item].jobs {
            if job.digest().is_some() {
                self.closing.insert(job.id(), Step::Forget);
            }
        }
    }

    fn end(&mut self, item: usize, job: usize, state: JobState) {
        let id = self.items[item].jobs[job].id();
        self.items[item].jobs[job].state = state;
        self.closing.insert(id, Step::Withdraw);
        self.settle(item);
    }

    fn settle(&mut self, item: usize) {
        let d = &mut self.items[item];
        let count = |state| d.jobs.iter().filter(|j| j.state == state).count();
        if d.state != ItemState::Open || count(JobState::Queued) > 0 {
            return;
        }
        let delivered = d.jobs.iter().filter(|j| j.state == JobState::Delivered);
        let digests: BTreeSet<_> = delivered.map(|j| j.digest()).collect();
        if digests.len() > 1 {
            self.leave(item);
        } else if d.keep || count(JobState::Delivered) < d.jobs.len() {
            d.state = ItemState::Stays;
        } else {
            d.state = ItemState::Acknowledged;
        }
    }

    fn deliver(&mut self, id: TransferId, digest: u8) {
        let Some((d, j, present)) = self.find(id) else {
            return;
        };
        let left = self.items[d].state == ItemState::Left;
        let job = &mut self.items[d].jobs[j];
        let entry = job.ids.iter_mut().find(|(known, _)| *known == id).unwrap();
        if entry.1.is_some() {
            return;
        }
        entry.1 = Some(digest);
        if present && job.state == JobState::Queued {
            job.state = JobState::Delivered;
            self.settle(d);
            self.retime(d, j);
        } else if !present || left {
            self.closing.insert(id, Step::Forget);
        } else {
            self.closing.remove(&id);
        }
    }

    fn retime(&mut self, item: usize, job: usize) {
        let d = &self.items[item];
        let lies = matches!(d.state, ItemState::Open | ItemState::Stays);
        if d.retimed && lies && d.jobs[job].state == JobState::Delivered {
            self.closing.insert(d.jobs[job].id(), Step::Retime);
        }
    }

    fn renew(&mut self, item: usize, job: usize, new: TransferId) {
        let old = self.items[item].jobs[job].ids.last().copied().unwrap();
        let step = if old.1.is_some() {
            Step::Forget
        } else {
            Step::Withdraw
        };
        self.closing.insert(old.0, step);
        self.items[item].jobs[job].ids.push((new, None));
        self.items[item].jobs[job].state = JobState::Queued;
    }
}

/// Present id, peer, state, and the digest of its receipt.
type JobLine = ([u8; 16], [u8; 32], JobState, Option<[u8; 32]>);

/// The job list under test, and what it should hold.
struct Pair {
    folder: tempfile::TempDir,
    queue: Queue,
    model: Model,
    /// Versions that items became.
    steps: usize,
}

impl Pair {
    async fn apply(&mut self, op: &Op) {
        let ids = self.model.all_ids();
        let pick = |n: usize| ids.get(n % ids.len().max(1)).copied();
        let queue = &self.queue;
        match *op {
            Op::Find { path, version, same } => self.find(path, version, same).await,
            Op::Deliver { id, digest } => {
                let Some(id) = pick(id) else { return };
                let items = queue
                    .delivered(vec![proof(id, digest)], 1)
                    .await
                    .unwrap()
                    .acknowledged;
                let before = self.acknowledged();
                self.model.deliver(id, digest);
                assert_eq!(items.len(), self.acknowledged() - before);
            }
            Op::Retry { id } => {
                let Some(id) = pick(id) else { return };
                queue.retry(id, "no".into(), 5, 1).await.unwrap();
            }
            Op::GiveUp => {
                let ended = queue.expire(Duration::ZERO, 1).await.unwrap();
                let queued: Vec<_> = ids.into_iter().filter(|id| self.queued(*id).is_some()).collect();
                assert_eq!(ended.len(), queued.len());
                for id in queued {
                    self.end(id, JobState::Failed);
                }
            }
            Op::Cancel { id } => {
                let Some(id) = pick(id) else { return };
                let ended = queue.cancel(vec![id], 1).await.unwrap();
                assert_eq!(ended.len(), usize::from(self.end(id, JobState::Cancelled)));
            }
            Op::Resend { id } => {
                let Some(id) = pick(id) else { return };
                let now = queue.resend(vec![id], 1).await.unwrap();
                self.resend(id, &now);
            }
            Op::Recount { id } => {
                let Some(id) = pick(id) else { return };
                let new = queue.recount(id, 1).await.unwrap();
                let job = self.queued(id);
                assert_eq!(new.is_some(), job.is_some());
                if let (Some(new), Some((d, j))) = (new, job) {
                    self.model.renew(d, j, new);
                }
            }
            Op::Dispose { stays } => self.dispose(stays).await,
            Op::Leave { resting } => {
                let all = queue.resting(ItemId(0), 100).await.unwrap();
                let Some(resting) = all.get(resting % all.len().max(1)) else {
                    return;
                };
                queue.left(vec![resting.item]).await.unwrap();
                let item = usize::try_from(resting.item.0 - 1).unwrap();
                self.model.leave(item);
            }
            Op::Withdrawn { id } => {
                let Some(id) = pick(id) else { return };
                queue.withdrawn(vec![id], 1).await.unwrap();
                if self.model.closing.get(&id) == Some(&Step::Withdraw) {
                    self.model.closing.insert(id, Step::Forget);
                }
            }
            Op::Forgotten { id } => {
                let Some(id) = pick(id) else { return };
                queue.forgotten(vec![id]).await.unwrap();
                if self.model.closing.get(&id) == Some(&Step::Forget) {
                    self.model.closing.remove(&id);
                }
            }
            Op::Restart => self.queue = super::queue(self.folder.path()).await,
        }
    }

    async fn find(&mut self, path: u8, version: i64, same: bool) {
        let keep = path == 1;
        let seen = found(&path.to_string(), version);
        let is_new = self.model.is_new(path, version);
        assert_eq!(is_unknown(&self.queue, seen.clone()).await, is_new);
        let after_send = if keep { AfterSend::Keep } else { AfterSend::Delete };
        let new = item_of(seen.clone(), after_send, &[1, 2]);
        let mut done = self.queue.enqueue(vec![new], 1).await.unwrap();
        let doubted = self.model.doubted(path, version, keep).filter(|_| is_new);
        assert_eq!(done.doubts.len(), usize::from(doubted.is_some()));
        if let (Some(doubt), Some((earlier, is_kept))) = (done.doubts.pop(), doubted) {
            assert!(done.queued.is_empty());
            assert_eq!(doubt.earlier, ItemId(earlier as i64 + 1));
            assert_eq!(matches!(doubt.question, Question::IsOther(_)), is_kept);
            if is_kept && same {
                let same = vec![(doubt.earlier, seen)];
                self.queue.same(same, 0, Duration::ZERO).await.unwrap();
                self.steps += 1;
                let item = &mut self.model.items[earlier];
                item.retimed = true;
                (item.version, item.since) = (version, self.steps);
                (0..2).for_each(|job| self.model.retime(earlier, job));
                return assert!(!self.model.is_new(path, version));
            }
            let mut new = doubt.new;
            new.is_not = Some(doubt.earlier);
            done = self.queue.enqueue(vec![new], 1).await.unwrap();
            assert!(done.doubts.is_empty(), "answered");
        }
        assert_eq!(done.queued.len(), if is_new { 2 } else { 0 });
        let known = self.model.all_ids();
        assert!(
            done.queued.iter().all(|id| !known.contains(id)),
            "an id is used once"
        );
        if !is_new {
            return;
        }
        if let Some(older) = self.model.lies(path) {
            self.model.leave(older);
            for j in 0..2 {
                if self.model.items[older].jobs[j].state == JobState::Queued {
                    self.model.end(older, j, JobState::Failed);
                }
            }
        }
        let job = |(n, id): (u8, &TransferId)| ModelJob {
            peer: peer(n),
            ids: vec![(*id, None)],
            state: JobState::Queued,
        };
        self.steps += 1;
        self.model.items.push(ModelItem {
            path,
            version,
            since: self.steps,
            keep,
            retimed: false,
            state: ItemState::Open,
            jobs: (1..).zip(&done.queued).map(job).collect(),
        });
    }

    async fn dispose(&mut self, stays: bool) {
        let Some(first) = self.queue.to_dispose(OUTBOX, ItemId(0), 1).unwrap().pop() else {
            return;
        };
        let error = stays.then(|| (first.found.version, "changed".to_string()));
        self.queue.disposed(vec![(first.item, error)], 1).await.unwrap();
        let item = usize::try_from(first.item.0 - 1).unwrap();
        let d = &self.model.items[item];
        assert!(!d.keep && d.jobs.iter().all(|j| j.state == JobState::Delivered));
        if stays && self.model.lies(d.path).is_none() {
            self.model.items[item].state = ItemState::Stays;
        } else {
            self.model.leave(item);
        }
    }

    fn resend(&mut self, id: TransferId, now: &[TransferId]) {
        let Some((d, j, true)) = self.model.find(id) else {
            return assert!(now.is_empty());
        };
        match self.model.items[d].jobs[j].state {
            JobState::Queued => assert_eq!(now, [id]),
            JobState::Delivered => assert!(now.is_empty()),
            _ if self.model.items[d].state == ItemState::Left => assert!(now.is_empty()),
            _ => {
                assert_ne!(now, [id]);
                self.model.renew(d, j, now[0]);
                self.model.items[d].state = ItemState::Open;
            }
        }
    }

    fn queued(&self, id: TransferId) -> Option<(usize, usize)> {
        let (d, j, present) = self.model.find(id)?;
        (present && self.model.items[d].jobs[j].state == JobState::Queued).then_some((d, j))
    }

    fn end(&mut self, id: TransferId, state: JobState) -> bool {
        let job = self.queued(id);
        if let Some((d, j)) = job {
            self.model.end(d, j, state);
        }
        job.is_some()
    }

    fn acknowledged(&self) -> usize {
        let state = |d: &&ModelItem| d.state == ItemState::Acknowledged;
        self.model.items.iter().filter(state).count()
    }

    async fn compare(&self) {
        let (items, jobs, closing) = self
            .queue
            .call(|db| {
                let items: Vec<ItemState> = db
                    .prepare("SELECT state FROM drops ORDER BY id")?
                    .query_map([], |row| row.get(0))?
                    .collect::<rusqlite::Result<_>>()?;
                let jobs: Vec<JobLine> = db
                    .prepare("SELECT transfer, peer, state, sha256 FROM jobs ORDER BY id")?
                    .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
                    .collect::<rusqlite::Result<_>>()?;
                let closing: Vec<([u8; 16], Step)> = db
                    .prepare("SELECT transfer, step FROM closing ORDER BY transfer")?
                    .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                    .collect::<rusqlite::Result<_>>()?;
                Ok((items, jobs, closing))
            })
            .await
            .unwrap();
        let model = &self.model;
        assert_eq!(items, model.items.iter().map(|d| d.state).collect::<Vec<_>>());
        let expected: Vec<_> = model.items.iter().flat_map(|d| &d.jobs).collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|j| (j.id().0, j.peer.0, j.state, j.digest().map(|d| [d; 32])))
            .collect();
        assert_eq!(jobs, expected);
        let expected: Vec<_> = model.closing.iter().map(|(id, step)| (id.0, *step)).collect();
        assert_eq!(closing, expected);
        self.counts_agree(&jobs.iter().map(|j| (AgentId(j.1), j.2)).collect::<Vec<_>>())
            .await;
    }

    async fn counts_agree(&self, jobs: &[(AgentId, JobState)]) {
        let counted = self.queue.counts().await.unwrap().peers;
        let listed = |job: &(AgentId, JobState)| counted.iter().any(|(peer, _)| *peer == job.0);
        assert!(jobs.iter().all(listed));
        for (peer, counts) in counted {
            let count = |state| jobs.iter().filter(|job| **job == (peer, state)).count() as u64;
            let expected = PeerCounts {
                queued: count(JobState::Queued),
                delivered: count(JobState::Delivered),
                failed: count(JobState::Failed),
                cancelled: count(JobState::Cancelled),
            };
            assert_eq!(counts, expected);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_list_agrees_with_its_model(ops in prop::collection::vec(op(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let queue = queue(folder.path()).await;
            let mut pair = Pair { folder, queue, model: Model::default(), steps: 0 };
            for op in &ops {
                pair.apply(op).await;
                pair.compare().await;
            }
        });
    }
}
