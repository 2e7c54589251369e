//! What a person has to know of the database.

/// Something that keeps the database from being written as it should.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trouble {
    /// Since when, by the wall clock.
    pub since_ms: i64,
    /// What it is.
    pub text: String,
    /// The way out.
    pub hint: String,
}
