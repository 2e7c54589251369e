//! Carries out what commands ask of a running agent, and of one that starts.

mod adopt;
mod explain;
mod jobs;
mod peers;
mod problems;
mod running_agent;
mod selection;
mod send;
mod starting;
mod status;
mod why;

use std::sync::Arc;

use crate::{
    blocking::blocking,
    control::{
        Agent, Passed,
        api::{
            AdoptReply, AdoptRequest, Changed, JobFilter, JobPage, JobReport, Selection, SendReply,
            SendRequest, StatusReport, WhyQuery, WhyReport,
        },
    },
    error::Fatal,
    leaving::spool,
    owner::Me,
};
pub use adopt::{Adopter, InboxLock, setting_trouble, trouble as folder_trouble};
pub use peers::{Names, SCHEMA_1};
pub use running_agent::{ConfigError, RunningAgent};
use selection::Change;
pub use starting::Starting;

impl Agent for RunningAgent {
    type Sending = send::Sending;

    async fn status(&self) -> Result<StatusReport, Fatal> {
        status::report(self).await
    }

    async fn jobs(&self, filter: JobFilter, page: Option<String>) -> Result<JobPage, Fatal> {
        jobs::page(self, filter, page).await
    }

    async fn job(&self, prefix: String) -> Result<JobReport, Fatal> {
        jobs::one(self, &prefix).await
    }

    async fn why(&self, query: WhyQuery) -> Result<WhyReport, Fatal> {
        why::report(self, query).await
    }

    async fn send(
        &self,
        sending: &mut send::Sending,
        request: SendRequest,
        passed: Passed,
    ) -> Result<SendReply, Fatal> {
        let work = send::Context {
            config: self.config.clone(),
            db: self.db.clone(),
            queue: self.queue.clone(),
            spool: self.state_dir.join(spool::FOLDER),
            folders: send::Folders::of(
                &self.state_dir,
                &self.config.get(),
                &self.outboxes.all(),
                &self.inbox,
            ),
        };
        send::take(work, sending, request, passed).await
    }

    async fn retry(&self, which: Selection) -> Result<Changed, Fatal> {
        selection::apply(&self.queue, &self.links, &self.names, which, Change::Retry).await
    }

    async fn cancel(&self, which: Selection) -> Result<Changed, Fatal> {
        selection::apply(&self.queue, &self.links, &self.names, which, Change::Cancel).await
    }

    async fn adopt(&self, request: AdoptRequest) -> Result<AdoptReply, Fatal> {
        let config = self.config.get();
        let adopter = Adopter {
            me: Me {
                id: self.own,
                name: config.name.clone(),
            },
            config,
            db: self.db.clone(),
            queue: self.queue.clone(),
        };
        let lock = InboxLock::of(&self.inbox);
        let reply = adopter.answer(request, Arc::new(lock)).await?;
        if reply.adopted {
            for outbox in self.outboxes.all() {
                outbox.find_folder();
            }
            let inbox = self.inbox.clone();
            blocking(move || inbox.recheck().ok()).await?;
            self.queue.wake_all();
        }
        Ok(reply)
    }
}
