use super::*;

const ANA: AgentId = AgentId([1; 32]);
const BOB: AgentId = AgentId([2; 32]);

fn inbox_dir() -> (tempfile::TempDir, InboxDir) {
    let temp = tempfile::tempdir().unwrap();
    let inbox_dir = InboxDir::alone(temp.path());
    (temp, inbox_dir)
}

fn offered<'a>(sender: AgentId, top: Option<&'a str>, path: &'a RemotePath) -> Offered<'a> {
    Offered {
        sender,
        top,
        path,
        kind: Kind::File,
    }
}

fn put(places: &Arc<Places>, inbox_dir: &InboxDir, who: AgentId, path: &str) -> String {
    let path = RemotePath::parse(path.as_bytes()).unwrap();
    let place = places
        .choose(
            inbox_dir,
            inbox_dir.names,
            offered(who, None, &path),
            &mut Opened::new(),
        )
        .unwrap();
    place.parent().unwrap().write(&place.name, b"x").unwrap();
    String::from_utf8(place.path.as_bytes().to_vec()).unwrap()
}

#[test]
fn names_count_up_and_come_free_again() {
    let (temp, inbox_dir) = inbox_dir();
    let places = Places::new(Vec::new());
    assert_eq!(put(&places, &inbox_dir, ANA, "a/x.txt"), "a/x.txt");
    assert_eq!(put(&places, &inbox_dir, BOB, "a/x.txt"), "a/x (1).txt");
    assert_eq!(put(&places, &inbox_dir, ANA, "a/x.txt"), "a/x (2).txt");
    std::fs::remove_dir_all(temp.path().join("a")).unwrap();
    assert_eq!(put(&places, &inbox_dir, ANA, "a/x.txt"), "a/x.txt");
    assert_eq!(put(&places, &inbox_dir, ANA, "a/x.txt"), "a/x (1).txt");
}

/// Found by halving, also where files have left.
#[test]
fn a_name_taken_thousands_of_times_is_numbered_on() {
    let (temp, inbox_dir) = inbox_dir();
    for n in 0..3000 {
        let name = Names::HERE.numbered(b"x.txt", Kind::File, n);
        std::fs::write(temp.path().join(os_name(&name)), b"").unwrap();
    }
    let places = Places::new(Vec::new());
    assert_eq!(put(&places, &inbox_dir, ANA, "x.txt"), "x (3000).txt");
    assert_eq!(put(&places, &inbox_dir, ANA, "x.txt"), "x (3001).txt");
    for n in [1500, 3001] {
        std::fs::remove_file(temp.path().join(format!("x ({n}).txt"))).unwrap();
    }
    let names: HashSet<_> = (0..3).map(|_| put(&places, &inbox_dir, ANA, "x.txt")).collect();
    assert_eq!(names.len(), 3, "no name twice: {names:?}");
    assert_eq!(
        std::fs::read_dir(temp.path()).unwrap().count(),
        3003 + 1,
        "with our own folder"
    );
}

#[test]
fn eight_at_once_get_eight_names() {
    let (_temp, inbox_dir) = inbox_dir();
    let places = Places::new(Vec::new());
    let path = RemotePath::parse(b"x").unwrap();
    let chosen: Vec<Place> = (0..8)
        .map(|_| {
            places
                .choose(
                    &inbox_dir,
                    inbox_dir.names,
                    offered(ANA, None, &path),
                    &mut Opened::new(),
                )
                .unwrap()
        })
        .collect();
    let names: HashSet<_> = chosen.iter().map(|p| p.name.clone()).collect();
    assert_eq!(names.len(), 8);
    drop(chosen);
    assert_eq!(
        places
            .choose(
                &inbox_dir,
                inbox_dir.names,
                offered(ANA, None, &path),
                &mut Opened::new()
            )
            .unwrap()
            .name,
        "x"
    );
}

#[test]
fn a_file_where_a_folder_is_needed_gives_an_alias_that_stays() {
    let (temp, inbox_dir) = inbox_dir();
    std::fs::write(temp.path().join("sub"), "a file").unwrap();
    let places = Places::new(Vec::new());
    assert_eq!(put(&places, &inbox_dir, ANA, "sub/deep/x"), "sub (1)/deep/x");
    std::fs::remove_file(temp.path().join("sub")).unwrap();
    assert_eq!(put(&places, &inbox_dir, ANA, "sub/y"), "sub (1)/y");
    assert_eq!(
        put(&places, &inbox_dir, BOB, "sub/y"),
        "sub/y",
        "only for that sender"
    );
    let path = RemotePath::parse(b"sub/z").unwrap();
    let kept = places
        .choose(
            &inbox_dir,
            inbox_dir.names,
            offered(ANA, None, &path),
            &mut Opened::new(),
        )
        .unwrap()
        .aliases
        .clone();
    assert_eq!(kept, [(b"sub".to_vec(), Some(b"sub (1)".to_vec()))]);
}

#[cfg(unix)]
#[test]
fn a_symlink_is_never_followed() {
    let (temp, inbox_dir) = inbox_dir();
    let outside = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path(), temp.path().join("sub")).unwrap();
    std::os::unix::fs::symlink("nowhere", temp.path().join("x")).unwrap();
    let places = Places::new(Vec::new());
    assert_eq!(put(&places, &inbox_dir, ANA, "sub/x"), "sub (1)/x");
    assert_eq!(put(&places, &inbox_dir, ANA, "x"), "x (1)");
    assert_eq!(outside.path().read_dir().unwrap().count(), 0);
}

#[test]
fn a_folder_for_each_peer() {
    let (_temp, inbox_dir) = inbox_dir();
    let places = Places::new(Vec::new());
    let path = RemotePath::parse(b"a/b").unwrap();
    let place = places
        .choose(
            &inbox_dir,
            inbox_dir.names,
            offered(ANA, Some("office"), &path),
            &mut Opened::new(),
        )
        .unwrap();
    assert_eq!(place.path.as_bytes(), b"office/a/b");
    assert_eq!(place.folders.len(), 3);
}

#[test]
fn files_that_are_placed_together_share_their_folders() {
    let (_temp, inbox_dir) = inbox_dir();
    let places = Places::new(Vec::new());
    let mut opened = Opened::new();
    let chosen: Vec<Place> = ["a/b/x", "a/b/y", "a/z"]
        .iter()
        .map(|path| {
            let path = RemotePath::parse(path.as_bytes()).unwrap();
            places
                .choose(
                    &inbox_dir,
                    inbox_dir.names,
                    offered(ANA, None, &path),
                    &mut opened,
                )
                .unwrap()
        })
        .collect();
    assert_eq!(opened.len(), 3, "the inbox, a, a/b");
    assert!(Arc::ptr_eq(&chosen[0].folders[2].1, &chosen[1].folders[2].1));
    assert!(Arc::ptr_eq(&chosen[0].folders[1].1, &chosen[2].folders[1].1));
}

#[test]
fn our_own_folder_is_no_place() {
    let (_temp, inbox_dir) = inbox_dir();
    let places = Places::new(Vec::new());
    let path = RemotePath::parse(b"x").unwrap();
    let ours = offered(ANA, Some(".dropwire"), &path);
    let bad = places.choose(&inbox_dir, inbox_dir.names, ours, &mut Opened::new());
    assert!(matches!(bad.map(drop), Err(PlaceError::BadName(BadName::Own))));
}

#[test]
fn folders_made_for_nothing_go_and_others_stay() {
    let (temp, inbox_dir) = inbox_dir();
    let places = Places::new(Vec::new());
    std::fs::create_dir(temp.path().join("a")).unwrap();
    let choose = |path: &[u8]| {
        let path = RemotePath::parse(path).unwrap();
        let mut opened = Opened::new();
        places.choose(
            &inbox_dir,
            inbox_dir.names,
            offered(ANA, None, &path),
            &mut opened,
        )
    };
    let there = |path: &str| temp.path().join(path).exists();
    let place = choose(b"a/b/c/file").unwrap();
    std::fs::create_dir(temp.path().join("a/b/other")).unwrap();
    assert!(there("a/b/c"));
    drop(place);
    assert!(!there("a/b/c") && there("a/b/other"), "only what nobody uses");
    let mut place = choose(b"a/d/file").unwrap();
    place.take_made().stays();
    drop(place);
    assert!(there("a/d"));
}
