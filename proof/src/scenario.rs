//! What is dropped, and what else happens until everything is at rest.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, LazyLock},
};

use crate::harness::files::noise;

/// A story that each fault is put into.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, clap::ValueEnum)]
pub enum Scenario {
    /// The first start of an agent, with a file in the outbox already.
    Start,
    /// One small file, dropped while both run.
    Small,
    /// Forty small files at once: an empty one, two of equal bytes, some in folders.
    Batch,
    /// One file of 48 MiB, with checkpoints.
    Large,
    /// One of 40 MiB; the link is reset after 24 MiB and the rest resumed.
    Resume,
    /// The name is taken in the inbox.
    Collision,
    /// What the start after a kill does: the kill was amid the renames of a batch.
    Recovery,
    /// A whole folder as one delivery, with files, a subfolder and an empty folder in it.
    Folder,
}

/// A file that is dropped.
#[derive(Clone)]
pub struct Drop {
    /// Below the outbox.
    pub name: String,
    /// Its bytes.
    pub bytes: Arc<Vec<u8>>,
    /// Their digest; of a folder: [`tree_digest`].
    pub sha256: String,
    /// What lies in it, if it is a folder; None: an empty folder.
    pub inside: Vec<(&'static str, Option<Vec<u8>>)>,
}

impl Drop {
    /// A file of these bytes.
    pub fn new(name: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self {
            name: name.into(),
            sha256: crate::harness::files::sha256_of(&bytes),
            bytes: Arc::new(bytes),
            inside: Vec::new(),
        }
    }

    /// A folder that is one delivery.
    pub fn folder(name: &str, inside: Vec<(&'static str, Option<Vec<u8>>)>) -> Self {
        let lines = inside.iter().map(|(path, bytes)| {
            let digest = bytes.as_deref().map(crate::harness::files::sha256_of);
            (PathBuf::from(path), digest)
        });
        Self {
            name: name.into(),
            sha256: tree_digest(lines.collect()),
            bytes: Arc::default(),
            inside,
        }
    }
}

/// Over the paths in a folder and their files' digests (None: a folder).
pub fn tree_digest(tree: BTreeMap<PathBuf, Option<String>>) -> String {
    crate::harness::files::sha256_of(format!("{tree:?}").as_bytes())
}

impl Scenario {
    /// All, in the order in which they are proven.
    pub const ALL: [Self; 8] = [
        Self::Start,
        Self::Small,
        Self::Collision,
        Self::Batch,
        Self::Recovery,
        Self::Large,
        Self::Resume,
        Self::Folder,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Small => "small",
            Self::Batch => "batch",
            Self::Large => "large",
            Self::Resume => "resume",
            Self::Collision => "collision",
            Self::Recovery => "recovery",
            Self::Folder => "folder",
        }
    }

    /// What is dropped.
    pub fn drops(self) -> Vec<Drop> {
        static LARGE: LazyLock<Drop> = LazyLock::new(|| Drop::new("large.bin", noise(7, 48 << 20)));
        static RESUMED: LazyLock<Drop> =
            LazyLock::new(|| Drop::new("resumed.bin", noise(8, CUT_AFTER + (16 << 20))));
        match self {
            Self::Start | Self::Small | Self::Collision => {
                vec![Drop::new(NAME, noise(1, 5_000))]
            }
            Self::Batch => small_files(40),
            Self::Recovery => small_files(6),
            Self::Large => vec![LARGE.clone()],
            Self::Resume => vec![RESUMED.clone()],
            Self::Folder => vec![Drop::folder(
                WHOLE,
                vec![
                    ("a", Some(noise(1, 3_000))),
                    ("sub", None),
                    ("sub/b", Some(noise(2, 300_000))),
                    ("sub/empty", None),
                    ("z", Some(Vec::new())),
                ],
            )],
        }
    }

    /// What lies in the inbox before, and has to lie there after.
    pub fn strangers(self) -> Vec<Drop> {
        match self {
            Self::Collision => vec![Drop::new(NAME, b"somebody else's".to_vec())],
            _ => Vec::new(),
        }
    }

    /// Are folders delivered whole?
    pub fn is_whole(self) -> bool {
        self == Self::Folder
    }

    /// Does the wire break in the middle?
    pub fn breaks_the_wire(self) -> bool {
        self == Self::Resume
    }
}

fn small_files(count: u64) -> Vec<Drop> {
    (0..count)
        .map(|n| match n {
            0 => Drop::new("empty", Vec::new()),
            1 | 2 => Drop::new(format!("equal-{n}"), noise(2, 3_000)),
            3 => Drop::new("folder/inside", noise(3, 3_000)),
            // Enough folders for one sync of them all.
            6..=9 => Drop::new(format!("folder-{n}/inside"), noise(n, 3_000)),
            _ => Drop::new(format!("file-{n:02}"), noise(n, 2_000 + n as usize)),
        })
        .collect()
}

/// With this every folder's name begins that is delivered whole, and no other one's.
pub const WHOLE: &str = "whole";
/// The one file's name.
const NAME: &str = "report.txt";

/// Bytes after which the wire breaks.
pub const CUT_AFTER: usize = 24 << 20;
