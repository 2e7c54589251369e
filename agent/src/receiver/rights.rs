//! Group, permissions and access list of what arrives: as `cp` and `mkdir` would make it in its folder now.
//!
//! A partial is made among the partials, for its owner alone, so it inherits nothing of the folder that it is for. A
//! folder that hands on its group (setgid) or a default access list hands them on to files and folders that are made in
//! it; what is renamed into it keeps its own. So this is worked out as the system does (acl(5), 'Object creation and
//! default ACLs') and set before the partial is made durable. Failing at it is no reason to keep a file back.

use std::{
    collections::HashMap,
    fs::{File, Metadata},
    sync::Arc,
};

use cap_fs_ext::DirExt;
use cap_std::fs::Dir;
use dropwire_protocol::RemotePath;

use super::{Shared, inbox_dir::InboxDir, naming::os_name, transfer_locks::Key};
use crate::failpoints;

/// The rights of folders that were read already, by the paths of the folders.
pub(super) type Known = HashMap<Vec<u8>, Arc<Rights>>;

/// What a new file or folder gets in one folder.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Rights {
    /// None: the agent's own.
    group: Option<u32>,
    /// A new file's permissions, of which a list takes away what it does not allow; a new folder's where there is no
    /// list, with the bit that hands on the group.
    file_mode: u32,
    folder_mode: u32,
    /// The default access list, as the system keeps it.
    list: Option<Vec<u8>>,
}

impl Rights {
    /// In `folder`; `file_mode` is what the umask leaves of a file's permissions.
    pub(super) fn of(folder: &Dir, file_mode: u32) -> Self {
        match failpoints::mutant("R5-rights") {
            true => Self {
                file_mode,
                ..Self::default()
            },
            false => system::of(folder, file_mode),
        }
    }

    /// In the folder that `path` will get, or in the deepest one on the way to it that is there already: those that are
    /// made in that hand on the same.
    pub(super) fn expected(
        shared: &Shared,
        inbox_dir: &InboxDir,
        key: Key,
        path: &RemotePath,
        known: &mut Known,
    ) -> Arc<Self> {
        let top = shared.top(key.0);
        let way = shared.places.way(inbox_dir, key.0, top.as_deref(), path);
        let folder = way.join(&b'/');
        if let Some(rights) = known.get(&folder) {
            return rights.clone();
        }
        let mut deepest = None;
        for component in &way {
            let above = deepest.as_ref().unwrap_or(&inbox_dir.root);
            match above.open_dir_nofollow(os_name(component)) {
                Ok(folder) => deepest = Some(folder),
                Err(_) => break,
            }
        }
        let rights = Arc::new(Self::of(
            deepest.as_ref().unwrap_or(&inbox_dir.root),
            inbox_dir.mode,
        ));
        known.insert(folder, rights.clone());
        rights
    }

    /// The permissions that a new file may be made with, so that they need not be changed.
    pub(super) fn file_mode(&self) -> u32 {
        self.file_mode & 0o666
    }

    /// Gives them to a new file, of which `meta` is known.
    pub(super) fn give(&self, file: &File, meta: &Metadata) {
        let list = self.list.as_deref();
        let list = list.map(|list| list::restricted(list, self.file_mode));
        system::give(file, meta, self.group, list.as_deref(), None, self.file_mode());
    }

    /// Gives them to a new folder, whose content inherits from it what it has to.
    pub(super) fn give_folder(&self, folder: &File) {
        let list = self.list.as_deref();
        if let Ok(meta) = folder.metadata() {
            system::give(folder, &meta, self.group, list, list, self.folder_mode);
        }
    }
}

/// Access lists as Linux keeps them in extended attributes: a version, then entries of tag, permissions and id.
mod list {
    const HEADER: usize = 4;
    const ENTRY: usize = 8;
    const OWNER: u16 = 0x01;
    const OWNING_GROUP: u16 = 0x04;
    const MASK: u16 = 0x10;
    const OTHER: u16 = 0x20;

    /// The list that something made with `mode` inherits of a default list.
    pub(super) fn restricted(list: &[u8], mode: u32) -> Vec<u8> {
        let mut list = list.to_vec();
        let Some(entries) = list.get_mut(HEADER..) else {
            return list;
        };
        let tag_of = |entry: &[u8]| u16::from_le_bytes([entry[0], entry[1]]);
        let (entries, _) = entries.as_chunks_mut::<ENTRY>();
        let group = match entries.iter().any(|entry| tag_of(entry) == MASK) {
            true => MASK,
            false => OWNING_GROUP,
        };
        for entry in entries {
            let allowed = match tag_of(entry) {
                OWNER => mode >> 6,
                OTHER => mode,
                tag if tag == group => mode >> 3,
                _ => continue,
            };
            entry[2] &= (allowed & 0o7) as u8;
        }
        list
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn list(entries: &[(u16, u16)]) -> Vec<u8> {
            let mut list = 2u32.to_le_bytes().to_vec();
            for (tag, permissions) in entries {
                list.extend(tag.to_le_bytes());
                list.extend(permissions.to_le_bytes());
                list.extend(7u32.to_le_bytes());
            }
            list
        }

        #[test]
        fn a_file_gets_no_more_than_it_is_made_with() {
            const NAMED_GROUP: u16 = 0x08;
            let with_mask = [
                (OWNER, 7),
                (OWNING_GROUP, 5),
                (NAMED_GROUP, 7),
                (MASK, 7),
                (OTHER, 5),
            ];
            let file = [
                (OWNER, 6),
                (OWNING_GROUP, 5),
                (NAMED_GROUP, 7),
                (MASK, 6),
                (OTHER, 4),
            ];
            assert_eq!(restricted(&list(&with_mask), 0o666), list(&file));
            let plain = [(OWNER, 7), (OWNING_GROUP, 7), (OTHER, 1)];
            assert_eq!(
                restricted(&list(&plain), 0o666),
                list(&[(OWNER, 6), (OWNING_GROUP, 6), (OTHER, 0)])
            );
            for odd in [&b""[..], b"\x02", b"\x02\0\0\0\x01\0"] {
                assert_eq!(restricted(odd, 0o666), odd);
            }
        }
    }
}

#[cfg(unix)]
mod system {
    use std::{
        fs::{File, Metadata, Permissions},
        os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    };

    use cap_std::fs::Dir;

    use super::Rights;
    use crate::fs::durable;

    const HANDS_ON_ITS_GROUP: u32 = 0o2000;
    #[cfg(target_os = "linux")]
    const ACCESS: &str = "system.posix_acl_access";
    #[cfg(target_os = "linux")]
    use crate::receiver::inherited::DEFAULT;
    /// Far more than a list may have.
    #[cfg(target_os = "linux")]
    const LONGEST: usize = 64 * 1024;

    pub(super) fn of(folder: &Dir, file_mode: u32) -> Rights {
        let file_mode = file_mode & 0o666;
        let folder_mode = file_mode | (file_mode & 0o444) >> 2; // the umask has no bits of its own for searching
        let mut rights = Rights {
            group: Some(rustix::process::getegid().as_raw()),
            file_mode,
            folder_mode,
            list: None,
        };
        let Ok(folder) = durable::sync_handle(folder) else {
            return rights;
        };
        if let Ok(meta) = folder.metadata() {
            let hands_on = meta.mode() & HANDS_ON_ITS_GROUP;
            rights.folder_mode |= hands_on;
            if hands_on != 0 || cfg!(target_vendor = "apple") {
                rights.group = Some(meta.gid());
            }
        }
        #[cfg(target_os = "linux")]
        {
            let mut list = vec![0; LONGEST];
            let length = rustix::fs::fgetxattr(&folder, DEFAULT, &mut list[..]).unwrap_or(0);
            list.truncate(length);
            rights.list = (length > 0).then_some(list);
        }
        rights
    }

    /// The group first: changing it may take permissions away.
    pub(super) fn give(
        file: &File,
        meta: &Metadata,
        group: Option<u32>,
        list: Option<&[u8]>,
        default: Option<&[u8]>,
        mode: u32,
    ) {
        let other_group = group.filter(|group| *group != meta.gid());
        if other_group.is_some() {
            // Not allowed where the agent's user is not of that group.
            let _ = std::os::unix::fs::fchown(file, None, other_group);
        }
        if other_group.is_some() || meta.mode() & 0o7777 != mode {
            let _ = file.set_permissions(Permissions::from_mode(mode));
        }
        #[cfg(target_os = "linux")]
        for (name, list) in [(DEFAULT, default), (ACCESS, list)] {
            if let Some(list) = list {
                let _ = rustix::fs::fsetxattr(file, name, list, rustix::fs::XattrFlags::empty());
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (list, default);
    }
}

#[cfg(not(unix))]
mod system {
    use super::*;

    pub fn of(_: &Dir, _: u32) -> Rights {
        Rights::default()
    }

    pub fn give(_: &File, _: &Metadata, _: Option<u32>, _: Option<&[u8]>, _: Option<&[u8]>, _: u32) {}
}
