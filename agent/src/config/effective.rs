//! Writes a config out in full, defaults included; reading it gives the same config.

use std::fmt::Write as _;

use super::{AfterSend, Config, Layout, Watch, units};
use crate::id;

/// The config as TOML with every key that holds, in the order of the example.
pub fn effective(config: &Config) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    line(format!("name = {}", quoted(&config.name)));
    if let Some(listen) = &config.listen {
        line(format!("listen = {}", quoted(listen)));
    }
    for (key, path) in [("state_dir", &config.state_dir), ("control", &config.control)] {
        if let Some(path) = path {
            line(format!("{key} = {}", quoted(&path.to_string_lossy())));
        }
    }
    for outbox in &config.outboxes {
        let to = outbox
            .to
            .iter()
            .filter_map(|id| config.peers.iter().find(|peer| peer.id == *id));
        let to = list(to.map(|peer| peer.name.as_str()));
        line(format!(
            "\n[[outbox]]\npath = {}",
            quoted(&outbox.path.to_string_lossy())
        ));
        if !outbox.to.is_empty() {
            line(format!("to = {to}"));
        }
        line(format!("after_send = \"{}\"", after_send(outbox.after_send)));
        line(format!("quiet = \"{}\"", units::format_duration(outbox.quiet)));
        line(format!(
            "max_wait = \"{}\"",
            units::format_duration(outbox.max_wait)
        ));
        line(format!(
            "ignore = {}",
            list(outbox.ignore.iter().map(String::as_str))
        ));
        line(format!("watch = \"{}\"", watch(outbox.watch)));
        line(format!("rescan = \"{}\"", units::format_duration(outbox.rescan)));
    }
    if let Some(inbox) = &config.inbox {
        line(format!(
            "\n[inbox]\npath = {}",
            quoted(&inbox.path.to_string_lossy())
        ));
        line(format!("layout = \"{}\"", layout(inbox.layout)));
        line(format!("min_free = \"{}\"", units::format_size(inbox.min_free)));
        if !inbox.on_arrival.is_empty() {
            line(format!(
                "on_arrival = {}",
                list(inbox.on_arrival.iter().map(String::as_str))
            ));
        }
    }
    for peer in &config.peers {
        line(format!(
            "\n[[peer]]\nname = {}\nid = \"{}\"",
            quoted(&peer.name),
            id::format(peer.id)
        ));
        if let Some(address) = &peer.address {
            line(format!("address = {}", quoted(address)));
        }
        line(format!(
            "max_file_size = \"{}\"",
            peer.max_file_size.map_or("unlimited".into(), units::format_size)
        ));
    }
    let retry = &config.retry;
    line(format!(
        "\n[retry]\nfirst = \"{}\"",
        units::format_duration(retry.first)
    ));
    line(format!("max = \"{}\"", units::format_duration(retry.max)));
    line(format!(
        "give_up_after = \"{}\"",
        retry.give_up_after.map_or("never".into(), units::format_duration)
    ));
    let rate = |rate: Option<u64>| {
        rate.map_or("unlimited".into(), |rate| {
            format!("{}/s", units::format_size(rate))
        })
    };
    line(format!("\n[limits]\nupload = \"{}\"", rate(config.limits.upload)));
    line(format!("download = \"{}\"", rate(config.limits.download)));
    out
}

/// A TOML string; control and bidirectional characters are escaped, so that it can be shown.
pub fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() || is_bidirectional(c) => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn is_bidirectional(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
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
