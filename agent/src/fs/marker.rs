//! Markers: where `ready = "marker"`, a file is only complete once an empty one beside it, `report.pdf.done` say, tells
//! so. A marker is never sent itself, and leaves with its file. A file of such a name that holds bytes is no marker:
//! nothing is removed that was not sent.

use cap_std::fs::{Dir, Metadata};

use crate::fs::confined;

/// The file whose marker has the name `name`; None if that is no marker's name.
pub fn stem<'a>(name: &'a [u8], suffix: &str) -> Option<&'a [u8]> {
    name.strip_suffix(suffix.as_bytes())
        .filter(|stem| !stem.is_empty())
}

/// Why a file that has a marker's name, and bytes, stays where it is.
pub const HAS_BYTES: &str = "it has a marker's name, but is not empty: neither a marker nor sent";

/// Whether what has a marker's name is one.
pub fn is_one(meta: &Metadata) -> bool {
    meta.is_file() && meta.len() == 0
}

/// Whether the file `name` in `folder` has its marker.
pub fn is_there(folder: &Dir, name: &[u8], suffix: &str) -> bool {
    let marker = name_of(name, suffix);
    let meta = confined::os_str(&marker).and_then(|marker| folder.symlink_metadata(marker));
    meta.is_ok_and(|meta| is_one(&meta))
}

/// What the file `name` waits for.
pub fn missing(name: &[u8], suffix: &str) -> String {
    let marker = dropwire_protocol::name::escape(&name_of(name, suffix));
    format!("it waits for its marker {marker}")
}

/// The name of the marker of the file `name`.
pub fn name_of(name: &[u8], suffix: &str) -> Vec<u8> {
    [name, suffix.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, stem_of) in [
            ("a.done", Some("a")),
            ("a.done.done", Some("a.done")),
            (".done", None),
            ("done", None),
            ("a.DONE", None),
        ] {
            assert_eq!(
                stem(name.as_bytes(), ".done"),
                stem_of.map(str::as_bytes),
                "{name}"
            );
        }
    }
}
