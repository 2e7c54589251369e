//! The agent's local ear: HTTP over a Unix socket, for the commands that ask a running agent.
//!
//! [`socket`] makes the file, [`Socket`] keeps it there, [`server`] answers on it by way of [`Agent`], [`client`] asks; what travels is [`api`], and
//! open files beside it ([`passing`]).
//! The room knows no other: `commands` implements [`Agent`] and fills in the values.

pub mod api;
pub mod client;
pub mod passing;
mod places;
pub mod server;
pub mod socket;
mod upkeep;
pub mod wire;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(all(test, unix))]
mod tests;

use std::{future::Future, time::Duration};

use api::{
    AdoptReply, AdoptRequest, Changed, JobFilter, JobPage, JobReport, Selection, SendReply, SendRequest,
    StatusReport, WhyQuery, WhyReport,
};
pub use client::Client;
pub use passing::Passed;
pub use server::serve;
pub use socket::Access;
pub use upkeep::Socket;

use crate::error::Fatal;

/// What can be asked of a running agent.
///
/// Every future may be dropped at any await: the asker hung up, or a deadline ([`QUICK`], or [`LONG`] for `send`,
/// `retry` and `cancel`) passed. The [`Fatal`] of an answer is what the asking command prints and exits with.
pub trait Agent: Send + Sync + 'static {
    /// How everything is, now.
    fn status(&self) -> impl Future<Output = Result<StatusReport, Fatal>> + Send;

    /// One page of the job list, oldest first: open jobs and 30 days of ended ones, at most [`PAGE`] of them.
    ///
    /// `page` is None at first, then the `next` of the page before. Pages are asked for one at a time, each once the one
    /// before has been read, so memory stays bounded whatever the list's length.
    fn jobs(
        &self,
        filter: JobFilter,
        page: Option<String>,
    ) -> impl Future<Output = Result<JobPage, Fatal>> + Send;

    /// One job by a unique prefix of its id; [`crate::error::Exit::NoInput`] where there is none.
    fn job(&self, id: String) -> impl Future<Output = Result<JobReport, Fatal>> + Send;

    /// What a job or file waits for.
    fn why(&self, query: WhyQuery) -> impl Future<Output = Result<WhyReport, Fatal>> + Send;

    /// A `send` that comes in over a connection; dropped with it.
    type Sending: Default + Send + 'static;

    /// Takes copies of files and, with the last request, queues them; answers once that is on disk. After an error, or
    /// where the connection ends before the last request, nothing of this `send` is left.
    fn send(
        &self,
        sending: &mut Self::Sending,
        request: SendRequest,
        passed: Passed,
    ) -> impl Future<Output = Result<SendReply, Fatal>> + Send;

    /// Makes queued jobs due now and queues ended ones again.
    fn retry(&self, selection: Selection) -> impl Future<Output = Result<Changed, Fatal>> + Send;

    /// Ends jobs for good; their files stay.
    fn cancel(&self, selection: Selection) -> impl Future<Output = Result<Changed, Fatal>> + Send;

    /// Says what taking over a folder means, and does it.
    fn adopt(&self, request: AdoptRequest) -> impl Future<Output = Result<AdoptReply, Fatal>> + Send;
}

/// Most jobs of one page.
pub const PAGE: usize = 500;

/// Within this a question is answered, a page of jobs included.
pub const QUICK: Duration = Duration::from_secs(30);

/// Within this `send` has copied its files, and `retry` and `cancel` have changed their jobs.
pub const LONG: Duration = Duration::from_secs(24 * 60 * 60);
