//! Outboxes: what lies there and is ready becomes a drop; what was delivered leaves.
