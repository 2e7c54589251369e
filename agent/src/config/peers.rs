//! The peers: names and ids unique, ids without a typo, and names that can be folders where the inbox has one a peer.

use dropwire_protocol::{
    AgentId,
    name::{escape, is_unseen},
};
use toml::{Spanned, de::DeValue};

use super::{
    Config, Peer, address,
    diagnostic::{Checked, Diagnostic, ValueError},
    table::Table,
    units,
    value::{or, string, text},
};
use crate::{
    error::{Exit, Fatal},
    id::{self, IdError},
};

/// The peers that can be named.
pub(super) struct Peers {
    pub named: Vec<NamedPeer>,
    /// No table is wrong; otherwise a name may be unknown only because its table could not be read.
    pub complete: bool,
}

impl Peers {
    /// Reads every `[[peer]]`; `as_folders`: their names become folders of the inbox.
    pub(super) fn read(top: &mut Table<'_>, as_folders: bool) -> Self {
        let diagnostics = top.diagnostics;
        let earlier = diagnostics.count();
        let named = top.tables("peer", NamedPeer::read).into_iter().flatten();
        let named: Vec<NamedPeer> = named.collect();
        let complete = diagnostics.count() == earlier;
        for (i, peer) in named.iter().enumerate() {
            if as_folders {
                diagnostics.read(&peer.name, |name| check_folder_name(name));
            }
            let mut others = named.iter().take(i);
            if let Some(double) = others.find_map(|other| double(peer, other, as_folders)) {
                diagnostics.push(double);
            }
        }
        Self { named, complete }
    }
}

/// A peer that can be named, even if its id is wrong, so that one typo is one diagnostic.
pub(super) struct NamedPeer {
    pub name: Spanned<String>,
    id: Option<Spanned<AgentId>>,
    address: Option<String>,
    max_file_size: Option<u64>,
}

impl NamedPeer {
    fn read(table: &mut Table<'_>) -> Option<Self> {
        let name = table.required("name", string);
        let id = table.required("id", text(read_id));
        let address = table.read("address", text(address::dial));
        let max_file_size = table.read("max_file_size", max_file_size).flatten();
        let name = name?;
        table.diagnostics.read(&name, |name| check_name(name));
        Some(Self {
            name,
            id,
            address,
            max_file_size,
        })
    }

    pub(super) fn id(&self) -> Option<AgentId> {
        self.id.as_ref().map(|id| *id.get_ref())
    }

    /// None if its id is wrong.
    pub(super) fn complete(self) -> Option<Peer> {
        Some(Peer {
            id: self.id()?,
            name: self.name.into_inner(),
            address: self.address,
            max_file_size: self.max_file_size,
        })
    }
}

/// A name that can be shown: 1 to 64 bytes, no control or bidirectional characters.
pub(super) fn check_name(name: &str) -> Checked<()> {
    if name.trim().is_empty() {
        return Err(ValueError::new(
            "the name is empty",
            "write a short name, such as `\"office\"`",
        ));
    }
    if name.len() > MAX_NAME {
        return Err(ValueError::new(
            format!("the name has {} bytes", name.len()),
            "write a name of at most 64 bytes",
        ));
    }
    if name.chars().any(is_unseen) {
        return Err(ValueError::new(
            format!("`{}` holds control characters", escape(name.as_bytes())),
            "write letters, digits and hyphens",
        ));
    }
    Ok(())
}

/// Most bytes of a name.
const MAX_NAME: usize = 64;

impl Config {
    /// Whether no peer is this agent itself.
    pub fn check_own_id(&self, own: AgentId) -> Result<(), Fatal> {
        match self.peers.iter().find(|peer| peer.id == own) {
            None => Ok(()),
            Some(peer) => Err(Fatal::new(
                Exit::Config,
                format_args!("the peer `{}` has this agent's own id", peer.name),
            )
            .hint("write what `dropwire id` prints on the other machine")),
        }
    }
}

fn read_id(written: &str) -> Checked<AgentId> {
    id::parse(written).map_err(|error| {
        let hint = match error {
            IdError::Check(..) => "compare these groups with what `dropwire id` prints there",
            _ => "copy what `dropwire id` prints there",
        };
        ValueError::new(format!("this id is wrong: {error}"), hint)
    })
}

fn max_file_size(value: &DeValue<'_>) -> Checked<Option<u64>> {
    match or("unlimited", units::size)(value)? {
        Some(0) => Err(ValueError::new(
            "a largest size of nothing would refuse every file",
            "leave it out for no limit",
        )),
        size => Ok(size),
    }
}

fn double(peer: &NamedPeer, earlier: &NamedPeer, as_folders: bool) -> Option<Diagnostic> {
    let [name, other] = [peer, earlier].map(|peer| peer.name.get_ref());
    let [shown, other_shown] = [name, other].map(|name| escape(name.as_bytes()));
    let (message, hint) = if name == other {
        (
            format!("two peers are named `{shown}`"),
            "give each a name of its own",
        )
    } else if as_folders && name.to_lowercase() == other.to_lowercase() {
        (
            format!("with `layout = \"by-peer\"`, `{shown}` and `{other_shown}` could be one folder"),
            "give each a name that differs in more than its case",
        )
    } else {
        let (id, other_id) = (peer.id.as_ref()?, earlier.id.as_ref()?);
        let message = format!("`{shown}` has the same id as `{other_shown}`");
        let hint = "each agent has one id: correct one of them, or take one peer out";
        let same = Diagnostic::new(id.span(), message, hint).also(other_id.span(), "the other");
        return (id == other_id).then_some(same);
    };
    Some(Diagnostic::new(peer.name.span(), message, hint).also(earlier.name.span(), "the other"))
}

/// Names that every system takes as a folder.
fn check_folder_name(name: &str) -> Checked<()> {
    let stem = name
        .split('.')
        .next()
        .unwrap_or_default()
        .trim_end()
        .to_ascii_uppercase();
    let numbered = |prefix: &str| {
        stem.strip_prefix(prefix)
            .is_some_and(|rest| rest.chars().count() == 1 && rest.chars().all(|c| "123456789¹²³".contains(c)))
    };
    let device = matches!(
        stem.as_str(),
        "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$"
    ) || numbered("COM")
        || numbered("LPT");
    let why = if name.contains(['/', '\\', ':', '*', '?', '"', '<', '>', '|']) {
        "one of / \\ : * ? \" < > | occurs in it"
    } else if name.starts_with('.') {
        "it begins with a dot"
    } else if name.ends_with(['.', ' ']) || name.starts_with(' ') {
        "it begins with a space, or ends in a space or dot"
    } else if device {
        "it is a device on Windows"
    } else {
        return Ok(());
    };
    Err(ValueError::new(
        format!(
            "with `layout = \"by-peer\"` the name is a folder, and `{}` can be none: {why}",
            escape(name.as_bytes())
        ),
        "write a name of letters, digits and hyphens",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["office", "Ana's desk", "büro", "a\\b", &"x".repeat(64)] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in ["", "  ", "a\nb", "a\u{202e}b", &"x".repeat(65)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn folder_names() {
        for name in ["office", "büro 2", "a.b", "console", "com10", "nullable"] {
            assert_eq!(check_folder_name(name), Ok(()), "{name}");
        }
        for name in [
            "a/b",
            "a\\b",
            ".",
            "..",
            ".dropwire",
            ".DropWire",
            "CON",
            "nul.txt",
            "COM¹",
            "lpt9",
            "a:b",
            "a.",
            "a ",
            " a",
            "conout$",
            "Con .x",
        ] {
            assert!(check_folder_name(name).is_err(), "{name:?}");
        }
    }
}
