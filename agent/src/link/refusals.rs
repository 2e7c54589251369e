//! Those who were turned away, for the log.

use std::{io, net::SocketAddr};

use super::log_limit::LogLimit;
use crate::identity::NotPaired;

/// Tells of those who were turned away, without letting them fill the log.
#[derive(Default)]
pub(super) struct Refusals {
    unpaired: LogLimit,
    ourselves: LogLimit,
    broken: LogLimit,
}

impl Refusals {
    pub(super) fn log(&mut self, from: SocketAddr, error: &io::Error) {
        match NotPaired::find(error) {
            Some(NotPaired::Unknown(id)) => {
                if let Some(more) = self.unpaired.due() {
                    let id = crate::id::format(id);
                    tracing::warn!(%from, id, more, "turned away an agent that is not paired");
                }
            }
            Some(NotPaired::Ourselves) => {
                if let Some(more) = self.ourselves.due() {
                    tracing::warn!(%from, more, "turned away a connection with this agent's own key: {}", NotPaired::Ourselves);
                }
            }
            None => {
                if let Some(more) = self.broken.due() {
                    tracing::info!(%from, %error, more, "turned away a connection");
                }
            }
        }
    }
}
