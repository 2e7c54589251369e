//! Who may be connected to the control socket: so many connections in all, and so many of one user.
//!
//! Where all places are taken, the connection goes that has been without a whole request for longest, so that whoever
//! connects and says nothing shuts nobody out. One whose request is being worked on keeps its place; one that only waits
//! until its user's other `send`s are done does not.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::poison::Unpoisoned as _;

/// Most connections of one user.
pub(super) const OF_USER: usize = 64;
/// Most connections in all.
pub(super) const IN_ALL: usize = 128;
/// Most files that commands of one user have passed and that are still open.
const FILES_OF_USER: usize = 4 * super::passing::GROUP;
/// Most bytes of large requests of one user that are in memory.
const BYTES_OF_USER: usize = 4 * 1024 * 1024;
/// Most requests with files of one user that are worked on at a time: each may wait for a disk that does not answer.
const COPIES_OF_USER: usize = 8;

/// All places.
#[derive(Debug, Default)]
pub(super) struct Places {
    users: Mutex<HashMap<u32, User>>,
    /// Counts up; tells which connection has waited longer.
    turns: AtomicU64,
}

#[derive(Debug)]
struct User {
    allowance: Arc<Allowance>,
    connections: Vec<Arc<Connection>>,
}

/// What the connections of one user share.
#[derive(Debug)]
pub(super) struct Allowance {
    /// One for each passed file that is open.
    pub files: Arc<Semaphore>,
    /// One for each request with files.
    pub copies: Arc<Semaphore>,
    /// One for each byte of a large request.
    pub bytes: Arc<Semaphore>,
}

#[derive(Debug)]
struct Connection {
    /// Given up for another one.
    evicted: CancellationToken,
    /// A request is worked on.
    works: AtomicBool,
    /// The turn at which it began to wait for its request.
    since: AtomicU64,
}

/// A connection's place; free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    user: u32,
    connection: Arc<Connection>,
    allowance: Arc<Allowance>,
}

impl Places {
    /// A place for a connection of `user`; None where every place that it could have is worked for.
    pub(super) fn take(self: &Arc<Self>, user: u32) -> Option<Place> {
        let mut users = self.users();
        let of_user = users.get(&user).map_or(0, |user| user.connections.len());
        let in_all: usize = users.values().map(|user| user.connections.len()).sum();
        let unbounded = crate::failpoints::mutant("control-places");
        if of_user >= OF_USER && !unbounded {
            users.get_mut(&user)?.evict()?;
        } else if in_all >= IN_ALL && !unbounded {
            let mut fullest: Vec<_> = users.values_mut().collect();
            fullest.sort_by_key(|user| std::cmp::Reverse(user.connections.len()));
            fullest.into_iter().find_map(User::evict)?;
        }
        let entry = users.entry(user).or_insert_with(|| User {
            allowance: Arc::new(Allowance {
                files: Arc::new(Semaphore::new(FILES_OF_USER)),
                copies: Arc::new(Semaphore::new(COPIES_OF_USER)),
                bytes: Arc::new(Semaphore::new(BYTES_OF_USER)),
            }),
            connections: Vec::new(),
        });
        let connection = Arc::new(Connection {
            evicted: CancellationToken::new(),
            works: AtomicBool::new(false),
            since: AtomicU64::new(self.turn()),
        });
        entry.connections.push(Arc::clone(&connection));
        Some(Place {
            places: Arc::clone(self),
            user,
            connection,
            allowance: Arc::clone(&entry.allowance),
        })
    }

    fn turn(&self) -> u64 {
        self.turns.fetch_add(1, Ordering::Relaxed)
    }

    fn users(&self) -> MutexGuard<'_, HashMap<u32, User>> {
        self.users.lock().unpoisoned()
    }
}

impl User {
    /// Gives up the connection that has waited longest.
    fn evict(&mut self) -> Option<()> {
        let waiting = |connection: &Connection| !connection.works.load(Ordering::Relaxed);
        let (at, _) = self
            .connections
            .iter()
            .enumerate()
            .filter(|(_, connection)| waiting(connection))
            .min_by_key(|(_, connection)| connection.since.load(Ordering::Relaxed))?;
        self.connections.swap_remove(at).evicted.cancel();
        Some(())
    }

    /// Nothing of this user is left: no connection, no open file, no work.
    fn is_gone(&self) -> bool {
        self.connections.is_empty()
            && self.allowance.files.available_permits() == FILES_OF_USER
            && self.allowance.copies.available_permits() == COPIES_OF_USER
    }
}

impl Place {
    /// Returns once the place was given to another connection.
    pub(super) async fn evicted(&self) {
        self.connection.evicted.cancelled().await;
    }

    /// What this user may have at a time.
    pub(super) fn allowance(&self) -> &Allowance {
        &self.allowance
    }

    /// The request is there and is worked on from now on: the place is kept until the answer is there.
    pub(super) fn work(self: &Arc<Self>) -> Working {
        self.connection.works.store(true, Ordering::Relaxed);
        Working(Arc::clone(self))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut users = self.places.users();
        if let Some(user) = users.get_mut(&self.user) {
            user.connections
                .retain(|other| !Arc::ptr_eq(other, &self.connection));
        }
        users.retain(|_, user| !user.is_gone());
    }
}

/// A request is worked on for as long as this lives.
#[derive(Debug)]
pub(super) struct Working(Arc<Place>);

impl Drop for Working {
    fn drop(&mut self) {
        let connection = &self.0.connection;
        connection.since.store(self.0.places.turn(), Ordering::Relaxed);
        connection.works.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Arc<Places> {
        Arc::default()
    }

    fn is_evicted(place: &Place) -> bool {
        place.connection.evicted.is_cancelled()
    }

    #[test]
    fn a_user_who_says_nothing_loses_the_place_that_waited_longest() {
        let places = places();
        let mut held: Vec<_> = (0..OF_USER).map(|_| Arc::new(places.take(1).unwrap())).collect();
        // The first has a request that is answered, so that the second is now the one that waited longest.
        drop(held[0].work());
        let _more = places.take(1).unwrap();
        let gone: Vec<_> = held.iter().map(|place| is_evicted(place)).collect();
        assert_eq!(gone.iter().filter(|gone| **gone).count(), 1);
        assert!(gone[1]);
        held.clear();
        assert_eq!(
            places.users()[&1].connections.len(),
            1,
            "those that ended are free again"
        );
    }

    #[test]
    fn work_is_never_given_up() {
        let places = places();
        let held: Vec<_> = (0..OF_USER).map(|_| Arc::new(places.take(1).unwrap())).collect();
        let mut work: Vec<_> = held.iter().map(Place::work).collect();
        assert!(places.take(1).is_none());
        assert!(places.take(2).is_some(), "another user has a place");
        work.pop();
        assert!(places.take(1).is_some());
        assert!(is_evicted(held.last().unwrap()));
    }

    #[test]
    fn where_all_places_are_taken_the_one_with_most_gives_one_up() {
        let places = places();
        let take = |user, count| -> Vec<_> { (0..count).map(|_| places.take(user).unwrap()).collect() };
        let (few, many, rest) = (take(1, 10), take(2, OF_USER), take(3, IN_ALL - OF_USER - 10));
        let _new = places.take(4).unwrap();
        assert!(is_evicted(&many[0]));
        let others = few.iter().chain(&rest);
        assert!(!others.chain(&many[1..]).any(is_evicted));
    }

    #[test]
    fn nothing_stays_of_a_user_who_left() {
        let places = places();
        let place = places.take(1).unwrap();
        let file = Arc::clone(&place.allowance().files).try_acquire_owned().unwrap();
        drop(place);
        assert!(places.users().contains_key(&1), "a file of theirs is still open");
        drop(file);
        drop(places.take(2));
        assert!(places.users().is_empty());
    }
}
