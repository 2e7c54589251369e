//! One form only: what is written is read back the same, and everything else is refused.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A tree by its paths' components; None: a folder.
type Tree = BTreeMap<Vec<Vec<u8>>, Option<(Vec<u8>, i64)>>;

fn path(components: &[Vec<u8>]) -> RemotePath {
    RemotePath::parse(&components.join(&b'/')).unwrap()
}

fn write(tree: &Tree) -> Vec<u8> {
    let mut stream = Entry {
        path: None,
        node: Node::Folder,
    }
    .header();
    for (components, content) in tree {
        let node = match content {
            None => Node::Folder,
            Some((bytes, mtime)) => Node::File {
                size: bytes.len() as u64,
                mtime: *mtime,
            },
        };
        let entry = Entry {
            path: Some(path(components)),
            node,
        };
        let before = stream.len() as u64;
        stream.extend(entry.header());
        if let Some((bytes, _)) = content {
            stream.extend(bytes);
            stream.resize(stream.len() + padding(bytes.len() as u64), 0);
        }
        assert_eq!(stream.len() as u64 - before, entry.length());
    }
    stream.extend(END);
    stream
}

fn read(stream: &[u8]) -> Result<Tree, BundleError> {
    let mut reader = Reader::new(stream);
    let mut tree = Tree::new();
    while let Some(entry) = reader.next()? {
        let content = match entry.node {
            Node::Folder => None,
            Node::File { mtime, .. } => {
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes).map_err(BundleError::Short)?;
                Some((bytes, mtime))
            }
        };
        if let Some(path) = entry.path {
            tree.insert(path.components().map(<[u8]>::to_vec).collect(), content);
        }
    }
    Ok(tree)
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let short = prop::collection::vec(any::<u8>(), 1..6);
    let long = prop::collection::vec(b'a'..b'd', 90..256);
    prop_oneof![4 => short, 1 => long]
        .prop_filter("a name", |n| !n.contains(&b'/') && RemotePath::parse(n).is_ok())
}

fn tree() -> impl Strategy<Value = Tree> {
    let content = prop_oneof![
        1 => Just(None),
        2 => (prop::collection::vec(any::<u8>(), 0..1100), any::<i64>()).prop_map(Some),
    ];
    let file = (prop::collection::vec(name(), 1..5), content);
    prop::collection::vec(file, 0..12).prop_map(|files| {
        let mut tree = Tree::new();
        for (path, content) in files {
            let clashes = (1..path.len()).any(|n| matches!(tree.get(&path[..n]), Some(Some(_))));
            if clashes || tree.contains_key(&path) {
                continue;
            }
            for n in 1..path.len() {
                tree.insert(path[..n].to_vec(), None);
            }
            tree.insert(path, content);
        }
        tree
    })
}

proptest! {
    #[test]
    fn a_tree_comes_back(tree in tree()) {
        prop_assert_eq!(read(&write(&tree)).unwrap(), tree);
    }

    /// A changed byte of a header is refused, or it is another tree, written the one way that one is written.
    #[test]
    fn there_is_one_stream_for_a_tree(tree in tree(), at: prop::sample::Index, flip in 1u8..) {
        let mut stream = write(&tree);
        let at = at.index(stream.len());
        stream[at] ^= flip;
        if let Ok(read) = read(&stream) {
            prop_assert_eq!(write(&read), stream);
        }
    }

    #[test]
    fn any_bytes_are_no_stream(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(read(&bytes).is_err());
    }

    #[test]
    fn what_is_cut_off_or_goes_on_is_refused(tree in tree(), cut: prop::sample::Index) {
        let stream = write(&tree);
        prop_assert!(read(&stream[..cut.index(stream.len())]).is_err());
        prop_assert!(matches!(read(&[stream, vec![0]].concat()), Err(BundleError::Long)));
    }
}

fn folder(components: &[&str]) -> Vec<u8> {
    let path = RemotePath::parse(components.join("/").as_bytes()).ok();
    Entry {
        path,
        node: Node::Folder,
    }
    .header()
}

fn file(path: &str) -> Vec<u8> {
    let node = Node::File { size: 0, mtime: 0 };
    let path = RemotePath::parse(path.as_bytes()).ok();
    Entry { path, node }.header()
}

fn refusal(parts: &[Vec<u8>]) -> BundleError {
    read(&[parts.concat(), END.to_vec()].concat()).unwrap_err()
}

#[test]
fn what_is_out_of_place_is_refused() {
    let top = || folder(&[]);
    let out_of_order = [
        vec![top(), file("a"), file("a")],
        vec![top(), file("b"), file("a")],
        vec![top(), file("a/b")],
        vec![top(), file("a"), file("a/b")],
        vec![top(), folder(&["a"]), file("b"), file("a/x")],
        vec![
            top(),
            folder(&["a"]),
            folder(&["a", "b"]),
            folder(&["c"]),
            file("a/b/x"),
        ],
        vec![top(), folder(&["a"]), folder(&["a"])],
        vec![top(), top()],
    ];
    for parts in out_of_order {
        assert!(matches!(refusal(&parts), BundleError::Order), "{parts:?}");
    }
    assert!(matches!(refusal(&[]), BundleError::NoFolder));
    assert!(matches!(refusal(&[file("a")]), BundleError::NoFolder));
}

/// With its name, type or link replaced, and the checksum made right.
fn forged(change: impl Fn(&mut [u8])) -> BundleError {
    let mut header = file("innocent");
    change(&mut header);
    header[CHECKSUM..CHECKSUM + 8].fill(b' ');
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[CHECKSUM..CHECKSUM + 7].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    refusal(&[folder(&[]), header])
}

#[test]
fn names_that_lead_out_and_types_that_are_no_files_are_refused() {
    let named = |name: &'static [u8]| {
        forged(move |header| {
            header[..NAME].fill(0);
            header[..name.len()].copy_from_slice(name);
        })
    };
    for name in [
        &b"./../x"[..],
        b"./a/../../x",
        b".//etc/passwd",
        b"./.dropwire/id",
        b"./a/.DropWire",
        b"./.",
        b"./",
    ] {
        assert!(matches!(named(name), BundleError::Name(_)), "{name:?}");
    }
    for name in [&b"/etc/passwd"[..], b"../x", b"x", b""] {
        assert!(matches!(named(name), BundleError::NotCanonical), "{name:?}");
    }
    for kind in *b"1234567xgSKDMVNA\0" {
        let error = forged(|header| header[TYPE] = kind);
        assert!(matches!(error, BundleError::NotCanonical), "{}", kind as char);
    }
    for at in [100, 110, 118, 160, 258, 270, 300, 340, 350, 500] {
        let error = forged(|header| header[at] = b'1');
        assert!(matches!(error, BundleError::NotCanonical), "{at}");
    }
}

#[test]
fn more_than_the_limit_is_refused_without_holding_it() {
    /// Empty files `00000001`, `00000002`, …, on and on.
    struct Endless(u64, Vec<u8>);
    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.1.is_empty() {
                self.1 = file(&format!("{:08}", self.0));
                self.0 += 1;
            }
            let length = buffer.len().min(self.1.len());
            buffer[..length].copy_from_slice(&self.1[..length]);
            self.1.drain(..length);
            Ok(length)
        }
    }
    let mut reader = Reader::new(Endless(0, folder(&[])));
    reader.most = 1000;
    let error = loop {
        if let Err(error) = reader.next() {
            break error;
        }
    };
    assert!(matches!(error, BundleError::TooMany));
    assert_eq!(reader.entries, 1001);
}
