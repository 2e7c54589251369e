//! The wire itself, against a peer that sends back what it gets.

use std::{
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

use super::{Fault, Proxy, Toward};
use crate::harness::until;

/// A peer that sends back what it gets, behind a proxy.
fn echo() -> (Proxy, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
    let proxy = Proxy::start();
    proxy.forward_to(listener.local_addr().ok());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut back = stream.try_clone().expect("a second handle");
            thread::spawn(move || io::copy(&mut &stream, &mut back));
        }
    });
    let stream = TcpStream::connect(proxy.address()).expect("the proxy listens");
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("a timeout");
    (proxy, stream)
}

fn answer(stream: &mut TcpStream, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).map(|()| bytes)
}

#[test]
fn passes_and_counts() {
    for fault in [
        Fault::None,
        Fault::Slice(1),
        Fault::Delay(Duration::from_millis(1)),
    ] {
        let (proxy, mut stream) = echo();
        proxy.set(Toward::Dialler, fault);
        stream.write_all(b"hello").expect("sent");
        assert_eq!(answer(&mut stream, 5).expect("echoed"), b"hello");
        // Counted once written: a moment after the answer may be here.
        let counts = || (proxy.passed(Toward::Listener), proxy.passed(Toward::Dialler));
        until("both counted", || counts() == (5, 5));
    }
}

#[test]
fn flips_one_byte_once() {
    let (proxy, mut stream) = echo();
    proxy.set(Toward::Listener, Fault::Flip(2));
    for (sent, expected) in [(b"abcd", *b"ab\x9cd"), (b"abcd", *b"abcd")] {
        stream.write_all(sent).expect("sent");
        assert_eq!(answer(&mut stream, 4).expect("echoed"), expected);
    }
    assert_eq!(proxy.fired(Toward::Listener), 1);
}

#[test]
fn cuts_after_the_given_byte() {
    for fault in [Fault::Reset(3), Fault::Close(3)] {
        let (proxy, mut stream) = echo();
        proxy.set(Toward::Listener, fault);
        stream.write_all(b"abcdef").expect("sent");
        let mut got = Vec::new();
        let end = stream.read_to_end(&mut got);
        assert!(got.len() <= 3 && b"abc".starts_with(&got), "{got:?}");
        match fault {
            Fault::Reset(_) => assert_eq!(end.expect_err("reset").kind(), io::ErrorKind::ConnectionReset),
            _ => assert!(end.is_ok()),
        }
        assert_eq!(
            (proxy.fired(Toward::Listener), proxy.passed(Toward::Listener)),
            (1, 3)
        );
    }
}

#[test]
fn stalls_until_lifted() {
    let (proxy, mut stream) = echo();
    proxy.set(Toward::Listener, Fault::Stall(3));
    stream.write_all(b"abcdef").expect("sent");
    assert_eq!(answer(&mut stream, 3).expect("echoed"), b"abc");
    until("the stall", || proxy.fired(Toward::Listener) == 1);
    assert_eq!(proxy.passed(Toward::Listener), 3);
    proxy.set(Toward::Listener, Fault::None);
    assert_eq!(answer(&mut stream, 3).expect("echoed"), b"def");
}

#[test]
fn refuses_while_told_to() {
    let (proxy, _) = echo();
    proxy.refuse(true);
    let mut refused = TcpStream::connect(proxy.address()).expect("the port is open");
    assert!(answer(&mut refused, 1).is_err());
    proxy.refuse(false);
    let mut taken = TcpStream::connect(proxy.address()).expect("the port is open");
    taken.write_all(b"x").expect("sent");
    assert_eq!(answer(&mut taken, 1).expect("echoed"), b"x");
}

#[test]
fn cuts_all_there_are_and_takes_new_ones() {
    let (proxy, mut stream) = echo();
    stream.write_all(b"x").expect("sent");
    assert_eq!(answer(&mut stream, 1).expect("echoed"), b"x");
    proxy.cut_all();
    assert!(answer(&mut stream, 1).is_err());
    let mut next = TcpStream::connect(proxy.address()).expect("the port is open");
    next.write_all(b"y").expect("sent");
    assert_eq!(answer(&mut next, 1).expect("echoed"), b"y");
}
