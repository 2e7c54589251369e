//! A line that counts what passes, and can be cut: loopback TCP, forwarded.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Instant,
};

/// Never reached: the line stays.
const NEVER: u64 = u64::MAX;

/// A forwarding address. Its threads end with the connections, and it takes no more once it is dropped.
pub struct Meter {
    address: SocketAddr,
    line: Arc<Line>,
}

struct Line {
    passed: AtomicU64,
    cut_at: AtomicU64,
    over: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    upstream: Option<SocketAddr>,
    open: Vec<TcpStream>,
    connected: Option<Instant>,
}

impl Meter {
    /// Takes connections from now on, and refuses them until it knows where to.
    pub fn start() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let line = Arc::new(Line {
            passed: AtomicU64::new(0),
            cut_at: AtomicU64::new(NEVER),
            over: AtomicBool::new(false),
            state: Mutex::default(),
        });
        let taking = line.clone();
        thread::spawn(move || {
            for taken in listener.incoming() {
                if taking.over.load(SeqCst) {
                    return;
                }
                if let Ok(taken) = taken {
                    let _ = taking.connect(taken);
                }
            }
        });
        Ok(Self { address, line })
    }

    /// Where to connect to, to reach `upstream`.
    pub fn before(&self, upstream: SocketAddr) -> SocketAddr {
        self.line.state().upstream = Some(upstream);
        self.address
    }

    /// Bytes that passed so far, both directions.
    pub fn passed(&self) -> u64 {
        self.line.passed.load(SeqCst)
    }

    /// Cuts every connection once, as soon as `bytes` more have passed.
    pub fn cut_after(&self, bytes: u64) {
        self.line.cut_at.store(self.passed() + bytes, SeqCst);
    }

    /// Whether the cut that was asked for was made.
    pub fn was_cut(&self) -> bool {
        self.line.cut_at.load(SeqCst) == NEVER
    }

    /// When the first connection was made, after a cut the first after that.
    pub fn connected(&self) -> Option<Instant> {
        self.line.state().connected
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.line.over.store(true, SeqCst);
        self.line.cut();
        let _ = TcpStream::connect(self.address); // wakes the thread that takes connections
    }
}

impl Line {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn connect(self: &Arc<Self>, taken: TcpStream) -> io::Result<()> {
        let Some(upstream) = self.state().upstream else {
            return Ok(());
        };
        let onward = TcpStream::connect(upstream)?;
        let mut state = self.state();
        state.connected.get_or_insert_with(Instant::now);
        for stream in [&taken, &onward] {
            stream.set_nodelay(true)?;
            state.open.push(stream.try_clone()?);
        }
        let (taken_too, onward_too) = (taken.try_clone()?, onward.try_clone()?);
        for (from, to) in [(taken, onward_too), (onward, taken_too)] {
            let line = self.clone();
            thread::spawn(move || line.pump(from, to));
        }
        Ok(())
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = vec![0; 256 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            // Counted before whoever reads them can look.
            let passed = self.passed.fetch_add(length as u64, SeqCst) + length as u64;
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
            if passed >= self.cut_at.load(SeqCst) {
                self.cut();
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    }

    fn cut(&self) {
        self.cut_at.store(NEVER, SeqCst);
        let mut state = self.state();
        state.connected = None;
        for stream in state.open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_and_the_line_is_cut_once() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let meter = Meter::start().unwrap();
        let address = meter.before(server.local_addr().unwrap());
        let mut here = TcpStream::connect(address).unwrap();
        let (mut there, _) = server.accept().unwrap();
        here.write_all(b"12345").unwrap();
        let mut five = [0; 5];
        there.read_exact(&mut five).unwrap();
        there.write_all(b"123").unwrap();
        here.read_exact(&mut five[..3]).unwrap();
        meter.cut_after(1);
        assert!(!meter.was_cut());
        here.write_all(b"6").unwrap();
        assert_eq!(here.read(&mut five).unwrap(), 0, "the line is cut");
        assert!(meter.was_cut());
        assert_eq!(meter.passed(), 9);
        assert_eq!(meter.connected(), None);
        let mut again = TcpStream::connect(address).unwrap();
        let (mut there, _) = server.accept().unwrap();
        again.write_all(b"7").unwrap();
        there.read_exact(&mut five[..1]).unwrap();
        assert!(meter.connected().is_some());
    }
}
