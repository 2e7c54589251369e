//! Group, permissions and access lists of what arrives: as any program would make it in that folder now.

use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown},
};

use super::*;

/// Owner rwx, owning group r-x, the group 4243 rwx, mask rwx, others ---.
fn default_list() -> Vec<u8> {
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (0x01u16, 7u16, u32::MAX),
        (0x04, 5, u32::MAX),
        (0x08, 7, 4243),
        (0x10, 7, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    list
}

/// Mode, group, access list, default list.
fn rights(path: &Path) -> (u32, u32, Vec<u8>, Vec<u8>) {
    let meta = fs::symlink_metadata(path).unwrap();
    let list = |name: &str| {
        let mut list = vec![0; 4096];
        let length = rustix::fs::getxattr(path, name, &mut list[..]).unwrap_or(0);
        list.truncate(length);
        list
    };
    let lists = (list("system.posix_acl_access"), list("system.posix_acl_default"));
    (meta.mode(), meta.gid(), lists.0, lists.1)
}

/// As `cp` makes it of a file that has what the umask leaves.
fn make(path: &Path) {
    let plain = tempfile::tempdir().unwrap();
    let plain = File::create(plain.path().join("plain")).unwrap();
    let mode = plain.metadata().unwrap().mode() & 0o777;
    let made = File::options().write(true).create_new(true).mode(mode).open(path);
    made.unwrap();
}

/// The inbox becomes a team's folder after it was first used.
#[tokio::test(flavor = "multi_thread")]
async fn what_arrives_has_the_rights_that_other_programs_give() {
    if !crate::failpoints::needs::renames() {
        return;
    }
    for with_list in [false, true] {
        let rig = Rig::new().await;
        let (root, mut link) = (rig.root(), rig.link(ANA));
        link.send(id(0), "first", b"x").await;
        if chown(&root, None, Some(4242)).is_err() {
            return crate::failpoints::skip("only root gives a folder to any group");
        }
        fs::set_permissions(&root, fs::Permissions::from_mode(0o2770)).unwrap();
        if with_list {
            let flags = rustix::fs::XattrFlags::empty();
            let set = rustix::fs::setxattr(&root, "system.posix_acl_default", &default_list(), flags);
            if set.is_err() {
                return crate::failpoints::skip("no access lists in the temporary folder");
            }
        }
        make(&root.join("made"));
        fs::create_dir(root.join("folder made")).unwrap();
        make(&root.join("folder made/in it"));

        link.send(id(1), "small", b"x").await;
        link.send(id(2), "large", &content(2 * CHUNK)).await;
        link.send(id(3), "folder/small", b"x").await;
        link.send(id(4), "folder/deep/small", b"x").await;
        link.kind = Kind::Folder;
        link.send(id(5), "whole", &whole::stream()).await;
        let of = |name: &str| rights(&root.join(name));
        assert_eq!(of("made").1, 4242);
        assert_eq!(of("made").2.is_empty(), !with_list);
        for file in ["small", "large"] {
            assert_eq!(of(file), of("made"), "{file}");
        }
        for folder in ["folder", "folder/deep", "whole", "whole/sub", "whole/sub/empty"] {
            assert_eq!(of(folder), of("folder made"), "{folder}");
        }
        for file in ["folder/small", "folder/deep/small", "whole/a", "whole/sub/b"] {
            assert_eq!(of(file), of("folder made/in it"), "{file}");
        }
    }
}

/// And becomes a plain one again.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_kept_of_what_the_folder_was_before() {
    if !crate::failpoints::needs::renames() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("Inbox");
    fs::create_dir(&path).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    if chown(&path, None, Some(4242)).is_err()
        || rustix::fs::setxattr(&path, "system.posix_acl_default", &default_list(), flags).is_err()
    {
        return crate::failpoints::skip("no access lists in the temporary folder, or not root");
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o2770)).unwrap();
    let rig = Rig::at(temp, path).await;
    let root = rig.root();
    let mut link = rig.link(ANA);
    link.send(id(0), "first", b"x").await;
    assert_eq!(rights(&root.join("first")).1, 4242);
    rustix::fs::removexattr(&root, "system.posix_acl_default").unwrap();
    chown(&root, None, Some(0)).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    File::create(root.join("made")).unwrap();
    fs::create_dir(root.join("folder made")).unwrap();
    link.send(id(1), "small", b"x").await;
    link.kind = Kind::Folder;
    link.send(id(2), "whole", &whole::stream()).await;
    for (arrived, made) in [("small", "made"), ("whole", "folder made"), ("whole/a", "made")] {
        assert_eq!(rights(&root.join(arrived)), rights(&root.join(made)), "{arrived}");
    }
}
