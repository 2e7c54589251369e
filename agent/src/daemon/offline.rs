//! `dropwire adopt` where no agent runs.

use std::sync::Arc;

use super::state;
use crate::{
    blocking::blocking,
    clock::now_ms,
    commands::Adopter,
    config::{Config, paths::Paths},
    control::api::{AdoptReply, AdoptRequest},
    error::Fatal,
    owner::Me,
    queue::Queue,
};

/// Answers as a running agent does, where none runs.
pub async fn adopt_offline(
    config: Config,
    paths: &Paths,
    request: AdoptRequest,
) -> Result<AdoptReply, Fatal> {
    let folder = paths.state_dir.clone();
    let open = move || {
        let state = state::Locked::take(&folder)?;
        let opened = state.open(&state::waits(&folder))?;
        Ok::<_, Fatal>((state, opened))
    };
    let (_state, (identity, db)) = blocking(open).await??;
    let queue = Queue::open(db.clone(), identity.clone(), now_ms(), config.retry.max);
    let adopter = Adopter {
        me: Me {
            id: identity.id(),
            name: config.name.clone(),
        },
        config: Arc::new(config),
        db: db.clone(),
        queue: queue.await?,
    };
    let answer = adopter.answer(request, Arc::default()).await;
    db.close().await;
    answer
}
