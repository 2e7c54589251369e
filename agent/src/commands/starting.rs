//! The agent as its control socket shows it from the first moment on: while it starts, it says what it waits for.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{problems, running_agent::RunningAgent, send};
use crate::{
    control::{
        self, Passed,
        api::{
            AdoptReply, AdoptRequest, Changed, JobFilter, JobPage, JobReport, SCHEMA, Selection, SendReply,
            SendRequest, StatusReport, WhyQuery, WhyReport,
        },
    },
    db::{Trouble, Waits},
    error::{Exit, Fatal},
};

/// How long an answer waits for a start that waits for nothing.
const PATIENCE: Duration = Duration::from_secs(10);

/// An agent that starts, or has started.
pub struct Starting {
    name: String,
    state_dir: PathBuf,
    began: Instant,
    waits: Waits,
    agent: watch::Sender<Option<Arc<RunningAgent>>>,
    cancel: CancellationToken,
}

impl Starting {
    /// Of the agent that is called `name`; it waits with `waits`, and ends with `cancel`.
    pub fn new(name: &str, state_dir: &Path, waits: Waits, cancel: CancellationToken) -> Self {
        Self {
            name: name.to_owned(),
            state_dir: state_dir.to_owned(),
            began: Instant::now(),
            waits,
            agent: watch::Sender::new(None),
            cancel,
        }
    }

    /// From now on `agent` answers.
    pub fn runs(&self, agent: RunningAgent) {
        self.agent.send_replace(Some(Arc::new(agent)));
    }

    /// The agent, as soon as it runs; before, what it waits for, if that is known.
    async fn agent(&self) -> Result<Arc<RunningAgent>, Option<Trouble>> {
        let (mut agent, mut waits) = (self.agent.subscribe(), self.waits.now());
        tokio::select! {
            biased;
            Ok(agent) = agent.wait_for(Option::is_some) => agent.clone().ok_or(None),
            Ok(trouble) = waits.wait_for(Option::is_some) => Err(trouble.clone()),
            () = tokio::time::sleep(PATIENCE) => Err(None),
            () = self.cancel.cancelled() => Err(None),
        }
    }

    /// For all that needs the job list.
    async fn running(&self) -> Result<Arc<RunningAgent>, Fatal> {
        self.agent().await.map_err(|trouble| match trouble {
            Some(trouble) => {
                let text = format!("the agent is starting and waits: {}", trouble.text);
                Fatal::new(Exit::Unavailable, text).hint(trouble.hint)
            }
            None => Fatal::new(Exit::Unavailable, "the agent is starting").hint("try again in a moment"),
        })
    }

    fn report(&self, trouble: Option<Trouble>) -> StatusReport {
        StatusReport {
            schema: SCHEMA,
            name: self.name.clone(),
            id: String::new(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_seconds: self.began.elapsed().as_secs_f64(),
            starting: true,
            listen: None,
            config_error: None,
            problems: trouble
                .map(|trouble| problems::of_state(&self.state_dir, trouble))
                .into_iter()
                .collect(),
            outboxes: Vec::new(),
            inbox: None,
            peers: Vec::new(),
            oldest_undelivered_seconds: None,
        }
    }
}

impl control::Agent for Starting {
    async fn status(&self) -> Result<StatusReport, Fatal> {
        match self.agent().await {
            Ok(agent) => agent.status().await,
            Err(trouble) => Ok(self.report(trouble)),
        }
    }

    async fn jobs(&self, filter: JobFilter, page: Option<String>) -> Result<JobPage, Fatal> {
        self.running().await?.jobs(filter, page).await
    }

    async fn job(&self, id: String) -> Result<JobReport, Fatal> {
        self.running().await?.job(id).await
    }

    async fn why(&self, query: WhyQuery) -> Result<WhyReport, Fatal> {
        self.running().await?.why(query).await
    }

    type Sending = send::Sending;

    async fn send(
        &self,
        sending: &mut send::Sending,
        request: SendRequest,
        passed: Passed,
    ) -> Result<SendReply, Fatal> {
        self.running().await?.send(sending, request, passed).await
    }

    async fn retry(&self, selection: Selection) -> Result<Changed, Fatal> {
        self.running().await?.retry(selection).await
    }

    async fn cancel(&self, selection: Selection) -> Result<Changed, Fatal> {
        self.running().await?.cancel(selection).await
    }

    async fn adopt(&self, request: AdoptRequest) -> Result<AdoptReply, Fatal> {
        self.running().await?.adopt(request).await
    }
}
