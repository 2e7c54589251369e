//! An agent that is made up, behind a real socket: for the tests of this room and of the commands.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use dropwire_protocol::{RemotePath, TransferId};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{api::*, wire::Time, *};
use crate::error::Exit;

/// The job of this number fails; all others are delivered.
pub(crate) const FAILS: u64 = 1 << 40;
/// The job of this number is always under way.
pub(crate) const NEVER_ENDS: u64 = 1 << 41;

/// Answers from what it was asked, so that a test sees both ways.
#[derive(Default)]
pub(crate) struct Fake {
    /// How many jobs the listing has.
    pub jobs: u64,
    /// The listing fails after this many pages.
    pub broken_after: Option<usize>,
    /// How many pages were asked for.
    pub pages_made: AtomicUsize,
    /// No `send` is ever done.
    pub hangs: bool,
    /// Jobs that were asked for once.
    pub asked: Mutex<HashSet<String>>,
}

impl Agent for Fake {
    async fn status(&self) -> Result<StatusReport, Fatal> {
        Ok(StatusReport {
            schema: SCHEMA,
            name: "fake".into(),
            id: "ID".into(),
            version: "0".into(),
            pid: 7,
            uptime_seconds: 1.5,
            starting: false,
            listen: None,
            config_error: None,
            problems: Vec::new(),
            outboxes: vec![],
            inbox: None,
            peers: vec![],
            oldest_undelivered_seconds: Some(0.25),
        })
    }

    async fn jobs(&self, filter: JobFilter, page: Option<String>) -> Result<JobPage, Fatal> {
        if filter.peer.as_deref() == Some("nobody & co") {
            return Err(Fatal::new(Exit::NoInput, "no peer `nobody & co`"));
        }
        let made = self.pages_made.fetch_add(1, Ordering::SeqCst);
        if self.broken_after == Some(made) {
            return Err(Fatal::new(Exit::Disk, "the job list cannot be read").hint("look at the disk"));
        }
        let start: u64 = page.map_or(0, |token| token.parse().unwrap());
        let end = self.jobs.min(start + PAGE as u64);
        let state = filter.state.unwrap_or(JobState::Queued);
        Ok(JobPage {
            jobs: (start..end).map(|n| job(n, state)).collect(),
            next: (end < self.jobs).then(|| end.to_string()),
        })
    }

    async fn job(&self, id: String) -> Result<JobReport, Fatal> {
        let number = u64::from_str_radix(&id, 16).ok().filter(|_| id.len() == 32);
        let Some(number) = number else {
            return Err(Fatal::new(Exit::NoInput, format_args!("no job {id}")).hint("see: dropwire jobs"));
        };
        let first = self.asked.lock().unwrap().insert(id);
        Ok(job(
            number,
            match number {
                NEVER_ENDS => JobState::Sending,
                _ if first => JobState::Sending,
                FAILS => JobState::Failed,
                _ => JobState::Delivered,
            },
        ))
    }

    async fn why(&self, query: WhyQuery) -> Result<WhyReport, Fatal> {
        Ok(WhyReport {
            sentence: format!("{query:?}"),
            jobs: vec![job(1, JobState::Failed)],
            history: vec![Event {
                at: Time::from_ms(5),
                job: job(1, JobState::Failed).job,
                text: "queued".into(),
            }],
        })
    }

    type Sending = Vec<String>;

    async fn send(
        &self,
        sending: &mut Vec<String>,
        request: SendRequest,
        passed: Passed,
    ) -> Result<SendReply, Fatal> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        let taken = passed.files.len();
        for (named, file) in request.files.iter().zip(&passed.files) {
            let text = std::io::read_to_string(file).map_err(|error| Fatal::new(Exit::Failed, error))?;
            sending.push(format!("{:?} {text}", named.path.0));
        }
        let jobs = match request.last {
            true => std::mem::take(sending).into_iter().chain(request.peers).collect(),
            false => Vec::new(),
        };
        Ok(SendReply { taken, jobs })
    }

    async fn retry(&self, selection: Selection) -> Result<Changed, Fatal> {
        Ok(Changed {
            count: 1,
            jobs: selection.jobs,
        })
    }

    async fn adopt(&self, request: AdoptRequest) -> Result<AdoptReply, Fatal> {
        Ok(AdoptReply {
            folder: "/in".into(),
            reason: Some("it lost its id".into()),
            meaning: vec!["Files stay.".into()],
            adopted: request.go,
        })
    }

    async fn cancel(&self, selection: Selection) -> Result<Changed, Fatal> {
        Ok(Changed {
            count: if selection.all { 1_000_000 } else { 0 },
            jobs: vec![],
        })
    }
}

/// A client, and the agent that serves it for as long as this is there.
pub(crate) struct Served {
    pub client: Client,
    pub agent: Arc<Fake>,
    pub path: PathBuf,
    pub cancel: CancellationToken,
    pub task: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

/// Serves the agent on a socket of its own.
pub(crate) fn serve(fake: Fake) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    let socket = Socket::open(&path, Access::Owner).unwrap();
    let (agent, cancel) = (Arc::new(fake), CancellationToken::new());
    let task = tokio::spawn(super::serve(socket, Arc::clone(&agent), cancel.clone()));
    Served {
        client: Client::new(&path),
        agent,
        path,
        cancel,
        task,
        _folder: folder,
    }
}

/// A job of that number, and of that many bytes.
pub(crate) fn job(n: u64, state: JobState) -> JobReport {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&n.to_be_bytes());
    JobReport::new(JobParts {
        id: TransferId(id),
        peer: "office".into(),
        path: format!("/out/{n}").into(),
        name: RemotePath::parse(n.to_string().as_bytes()).unwrap(),
        kind: JobKind::File,
        size: n,
        state,
        attempts: 0,
        next_attempt_at_ms: None,
        sent_bytes: 0,
        error: None,
        queued_at_ms: 0,
        delivered_at_ms: None,
        digest: None,
        delivered_as: None,
    })
}

/// The id of the job of that number.
pub(crate) fn id(n: u64) -> String {
    job(n, JobState::Queued).job
}
