//! Connections that are no link, or not yet: how many there may be, and which of them goes when there are too many.
//!
//! Anyone may come in; above the bound somebody goes. Whoever got least far goes first: those that said nothing, then
//! those that were not answered yet, then those in the middle of the handshake, last those that have proven a paired
//! key. The newest quarter is not blamed for silence: its first bytes may be on their way. Among equals one of the
//! busiest address goes (of the busiest pair, once the key is proven), the oldest of them. So a crowd pushes out its
//! own, however fast it comes, and not an agent on a slow line from elsewhere. Of one pair only a few are kept in any
//! case: the newest.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard},
};

use dropwire_protocol::AgentId;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::wire::Traffic;
use crate::{failpoints, poison::Unpoisoned as _};

/// All connections that are no link.
pub(super) struct Lobby {
    most: usize,
    crowd: Mutex<Crowd>,
    /// Somebody left.
    left: Notify,
}

/// A place in the lobby, given back when dropped. Whoever has it holds the connection and nothing else.
pub(super) struct Seat {
    lobby: Arc<Lobby>,
    number: u64,
    /// Cancelled once the connection has to go.
    pub(super) out: CancellationToken,
}

/// Who is there, by the order in which they came.
#[derive(Default)]
struct Crowd {
    next: u64,
    seated: BTreeMap<u64, Seated>,
}

struct Seated {
    party: Party,
    traffic: Arc<Traffic>,
    out: CancellationToken,
}

/// Whose connections count together.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Party {
    Address(IpAddr),
    Pair(AgentId),
}

impl Lobby {
    /// For at most so many connections.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            crowd: Mutex::default(),
            left: Notify::new(),
        })
    }

    /// Waits until those above the bound have left: a burst takes no more than the bound and one.
    pub(super) async fn has_room(&self) {
        loop {
            let left = self.left.notified();
            if self.crowd().seated.len() <= self.most {
                return;
            }
            left.await;
        }
    }

    /// One more, from `from`. Somebody goes if there are too many now, and this one when `cancel` is cancelled.
    pub(super) fn enter(
        self: &Arc<Self>,
        from: IpAddr,
        traffic: Arc<Traffic>,
        cancel: &CancellationToken,
    ) -> Seat {
        let out = cancel.child_token();
        let mut crowd = self.crowd();
        let number = crowd.next;
        crowd.next += 1;
        let party = Party::Address(network(from));
        let seated = Seated {
            party,
            traffic,
            out: out.clone(),
        };
        crowd.seated.insert(number, seated);
        if crowd.staying().count() > self.most {
            crowd.let_go();
        }
        Seat {
            lobby: self.clone(),
            number,
            out,
        }
    }

    /// One goes whatever the bound: descriptors are short.
    pub(super) fn let_one_go(&self) {
        self.crowd().let_go();
    }

    fn crowd(&self) -> MutexGuard<'_, Crowd> {
        self.crowd.lock().unpoisoned()
    }
}

impl Seat {
    /// It has proven to be the paired agent `id`. The oldest of too many of them goes.
    pub(super) fn proven(&self, id: AgentId) {
        let mut crowd = self.lobby.crowd();
        let Some(seated) = crowd.seated.get_mut(&self.number) else {
            return;
        };
        seated.party = Party::Pair(id);
        let of_pair: Vec<_> = crowd
            .staying()
            .filter(|(_, seated)| seated.party == Party::Pair(id))
            .collect();
        if of_pair.len() > OF_A_PAIR
            && let Some((_, oldest)) = of_pair.first()
            && !failpoints::mutant("lobby-pair")
        {
            oldest.out.cancel();
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.lobby.crowd().seated.remove(&self.number);
        self.lobby.left.notify_waiters();
    }
}

impl Crowd {
    /// Those that were not told to go.
    fn staying(&self) -> impl Iterator<Item = (u64, &Seated)> {
        let staying = self
            .seated
            .iter()
            .filter(|(_, seated)| !seated.out.is_cancelled());
        staying.map(|(number, seated)| (*number, seated))
    }

    fn let_go(&mut self) {
        if let Some(number) = self.who_goes()
            && let Some(seated) = self.seated.get(&number)
        {
            seated.out.cancel();
        }
    }

    fn who_goes(&self) -> Option<u64> {
        let mut of_party: HashMap<Party, usize> = HashMap::new();
        for (_, seated) in self.staying() {
            *of_party.entry(seated.party).or_default() += 1;
        }
        let busy = |seated: &Seated| of_party.get(&seated.party).copied().unwrap_or(0);
        let newest = self.seated.keys().nth_back(self.seated.len() / 4).copied();
        let first = self.staying().min_by_key(|(number, seated)| {
            let is_new = newest.is_some_and(|newest| *number > newest);
            let progress = match failpoints::mutant("lobby-progress") {
                true => 0,
                false if is_new => seated.progress().max(ANSWERED),
                false => seated.progress(),
            };
            let busy = match failpoints::mutant("lobby-party") {
                true => 0,
                false => busy(seated),
            };
            (progress, std::cmp::Reverse(busy), *number)
        });
        first.map(|(number, _)| number)
    }
}

impl Seated {
    /// How far it got. What was said counts, not how much of it: only a handshake that makes sense is answered.
    fn progress(&self) -> u8 {
        match self.party {
            Party::Pair(_) => ANSWERED + 1,
            Party::Address(_) if self.traffic.sent() > 0 => ANSWERED,
            Party::Address(_) if self.traffic.received() > 0 => 1,
            Party::Address(_) => 0,
        }
    }
}

/// What one machine has of addresses: by IPv6 a whole network.
fn network(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) & (u128::MAX << 64);
            IpAddr::V6(Ipv6Addr::from(network))
        }
        address => address,
    }
}

/// How far one is that was answered.
const ANSWERED: u8 = 2;
/// Most proven connections of a pair without a link: a link's first connection and those that join it come at once, and
/// a few are on their way out.
pub(super) const OF_A_PAIR: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    const STRANGER: [u8; 4] = [192, 0, 2, 1];
    const PEER: AgentId = AgentId([1; 32]);

    fn enter(lobby: &Arc<Lobby>, from: impl Into<IpAddr>) -> (Seat, Arc<Traffic>) {
        let traffic = Arc::new(Traffic::default());
        let seat = lobby.enter(from.into(), traffic.clone(), &CancellationToken::new());
        (seat, traffic)
    }

    fn stays(seat: &Seat) -> bool {
        !seat.out.is_cancelled()
    }

    /// A crowd of 2,000 connections a second; `says` is what each of them does at once.
    fn honest_agents_that_come_through(crowd: impl Fn(u32) -> IpAddr, says: impl Fn(&Traffic)) -> usize {
        let lobby = Lobby::new(128);
        let mut strangers = Vec::new();
        let mut honest = Vec::new();
        let mut through = 0;
        for millisecond in 0..3_000u32 {
            for stranger in [2 * millisecond, 2 * millisecond + 1] {
                let (stranger, traffic) = enter(&lobby, crowd(stranger));
                says(&traffic);
                strangers.push(stranger);
                strangers.retain(stays);
            }
            // Twelve tries, each some 200 ms long: the key is proven a round trip after the first byte.
            if millisecond % 200 == 100 && honest.len() + through < 12 {
                let (seat, traffic) = enter(&lobby, [10, 0, 0, 9]);
                honest.push((millisecond, seat, traffic));
            }
            honest.retain(|(since, seat, traffic)| {
                match millisecond - since {
                    1 => traffic.count(1, 0),
                    3 => traffic.count(0, 1),
                    105 if stays(seat) => {
                        seat.proven(PEER);
                        through += 1;
                        return false;
                    }
                    _ => {}
                }
                stays(seat)
            });
            assert!(lobby.crowd().seated.len() <= 130);
        }
        through
    }

    #[test]
    fn a_silent_crowd_keeps_nobody_out() {
        let from = |_| STRANGER.into();
        assert_eq!(honest_agents_that_come_through(from, |_| {}), 12);
        let from_everywhere = |n: u32| [10, 1, (n >> 8) as u8, n as u8].into();
        assert_eq!(honest_agents_that_come_through(from_everywhere, |_| {}), 12);
    }

    #[test]
    fn a_crowd_that_talks_pushes_out_its_own() {
        let from = |_| STRANGER.into();
        assert_eq!(honest_agents_that_come_through(from, |said| said.count(1, 0)), 12);
        assert_eq!(honest_agents_that_come_through(from, |said| said.count(1, 1)), 12);
        let one_network = |n: u32| {
            let address = (0x2001_0db8_u128 << 96) | u128::from(n);
            Ipv6Addr::from(address).into()
        };
        let through = honest_agents_that_come_through(one_network, |said| said.count(1, 1));
        assert_eq!(through, 12);
        // Nonsense that nobody answers does not keep out whoever is answered, wherever it comes from.
        let from_everywhere = |n: u32| [10, 1, (n >> 8) as u8, n as u8].into();
        let through = honest_agents_that_come_through(from_everywhere, |said| said.count(1, 0));
        assert_eq!(through, 12);
    }

    #[test]
    fn of_one_pair_only_the_newest_are_kept() {
        let lobby = Lobby::new(128);
        let (other, _) = enter(&lobby, STRANGER);
        other.proven(AgentId([2; 32]));
        let seats: Vec<Seat> = (0..100)
            .map(|_| {
                let (seat, _) = enter(&lobby, STRANGER);
                seat.proven(PEER);
                seat
            })
            .collect();
        let kept = seats.iter().map(stays).collect::<Vec<_>>();
        assert_eq!(kept.iter().filter(|kept| **kept).count(), OF_A_PAIR);
        assert!(kept.ends_with(&[true; OF_A_PAIR]) && stays(&other));
    }

    #[test]
    fn whoever_has_proven_a_key_goes_last() {
        let lobby = Lobby::new(1);
        let (proven, _) = enter(&lobby, STRANGER);
        proven.proven(PEER);
        let (answered, traffic) = enter(&lobby, [10, 0, 0, 1]);
        traffic.count(1, 1);
        assert!(stays(&proven) && !stays(&answered));
        lobby.let_one_go();
        assert!(
            !stays(&proven),
            "where descriptors are short, one goes in any case"
        );
    }

    #[tokio::test]
    async fn above_the_bound_those_on_their_way_out_are_waited_for() {
        let lobby = Lobby::new(1);
        let (first, _) = enter(&lobby, STRANGER);
        lobby.has_room().await;
        let (_second, _) = enter(&lobby, STRANGER);
        assert!(!stays(&first));
        tokio::join!(biased; lobby.has_room(), async { drop(first) });
    }
}
