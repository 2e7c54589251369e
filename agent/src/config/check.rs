//! From what is written to what holds. Every rule of the config stands here, and each breach names its line and what to write instead.

use std::{ops::Range, path::Path, time::Duration};

use toml::Spanned;

use super::{
    AfterSend, Config, Folder, Inbox, Layout, Limits, Outbox, Ready, Retry, Watch, address,
    diagnostic::{Diagnostic, Diagnostics, ValueError},
    effective::quoted,
    explain::nearest,
    folders::{self, Role},
    peers::{self, NamedPeer},
    raw::{Quantity, RawConfig, RawInbox, RawLimits, RawOutbox, RawRetry},
    units::{self, Bare},
};

/// Checks all of it and tells all diagnostics at once, in the order of the file.
pub(super) fn check(raw: RawConfig, home: Option<&Path>) -> Result<Config, Vec<Diagnostic>> {
    let mut diagnostics = Diagnostics::default();
    let mut places = Vec::new();
    let by_peer = raw
        .inbox
        .as_ref()
        .is_some_and(|inbox| inbox.layout == Some(Layout::ByPeer));
    let peers = peers::check(raw.peer, by_peer, &mut diagnostics);

    let name = raw.name.and_then(|name| {
        let checked = peers::check_name(name.get_ref()).map(|()| name.get_ref().clone());
        diagnostics.take(name.span(), checked)
    });
    let listen = raw
        .listen
        .and_then(|listen| diagnostics.take(listen.span(), address::listen(listen.get_ref())));
    let mut place = |role, path: &Spanned<String>, diagnostics: &mut Diagnostics| {
        let read = diagnostics.take(path.span(), folders::absolute(path.get_ref(), home))?;
        places.push((role, read.clone(), path.span()));
        Some(read)
    };
    let state_dir = raw
        .state_dir
        .and_then(|path| place(Role::State, &path, &mut diagnostics));
    let control = raw
        .control
        .and_then(|path| place(Role::Control, &path, &mut diagnostics));
    let outboxes = raw
        .outbox
        .into_iter()
        .filter_map(|raw| {
            let path = place(Role::Outbox, &raw.path, &mut diagnostics);
            outbox(raw, path?, &peers, &mut diagnostics)
        })
        .collect();
    let inbox = raw.inbox.and_then(|raw| {
        let path = place(Role::Inbox, &raw.path, &mut diagnostics);
        inbox(raw, path?, &mut diagnostics)
    });
    check_places(&places, &mut diagnostics);

    let config = Config {
        name: name.unwrap_or_else(default_name),
        listen,
        state_dir,
        control,
        outboxes,
        inbox,
        peers: peers.into_iter().map(|named| named.peer).collect(),
        retry: retry(raw.retry, &mut diagnostics),
        limits: limits(raw.limits, &mut diagnostics),
    };
    if diagnostics.0.is_empty() {
        return Ok(config);
    }
    diagnostics.0.sort_by_key(|diagnostic| diagnostic.span.start);
    Err(diagnostics.0)
}

fn outbox(
    raw: RawOutbox,
    path: std::path::PathBuf,
    peers: &[NamedPeer],
    diagnostics: &mut Diagnostics,
) -> Option<Outbox> {
    let to = match raw.to {
        Some(to) => recipients(to, peers, diagnostics),
        None => peers.iter().map(|named| named.peer.id).collect(),
    };
    let mut ignore = Vec::new();
    for pattern in raw.ignore {
        let checked = check_pattern(pattern.get_ref());
        if diagnostics.take(pattern.span(), checked).is_some() {
            ignore.push(pattern.into_inner());
        }
    }
    let marker = marker(raw.ready, raw.marker, diagnostics);
    let linger = raw.linger.and_then(|written| {
        quantity(
            written,
            units::duration_or_none,
            units::bare_duration,
            diagnostics,
        )
    });
    let linger = linger.unwrap_or(Duration::from_secs(2));
    let mut time = |written, default| duration(written, diagnostics).unwrap_or(default);
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
    diagnostics: &mut Diagnostics,
) -> Vec<dropwire_protocol::AgentId> {
    if to.get_ref().is_empty() {
        diagnostics.push(Diagnostic::new(
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
            diagnostics.push(
                Diagnostic::new(
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
            let hint = match near {
                Some(near) => format!("did you mean `{}`?", quoted(near)),
                None => format!("add a `[[peer]]` with `name = \"{shown}\"`, or take it out"),
            };
            diagnostics.push(Diagnostic::new(
                name.span(),
                format!("there is no peer named `{shown}`"),
                hint,
            ));
        }
        seen.push(name);
    }
    ids
}

fn marker(
    ready: Option<Ready>,
    written: Option<Spanned<String>>,
    diagnostics: &mut Diagnostics,
) -> Option<String> {
    if let (None, Some(written)) = (ready, &written) {
        diagnostics.push(Diagnostic::new(
            written.span(),
            "`marker` without `ready` would change nothing",
            "write `ready = \"marker\"` beside it, or take it out",
        ));
    }
    let suffix = match written {
        Some(written) => {
            let suffix = written.get_ref();
            if suffix.is_empty() || suffix.len() > 100 || suffix.contains(['/', '\0']) {
                diagnostics.push(Diagnostic::new(
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

fn check_pattern(pattern: &str) -> Result<(), ValueError> {
    let shown = dropwire_protocol::name::escape(pattern.as_bytes());
    let wrong = |message: String, hint: String| Err(ValueError { message, hint });
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

fn inbox(raw: RawInbox, path: std::path::PathBuf, diagnostics: &mut Diagnostics) -> Option<Inbox> {
    let min_free = raw
        .min_free
        .and_then(|written| quantity(written, units::size, units::bare_size, diagnostics));
    let on_arrival = raw.on_arrival.map_or_else(Vec::new, |command| {
        let checked = check_command(command.get_ref());
        diagnostics.take(command.span(), checked);
        command.into_inner()
    });
    Some(Inbox {
        path,
        layout: raw.layout.unwrap_or(Layout::Flat),
        min_free,
        on_arrival,
    })
}

fn check_command(command: &[String]) -> Result<(), ValueError> {
    let wrong = |message: &str, hint: &str| {
        Err(ValueError {
            message: message.into(),
            hint: hint.into(),
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

fn check_places(places: &[(Role, std::path::PathBuf, Range<usize>)], diagnostics: &mut Diagnostics) {
    for (i, (role, path, span)) in places.iter().enumerate() {
        if path.parent().is_none() {
            diagnostics.push(Diagnostic::new(
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
                diagnostics.push(wrong.at(span.clone()).also(other_span.clone(), "this one"));
            }
        }
    }
}

fn retry(raw: RawRetry, diagnostics: &mut Diagnostics) -> Retry {
    let first_span = raw.first.as_ref().map(Spanned::span);
    let max_span = raw.max.as_ref().map(Spanned::span);
    let give_up_after = raw.give_up_after.and_then(|written| {
        quantity_or(
            "never",
            written,
            units::duration,
            units::bare_duration,
            diagnostics,
        )
    });
    let read = |written, default, diagnostics: &mut Diagnostics| match written {
        None => Some(default),
        written => duration(written, diagnostics),
    };
    let first = read(raw.first, Duration::from_secs(1), diagnostics);
    let max = read(raw.max, Duration::from_secs(300), diagnostics);
    let (Some(first), Some(max)) = (first, max) else {
        return Retry {
            first: Duration::ZERO,
            max: Duration::ZERO,
            give_up_after,
        }; // a diagnostic is told already
    };
    if let (true, Some(span)) = (first > max, first_span.clone().or(max_span.clone())) {
        let (first, max) = (units::format_duration(first), units::format_duration(max));
        let diagnostic = Diagnostic::new(
            span,
            format!("`first` ({first}) is longer than `max` ({max})"),
            "the wait grows from `first` to `max`: make `first` shorter or `max` longer",
        );
        diagnostics.push(match (first_span, max_span) {
            (Some(_), Some(max)) => diagnostic.also(max, "`max`"),
            _ => diagnostic,
        });
    }
    Retry {
        first,
        max,
        give_up_after,
    }
}

fn limits(raw: RawLimits, diagnostics: &mut Diagnostics) -> Limits {
    let mut rate = |written: Option<Spanned<Quantity>>| {
        written
            .and_then(|written| quantity_or("unlimited", written, units::rate, units::bare_rate, diagnostics))
    };
    Limits {
        upload: rate(raw.upload),
        download: rate(raw.download),
    }
}

fn duration(written: Option<Spanned<Quantity>>, diagnostics: &mut Diagnostics) -> Option<Duration> {
    quantity(written?, units::duration, units::bare_duration, diagnostics)
}

/// Reads a quantity; whatever is no string gets its own answer.
fn quantity<T>(
    written: Spanned<Quantity>,
    read: fn(&str) -> Result<T, ValueError>,
    bare: fn(&Bare) -> ValueError,
    diagnostics: &mut Diagnostics,
) -> Option<T> {
    let result = match written.get_ref() {
        Quantity::Text(text) => read(text),
        Quantity::Bare(other) => Err(bare(other)),
    };
    diagnostics.take(written.span(), result)
}

/// The same where `word` stands for none.
pub(super) fn quantity_or<T>(
    word: &str,
    written: Spanned<Quantity>,
    read: fn(&str) -> Result<T, ValueError>,
    bare: fn(&Bare) -> ValueError,
    diagnostics: &mut Diagnostics,
) -> Option<T> {
    let result = match written.get_ref() {
        Quantity::Text(text) if text == word => return None,
        Quantity::Text(text) => read(text),
        Quantity::Bare(other) => Err(bare(other)),
    };
    let result = result.map_err(|wrong| ValueError {
        hint: format!("{}; or write `\"{word}\"`", wrong.hint),
        ..wrong
    });
    diagnostics.take(written.span(), result)
}

/// The host's name, as far as it can be a name here.
pub fn default_name() -> String {
    hostname::get()
        .ok()
        .and_then(|name| name.into_string().ok())
        .filter(|name| peers::check_name(name).is_ok())
        .unwrap_or_else(|| "dropwire".into())
}
