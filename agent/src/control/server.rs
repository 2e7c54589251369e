//! Answers the commands: a router over the control socket. A connection carries one request, or the several of one
//! `send`.
//!
//! Bounded in every direction: connections (`places`), files that come with them, a request's size, the time a request
//! may take to come and to be answered. A listing is drawn from the agent page by page as its reader takes it, so it
//! never lies in memory whole.

use std::{
    convert::Infallible,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    body::{Body, Bytes, HttpBody as _},
    extract::{Path, Query, Request, State},
    http::{HeaderValue, StatusCode, header, request::Parts},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper::{body::Frame, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Agent, LONG, QUICK, Socket,
    api::{
        AdoptReply, AdoptRequest, Changed, JobFilter, JobPage, JobReport, ListLine, Selection, SendRequest,
        StatusReport, WhyQuery, WhyReport,
    },
    passing::{Arrivals, Carrier},
    places::{Place, Places},
    socket::{self, Stream},
    wire::Failure,
};
use crate::error::{Exit, Fatal};

/// Answers until `cancel`; then removes the socket, lets open requests end for two seconds, and returns.
pub async fn serve<A: Agent>(mut socket: Socket, agent: Arc<A>, cancel: CancellationToken) {
    let router = router(agent);
    let places = Arc::new(Places::default());
    let connections = TaskTracker::new();
    loop {
        let Some(stream) = cancel.run_until_cancelled(socket.accept()).await else {
            break;
        };
        let known = stream.and_then(|stream| Ok((socket::user(&stream)?, stream)));
        match known {
            Ok((user, stream)) => match places.take(user) {
                Some(place) => {
                    let (router, cancel) = (router.clone(), cancel.clone());
                    connections.spawn(connection::<A>(stream, Arc::new(place), router, cancel));
                }
                None => refuse(&stream),
            },
            Err(error) => {
                // Out of descriptors, most likely: let others end before the next try.
                tracing::warn!(%error, "the control socket takes no connection");
                cancel.run_until_cancelled(tokio::time::sleep(ACCEPT_PAUSE)).await;
            }
        }
    }
    drop(socket);
    connections.close();
    connections.wait().await;
}

/// Says that there is no place; what the socket does not take at once is not waited for.
fn refuse(stream: &Stream) {
    let failure = Failure::from(
        Fatal::new(Exit::NotYet, "the agent is busy with this user's other commands")
            .hint("try again in a moment"),
    );
    let Ok(body) = serde_json::to_string(&failure) else {
        return; // text and numbers: it cannot fail
    };
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    let _ = socket::write_now(stream, answer.as_bytes());
}

async fn connection<A: Agent>(stream: Stream, place: Arc<Place>, router: Router, cancel: CancellationToken) {
    let arrivals = Arrivals::new(Arc::clone(&place.allowance().files));
    let caller = Caller::<A> {
        arrivals: arrivals.clone(),
        place: Arc::clone(&place),
        sending: Arc::default(),
    };
    let router = router
        .layer(from_fn(ask))
        .layer(Extension(Arc::clone(&place)))
        .layer(Extension(caller));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(QUICK)
        .max_buf_size(MAX_HEAD)
        .serve_connection(
            TokioIo::new(Carrier::receiving(stream, arrivals)),
            TowerToHyperService::new(router),
        );
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = place.evicted() => Ok(()),
        () = cancel.cancelled() => {
            connection.as_mut().graceful_shutdown();
            timeout(GRACE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a control connection broke");
    }
}

/// Who asks, as the requests of one connection see it.
struct Caller<A: Agent> {
    arrivals: Arrivals,
    place: Arc<Place>,
    /// The `send` that comes in over this connection.
    sending: Arc<Mutex<A::Sending>>,
}

impl<A: Agent> Clone for Caller<A> {
    fn clone(&self) -> Self {
        Self {
            arrivals: self.arrivals.clone(),
            place: Arc::clone(&self.place),
            sending: Arc::clone(&self.sending),
        }
    }
}

fn router<A: Agent>(agent: Arc<A>) -> Router {
    let quick = Router::new()
        .route("/v1/status", get(status::<A>))
        .route("/v1/jobs", get(jobs::<A>))
        .route("/v1/job/{id}", get(job::<A>))
        .route("/v1/why", post(why::<A>))
        .layer(from_fn(|request, next| within(QUICK, request, next)));
    let long = Router::new()
        .route(SEND, post(send::<A>))
        .route("/v1/retry", post(retry::<A>))
        .route("/v1/cancel", post(cancel::<A>))
        .route("/v1/adopt", post(adopt::<A>))
        .layer(from_fn(|request, next| within(LONG, request, next)));
    quick.merge(long).with_state(agent)
}

/// Reads the whole request, within bounds, before anything is done for it. Only a `send` may go on after its answer.
async fn ask(Extension(place): Extension<Arc<Place>>, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let mut answer = match read(body, &place).await {
        Ok((body, _room)) => {
            let work = (!is_send(&head) || crate::failpoints::mutant("control-waits")).then(|| place.work());
            let answer = next.run(Request::from_parts(head, Body::from(body))).await;
            drop(work);
            answer
        }
        Err(fatal) => Failed(fatal).into_response(),
    };
    if answer.extensions_mut().remove::<GoesOn>().is_none() {
        let close = HeaderValue::from_static("close");
        answer.headers_mut().insert(header::CONNECTION, close);
    }
    answer
}

/// Its work begins only when it may copy.
fn is_send(head: &Parts) -> bool {
    head.uri.path() == SEND
}

/// An answer after which the connection takes another request.
#[derive(Clone)]
struct GoesOn;

/// The request's bytes, and the room that they take.
async fn read(body: Body, place: &Place) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Fatal> {
    let too_large = || {
        let text = "the request is larger than the agent takes (1 MiB)";
        Fatal::new(Exit::Usage, text).hint("name fewer at a time")
    };
    if crate::failpoints::mutant("control-request") {
        return Ok((
            axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default(),
            None,
        ));
    }
    if body.size_hint().lower() > u64::from(MAX_REQUEST) {
        return Err(too_large());
    }
    let whole = async {
        let size = body.size_hint().exact().and_then(|size| u32::try_from(size).ok());
        let size = size.unwrap_or(MAX_REQUEST);
        // Small ones never wait for room, so that large ones that do not come whole keep none of them out.
        let room = match size > SMALL {
            true => Arc::clone(&place.allowance().bytes)
                .acquire_many_owned(size)
                .await
                .ok(),
            false => None,
        };
        Ok((axum::body::to_bytes(body, MAX_REQUEST as usize).await?, room))
    };
    let late = |_| Fatal::new(Exit::Failed, "the request did not come whole in time");
    let whole = timeout(ASKING, whole).await.map_err(late)?;
    whole.map_err(|_: axum::Error| too_large())
}

async fn within(limit: Duration, request: Request, next: Next) -> Result<Response, Failed> {
    timeout(limit, next.run(request))
        .await
        .map_err(|_| Failed(late(limit)))
}

type Reply<T> = Result<Json<T>, Failed>;

async fn status<A: Agent>(State(agent): State<Arc<A>>) -> Reply<StatusReport> {
    Ok(Json(agent.status().await?))
}

async fn job<A: Agent>(State(agent): State<Arc<A>>, Path(id): Path<String>) -> Reply<JobReport> {
    Ok(Json(agent.job(id).await?))
}

async fn why<A: Agent>(State(agent): State<Arc<A>>, Json(query): Json<WhyQuery>) -> Reply<WhyReport> {
    Ok(Json(agent.why(query).await?))
}

async fn send<A: Agent>(
    State(agent): State<Arc<A>>,
    Extension(caller): Extension<Caller<A>>,
    Json(request): Json<SendRequest>,
) -> Result<Response, Failed> {
    let mut passed = caller.arrivals.take();
    // Until then another connection may have the place.
    if let Ok(permit) = Arc::clone(&caller.place.allowance().copies).acquire_owned().await {
        passed.hold(permit);
    }
    let _work = caller.place.work();
    let mut sending = caller.sending.lock().await;
    let reply = agent.send(&mut sending, request, passed).await?;
    Ok((Extension(GoesOn), Json(reply)).into_response())
}

async fn retry<A: Agent>(State(agent): State<Arc<A>>, Json(which): Json<Selection>) -> Reply<Changed> {
    Ok(Json(agent.retry(which).await?))
}

async fn cancel<A: Agent>(State(agent): State<Arc<A>>, Json(which): Json<Selection>) -> Reply<Changed> {
    Ok(Json(agent.cancel(which).await?))
}

async fn adopt<A: Agent>(
    State(agent): State<Arc<A>>,
    Json(request): Json<AdoptRequest>,
) -> Reply<AdoptReply> {
    Ok(Json(agent.adopt(request).await?))
}

async fn jobs<A: Agent>(
    State(agent): State<Arc<A>>,
    Query(filter): Query<JobFilter>,
) -> Result<impl IntoResponse, Failed> {
    // The first page is awaited here, so that what is wrong with the question gets its own status.
    let first = agent.jobs(filter.clone(), None).await?;
    let listing = Listing {
        agent,
        filter,
        page: Some(Box::pin(std::future::ready(Ok(first)))),
    };
    Ok((
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        Body::new(listing),
    ))
}

/// A body of one [`ListLine`] a line. The next page is asked for only when the one before has been taken.
struct Listing<A> {
    agent: Arc<A>,
    filter: JobFilter,
    page: Option<PageFuture>,
}

type PageFuture = Pin<Box<dyn Future<Output = Result<JobPage, Fatal>> + Send>>;

impl<A: Agent> Listing<A> {
    fn fetch(&self, token: String) -> PageFuture {
        let (agent, filter) = (Arc::clone(&self.agent), self.filter.clone());
        Box::pin(async move {
            let page = timeout(QUICK, agent.jobs(filter, Some(token))).await;
            page.unwrap_or_else(|_| Err(late(QUICK)))
        })
    }
}

impl<A: Agent> hyper::body::Body for Listing<A> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        while let Some(page) = &mut self.page {
            let page = ready!(page.as_mut().poll(context));
            let (lines, next) = match page {
                Ok(page) => (lines(page.jobs.into_iter().map(ListLine::job)), page.next),
                Err(fatal) => (
                    lines([ListLine::Failure {
                        failure: fatal.into(),
                    }]),
                    None,
                ),
            };
            self.page = next.map(|token| self.fetch(token));
            if !lines.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(lines))));
            }
        }
        Poll::Ready(None)
    }
}

fn lines(lines: impl IntoIterator<Item = ListLine>) -> Bytes {
    let mut text = Vec::new();
    for line in lines {
        // Text and numbers, into memory: this cannot fail.
        if serde_json::to_writer(&mut text, &line).is_ok() {
            text.push(b'\n');
        }
    }
    text.into()
}

struct Failed(Fatal);

impl From<Fatal> for Failed {
    fn from(fatal: Fatal) -> Self {
        Self(fatal)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let status = match self.0.exit {
            Exit::Usage => StatusCode::BAD_REQUEST,
            Exit::NoInput => StatusCode::NOT_FOUND,
            Exit::Permission => StatusCode::FORBIDDEN,
            Exit::Unavailable | Exit::NotYet => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(Failure::from(self.0))).into_response()
    }
}

fn late(limit: Duration) -> Fatal {
    let limit = humantime::format_duration(limit);
    Fatal::new(
        Exit::Failed,
        format_args!("the agent had no answer within {limit}"),
    )
}

const SEND: &str = "/v1/send";
/// Most bytes of a request, its head aside.
const MAX_REQUEST: u32 = 1024 * 1024;
/// A request of no more bytes takes none of its user's room.
const SMALL: u32 = 64 * 1024;
/// Most bytes of a request's head.
const MAX_HEAD: usize = 64 * 1024;
/// Within this a request's bytes come, once its head is there.
const ASKING: Duration = Duration::from_secs(5);
const GRACE: Duration = Duration::from_secs(2);
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
