//! A network beside the machine's own.

use std::{
    fs::File,
    io,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network of its own; gone when nobody is in it any more.
pub struct Namespace {
    name_space: OwnedFd,
    address: IpAddr,
}

impl Namespace {
    /// One in which this process has a device with that address.
    pub fn new(name_space: OwnedFd, address: IpAddr) -> Self {
        Self { name_space, address }
    }

    /// Its end's address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Calls `act` in it: sockets that are made and processes that are started there belong to it.
    pub fn within<T>(&self, act: impl FnOnce() -> T) -> io::Result<T> {
        let network = Some(LinkNameSpaceType::Network);
        let home = File::open("/proc/thread-self/ns/net")?;
        move_into_link_name_space(self.name_space.as_fd(), network)?;
        let done = act();
        move_into_link_name_space(home.as_fd(), network)?;
        Ok(done)
    }
}
