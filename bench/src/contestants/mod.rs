//! Who takes part. From outside all are alike: a session is set up, files are put into its outbox, and they appear in
//! its inbox.

mod dropwire;
mod rsync;
mod ssh;
mod syncthing;
mod yardstick;

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    meter::Meter,
    namespace::Namespace,
    process::{Usage, eventually},
    wide::Wide,
    work::Work,
};

/// What a single step of a session may take at most.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// A tool that brings files from one folder to another.
pub trait Contestant {
    /// As the table shows it.
    fn name(&self) -> &'static str;

    /// Why it cannot take part on this machine; None when it can.
    fn missing(&self) -> Option<String>;

    /// Whether it is part of this project, so that its failure is ours.
    fn is_ours(&self) -> bool {
        false
    }

    /// Whether the work is one that it is made for.
    fn does(&self, work: Work) -> bool;

    /// Both sides run and are connected, and their folders are empty.
    fn begin<'a>(&self, site: &'a Site) -> io::Result<Box<dyn Session + 'a>>;
}

/// Both sides of a contestant, running in its site. All of it ends when it is dropped.
pub trait Session {
    /// Sends what lies in the outbox as `name` and returns when it is in the inbox. None for an agent: it sees for
    /// itself.
    fn push(&mut self, name: &str) -> Option<io::Result<()>>;

    /// Whether a name in the inbox means that its bytes are on disk.
    fn syncs(&self) -> bool;

    /// Processor time in seconds so far, of sender and receiver; what [`Session::end`] counts from zero is left out.
    fn cpu(&self) -> io::Result<[f64; 2]>;

    /// Ends it; what sender and receiver spent.
    fn end(self: Box<Self>) -> io::Result<[Usage; 2]>;
}

/// Everyone, dropwire first.
pub fn all(program: &Path) -> Vec<Box<dyn Contestant>> {
    vec![
        Box::new(dropwire::Dropwire {
            program: program.into(),
        }),
        Box::new(yardstick::Yardstick { direct: true }),
        Box::new(yardstick::Yardstick { direct: false }),
        Box::new(rsync::Rsync { fsync: false }),
        Box::new(rsync::Rsync { fsync: true }),
        Box::new(ssh::RsyncOverSsh),
        Box::new(syncthing::Syncthing),
    ]
}

/// Where a session takes place: its folders, and the line between its sides.
pub struct Site<'a> {
    /// Everything of the session is below it.
    pub root: PathBuf,
    /// Counts and cuts, if there is one.
    pub meter: Option<&'a Meter>,
    /// The long line, if it is not loopback.
    pub wide: Option<&'a Wide>,
    /// Whether what was sent stays in the outbox.
    pub keep: bool,
}

impl<'a> Site<'a> {
    /// At `root`, where nothing is yet, on loopback.
    pub fn new(root: PathBuf) -> Self {
        Site {
            root,
            meter: None,
            wide: None,
            keep: false,
        }
    }

    /// Makes the folders that every contestant has.
    pub fn prepare(&self) -> io::Result<()> {
        fs::create_dir_all(self.outbox())?;
        fs::create_dir_all(self.inbox())
    }

    /// Where files are dropped.
    pub fn outbox(&self) -> PathBuf {
        self.root.join("sender/outbox")
    }

    /// Where they arrive.
    pub fn inbox(&self) -> PathBuf {
        self.root.join("receiver/inbox")
    }

    /// The network of the sender, unless it is ours.
    pub fn sender(&self) -> Option<&'a Namespace> {
        self.wide.map(|wide| &wide.ends[0])
    }

    /// The network of the receiver, unless it is ours.
    pub fn receiver(&self) -> Option<&'a Namespace> {
        self.wide.map(|wide| &wide.ends[1])
    }

    /// The address to listen on, without a port.
    fn receiver_ip(&self) -> IpAddr {
        self.receiver()
            .map_or(Ipv4Addr::LOCALHOST.into(), Namespace::address)
    }

    /// An address of the receiver that is free now, for programs that cannot choose one themselves.
    fn free_address(&self) -> io::Result<SocketAddr> {
        let any = || TcpListener::bind((self.receiver_ip(), 0))?.local_addr();
        self.receiver().map_or_else(any, |network| network.within(any)?)
    }

    /// What the sender dials to reach `address`.
    fn dial(&self, address: SocketAddr) -> SocketAddr {
        self.meter.map_or(address, |meter| meter.before(address))
    }

    /// Returns once somebody listens at the receiver's `address`.
    fn listens(&self, address: SocketAddr) -> io::Result<()> {
        let connect = || TcpStream::connect(address).is_ok();
        eventually("a daemon listens", || {
            let connected = match self.receiver() {
                Some(network) => network.within(connect)?,
                None => connect(),
            };
            Ok(connected.then_some(()))
        })
    }
}
