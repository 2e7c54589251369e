//! What a job waits for, in one sentence. Pure, so that every case stands in a table.

use std::time::SystemTime;

use crate::control::wire::Time;

/// Where a job stands, as far as the sentence depends on it.
pub enum Standing {
    /// On its way.
    Sending {
        /// Bytes that lie across.
        sent: u64,
        /// Bytes in all.
        size: u64,
    },
    /// Not on its way.
    Queued {
        /// Milliseconds since 1970; in the future: backoff.
        next_attempt_ms: i64,
        /// Why the last attempt failed.
        error: Option<String>,
    },
    /// The peer has it.
    Delivered {
        /// Below the peer's inbox, escaped.
        delivered_as: String,
        /// Milliseconds since 1970.
        at_ms: i64,
    },
    /// Final, and why.
    Failed(String),
    /// Final.
    Cancelled,
}

/// What is known of the way to the peer.
pub struct Way {
    /// Our name for it.
    pub peer: String,
    /// A link is up.
    pub connected: bool,
    /// Is there an address to dial?
    pub dials: bool,
    /// When we dial next.
    pub next_dial_at: Option<SystemTime>,
    /// Why the last dial or link failed.
    pub last_error: Option<String>,
}

/// One sentence.
pub fn sentence(standing: &Standing, way: &Way, now_ms: i64) -> String {
    let peer = &way.peer;
    match standing {
        Standing::Sending { sent, size } => {
            format!("is being sent to {peer}: {sent} of {size} bytes lie across")
        }
        Standing::Delivered { delivered_as, at_ms } => {
            format!(
                "delivered to {peer} as {delivered_as} at {}",
                Time::from_ms(*at_ms)
            )
        }
        Standing::Failed(why) => format!("failed for {peer}: {why}"),
        Standing::Cancelled => format!("cancelled for {peer}"),
        Standing::Queued { .. } if !way.connected => {
            let cause = way
                .last_error
                .as_ref()
                .map(|e| format!(" ({e})"))
                .unwrap_or_default();
            match (way.dials, way.next_dial_at) {
                (true, Some(at)) => format!(
                    "waits for a link to {peer}{cause}; dials again {}",
                    until(at, now_ms)
                ),
                (true, None) => format!("waits for a link to {peer}{cause}; is dialling"),
                (false, _) => format!("waits for {peer} to dial in{cause}: it has no address in the config"),
            }
        }
        Standing::Queued {
            next_attempt_ms,
            error,
        } if *next_attempt_ms > now_ms => {
            let at = Time::from_ms(*next_attempt_ms).system();
            let cause = error.as_deref().unwrap_or("it was put off");
            format!(
                "waits for its next attempt to {peer} {}: {cause}",
                until(at, now_ms)
            )
        }
        Standing::Queued { .. } => format!("waits for its turn on the link to {peer}"),
    }
}

fn until(at: SystemTime, now_ms: i64) -> String {
    match at.duration_since(Time::from_ms(now_ms).system()) {
        Ok(wait) => format!("in {:.1} s", wait.as_secs_f64()),
        Err(_) => "now".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way() -> Way {
        Way {
            peer: "office".into(),
            connected: true,
            dials: true,
            next_dial_at: None,
            last_error: None,
        }
    }

    fn queued(next_attempt_ms: i64, error: Option<&str>) -> Standing {
        Standing::Queued {
            next_attempt_ms,
            error: error.map(Into::into),
        }
    }

    #[test]
    fn every_standing_has_its_sentence() {
        let cut = || Way {
            connected: false,
            last_error: Some("refused".into()),
            ..way()
        };
        let cases = [
            (
                Standing::Sending { sent: 3, size: 9 },
                way(),
                "is being sent to office: 3 of 9 bytes lie across",
            ),
            (
                Standing::Delivered {
                    delivered_as: "a (1).txt".into(),
                    at_ms: 0,
                },
                way(),
                "delivered to office as a (1).txt at 1970-01-01T00:00:00.000Z",
            ),
            (Standing::Failed("gone".into()), way(), "failed for office: gone"),
            (Standing::Cancelled, way(), "cancelled for office"),
            (queued(0, None), way(), "waits for its turn on the link to office"),
            (
                queued(3000, Some("full")),
                way(),
                "waits for its next attempt to office in 2.0 s: full",
            ),
            (
                queued(0, None),
                cut(),
                "waits for a link to office (refused); is dialling",
            ),
            (
                queued(0, None),
                Way {
                    next_dial_at: Some(Time::from_ms(1500).system()),
                    ..cut()
                },
                "waits for a link to office (refused); dials again in 0.5 s",
            ),
            (
                queued(0, None),
                Way {
                    dials: false,
                    last_error: None,
                    ..cut()
                },
                "waits for office to dial in: it has no address in the config",
            ),
        ];
        for (standing, way, wanted) in cases {
            assert_eq!(sentence(&standing, &way, 1000), wanted);
        }
    }
}
