//! Answers the commands: a router over the control socket. Each connection carries one request.
//!
//! Bounded in every direction: connections, a request's size, the time a request may take to come and to be answered. A
//! listing is drawn from the agent page by page as its reader takes it, so it never lies in memory whole.

use std::{
    convert::Infallible,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Path, Query, Request, State},
    http::{StatusCode, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper::{body::Frame, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Agent, LONG, Listener, QUICK,
    api::{
        AdoptReply, AdoptRequest, Changed, JobFilter, JobPage, JobReport, ListLine, Selection, SendReply,
        SendRequest, StatusReport, WhyQuery, WhyReport,
    },
    socket::Stream,
    wire::Failure,
};
use crate::error::{Exit, Fatal};

/// Answers until `cancel`; then removes the socket, lets open requests end for two seconds, and returns.
pub async fn serve<A: Agent>(listener: Listener, agent: Arc<A>, cancel: CancellationToken) {
    let router = router(agent);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let Some((slot, stream)) = cancel.run_until_cancelled(next).await else {
            break;
        };
        match stream {
            Ok(stream) => {
                let (router, cancel) = (router.clone(), cancel.clone());
                connections.spawn(async move {
                    connection(stream, router, cancel).await;
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: let others end before the next try.
                tracing::warn!(%error, "the control socket takes no connection");
                cancel.run_until_cancelled(tokio::time::sleep(ACCEPT_PAUSE)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn connection(stream: Stream, router: Router, cancel: CancellationToken) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(QUICK)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = cancel.cancelled() => {
            connection.as_mut().graceful_shutdown();
            timeout(GRACE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a control connection broke");
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
        .route("/v1/send", post(send::<A>))
        .route("/v1/retry", post(retry::<A>))
        .route("/v1/cancel", post(cancel::<A>))
        .route("/v1/adopt", post(adopt::<A>))
        .layer(from_fn(|request, next| within(LONG, request, next)));
    quick
        .merge(long)
        .layer(DefaultBodyLimit::max(MAX_REQUEST))
        .with_state(agent)
}

async fn within(limit: Duration, request: Request, next: Next) -> Result<Response, Failed> {
    timeout(limit, next.run(request))
        .await
        .map_err(|_| Failed(late(limit)))
}

type Answer<T> = Result<Json<T>, Failed>;

async fn status<A: Agent>(State(agent): State<Arc<A>>) -> Answer<StatusReport> {
    Ok(Json(agent.status().await?))
}

async fn job<A: Agent>(State(agent): State<Arc<A>>, Path(id): Path<String>) -> Answer<JobReport> {
    Ok(Json(agent.job(id).await?))
}

async fn why<A: Agent>(State(agent): State<Arc<A>>, Json(query): Json<WhyQuery>) -> Answer<WhyReport> {
    Ok(Json(agent.why(query).await?))
}

async fn send<A: Agent>(State(agent): State<Arc<A>>, Json(request): Json<SendRequest>) -> Answer<SendReply> {
    Ok(Json(agent.send(request).await?))
}

async fn retry<A: Agent>(State(agent): State<Arc<A>>, Json(which): Json<Selection>) -> Answer<Changed> {
    Ok(Json(agent.retry(which).await?))
}

async fn cancel<A: Agent>(State(agent): State<Arc<A>>, Json(which): Json<Selection>) -> Answer<Changed> {
    Ok(Json(agent.cancel(which).await?))
}

async fn adopt<A: Agent>(
    State(agent): State<Arc<A>>,
    Json(request): Json<AdoptRequest>,
) -> Answer<AdoptReply> {
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
        Failed(fatal)
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

const MAX_CONNECTIONS: usize = 64;
const MAX_REQUEST: usize = 16 * 1024 * 1024;
const GRACE: Duration = Duration::from_secs(2);
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
