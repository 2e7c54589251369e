//! The control socket as long as an agent lives: made again where its file has gone, and later where it cannot be made
//! now.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::timeout;

use super::socket::{self, Access, Listener, Stream};
use crate::error::{Exit, Fatal, shown};

/// How soon it is seen that the file has gone.
const LOOK: Duration = Duration::from_secs(2);

/// A control socket that is kept in place.
pub struct Socket {
    path: PathBuf,
    access: Access,
    listener: Option<Listener>,
    /// Why there is none, as it was said last.
    told: Option<String>,
}

impl Socket {
    /// Makes it. One that cannot be made for want of room or the like is made later: an agent works without.
    /// To be called within a runtime.
    pub fn open(path: &Path, access: Access) -> Result<Self, Fatal> {
        let mut socket = Self {
            path: path.to_owned(),
            access,
            listener: None,
            told: None,
        };
        match socket::bind(path, &socket.access) {
            Ok(listener) => socket.listener = Some(listener),
            Err(fatal) if fatal.passes.is_some() => socket.tell(&fatal),
            Err(fatal) => return Err(fatal),
        }
        Ok(socket)
    }

    /// The next connection.
    pub async fn accept(&mut self) -> io::Result<Stream> {
        loop {
            let next = async {
                match &self.listener {
                    Some(listener) => listener.accept().await,
                    None => std::future::pending().await,
                }
            };
            match timeout(LOOK, next).await {
                Ok(stream) => return stream,
                Err(_) => self.check().await,
            }
        }
    }

    async fn check(&mut self) {
        let stands = self.listener.as_ref().is_some_and(Listener::stands);
        if stands || crate::failpoints::mutant("control-upkeep") {
            return;
        }
        let (path, access) = (self.path.clone(), self.access.clone());
        let bound = tokio::task::spawn_blocking(move || socket::bind(&path, &access)).await;
        match bound.unwrap_or_else(|error| Err(Fatal::new(Exit::Failed, error))) {
            Ok(listener) => {
                self.listener = Some(listener);
                self.told = None;
                tracing::warn!(
                    "commands reach this agent again: its control socket {} was made again",
                    shown(&self.path)
                );
            }
            Err(fatal) => self.tell(&fatal),
        }
    }

    /// Once, as long as the reason stays the same.
    fn tell(&mut self, fatal: &Fatal) {
        if self.told.as_ref() != Some(&fatal.message) {
            tracing::warn!(help = fatal.hint, "commands do not reach this agent: {fatal}");
            self.told = Some(fatal.message.clone());
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// At the next check, or where a cache still shows what is gone, at a later one.
    async fn made_again(socket: &mut Socket, path: &Path) {
        let again = async {
            loop {
                socket.check().await;
                if std::os::unix::net::UnixStream::connect(path).is_ok() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(30), again).await.expect("made again");
        socket.accept().await.unwrap();
    }

    #[tokio::test]
    async fn a_socket_that_is_taken_away_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/control.sock");
        let mut socket = Socket::open(&path, Access::Owner).unwrap();
        let gone = |path: &Path| std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
        gone(&path);
        made_again(&mut socket, &path).await;

        // What somebody else put there stays, and is waited for.
        gone(&path);
        std::fs::create_dir_all(&path).unwrap();
        socket.check().await;
        assert!(
            socket.told.as_ref().unwrap().contains("no socket"),
            "{:?}",
            socket.told
        );
        assert!(path.is_dir());
        std::fs::remove_dir(&path).unwrap();
        made_again(&mut socket, &path).await;
        drop(socket);
        assert!(!path.exists());
    }
}
