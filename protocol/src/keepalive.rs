//! When to ask for a sign of life and when to give up. Pure: the clock is passed in.
