//! `dropwire status`: peers, links, outboxes, queue, rates, free space.

use std::{
    io::IsTerminal,
    time::{Duration, SystemTime},
};

use anstyle::{AnsiColor, Style};

use super::{Stop, render};
use crate::{
    config::paths::Paths,
    control::{
        Client,
        api::{InboxReport, NotSent, OutboxReport, PeerReport, ProblemReport, StatusReport},
    },
    error::{Fatal, brief},
};

/// What `status` takes.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Refresh it every second, with rates, until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// One JSON object (with --watch one a line)
    #[arg(long)]
    json: bool,
}

/// Shows how the agent is.
pub fn run(args: Args, paths: &Paths) -> Result<(), Fatal> {
    super::run(show(args, Client::new(&paths.control)))
}

async fn show(args: Args, client: Client) -> Result<(), Stop> {
    if !args.watch {
        return print(&args, "", &client.status().await?, None);
    }
    tokio::select! {
        result = watch(&args, &client) => result,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

async fn watch(args: &Args, client: &Client) -> Result<(), Stop> {
    let clear = if !args.json && std::io::stdout().is_terminal() {
        CLEAR
    } else {
        ""
    };
    let mut before = None;
    loop {
        let report = client.status().await?;
        print(args, clear, &report, before.as_ref())?;
        before = Some(report);
        tokio::time::sleep(INTERVAL).await;
    }
}

fn print(args: &Args, clear: &str, report: &StatusReport, before: Option<&StatusReport>) -> Result<(), Stop> {
    let text = match args.json {
        true => render::json(report)?,
        false => text(report, before, SystemTime::now()),
    };
    Ok(render::print(&format!("{clear}{text}"))?)
}

/// `before` is the report some time ago: rates are shown where it is there.
fn text(report: &StatusReport, before: Option<&StatusReport>, now: SystemTime) -> String {
    let listens = match &report.listen {
        None if report.starting => "is starting".to_owned(),
        Some(address) => format!("listens on {}", render::text(address)),
        None => "dials only".to_owned(),
    };
    let mut parts = vec![format!(
        "{}  {}\ndropwire {}, process {}, up {}, {listens}\n",
        render::paint(Style::new().bold(), render::text(&report.name)),
        render::text(&report.id),
        render::text(&report.version),
        report.pid,
        seconds(report.uptime_seconds),
    )];
    parts.push(problems(report, now));
    parts.extend(report.config_error.as_deref().map(config_error));
    parts.push(outboxes(report) + &cautions(report));
    parts.extend(report.outboxes.iter().map(not_sent));
    parts.push(inbox(report));
    parts.push(peers(report, before, now));
    if let Some(age) = report.oldest_undelivered_seconds {
        parts.push(format!(
            "The oldest undelivered file has waited {}.\n",
            seconds(age)
        ));
    }
    parts.retain(|part| !part.is_empty());
    parts.join("\n")
}

/// A sentence each, and its way out.
fn problems(report: &StatusReport, now: SystemTime) -> String {
    let told = |problem: &ProblemReport| {
        let text = format!("problem: {}", render::text(&problem.text));
        let age = now
            .duration_since(problem.since.system())
            .unwrap_or_default()
            .as_secs_f64();
        format!(
            "{} (for {})\n   help: {}\n",
            render::paint(WARNING, text),
            seconds(age),
            render::text(&problem.hint)
        )
    };
    report.problems.iter().map(told).collect()
}

fn config_error(error: &str) -> String {
    let lines = error.lines().map(|line| format!("  {}\n", render::text(line)));
    let title = "The config file is invalid; still running with the previous one:";
    format!("{}\n{}", render::paint(WARNING, title), lines.collect::<String>())
}

fn outboxes(report: &StatusReport) -> String {
    let row = |outbox: &OutboxReport| {
        // What cannot leave is told among the problems.
        let troubles = [&outbox.held, &outbox.disposal_held, &outbox.watch_reason];
        let trouble = troubles.into_iter().find_map(Option::as_deref);
        let cells = vec![
            render::name(outbox.raw_path()),
            watch_of(outbox),
            outbox.settling.to_string(),
            outbox.queued.to_string(),
            render::text(trouble.unwrap_or_default()),
        ];
        (if trouble.is_some() { WARNING } else { Style::new() }, cells)
    };
    table(
        &["OUTBOX", "WATCH", "SETTLING", "QUEUED", ""],
        &[2, 3],
        report.outboxes.iter().map(row).collect(),
    )
}

/// One line for each outbox whose file system is not trusted with everything.
fn cautions(report: &StatusReport) -> String {
    let line = |outbox: &OutboxReport| {
        let name = render::name(outbox.raw_path());
        format!("{name}: {}\n", render::text(&outbox.cautions.join("; ")))
    };
    let outboxes = report.outboxes.iter();
    outboxes
        .filter(|outbox| !outbox.cautions.is_empty())
        .map(line)
        .collect()
}

/// With the time that events take, as it was measured last.
fn watch_of(outbox: &OutboxReport) -> String {
    let watch = render::text(&outbox.watch);
    match outbox.watch_latency_seconds {
        Some(latency) => format!("{watch}, {:.1} ms", latency * 1000.0),
        None => watch,
    }
}

fn not_sent(outbox: &OutboxReport) -> String {
    let row = |file: &NotSent| {
        let cells = vec![
            render::name(outbox.raw_path()),
            brief(&render::name(file.raw_name())),
            render::text(&file.reason),
        ];
        (WARNING, cells)
    };
    let rows = outbox.not_sent.iter().map(row).collect();
    let mut text = table(&["OUTBOX", "NOT SENT", ""], &[], rows);
    let further = outbox.not_sent_count.saturating_sub(outbox.not_sent.len() as u64);
    if further > 0 {
        text.push_str(&format!("and {further} more that are not sent\n"));
    }
    text
}

fn inbox(report: &StatusReport) -> String {
    let row = |inbox: &InboxReport| {
        let cells = vec![
            render::name(inbox.raw_path()),
            match inbox.free_unknown {
                true => "unknown".to_owned(),
                false => render::size(inbox.free_bytes),
            },
            inbox.received_files.to_string(),
            render::size(inbox.received_bytes),
            render::text(inbox.held.as_deref().unwrap_or_default()),
        ];
        (
            if inbox.held.is_some() {
                WARNING
            } else {
                Style::new()
            },
            cells,
        )
    };
    table(
        &["INBOX", "FREE", "FILES", "RECEIVED", ""],
        &[1, 2, 3],
        report.inbox.iter().map(row).collect(),
    )
}

fn peers(report: &StatusReport, before: Option<&StatusReport>, now: SystemTime) -> String {
    let row = |peer: &PeerReport| {
        let earlier = before.and_then(|before| {
            let same = before.peers.iter().find(|earlier| earlier.id == peer.id)?;
            Some((same, report.uptime_seconds - before.uptime_seconds))
        });
        let cells = vec![
            render::text(&peer.name),
            link(peer, now),
            peer.queued.to_string(),
            peer.sending.to_string(),
            peer.failed.to_string(),
            peer.delivered.to_string(),
            transferred(
                peer.sent_bytes,
                earlier.map(|(earlier, time)| (earlier.sent_bytes, time)),
            ),
            transferred(
                peer.received_bytes,
                earlier.map(|(earlier, time)| (earlier.received_bytes, time)),
            ),
            render::text(
                peer.last_error
                    .as_deref()
                    .filter(|_| !peer.connected)
                    .unwrap_or_default(),
            ),
        ];
        (
            if peer.connected {
                AnsiColor::Green.on_default()
            } else {
                WARNING
            },
            cells,
        )
    };
    let header = &[
        "PEER",
        "LINK",
        "QUEUED",
        "SENDING",
        "FAILED",
        "DELIVERED",
        "SENT",
        "RECEIVED",
        "",
    ];
    table(
        header,
        &[2, 3, 4, 5, 6, 7],
        report.peers.iter().map(row).collect(),
    )
}

fn link(peer: &PeerReport, now: SystemTime) -> String {
    let link = match (peer.connected, peer.next_dial_at) {
        (true, _) => "connected".to_owned(),
        (false, Some(at)) => format!("dials {}", render::ahead(at, now)),
        (false, None) => "not connected".to_owned(),
    };
    if peer.paused {
        format!("{link}, paused")
    } else {
        link
    }
}

fn transferred(bytes: u64, earlier: Option<(u64, f64)>) -> String {
    match earlier {
        Some((earlier, seconds)) if seconds > 0.0 => {
            let rate = bytes.saturating_sub(earlier) as f64 / seconds;
            format!("{} ({}/s)", render::size(bytes), render::size(rate as u64))
        }
        _ => render::size(bytes),
    }
}

fn table(
    header: &'static [&'static str],
    numbers: &'static [usize],
    rows: Vec<(Style, Vec<String>)>,
) -> String {
    if rows.is_empty() {
        String::new()
    } else {
        render::Columns::new(header, numbers).rows(rows)
    }
}

fn seconds(seconds: f64) -> String {
    render::span(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

const INTERVAL: Duration = Duration::from_secs(1);
const CLEAR: &str = "\x1b[2J\x1b[H";
const WARNING: Style = AnsiColor::Yellow.on_default();

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{api::SCHEMA, wire::Time};
    use std::path::Path;

    #[test]
    fn a_whole_status() {
        let text = text(&report(), None, SystemTime::UNIX_EPOCH);
        let shown = anstream::adapter::strip_str(&text).to_string();
        let expected = "\
laptop  AAAAAAA-BBBBBBB
dropwire 0.1.0, process 7, up 1h 1m, listens on 127.0.0.1:7420

OUTBOX     WATCH           SETTLING  QUEUED
/out       native, 0.4 ms         1       2
/a\\u{1b}b  none                   0       0  its folder is not there
/poll      poll                   0       0  events do not come
/poll: files rest; files are told apart by content

OUTBOX  NOT SENT
/poll   p\\u{1b}   it is a FIFO
and 4 more that are not sent

INBOX     FREE  FILES  RECEIVED
/in    1.0 GiB      3   1.0 KiB

PEER    LINK         QUEUED  SENDING  FAILED  DELIVERED     SENT  RECEIVED
office  dials in 5s       2        0       1          9  1.0 KiB       5 B  refused

The oldest undelivered file has waited 2m.
";
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_config_that_does_not_hold() {
        let mut report = report();
        report.config_error = Some("unknown key `lisen`\n --> c.toml:2:1\u{1b}".into());
        let text = text(&report, None, SystemTime::UNIX_EPOCH);
        let shown = anstream::adapter::strip_str(&text).to_string();
        let expected = "\n\nThe config file is invalid; still running with the previous one:
  unknown key `lisen`
   --> c.toml:2:1\\u{1b}

OUTBOX";
        assert!(shown.contains(expected), "{shown}");
    }

    #[test]
    fn what_needs_a_person_comes_first() {
        let mut report = report();
        report.problems.push(ProblemReport {
            kind: "state_disk".into(),
            subject: "/state".into(),
            since: Time::from_ms(1000),
            text: "the disk is full\u{1b}".into(),
            hint: "free space".into(),
        });
        let text = text(&report, None, SystemTime::UNIX_EPOCH + Duration::from_secs(61));
        let shown = anstream::adapter::strip_str(&text).to_string();
        let expected = "problem: the disk is full\\u{1b} (for 1m)\n   help: free space\n\nOUTBOX";
        assert!(shown.contains(expected), "{shown}");
    }

    #[test]
    fn rates_come_from_two_reports() {
        let before = report();
        let mut now = report();
        now.uptime_seconds += 2.0;
        now.peers[0].sent_bytes += 4096;
        // A counter that fell, the agent having started again, is no rate.
        now.peers[0].received_bytes = 0;
        let text = text(&now, Some(&before), SystemTime::UNIX_EPOCH);
        assert!(
            text.contains("5.0 KiB (2.0 KiB/s)") && text.contains("0 B (0 B/s)"),
            "{text}"
        );
    }

    #[test]
    fn numbers_out_of_bounds_are_shown_as_nothing() {
        let mut odd = report();
        odd.uptime_seconds = f64::NAN;
        odd.oldest_undelivered_seconds = Some(-1e300);
        let text = text(&odd, Some(&report()), SystemTime::now());
        let shown = anstream::adapter::strip_str(&text).to_string();
        assert!(
            shown.contains("up 0s, ") && shown.contains("has waited 0s."),
            "{shown}"
        );
        assert!(!shown.contains("/s)"), "a rate over no time: {shown}");
    }

    fn outboxes() -> Vec<OutboxReport> {
        let held = Some("its folder is not there".into());
        let mut all = vec![
            OutboxReport::new(Path::new("/out"), "native", 1, 2, None),
            OutboxReport::new(Path::new("/a\x1bb"), "none", 0, 0, held),
            OutboxReport::new(Path::new("/poll"), "poll", 0, 0, None),
        ];
        all[0].watch_latency_seconds = Some(0.0004);
        all[2].watch_reason = Some("events do not come".into());
        all[2].cautions = vec!["files rest".into(), "files are told apart by content".into()];
        all[2].not_sent = vec![NotSent::new(b"p\x1b", "it is a FIFO".into())];
        all[2].not_sent_count = 5;
        all
    }

    fn report() -> StatusReport {
        StatusReport {
            schema: SCHEMA,
            name: "laptop".into(),
            id: "AAAAAAA-BBBBBBB".into(),
            version: "0.1.0".into(),
            pid: 7,
            uptime_seconds: 3661.0,
            starting: false,
            listen: Some("127.0.0.1:7420".into()),
            config_error: None,
            problems: Vec::new(),
            outboxes: outboxes(),
            inbox: Some(InboxReport::new(Path::new("/in"), 1 << 30, 3, 1024, None)),
            peers: vec![PeerReport {
                name: "office".into(),
                id: "CCCCCCC".into(),
                connected: false,
                paused: false,
                next_dial_at: Some(Time::from_ms(5000)),
                last_error: Some("refused".into()),
                queued: 2,
                sending: 0,
                failed: 1,
                delivered: 9,
                sent_bytes: 1024,
                received_bytes: 5,
            }],
            oldest_undelivered_seconds: Some(120.0),
        }
    }
}
