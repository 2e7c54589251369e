use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use proptest::prelude::*;

use super::*;

fn dir(path: &Path) -> Dir {
    confined::root(path).unwrap()
}

fn bytes(path: &Path, from: u64, to: u64) -> Vec<u8> {
    let mut all = Vec::new();
    read(&dir(path), from, to, &mut |chunk| {
        assert!(chunk.len() <= dropwire_protocol::message::MAX_CHUNK);
        all.extend_from_slice(chunk);
        true
    })
    .unwrap();
    all
}

/// Files of some sizes, folders (an empty one too), long and odd names, times from before 1970 and far ahead.
fn tree() -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    let long = "n".repeat(200);
    fs::create_dir_all(root.join("sub/deeper").join(&long)).unwrap();
    fs::create_dir_all(root.join("empty")).unwrap();
    for (name, size) in [
        ("a", 0),
        ("b", 1),
        ("sub/x", 512),
        ("sub-x", 513),
        ("sub/deeper/big", 700_000),
        (".hidden", 10),
    ] {
        let content: Vec<u8> = (0..size).map(|i: u32| (i * 7 / 3) as u8).collect();
        fs::write(root.join(name), content).unwrap();
    }
    fs::write(root.join("sub/deeper").join(&long).join(&long), "deep").unwrap();
    for length in 95..103 {
        fs::write(root.join("e".repeat(length)), "edge").unwrap();
    }
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::{ffi::OsStrExt, fs::PermissionsExt};
        let odd = root.join(std::ffi::OsStr::from_bytes(b"\xff\n odd \xc3\xa4"));
        fs::write(odd, "odd").unwrap();
        fs::set_permissions(root.join("b"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::hard_link(root.join("b"), root.join("c")).unwrap();
        // A FUSE mount may keep what it knows of "b" from before the link, until it is asked again.
        Version::read(&fs::File::open(root.join("b")).unwrap()).unwrap();
    }
    let set = |name: &str, time| {
        let file = fs::File::options().write(true).open(root.join(name)).unwrap();
        crate::fs::file_system::set_modified(&file, time).unwrap();
    };
    set("a", SystemTime::UNIX_EPOCH - Duration::from_millis(1500));
    set("sub-x", SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 33));
    temp
}

/// As PROTOCOL.md says that anyone can have it printed.
#[cfg(target_os = "linux")]
#[test]
fn gnu_tar_writes_the_same_stream() {
    let gnu = Command::new("tar").arg("--version").output();
    if !gnu.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains("GNU tar")) {
        eprintln!("skipped: no GNU tar here");
        return;
    }
    let temp = tree();
    fs::write(temp.path().join(".DS_Store"), "litter").unwrap();
    let listing = list_quickly(&dir(temp.path())).unwrap();
    let ours = bytes(temp.path(), 0, listing.size);
    fs::remove_file(temp.path().join(".DS_Store")).unwrap();
    let touched = Command::new("find")
        .arg(temp.path())
        .args(["-type", "d", "-exec", "touch", "-d", "@0", "{}", "+"])
        .status();
    assert!(touched.unwrap().success());
    let tar = Command::new("tar")
        .arg("-C")
        .arg(temp.path())
        .args([
            "-c",
            "-b1",
            "--format=gnu",
            "--sort=name",
            "--owner=0",
            "--group=0",
        ])
        .args([
            "--numeric-owner",
            "--mode=a-x,u=rwX,go=rX",
            "--hard-dereference",
            ".",
        ])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(tar.status.success());
    assert!(
        ours == tar.stdout,
        "{} and {} bytes",
        ours.len(),
        tar.stdout.len()
    );
    assert_eq!(listing.size, ours.len() as u64);
    let mut hash = RunningDigest::default();
    hash.update(&ours);
    assert_eq!(
        digest(&dir(temp.path()), listing.size, &|| false).unwrap(),
        hash.value()
    );
}

#[test]
fn what_is_read_back_is_what_lay_there() {
    let temp = tree();
    let size = list_quickly(&dir(temp.path())).unwrap().size;
    let stream = bytes(temp.path(), 0, size);
    let mut reader = dropwire_protocol::bundle::Reader::new(&stream[..]);
    let mut files = 0;
    while let Some(entry) = reader.next().unwrap() {
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut content).unwrap();
        if let (Some(path), dropwire_protocol::bundle::Node::File { .. }) = (entry.path, entry.node) {
            files += 1;
            assert_eq!(fs::read(confined::join(temp.path(), &path)).unwrap(), content);
        }
    }
    assert_eq!(files, list_quickly(&dir(temp.path())).unwrap().files);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn it_can_be_read_from_any_offset_to_any_other(from: prop::sample::Index, to: prop::sample::Index) {
        thread_local! {
            static TREE: tempfile::TempDir = tree();
        }
        TREE.with(|temp| {
            let size = list_quickly(&dir(temp.path())).unwrap().size;
            let whole = bytes(temp.path(), 0, size);
            let (a, b) = (from.index(whole.len() + 1), to.index(whole.len() + 1));
            let (a, b) = (a.min(b), a.max(b));
            assert!(bytes(temp.path(), a as u64, b as u64) == whole[a..b], "{a}..{b}");
        });
    }
}

#[test]
fn a_version_tells_what_counts() {
    let temp = tree();
    let version = || list_quickly(&dir(temp.path())).unwrap().version();
    let at = |name: &str| temp.path().join(name);
    let first = version();
    assert!(first.folder && first == version());
    fs::write(at("Thumbs.db"), "litter").unwrap();
    assert!(first.same_identity(&version()), "litter does not count");
    fs::create_dir(at("desktop.ini")).unwrap();
    assert!(
        !first.same_identity(&version()),
        "a folder is no litter, whatever its name"
    );
    fs::remove_dir(at("desktop.ini")).unwrap();
    fs::create_dir(at("sub/new")).unwrap();
    let second = version();
    assert!(!first.same_identity(&second), "an empty folder counts");
    fs::rename(at("a"), at("z")).unwrap();
    let third = version();
    assert!(!second.same_identity(&third), "a name counts");
    let file = fs::File::options().write(true).open(at("b")).unwrap();
    crate::fs::file_system::set_modified(&file, SystemTime::UNIX_EPOCH).unwrap();
    assert!(!third.same_identity(&version()), "a time counts");
}

#[test]
fn a_rename_of_the_folder_leaves_it_undisturbed_and_nothing_else_does() {
    let temp = tempfile::tempdir().unwrap();
    let (here, there) = (temp.path().join("here"), temp.path().join("there"));
    fs::create_dir_all(here.join("sub")).unwrap();
    fs::write(here.join("sub/file"), "bytes").unwrap();
    let before = list_quickly(&dir(&here)).unwrap();
    fs::rename(&here, &there).unwrap();
    let after = list_quickly(&dir(&there)).unwrap();
    assert!(after.is_undisturbed(&before) && after.version().same_identity(&before.version()));
    // A link comes and goes: only the ctime tells.
    crate::fs::version::clock_steps(temp.path());
    fs::hard_link(there.join("sub/file"), there.join("sub/link")).unwrap();
    fs::remove_file(there.join("sub/link")).unwrap();
    let touched = list_quickly(&dir(&there)).unwrap();
    assert!(!touched.is_undisturbed(&before) && touched.version().same_identity(&before.version()));
}

#[cfg(target_os = "linux")]
#[test]
fn writers_and_what_is_never_sent_are_told() {
    let temp = tree();
    let at = |name: &str| temp.path().join(name);
    std::os::unix::fs::symlink("/etc", at("sub/link")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    crate::fs::version::rests(temp.path());
    let ask = || list(&dir(temp.path()), true, &mut |_| Ok(()));
    let listing = ask().unwrap();
    let path = |path: &str| RemotePath::parse(path.as_bytes()).unwrap();
    let left_out = [
        (path("socket"), "neither file nor folder"),
        (path("sub/link"), "a symlink"),
    ];
    assert_eq!(listing.left_out, left_out);
    let writer = fs::File::options().write(true).open(at("sub/x")).unwrap();
    assert_eq!(ask(), Err(Trouble::Writer("sub/x".into())));
    let read_now = || digest(&dir(temp.path()), listing.size, &|| false);
    assert_eq!(read_now(), Err(Halt::Trouble(Trouble::Writer("sub/x".into()))));
    drop(writer);
    assert_eq!(ask().unwrap().version(), listing.version());
    fs::create_dir(at("sub/.dropwire")).unwrap();
    assert!(matches!(ask(), Err(Trouble::Held(why)) if why.contains("sub/.dropwire")));
}

#[test]
fn a_stream_that_ended_early_is_no_version_of_it() {
    let temp = tree();
    let size = list_quickly(&dir(temp.path())).unwrap().size;
    fs::remove_file(temp.path().join("b")).unwrap();
    assert_eq!(
        digest(&dir(temp.path()), size, &|| false),
        Err(Halt::Trouble(Trouble::Changed))
    );
}

/// An overlay of several disks gives files other device numbers than folders; what is mounted keeps a folder back there
/// too.
#[cfg(target_os = "linux")]
#[test]
fn a_folder_on_an_overlay_can_be_sent_and_a_mounted_file_in_it_cannot() {
    let temp = tempfile::tempdir().unwrap();
    let at = |path: &str| temp.path().join(path);
    let mount = |with: &[&str], on: &str| {
        let ran = Command::new("mount").args(with).arg(at(on)).output();
        ran.is_ok_and(|ran| ran.status.success())
            .then(|| Unmounts(at(on)))
    };
    for folder in ["lower", "disk", "merged"] {
        fs::create_dir(at(folder)).unwrap();
    }
    fs::write(at("lower/file"), "bytes").unwrap();
    let Some(_disk) = mount(&["-t", "tmpfs", "none"], "disk") else {
        return crate::failpoints::skip("nothing can be mounted here");
    };
    fs::create_dir(at("disk/upper")).unwrap();
    fs::create_dir(at("disk/work")).unwrap();
    let root = temp.path().display();
    let layers = format!("lowerdir={root}/lower,upperdir={root}/disk/upper,workdir={root}/disk/work");
    let Some(_merged) = mount(&["-t", "overlay", "-o", &layers, "none"], "merged") else {
        return crate::failpoints::skip("no overlay can be mounted here");
    };
    fs::create_dir(at("merged/sub")).unwrap();
    fs::write(at("merged/sub/file"), "bytes").unwrap();
    assert!(list_quickly(&dir(&at("merged"))).is_ok());
    let from = at("lower/file");
    let bind = ["--bind", from.to_str().unwrap()];
    let _file = mount(&bind, "merged/sub/file").expect("mounted");
    let held = list_quickly(&dir(&at("merged")));
    assert!(matches!(held, Err(Trouble::Held(why)) if why.contains("mounted")));
}

#[cfg(target_os = "linux")]
struct Unmounts(std::path::PathBuf);

#[cfg(target_os = "linux")]
impl Drop for Unmounts {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
