//! How an agent's id is written for people: base32 with check characters, in groups.

use dropwire_protocol::AgentId;

/// Why a text is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not the right number of characters.
    #[error("an id has 56 letters and digits in 8 groups of 7, this has {0}")]
    Length(usize),
    /// A character that base32 does not have.
    #[error("`{0}` does not occur in an id (A–Z and 2–7 do)")]
    Character(char),
    /// A check character does not fit.
    #[error("group {0} or {1} has a typo: its check character does not fit")]
    Check(usize, usize),
}

/// 56 characters in 8 groups of 7, joined by hyphens.
pub fn format(id: AgentId) -> String {
    let _ = id;
    todo!()
}

/// Reads what [`format`] wrote; case, hyphens and spaces do not matter.
pub fn parse(text: &str) -> Result<AgentId, IdError> {
    let _ = text;
    todo!()
}
