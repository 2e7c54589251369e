//! A long line with loss: two network namespaces, a TUN device in each, and a relay in user space between them that
//! holds, drops and paces every packet. TCP at both ends is the kernel's own. So it needs no kernel module, but root.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, OwnedFd},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    thread::{UnshareFlags, unshare_unsafe},
};

use crate::{failed, namespace::Namespace, process::output, sources::Noise};

/// One way; a round trip takes twice that.
pub const DELAY: Duration = Duration::from_millis(50);
/// Of 10,000 packets, each way.
pub const LOSS: u64 = 10;
/// Bytes a second, each way: 500 Mbit.
pub const RATE: u64 = 500_000_000 / 8;
/// What a full router on the way holds, in time.
const QUEUE: Duration = Duration::from_millis(100);
const DEVICE: &str = "dropwire0";
const ENDS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2)];

/// Both ends of the line; it is taken down when dropped.
pub struct Wide {
    /// Where the sender is, and where the receiver is.
    pub ends: [Namespace; 2],
    over: Arc<AtomicBool>,
}

impl Wide {
    /// Lays the line; the reason where that is not allowed.
    pub fn lay() -> io::Result<Self> {
        let (near, a) = end(ENDS[0], ENDS[1])?;
        let (far, b) = end(ENDS[1], ENDS[0])?;
        let over = Arc::new(AtomicBool::new(false));
        for (seed, from, to) in [(1, a.try_clone()?, b.try_clone()?), (2, b, a)] {
            let over = over.clone();
            thread::spawn(move || relay(from, to, Noise(seed), &over));
        }
        Ok(Self {
            ends: [near, far],
            over,
        })
    }
}

impl Drop for Wide {
    fn drop(&mut self) {
        self.over.store(true, SeqCst);
    }
}

/// A namespace with one end of the line, and the device whose packets are to be relayed.
fn end(own: Ipv4Addr, other: Ipv4Addr) -> io::Result<(Namespace, File)> {
    // On a thread of its own, which takes no other with it.
    let made = thread::spawn(move || -> io::Result<(OwnedFd, File)> {
        // SAFETY: only the network is left behind, not the descriptors.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
        let device = tun()?;
        let ip = |arguments: &str| output(Command::new("ip").args(arguments.split(' '))).map(drop);
        ip("link set lo up")?;
        ip(&format!("addr add {own}/32 peer {other}/32 dev {DEVICE}"))?;
        ip(&format!("link set {DEVICE} mtu 1500 txqueuelen 1000 up"))?;
        Ok((File::open("/proc/thread-self/ns/net")?.into(), device))
    });
    let made = made.join().map_err(|_| failed("no thread"))?;
    let (name_space, device) =
        made.map_err(|e| failed(format!("no network namespace ({e}); it needs root")))?;
    let address = own.into();
    Ok((Namespace::new(name_space, address), device))
}

fn tun() -> io::Result<File> {
    let device = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: ifreq is names and numbers, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    // SAFETY: TUNSETIFF reads and writes the ifreq that we hand it, and nothing else.
    if unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    rustix::io::ioctl_fionbio(&device, true)?;
    Ok(device)
}

/// One direction, until it is over.
fn relay(mut from: File, mut to: File, noise: Noise, over: &AtomicBool) {
    let mut line = Line::new(noise, Instant::now());
    let mut packet = [0; 2048];
    while !over.load(SeqCst) {
        let now = Instant::now();
        let next = line
            .next_due()
            .map_or(QUEUE, |due| due.saturating_duration_since(now));
        let limit = Timespec {
            tv_sec: 0,
            tv_nsec: next.min(QUEUE).subsec_nanos().into(),
        };
        if poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&limit)).is_err() {
            return;
        }
        let now = Instant::now();
        while let Ok(length) = from.read(&mut packet) {
            line.take(&packet[..length], now);
        }
        while let Some(packet) = line.give(Instant::now()) {
            let _ = to.write(&packet); // a device that is full drops it, as others would
        }
    }
}

/// What is under way in one direction. Pure: it is told the time.
struct Line {
    noise: Noise,
    free_at: Instant,
    under_way: VecDeque<(Instant, Vec<u8>)>,
}

impl Line {
    fn new(noise: Noise, now: Instant) -> Self {
        Self {
            noise,
            free_at: now,
            under_way: VecDeque::new(),
        }
    }

    fn take(&mut self, packet: &[u8], now: Instant) {
        let lost = self.noise.number() % 10_000 < LOSS;
        let start = self.free_at.max(now);
        if lost || start - now > QUEUE {
            return;
        }
        self.free_at = start + Duration::from_nanos(packet.len() as u64 * 1_000_000_000 / RATE);
        self.under_way.push_back((self.free_at + DELAY, packet.into()));
    }

    fn next_due(&self) -> Option<Instant> {
        self.under_way.front().map(|(due, _)| *due)
    }

    fn give(&mut self, now: Instant) -> Option<Vec<u8>> {
        let due = self.next_due()? <= now;
        due.then(|| self.under_way.pop_front())?.map(|(_, packet)| packet)
    }
}

/// How this system paces its senders.
pub fn congestion_control() -> String {
    let text = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
    text.map_or("unknown".into(), |t| t.trim().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_late_in_order_and_no_faster_than_the_line() {
        let start = Instant::now();
        let mut line = Line::new(Noise(1), start);
        for n in 0..100 {
            line.take(&[n; 1500], start);
        }
        assert!(line.give(start + DELAY).is_none());
        let mut came = Vec::new();
        while let Some(packet) = line.give(start + DELAY + Duration::from_millis(1)) {
            came.push(packet[0]);
        }
        assert!(
            (40..=41).contains(&came.len()),
            "a millisecond at 500 Mbit/s: {}",
            came.len()
        );
        assert!(came.is_sorted());
    }

    #[test]
    fn the_line_loses_its_share_and_what_no_queue_holds() {
        let start = Instant::now();
        let mut line = Line::new(Noise(1), start);
        for n in 0..100_000 {
            line.take(&[0; 10], start + Duration::from_micros(n));
        }
        let lost = 100_000 - line.under_way.len();
        assert!((50..200).contains(&lost), "{lost} of 100,000");
        let mut line = Line::new(Noise(1), start);
        for _ in 0..10_000 {
            line.take(&[0; 1500], start);
        }
        let held = line.under_way.len() as u64 * 1500;
        assert!((6_000_000..6_400_000).contains(&held), "{held} bytes");
    }
}
