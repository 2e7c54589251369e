//! A path that a peer may name: relative and safe by construction.

use std::fmt;

/// One to [`RemotePath::MAX_DEPTH`] components joined by `/`; bytes, not necessarily UTF-8.
///
/// No component is empty, `.` or `..`, longer than 255 bytes, holds a NUL or `/`, or is `.dropwire` in any case.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RemotePath(Vec<u8>);

/// Why bytes are no [`RemotePath`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum PathError {
    #[error("the path is empty")]
    Empty,
    #[error("the path is longer than {} bytes", RemotePath::MAX_LENGTH)]
    TooLong,
    #[error("the path has more than {} components", RemotePath::MAX_DEPTH)]
    TooDeep,
    #[error("a component is empty, `.` or `..`")]
    NotRelative,
    #[error("a component is longer than 255 bytes")]
    ComponentTooLong,
    #[error("a NUL byte")]
    Nul,
    #[error("`.dropwire` is dropwire's own")]
    Reserved,
}

impl RemotePath {
    /// Most bytes.
    pub const MAX_LENGTH: usize = 4096;
    /// Most components.
    pub const MAX_DEPTH: usize = 128;

    /// Checks and takes `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Self, PathError> {
        let _ = bytes;
        todo!()
    }

    /// The bytes, `/` between components.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// From the top down; at least one.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/')
    }

    /// The last component.
    pub fn file_name(&self) -> &[u8] {
        self.components().next_back().unwrap_or_default()
    }

    /// All but the last component.
    pub fn parent(&self) -> Option<RemotePath> {
        let cut = self.0.iter().rposition(|b| *b == b'/')?;
        Some(RemotePath(self.0[..cut].to_vec()))
    }

    /// Same folder, another last component.
    pub fn with_file_name(&self, name: &[u8]) -> Result<Self, PathError> {
        let _ = name;
        todo!()
    }
}

/// For people: control, bidirectional and non-UTF-8 bytes are escaped.
impl fmt::Display for RemotePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.0))
    }
}

impl fmt::Debug for RemotePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", escape(&self.0))
    }
}

/// Makes a name safe to show: control and bidirectional characters as `\u{…}`, bytes that are not UTF-8 as `\x…`, a backslash doubled.
pub fn escape(bytes: &[u8]) -> String {
    let _ = bytes;
    todo!()
}

impl<C> minicbor::Encode<C> for RemotePath {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C> minicbor::Decode<'b, C> for RemotePath {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let at = d.position();
        RemotePath::parse(d.bytes()?).map_err(|e| minicbor::decode::Error::message(e.to_string()).at(at))
    }
}
