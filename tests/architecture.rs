//! The map in ARCHITECTURE.md and `agent/src/lib.rs`, held against the code: which room may import which, and that
//! every room and every file of the protocol stands on the map.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use crate::source::{code, collect, paths, top};

/// What every room may use. They may use each other too, as long as nothing above.
const COMMON: &[&str] = &[
    "backoff",
    "blocking",
    "border",
    "bundle",
    "clock",
    "config",
    "confined",
    "db",
    "descriptors",
    "dev_ino",
    "disk",
    "durable",
    "error",
    "failpoints",
    "file_system",
    "folder_id",
    "free_name",
    "homes",
    "id",
    "identity",
    "io_error",
    "lease",
    "marker",
    "own_folder",
    "poison",
    "own_files",
    "owner",
    "remove_tree",
    "running_time",
    "snapshot",
    "unsent",
    "version",
    "watcher",
];

/// Rooms above those, and what they may import besides. `sender` and `receiver` implement `link`'s two traits.
const ROOMS: &[(&str, &[&str])] = &[
    ("cli", &["daemon", "commands", "control"]),
    (
        "daemon",
        &[
            "commands", "sender", "outbox", "leaving", "queue", "link", "receiver", "control",
        ],
    ),
    (
        "commands",
        &[
            "sender", "outbox", "leaving", "queue", "link", "receiver", "control",
        ],
    ),
    ("sender", &["outbox", "leaving", "queue", "link"]),
    ("outbox", &[]),
    ("leaving", &[]),
    ("queue", &[]),
    ("link", &[]),
    ("receiver", &["link"]),
    ("control", &[]),
];

/// What is on disk, and who is talked to, stays out of the rooms whose business it is not.
const NEVER: &[(&str, &[&str])] = &[
    (
        "control",
        &[
            "bundle", "db", "durable", "identity", "confined", "lease", "config",
        ],
    ),
    (
        "link",
        &["bundle", "db", "durable", "confined", "lease", "own_folder"],
    ),
    ("queue", &["bundle", "durable", "confined", "lease", "own_folder"]),
    ("outbox", &["db", "identity"]),
    ("leaving", &["db", "identity"]),
    ("db", &["durable", "identity", "config"]),
    // Except `failpoints`, by which tests leave one of its steps out.
    (
        "durable",
        &[
            "backoff",
            "bundle",
            "clock",
            "config",
            "confined",
            "db",
            "error",
            "id",
            "identity",
            "lease",
            "marker",
            "own_folder",
            "version",
        ],
    ),
];

#[test]
fn rooms_keep_their_ranks() {
    let above: BTreeMap<&str, &[&str]> = ROOMS.iter().copied().collect();
    let never: BTreeMap<&str, &[&str]> = NEVER.iter().copied().collect();
    let mut wrong = Vec::new();
    for (room, files) in rooms() {
        let allowed = above.get(room.as_str());
        assert!(
            allowed.is_some() || COMMON.contains(&room.as_str()),
            "{room} has no rank yet: give it one here and in ARCHITECTURE.md"
        );
        for file in files {
            for import in imports(&file) {
                let import = import.as_str();
                let fits = import == room
                    || COMMON.contains(&import)
                    || allowed.is_some_and(|allowed| allowed.contains(&import));
                let banned = import != room && never.get(room.as_str()).is_some_and(|n| n.contains(&import));
                if !fits || banned {
                    wrong.push(format!("{} imports {import}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "against the map:\n{}", wrong.join("\n"));
}

/// What `fs` may use beside its own files.
const BELOW_FS: &[&str] = &["error", "failpoints", "io_error", "poison"];

#[test]
fn fs_knows_only_file_systems() {
    let rooms = rooms();
    let of_fs = |room: &str| {
        rooms
            .get(room)
            .is_some_and(|files| files.iter().any(|file| is_of_fs(file)))
    };
    let mut wrong = Vec::new();
    for file in rooms.values().flatten().filter(|file| is_of_fs(file)) {
        let imports = imports(file);
        let above = imports
            .iter()
            .filter(|import| !of_fs(import) && !BELOW_FS.contains(&import.as_str()));
        wrong.extend(above.map(|import| format!("{} imports {import}", file.display())));
        if code(file).contains("tokio") {
            wrong.push(format!("{} needs a runtime", file.display()));
        }
    }
    assert!(of_fs("durable") && !of_fs("queue"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn is_of_fs(file: &Path) -> bool {
    file.starts_with(top().join("agent/src/fs"))
}

#[test]
fn everything_stands_on_the_map() {
    let map = fs::read_to_string(top().join("ARCHITECTURE.md")).unwrap();
    let words: BTreeSet<&str> = map.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let library = fs::read_to_string(top().join("agent/src/lib.rs")).unwrap();
    let of_fs = fs::read_to_string(top().join("agent/src/fs/mod.rs")).unwrap();
    let mut missing = Vec::new();
    for (room, files) in rooms() {
        if !words.contains(room.as_str()) {
            missing.push(format!("{room} in ARCHITECTURE.md"));
        }
        let is_listed = match files.iter().any(|file| is_of_fs(file)) {
            true => of_fs.contains(&format!("`{room}`")),
            false => library.contains(&format!("[`{room}`]")),
        };
        if !is_listed {
            missing.push(format!("{room} in agent/src/lib.rs or agent/src/fs/mod.rs"));
        }
    }
    for entry in fs::read_dir(top().join("protocol/src")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if !name.ends_with("_tests") && !words.contains(name.as_str()) {
            missing.push(format!("protocol's {name} in ARCHITECTURE.md"));
        }
    }
    let map = parts(&map);
    for (room, files) in by_folder() {
        for name in files.iter().filter(|name| !is_listed_by(map.get(&room), name)) {
            missing.push(format!("{room}'s {name} in ARCHITECTURE.md"));
        }
    }
    assert!(missing.is_empty(), "missing on the map: {missing:#?}");
}

/// The map's lines for each folder of the agent's sources (`db.rs` for `db`).
fn parts(map: &str) -> BTreeMap<String, String> {
    let mut parts = BTreeMap::<String, String>::new();
    let mut room = None;
    let agent = map.lines().skip_while(|line| !line.starts_with("agent/"));
    for line in agent.skip(1).take_while(|line| line.starts_with("  ")) {
        if !line.starts_with("   ") {
            let name = line.split_whitespace().next().unwrap_or_default();
            room = Some(name.trim_end_matches('/').trim_end_matches(".rs").to_owned());
        }
        if let Some(room) = &room {
            parts.entry(room.clone()).or_default().push_str(line);
        }
    }
    assert!(parts.len() > 20, "{parts:#?}");
    parts
}

/// The agent's folders, each with the names of its files, tests left out.
fn by_folder() -> BTreeMap<String, Vec<String>> {
    let mut folders = BTreeMap::new();
    for entry in fs::read_dir(top().join("agent/src")).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_dir() {
            continue;
        }
        let mut files = Vec::new();
        collect(&path, &mut files);
        let name = |file: &PathBuf| {
            let parts = file.strip_prefix(&path).unwrap().with_extension("");
            let is_test = parts.iter().any(|part| {
                let part = part.to_str().unwrap();
                part == "tests" || part.ends_with("_tests") || part == "trace"
            });
            let name = parts.file_name().unwrap().to_str().unwrap().to_owned();
            (!is_test && name != "mod").then_some(name)
        };
        let folder = path.file_name().unwrap().to_str().unwrap().to_owned();
        folders.insert(folder, files.iter().filter_map(name).collect());
    }
    folders
}

fn is_listed_by(part: Option<&String>, name: &str) -> bool {
    let is_in_name = |c: char| c.is_alphanumeric() || c == '_';
    part.is_some_and(|part| part.split(|c| !is_in_name(c)).any(|word| word == name))
}

/// `a.rs` in a document is a path from the top, or below a folder of one that its line names before (`agent/src/config/`,
/// then `table.rs`).
#[test]
fn every_source_file_that_a_document_names_is_there() {
    let mut documents = Vec::new();
    documents_below(&top(), &mut documents);
    let (mut wrong, mut right) = (Vec::new(), 0);
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for (line, text) in (1..).zip(text.lines()) {
            let mut folders = BTreeSet::from([PathBuf::new()]);
            for named in text.split('`').skip(1).step_by(2) {
                let there = folders.iter().map(|folder| folder.join(named));
                let there: Vec<PathBuf> = there.filter(|path| top().join(path).exists()).collect();
                if named.ends_with(".rs") {
                    match there.is_empty() {
                        true => wrong.push(format!("{}:{line}: {named}", document.display())),
                        false => right += 1,
                    }
                }
                let above = |path: &PathBuf| path.ancestors().map(Path::to_path_buf).collect::<Vec<_>>();
                folders.extend(there.iter().flat_map(above));
            }
        }
    }
    assert!(right > 10, "{right}");
    assert!(wrong.is_empty(), "not there: {wrong:#?}");
}

fn documents_below(folder: &Path, documents: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            documents_below(&path, documents);
        } else if name.ends_with(".md") {
            documents.push(path);
        }
    }
}

/// `a::b` in the last column of docs/limits.md is a file of tests, or one that has some, below `agent/src` (or
/// `protocol/src`); a plain word may also be a file beside this one, and what has slashes is a path.
#[test]
fn every_limit_has_a_test_that_is_there() {
    let limits = fs::read_to_string(top().join("docs/limits.md")).unwrap();
    let rows = limits
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| what grows"));
    let mut missing = Vec::new();
    for row in rows {
        let named = row.rsplit('|').nth(1).unwrap_or_default();
        let mut tests = named.split('`').skip(1).step_by(2).peekable();
        if tests.peek().is_none() || !tests.all(has_tests) {
            missing.push(row);
        }
    }
    assert!(limits.lines().count() > 40, "{limits}");
    assert!(missing.is_empty(), "without a test: {missing:#?}");
}

fn has_tests(named: &str) -> bool {
    if named.contains('/') {
        return is_test(&top().join(named));
    }
    let mut components: Vec<&str> = named.split("::").collect();
    let source = match components.first() == Some(&"protocol") {
        true => {
            components.remove(0);
            "protocol/src"
        }
        false => "agent/src",
    };
    let is_inside = components.len() > 1 && components.last() == Some(&"tests");
    let is_there = |source: &str, components: &[&str]| {
        let path = top().join(source).join(components.join("/"));
        is_test(&path.with_extension("rs")) || is_test(&path.join("mod.rs"))
    };
    is_there(source, &components)
        || is_inside && is_there(source, &components[..components.len() - 1])
        || components.len() == 1 && (is_there("protocol/src", &components) || is_there("tests", &components))
}

/// Has the file tests, or does it say where they are?
fn is_test(file: &Path) -> bool {
    fs::read_to_string(file)
        .is_ok_and(|text| ["test]", "test(", "mod tests;"].iter().any(|t| text.contains(t)))
}

/// The agent's rooms, each with its files; of `fs` each file is one.
fn rooms() -> BTreeMap<String, Vec<PathBuf>> {
    let mut rooms = BTreeMap::new();
    let sources = ["agent/src", "agent/src/fs"].map(|folder| top().join(folder));
    for entry in sources.iter().flat_map(|folder| fs::read_dir(folder).unwrap()) {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if !["lib", "main", "fs", "mod"].contains(&name.as_str()) {
            let mut files = Vec::new();
            collect(&path, &mut files);
            rooms.entry(name).or_insert_with(Vec::new).extend(files);
        }
    }
    assert!(rooms.len() > 15, "{rooms:?}");
    rooms
}

/// The rooms that a file names by `crate::room` or `use crate::{room, …}`, up to its tests; of `fs`, the file.
fn imports(file: &Path) -> BTreeSet<String> {
    let code = code(file);
    let named = code
        .match_indices("crate::")
        .flat_map(|(at, _)| paths(&code[at..]));
    let rooms = named.filter_map(|path| {
        let mut names = path.into_iter().skip(1);
        let room = names.next()?;
        if room == "fs" { names.next() } else { Some(room) }
    });
    rooms
        .filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase()))
        .collect()
}
