//! Which names are never sent: dropwire's own folder, what is no item by its name, and the config's patterns.

use std::path::Path;

use dropwire_protocol::RemotePath;
use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};

use crate::{
    failpoints,
    fs::{confined, own_folder, unsent},
};

/// What [`unsent`] knows, and an outbox's own patterns.
#[derive(Debug)]
pub(super) struct Ignore {
    patterns: Vec<String>,
    /// Same order as `patterns`; `names` and `paths` hold one half each, by what they are matched against.
    names: GlobSet,
    name_patterns: Vec<usize>,
    paths: GlobSet,
    path_patterns: Vec<usize>,
}

impl Ignore {
    /// A pattern without `/` matches a name at any depth, one with `/` the path below the outbox. The error names
    /// the pattern.
    pub(super) fn new(own: &[String]) -> Result<Self, String> {
        let patterns = own.to_vec();
        let (mut names, mut paths) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        let (mut name_patterns, mut path_patterns) = (Vec::new(), Vec::new());
        for (index, pattern) in patterns.iter().enumerate() {
            let glob = glob(pattern).map_err(|e| format!("ignore: {e}"))?;
            if pattern.contains('/') {
                paths.add(glob);
                path_patterns.push(index);
            } else {
                names.add(glob);
                name_patterns.push(index);
            }
        }
        Ok(Self {
            names: names.build().map_err(|e| format!("ignore: {e}"))?,
            paths: paths.build().map_err(|e| format!("ignore: {e}"))?,
            patterns,
            name_patterns,
            path_patterns,
        })
    }

    /// The pattern that keeps the file `path` from being sent: it matches that, or a folder on the way to it.
    pub(super) fn matched(&self, path: &RemotePath) -> Option<&str> {
        self.matched_as(path, false)
    }

    /// The pattern that keeps the folder `path` from being sent.
    pub(super) fn matched_folder(&self, path: &RemotePath) -> Option<&str> {
        self.matched_as(path, true)
    }

    fn matched_as(&self, path: &RemotePath, is_folder: bool) -> Option<&str> {
        let bytes = path.as_bytes();
        let ends = bytes
            .iter()
            .enumerate()
            .filter(|(_, b)| **b == b'/')
            .map(|(at, _)| at)
            .chain([bytes.len()]);
        let mut begin = 0;
        for end in ends {
            let (name, upto) = (bytes.get(begin..end)?, bytes.get(..end)?);
            if let Some(pattern) = self.matched_step(name, upto, is_folder || end < bytes.len()) {
                return Some(pattern);
            }
            begin = end + 1;
        }
        None
    }

    /// The pattern for one step of a walk: the name `name`, whose path is `path`; folders above it were asked before.
    pub(super) fn matched_step(&self, name: &[u8], path: &[u8], is_folder: bool) -> Option<&str> {
        match unsent::matching(confined::os_str(name).ok()?, is_folder) {
            Some((pattern, _)) if !failpoints::mutant("S1-no-drop") => Some(pattern),
            _ => self.forbidden(name, path),
        }
    }

    /// The pattern by which something in a folder keeps all of it back: it is not left out, nor sent along.
    pub(super) fn keeps_back(&self, name: &[u8], path: &[u8]) -> Option<&str> {
        match unsent::matching(confined::os_str(name).ok()?, true) {
            Some((pattern, why)) if why.is_unfinished() => Some(pattern),
            _ => self.forbidden(name, path),
        }
    }

    /// dropwire's own folder, and the config's patterns.
    fn forbidden(&self, name: &[u8], path: &[u8]) -> Option<&str> {
        if name.eq_ignore_ascii_case(own_folder::NAME.as_bytes()) {
            return Some(own_folder::NAME);
        }
        let first = |set: &GlobSet, patterns: &[usize], text: &[u8]| {
            let at = set
                .matches(Path::new(confined::os_str(text).ok()?))
                .into_iter()
                .min()?;
            patterns.get(at).copied()
        };
        let index = first(&self.names, &self.name_patterns, name)
            .or_else(|| first(&self.paths, &self.path_patterns, path))?;
        self.patterns.get(index).map(String::as_str)
    }
}

fn glob(pattern: &str) -> Result<Glob, globset::Error> {
    // A leading slash only says that the outbox is meant, a trailing one that a folder is.
    let anchored = pattern.trim_start_matches('/').trim_end_matches('/');
    GlobBuilder::new(anchored).literal_separator(true).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let own = ["*.bak", "build/*", "/top.txt", "a/**/z", "node_modules"].map(String::from);
        let ignore = Ignore::new(&own).unwrap();
        for (path, pattern) in [
            ("report.pdf", None),
            ("x.part", Some("*.part")),
            ("deep/down/x.crdownload", Some("*.crdownload")),
            ("x.part/inside", Some("*.part")),
            ("notes~", Some("*~")),
            ("~$letter.docx", Some("~$*")),
            (".~lock.sheet.ods#", Some(".~lock.*")),
            (".syncthing.a.b.tmp", Some("*.tmp")),
            ("sub/.report.pdf.Ab3dE9", Some(".*.XXXXXX")),
            (".env.sample", None),
            ("lost+found/#1234", Some("lost+found")),
            ("sub/.Trash-1000/files/x", Some(".Trash-*")),
            ("sub/lost+found", None),
            (".DS_Store", Some(".DS_Store")),
            ("sub/Thumbs.db", Some("Thumbs.db")),
            (".hidden", None),
            ("part", None),
            ("x.parts", None),
            ("old.bak", Some("*.bak")),
            ("sub/old.bak", Some("*.bak")),
            ("build/x", Some("build/*")),
            ("build/x/y", Some("build/*")),
            ("sub/build/x", None),
            ("top.txt", Some("/top.txt")),
            ("sub/top.txt", None),
            ("a/b/c/z", Some("a/**/z")),
            ("sub/node_modules/x", Some("node_modules")),
        ] {
            let parsed = RemotePath::parse(path.as_bytes()).unwrap();
            assert_eq!(ignore.matched(&parsed), pattern, "{path}");
        }
        let folder = RemotePath::parse(b"sub/lost+found").unwrap();
        assert_eq!(ignore.matched_folder(&folder), Some("lost+found"));
        assert_eq!(
            ignore.matched_step(b".Dropwire", b"sub/.Dropwire", true),
            Some(".dropwire")
        );
        for (name, pattern) in [
            ("x.part", Some("*.part")),
            (".report.pdf.Ab3dE9", Some(".*.XXXXXX")),
            ("old.bak", Some("*.bak")),
            (".DropWire", Some(".dropwire")),
            ("._photo.jpg", None),
            ("@eaDir", None),
            (".nfs0000000001", None),
            (".DS_Store", None),
        ] {
            assert_eq!(
                ignore.keeps_back(name.as_bytes(), name.as_bytes()),
                pattern,
                "{name}"
            );
        }
        #[cfg(unix)]
        assert_eq!(
            ignore.matched_step(b"\xff.tmp", b"\xff.tmp", false),
            Some("*.tmp")
        );
    }

    #[test]
    fn a_pattern_that_is_none_is_named() {
        let error = Ignore::new(&["[".into()]).unwrap_err();
        assert!(error.contains('['), "{error}");
    }
}
