//! A path that a peer may name: relative and safe by construction.

use std::fmt;

/// One to [`RemotePath::MAX_DEPTH`] components joined by `/`; bytes, not necessarily UTF-8.
///
/// No component is empty, `.` or `..`, longer than 255 bytes, holds a NUL, or is one that some system takes for
/// `.dropwire`. A backslash is a byte like any other here: systems to which it separates map it where the file is made.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RemotePath(Vec<u8>);

/// Why bytes are no [`RemotePath`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the texts say it
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
        if bytes.is_empty() {
            return Err(PathError::Empty);
        }
        if bytes.len() > Self::MAX_LENGTH {
            return Err(PathError::TooLong);
        }
        if bytes.contains(&0) {
            return Err(PathError::Nul);
        }
        for (depth, component) in bytes.split(|b| *b == b'/').enumerate() {
            match component {
                _ if depth == Self::MAX_DEPTH => return Err(PathError::TooDeep),
                b"" | b"." | b".." => return Err(PathError::NotRelative),
                long if long.len() > 255 => return Err(PathError::ComponentTooLong),
                own if is_reserved(own) => return Err(PathError::Reserved),
                _ => {}
            }
        }
        Ok(Self(bytes.to_vec()))
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
    pub fn parent(&self) -> Option<Self> {
        let cut = self.0.iter().rposition(|b| *b == b'/')?;
        Some(Self(self.0[..cut].to_vec()))
    }

    /// Same folder, another last component.
    pub fn with_file_name(&self, name: &[u8]) -> Result<Self, PathError> {
        if name.contains(&b'/') {
            return Err(PathError::NotRelative);
        }
        let folder = &self.0[..self.0.len() - self.file_name().len()];
        Self::parse(&[folder, name].concat())
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

/// Makes a name safe to show: control, bidirectional and invisible characters as `\u{…}`, bytes that are not UTF-8 as
/// `\x…`, a backslash doubled. No two names give the same text.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                c if is_unseen(c) => text.extend(c.escape_unicode()),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// A character that does not show as itself, or moves what stands beside it: control, bidirectional, invisible.
pub fn is_unseen(c: char) -> bool {
    c.is_control() || is_ignorable(c) || is_format(c)
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
        Self::parse(d.bytes()?).map_err(|e| {
            let text = e.to_string();
            minicbor::decode::Error::custom(e).with_message(text).at(at)
        })
    }
}

/// Would some system open `.dropwire` when asked for this name? Windows drops trailing dots and spaces, takes `:` for
/// the start of a stream's name and knows short names; HFS+ and case-folding ext4 skip ignorable characters.
fn is_reserved(component: &[u8]) -> bool {
    // Nearly every name holds no such word, whatever its case and what is skipped in it.
    if component.is_ascii() && !contains_dropwi(component) {
        return false;
    }
    let seen: String = String::from_utf8_lossy(component)
        .chars()
        .filter(|c| !is_ignorable(*c))
        .collect();
    let seen = seen
        .split(':')
        .next()
        .unwrap_or_default()
        .trim_end_matches(['.', ' '])
        .to_ascii_lowercase();
    let short = seen
        .strip_prefix("dropwi~")
        .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    seen == ".dropwire" || short
}

/// In whatever case. What else a name may skip is not ASCII.
fn contains_dropwi(name: &[u8]) -> bool {
    name.windows(6).any(|part| part.eq_ignore_ascii_case(b"dropwi"))
}

/// Unicode's Default_Ignorable_Code_Point: shown as nothing, and no part of a name to some file systems. Among them
/// all bidirectional controls but U+061C, which is here too.
fn is_ignorable(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fff8}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// The other format characters, and the two that end a line without being controls.
fn is_format(c: char) -> bool {
    matches!(c,
        '\u{600}'..='\u{605}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}'
        | '\u{2028}'..='\u{2029}' | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}'
        | '\u{13430}'..='\u{1343f}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_a_path() {
        for good in [
            "a",
            "a/b",
            "a\\b",
            ".hidden",
            "...",
            "a..",
            " ",
            "a:b",
            "CON",
            "dropwire",
            ".dropwire2",
            "~",
            "é/ü",
        ] {
            assert_eq!(
                RemotePath::parse(good.as_bytes()).map(|p| p.as_bytes().to_vec()),
                Ok(good.into()),
                "{good}"
            );
        }
        assert!(RemotePath::parse(b"not utf-8: \xff").is_ok());
        assert!(RemotePath::parse(&[b'x'; 255]).is_ok());
        let deep = vec!["d"; RemotePath::MAX_DEPTH].join("/");
        assert!(RemotePath::parse(deep.as_bytes()).is_ok());

        use PathError::*;
        let long_path = vec!["x".repeat(99); 41].join("/");
        let cases: [(&[u8], PathError); 15] = [
            (b"", Empty),
            (b"/", NotRelative),
            (b"/etc/x", NotRelative),
            (b"a/", NotRelative),
            (b"a//b", NotRelative),
            (b".", NotRelative),
            (b"..", NotRelative),
            (b"../x", NotRelative),
            (b"a/../b", NotRelative),
            (b"a/./b", NotRelative),
            (b"a\0b", Nul),
            (&[b'x'; 256], ComponentTooLong),
            (&[b'x'; 5000], TooLong),
            (long_path.as_bytes(), TooLong),
            (&[deep.as_bytes(), b"/x"].concat(), TooDeep),
        ];
        for (bytes, why) in cases {
            assert_eq!(RemotePath::parse(bytes), Err(why), "{}", escape(bytes));
        }
    }

    #[test]
    fn our_own_folder_is_refused_however_it_is_written() {
        for own in [
            ".dropwire",
            ".DropWire",
            ".dropwire.",
            ".dropwire . .",
            ".dropwire::$INDEX_ALLOCATION",
            ".drop\u{200c}wire",
            "\u{feff}.dropwire",
            ".dropw\u{ad}ire",
            ".dropwire \u{200d}.",
            "DROPWI~1",
            "dropwi~12.",
        ] {
            for path in [
                own.to_string(),
                format!("{own}/x"),
                format!("a/b/{own}"),
                format!("a/{own}/b"),
            ] {
                assert_eq!(
                    RemotePath::parse(path.as_bytes()),
                    Err(PathError::Reserved),
                    "{path:?}"
                );
            }
        }
    }

    #[test]
    fn parts_of_a_path() {
        let path = RemotePath::parse(b"a/b/c.txt").unwrap();
        assert_eq!(
            path.components().collect::<Vec<_>>(),
            [b"a".as_slice(), b"b", b"c.txt"]
        );
        assert_eq!(path.file_name(), b"c.txt");
        assert_eq!(path.parent().unwrap().as_bytes(), b"a/b");
        assert_eq!(path.with_file_name(b"d").unwrap().as_bytes(), b"a/b/d");
        assert_eq!(path.with_file_name(b"d/e"), Err(PathError::NotRelative));
        assert_eq!(path.with_file_name(b".."), Err(PathError::NotRelative));
        let top = RemotePath::parse(b"x").unwrap();
        assert_eq!(top.parent(), None);
        assert_eq!(top.with_file_name(b"y").unwrap().as_bytes(), b"y");
    }

    #[test]
    fn what_a_person_sees() {
        for (bytes, shown) in [
            (b"plain name (1).txt".as_slice(), "plain name (1).txt"),
            ("Grüße 日本".as_bytes(), "Grüße 日本"),
            (b"a\\b", r"a\\b"),
            (b"\x1b[2J\n", r"\u{1b}[2J\u{a}"),
            ("\u{202e}gpj.exe".as_bytes(), r"\u{202e}gpj.exe"),
            (b"\xffx\xc3", r"\xffx\xc3"),
            ("a\u{200b}b\u{85}".as_bytes(), r"a\u{200b}b\u{85}"),
        ] {
            assert_eq!(escape(bytes), shown);
        }
    }

    proptest! {
        #[test]
        fn a_path_stays_below_where_it_is_put(bytes in proptest::collection::vec(prop_oneof![Just(b'/'), Just(b'.'), any::<u8>()], 0..40)) {
            if let Ok(path) = RemotePath::parse(&bytes) {
                prop_assert_eq!(path.as_bytes(), &bytes);
                prop_assert!(path.components().all(|c| !c.is_empty() && c != b"." && c != b".." && !c.contains(&0)));
            }
        }

        #[test]
        fn nothing_unsafe_is_shown(text: String, bytes: Vec<u8>) {
            for name in [text.as_bytes(), &bytes] {
                let shown = escape(name);
                prop_assert!(!shown.chars().any(|c| c.is_control() || is_ignorable(c) || is_format(c)));
                prop_assert_eq!(unescape(&shown), name);
            }
        }
    }

    /// The proof that [`escape`] loses nothing.
    fn unescape(shown: &str) -> Vec<u8> {
        let (mut bytes, mut rest) = (Vec::new(), shown);
        while let Some(c) = rest.chars().next() {
            if let Some(hex) = rest.strip_prefix("\\u{") {
                let (hex, after) = hex.split_once('}').unwrap();
                let c = char::from_u32(u32::from_str_radix(hex, 16).unwrap()).unwrap();
                bytes.extend(c.to_string().bytes());
                rest = after;
            } else if let Some(hex) = rest.strip_prefix("\\x") {
                bytes.push(u8::from_str_radix(&hex[..2], 16).unwrap());
                rest = &hex[2..];
            } else if let Some(after) = rest.strip_prefix("\\\\") {
                bytes.push(b'\\');
                rest = after;
            } else {
                bytes.extend(c.to_string().bytes());
                rest = &rest[c.len_utf8()..];
            }
        }
        bytes
    }
}
