//! The config that is in effect.

use std::sync::Arc;

use tokio::sync::watch;

use super::Config;

/// Reads the config that is in effect; cheap to clone. A reload replaces the config whole.
#[derive(Clone)]
pub struct Current(watch::Receiver<Arc<Config>>);

impl Current {
    /// Reads what the other end last sent.
    pub fn new(config: watch::Receiver<Arc<Config>>) -> Self {
        Self(config)
    }

    /// The config at this moment.
    pub fn get(&self) -> Arc<Config> {
        self.0.borrow().clone()
    }
}
