//! What the commands and the agent say to each other, and what `--json` prints: keys may be added, never changed.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::wire::{self, LocalPath, Raw, Time};

mod jobs;

pub use jobs::{JobFilter, JobKind, JobPage, JobParts, JobReport, JobState, ListLine};

/// The `schema` of a [`StatusReport`].
pub const SCHEMA: u32 = 1;

/// What `status` shows.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StatusReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// This agent's name.
    pub name: String,
    /// This agent's id, as people read it.
    pub id: String,
    /// The running program's version.
    pub version: String,
    /// The running program's process id.
    pub pid: u32,
    /// Seconds since the agent started.
    pub uptime_seconds: f64,
    /// It has not begun to work yet: `problems` says what it waits for, and nothing of what follows is known.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub starting: bool,
    /// The address and port in use; None on a machine that only dials.
    pub listen: Option<String>,
    /// Why the config file as it is written now does not hold, so that an earlier one does; several lines.
    #[serde(default)]
    pub config_error: Option<String>,
    /// What needs a person, the worst first.
    #[serde(default)]
    pub problems: Vec<ProblemReport>,
    /// In the config's order.
    pub outboxes: Vec<OutboxReport>,
    /// None on a machine that only sends.
    pub inbox: Option<InboxReport>,
    /// In the config's order.
    pub peers: Vec<PeerReport>,
    /// Age in seconds of the oldest job that is neither delivered nor ended.
    pub oldest_undelivered_seconds: Option<f64>,
}

/// Something in [`StatusReport`] that needs a person.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ProblemReport {
    /// A word for programs: `state_disk`, `same_identity_twice` or `cannot_leave`.
    pub kind: String,
    /// What has it: a folder, a peer.
    pub subject: String,
    /// Since when.
    pub since: Time,
    /// A sentence.
    pub text: String,
    /// The way out.
    pub hint: String,
}

/// An outbox in [`StatusReport`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct OutboxReport {
    /// Absolute.
    pub path: String,
    /// How it is watched: `native` or `poll`; `none` while it is held.
    pub watch: String,
    /// How what lies in its folders goes: `files`, each by itself, or `whole`.
    #[serde(default)]
    pub folder: String,
    /// Files whose writer may not be done.
    pub settling: u64,
    /// Open jobs.
    pub queued: u64,
    /// Why nothing is taken from it at present.
    pub held: Option<String>,
    /// Why nothing that was delivered leaves it, and the hint.
    #[serde(default)]
    pub disposal_held: Option<String>,
    /// How many delivered files cannot leave it.
    #[serde(default)]
    pub cannot_leave_count: u64,
    /// Why most of them cannot, and what can be done.
    #[serde(default)]
    pub cannot_leave: Option<String>,
    /// Since when there are some.
    #[serde(default)]
    pub cannot_leave_since: Option<Time>,
    /// Why events cannot be relied on.
    #[serde(default)]
    pub watch_reason: Option<String>,
    /// Seconds from a change to its event, as the watch's last test measured them.
    #[serde(default)]
    pub watch_latency_seconds: Option<f64>,
    /// What its file system is not trusted with, a sentence each; empty where everything is trusted.
    #[serde(default)]
    pub cautions: Vec<String>,
    /// What lies there and is not sent; the first of them by name.
    #[serde(default)]
    pub not_sent: Vec<NotSent>,
    /// How many those are in all.
    #[serde(default)]
    pub not_sent_count: u64,
    /// `path` where it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<Raw>,
}

/// Something in an outbox that is not sent.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NotSent {
    /// Below the outbox; empty for the outbox itself.
    pub name: String,
    /// Why.
    pub reason: String,
    /// `name` where it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_bytes: Option<Raw>,
}

impl NotSent {
    /// Writes `name` by the rules for names.
    pub fn new(name: &[u8], reason: String) -> Self {
        let (name, name_bytes) = wire::named(name);
        Self {
            name,
            reason,
            name_bytes,
        }
    }

    /// The name's own bytes; not safe to show.
    pub fn raw_name(&self) -> &[u8] {
        wire::raw(&self.name, &self.name_bytes)
    }
}

impl OutboxReport {
    /// Writes `path` by the rules for names; the further fields are empty.
    pub fn new(path: &Path, watch: &str, settling: u64, queued: u64, held: Option<String>) -> Self {
        let (path, path_bytes) = wire::named(wire::path_bytes(path));
        Self {
            path,
            watch: watch.to_owned(),
            folder: "files".to_owned(),
            settling,
            queued,
            held,
            disposal_held: None,
            cannot_leave_count: 0,
            cannot_leave: None,
            cannot_leave_since: None,
            watch_reason: None,
            watch_latency_seconds: None,
            cautions: Vec::new(),
            not_sent: Vec::new(),
            not_sent_count: 0,
            path_bytes,
        }
    }

    /// The path's own bytes; not safe to show.
    pub fn raw_path(&self) -> &[u8] {
        wire::raw(&self.path, &self.path_bytes)
    }
}

/// The inbox in [`StatusReport`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct InboxReport {
    /// Absolute.
    pub path: String,
    /// Free space of its file system.
    pub free_bytes: u64,
    /// Files delivered into it.
    pub received_files: u64,
    /// Bytes of those files.
    pub received_bytes: u64,
    /// Why nothing is taken in at present, or files are declined for lack of space or by its disk.
    pub held: Option<String>,
    /// The file system does not tell how much is free.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub free_unknown: bool,
    /// `path` where it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<Raw>,
}

impl InboxReport {
    /// Writes `path` by the rules for names; numbers in bytes and files.
    pub fn new(path: &Path, free_bytes: u64, files: u64, bytes: u64, held: Option<String>) -> Self {
        let (path, path_bytes) = wire::named(wire::path_bytes(path));
        Self {
            path,
            free_bytes,
            received_files: files,
            received_bytes: bytes,
            held,
            free_unknown: false,
            path_bytes,
        }
    }

    /// The path's own bytes; not safe to show.
    pub fn raw_path(&self) -> &[u8] {
        wire::raw(&self.path, &self.path_bytes)
    }
}

/// A peer in [`StatusReport`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PeerReport {
    /// Our name for it.
    pub name: String,
    /// Its id, as people read it.
    pub id: String,
    /// Whether a link to it stands.
    pub connected: bool,
    /// Whether sending to it was paused by command; always false as long as there is no such command.
    pub paused: bool,
    /// When it is dialled next.
    pub next_dial_at: Option<Time>,
    /// Why the last link or dial ended.
    pub last_error: Option<String>,
    /// Jobs that wait.
    pub queued: u64,
    /// Jobs under way.
    pub sending: u64,
    /// Jobs that failed for good.
    pub failed: u64,
    /// Jobs delivered.
    pub delivered: u64,
    /// Bytes sent since the agent started.
    pub sent_bytes: u64,
    /// Bytes received since the agent started.
    pub received_bytes: u64,
}

/// What `why` is asked about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhyQuery {
    /// A prefix of a job's id: 4 to 32 lower-case hex digits.
    Job(String),
    /// An absolute path.
    File(LocalPath),
}

/// What `why` answers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct WhyReport {
    /// What it waits for, or how it ended: one sentence, names in it escaped.
    pub sentence: String,
    /// The job, or the file's jobs, one a peer and version; empty where the file has none.
    pub jobs: Vec<JobReport>,
    /// Oldest first.
    pub history: Vec<Event>,
}

/// One line of a history.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at: Time,
    /// The job it befell: 32 hex digits.
    pub job: String,
    /// What, names in it escaped.
    pub text: String,
}

/// What `send` asks for, in one request or in several of one connection: nothing is queued before the last.
///
/// The files themselves come beside it, opened by whoever asks: see [`super::passing`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SendRequest {
    /// Names or ids; at least one, and the same in each request.
    pub peers: Vec<String>,
    /// At most [`GROUP`](super::passing::GROUP).
    pub files: Vec<SendFile>,
    /// No further request follows: all that came is queued.
    pub last: bool,
}

/// A file that is passed with a [`SendRequest`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SendFile {
    /// Which of the things that the user named it is, or is in. Two of equal names do not get in each other's way.
    pub named: u32,
    /// The path under which it is sent.
    pub name: Raw,
    /// Where it is, absolute: for people, and believed only where the file found there is the one that was passed.
    pub path: LocalPath,
    /// The file's device and inode, so that no file is ever taken for another one of the group.
    pub file: (u64, u64),
}

/// What `send` answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SendReply {
    /// How many of the request's files were taken, the first ones first. The others are to be passed again: the agent had
    /// no descriptors left for them.
    pub taken: usize,
    /// After the last request, once copies and jobs are on disk: a job for each file and peer, 32 hex digits each.
    pub jobs: Vec<String>,
}

/// Which jobs `retry` and `cancel` mean: those named, or those of a peer, or all.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Selection {
    /// Unique prefixes of job ids; one that is unknown or not unique changes nothing at all.
    pub jobs: Vec<String>,
    /// A peer's name or id.
    pub peer: Option<String>,
    /// Every job.
    pub all: bool,
}

/// What `retry` and `cancel` answer once the change is on disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Changed {
    /// How many jobs were changed.
    pub count: u64,
    /// Those that were named, by their whole ids; empty for a peer's or all.
    pub jobs: Vec<String>,
}

/// What `adopt` asks for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AdoptRequest {
    /// The folder, absolute.
    pub path: LocalPath,
    /// Do it; else only say what it means.
    pub go: bool,
}

/// What `adopt` answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AdoptReply {
    /// The folder as the config names it, escaped.
    pub folder: String,
    /// Why it is held; None: it is not, so there is nothing to adopt.
    pub reason: Option<String>,
    /// What adopting it means, in sentences.
    pub meaning: Vec<String>,
    /// It was done, durably.
    pub adopted: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_status_object_has_every_key_and_shows_nulls() {
        let report = StatusReport {
            schema: SCHEMA,
            name: "laptop".into(),
            id: "AAAAAAA".into(),
            version: "0.1.0".into(),
            pid: 1,
            uptime_seconds: 1.0,
            starting: false,
            listen: Some("127.0.0.1:7420".into()),
            config_error: None,
            problems: Vec::new(),
            outboxes: vec![OutboxReport::new(Path::new("/out"), "native", 0, 0, None)],
            inbox: Some(InboxReport::new(Path::new("/in"), 0, 0, 0, None)),
            peers: vec![PeerReport {
                name: "office".into(),
                id: "BBBBBBB".into(),
                connected: true,
                paused: false,
                next_dial_at: None,
                last_error: None,
                queued: 0,
                sending: 0,
                failed: 0,
                delivered: 0,
                sent_bytes: 0,
                received_bytes: 0,
            }],
            oldest_undelivered_seconds: None,
        };
        let expected = json!({
            "schema": 1, "name": "laptop", "id": "AAAAAAA", "version": "0.1.0", "pid": 1, "uptime_seconds": 1.0,
            "listen": "127.0.0.1:7420", "config_error": null, "problems": [],
            "outboxes": [{"path": "/out", "watch": "native", "folder": "files", "settling": 0, "queued": 0, "held": null,
                          "disposal_held": null, "cannot_leave_count": 0, "cannot_leave": null, "cannot_leave_since": null, "watch_reason": null, "watch_latency_seconds": null, "cautions": [], "not_sent": [], "not_sent_count": 0}],
            "inbox": {"path": "/in", "free_bytes": 0, "received_files": 0, "received_bytes": 0, "held": null},
            "peers": [{"name": "office", "id": "BBBBBBB", "connected": true, "paused": false, "next_dial_at": null,
                       "last_error": null, "queued": 0, "sending": 0, "failed": 0, "delivered": 0,
                       "sent_bytes": 0, "received_bytes": 0}],
            "oldest_undelivered_seconds": null,
        });
        assert_eq!(serde_json::to_value(&report).unwrap(), expected);
        assert_eq!(serde_json::from_value::<StatusReport>(expected).unwrap(), report);
    }
}
