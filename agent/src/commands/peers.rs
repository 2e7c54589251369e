//! What our peers are called. One that was taken out of the config keeps its last name as long as it has jobs: they wait
//! until the same id is back, and people have to be told for whom.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, RwLock},
};

use dropwire_protocol::{AgentId, name::escape};
use rusqlite::params;

use crate::{
    config::{self, Config, Current},
    db::{Db, DbError},
    error::{Exit, Fatal},
    id,
    poison::Unpoisoned as _,
    queue::Queue,
};

/// The table.
pub const SCHEMA_1: &str =
    "CREATE TABLE peer_names (peer BLOB PRIMARY KEY, name TEXT NOT NULL) STRICT, WITHOUT ROWID;";

/// What peers are called; cheap to clone.
#[derive(Clone)]
pub struct Names {
    config: Current,
    /// The last name of each peer that is in the config or has jobs.
    last: Arc<RwLock<HashMap<AgentId, String>>>,
}

impl Names {
    /// Those of `config`, until [`Names::learn`].
    pub fn new(config: Current) -> Self {
        Self {
            config,
            last: Arc::default(),
        }
    }

    /// Keeps the names that `config` gives, on disk too, and those of other peers that have jobs.
    pub async fn learn(&self, db: &Db, queue: &Queue, config: &Config) -> Result<(), DbError> {
        let with_jobs: HashSet<AgentId> = queue
            .counts()
            .await?
            .peers
            .into_iter()
            .map(|(id, _)| id)
            .collect();
        let of_config: HashMap<AgentId, String> =
            config.peers.iter().map(|p| (p.id, p.name.clone())).collect();
        let names = db
            .call(move |tx| {
                let known: HashMap<AgentId, String> = tx
                    .prepare("SELECT peer, name FROM peer_names")?
                    .query_map([], |row| Ok((AgentId(row.get(0)?), row.get(1)?)))?
                    .collect::<rusqlite::Result<_>>()?;
                let mut names = known.clone();
                names.retain(|peer, _| with_jobs.contains(peer));
                names.extend(of_config.clone());
                if names != known {
                    tx.execute("DELETE FROM peer_names", [])?;
                    let mut insert = tx.prepare("INSERT INTO peer_names VALUES (?, ?)")?;
                    for (peer, name) in &names {
                        insert.execute(params![peer.0, name])?;
                    }
                }
                Ok(names)
            })
            .await?;
        *self.last.write().unpoisoned() = names;
        Ok(())
    }

    /// The peer's last name; None where another one has it too, which may be its successor.
    fn of(&self, peer: AgentId) -> Option<String> {
        let names = self.last.read().unpoisoned();
        let name = names.get(&peer)?;
        let is_shared = names
            .iter()
            .any(|(other, theirs)| *other != peer && theirs == name);
        (!is_shared).then(|| name.clone())
    }

    /// The one peer whose last name this is.
    fn find(&self, name: &str) -> Option<AgentId> {
        let names = self.last.read().unpoisoned();
        let mut having = names.iter().filter(|(_, known)| *known == name);
        match (having.next(), having.next()) {
            (Some((peer, _)), None) => Some(*peer),
            _ => None,
        }
    }

    /// Our name for a peer; for one that was taken out of the config the last one, if that tells it from all others; else
    /// its id.
    pub fn name(&self, peer: AgentId) -> String {
        let config = self.config.get();
        match config.peers.iter().find(|p| p.id == peer) {
            Some(peer) => peer.name.clone(),
            None => self.of(peer).unwrap_or_else(|| id::format(peer)),
        }
    }

    /// Is the peer in the config as it is now?
    pub fn is_peer(&self, peer: AgentId) -> bool {
        self.config.get().peers.iter().any(|p| p.id == peer)
    }

    /// Whose jobs are meant, by name or id; also those of a peer that was taken out of the config.
    pub fn whose_jobs(&self, wanted: &str) -> Result<AgentId, Fatal> {
        match find_peer(&self.config.get(), wanted) {
            Ok(peer) => Ok(peer.id),
            Err(unknown) => {
                let id = id::parse(wanted).ok();
                id.or_else(|| self.find(wanted)).ok_or(unknown)
            }
        }
    }
}

/// A peer of the config, by its name or id.
pub(super) fn find_peer<'a>(config: &'a Config, wanted: &str) -> Result<&'a config::Peer, Fatal> {
    let by_id = id::parse(wanted).ok();
    let found = config
        .peers
        .iter()
        .find(|p| p.name == wanted || Some(p.id) == by_id);
    found.ok_or_else(|| {
        let names: Vec<&str> = config.peers.iter().map(|p| p.name.as_str()).collect();
        Fatal::new(
            Exit::Usage,
            format_args!("no peer is called {}", escape(wanted.as_bytes())),
        )
        .hint(format_args!("the config has: {}", names.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        config::AfterSend,
        fs::version::{Found, OutboxId, Version},
        identity::Identity,
        queue::{self, NewItem},
        running_time,
    };
    use dropwire_protocol::RemotePath;
    use rusqlite_migration::{M, Migrations};

    fn config(peers: &[(u8, &str)]) -> Config {
        let mut text = String::new();
        for (number, name) in peers {
            let id = id::format(AgentId([*number; 32]));
            text += &format!("[[peer]]\nname = \"{name}\"\nid = \"{id}\"\n");
        }
        config::parse(&text, Path::new("/c.toml"), None).unwrap()
    }

    fn one_job(to: AgentId) -> NewItem {
        let version = Version {
            inode: 1,
            birth_ns: 0,
            size: 0,
            mtime_ns: 0,
            ctime_ns: 0,
            folder: false,
        };
        NewItem {
            is_not: None,
            found: Found {
                outbox: OutboxId([0; 16]),
                path: RemotePath::parse(b"a").unwrap(),
                version,
            },
            root: "/out".into(),
            origin: None,
            after_send: AfterSend::Delete,
            marker: None,
            peers: vec![to],
        }
    }

    #[tokio::test]
    async fn a_peer_that_was_taken_out_keeps_its_last_name_while_it_has_jobs() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two] = [AgentId([1; 32]), AgentId([2; 32])];
        for (peers, expected) in [
            (
                &[(1, "office"), (2, "annex")][..],
                [Some("office"), Some("annex")],
            ),
            (&[(1, "the office")][..], [Some("the office"), None]),
            (&[][..], [Some("the office"), None]),
            // Another machine got its name.
            (&[(2, "the office")][..], [None, None]),
        ] {
            // Each time by another run.
            let tables = [
                running_time::SCHEMA_1,
                queue::SCHEMA_1,
                queue::SCHEMA_2,
                queue::SCHEMA_3,
                SCHEMA_1,
            ];
            let migrations = Migrations::new(tables.map(M::up).to_vec());
            let db = Db::open(&folder.path().join("state.db"), &migrations).unwrap();
            let identity = Identity::load_or_create(folder.path()).unwrap();
            let queue = Queue::open(db.clone(), Arc::new(identity), 0, Default::default());
            let queue = queue.await.unwrap();
            queue.enqueue(vec![one_job(one)], 0).await.unwrap();
            let names = Names::new(Current::new(
                tokio::sync::watch::channel(Arc::new(config(peers))).1,
            ));
            names.learn(&db, &queue, &config(peers)).await.unwrap();
            assert_eq!(
                [one, two].map(|peer| names.of(peer)),
                expected.map(|n| n.map(str::to_owned))
            );
            assert_eq!(names.find("annex").is_some(), expected[1].is_some());
            db.close().await;
        }
    }
}
