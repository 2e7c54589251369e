//! What the registry knows of one paired agent: its link, if one is up, and how dialling it stands.
//!
//! A pair has one link. Of two, the same agent's later dial stays; if each side dialled, the one dialled by the
//! agent with the smaller id. Both sides judge alike, so one is left.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, atomic::AtomicBool},
    time::{Duration, SystemTime},
};

use dropwire_protocol::{AgentId, message::ByeReason};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    LinkEvent, Request,
    driver::Orders,
    join_token::{Entry, JoinToken, LinkName},
    log_limit::LogLimit,
    twins::{Change, Entry as Place, Twins, WAY_OUT},
    wire::Traffic,
};
use crate::config;

/// Events that may wait: more than one peer's requests in flight (the schedule's `MOST` offers, 256 withdrawals) can
/// ever cause, so that nobody blocks. Few in tests, which have to go on where links are blocked.
const EVENTS: usize = if cfg!(test) { 4 } else { 2048 };

/// How the link of one peer stands.
#[derive(Clone, Debug)]
pub struct PeerLink {
    /// Whose.
    pub peer: AgentId,
    /// Both Hellos are done.
    pub connected: bool,
    /// When it is dialled again; None: no dial is planned.
    pub next_dial_at: Option<SystemTime>,
    /// Why the last link ended or the last dial failed; cleared by a new link.
    pub last_error: Option<String>,
    /// Two machines use its key, or ours.
    pub shared_key: Option<SharedKey>,
    /// Bytes over all its links since the start, TLS included.
    pub sent_bytes: u64,
    /// See `sent_bytes`.
    pub received_bytes: u64,
}

/// Two machines use one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SharedKey {
    /// Since when that is known.
    pub since: SystemTime,
    /// Whose, and where they are.
    pub text: String,
    /// The way out.
    pub hint: &'static str,
}

/// One paired agent.
pub(super) struct Pair {
    pub(super) id: AgentId,
    /// What the config says of it.
    peer: watch::Sender<config::Peer>,
    /// Ends dialling it, and what is on its way to become a link.
    pub(super) cancel: CancellationToken,
    own: AgentId,
    state: Mutex<State>,
    linked: watch::Sender<bool>,
    /// Held by a link from its Up to its Down: links of one pair never overlap towards the daemon.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// Someone wants it dialled now.
    pub(super) dial_now: Notify,
    log_limit: Mutex<LogLimits>,
    /// Some task checks now and then whether two machines still use its key.
    pub(super) watched: AtomicBool,
}

/// What the log is told of it.
#[derive(Default)]
pub(super) struct LogLimits {
    pub(super) links: LogLimit,
    pub(super) failed: LogLimit,
}

#[derive(Default)]
struct State {
    current: Option<CurrentLink>,
    links: u64,
    /// Of links that ended.
    totals: Traffic,
    next_dial_at: Option<SystemTime>,
    last_error: Option<String>,
    /// Where its links tell what happens. None: it was taken out of the config.
    events: Option<mpsc::Sender<LinkEvent>>,
    /// The other end, until somebody asks for it.
    told: Option<mpsc::Receiver<LinkEvent>>,
    /// Of the links that it dialled and that may go over several connections.
    join_tokens: Vec<JoinToken>,
    /// Who uses its key.
    twins: Twins,
    /// Since when.
    twins_since: Option<SystemTime>,
    /// It says that two machines use ours: since when.
    shared_key: Option<SystemTime>,
}

/// The link that stays.
struct CurrentLink {
    number: u64,
    dialled: bool,
    /// Its Hello stated a run: it reads SharedKey.
    reads: bool,
    orders: watch::Sender<Orders>,
    traffic: Arc<Traffic>,
    /// From Up on.
    requests: Option<mpsc::Sender<Request>>,
}

/// A link that was let in.
pub(super) struct Admission {
    number: u64,
    pub(super) orders: watch::Receiver<Orders>,
}

/// Who wants to be the link.
pub(super) struct Visitor {
    /// We dialled.
    pub(super) dialled: bool,
    /// From its Hello.
    pub(super) run: Option<u64>,
    pub(super) at: IpAddr,
}

/// A link that was not let in.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Refused {
    pub(super) reason: ByeReason,
    /// It is to be told that two machines use its key.
    pub(super) shared_key: bool,
}

impl From<ByeReason> for Refused {
    fn from(reason: ByeReason) -> Self {
        Self {
            reason,
            shared_key: false,
        }
    }
}

impl Pair {
    pub(super) fn new(peer: config::Peer, own: AgentId, cancel: CancellationToken) -> Self {
        let (events, told) = mpsc::channel(EVENTS);
        Self {
            id: peer.id,
            peer: watch::Sender::new(peer),
            cancel,
            own,
            state: Mutex::new(State {
                events: Some(events),
                told: Some(told),
                ..State::default()
            }),
            linked: watch::Sender::new(false),
            turn: tokio::sync::Mutex::default(),
            dial_now: Notify::new(),
            log_limit: Mutex::default(),
            watched: AtomicBool::new(false),
        }
    }

    /// What may be logged of it now.
    pub(super) fn log_limit(&self) -> MutexGuard<'_, LogLimits> {
        self.log_limit.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Our name for it.
    pub(super) fn name(&self) -> String {
        self.peer.borrow().name.clone()
    }

    /// Tells what the config says of it, and when that changes.
    pub(super) fn link_config(&self) -> watch::Receiver<config::Peer> {
        self.peer.subscribe()
    }

    /// The config says this of it now. Its link stays, and checks again all that it waits for.
    pub(super) fn change(&self, peer: config::Peer) {
        let most = peer.max_file_size;
        self.peer.send_replace(peer);
        if let Some(current) = &self.state().current {
            current.orders.send_modify(|orders| orders.max_file_size = most);
        }
    }

    /// It was taken out of the config: no link begins any more, and the one there is says so and ends. The daemon
    /// knows once `turn` is free.
    pub(super) fn part(&self) {
        self.cancel.cancel();
        let mut state = self.state();
        state.events = None;
        if let Some(current) = &state.current {
            current
                .orders
                .send_modify(|orders| orders.end = Some(ByeReason::Unpaired));
        }
    }

    /// A new connection, both Hellos done: let in, and an older one told to go; or not, and for which reason. Then
    /// an older one has to prove that it lives. A second machine with the same key is remembered for `within`.
    pub(super) fn admit(
        &self,
        visitor: Visitor,
        traffic: Arc<Traffic>,
        within: Duration,
    ) -> Result<Admission, Refused> {
        let Visitor { dialled, run, at } = visitor;
        let mut state = self.state();
        if state.events.is_none() {
            return Err(ByeReason::Unpaired.into());
        }
        self.check_twins(&mut state, within);
        if let Some(run) = run {
            let up = state.current.is_some();
            let (place, change) = state.twins.meet(run, at, up, Instant::now());
            self.note(&mut state, change);
            if place == Place::KeptOut {
                if let Some(old) = &state.current {
                    old.orders.send_modify(|orders| orders.probes += 1);
                }
                return Err(Refused {
                    reason: ByeReason::Duplicate,
                    shared_key: state.twins.certain(),
                });
            }
        }
        if let Some(old) = &state.current {
            if old.dialled != dialled && dialled != (self.own < self.id) {
                old.orders.send_modify(|orders| orders.probes += 1);
                return Err(ByeReason::Duplicate.into());
            }
            old.orders
                .send_modify(|orders| orders.end = Some(ByeReason::Duplicate));
        }
        state.links += 1;
        let number = state.links;
        let (give, orders) = watch::channel(Orders {
            max_file_size: self.peer.borrow().max_file_size,
            shared_key: run.map(|_| state.twins.certain()),
            ..Orders::default()
        });
        if let Some(old) = state.current.replace(CurrentLink {
            number,
            dialled,
            reads: run.is_some(),
            orders: give,
            traffic,
            requests: None,
        }) {
            state.totals.add(&old.traffic);
        }
        self.linked.send_replace(true);
        Ok(Admission { number, orders })
    }

    /// Do two machines use its key?
    pub(super) fn has_twins(&self) -> bool {
        self.state().twins.certain()
    }

    /// Time went by.
    pub(super) fn look_for_twins(&self, within: Duration) {
        self.check_twins(&mut self.state(), within);
    }

    fn check_twins(&self, state: &mut State, within: Duration) {
        let up = state.current.is_some();
        let change = state.twins.check(up, within, Instant::now());
        self.note(state, change);
    }

    /// Tells of it: the log, and the one that has the link.
    fn note(&self, state: &mut State, change: Option<Change>) {
        let seen = match change {
            None => return,
            Some(Change::Begins) => true,
            Some(Change::Ends) => false,
        };
        state.twins_since = seen.then(SystemTime::now);
        match seen {
            true => tracing::warn!(peer = %self.name(), "{}; {WAY_OUT}", state.twins),
            false => tracing::warn!(peer = %self.name(), "only one machine uses the key of this peer now"),
        }
        if let Some(current) = state.current.as_ref().filter(|current| current.reads) {
            current
                .orders
                .send_modify(|orders| orders.shared_key = Some(seen));
        }
    }

    /// The peer sees two machines with our key, or not any more.
    pub(super) fn told_shared_key(&self, seen: bool) {
        let mut state = self.state();
        let since = &mut state.shared_key;
        match (since.is_some(), seen) {
            (false, true) => {
                *since = Some(SystemTime::now());
                tracing::warn!(peer = %self.name(), "{}; {WAY_OUT}", shared_key(&self.name()));
            }
            (true, false) => {
                *since = None;
                tracing::warn!(peer = %self.name(), "no other machine uses this agent's key any more");
            }
            _ => {}
        }
    }

    /// Further connections may join a link that it dialled.
    pub(super) fn let_join(&self, token: JoinToken) {
        let tokens = &mut self.state().join_tokens;
        tokens.retain(|token| !token.is_closed());
        tokens.push(token);
    }

    /// The way for a further connection, into the link that it names.
    pub(super) fn enter(&self, name: &LinkName) -> Option<Entry> {
        let tokens = &mut self.state().join_tokens;
        tokens.iter_mut().find_map(|token| token.enter(name))
    }

    /// The link begins to carry transfers.
    pub(super) fn open(&self, admission: &Admission, requests: mpsc::Sender<Request>) {
        let mut state = self.state();
        state.last_error = None;
        if let Some(current) = state
            .current
            .as_mut()
            .filter(|current| current.number == admission.number)
        {
            current.requests = Some(requests);
        }
    }

    /// The link is over.
    pub(super) fn close(&self, admission: &Admission, error: Option<&str>) {
        let mut state = self.state();
        if let Some(error) = error {
            state.last_error = Some(error.to_owned());
        }
        if let Some(current) = state
            .current
            .take_if(|current| current.number == admission.number)
        {
            state.totals.add(&current.traffic);
            self.linked.send_replace(false);
        }
    }

    /// Where its links tell what happens. None: it was taken out of the config.
    pub(super) fn events(&self) -> Option<mpsc::Sender<LinkEvent>> {
        self.state().events.clone()
    }

    /// What its links tell, for the first who asks.
    pub(super) fn take_events(&self) -> Option<mpsc::Receiver<LinkEvent>> {
        self.state().told.take()
    }

    /// Where requests go, while a link is up.
    pub(super) fn requests(&self) -> Option<mpsc::Sender<Request>> {
        self.state().current.as_ref()?.requests.clone()
    }

    /// Tells whether there is a link, and when that changes.
    pub(super) fn linked(&self) -> watch::Receiver<bool> {
        self.linked.subscribe()
    }

    /// When it is dialled next; None: not planned, or just now.
    pub(super) fn plan_dial(&self, at: Option<SystemTime>) {
        self.state().next_dial_at = at;
    }

    /// The last dial came to nothing.
    pub(super) fn dial_failed(&self, error: String) {
        self.state().last_error = Some(error);
    }

    pub(super) fn status(&self) -> PeerLink {
        let state = self.state();
        let now = state.current.as_ref().map(|current| &current.traffic);
        let told = |since, text| SharedKey {
            since,
            text,
            hint: WAY_OUT,
        };
        let twins = state
            .twins_since
            .map(|since| told(since, state.twins.to_string()));
        let ours = || Some(told(state.shared_key?, shared_key(&self.name())));
        let shared_key = twins.or_else(ours);
        let last_error = match &shared_key {
            Some(key) => Some(format!("{}; {}", key.text, key.hint)),
            None => state.last_error.clone(),
        };
        PeerLink {
            peer: self.id,
            connected: state
                .current
                .as_ref()
                .is_some_and(|current| current.requests.is_some()),
            next_dial_at: state.next_dial_at,
            last_error,
            shared_key,
            sent_bytes: state.totals.sent() + now.map_or(0, |traffic| traffic.sent()),
            received_bytes: state.totals.received() + now.map_or(0, |traffic| traffic.received()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn shared_key(peer: &str) -> String {
    format!(
        "another machine uses this agent's key: {peer} sees both, and lets in only one at a time; one is a copy of the \
         other"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(own: u8, peer: u8) -> Pair {
        let id = AgentId([peer; 32]);
        Pair::new(
            config::Peer {
                name: "p".into(),
                id,
                address: None,
                max_file_size: None,
            },
            AgentId([own; 32]),
            CancellationToken::new(),
        )
    }

    fn visitor(dialled: bool) -> Visitor {
        Visitor {
            dialled,
            run: None,
            at: std::net::Ipv4Addr::LOCALHOST.into(),
        }
    }

    fn admit(pair: &Pair, dialled: bool) -> Option<Admission> {
        pair.admit(visitor(dialled), Arc::default(), Duration::MAX).ok()
    }

    fn ended(admission: &Admission) -> bool {
        admission.orders.borrow().end == Some(ByeReason::Duplicate)
    }

    #[test]
    fn of_two_dials_the_smaller_ids_stays_on_both_sides() {
        for (own, peer) in [(1, 2), (2, 1)] {
            let ours_stays = own < peer;
            for ours_first in [true, false] {
                let pair = pair(own, peer);
                let first = admit(&pair, ours_first).unwrap();
                let second = admit(&pair, !ours_first);
                let first_stays = ours_first == ours_stays;
                assert_eq!(second.is_none(), first_stays);
                assert_eq!(ended(&first), !first_stays);
                assert_eq!(
                    first.orders.borrow().probes,
                    u64::from(first_stays),
                    "who keeps others out proves life"
                );
            }
        }
    }

    #[test]
    fn of_one_sides_dials_the_newer_stays() {
        let pair = pair(1, 2);
        let first = admit(&pair, false).unwrap();
        let second = admit(&pair, false).unwrap();
        assert!(ended(&first) && !ended(&second));
        pair.close(&first, None);
        assert!(
            *pair.linked().borrow(),
            "the end of the old one does not touch the new one"
        );
        pair.close(&second, Some("cut"));
        assert!(!*pair.linked().borrow());
        assert_eq!(pair.status().last_error.as_deref(), Some("cut"));
    }

    #[test]
    fn who_is_parted_with_is_told_and_kept_out() {
        let pair = pair(1, 2);
        let link = admit(&pair, true).unwrap();
        pair.part();
        assert_eq!(link.orders.borrow().end, Some(ByeReason::Unpaired));
        assert!(pair.cancel.is_cancelled(), "nobody dials it");
        let late = pair.admit(visitor(false), Arc::default(), Duration::MAX);
        assert_eq!(late.err(), Some(ByeReason::Unpaired.into()));
    }
}
