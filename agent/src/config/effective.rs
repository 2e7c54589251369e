//! Writes a config out in full, defaults included; reading it gives the same config.

use std::{fmt::Write as _, path::Path, time::Duration};

use dropwire_protocol::name::is_unseen;

use super::{AfterSend, Config, Folder, Inbox, Layout, Outbox, Peer, Retry, Watch, units};
use crate::id;

/// The config as TOML with every key that holds, in the order of the example.
pub fn effective(config: &Config) -> String {
    let mut out = Lines::default();
    out.key("name", quoted(&config.name));
    out.maybe("listen", config.listen.as_deref().map(quoted));
    out.maybe("state_dir", config.state_dir.as_deref().map(folder));
    out.maybe("control", config.control.as_deref().map(folder));
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
    out.table("[limits]");
    out.key("upload", rate(config.limits.upload));
    out.key("download", rate(config.limits.download));
    out.0
}

fn write_outbox(out: &mut Lines, outbox: &Outbox, peers: &[Peer]) {
    let to = outbox
        .to
        .iter()
        .filter_map(|id| peers.iter().find(|peer| peer.id == *id))
        .map(|peer| peer.name.as_str());
    out.table("[[outbox]]");
    out.key("path", folder(&outbox.path));
    out.maybe("to", (!outbox.to.is_empty()).then(|| list(to)));
    out.key("after_send", quoted(after_send(outbox.after_send)));
    let ready = if outbox.marker.is_some() { "marker" } else { "auto" };
    out.key("ready", quoted(ready));
    out.maybe("marker", outbox.marker.as_deref().map(quoted));
    out.key("quiet", duration(outbox.quiet));
    out.key("max_wait", duration(outbox.max_wait));
    out.key("linger", duration(outbox.linger));
    out.key("ignore", list(outbox.ignore.iter().map(String::as_str)));
    out.key("watch", quoted(watch(outbox.watch)));
    out.key("rescan", duration(outbox.rescan));
    out.key("folder", quoted(folder_is(outbox.folder)));
}

fn write_inbox(out: &mut Lines, inbox: &Inbox) {
    let command = || list(inbox.on_arrival.iter().map(String::as_str));
    out.table("[inbox]");
    out.key("path", folder(&inbox.path));
    out.key("layout", quoted(layout(inbox.layout)));
    match inbox.min_free {
        Some(bytes) => out.key("min_free", quoted(&units::format_size(bytes))),
        None => out
            .0
            .push_str("# min_free: the smaller of 1 GiB and a twentieth of the disk\n"),
    }
    out.maybe("on_arrival", (!inbox.on_arrival.is_empty()).then(command));
}

fn write_peer(out: &mut Lines, peer: &Peer) {
    let most = peer.max_file_size.map_or("unlimited".into(), units::format_size);
    out.table("[[peer]]");
    out.key("name", quoted(&peer.name));
    out.key("id", quoted(&id::format(peer.id)));
    out.maybe("address", peer.address.as_deref().map(quoted));
    out.key("max_file_size", quoted(&most));
}

fn write_retry(out: &mut Lines, retry: &Retry) {
    out.table("[retry]");
    out.key("first", duration(retry.first));
    out.key("max", duration(retry.max));
    out.key(
        "give_up_after",
        retry.give_up_after.map_or(quoted("never"), duration),
    );
}

/// The text so far.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn table(&mut self, name: &str) {
        self.0.push('\n');
        self.0.push_str(name);
        self.0.push('\n');
    }

    fn key(&mut self, key: &str, value: String) {
        for part in [key, " = ", &value, "\n"] {
            self.0.push_str(part);
        }
    }

    fn maybe(&mut self, key: &str, value: Option<String>) {
        if let Some(value) = value {
            self.key(key, value);
        }
    }
}

fn folder(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

fn duration(value: Duration) -> String {
    quoted(&units::format_duration(value))
}

fn rate(rate: Option<u64>) -> String {
    match rate {
        Some(rate) => quoted(&format!("{}/s", units::format_size(rate))),
        None => quoted("unlimited"),
    }
}

/// A TOML string; characters that do not show as themselves are escaped.
pub fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if is_unseen(c) => {
                let _ = write!(out, "\\U{:08X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn list<'a>(items: impl Iterator<Item = &'a str>) -> String {
    let items: Vec<String> = items.map(quoted).collect();
    format!("[{}]", items.join(", "))
}

fn after_send(value: AfterSend) -> &'static str {
    match value {
        AfterSend::Archive => "archive",
        AfterSend::Delete => "delete",
        AfterSend::Keep => "keep",
    }
}

fn folder_is(value: Folder) -> &'static str {
    match value {
        Folder::Files => "files",
        Folder::Whole => "whole",
    }
}

fn watch(value: Watch) -> &'static str {
    match value {
        Watch::Auto => "auto",
        Watch::Native => "native",
        Watch::Poll => "poll",
    }
}

fn layout(value: Layout) -> &'static str {
    match value {
        Layout::Flat => "flat",
        Layout::ByPeer => "by-peer",
    }
}
