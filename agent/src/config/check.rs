//! From what is written to what holds. Every rule of the config stands here, and each breach names its line and its mend.

use std::{ops::Range, path::Path, time::Duration};

use toml::Spanned;

use super::{
    AfterSend, Config, Folder, Inbox, Layout, Limits, Outbox, Ready, Retry, Watch, address,
    effective::quoted,
    explain::nearest,
    fault::{Fault, Faults},
    folders::{self, Role},
    peers::{self, NamedPeer},
    raw::{Quantity, RawConfig, RawInbox, RawLimits, RawOutbox, RawRetry},
    units::{self, Bare, Wrong},
};

/// Checks all of it and tells all faults at once, in the order of the file.
pub(super) fn check(raw: RawConfig, home: Option<&Path>) -> Result<Config, Vec<Fault>> {
    let mut faults = Faults::default();
    let mut places = Vec::new();
    let by_peer = raw
        .inbox
        .as_ref()
        .is_some_and(|inbox| inbox.layout == Some(Layout::ByPeer));
    let peers = peers::check(raw.peer, by_peer, &mut faults);

    let name = raw.name.and_then(|name| {
        let checked = peers::check_name(name.get_ref()).map(|()| name.get_ref().clone());
        faults.take(name.span(), checked)
    });
    let listen = raw
        .listen
        .and_then(|listen| faults.take(listen.span(), address::listen(listen.get_ref())));
    let mut place = |role, path: &Spanned<String>, faults: &mut Faults| {
        let read = faults.take(path.span(), folders::absolute(path.get_ref(), home))?;
        places.push((role, read.clone(), path.span()));
        Some(read)
    };
    let state_dir = raw
        .state_dir
        .and_then(|path| place(Role::State, &path, &mut faults));
    let control = raw
        .control
        .and_then(|path| place(Role::Control, &path, &mut faults));
    let outboxes = raw
        .outbox
        .into_iter()
        .filter_map(|raw| {
            let path = place(Role::Outbox, &raw.path, &mut faults);
            outbox(raw, path?, &peers, &mut faults)
        })
        .collect();
    let inbox = raw.inbox.and_then(|raw| {
        let path = place(Role::Inbox, &raw.path, &mut faults);
        inbox(raw, path?, &mut faults)
    });
    check_places(&places, &mut faults);

    let config = Config {
        name: name.unwrap_or_else(default_name),
        listen,
        state_dir,
        control,
        outboxes,
        inbox,
        peers: peers.into_iter().map(|named| named.peer).collect(),
        retry: retry(raw.retry, &mut faults),
        limits: limits(raw.limits, &mut faults),
    };
    if faults.0.is_empty() {
        return Ok(config);
    }
    faults.0.sort_by_key(|fault| fault.span.start);
    Err(faults.0)
}

fn outbox(
    raw: RawOutbox,
    path: std::path::PathBuf,
    peers: &[NamedPeer],
    faults: &mut Faults,
) -> Option<Outbox> {
    let to = match raw.to {
        Some(to) => recipients(to, peers, faults),
        None => peers.iter().map(|named| named.peer.id).collect(),
    };
    let mut ignore = Vec::new();
    for pattern in raw.ignore {
        let checked = check_pattern(pattern.get_ref());
        if faults.take(pattern.span(), checked).is_some() {
            ignore.push(pattern.into_inner());
        }
    }
    let marker = marker(raw.ready, raw.marker, faults);
    let linger = raw
        .linger
        .and_then(|written| quantity(written, units::duration_or_none, units::bare_duration, faults));
    let linger = linger.unwrap_or(Duration::from_secs(2));
    let mut time = |written, default| duration(written, faults).unwrap_or(default);
    Some(Outbox {
        path,
        to,
        after_send: raw.after_send.unwrap_or(AfterSend::Archive),
        marker,
        quiet: time(raw.quiet, Duration::from_secs(2)),
        max_wait: time(raw.max_wait, Duration::from_secs(600)),
        linger,
        ignore,
        watch: raw.watch.unwrap_or(Watch::Auto),
        rescan: time(raw.rescan, Duration::from_secs(600)),
        folder: raw.folder.unwrap_or(Folder::Files),
    })
}

fn recipients(
    to: Spanned<Vec<Spanned<String>>>,
    peers: &[NamedPeer],
    faults: &mut Faults,
) -> Vec<dropwire_protocol::AgentId> {
    if to.get_ref().is_empty() {
        faults.push(Fault::new(
            to.span(),
            "this outbox would send to nobody",
            "name a peer, or leave `to` out for every peer",
        ));
    }
    let mut ids = Vec::new();
    let mut seen: Vec<Spanned<String>> = Vec::new();
    for name in to.into_inner() {
        let shown = dropwire_protocol::name::escape(name.get_ref().as_bytes());
        if let Some(first) = seen.iter().find(|earlier| earlier.get_ref() == name.get_ref()) {
            faults.push(
                Fault::new(
                    name.span(),
                    format!("`{shown}` stands in `to` twice"),
                    "take one of them out",
                )
                .also(first.span(), "here already"),
            );
        } else if let Some(named) = peers.iter().find(|named| named.peer.name == *name.get_ref()) {
            ids.extend(named.valid.then_some(named.peer.id));
        } else {
            let near = nearest(name.get_ref(), peers.iter().map(|named| named.peer.name.as_str()));
            let mend = match near {
                Some(near) => format!("did you mean `{}`?", quoted(near)),
                None => format!("add a `[[peer]]` with `name = \"{shown}\"`, or take it out"),
            };
            faults.push(Fault::new(
                name.span(),
                format!("there is no peer named `{shown}`"),
                mend,
            ));
        }
        seen.push(name);
    }
    ids
}

fn marker(ready: Option<Ready>, written: Option<Spanned<String>>, faults: &mut Faults) -> Option<String> {
    if let (None, Some(written)) = (ready, &written) {
        faults.push(Fault::new(
            written.span(),
            "`marker` without `ready` would change nothing",
            "write `ready = \"marker\"` beside it, or take it out",
        ));
    }
    let suffix = match written {
        Some(written) => {
            let suffix = written.get_ref();
            if suffix.is_empty() || suffix.len() > 100 || suffix.contains(['/', '\0']) {
                faults.push(Fault::new(
                    written.span(),
                    "this cannot be the end of a marker's name",
                    "write something like `\".done\"`: 1 to 100 bytes, without `/`",
                ));
            }
            written.into_inner()
        }
        None => ".done".into(),
    };
    (ready == Some(Ready::Marker)).then_some(suffix)
}

fn check_pattern(pattern: &str) -> Result<(), Wrong> {
    let shown = dropwire_protocol::name::escape(pattern.as_bytes());
    let wrong = |message: String, mend: String| Err(Wrong { message, mend });
    if pattern.is_empty() {
        return wrong("an empty pattern matches nothing".into(), "take it out".into());
    }
    let (inner, path) = (pattern.trim_matches('/'), pattern.trim_start_matches('/'));
    let all_in = quoted(&format!("{inner}/**"));
    match globset::Glob::new(pattern) {
        Ok(_) if inner.is_empty() => wrong(format!("`{shown}` matches no file"), "take it out".into()),
        Ok(_) if pattern.ends_with('/') => wrong(
            format!("`{shown}` matches no file, as none ends in a slash"),
            format!("write `{all_in}` for all in that folder"),
        ),
        Ok(_) if pattern.starts_with('/') => wrong(
            format!("`{shown}` is an absolute path, patterns are matched below the outbox"),
            format!("write `{}`", quoted(path)),
        ),
        Ok(_) => Ok(()),
        Err(error) => wrong(
            format!("`{shown}` is no pattern: {}", error.kind()),
            "`*` stands for any characters, `?` for one, `[ab]` for either, `\\[` for the bracket itself"
                .into(),
        ),
    }
}

fn inbox(raw: RawInbox, path: std::path::PathBuf, faults: &mut Faults) -> Option<Inbox> {
    let min_free = raw
        .min_free
        .and_then(|written| quantity(written, units::size, units::bare_size, faults));
    let on_arrival = raw.on_arrival.map_or_else(Vec::new, |command| {
        let checked = check_command(command.get_ref());
        faults.take(command.span(), checked);
        command.into_inner()
    });
    Some(Inbox {
        path,
        layout: raw.layout.unwrap_or(Layout::Flat),
        min_free,
        on_arrival,
    })
}

fn check_command(command: &[String]) -> Result<(), Wrong> {
    let wrong = |message: &str, mend: &str| {
        Err(Wrong {
            message: message.into(),
            mend: mend.into(),
        })
    };
    let Some(program) = command.first() else {
        return wrong(
            "there is no program to run",
            "name one, or leave `on_arrival` out",
        );
    };
    if program.is_empty() || command.iter().any(|argument| argument.contains('\0')) {
        return wrong(
            "the program's name is empty, or a NUL character stands in the command",
            "write the program, then each argument as a string of its own",
        );
    }
    if program.contains('/') && !Path::new(program).is_absolute() {
        return wrong(
            "the program's path is relative, which would depend on where the agent starts",
            "write it from `/` on, or a bare name that is looked up in PATH",
        );
    }
    Ok(())
}

fn check_places(places: &[(Role, std::path::PathBuf, Range<usize>)], faults: &mut Faults) {
    for (i, (role, path, span)) in places.iter().enumerate() {
        if path.parent().is_none() {
            faults.push(Fault::new(
                span.clone(),
                "the root of the file system can be no folder of dropwire's",
                "name a folder of its own",
            ));
            continue;
        }
        for (other_role, other, other_span) in places.get(..i).unwrap_or_default() {
            if other.parent().is_none() {
                continue; // told already
            }
            if let Some(wrong) = folders::clash((*role, path), (*other_role, other)) {
                faults.push(
                    Fault::new(span.clone(), wrong.message, wrong.mend).also(other_span.clone(), "this one"),
                );
            }
        }
    }
}

fn retry(raw: RawRetry, faults: &mut Faults) -> Retry {
    let first_span = raw.first.as_ref().map(Spanned::span);
    let max_span = raw.max.as_ref().map(Spanned::span);
    let give_up_after = raw
        .give_up_after
        .and_then(|written| quantity_or("never", written, units::duration, units::bare_duration, faults));
    let read = |written, default, faults: &mut Faults| match written {
        None => Some(default),
        written => duration(written, faults),
    };
    let first = read(raw.first, Duration::from_secs(1), faults);
    let max = read(raw.max, Duration::from_secs(300), faults);
    let (Some(first), Some(max)) = (first, max) else {
        return Retry {
            first: Duration::ZERO,
            max: Duration::ZERO,
            give_up_after,
        }; // a fault is told already
    };
    if let (true, Some(span)) = (first > max, first_span.clone().or(max_span.clone())) {
        let (first, max) = (units::format_duration(first), units::format_duration(max));
        let fault = Fault::new(
            span,
            format!("`first` ({first}) is longer than `max` ({max})"),
            "the wait grows from `first` to `max`: make `first` shorter or `max` longer",
        );
        faults.push(match (first_span, max_span) {
            (Some(_), Some(max)) => fault.also(max, "`max`"),
            _ => fault,
        });
    }
    Retry {
        first,
        max,
        give_up_after,
    }
}

fn limits(raw: RawLimits, faults: &mut Faults) -> Limits {
    let mut rate = |written: Option<Spanned<Quantity>>| {
        written.and_then(|written| quantity_or("unlimited", written, units::rate, units::bare_rate, faults))
    };
    Limits {
        upload: rate(raw.upload),
        download: rate(raw.download),
    }
}

fn duration(written: Option<Spanned<Quantity>>, faults: &mut Faults) -> Option<Duration> {
    quantity(written?, units::duration, units::bare_duration, faults)
}

/// Reads a quantity; whatever is no string gets its own answer.
fn quantity<T>(
    written: Spanned<Quantity>,
    read: fn(&str) -> Result<T, Wrong>,
    bare: fn(&Bare) -> Wrong,
    faults: &mut Faults,
) -> Option<T> {
    let result = match written.get_ref() {
        Quantity::Text(text) => read(text),
        Quantity::Bare(other) => Err(bare(other)),
    };
    faults.take(written.span(), result)
}

/// The same where `word` stands for none.
pub(super) fn quantity_or<T>(
    word: &str,
    written: Spanned<Quantity>,
    read: fn(&str) -> Result<T, Wrong>,
    bare: fn(&Bare) -> Wrong,
    faults: &mut Faults,
) -> Option<T> {
    let result = match written.get_ref() {
        Quantity::Text(text) if text == word => return None,
        Quantity::Text(text) => read(text),
        Quantity::Bare(other) => Err(bare(other)),
    };
    let result = result.map_err(|wrong| Wrong {
        mend: format!("{}; or write `\"{word}\"`", wrong.mend),
        ..wrong
    });
    faults.take(written.span(), result)
}

/// The host's name, as far as it can be a name here.
pub fn default_name() -> String {
    hostname::get()
        .ok()
        .and_then(|name| name.into_string().ok())
        .filter(|name| peers::check_name(name).is_ok())
        .unwrap_or_else(|| "dropwire".into())
}
