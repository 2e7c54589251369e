//! What goes into the job list and comes out of it, and how a row becomes a [`Job`].

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use dropwire_protocol::{AgentId, Digest, Kind, Manifest, Mtime, RemotePath, TransferId, message::LateTime};
use rusqlite::{Row, types::Type};

use crate::{
    config::AfterSend,
    fs::version::{Found, OutboxId, Version},
};

/// One version of a file in an outbox.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ItemId(pub i64);

/// A settled file that is to be queued (after S1).
#[derive(Clone, PartialEq, Debug)]
pub struct NewItem {
    /// Which version of which file.
    pub found: Found,
    /// Where that outbox lies now; holds for all its items from then on.
    pub root: PathBuf,
    /// The absolute path that a user knows it by, if it is another than `root/path` (a copy that `send` took).
    pub origin: Option<PathBuf>,
    /// What becomes of the file once every peer has it.
    pub after_send: AfterSend,
    /// What the name of its marker adds to its own, where it waited for one; the marker leaves with it.
    pub marker: Option<String>,
    /// Who gets it. Without any, nothing is queued.
    pub peers: Vec<AgentId>,
    /// It was found to be another item than this one, see [`Doubt`].
    pub is_not: Option<ItemId>,
}

impl NewItem {
    /// Each once.
    pub(super) fn sorted_peers(&self) -> Vec<AgentId> {
        let mut peers = self.peers.clone();
        peers.sort_unstable();
        peers.dedup();
        peers
    }
}

/// A found version of which the list cannot tell whether it is a new item: what lies in the outbox decides.
#[derive(Clone, PartialEq, Debug)]
pub struct Doubt {
    /// Queued as it is, once `is_not` names `earlier`.
    pub new: NewItem,
    /// The item that it may be.
    pub earlier: ItemId,
    /// What is asked.
    pub question: Question,
}

/// What tells a found version from an earlier item.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// Is it there? The same version had left, so it is new if it is there now; else it was only seen before it left.
    IsThere,
    /// Does it have other bytes than these, which were delivered, and which this outbox keeps, or which may only have
    /// been out of sight? Times and numbers alone do not make it new.
    IsOther(Digest),
}

/// What [`super::Queue::enqueue`] did.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Enqueued {
    /// The new jobs; none for a version that was known.
    pub queued: Vec<TransferId>,
    /// What was not queued because it may be known: to be answered by queueing it with `is_not`, or by
    /// [`super::Queue::same`].
    pub doubts: Vec<Doubt>,
}

/// Where a job stands. All but `Queued` are final until a deliberate resend; *sending* is not a state on disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum JobState {
    /// Waits for its peer, its turn or its next attempt, or is under way.
    Queued,
    /// The peer has it and said so.
    Delivered,
    /// Given up; `error` says why.
    Failed,
    /// The user does not want it sent.
    Cancelled,
}

/// Small files go many at a time and must not wait behind a large one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Class {
    /// A [small](Version::is_small) file.
    Small,
    /// More, or a whole folder.
    Large,
}

impl Class {
    /// Of what has this version.
    pub fn of(version: &Version) -> Self {
        if version.is_small() {
            Self::Small
        } else {
            Self::Large
        }
    }
}

/// One item on its way to one peer. Times are milliseconds since 1970.
#[derive(Clone, PartialEq, Debug)]
pub struct Job {
    /// Rises with each new job.
    pub row: i64,
    /// What the peer knows it by; a resend changes it.
    pub id: TransferId,
    /// Whose version it carries.
    pub item: ItemId,
    /// To whom.
    pub peer: AgentId,
    /// Which outbox, where in it, and the version; ctime as last witnessed.
    pub found: Found,
    /// Where the outbox lay when it was last heard of.
    pub root: PathBuf,
    /// See [`NewItem::origin`].
    pub origin: Option<PathBuf>,
    /// What becomes of the file.
    pub after_send: AfterSend,
    /// Where it stands.
    pub state: JobState,
    /// How often it was tried in vain since it was queued.
    pub attempts: u32,
    /// Not before this (queued jobs).
    pub next_attempt_ms: i64,
    /// Why the last attempt or the job failed.
    pub error: Option<String>,
    /// When it was queued, or queued again.
    pub queued_ms: i64,
    /// When it reached its end state.
    pub ended_ms: Option<i64>,
    /// The receiver's clock, from the receipt. Set also where a receipt came for a job that had ended otherwise.
    pub delivered_ms: Option<i64>,
    /// The path below the receiver's inbox.
    pub delivered_as: Option<RemotePath>,
    /// Of the whole file.
    pub sha256: Option<Digest>,
}

impl Job {
    /// What the offer says.
    pub fn manifest(&self) -> Manifest {
        let kind = self.found.version.kind();
        let mtime = match kind {
            Kind::Folder => Mtime { seconds: 0, nanos: 0 },
            Kind::File => self.found.version.mtime(),
        };
        Manifest {
            path: self.found.path.clone(),
            size: self.found.version.size,
            mtime,
            kind,
        }
    }

    /// The path a user knows the file by.
    pub fn absolute(&self) -> PathBuf {
        match &self.origin {
            Some(origin) => origin.clone(),
            None => self.root.join(path_of(self.found.path.as_bytes())),
        }
    }
}

/// What there is to do on the link to a peer.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Todo {
    /// Transfers that ended here and whose outcome the peer has to be asked for; some of them.
    pub withdraw: Vec<TransferId>,
    /// Transfers whose outcome is on our disk for good: the peer may forget them; some of them.
    pub forget: Vec<TransferId>,
    /// Modification times that files of these got after they had been sent.
    pub times: Vec<LateTime>,
    /// Modification times of files that stay; some of those whose time has come.
    pub retimed: Vec<LateTime>,
    /// Jobs whose time has come.
    pub due: Vec<Job>,
    /// When the next job, or the next late time to be told, becomes due; None when nothing waits for its time.
    pub next_due_ms: Option<i64>,
}

/// A line of a listing.
#[derive(Clone, PartialEq, Debug)]
pub struct JobRow {
    /// The page after this line starts here, see [`Page`].
    pub cursor: i64,
    /// The job.
    pub job: Job,
}

/// Which jobs a listing holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    /// Only these.
    pub state: Option<JobState>,
    /// Only to this peer.
    pub peer: Option<AgentId>,
    /// Ended ones only if they ended at or after this; queued ones always.
    pub since_ms: i64,
}

/// A stretch of a listing, in the order of queueing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page {
    /// The last line's cursor; 0 for the first page.
    pub after: i64,
    /// Most lines.
    pub limit: usize,
}

/// A receipt whose signature and fields were found right against what was read.
#[derive(Clone, PartialEq, Debug)]
pub struct Proof {
    /// Which transfer.
    pub id: TransferId,
    /// The version that it was found right for; None: whichever the item is.
    pub version: Option<Version>,
    /// The encoded receipt, as it came.
    pub receipt: Vec<u8>,
    /// From it.
    pub delivered_as: RemotePath,
    /// From it.
    pub digest: Digest,
    /// From it: the receiver's clock, milliseconds since 1970.
    pub delivered_at_ms: i64,
}

/// What [`super::Queue::delivered`] did.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Recorded {
    /// Drops that every peer has now and whose file is to be disposed of.
    pub acknowledged: Vec<ItemId>,
    /// Queued jobs whose item has come to be another version: that has to be compared with the receipt first.
    pub unproven: Vec<TransferId>,
}

/// A file that every peer has: what S5 needs.
#[derive(Clone, PartialEq, Debug)]
pub struct DueDisposal {
    /// Which item.
    pub item: ItemId,
    /// 32 hex digits, unique and the same at every call: its name in `.dropwire/leaving`.
    pub name: String,
    /// Where the outbox lies.
    pub root: PathBuf,
    /// Outbox, path and the acknowledged version.
    pub found: Found,
    /// Of the bytes that every peer acknowledged.
    pub digest: Digest,
    /// When the last peer had it; milliseconds since 1970.
    pub delivered_ms: i64,
    /// Archive or delete; never keep.
    pub after_send: AfterSend,
    /// See [`NewItem::marker`].
    pub marker: Option<String>,
}

/// A version that is known and stays in its outbox.
#[derive(Clone, PartialEq, Debug)]
pub struct Resting {
    /// Which item.
    pub item: ItemId,
    /// Where the outbox lies.
    pub root: PathBuf,
    /// Outbox, path and version, ctime as last witnessed.
    pub found: Found,
    /// Of what was delivered, if anything was.
    pub digest: Option<Digest>,
    /// The running time since it was first missed; None while it is there.
    pub missed: Option<Duration>,
}

/// How many jobs there are, as far as they are still listed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// For each peer that ever had a job.
    pub peers: Vec<(AgentId, PeerCounts)>,
    /// Queued jobs of each outbox that ever had one.
    pub outboxes: Vec<(OutboxId, u64)>,
    /// When the queued job that waits longest was queued, milliseconds since 1970.
    pub oldest_queued_ms: Option<i64>,
}

/// One peer's jobs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)] // the states themselves
pub struct PeerCounts {
    pub queued: u64,
    pub delivered: u64,
    pub failed: u64,
    pub cancelled: u64,
}

/// The columns that [`job_of`] reads, from [`JOB_TABLES`].
pub(super) const JOB_COLUMNS: &str = "o.mark, o.root, d.path, d.inode, d.birth_ns, d.size, d.mtime_ns, d.ctime_ns, \
    d.folder, j.id, j.transfer, j.drop_id, j.peer, d.origin, d.after_send, j.state, j.attempts, j.next_attempt_ms, j.error, \
    j.queued_ms, j.ended_ms, j.delivered_ms, j.delivered_as, j.sha256";

/// A job with its item and outbox; jobs come first whatever the planner thinks of it.
pub(super) const JOB_TABLES: &str =
    "jobs j CROSS JOIN drops d ON d.id = j.drop_id CROSS JOIN outboxes o ON o.id = d.outbox";

/// Reads [`JOB_COLUMNS`].
pub(super) fn job_of(row: &Row<'_>) -> rusqlite::Result<JobRow> {
    let (found, root) = found_of(row)?;
    let delivered_as: Option<Vec<u8>> = row.get(22)?;
    Ok(JobRow {
        cursor: row.get(9)?,
        job: Job {
            row: row.get(9)?,
            id: TransferId(row.get(10)?),
            item: ItemId(row.get(11)?),
            peer: AgentId(row.get(12)?),
            found,
            root,
            origin: row.get::<_, Option<Vec<u8>>>(13)?.as_deref().map(path_of),
            after_send: row.get(14)?,
            state: row.get(15)?,
            attempts: row.get(16)?,
            next_attempt_ms: row.get(17)?,
            error: row.get(18)?,
            queued_ms: row.get(19)?,
            ended_ms: row.get(20)?,
            delivered_ms: row.get(21)?,
            delivered_as: delivered_as.map(|bytes| remote_path(22, &bytes)).transpose()?,
            sha256: row.get::<_, Option<[u8; 32]>>(23)?.map(Digest),
        },
    })
}

/// Reads the first nine of [`JOB_COLUMNS`]: what was found, and the outbox's root.
pub(super) fn found_of(row: &Row<'_>) -> rusqlite::Result<(Found, PathBuf)> {
    let found = Found {
        outbox: OutboxId(row.get(0)?),
        path: remote_path(2, &row.get::<_, Vec<u8>>(2)?)?,
        version: Version {
            inode: row.get::<_, i64>(3)?.cast_unsigned(),
            birth_ns: row.get(4)?,
            size: row.get::<_, i64>(5)?.cast_unsigned(),
            mtime_ns: row.get(6)?,
            ctime_ns: row.get(7)?,
            folder: row.get(8)?,
        },
    };
    Ok((found, path_of(&row.get::<_, Vec<u8>>(1)?)))
}

fn remote_path(column: usize, bytes: &[u8]) -> rusqlite::Result<RemotePath> {
    RemotePath::parse(bytes)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Blob, Box::new(e)))
}

/// A path as bytes: on Unix exactly, elsewhere as UTF-8 (what is no Unicode there is replaced).
pub(super) fn path_bytes(path: &Path) -> Vec<u8> {
    #[cfg(unix)]
    return std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()).to_vec();
    #[cfg(not(unix))]
    return path.to_string_lossy().into_owned().into_bytes();
}

/// The path that [`path_bytes`] made bytes of.
pub(super) fn path_of(bytes: &[u8]) -> PathBuf {
    #[cfg(unix)]
    return <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(bytes).into();
    #[cfg(not(unix))]
    return String::from_utf8_lossy(bytes).into_owned().into();
}
