//! How files and folders are named where a name is taken or the system would refuse it. Pure.

use std::ffi::OsString;

/// Longest name of one component, in bytes.
const MAX_NAME: usize = 255;

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
        longest: MAX_NAME,
    };
    /// Taken by every file system that is known; eCryptfs has the shortest names.
    pub(super) const STRICT: Self = Self {
        rules: Rules::Windows,
        longest: 143,
    };

    /// The name that the file system takes for `name`; the same one where it may stay.
    pub(super) fn mapped(self, name: &[u8]) -> Vec<u8> {
        if self.rules == Rules::Bytes {
            return suffixed(name, "", extension(name), self.longest);
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
        let mut bytes = suffixed(text.as_bytes(), "", extension(text.as_bytes()), self.longest);
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

    /// `name`, which is [mapped](Names::mapped), with ` (n)` before its last extension (`.tar.*` is kept together),
    /// shortened; `n` 0 is the name itself. UTF-8 stays whole.
    pub(super) fn numbered(self, name: &[u8], n: u64) -> Vec<u8> {
        match n {
            0 => name.to_vec(),
            n => suffixed(name, &format!(" ({n})"), extension(name), self.longest),
        }
    }

    /// The same for a folder, whose name has no extension: `v1.2 (1)`.
    pub(super) fn numbered_folder(self, name: &[u8], n: u64) -> Vec<u8> {
        match n {
            0 => name.to_vec(),
            n => suffixed(name, &format!(" ({n})"), name.len(), self.longest),
        }
    }
}

/// `suffix` put in at `at`, what is before it shortened so that all has at most `longest` bytes.
fn suffixed(name: &[u8], suffix: &str, mut at: usize, longest: usize) -> Vec<u8> {
    if name.len() - at + suffix.len() + 8 > longest {
        at = name.len(); // an extension that long is none
    }
    let (stem, extension) = name.split_at(at);
    let mut result = stem.to_vec();
    cut(&mut result, longest - suffix.len() - extension.len());
    result.extend_from_slice(suffix.as_bytes());
    result.extend_from_slice(extension);
    result
}

/// A free number from 1 on that is found without trying them all: doubles until one is free, then halves the gap. There
/// may be smaller free ones; with no gaps it is the smallest. About 2·log2 calls of `taken`.
pub(super) fn first_free<E>(mut taken: impl FnMut(u64) -> Result<bool, E>) -> Result<u64, E> {
    let (mut low, mut high) = (0, 1); // `low` is taken, as 0 is: the name itself
    while taken(high)? {
        (low, high) = (high, high.saturating_mul(2));
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if taken(middle)? {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(high)
}

/// Where the extension begins; the name's length if it has none.
fn extension(name: &[u8]) -> usize {
    let Some(dot) = name.iter().rposition(|b| *b == b'.') else {
        return name.len();
    };
    if dot + 1 == name.len() || name[..dot].iter().all(|b| *b == b'.') {
        return name.len(); // `name.`, `.bashrc`, `..name`
    }
    match dot.checked_sub(4) {
        Some(tar) if tar > 0 && name[tar..dot].eq_ignore_ascii_case(b".tar") => tar,
        _ => dot,
    }
}

/// Shortens to at most `limit` bytes, between two characters if the bytes are UTF-8.
fn cut(name: &mut Vec<u8>, limit: usize) {
    if name.len() > limit {
        let end = match std::str::from_utf8(name) {
            Ok(text) => text.floor_char_boundary(limit),
            Err(_) => limit,
        };
        name.truncate(end);
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
    use std::convert::Infallible;

    fn show(name: &str, n: u64) -> String {
        String::from_utf8(Names::HERE.numbered(name.as_bytes(), n)).unwrap()
    }

    #[test]
    fn the_number_stands_before_the_extension() {
        let table = [
            ("report.pdf", 0, "report.pdf"),
            ("report.pdf", 1, "report (1).pdf"),
            ("report.pdf", 10_000, "report (10000).pdf"),
            ("archive.tar.gz", 1, "archive (1).tar.gz"),
            ("archive.TAR.Gz", 1, "archive (1).TAR.Gz"),
            ("a.b.tar.zst", 2, "a.b (2).tar.zst"),
            ("archive.tar", 1, "archive (1).tar"),
            ("tar.gz", 1, "tar (1).gz"),
            (".tar.gz", 1, ".tar (1).gz"),
            ("Makefile", 1, "Makefile (1)"),
            (".bashrc", 1, ".bashrc (1)"),
            (".config.json", 1, ".config (1).json"),
            ("x (1).jpg", 1, "x (1) (1).jpg"),
            ("name.", 1, "name. (1)"),
            ("...", 1, "... (1)"),
            ("..name", 1, "..name (1)"),
            ("a.b c", 3, "a (3).b c"),
        ];
        for (name, n, expected) in table {
            assert_eq!(show(name, n), expected, "{name} {n}");
        }
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        let name = format!("{}é.pdf", "a".repeat(249)); // 255 bytes
        assert_eq!(show(&name, 1), format!("{} (1).pdf", "a".repeat(247)));
        let umlauts = format!("{}.pdf", "ü".repeat(125)); // 254 bytes
        let cut = show(&umlauts, 12);
        assert_eq!(cut, format!("{} (12).pdf", "ü".repeat(123)));
        let all_extension = format!("a.{}", "x".repeat(253));
        assert_eq!(show(&all_extension, 1), format!("a.{} (1)", "x".repeat(249)));
    }

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
            let longest = MAX_NAME;
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
            assert!(Names::STRICT.numbered(&mapped, 12).len() <= 143);
        }
    }

    #[test]
    fn ten_thousand_taken_names_cost_few_looks() {
        let mut looks = 0;
        let free = first_free(|n| {
            looks += 1;
            Ok::<_, Infallible>(n < 10_000)
        });
        assert_eq!(free, Ok(10_000));
        assert!(looks < 40, "{looks}");
    }

    proptest! {
        #[test]
        fn a_numbered_name_is_a_safe_name(name in "[^/\0]{1,120}", n in 1u64..2_000_000) {
            prop_assume!(name.len() <= MAX_NAME);
            let result = Names::HERE.numbered(name.as_bytes(), n);
            prop_assert!(result.len() <= MAX_NAME);
            let text = String::from_utf8(result).expect("UTF-8 stays whole");
            let number = format!(" ({n})");
            prop_assert!(text.contains(&number));
            prop_assert!(!text.starts_with(&number), "something of the name stays");
        }

        #[test]
        fn what_is_mapped_stays_as_it_is(name in prop::collection::vec(1u8..=255, 1..=255)) {
            let mapped = Names::STRICT.mapped(&name);
            prop_assert!(mapped.len() <= 144 && !mapped.is_empty());
            prop_assert_eq!(Names::STRICT.mapped(&mapped), mapped);
        }

        #[test]
        fn different_numbers_give_different_names(name in prop::collection::vec(1u8..=255, 1..=255), n in 0u64..5000, m in 0u64..5000) {
            prop_assume!(n != m);
            if n > 0 && m > 0 {
                prop_assert_ne!(Names::HERE.numbered(&name, n), Names::HERE.numbered(&name, m));
            }
        }

        #[test]
        fn what_is_found_free_is_free(taken in prop::collection::hash_set(1u64..200, 0..150)) {
            let free = first_free(|n| Ok::<_, Infallible>(taken.contains(&n))).unwrap();
            prop_assert!(free >= 1 && !taken.contains(&free));
        }
    }
}
