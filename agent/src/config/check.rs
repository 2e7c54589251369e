//! From the file to the config that is in effect. The rules are here and in `peers`; whatever breaks one is told with its
//! place and what to write instead.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use dropwire_protocol::{AgentId, name::escape};
use toml::{
    Spanned,
    de::{DeTable, DeValue, Error},
};

use super::{
    AfterSend, Config, Folder, Inbox, Layout, Limits, Outbox, Ready, Retry, Watch, address,
    diagnostic::{Checked, Diagnostic, Diagnostics, ValueError},
    folders::{self, Places, Role},
    peers::{self, NamedPeer, Peers},
    table::Table,
    units,
    value::{nearest, or, quoted, string, text, word},
};

/// Checks all of `source`; several diagnostics are told at once, in the order of the file. `home` stands for `~`.
pub(super) fn check(source: &str, home: Option<&Path>) -> Result<Config, Vec<Diagnostic>> {
    let file = DeTable::parse(source).map_err(|error| vec![syntax_error(&error)])?;
    let diagnostics = Diagnostics::default();
    let config = Table::file(file, &diagnostics, |top| config(top, home));
    diagnostics.or(config)
}

/// What the TOML parser says, with a hint that fits most of it.
pub(super) fn syntax_error(error: &Error) -> Diagnostic {
    // Some messages have a second line, which only repeats the place.
    let message = error.message().lines().next().unwrap_or_default();
    let hint = if message.starts_with("duplicate key") {
        "keep one of the two"
    } else {
        "write `key = \"value\"`, each on a line of its own, with straight double quotes; config.example.toml shows \
         every key"
    };
    Diagnostic::new(error.span().unwrap_or_default(), message, hint)
}

/// Reads a path.
pub(super) fn path(home: Option<&Path>) -> impl Fn(&DeValue<'_>) -> Checked<PathBuf> {
    text(move |path| folders::absolute(path, home))
}

/// The host's name, as far as it can be a name here.
pub fn default_name() -> String {
    hostname::get()
        .ok()
        .and_then(|name| name.into_string().ok())
        .filter(|name| peers::check_name(name).is_ok())
        .unwrap_or_else(|| "dropwire".into())
}

/// A value that is wrong is told, and any other stands in for it: the config is not used then.
fn config(top: &mut Table<'_>, home: Option<&Path>) -> Config {
    let mut places = Places::default();
    let name = top.read(
        "name",
        text(|name| peers::check_name(name).map(|()| name.to_owned())),
    );
    let listen = top.read("listen", text(address::listen));
    let state_dir = places.add(Role::State, top.spanned("state_dir", path(home)));
    let control = places.add(Role::Control, top.spanned("control", path(home)));
    let inbox = top.table("inbox", |table| {
        let path = places.add(Role::Inbox, table.required("path", path(home)));
        inbox(table, path.unwrap_or_default())
    });
    let as_folders = inbox.as_ref().is_some_and(|inbox| inbox.layout == Layout::ByPeer);
    let peers = Peers::read(top, as_folders);
    let outboxes = top.tables("outbox", |table| {
        let path = places.add(Role::Outbox, table.required("path", path(home)));
        outbox(table, path.unwrap_or_default(), &peers)
    });
    places.check(top.diagnostics);
    Config {
        name: name.unwrap_or_else(default_name),
        listen,
        state_dir,
        control,
        outboxes,
        inbox,
        peers: peers.named.into_iter().filter_map(NamedPeer::complete).collect(),
        retry: top.table("retry", retry).unwrap_or_default(),
        limits: top.table("limits", limits).unwrap_or_default(),
    }
}

fn outbox(table: &mut Table<'_>, path: PathBuf, peers: &Peers) -> Outbox {
    let to = match table.list("to", string) {
        Some(to) => recipients(&to, peers, table),
        None => peers.named.iter().filter_map(NamedPeer::id).collect(),
    };
    let default = Duration::from_secs;
    Outbox {
        path,
        to,
        after_send: table.read("after_send", word).unwrap_or(AfterSend::Archive),
        marker: marker(table),
        quiet: table.read("quiet", units::duration).unwrap_or(default(2)),
        max_wait: table.read("max_wait", units::duration).unwrap_or(default(600)),
        linger: table
            .read("linger", units::duration_or_none)
            .unwrap_or(default(2)),
        ignore: items(table.list("ignore", text(pattern))),
        watch: table.read("watch", word).unwrap_or(Watch::Auto),
        rescan: table.read("rescan", units::duration).unwrap_or(default(600)),
        folder: table.read("folder", word).unwrap_or(Folder::Files),
    }
}

fn items(list: Option<Spanned<Vec<Spanned<String>>>>) -> Vec<String> {
    let items = list.map_or_else(Vec::new, Spanned::into_inner);
    items.into_iter().map(Spanned::into_inner).collect()
}

fn recipients(to: &Spanned<Vec<Spanned<String>>>, peers: &Peers, table: &Table<'_>) -> Vec<AgentId> {
    let (names, diagnostics) = (to.get_ref(), table.diagnostics);
    if names.is_empty() && table.is_sound() {
        diagnostics.push(Diagnostic::new(
            to.span(),
            "this outbox would send to nobody",
            "name a peer, or leave `to` out for every peer",
        ));
    }
    let mut ids = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let shown = escape(name.get_ref().as_bytes());
        if let Some(first) = names.iter().take(i).find(|earlier| *earlier == name) {
            let message = format!("`{shown}` stands in `to` twice");
            let twice = Diagnostic::new(name.span(), message, "take one of them out");
            diagnostics.push(twice.also(first.span(), "here already"));
        } else if let Some(peer) = peers.named.iter().find(|peer| peer.name == *name) {
            ids.extend(peer.id());
        } else if peers.complete {
            let near = nearest(
                name.get_ref(),
                peers.named.iter().map(|peer| peer.name.get_ref().as_str()),
            );
            let hint = match near {
                Some(near) => format!("did you mean `{}`?", quoted(near)),
                None => format!("add a `[[peer]]` with `name = \"{shown}\"`, or take it out"),
            };
            let message = format!("there is no peer named `{shown}`");
            diagnostics.push(Diagnostic::new(name.span(), message, hint));
        }
    }
    ids
}

fn marker(table: &mut Table<'_>) -> Option<String> {
    let ready = table.read("ready", word);
    let suffix = table.spanned("marker", text(marker_suffix));
    if let (None, Some(suffix), true) = (ready, &suffix, table.is_sound()) {
        table.diagnostics.push(Diagnostic::new(
            suffix.span(),
            "`marker` without `ready` would change nothing",
            "write `ready = \"marker\"` beside it, or take it out",
        ));
    }
    let suffix = suffix.map_or_else(|| ".done".into(), Spanned::into_inner);
    (ready == Some(Ready::Marker)).then_some(suffix)
}

fn marker_suffix(suffix: &str) -> Checked<String> {
    if suffix.is_empty() || suffix.len() > 100 || suffix.contains(['/', '\0']) {
        return Err(ValueError::new(
            "this cannot be the end of a marker's name",
            "write something like `\".done\"`: 1 to 100 bytes, without `/`",
        ));
    }
    Ok(suffix.into())
}

fn pattern(pattern: &str) -> Checked<String> {
    let shown = escape(pattern.as_bytes());
    let (inner, path) = (pattern.trim_matches('/'), pattern.trim_start_matches('/'));
    let (why, hint) = match globset::Glob::new(pattern) {
        _ if pattern.is_empty() => ("an empty pattern matches nothing".into(), "take it out".into()),
        Ok(_) if inner.is_empty() => (format!("`{shown}` matches no file"), "take it out".into()),
        Ok(_) if pattern.ends_with('/') => (
            format!("`{shown}` matches no file, as none ends in a slash"),
            format!(
                "write `{}` for all in that folder",
                quoted(&format!("{inner}/**"))
            ),
        ),
        Ok(_) if pattern.starts_with('/') => (
            format!("`{shown}` is an absolute path, patterns are matched below the outbox"),
            format!("write `{}`", quoted(path)),
        ),
        Ok(_) => return Ok(pattern.into()),
        Err(error) => (
            format!("`{shown}` is no pattern: {}", error.kind()),
            "`*` stands for any characters, `?` for one, `[ab]` for either, `\\[` for the bracket itself"
                .into(),
        ),
    };
    Err(ValueError::new(why, hint))
}

fn inbox(table: &mut Table<'_>, path: PathBuf) -> Inbox {
    let on_arrival = table.list("on_arrival", string);
    if let (Some(command), true) = (&on_arrival, table.is_sound()) {
        table.diagnostics.read(command, |command| check_command(command));
    }
    Inbox {
        path,
        layout: table.read("layout", word).unwrap_or(Layout::Flat),
        min_free: table.read("min_free", units::size),
        on_arrival: items(on_arrival),
    }
}

fn check_command(command: &[Spanned<String>]) -> Checked<()> {
    let Some(program) = command.first().map(|program| program.get_ref()) else {
        return Err(ValueError::new(
            "there is no program to run",
            "name one, or leave `on_arrival` out",
        ));
    };
    if program.is_empty() || command.iter().any(|argument| argument.get_ref().contains('\0')) {
        return Err(ValueError::new(
            "the program's name is empty, or a NUL character stands in the command",
            "write the program, then each argument as a string of its own",
        ));
    }
    if program.contains('/') && !Path::new(program).is_absolute() {
        return Err(ValueError::new(
            "the program's path is relative, which would depend on where the agent starts",
            "write it from `/` on, or a bare name that is looked up in PATH",
        ));
    }
    Ok(())
}

fn retry(table: &mut Table<'_>) -> Retry {
    let first = table.spanned("first", units::duration);
    let max = table.spanned("max", units::duration);
    let default = Retry::default();
    let retry = Retry {
        first: first.as_ref().map_or(default.first, |first| *first.get_ref()),
        max: max.as_ref().map_or(default.max, |max| *max.get_ref()),
        give_up_after: table
            .read("give_up_after", or("never", units::duration))
            .flatten(),
    };
    let written = first.as_ref().or(max.as_ref()).map(Spanned::span);
    if let (Some(span), true) = (written, retry.first > retry.max && table.is_sound()) {
        let [longer, shorter] = [retry.first, retry.max].map(units::format_duration);
        let wrong = Diagnostic::new(
            span,
            format!("`first` ({longer}) is longer than `max` ({shorter})"),
            "the wait grows from `first` to `max`: make `first` shorter or `max` longer",
        );
        table.diagnostics.push(match (first, max) {
            (Some(_), Some(max)) => wrong.also(max.span(), "`max`"),
            _ => wrong,
        });
    }
    retry
}

fn limits(table: &mut Table<'_>) -> Limits {
    Limits {
        upload: table.read("upload", or("unlimited", units::rate)).flatten(),
        download: table.read("download", or("unlimited", units::rate)).flatten(),
    }
}
