//! The control socket as a file: made safely, owned by one agent, gone when it ends.
//!
//! Everything that differs between systems stands here. Windows has no socket file; there the agent runs without control.

use std::path::Path;

use crate::error::{Exit, Fatal, shown};

pub use system::{Listener, Stream, bind, connect, user, write_now};

/// Who may talk to the agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Access {
    /// The agent's own user: mode 0600.
    Owner,
    /// Also this group: mode 0660. Where the system has no such group, as [`Access::Owner`].
    Group(String),
}

fn cannot(path: &Path, why: impl std::fmt::Display) -> Fatal {
    Fatal::new(
        Exit::CannotCreate,
        format_args!("cannot make the control socket {}: {why}", shown(path)),
    )
}

#[cfg(unix)]
mod system {
    use std::{
        ffi::CString,
        fs, io,
        os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
        path::{Path, PathBuf},
    };

    use socket2::{Domain, SockAddr, Socket, Type};
    use tokio::net::UnixListener;

    use super::{Access, cannot};
    use crate::{
        error::{Fatal, shown},
        fs::dev_ino::DevIno,
        io_error,
    };

    /// One connection.
    pub type Stream = tokio::net::UnixStream;

    /// A socket that listens; its file is removed when this is dropped, unless another has taken its place.
    #[derive(Debug)]
    pub struct Listener {
        inner: UnixListener,
        file: SocketFile,
    }

    impl Listener {
        /// The next connection.
        pub async fn accept(&self) -> io::Result<Stream> {
            Ok(self.inner.accept().await?.0)
        }

        /// Is its file where it was made?
        pub fn stands(&self) -> bool {
            self.file.is_there()
        }
    }

    /// The id of the user at the other end, as the system knows it.
    pub fn user(stream: &Stream) -> io::Result<u32> {
        Ok(stream.peer_cred()?.uid())
    }

    /// Writes what can be written without waiting.
    pub fn write_now(stream: &Stream, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(
            stream,
            bytes,
            rustix::net::SendFlags::DONTWAIT,
        )?)
    }

    #[derive(Debug)]
    struct SocketFile {
        path: PathBuf,
        made: Option<DevIno>,
    }

    impl SocketFile {
        fn is_there(&self) -> bool {
            fs::symlink_metadata(&self.path).is_ok_and(|now| DevIno::of(&now) == self.made)
        }
    }

    impl Drop for SocketFile {
        fn drop(&mut self) {
            if self.is_there() {
                let _ = fs::remove_file(&self.path);
            }
        }
    }

    /// Connects to an agent's socket.
    pub async fn connect(path: &Path) -> io::Result<Stream> {
        Stream::connect(path).await
    }

    /// Makes the socket, and its folder (0700, for a group 0750) where that is missing. To be called within a runtime.
    ///
    /// A socket that nobody answers on is replaced, any other file is left alone. Nobody can connect before the mode is
    /// set: the socket listens only after it. A crash leaves at most a socket file, which the next start replaces. The
    /// caller holds the lock of its state folder, so that two agents of one folder never come here at once.
    pub fn bind(path: &Path, access: &Access) -> Result<Listener, Fatal> {
        let address = SockAddr::unix(path).map_err(|_| {
            cannot(path, "the path is too long for a socket")
                .hint("give a shorter one: DROPWIRE_CONTROL, or `control` in the config")
        })?;
        make_folder(path, access)?;
        remove_stale(path, &address)?;
        let listener = new_socket().and_then(|socket| {
            socket.bind(&address)?;
            let there = fs::symlink_metadata(path)?;
            let file = SocketFile {
                path: path.to_owned(),
                made: DevIno::of(&there),
            };
            permit(path, access, there.gid())?;
            socket.listen(BACKLOG)?;
            Ok(Listener {
                inner: UnixListener::from_std(socket.into())?,
                file,
            })
        });
        listener.map_err(|error| failed(path, &error))
    }

    fn make_folder(path: &Path, access: &Access) -> Result<(), Fatal> {
        let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) else {
            return Ok(());
        };
        let mode = if *access == Access::Owner { 0o700 } else { 0o750 };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(folder)
            .map_err(|error| Fatal::io(format_args!("cannot make the folder {}", shown(folder)), &error))
    }

    fn remove_stale(path: &Path, address: &SockAddr) -> Result<(), Fatal> {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(path, &error)),
            Ok(there) if !there.file_type().is_socket() => {
                return Err(cannot(path, "there is a file that is no socket")
                    .hint("move it away, or name another path"));
            }
            Ok(_) => {}
        }
        match new_socket().and_then(|socket| socket.connect(address)) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(failed(path, &error));
            }
            // Connected, or so many wait that the call would block: somebody is there.
            _ => {
                return Err(cannot(path, "another agent answers there")
                    .hint("stop that agent, or give this one its own `state_dir` and `control`"));
            }
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path, &error)),
            _ => Ok(()),
        }
    }

    fn permit(path: &Path, access: &Access, group_now: u32) -> io::Result<()> {
        let mode = match access {
            Access::Owner => 0o600,
            Access::Group(name) => match group_id(name)? {
                Some(group) => {
                    if group != group_now {
                        std::os::unix::fs::lchown(path, None, Some(group))?;
                    }
                    0o660
                }
                None => {
                    tracing::warn!(group = %name, "no such group: the control socket serves the agent's own user only");
                    0o600
                }
            },
        };
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    }

    fn group_id(name: &str) -> io::Result<Option<u32>> {
        let name = CString::new(name)?;
        let mut buffer = vec![0; GROUP_BUFFER];
        let mut found = std::ptr::null_mut();
        let mut entry = std::mem::MaybeUninit::<libc::group>::uninit();
        // SAFETY: the name ends in NUL, `entry` and `found` are valid for writing, and the buffer is as long as is said.
        let code = unsafe {
            libc::getgrnam_r(
                name.as_ptr(),
                entry.as_mut_ptr(),
                buffer.as_mut_ptr(),
                buffer.len(),
                &mut found,
            )
        };
        match (code, found.is_null()) {
            // SAFETY: a non-null `found` points at `entry`, which the call has filled in.
            (0, false) => Ok(Some(unsafe { entry.assume_init() }.gr_gid)),
            (0 | libc::ENOENT | libc::ESRCH, true) => Ok(None),
            (code, _) => Err(io::Error::from_raw_os_error(code)),
        }
    }

    fn new_socket() -> io::Result<Socket> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    fn failed(path: &Path, error: &io::Error) -> Fatal {
        let failed = match error.kind() {
            io::ErrorKind::PermissionDenied => Fatal::io(
                format_args!("cannot make the control socket {}", shown(path)),
                error,
            ),
            _ => Fatal {
                passes: io_error::passes(error),
                ..cannot(path, error)
            },
        };
        match failed.passes {
            Some(_) => failed,
            // Some file systems have no sockets.
            None => failed
                .hint("set `control` in the config to a path on a local disk that the agent may write to"),
        }
    }

    const BACKLOG: i32 = 128;
    const GROUP_BUFFER: usize = 64 * 1024;

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::error::Exit;

        #[tokio::test]
        async fn the_socket_is_the_owners_alone_and_goes_with_its_listener() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("deep/state/control.sock");
            let listener = bind(&path, &Access::Owner).unwrap();
            assert_eq!(mode(&path), 0o600);
            assert_eq!(mode(path.parent().unwrap()), 0o700);
            drop(listener);
            assert!(!path.exists());
        }

        #[tokio::test]
        async fn a_group_that_exists_may_connect_and_one_that_does_not_changes_nothing() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("control.sock");
            let own = fs::metadata(folder.path()).unwrap().gid();
            let listener = bind(&path, &Access::Group("no-such-group".into())).unwrap();
            assert_eq!(mode(&path), 0o600);
            drop(listener);
            match group_name(own) {
                Some(name) => {
                    let _listener = bind(&path, &Access::Group(name)).unwrap();
                    assert_eq!(mode(&path), 0o660);
                    assert_eq!(fs::metadata(&path).unwrap().gid(), own);
                }
                None => crate::failpoints::skip(&format!("the group {own} has no name in /etc/group")),
            }
        }

        #[tokio::test]
        async fn a_stale_socket_is_replaced() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("control.sock");
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
            assert!(path.exists());
            let _listener = bind(&path, &Access::Owner).unwrap();
            assert_eq!(mode(&path), 0o600);
            connect(&path).await.unwrap();
        }

        #[tokio::test]
        async fn a_socket_that_answers_is_left_alone() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("control.sock");
            let _first = bind(&path, &Access::Owner).unwrap();
            let error = bind(&path, &Access::Owner).unwrap_err();
            assert_eq!(error.exit, Exit::CannotCreate);
            assert!(error.message.contains("another agent"), "{error}");
            connect(&path).await.unwrap();
        }

        #[tokio::test]
        async fn a_file_that_is_no_socket_is_left_alone() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("control.sock");
            fs::write(&path, "precious").unwrap();
            assert_eq!(bind(&path, &Access::Owner).unwrap_err().exit, Exit::CannotCreate);
            assert_eq!(fs::read(&path).unwrap(), b"precious");
        }

        #[tokio::test]
        async fn another_agents_socket_in_our_place_is_not_removed() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("control.sock");
            let first = bind(&path, &Access::Owner).unwrap();
            // Kept under another name, so that the file system cannot give its inode to the next.
            fs::rename(&path, folder.path().join("moved.sock")).unwrap();
            let _second = bind(&path, &Access::Owner).unwrap();
            drop(first);
            assert!(path.exists());
        }

        #[tokio::test]
        async fn a_path_too_long_is_named_as_such() {
            let folder = tempfile::tempdir().unwrap();
            let error = bind(&folder.path().join("x".repeat(200)), &Access::Owner).unwrap_err();
            assert!(
                error.message.contains("too long") && error.hint.is_some(),
                "{error}"
            );
        }

        fn mode(path: &Path) -> u32 {
            fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
        }

        fn group_name(id: u32) -> Option<String> {
            let groups = fs::read_to_string("/etc/group").ok()?;
            let line = groups
                .lines()
                .find(|line| line.split(':').nth(2) == Some(&id.to_string()))?;
            line.split(':').next().map(str::to_owned)
        }
    }
}

#[cfg(not(unix))]
mod system {
    use std::{convert::Infallible, io, path::Path};

    use super::{Access, cannot};
    use crate::error::Fatal;

    /// One connection; none is ever made here.
    pub type Stream = tokio::io::DuplexStream;

    /// A listener; none is ever made here.
    #[derive(Debug)]
    pub struct Listener(Infallible);

    impl Listener {
        /// The next connection.
        pub async fn accept(&self) -> io::Result<Stream> {
            match self.0 {}
        }

        /// There is none.
        pub fn stands(&self) -> bool {
            match self.0 {}
        }
    }

    /// No connection, no user.
    pub fn user(_: &Stream) -> io::Result<u32> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// No connection, nothing to write to.
    pub fn write_now(_: &Stream, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Always the error that says so.
    pub async fn connect(_: &Path) -> io::Result<Stream> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Always the error that says so.
    pub fn bind(path: &Path, _: &Access) -> Result<Listener, Fatal> {
        Err(cannot(path, "this system has no control socket yet"))
    }
}
