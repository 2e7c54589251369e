//! The inbox: visible means whole, verified and durable; nothing is ever overwritten.
