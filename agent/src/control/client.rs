//! Asks a running agent. One connection a question (a whole `send` has one for all its requests), every wait with a
//! deadline.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use dropwire_protocol::name::escape;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, Response, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;

use super::{
    LONG, QUICK,
    api::{
        AdoptReply, AdoptRequest, Changed, JobFilter, JobReport, ListLine, Selection, SendReply, SendRequest,
        StatusReport, WhyQuery, WhyReport,
    },
    passing::{Carrier, Departures},
    socket,
    wire::Failure,
};
use crate::error::{Exit, Fatal, shown};

/// Asks the agent behind one control socket.
///
/// Errors: [`Exit::Unavailable`] where no agent answers, [`Exit::Permission`] where it may not be asked; any other is the
/// agent's own answer.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Makes a connection for each question, so that an agent may end and start between two.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// See [`super::Agent::status`].
    pub async fn status(&self) -> Result<StatusReport, Fatal> {
        self.ask(Method::GET, "/v1/status", Bytes::new(), QUICK).await
    }

    /// The job list, a line at a time.
    pub async fn jobs(&self, filter: &JobFilter) -> Result<JobLines, Fatal> {
        let path = format!("/v1/jobs{}", query(filter));
        let answer = self.open(Method::GET, &path, Bytes::new());
        let body = self.before(QUICK + SLACK, answer).await??.into_body();
        Ok(JobLines {
            client: self.clone(),
            body,
            buffer: BytesMut::new(),
            searched: 0,
        })
    }

    /// See [`super::Agent::job`].
    pub async fn job(&self, id: &str) -> Result<JobReport, Fatal> {
        self.ask(
            Method::GET,
            &format!("/v1/job/{}", percent(id)),
            Bytes::new(),
            QUICK,
        )
        .await
    }

    /// See [`super::Agent::why`].
    pub async fn why(&self, query: &WhyQuery) -> Result<WhyReport, Fatal> {
        self.post("/v1/why", query, QUICK).await
    }

    /// Begins a `send`: a connection for its requests. Dropped before the last of them, nothing was sent.
    pub async fn sending(&self) -> Result<Sending, Fatal> {
        let departures = Departures::default();
        let sender = self.before(CONNECT, self.connect(departures.clone())).await??;
        Ok(Sending {
            client: self.clone(),
            sender,
            departures,
        })
    }

    /// See [`super::Agent::retry`].
    pub async fn retry(&self, which: &Selection) -> Result<Changed, Fatal> {
        self.post("/v1/retry", which, LONG).await
    }

    /// See [`super::Agent::cancel`].
    pub async fn cancel(&self, which: &Selection) -> Result<Changed, Fatal> {
        self.post("/v1/cancel", which, LONG).await
    }

    /// See [`super::Agent::adopt`].
    pub async fn adopt(&self, request: &AdoptRequest) -> Result<AdoptReply, Fatal> {
        self.post("/v1/adopt", request, LONG).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        within: Duration,
    ) -> Result<T, Fatal> {
        let body = serde_json::to_vec(body).map_err(|error| Fatal::new(Exit::Usage, error))?;
        self.ask(Method::POST, path, body.into(), within).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        within: Duration,
    ) -> Result<T, Fatal> {
        // A little more than the agent allows itself, so that its own words come first.
        let answer = async { self.read(self.open(method, path, body).await?.into_body()).await };
        let body = self.before(within + SLACK, answer).await??;
        serde_json::from_slice(&body).map_err(not_understood)
    }

    async fn connect(&self, departures: Departures) -> Result<http1::SendRequest<Full<Bytes>>, Fatal> {
        let stream = socket::connect(&self.socket)
            .await
            .map_err(|error| self.no_connection(&error))?;
        let (sender, connection) = http1::handshake(TokioIo::new(Carrier::sending(stream, departures)))
            .await
            .map_err(|error| self.broken(&error))?;
        // Ends with the last answer's body, or when sender and answer are dropped.
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn open(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, Fatal> {
        let mut sender = self
            .before(CONNECT, self.connect(Departures::default()))
            .await??;
        self.question(&mut sender, method, path, body).await
    }

    /// Sends the question; the answer's head says yes, or the error is what the answer says.
    async fn question(
        &self,
        sender: &mut http1::SendRequest<Full<Bytes>>,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, Fatal> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| Fatal::new(Exit::Usage, error))?;
        let answer = match sender.send_request(request).await {
            Ok(answer) => answer,
            Err(error) => return Err(self.ended(&error).await),
        };
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let body = self.read(answer.into_body()).await?;
        Err(match serde_json::from_slice::<Failure>(&body) {
            Ok(failure) => failure.into(),
            Err(_) => not_understood(format_args!("{status}: {}", escape(&body))),
        })
    }

    async fn read(&self, body: Incoming) -> Result<Bytes, Fatal> {
        let whole = Limited::new(body, MAX_ANSWER).collect().await;
        Ok(whole.map_err(|error| self.broken(error.as_ref()))?.to_bytes())
    }

    async fn before<T>(&self, limit: Duration, answer: impl Future<Output = T>) -> Result<T, Fatal> {
        timeout(limit, answer).await.map_err(|_| {
            let limit = humantime::format_duration(limit);
            Fatal::new(
                Exit::Unavailable,
                format_args!("the agent gave no answer on {self} within {limit}"),
            )
            .hint("see its log; end it and start it again: dropwire run")
        })
    }

    fn no_connection(&self, error: &io::Error) -> Fatal {
        match error.kind() {
            io::ErrorKind::PermissionDenied => Fatal::new(
                Exit::Permission,
                format_args!("not allowed to ask the agent on {self}: {error}"),
            )
            .hint(
                "run this as the agent's user, or for a system service as a member of the group `dropwire`",
            ),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Fatal::new(
                Exit::Unavailable,
                format_args!("the agent is not running (no answer at {self})"),
            )
            .hint("start it: dropwire run"),
            _ => Fatal::new(
                Exit::Unavailable,
                format_args!("the agent cannot be asked on {self}: {error}"),
            ),
        }
    }

    /// An agent that is still there has closed this connection for another one.
    async fn ended(&self, error: &dyn std::error::Error) -> Fatal {
        let there = timeout(CONNECT, socket::connect(&self.socket)).await;
        match there {
            Ok(Ok(_)) if !crate::failpoints::mutant("control-busy") => Fatal::new(
                Exit::Unavailable,
                format_args!(
                    "the agent on {self} has closed this connection: it is busy with other commands"
                ),
            )
            .hint("try again in a moment"),
            _ => self.broken(error),
        }
    }

    fn broken(&self, error: &dyn std::error::Error) -> Fatal {
        Fatal::new(
            Exit::Unavailable,
            format_args!("the agent on {self} ended before its answer did: {error}"),
        )
        .hint("start it again: dropwire run")
    }
}

/// The socket's path, escaped.
impl std::fmt::Display for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&shown(&self.socket))
    }
}

/// A `send` on its way: see [`Client::sending`].
#[derive(Debug)]
pub struct Sending {
    client: Client,
    sender: http1::SendRequest<Full<Bytes>>,
    departures: Departures,
}

impl Sending {
    /// Passes `files`, each named in the request at the same place.
    pub async fn pass(&mut self, request: &SendRequest, files: Vec<Arc<File>>) -> Result<SendReply, Fatal> {
        let Self {
            client,
            sender,
            departures,
        } = self;
        let body = serde_json::to_vec(request).map_err(|error| Fatal::new(Exit::Usage, error))?;
        let answer = async {
            sender.ready().await.map_err(|error| client.broken(&error))?;
            departures.set(files);
            let answer = client
                .question(sender, Method::POST, "/v1/send", body.into())
                .await?;
            client.read(answer.into_body()).await
        };
        let body = client.before(LONG + SLACK, answer).await??;
        serde_json::from_slice(&body).map_err(not_understood)
    }
}

/// A listing as it comes; holds one line and one network buffer at a time.
#[derive(Debug)]
pub struct JobLines {
    client: Client,
    body: Incoming,
    buffer: BytesMut,
    searched: usize,
}

impl JobLines {
    /// The next job; None at the whole list's end.
    pub async fn next(&mut self) -> Result<Option<JobReport>, Fatal> {
        loop {
            let fresh = &self.buffer[self.searched..];
            if let Some(end) = fresh.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.searched + end);
                self.buffer.advance(1);
                self.searched = 0;
                return match serde_json::from_slice(&line).map_err(not_understood)? {
                    ListLine::Job(job) => Ok(Some(*job)),
                    ListLine::Failure { failure } => Err(failure.into()),
                };
            }
            self.searched = self.buffer.len();
            if self.searched > MAX_LINE {
                return Err(not_understood("a line without an end"));
            }
            match self.client.before(QUICK + SLACK, self.body.frame()).await? {
                Some(Ok(frame)) => self
                    .buffer
                    .extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
                Some(Err(error)) => return Err(self.client.broken(&error)),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(not_understood("a line without an end")),
            }
        }
    }
}

fn not_understood(why: impl std::fmt::Display) -> Fatal {
    Fatal::new(
        Exit::Failed,
        format_args!("the agent's answer is not understood: {why}"),
    )
    .hint("use the same version of dropwire for the agent and for commands")
}

fn query(filter: &JobFilter) -> String {
    let state = filter.state.map(|state| format!("state={}", state.name()));
    let peer = filter.peer.as_ref().map(|peer| format!("peer={}", percent(peer)));
    let pairs: Vec<_> = [state, peer].into_iter().flatten().collect();
    if pairs.is_empty() {
        String::new()
    } else {
        format!("?{}", pairs.join("&"))
    }
}

fn percent(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

const CONNECT: Duration = Duration::from_secs(5);
const SLACK: Duration = Duration::from_secs(5);
const MAX_ANSWER: usize = 64 * 1024 * 1024;
const MAX_LINE: usize = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::JobState;

    #[test]
    fn a_connection_that_fails_says_how_to_fix_it() {
        let client = Client::new(Path::new("/run/a\x1bb.sock"));
        let cases = [
            (io::ErrorKind::NotFound, Exit::Unavailable, Some("dropwire run")),
            (
                io::ErrorKind::ConnectionRefused,
                Exit::Unavailable,
                Some("dropwire run"),
            ),
            (
                io::ErrorKind::PermissionDenied,
                Exit::Permission,
                Some("group `dropwire`"),
            ),
            (io::ErrorKind::Unsupported, Exit::Unavailable, None),
        ];
        for (kind, exit, hint) in cases {
            let fatal = client.no_connection(&kind.into());
            assert_eq!(fatal.exit, exit, "{kind}");
            assert!(fatal.message.contains("/run/a\\u{1b}b.sock"), "{fatal}");
            assert_eq!(fatal.hint.is_some(), hint.is_some(), "{kind}");
            assert!(
                fatal.hint.unwrap_or_default().contains(hint.unwrap_or_default()),
                "{kind}"
            );
        }
    }

    #[test]
    fn a_filter_becomes_a_query_whatever_is_in_the_name() {
        let filter = |state, peer: Option<&str>| JobFilter {
            state,
            peer: peer.map(str::to_owned),
        };
        assert_eq!(query(&filter(None, None)), "");
        assert_eq!(query(&filter(Some(JobState::Failed), None)), "?state=failed");
        let both = filter(Some(JobState::Queued), Some("a&b=ü /?#"));
        assert_eq!(query(&both), "?state=queued&peer=a%26b%3D%C3%BC%20%2F%3F%23");
    }
}
