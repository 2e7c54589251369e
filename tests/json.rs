//! The JSON that scripts read: each promised key, each with its type. Keys may be added, never changed.

use serde_json::Value;

use crate::harness::{Pair, eventually, files};

/// Key and type: `s` text, `i` whole number, `n` number, `b` yes or no, `t` time, `x` lower-case hex; `?` may be null.
type Shape = [(&'static str, &'static str)];

const STATUS: &Shape = &[
    ("schema", "i"),
    ("name", "s"),
    ("id", "s"),
    ("version", "s"),
    ("pid", "i"),
    ("uptime_seconds", "n"),
    ("listen", "s?"),
    ("config_error", "s?"),
    ("oldest_undelivered_seconds", "n?"),
];
const OUTBOX: &Shape = &[
    ("path", "s"),
    ("watch", "s"),
    ("folder", "s"),
    ("settling", "i"),
    ("queued", "i"),
    ("held", "s?"),
    ("disposal_held", "s?"),
    ("cannot_leave_count", "i"),
    ("cannot_leave", "s?"),
    ("cannot_leave_since", "s?"),
    ("watch_reason", "s?"),
    ("watch_latency_seconds", "n?"),
    ("not_sent_count", "i"),
];
const INBOX: &Shape = &[
    ("path", "s"),
    ("free_bytes", "i"),
    ("received_files", "i"),
    ("received_bytes", "i"),
];
const PEER: &Shape = &[
    ("name", "s"),
    ("id", "s"),
    ("connected", "b"),
    ("paused", "b"),
    ("next_dial_at", "t?"),
    ("last_error", "s?"),
    ("queued", "i"),
    ("sending", "i"),
    ("failed", "i"),
    ("delivered", "i"),
    ("sent_bytes", "i"),
    ("received_bytes", "i"),
];
const JOB: &Shape = &[
    ("job", "x"),
    ("peer", "s"),
    ("path", "s"),
    ("name", "s"),
    ("kind", "s"),
    ("size", "i"),
    ("state", "s"),
    ("attempts", "i"),
    ("next_attempt_at", "t?"),
    ("sent_bytes", "i"),
    ("error", "s?"),
    ("queued_at", "t"),
    ("delivered_at", "t?"),
    ("sha256", "x?"),
    ("delivered_as", "s?"),
];

#[test]
fn status_and_jobs_have_their_promised_shape() {
    let mut pair = Pair::linked();
    let path = pair.laptop.drop_file("sub/there", b"there");
    pair.laptop.delivers(1);
    for agent in [&pair.laptop, &pair.office] {
        let status = agent.status();
        fits("status", &status, STATUS);
        assert_eq!(status["schema"], 1);
        assert_eq!(status["name"], agent.name);
        assert_eq!(status["id"], agent.id);
        assert_eq!(status["pid"], agent.pid());
        assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(status["problems"], serde_json::json!([]));
        fits("outbox", &status["outboxes"][0], OUTBOX);
        fits("inbox", &status["inbox"], INBOX);
        fits("peer", &status["peers"][0], PEER);
    }
    assert!(pair.laptop.status()["listen"].is_null());
    let listen = pair.office.status()["listen"]
        .as_str()
        .map(str::parse::<std::net::SocketAddr>);
    assert!(
        matches!(listen, Some(Ok(address)) if address.port() != 0),
        "{listen:?}"
    );
    assert_eq!(pair.office.status()["inbox"]["received_files"], 1);
    assert_eq!(pair.office.status()["inbox"]["received_bytes"], 5);
    assert_eq!(pair.laptop.peer("office")["delivered"], 1);

    let job = &pair.laptop.jobs()[0];
    fits("a delivered job", job, JOB);
    assert_eq!(job["peer"], "office");
    assert_eq!(job["path"], path.to_str().expect("plain"));
    assert_eq!(job["name"], "sub/there");
    assert_eq!(job["size"], 5);
    assert_eq!(job["sent_bytes"], 5);
    assert_eq!(job["sha256"], files::sha256_of(b"there"));
    assert_eq!(job["delivered_as"], "sub/there");
    assert!(job["delivered_at"].is_string() && job["error"].is_null());

    pair.office.stop();
    pair.laptop.drop_file("waiting", b"waiting");
    let job = eventually("a queued job", || pair.laptop.jobs_of("waiting").pop());
    fits("a queued job", &job, JOB);
    assert_eq!(job["state"], "queued");
    assert!(job["delivered_at"].is_null() && job["sha256"].is_null() && job["delivered_as"].is_null());
    let only = |args: &[&str]| pair.laptop.run(args).exits(0).out().lines().count();
    assert_eq!(only(&["jobs", "--json", "--state", "queued"]), 1);
    assert_eq!(
        only(&["jobs", "--json", "--state", "delivered", "--peer", "office"]),
        1
    );
    assert_eq!(only(&["jobs", "--json", "--state", "failed"]), 0);
}

#[track_caller]
fn fits(what: &str, value: &Value, shape: &Shape) {
    for (key, kind) in shape {
        let Some(found) = value.get(key) else {
            panic!("{what} has no `{key}`\n{value:#}")
        };
        let (kind, may_be_null) = kind.strip_suffix('?').map_or((*kind, false), |k| (k, true));
        let text = |test: fn(&str) -> bool| found.as_str().is_some_and(test);
        let right = match kind {
            "s" => found.is_string(),
            "i" => found.is_u64(),
            "n" => found.is_number(),
            "b" => found.is_boolean(),
            "t" => text(is_utc_time),
            "x" => {
                text(|t| matches!(t.len(), 32 | 64) && t.bytes().all(|b| b"0123456789abcdef".contains(&b)))
            }
            other => panic!("no such kind: {other}"),
        };
        assert!(
            right || (may_be_null && found.is_null()),
            "{what}: `{key}` is {found}, not `{kind}`\n{value:#}"
        );
    }
}

/// RFC 3339 in UTC: `2026-01-02T03:04:05Z`, with or without a fraction.
fn is_utc_time(text: &str) -> bool {
    let pattern = b"dddd-dd-ddTdd:dd:dd";
    let bytes = text.as_bytes();
    bytes.len() > pattern.len()
        && bytes
            .iter()
            .zip(pattern)
            .all(|(b, p)| if *p == b'd' { b.is_ascii_digit() } else { b == p })
        && text[pattern.len()..].strip_suffix('Z').is_some_and(|fraction| {
            fraction.is_empty()
                || fraction
                    .strip_prefix('.')
                    .is_some_and(|f| f.bytes().all(|b| b.is_ascii_digit()))
        })
}
