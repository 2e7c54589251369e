//! The wall clock, for what people are told.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970; a clock before that says 0.
pub fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, milliseconds)
}

/// As the wall clock and the running time count; what is longer is the longest.
pub fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
