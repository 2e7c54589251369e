//! Which name a file or folder gets where its own is taken: `report (1).pdf`. One rule for inboxes, archives and what is
//! given back. Pure.

use dropwire_protocol::Kind;

/// Longest name of one component that any system takes, in bytes.
pub const LONGEST: usize = 255;

/// Puts ` (n)` before a file's last extension (`.tar.*` is kept together), and at the end of a folder's name, which has
/// no extension: `v1.2 (1)`. The name is shortened to `longest` bytes, at least 64, and UTF-8 stays whole. `n` 0 is the
/// name itself.
pub fn numbered(name: &[u8], kind: Kind, n: u64, longest: usize) -> Vec<u8> {
    let at = match kind {
        Kind::File => extension(name),
        Kind::Folder => name.len(),
    };
    match n {
        0 => name.to_vec(),
        n => with_suffix(name, &format!(" ({n})"), at, longest),
    }
}

/// Shortens `name` to `longest` bytes, and keeps a file's extension.
pub fn shortened(name: &[u8], longest: usize) -> Vec<u8> {
    with_suffix(name, "", extension(name), longest)
}

/// A free number from 1 on that is found without trying them all: doubles until one is free, then halves the gap. There
/// may be smaller free ones; with no gaps it is the smallest. About 2·log2 calls of `taken`.
pub fn first_free<E>(mut taken: impl FnMut(u64) -> Result<bool, E>) -> Result<u64, E> {
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

/// Inserts `suffix` at `at`; what is before it is shortened so that the whole has at most `longest` bytes.
fn with_suffix(name: &[u8], suffix: &str, mut at: usize, longest: usize) -> Vec<u8> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    fn show(name: &str, n: u64) -> String {
        String::from_utf8(numbered(name.as_bytes(), Kind::File, n, LONGEST)).unwrap()
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
    fn a_folder_has_no_extension() {
        for (name, n, expected) in [
            ("v1.2", 0, "v1.2"),
            ("v1.2", 1, "v1.2 (1)"),
            ("a.tar.gz", 2, "a.tar.gz (2)"),
        ] {
            let result = numbered(name.as_bytes(), Kind::Folder, n, LONGEST);
            assert_eq!(String::from_utf8(result).unwrap(), expected);
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
        fn a_numbered_name_is_a_safe_name(name in "[^/\0]{1,120}", n in 1u64..2_000_000, longest in 64usize..=255) {
            prop_assume!(name.len() <= LONGEST);
            for kind in [Kind::File, Kind::Folder] {
                let result = numbered(name.as_bytes(), kind, n, longest);
                prop_assert!(result.len() <= longest);
                let text = String::from_utf8(result).expect("UTF-8 stays whole");
                let number = format!(" ({n})");
                prop_assert!(text.contains(&number));
                prop_assert!(!text.starts_with(&number), "something of the name stays");
            }
        }

        #[test]
        fn different_numbers_give_different_names(name in prop::collection::vec(1u8..=255, 1..=255), n in 1u64..5000, m in 1u64..5000) {
            prop_assume!(n != m);
            for kind in [Kind::File, Kind::Folder] {
                prop_assert_ne!(numbered(&name, kind, n, LONGEST), numbered(&name, kind, m, LONGEST));
            }
        }

        #[test]
        fn what_is_found_free_is_free(taken in prop::collection::hash_set(1u64..200, 0..150)) {
            let free = first_free(|n| Ok::<_, Infallible>(taken.contains(&n))).unwrap();
            prop_assert!(free >= 1 && !taken.contains(&free));
        }
    }
}
