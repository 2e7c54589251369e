//! `dropwire demo`: two agents in a temporary folder on loopback, a first file and its receipt.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use dropwire_protocol::{AgentId, Receipt, ReceiptBody, name::escape};
use tokio::sync::broadcast::{self, error::RecvError};

use super::{output::say, run, signals::Signals};
use crate::{
    config::{self, Config, paths::Paths, quoted},
    control::wire::Time,
    daemon::{self, Agent},
    error::{Exit, Fatal, chain, shown},
    fs::remove_tree::remove_tree_at,
    id,
    identity::{self, Identity},
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// End after the first file
    #[arg(long)]
    once: bool,
}

pub(super) fn run(args: &Args, verbose: u8) -> Result<(), Fatal> {
    super::logs::init(verbose, "warn");
    let folder = Folder::new()?;
    let runtime = run::runtime()?;
    let result = runtime.block_on(async {
        let mut signals = Signals::catch().map_err(|error| Fatal::io("cannot catch signals", &error))?;
        show(&folder, args.once, &mut signals).await
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}

/// How long the first file may take, which needs milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

async fn show(folder: &Folder, once: bool, signals: &mut Signals) -> Result<(), Fatal> {
    let (laptop, office) = (Side::new(folder, "laptop")?, Side::new(folder, "office")?);
    let starting = async {
        let office_agent = office.start(&laptop, None).await?;
        let address = office_agent.listen_addr().map(|address| address.to_string());
        Ok::<_, Fatal>((laptop.start(&office, address).await?, office_agent))
    };
    let (mut laptop_agent, mut office_agent) = tokio::select! {
        started = starting => started?,
        () = signals.stop() => return Ok(()),
    };
    let (there, back) = (laptop_agent.receipts(), office_agent.receipts());
    let result = tokio::select! {
        fatal = laptop_agent.wait() => Err(fatal),
        fatal = office_agent.wait() => Err(fatal),
        result = tell(&laptop, &office, there, back, once) => result,
        () = signals.stop() => Ok(()),
    };
    // Before the folder is removed: what is open in it may keep it there.
    laptop_agent.stop().await;
    office_agent.stop().await;
    result
}

async fn tell(
    laptop: &Side,
    office: &Side,
    mut there: broadcast::Receiver<Arc<Receipt>>,
    back: broadcast::Receiver<Arc<Receipt>>,
    once: bool,
) -> Result<(), Fatal> {
    say("Two agents run on this machine, paired with each other:")?;
    for (from, to) in [(laptop, office), (office, laptop)] {
        say(format_args!("  what is dropped into  {}", shown(&from.outbox())))?;
        say(format_args!("  arrives in            {}", shown(&to.inbox())))?;
    }
    let (outbox, inbox) = (laptop.outbox(), office.inbox());
    tokio::task::spawn_blocking(move || drop_file(&outbox))
        .await
        .map_err(ended)??;
    let receipt = tokio::time::timeout(PATIENCE, first(&mut there))
        .await
        .map_err(|_| {
            Fatal::new(
                Exit::NotYet,
                format_args!("`{FILE}` was not delivered within {} seconds", PATIENCE.as_secs()),
            )
            .hint("`dropwire -v demo` tells more")
        })??;
    tell_first(&receipt, &inbox)?;
    if once {
        return Ok(());
    }
    say("\nTry it with files of your own. Ctrl-C ends it and removes the folders.")?;
    let other_inbox = laptop.inbox();
    tokio::select! {
        result = tell_more(there, &inbox) => result,
        result = tell_more(back, &other_inbox) => result,
    }
}

/// A line for each further file; ends only when it cannot be told.
async fn tell_more(mut deliveries: broadcast::Receiver<Arc<Receipt>>, inbox: &Path) -> Result<(), Fatal> {
    loop {
        match deliveries.recv().await {
            Ok(receipt) => {
                let body =
                    identity::verify(&receipt).map_err(|error| Fatal::new(Exit::Data, chain(&error)))?;
                say(format_args!("delivered  {}", lies(&body, inbox)))?;
            }
            Err(RecvError::Lagged(missed)) => say(format_args!("delivered  {missed} more"))?,
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

const FILE: &str = "hello.txt";

fn drop_file(outbox: &Path) -> Result<(), Fatal> {
    let file = outbox.join(FILE);
    fs::write(&file, b"Hello from the other side.\n")
        .map_err(|error| Fatal::io(format_args!("cannot write {}", shown(&file)), &error))
}

async fn first(deliveries: &mut broadcast::Receiver<Arc<Receipt>>) -> Result<Arc<Receipt>, Fatal> {
    deliveries
        .recv()
        .await
        .map_err(|error| Fatal::new(Exit::Failed, format_args!("the sending agent ended: {error}")))
}

fn tell_first(receipt: &Receipt, inbox: &Path) -> Result<(), Fatal> {
    let body = identity::verify(receipt).map_err(|error| Fatal::new(Exit::Data, chain(&error)))?;
    say(format_args!("\n{FILE} was delivered. Its receipt:"))?;
    let delivered_at = Time::from_ms(i64::try_from(body.delivered_at).unwrap_or(i64::MAX));
    for (what, value) in [
        ("job", body.transfer.to_string()),
        ("from", id::format(body.sender)),
        ("to", id::format(body.receiver)),
        ("size", format!("{} bytes", body.size)),
        ("sha256", body.digest.to_string()),
        ("delivered_as", lies(&body, inbox)),
        ("delivered_at", delivered_at.to_string()),
        ("signature", "verified".into()),
    ] {
        say(format_args!("  {what:<13} {value}"))?;
    }
    Ok(())
}

/// Where the file lies.
fn lies(body: &ReceiptBody, inbox: &Path) -> String {
    format!("{}/{}", shown(inbox), escape(body.delivered_as.as_bytes()))
}

/// One of the two agents.
struct Side {
    name: &'static str,
    root: PathBuf,
    id: AgentId,
}

impl Side {
    fn new(folder: &Folder, name: &'static str) -> Result<Self, Fatal> {
        let root = folder.0.join(name);
        for made in [root.join("Outbox"), root.join("Inbox")] {
            fs::create_dir_all(&made)
                .map_err(|error| Fatal::io(format_args!("cannot make {}", shown(&made)), &error))?;
        }
        daemon::private_folder(&root.join("state"))?;
        let id = Identity::load_or_create(&root.join("state"))?.id();
        Ok(Self { name, root, id })
    }

    fn outbox(&self) -> PathBuf {
        self.root.join("Outbox")
    }

    fn inbox(&self) -> PathBuf {
        self.root.join("Inbox")
    }

    /// Listens where it has no `address` to dial.
    async fn start(&self, other: &Self, address: Option<String>) -> Result<Agent, Fatal> {
        let state_dir = self.root.join("state");
        let paths = Paths {
            config: self.root.join("config.toml"),
            control: state_dir.join("control.sock"),
            state_dir,
        };
        config::paths::check_control(&paths.control)?;
        Agent::start(self.config(other, address, &paths)?, &paths).await
    }

    fn config(&self, other: &Self, address: Option<String>, paths: &Paths) -> Result<Config, Fatal> {
        let reach = match address {
            Some(address) => format!("address = {}\n", quoted(&address)),
            None => String::new(),
        };
        let listen = if reach.is_empty() {
            "listen = \"127.0.0.1:0\"\n"
        } else {
            ""
        };
        let text = format!(
            "name = {}\n{listen}[[outbox]]\npath = {}\n[inbox]\npath = {}\nmin_free = \"0 B\"\n[[peer]]\nname = {}\nid = {}\n{reach}",
            quoted(self.name),
            quoted(&self.outbox().to_string_lossy()),
            quoted(&self.inbox().to_string_lossy()),
            quoted(other.name),
            quoted(&id::format(other.id)),
        );
        Ok(config::parse(&text, &paths.config, None)?)
    }
}

/// A temporary folder for this user alone; removed with all in it when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, Fatal> {
        let number = getrandom::u64()
            .map_err(|error| Fatal::new(Exit::Failed, format_args!("no randomness: {error}")))?;
        let path = std::env::temp_dir().join(format!("dropwire-demo-{number:016x}"));
        daemon::private_folder(&path)?;
        let real = path.canonicalize().unwrap_or(path);
        Ok(Self(real))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = remove_tree_at(&self.0) {
            tracing::warn!("cannot remove {}: {error}", shown(&self.0));
        }
    }
}

fn ended(join: tokio::task::JoinError) -> Fatal {
    Fatal::new(Exit::Failed, join)
}
