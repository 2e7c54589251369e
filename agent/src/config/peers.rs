//! The peers: names and ids unique, ids without a typo, and names that can be folders where the inbox has one a peer.

use dropwire_protocol::{
    AgentId,
    name::{escape, is_unseen},
};
use toml::Spanned;

use super::{
    Config, Peer, address,
    check::quantity_or,
    diagnostic::{Diagnostic, Diagnostics, ValueError},
    raw::RawPeer,
    units,
};
use crate::{
    error::{Exit, Fatal},
    id::{self, IdError},
};

/// A peer that can be named, even if its id is wrong, so that one typo is one diagnostic.
pub(super) struct NamedPeer {
    pub peer: Peer,
    /// False if the id is a stand-in.
    pub valid: bool,
}

/// Checks them all; `as_folders`: their names become folders of the inbox.
pub(super) fn check(raw: Vec<RawPeer>, as_folders: bool, diagnostics: &mut Diagnostics) -> Vec<NamedPeer> {
    let mut peers: Vec<(RawPlace, NamedPeer)> = Vec::new();
    for raw in raw {
        let place = RawPlace {
            name: raw.name.span(),
            id: raw.id.span(),
        };
        let named = one(raw, as_folders, diagnostics);
        if let Some(diagnostic) = peers
            .iter()
            .find_map(|earlier| doubled(&place, &named, earlier, as_folders))
        {
            diagnostics.push(diagnostic);
        }
        peers.push((place, named));
    }
    peers.into_iter().map(|(_, named)| named).collect()
}

/// A name that can be shown: 1 to 64 bytes, no control or bidirectional characters.
pub(super) fn check_name(name: &str) -> Result<(), ValueError> {
    let wrong = |message: String, hint: &str| {
        Err(ValueError {
            message,
            hint: hint.into(),
        })
    };
    if name.trim().is_empty() {
        return wrong(
            "the name is empty".into(),
            "write a short name, such as `\"office\"`",
        );
    }
    if name.len() > MAX_NAME {
        return wrong(
            format!("the name has {} bytes", name.len()),
            "write a name of at most 64 bytes",
        );
    }
    if name.chars().any(is_unseen) {
        return wrong(
            format!("`{}` holds control characters", escape(name.as_bytes())),
            "write letters, digits and hyphens",
        );
    }
    Ok(())
}

impl Config {
    /// Whether no peer is this agent itself.
    pub fn check_own_id(&self, own: AgentId) -> Result<(), Fatal> {
        match self.peers.iter().find(|peer| peer.id == own) {
            None => Ok(()),
            Some(peer) => Err(Fatal::new(
                Exit::Config,
                format_args!("the peer `{}` has this agent's own id", peer.name),
            )
            .mend("write what `dropwire id` prints on the other machine")),
        }
    }
}

/// Most bytes of a name.
const MAX_NAME: usize = 64;

struct RawPlace {
    name: std::ops::Range<usize>,
    id: std::ops::Range<usize>,
}

fn one(raw: RawPeer, as_folders: bool, diagnostics: &mut Diagnostics) -> NamedPeer {
    let name = raw.name.get_ref().clone();
    if diagnostics.take(raw.name.span(), check_name(&name)).is_some() && as_folders {
        diagnostics.take(raw.name.span(), check_folder_name(&name));
    }
    let id = diagnostics.take(raw.id.span(), read_id(&raw.id, &name));
    let address = raw
        .address
        .and_then(|written| diagnostics.take(written.span(), address::dial(written.get_ref())));
    let max_file_size = raw.max_file_size.and_then(|written| {
        let span = written.span();
        let size = quantity_or("unlimited", written, units::size, units::bare_size, diagnostics)?;
        if size == 0 {
            diagnostics.push(Diagnostic::new(
                span,
                "a largest size of nothing would refuse every file",
                "leave it out for no limit",
            ));
        }
        Some(size)
    });
    NamedPeer {
        valid: id.is_some(),
        peer: Peer {
            name,
            id: id.unwrap_or(AgentId([0; 32])),
            address,
            max_file_size,
        },
    }
}

fn read_id(written: &Spanned<String>, name: &str) -> Result<AgentId, ValueError> {
    id::parse(written.get_ref()).map_err(|error| ValueError {
        message: format!("the id of `{}` is wrong: {error}", escape(name.as_bytes())),
        hint: match error {
            IdError::Check(..) => "compare these groups with what `dropwire id` prints there".into(),
            _ => "copy what `dropwire id` prints there".into(),
        },
    })
}

fn doubled(
    place: &RawPlace,
    named: &NamedPeer,
    earlier: &(RawPlace, NamedPeer),
    as_folders: bool,
) -> Option<Diagnostic> {
    let (their_place, them) = earlier;
    let (name, their_name) = (&named.peer.name, &them.peer.name);
    let shown = escape(name.as_bytes());
    if name == their_name {
        return Some(
            Diagnostic::new(
                place.name.clone(),
                format!("two peers are named `{shown}`"),
                "give each a name of its own",
            )
            .also(their_place.name.clone(), "the other"),
        );
    }
    if as_folders && name.to_lowercase() == their_name.to_lowercase() {
        return Some(
            Diagnostic::new(
                place.name.clone(),
                format!(
                    "with `layout = \"by-peer\"`, `{shown}` and `{}` could be one folder",
                    escape(their_name.as_bytes())
                ),
                "give each a name that differs in more than its case",
            )
            .also(their_place.name.clone(), "the other"),
        );
    }
    if named.valid && them.valid && named.peer.id == them.peer.id {
        return Some(
            Diagnostic::new(
                place.id.clone(),
                format!("`{shown}` has the same id as `{}`", escape(their_name.as_bytes())),
                "each agent has one id: correct one of them, or take one peer out",
            )
            .also(their_place.id.clone(), "the other"),
        );
    }
    None
}

/// Names that every system takes as a folder.
fn check_folder_name(name: &str) -> Result<(), ValueError> {
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
    Err(ValueError {
        message: format!(
            "with `layout = \"by-peer\"` the name is a folder, and `{}` can be none: {why}",
            escape(name.as_bytes())
        ),
        hint: "write a name of letters, digits and hyphens".into(),
    })
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
