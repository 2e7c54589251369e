//! Client and server against each other over a real socket, with an agent that is made up.

use std::{
    fs::File,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    api::*,
    fake::{Fake, id, job, serve},
    socket,
    wire::{LocalPath, Raw},
    *,
};
use crate::error::Exit;

#[tokio::test]
async fn every_question_is_answered() {
    let served = serve(Fake::default());
    let client = &served.client;
    assert_eq!(
        client.status().await.unwrap(),
        served.agent.status().await.unwrap()
    );
    assert_eq!(client.job(&id(3)).await.unwrap(), job(3, JobState::Sending));

    let why = client.why(&WhyQuery::Job("abcd".into())).await.unwrap();
    assert_eq!(why, served.agent.why(WhyQuery::Job("abcd".into())).await.unwrap());
    let file = WhyQuery::File(LocalPath("/out/ä".into()));
    assert_eq!(client.why(&file).await.unwrap().sentence, format!("{file:?}"));

    let which = Selection {
        jobs: vec!["ab".into(), "cd".into()],
        ..Selection::default()
    };
    assert_eq!(
        client.retry(&which).await.unwrap(),
        Changed {
            count: 1,
            jobs: which.jobs
        }
    );
    let all = Selection {
        all: true,
        ..Selection::default()
    };
    assert_eq!(client.cancel(&all).await.unwrap().count, 1_000_000);
}

/// Names of files that hold their own names, and those files.
fn files(names: &[&str]) -> (SendRequest, Vec<Arc<File>>) {
    let folder = tempfile::tempdir().unwrap();
    let mut request = SendRequest {
        peers: vec!["office".into()],
        files: vec![],
        last: false,
    };
    let mut files = vec![];
    for name in names {
        let path = folder.path().join("file");
        std::fs::write(&path, name).unwrap();
        files.push(Arc::new(File::open(&path).unwrap()));
        request.files.push(SendFile {
            named: 0,
            name: Raw(name.as_bytes().to_vec()),
            path: LocalPath(name.into()),
            file: (0, 0),
        });
        std::fs::remove_file(path).unwrap();
    }
    (request, files)
}

#[tokio::test]
async fn files_arrive_opened_and_in_order_over_several_requests() {
    let served = serve(Fake::default());
    let mut sending = served.client.sending().await.unwrap();
    let (request, passed) = files(&["a b", "ä"]);
    assert_eq!(sending.pass(&request, passed).await.unwrap().taken, 2);
    let (request, passed) = files(&["c"]);
    assert_eq!(sending.pass(&request, passed).await.unwrap().jobs, [""; 0]);
    let (mut request, passed) = files(&[]);
    request.last = true;
    let reply = sending.pass(&request, passed).await.unwrap();
    assert_eq!(reply.jobs, ["\"a b\" a b", "\"ä\" ä", "\"c\" c", "office"]);
}

#[tokio::test]
async fn a_path_that_is_not_utf_8_arrives_as_it_is() {
    use std::os::unix::ffi::OsStringExt;
    let served = serve(Fake::default());
    let path = PathBuf::from(std::ffi::OsString::from_vec(b"/\xff\n".to_vec()));
    let query = WhyQuery::File(LocalPath(path));
    assert_eq!(
        served.client.why(&query).await.unwrap().sentence,
        format!("{query:?}")
    );
}

#[tokio::test]
async fn the_agents_errors_keep_exit_message_and_hint() {
    let served = serve(Fake::default());
    let error = served.client.job("ffff/../&?").await.unwrap_err();
    assert_eq!(error.exit, Exit::NoInput);
    assert_eq!(error.message, "no job ffff/../&?");
    assert_eq!(error.hint.as_deref(), Some("see: dropwire jobs"));

    let filter = JobFilter {
        peer: Some("nobody & co".into()),
        state: None,
    };
    let error = served.client.jobs(&filter).await.unwrap_err();
    assert_eq!(
        (error.exit, error.message.as_str()),
        (Exit::NoInput, "no peer `nobody & co`")
    );
}

#[tokio::test]
async fn a_listing_comes_whole_and_in_order() {
    let served = serve(Fake {
        jobs: 3 * PAGE as u64 + 1,
        ..Fake::default()
    });
    let filter = JobFilter {
        state: Some(JobState::Failed),
        peer: None,
    };
    let mut lines = served.client.jobs(&filter).await.unwrap();
    for n in 0..served.agent.jobs {
        assert_eq!(lines.next().await.unwrap(), Some(job(n, JobState::Failed)));
    }
    assert_eq!(lines.next().await.unwrap(), None);
    assert_eq!(served.agent.pages_made.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn an_empty_listing_ends_at_once() {
    let served = serve(Fake::default());
    let mut lines = served.client.jobs(&JobFilter::default()).await.unwrap();
    assert_eq!(lines.next().await.unwrap(), None);
}

/// A reader that has taken one line of a million leaves the rest with the agent: only what fits the socket was made.
#[tokio::test]
async fn a_large_listing_is_made_as_it_is_read() {
    let served = serve(Fake {
        jobs: 1_000_000,
        ..Fake::default()
    });
    let mut lines = served.client.jobs(&JobFilter::default()).await.unwrap();
    assert!(lines.next().await.unwrap().is_some());
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    let made = served.agent.pages_made.load(Ordering::SeqCst);
    assert!(made < 50, "{made} of 2000 pages were made for one line");
}

#[tokio::test]
async fn a_listing_that_breaks_says_so_after_what_it_had() {
    let served = serve(Fake {
        jobs: 10 * PAGE as u64,
        broken_after: Some(1),
        ..Fake::default()
    });
    let mut lines = served.client.jobs(&JobFilter::default()).await.unwrap();
    for _ in 0..PAGE {
        assert!(lines.next().await.unwrap().is_some());
    }
    let error = lines.next().await.unwrap_err();
    assert_eq!(
        (error.exit, error.hint.as_deref()),
        (Exit::Disk, Some("look at the disk"))
    );
}

#[tokio::test]
async fn without_an_agent_the_answer_is_69_and_how_to_start_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    let error = Client::new(&path).status().await.unwrap_err();
    assert_eq!(error.exit, Exit::Unavailable);
    assert_eq!(
        error.message,
        format!("the agent is not running (no answer at {})", path.display())
    );
    assert_eq!(error.hint.as_deref(), Some("start it: dropwire run"));
}

#[tokio::test]
async fn a_socket_left_by_a_crash_is_as_good_as_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert_eq!(
        Client::new(&path).status().await.unwrap_err().exit,
        Exit::Unavailable
    );
}

#[tokio::test]
async fn the_server_ends_when_told_and_takes_its_socket_along() {
    let served = serve(Fake::default());
    served.client.status().await.unwrap();
    // An idle connection does not hold it up.
    let _idle = socket::connect(&served.path).await.unwrap();
    served.cancel.cancel();
    served.task.await.unwrap();
    assert!(!served.path.exists());
    assert_eq!(served.client.status().await.unwrap_err().exit, Exit::Unavailable);
}

/// As an agent does whose places are all taken.
#[tokio::test]
async fn a_connection_that_is_closed_for_another_is_no_agent_that_ended() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let error = Client::new(&path).status().await.unwrap_err();
    assert_eq!(error.exit, Exit::Unavailable);
    assert!(error.message.contains("busy"), "{error}");
    assert!(error.hint.unwrap().contains("try again"));
}

#[tokio::test]
async fn an_agent_that_dies_within_an_answer_is_named() {
    let served = serve(Fake {
        jobs: 1_000_000,
        ..Fake::default()
    });
    let mut lines = served.client.jobs(&JobFilter::default()).await.unwrap();
    lines.next().await.unwrap();
    served.task.abort();
    served.cancel.cancel();
    let error = loop {
        match lines.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the listing was cut and nobody said so"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.exit, Exit::Unavailable);
}

/// Half a request, of as many connections as one user may have and more.
#[tokio::test]
async fn whoever_asks_nothing_keeps_nobody_from_asking() {
    let served = serve(Fake::default());
    let halves = [
        "",
        "POST /v1/why HTT",
        "POST /v1/why HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{",
    ];
    let mut half_sent = vec![];
    for n in 0..2 * places::OF_USER {
        let mut stream = socket::connect(&served.path).await.unwrap();
        // One whose place went to another is closed: no error here.
        let _ = stream.write_all(halves[n % halves.len()].as_bytes()).await;
        half_sent.push(stream);
    }
    served.client.status().await.unwrap();
    assert_eq!(
        served.client.job(&id(3)).await.unwrap(),
        job(3, JobState::Sending)
    );
}

/// As of a user whose disk does not answer: the commands that wait for it, and for those that do, hold no place.
#[tokio::test]
async fn sends_that_wait_keep_nobody_from_asking() {
    let served = serve(Fake {
        hangs: true,
        ..Fake::default()
    });
    let body = serde_json::to_string(&files(&[]).0).unwrap();
    let length = body.len();
    let request = format!(
        "POST /v1/send HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let mut waiting = vec![];
    for _ in 0..2 * places::OF_USER {
        let mut stream = socket::connect(&served.path).await.unwrap();
        // One whose place went to another is closed: no error here.
        let _ = stream.write_all(request.as_bytes()).await;
        waiting.push(stream);
    }
    for _ in 0..10 {
        served.client.status().await.unwrap();
    }
}

/// What the server says to these bytes, until it closes the connection.
async fn answer(served: &fake::Served, question: &[u8]) -> String {
    let mut stream = socket::connect(&served.path).await.unwrap();
    // A server that closes on unread bytes may reset; what it said before stands.
    let _ = stream.write_all(question).await;
    let mut answer = vec![];
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_request_that_is_too_large_is_refused_before_it_is_kept() {
    let served = serve(Fake::default());
    let head = "POST /v1/why HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let announced = format!("{head}content-length: {}\r\n\r\n", 2 << 20);
    let mut unannounced = format!("{head}transfer-encoding: chunked\r\n\r\n").into_bytes();
    for _ in 0..40 {
        unannounced.extend_from_slice(b"8000\r\n");
        unannounced.extend_from_slice(&[b' '; 0x8000]);
        unannounced.extend_from_slice(b"\r\n");
    }
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    for (question, expected) in [
        (announced.as_bytes(), "larger than the agent takes"),
        (&unannounced, "larger than the agent takes"),
        (long.as_bytes(), "HTTP/1.1 4"),
    ] {
        let answer = answer(&served, question).await;
        assert!(
            answer.starts_with("HTTP/1.1 4") && answer.contains(expected),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn a_request_that_does_not_come_whole_is_given_up() {
    let served = serve(Fake::default());
    let half = "POST /v1/why HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{";
    let said = tokio::time::timeout(Duration::from_secs(60), answer(&served, half.as_bytes())).await;
    assert!(said.unwrap().contains("did not come whole in time"));
}

/// Large requests that do not come whole take the room of large ones only.
#[tokio::test]
async fn large_requests_share_their_users_room() {
    let served = serve(Fake::default());
    let half = "POST /v1/why HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 1048576\r\n\r\n{";
    let mut halves = vec![];
    for _ in 0..5 {
        let mut stream = socket::connect(&served.path).await.unwrap();
        stream.write_all(half.as_bytes()).await.unwrap();
        halves.push(stream);
    }
    let job = |length| WhyQuery::Job("a".repeat(length));
    served.client.why(&job(1000)).await.unwrap();
    drop(halves);
    served.client.why(&job(1_000_000)).await.unwrap();
}

#[tokio::test]
async fn what_is_no_question_is_refused_and_the_server_lives_on() {
    let served = serve(Fake::default());
    let too_large = format!(
        "POST /v1/send HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{{",
        u64::MAX
    );
    let cases = [
        ("GET /v1/nothing HTTP/1.1\r\nhost: x\r\n\r\n", "HTTP/1.1 404"),
        (
            "GET /v1/jobs?state=unheard HTTP/1.1\r\nhost: x\r\n\r\n",
            "HTTP/1.1 400",
        ),
        ("GET /v1/send HTTP/1.1\r\nhost: x\r\n\r\n", "HTTP/1.1 405"),
        (
            "POST /v1/why HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1\r\n\r\n?",
            "HTTP/1.1 400",
        ),
        ("no HTTP at all\r\n\r\n", "HTTP/1.1 400"),
        (too_large.as_str(), "HTTP/1.1 4"),
    ];
    for (question, expected) in cases {
        let answer = answer(&served, question.as_bytes()).await;
        assert!(answer.starts_with(expected), "{question:?} got {answer:?}");
    }
    served.client.status().await.unwrap();
}
