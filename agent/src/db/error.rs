//! Why the database did not do something, or could not be opened.

use std::sync::Arc;

use tokio::task::JoinError;

use crate::{
    error::{Exit, Fatal, chain},
    io_error::Wait,
};

/// Why the database did not do it. To be shown with its cause: [`crate::error::chain`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum DbError {
    /// This change failed and was rolled back; others are not touched by it.
    #[error("a query on the job list failed")]
    Change(#[source] Arc<rusqlite::Error>),
    /// It cannot be read now (a shortage, another program's lock); later it may.
    #[error("the job list cannot be read now")]
    NotNow(Wait, #[source] Arc<rusqlite::Error>),
    /// The agent has to end.
    #[error("the job list cannot be written")]
    Failed(#[source] Failure),
}

/// Of a command that asked the job list for something.
impl From<DbError> for Fatal {
    fn from(error: DbError) -> Self {
        Self::new(Exit::Disk, chain(&error)).hint("check the disk of the state folder")
    }
}

/// Why the database does nothing any more.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// A commit failed, or the file turned out to be damaged.
    #[error(transparent)]
    Sqlite(Arc<rusqlite::Error>),
    /// The thread that writes has ended.
    #[error("its thread ended")]
    Ended,
    /// The task that asked was broken off.
    #[error(transparent)]
    Task(Arc<JoinError>),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(Arc::new(error))
    }
}

impl From<JoinError> for Failure {
    fn from(error: JoinError) -> Self {
        Self::Task(Arc::new(error))
    }
}

/// Why it could not be opened. To be shown with its cause: [`crate::error::chain`].
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file is no database, or a damaged one.
    #[error("the job list is damaged")]
    Damaged(#[source] Cause),
    /// It was written by a newer dropwire.
    #[error("the job list was written by a newer dropwire")]
    Newer(#[source] rusqlite_migration::Error),
    /// The disk or permissions.
    #[error("cannot open the job list")]
    Cannot(#[source] Cause),
    /// It may be opened later.
    #[error("the job list cannot be opened now")]
    NotNow(Wait, #[source] Cause),
}

/// Whatever kept it from being opened.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;
