//! A troubled wire: loopback TCP that forwards to an agent and cuts, stalls, slices, delays or damages on demand.
//!
//! Its address stays while the agent behind it gets a new port with every start. Two threads a connection, one a
//! direction; each checks the direction's fault before it passes bytes on.

mod pump;
#[cfg(test)]
mod tests;

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use pump::{Pump, reset};

/// How often a waiting thread checks whether its connection is still wanted.
const LOOK: Duration = Duration::from_millis(10);

/// A direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Toward {
    /// To the side that was dialled.
    Listener,
    /// To the side that dialled.
    Dialler,
}

/// What happens to one direction. Offsets count from the moment the fault is set, over all connections.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Nothing.
    None,
    /// After so many bytes the connection is reset, once.
    Reset(u64),
    /// After so many bytes it is closed in order, once.
    Close(u64),
    /// After so many bytes nothing passes any more, and no end is seen.
    Stall(u64),
    /// Pieces of so many bytes.
    Slice(usize),
    /// Each piece is held back so long.
    Delay(Duration),
    /// The byte after so many is changed, once.
    Flip(u64),
}

/// A running proxy; its connections end with it.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: Mutex<Option<SocketAddr>>,
    refusing: AtomicBool,
    ended: AtomicBool,
    connections: AtomicU64,
    /// Connections made before the last [`Proxy::cut_all`] are of an earlier generation.
    generation: AtomicU64,
    lanes: [Lane; 2],
}

#[derive(Default)]
struct Lane {
    passed: AtomicU64,
    fired: AtomicU64,
    fault: Mutex<Plan>,
}

/// The fault that is set, how many bytes passed since, and whether it came about.
struct Plan {
    fault: Fault,
    passed: u64,
    fired: bool,
}

impl Proxy {
    /// Listens on a loopback port of the system's choice; refuses until [`Proxy::forward_to`].
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
        let address = listener.local_addr().expect("a bound socket");
        let shared = Arc::new(Shared {
            upstream: Mutex::new(None),
            refusing: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            lanes: Default::default(),
        });
        let accepting = shared.clone();
        thread::spawn(move || accept(&listener, &accepting));
        Self { address, shared }
    }

    /// The stable address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// New connections go there; None refuses them.
    pub fn forward_to(&self, upstream: Option<SocketAddr>) {
        *lock(&self.shared.upstream) = upstream;
    }

    /// Whether new connections are refused, as if nobody listened.
    pub fn refuse(&self, refuse: bool) {
        self.shared.refusing.store(refuse, SeqCst);
    }

    /// Sets the fault of one direction; [`Fault::None`] lifts it, also from what is stalled.
    pub fn set(&self, toward: Toward, fault: Fault) {
        *lock(&self.lane(toward).fault) = Plan {
            fault,
            passed: 0,
            fired: false,
        };
    }

    /// Ends every connection there is; new ones are taken.
    pub fn cut_all(&self) {
        self.shared.generation.fetch_add(1, SeqCst);
    }

    /// Bytes that passed in a direction, over all connections.
    pub fn passed(&self, toward: Toward) -> u64 {
        self.lane(toward).passed.load(SeqCst)
    }

    /// How many resets, closes, stalls and flips came about in a direction.
    pub fn fired(&self, toward: Toward) -> u64 {
        self.lane(toward).fired.load(SeqCst)
    }

    /// Connections made so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(SeqCst)
    }

    fn lane(&self, toward: Toward) -> &Lane {
        &self.shared.lanes[toward as usize]
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, SeqCst);
        let _ = TcpStream::connect(self.address); // wakes the accepting thread
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            fault: Fault::None,
            passed: 0,
            fired: false,
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for dialler in listener.incoming() {
        if shared.ended.load(SeqCst) {
            return;
        }
        let Ok(dialler) = dialler else { continue };
        let upstream = lock(&shared.upstream).filter(|_| !shared.refusing.load(SeqCst));
        match upstream.map(TcpStream::connect) {
            Some(Ok(listener)) => connect(shared, dialler, listener),
            _ => reset(&dialler), // as near to a refusal as a listening socket gets
        }
    }
}

fn connect(shared: &Arc<Shared>, dialler: TcpStream, listener: TcpStream) {
    shared.connections.fetch_add(1, SeqCst);
    for stream in [&dialler, &listener] {
        let _ = stream.set_nodelay(true);
        let _ = stream.set_read_timeout(Some(LOOK));
        let _ = stream.set_write_timeout(Some(LOOK));
    }
    let born = shared.generation.load(SeqCst);
    let ends = Arc::new((dialler, listener, AtomicBool::new(false)));
    for toward in [Toward::Listener, Toward::Dialler] {
        let (shared, ends) = (shared.clone(), ends.clone());
        thread::spawn(move || {
            let (from, to) = match toward {
                Toward::Listener => (&ends.0, &ends.1),
                Toward::Dialler => (&ends.1, &ends.0),
            };
            let pump = Pump {
                lane: &shared.lanes[toward as usize],
                shared: &shared,
                born,
                dead: &ends.2,
                from,
                to,
            };
            // An orderly end is passed on and leaves the other direction open; anything else ends both.
            if pump.run().is_err() {
                ends.2.store(true, SeqCst);
            }
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
