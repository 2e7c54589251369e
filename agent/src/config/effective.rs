//! Writes a config out in full, defaults included; reading it gives the same config.

use std::path::Path;

use dropwire_protocol::AgentId;

use super::{
    Config, Inbox, Outbox, Peer, Ready, Retry,
    units::{format_duration, format_size},
    value::{quoted, written},
};
use crate::id;

/// The config as TOML with every key that is in effect, in the order of the example.
pub fn effective(config: &Config) -> String {
    let mut out = Lines::default();
    out.set("name", config.name.clone());
    out.set("listen", config.listen.clone());
    out.set("state_dir", config.state_dir.as_deref().map(path));
    out.set("control", config.control.as_deref().map(path));
    for outbox in &config.outboxes {
        write_outbox(&mut out, outbox, &config.peers);
    }
    if let Some(inbox) = &config.inbox {
        write_inbox(&mut out, inbox);
    }
    for peer in &config.peers {
        write_peer(&mut out, peer);
    }
    write_retry(&mut out, &config.retry);
    out.line("\n[limits]");
    let rate = |rate: Option<u64>| rate.map(|rate| format_size(rate) + "/s");
    out.set_or("upload", rate(config.limits.upload), "unlimited");
    out.set_or("download", rate(config.limits.download), "unlimited");
    out.0
}

fn write_outbox(out: &mut Lines, outbox: &Outbox, peers: &[Peer]) {
    let peer = |id: &AgentId| peers.iter().find(|peer| peer.id == *id);
    let to = outbox.to.iter().filter_map(peer).map(|peer| &peer.name);
    let ready = outbox.marker.as_ref().map_or(Ready::Auto, |_| Ready::Marker);
    out.line("\n[[outbox]]");
    out.set("path", path(&outbox.path));
    if !outbox.to.is_empty() {
        out.list("to", to);
    }
    out.set("after_send", written(&outbox.after_send));
    out.set("ready", written(&ready));
    out.set("marker", outbox.marker.clone());
    out.set("quiet", format_duration(outbox.quiet));
    out.set("max_wait", format_duration(outbox.max_wait));
    out.set("linger", format_duration(outbox.linger));
    out.list("ignore", &outbox.ignore);
    out.set("watch", written(&outbox.watch));
    out.set("rescan", format_duration(outbox.rescan));
    out.set("folder", written(&outbox.folder));
}

fn write_inbox(out: &mut Lines, inbox: &Inbox) {
    out.line("\n[inbox]");
    out.set("path", path(&inbox.path));
    out.set("layout", written(&inbox.layout));
    out.set("min_free", inbox.min_free.map(format_size));
    if inbox.min_free.is_none() {
        out.line("# min_free: the smaller of 1 GiB and a twentieth of the disk");
    }
    if !inbox.on_arrival.is_empty() {
        out.list("on_arrival", &inbox.on_arrival);
    }
}

fn write_peer(out: &mut Lines, peer: &Peer) {
    out.line("\n[[peer]]");
    out.set("name", peer.name.clone());
    out.set("id", id::format(peer.id));
    out.set("address", peer.address.clone());
    out.set_or("max_file_size", peer.max_file_size.map(format_size), "unlimited");
}

fn write_retry(out: &mut Lines, retry: &Retry) {
    out.line("\n[retry]");
    out.set("first", format_duration(retry.first));
    out.set("max", format_duration(retry.max));
    out.set_or("give_up_after", retry.give_up_after.map(format_duration), "never");
}

/// The text so far.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    fn set(&mut self, key: &str, value: impl Into<Option<String>>) {
        if let Some(value) = value.into() {
            self.line(&format!("{key} = {}", quoted(&value)));
        }
    }

    fn set_or(&mut self, key: &str, value: Option<String>, none: &str) {
        self.set(key, value.unwrap_or_else(|| none.to_owned()));
    }

    fn list<'a>(&mut self, key: &str, items: impl IntoIterator<Item = &'a String>) {
        let items: Vec<String> = items.into_iter().map(|item| quoted(item)).collect();
        self.line(&format!("{key} = [{}]", items.join(", ")));
    }
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
