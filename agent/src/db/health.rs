//! How the database is doing: what it waits for, whether its disk is short of room, whether it failed for good.

use std::{
    fmt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::watch;

use super::{error::Failure, room::Room, trouble::Trouble};
use crate::{clock::now_ms, error::shown, io_error::Wait};

/// What the database waits for: from before it is opened, so that a start can say so too.
#[derive(Clone)]
pub struct Waits {
    now: watch::Sender<Option<Trouble>>,
    file: Arc<Path>,
}

impl Waits {
    /// Of the database at `path`, for nothing yet.
    pub fn new(path: &Path) -> Self {
        Self {
            now: watch::Sender::new(None),
            file: path.into(),
        }
    }

    /// Nothing can be written until what is waited for is over. Said once.
    pub fn begin(&self, wait: Wait, reason: &dyn fmt::Display) {
        self.now.send_if_modified(|now| {
            if now.is_some() {
                return false;
            }
            let (text, hint) = told(wait, reason, &self.file);
            tracing::warn!(help = hint, "waiting: {text}");
            *now = Some(Trouble {
                since_ms: now_ms(),
                text,
                hint,
            });
            true
        });
    }

    /// It can be written again, or all the time.
    pub fn end(&self) {
        self.now.send_if_modified(|now| {
            let over = now.take();
            if let Some(over) = &over {
                tracing::info!(
                    "the job list is written again; it had waited, because {}",
                    over.text
                );
            }
            over.is_some()
        });
    }

    /// Some while something is waited for.
    pub fn now(&self) -> watch::Receiver<Option<Trouble>> {
        self.now.subscribe()
    }
}

/// Shared by the writer and all handles.
#[derive(Clone)]
pub(super) struct Health {
    pub room: Arc<Room>,
    pub waits: Waits,
    failed: watch::Sender<Option<Failure>>,
    closing: Arc<AtomicBool>,
}

impl Health {
    /// Of the database that `waits` is about.
    pub(super) fn new(waits: Waits) -> Self {
        Self {
            room: Room::open(&waits.file),
            waits,
            failed: watch::Sender::new(None),
            closing: Arc::default(),
        }
    }

    /// Nothing may be written any more, and only a new start can tell what is there.
    pub(super) fn fails(&self, why: Failure) {
        self.failed.send_if_modified(|failed| match failed {
            Some(_) => false,
            None => {
                *failed = Some(why);
                true
            }
        });
    }

    /// Some with the reason after [`Health::fails`].
    pub(super) fn failed(&self) -> watch::Receiver<Option<Failure>> {
        self.failed.subscribe()
    }

    /// Waits no longer.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Is it to end instead of waiting?
    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// The worst first.
    pub(super) fn troubles(&self) -> Vec<Trouble> {
        let waits = self.waits.now.borrow().clone();
        waits.into_iter().chain(self.room.trouble()).collect()
    }
}

/// What is waited for, and the way out.
pub fn told(wait: Wait, reason: &dyn fmt::Display, file: &Path) -> (String, String) {
    let file = shown(file);
    match wait {
        Wait::Space => (
            "the disk of the job list is full".to_owned(),
            format!("free space on the disk of {file}"),
        ),
        Wait::Busy => (
            "another program has locked the job list".to_owned(),
            format!("let the program that has {file} open finish, or end it"),
        ),
        Wait::Shortage => (
            format!(
                "this machine has too little memory or too few open files left for the job list ({reason})"
            ),
            "end other programs, or raise the limits of this one".to_owned(),
        ),
        Wait::Access | Wait::Device => (
            format!("the job list cannot be written ({reason})"),
            format!("check the permissions of {file}, and that its disk is not mounted read-only"),
        ),
    }
}
