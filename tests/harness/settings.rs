//! An agent's config as a value, so that a test changes one line of it and nothing else.

use std::{fmt::Write as _, path::Path};

/// What the config file says beside the folders. Lines are TOML as a user would write it.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Listens on a loopback port that the system picks.
    pub listen: bool,
    /// Further lines of `[[outbox]]`.
    pub outbox: Vec<String>,
    /// Further lines of `[inbox]`.
    pub inbox: Vec<String>,
    /// Whole tables, put at the end.
    pub tables: Vec<String>,
    /// Everyone it talks to.
    pub peers: Vec<Peer>,
}

/// A `[[peer]]` table.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Our name for it.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Where to dial it, if we do.
    pub address: Option<String>,
}

impl Settings {
    /// The file's text. Waiting times are short: tests wait for conditions, not for defaults made for people.
    pub fn render(&self, name: &str, state: &Path, outbox: &Path, inbox: &Path) -> String {
        let mut text = String::new();
        line(&mut text, "name", name);
        if self.listen {
            line(&mut text, "listen", "127.0.0.1:0");
        }
        line(&mut text, "state_dir", &state.to_string_lossy());
        line(
            &mut text,
            "control",
            &state.join("control.sock").to_string_lossy(),
        );
        text.push_str("\n[[outbox]]\n");
        line(&mut text, "path", &outbox.to_string_lossy());
        push_lines(&mut text, &self.outbox);
        if !self.outbox.iter().any(|l| l.starts_with("quiet")) {
            line(&mut text, "quiet", "300ms");
        }
        if !self.outbox.iter().any(|l| l.starts_with("linger")) {
            line(&mut text, "linger", "0s");
        }
        text.push_str("\n[inbox]\n");
        line(&mut text, "path", &inbox.to_string_lossy());
        push_lines(&mut text, &self.inbox);
        if !self.inbox.iter().any(|l| l.starts_with("min_free")) {
            line(&mut text, "min_free", "1 MiB");
        }
        for peer in &self.peers {
            text.push_str("\n[[peer]]\n");
            line(&mut text, "name", &peer.name);
            line(&mut text, "id", &peer.id);
            if let Some(address) = &peer.address {
                line(&mut text, "address", address);
            }
        }
        if !self.tables.iter().any(|t| t.contains("[retry]")) {
            text.push_str("\n[retry]\nfirst = \"100ms\"\nmax = \"1s\"\n");
        }
        push_lines(&mut text, &self.tables);
        text
    }
}

fn line(text: &mut String, key: &str, value: &str) {
    let _ = writeln!(text, "{key} = {value:?}");
}

fn push_lines(text: &mut String, lines: &[String]) {
    for line in lines {
        let _ = writeln!(text, "{line}");
    }
}
