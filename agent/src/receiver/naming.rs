//! How files and folders are named where the receiving system would refuse their name. Pure.

use std::ffi::OsString;

use dropwire_protocol::Kind;

use crate::fs::free_name::{self, LONGEST};

/// What the receiving system asks of names, beside what every [`dropwire_protocol::RemotePath`] keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rules {
    /// Any bytes (Linux).
    Bytes,
    /// UTF-8 only (macOS).
    Utf8,
    /// UTF-8, no device names, none of `<>:"|?*\`, no control characters, no dot or space at the end.
    Windows,
}

/// How names are made for one file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Names {
    /// Which ones it takes.
    pub rules: Rules,
    /// Most bytes of one.
    pub longest: usize,
}

impl Names {
    /// Of the system this runs on; its file systems may ask for more.
    pub(super) const HERE: Self = Self {
        rules: if cfg!(windows) {
            Rules::Windows
        } else if cfg!(target_vendor = "apple") {
            Rules::Utf8
        } else {
            Rules::Bytes
        },
        longest: LONGEST,
    };
    /// Taken by every file system that is known; eCryptfs has the shortest names.
    pub(super) const STRICT: Self = Self {
        rules: Rules::Windows,
        longest: 143,
    };

    /// The name that the file system takes for `name`; the same one where it may stay.
    pub(super) fn mapped(self, name: &[u8]) -> Vec<u8> {
        if self.rules == Rules::Bytes {
            return free_name::shortened(name, self.longest);
        }
        let mut text = String::from_utf8_lossy(name).into_owned();
        if self.rules == Rules::Windows {
            text = text
                .chars()
                .map(|c| if is_refused_by_windows(c) { '_' } else { c })
                .collect();
        }
        if plain(&text) == ".dropwire" {
            text.insert(0, '_');
        }
        let mut bytes = free_name::shortened(text.as_bytes(), self.longest);
        if self.rules == Rules::Windows {
            if let Some(last @ (b'.' | b' ')) = bytes.last_mut() {
                *last = b'_';
            }
            let stem = bytes.split(|b| *b == b'.').next().unwrap_or_default();
            if is_device(String::from_utf8_lossy(stem).trim_end()) {
                bytes.insert(stem.len(), b'_');
            }
        }
        bytes
    }

    /// The name beside `name`, which is [mapped](Names::mapped), that has the number `n`; 0 is the name itself.
    pub(super) fn numbered(self, name: &[u8], kind: Kind, n: u64) -> Vec<u8> {
        free_name::numbered(name, kind, n, self.longest)
    }
}

fn is_refused_by_windows(c: char) -> bool {
    c.is_ascii_control() || r#"<>:"|?*\"#.contains(c)
}

fn is_device(stem: &str) -> bool {
    let upper = stem.to_uppercase();
    let numbered = |rest: &str| {
        let mut chars = rest.chars();
        matches!((chars.next(), chars.next()), (Some(c), None) if c.is_ascii_digit() || "¹²³".contains(c))
    };
    matches!(
        upper.as_str(),
        "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$"
    ) || ["COM", "LPT"]
        .iter()
        .any(|d| upper.strip_prefix(d).is_some_and(numbered))
}

/// What a file system that ignores case and invisible characters makes of a name.
fn plain(name: &str) -> String {
    name.chars()
        .filter(|c| !matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'))
        .flat_map(char::to_lowercase)
        .collect()
}

/// A component's name as the system takes it.
pub(super) fn os_name(bytes: &[u8]) -> OsString {
    #[cfg(unix)]
    {
        std::os::unix::ffi::OsStringExt::from_vec(bytes.to_vec())
    }
    #[cfg(not(unix))]
    {
        String::from_utf8_lossy(bytes).into_owned().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_mapped_only_where_the_system_needs_it() {
        let windows = [
            ("CON", "CON_"),
            ("nul.txt", "nul_.txt"),
            ("nul .txt", "nul _.txt"),
            ("COM¹", "COM¹_"),
            ("lpt0.tar.gz", "lpt0_.tar.gz"),
            ("COM10", "COM10"),
            ("console", "console"),
            ("a:b", "a_b"),
            ("a\\b", "a_b"),
            ("dot.", "dot_"),
            ("space ", "space_"),
            ("tab\there", "tab_here"),
            ("report.pdf", "report.pdf"),
            (".drop\u{200d}Wire", "_.drop\u{200d}Wire"),
        ];
        let mapped = |name: &[u8], rules| {
            let longest = LONGEST;
            Names { rules, longest }.mapped(name)
        };
        for (name, expected) in windows {
            assert_eq!(
                mapped(name.as_bytes(), Rules::Windows),
                expected.as_bytes(),
                "{name}"
            );
            assert_eq!(mapped(name.as_bytes(), Rules::Bytes), name.as_bytes());
        }
        assert_eq!(mapped(b"a\xffb", Rules::Bytes), b"a\xffb");
        assert_eq!(mapped(b"a\xffb", Rules::Utf8), "a\u{fffd}b".as_bytes());
        assert_eq!(mapped(b"CON", Rules::Utf8), b"CON");
    }

    #[test]
    fn names_that_are_too_long_keep_their_extension() {
        let long = |n: usize, end: &str| format!("{}{end}", "x".repeat(n));
        let table = [
            (long(200, ".pdf"), long(139, ".pdf")),
            (long(200, ".tar.gz"), long(136, ".tar.gz")),
            (long(200, ""), long(143, "")),
            (long(143, ""), long(143, "")),
            (long(142, " y"), long(142, "_")),
            (long(139, ".pdf"), long(139, ".pdf")),
        ];
        for (name, expected) in table {
            let mapped = Names::STRICT.mapped(name.as_bytes());
            assert_eq!(String::from_utf8_lossy(&mapped), expected, "{name}");
            assert!(Names::STRICT.numbered(&mapped, Kind::File, 12).len() <= 143);
        }
    }

    proptest! {
        #[test]
        fn what_is_mapped_stays_as_it_is(name in prop::collection::vec(1u8..=255, 1..=255)) {
            let mapped = Names::STRICT.mapped(&name);
            prop_assert!(mapped.len() <= 144 && !mapped.is_empty());
            prop_assert_eq!(Names::STRICT.mapped(&mapped), mapped);
        }
    }
}
