//! A job as it is listed.

use std::path::PathBuf;

use dropwire_protocol::{Digest, RemotePath, TransferId};
use serde::{Deserialize, Serialize};

use crate::control::wire::{self, Failure, Raw, Time};

/// Where a job stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Waits, perhaps for its next attempt.
    Queued,
    /// Under way.
    Sending,
    /// Receipt in.
    Delivered,
    /// Ended; `error` says why.
    Failed,
    /// Ended by command.
    Cancelled,
}

impl JobState {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Sending => "sending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing more happens to it.
    pub fn ended(self) -> bool {
        matches!(self, Self::Delivered | Self::Failed | Self::Cancelled)
    }
}

/// What a job carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobKind {
    /// A file.
    #[default]
    File,
    /// A whole folder; `size` counts its stream.
    Folder,
}

/// One line of `jobs`: a file, or a whole folder, on its way to a peer. Made by [`JobReport::new`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct JobReport {
    /// 32 hex digits.
    pub job: String,
    /// Our name for the peer.
    pub peer: String,
    /// Absolute.
    pub path: String,
    /// Relative to the outbox.
    pub name: String,
    /// What it is.
    #[serde(default)]
    pub kind: JobKind,
    /// Bytes.
    pub size: u64,
    /// Where it stands.
    pub state: JobState,
    /// Attempts made.
    pub attempts: u32,
    /// When it is tried again, if it is in backoff.
    pub next_attempt_at: Option<Time>,
    /// Bytes that the receiver has, a resumed prefix included.
    pub sent_bytes: u64,
    /// What went wrong last, or why it ended.
    pub error: Option<String>,
    /// When the file was queued.
    pub queued_at: Time,
    /// When the receiver had it, by the receiver's clock.
    pub delivered_at: Option<Time>,
    /// Lower-case hex, from the receipt.
    pub sha256: Option<String>,
    /// The path below the receiver's inbox, from the receipt.
    pub delivered_as: Option<String>,
    /// `path` where it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<Raw>,
    /// `name` where it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_bytes: Option<Raw>,
    /// `delivered_as` where it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered_as_bytes: Option<Raw>,
}

/// What a [`JobReport`] is made of, before it is written by the rules for names and times.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // as in the report
pub struct JobParts {
    pub id: TransferId,
    /// Our name for the peer.
    pub peer: String,
    /// Absolute.
    pub path: PathBuf,
    /// Relative to the outbox.
    pub name: RemotePath,
    pub kind: JobKind,
    pub size: u64,
    pub state: JobState,
    pub attempts: u32,
    /// Milliseconds since 1970, as all times here.
    pub next_attempt_at_ms: Option<i64>,
    pub sent_bytes: u64,
    pub error: Option<String>,
    pub queued_at_ms: i64,
    pub delivered_at_ms: Option<i64>,
    pub digest: Option<Digest>,
    pub delivered_as: Option<RemotePath>,
}

impl JobReport {
    /// Writes the parts as the JSON has them.
    pub fn new(parts: JobParts) -> Self {
        let (path, path_bytes) = wire::named(wire::path_bytes(&parts.path));
        let (name, name_bytes) = wire::named(parts.name.as_bytes());
        let delivered_as = parts.delivered_as.map(|path| wire::named(path.as_bytes()));
        let (delivered_as, delivered_as_bytes) = match delivered_as {
            Some((text, bytes)) => (Some(text), bytes),
            None => (None, None),
        };
        Self {
            job: parts.id.to_string(),
            peer: parts.peer,
            path,
            name,
            kind: parts.kind,
            size: parts.size,
            state: parts.state,
            attempts: parts.attempts,
            next_attempt_at: parts.next_attempt_at_ms.map(Time::from_ms),
            sent_bytes: parts.sent_bytes,
            error: parts.error,
            queued_at: Time::from_ms(parts.queued_at_ms),
            delivered_at: parts.delivered_at_ms.map(Time::from_ms),
            sha256: parts.digest.map(|digest| digest.to_string()),
            delivered_as,
            path_bytes,
            name_bytes,
            delivered_as_bytes,
        }
    }

    /// The name's own bytes; not safe to show.
    pub fn raw_name(&self) -> &[u8] {
        wire::raw(&self.name, &self.name_bytes)
    }

    /// The bytes of `delivered_as`; not safe to show.
    pub fn raw_delivered_as(&self) -> Option<&[u8]> {
        self.delivered_as
            .as_ref()
            .map(|text| wire::raw(text, &self.delivered_as_bytes))
    }
}

/// Which jobs a listing has; None: all.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct JobFilter {
    /// Only those that stand there.
    pub state: Option<JobState>,
    /// Only those for this peer: its name or id.
    pub peer: Option<String>,
}

/// Part of a listing.
#[derive(Clone, PartialEq, Debug)]
pub struct JobPage {
    /// At most [`crate::control::PAGE`].
    pub jobs: Vec<JobReport>,
    /// Asks for the page after this; None at the end.
    pub next: Option<String>,
}

/// One line of a listing on its way: a job, or at the end why the rest is missing.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ListLine {
    /// The next job.
    Job(Box<JobReport>),
    /// No more follow.
    Failure {
        /// Why.
        failure: Failure,
    },
}

impl ListLine {
    /// The line of a job.
    pub fn job(job: JobReport) -> Self {
        Self::Job(Box::new(job))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::wire::LocalPath;
    use serde_json::{Value, json};

    #[test]
    fn a_job_that_waits_has_every_key_and_no_second_keys() {
        let mut parts = delivered(b"a/b.txt", b"b.txt");
        parts.state = JobState::Queued;
        parts.delivered_at_ms = None;
        parts.digest = None;
        parts.delivered_as = None;
        let expected = json!({
            "job": "07070707070707070707070707070707", "peer": "office", "path": "/out/a/b.txt", "name": "a/b.txt",
            "kind": "file", "size": 5, "state": "queued", "attempts": 2, "next_attempt_at": "1970-01-01T00:00:01.500Z",
            "sent_bytes": 3, "error": "refused", "queued_at": "1970-01-01T00:00:00.001Z", "delivered_at": null,
            "sha256": null, "delivered_as": null,
        });
        let report = JobReport::new(parts);
        assert_eq!(serde_json::to_value(&report).unwrap(), expected);
        assert_eq!(serde_json::from_value::<JobReport>(expected).unwrap(), report);
    }

    #[test]
    fn a_delivered_job_says_when_what_and_where() {
        let value = serde_json::to_value(JobReport::new(delivered(b"b.txt", b"b (1).txt"))).unwrap();
        assert_eq!(value["state"], "delivered");
        assert_eq!(value["delivered_at"], "1970-01-01T00:00:02.000Z");
        assert_eq!(value["sha256"], "ab".repeat(32));
        assert_eq!(value["delivered_as"], "b (1).txt");
    }

    #[cfg(unix)]
    #[test]
    fn names_that_are_not_utf_8_stand_in_second_keys() {
        let report = JobReport::new(delivered(b"\xff.txt", b"\xff (1).txt"));
        let value = serde_json::to_value(&report).unwrap();
        assert_eq!(value["path"], "/out/\u{fffd}.txt");
        assert_eq!(value["path_bytes"], "L291dC//LnR4dA==");
        assert_eq!(value["name"], "\u{fffd}.txt");
        assert_eq!(value["name_bytes"], "/y50eHQ=");
        assert_eq!(value["delivered_as"], "\u{fffd} (1).txt");
        assert_eq!(value["delivered_as_bytes"], "/yAoMSkudHh0");
        assert_eq!(report.raw_name(), b"\xff.txt");
        assert_eq!(report.raw_delivered_as(), Some(&b"\xff (1).txt"[..]));
    }

    #[test]
    fn keys_that_are_not_known_yet_do_no_harm() {
        let mut value = serde_json::to_value(JobReport::new(delivered(b"b", b"b"))).unwrap();
        value["later"] = Value::Bool(true);
        assert!(serde_json::from_value::<JobReport>(value).is_ok());
    }

    fn delivered(name: &[u8], delivered_as: &[u8]) -> JobParts {
        let LocalPath(path) =
            serde_json::from_value(serde_json::to_value(Raw([b"/out/", name].concat())).unwrap()).unwrap();
        JobParts {
            id: TransferId([7; 16]),
            peer: "office".into(),
            path,
            name: RemotePath::parse(name).unwrap(),
            kind: JobKind::File,
            size: 5,
            state: JobState::Delivered,
            attempts: 2,
            next_attempt_at_ms: Some(1500),
            sent_bytes: 3,
            error: Some("refused".into()),
            queued_at_ms: 1,
            delivered_at_ms: Some(2000),
            digest: Some(Digest([0xab; 32])),
            delivered_as: Some(RemotePath::parse(delivered_as).unwrap()),
        }
    }
}
