//! `send`: checks the files that a command passes, takes copies of them, and queues these with the last request.
//!
//! Whoever asks has opened the files with their own rights. The path that they tell is a claim: it is shown to people,
//! and decides only where the file found there is the one that was passed.

mod rules;

use std::{fs::File, io::ErrorKind, path::PathBuf};

use dropwire_protocol::{AgentId, TransferId};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::peers::find_peer;
use crate::{
    blocking::blocking,
    config::Current,
    control::{
        Passed,
        api::{SendFile, SendReply, SendRequest},
        passing::GROUP,
    },
    db::Db,
    error::{Exit, Fatal},
    io_error::{Meaning, Wait, meaning},
    leaving::spool::{Copied, Filling, Original, SpoolError},
    queue::Queue,
    sender,
};
pub(super) use rules::Folders;
use rules::Rules;

/// A `send` that is not queued yet. Dropped before that, nothing of it stays.
#[derive(Default)]
pub struct Sending(Option<Box<Begun>>);

struct Begun {
    filling: Filling,
    rules: Rules,
}

impl Drop for Sending {
    fn drop(&mut self) {
        let Some(begun) = self.0.take() else { return };
        let discard = move || begun.discard();
        // Dropped with a connection: removing files may block.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(discard)),
            Err(_) => discard(),
        }
    }
}

/// What a `send` works with.
pub(super) struct Context {
    pub config: Current,
    pub db: Db,
    pub queue: Queue,
    /// Where the copies go.
    pub spool: PathBuf,
    /// As they are now.
    pub folders: Folders,
}

/// Takes what one request passes.
pub(super) async fn take(
    context: Context,
    sending: &mut Sending,
    request: SendRequest,
    passed: Passed,
) -> Result<SendReply, Fatal> {
    let Context {
        config,
        db,
        queue,
        spool,
        folders,
    } = context;
    let config = config.get();
    let peers = request.peers.iter().map(|p| find_peer(&config, p).map(|p| p.id));
    let peers = peers.collect::<Result<Vec<AgentId>, Fatal>>()?;
    if peers.is_empty() || request.files.len() > GROUP || passed.files.len() > request.files.len() {
        return Err(Fatal::new(Exit::Usage, "this is no request to send files"));
    }
    if let Some(full) = db.is_short_of_room() {
        return Err(Fatal::new(Exit::Disk, full.text).hint(full.hint));
    }
    // Whoever asked may go before the answer; what is begun for them is ended all the same.
    let asked = CancellationToken::new();
    let gone = asked.clone();
    let _asked = asked.drop_guard();
    let begun = sending.0.take();
    let work = async move {
        let group = move || {
            let begun = begun.unwrap_or_else(|| {
                Box::new(Begun {
                    filling: Filling::new(spool),
                    rules: Rules::new(folders),
                })
            });
            take_group(begun, &request, passed, &|| !gone.is_cancelled())
        };
        match blocking(group).await?? {
            Taken::Some(begun, taken) => Ok((Sending(Some(begun)), reply(taken, &[]))),
            Taken::Whole(copies, taken) => {
                let jobs = sender::take_copies(&queue, copies, &peers).await?;
                Ok((Sending::default(), reply(taken, &jobs)))
            }
        }
    };
    let work: JoinHandle<Result<_, Fatal>> = tokio::spawn(work);
    let done = work
        .await
        .map_err(|e| Fatal::new(Exit::Failed, format_args!("a task failed: {e}")))?;
    let (left, reply) = done?;
    *sending = left;
    Ok(reply)
}

fn reply(taken: usize, jobs: &[TransferId]) -> SendReply {
    SendReply {
        taken,
        jobs: jobs.iter().map(ToString::to_string).collect(),
    }
}

/// What became of a request, and how many of its files were taken.
enum Taken {
    /// More requests follow.
    Some(Box<Begun>, usize),
    /// It was the last: all copies are on disk.
    Whole(Vec<Copied>, usize),
}

/// Copies what was passed. After an error, and where nobody waits any more without knowing whether it was taken, nothing
/// is left: it is not sent behind their back.
fn take_group(
    mut begun: Box<Begun>,
    request: &SendRequest,
    mut passed: Passed,
    waits: &dyn Fn() -> bool,
) -> Result<Taken, Fatal> {
    let files = std::mem::take(&mut passed.files);
    let taken = files.len();
    let mut copied = begun.copy(&request.files, &files, waits);
    // What was allowed for the files is given back once they are closed.
    drop(files);
    drop(passed);
    let is_whole = request.last && taken == request.files.len();
    let mut copies = Vec::new();
    if copied.is_ok() && is_whole {
        copied = begun.finish().map(|finished| copies = finished);
    }
    if !waits() {
        copied = Err(Fatal::new(Exit::Failed, "nobody waits for it any more"));
    }
    match copied {
        Ok(()) if is_whole => Ok(Taken::Whole(copies, taken)),
        Ok(()) => Ok(Taken::Some(begun, taken)),
        Err(fatal) => {
            begun.discard();
            Err(fatal)
        }
    }
}

impl Begun {
    fn copy(&mut self, named: &[SendFile], files: &[File], waits: &dyn Fn() -> bool) -> Result<(), Fatal> {
        for (named, file) in named.iter().zip(files) {
            self.rules.check(named, file)?;
            let SendFile { name, path, .. } = named;
            let original = Original {
                named: named.named,
                name: &name.0,
                path: &path.0,
                file,
            };
            self.filling
                .take(&original, waits)
                .map_err(|error| not_taken(&error))?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<Vec<Copied>, Fatal> {
        if self.filling.is_empty() {
            return Err(Fatal::new(Exit::Failed, "there is no file to send"));
        }
        self.filling.finish().map_err(|error| not_taken(&error))
    }

    fn discard(self) {
        if let Err(error) = self.filling.discard() {
            tracing::warn!(%error, "copies of a `send` that was broken off stay until the next start");
        }
    }
}

/// The disk is to blame only for what is left when the file itself is not.
fn not_taken(error: &SpoolError) -> Fatal {
    let fatal = Fatal::io(format_args!("cannot take {}", error.path), &error.source);
    let with = |exit: Exit| Fatal::new(exit, &fatal.message);
    match (error.source.kind(), meaning(&error.source)) {
        (ErrorKind::InvalidInput, _) => with(Exit::NoInput),
        (ErrorKind::WouldBlock, _) => with(Exit::NotYet).hint("try again once it is closed"),
        (_, Meaning::NotNow(Wait::Shortage)) => {
            with(Exit::NotYet).hint("the agent is short of descriptors or memory: try again in a moment")
        }
        _ => fatal,
    }
}

#[cfg(test)]
mod tests;
