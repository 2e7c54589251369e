//! Files over a pair of sockets.

use std::{
    io::{IoSlice, Read as _, pipe},
    mem::MaybeUninit,
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// Both ends, and what comes in.
fn ends(permits: usize) -> (Carrier, Departures, Carrier, Arrivals) {
    let (here, there) = Stream::pair().unwrap();
    let departures = Departures::default();
    let arrivals = Arrivals::new(Arc::new(Semaphore::new(permits)));
    (
        Carrier::sending(here, departures.clone()),
        departures,
        Carrier::receiving(there, arrivals.clone()),
        arrivals,
    )
}

fn file(text: &str) -> Arc<File> {
    let mut file = tempfile::tempfile().unwrap();
    io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    io::Seek::rewind(&mut file).unwrap();
    Arc::new(file)
}

fn texts(passed: &Passed) -> Vec<String> {
    let read = |file: &File| io::read_to_string(file).unwrap();
    passed.files.iter().map(read).collect()
}

#[tokio::test]
async fn files_come_with_the_bytes_that_they_were_sent_with() {
    let (mut here, departures, mut there, arrivals) = ends(100);
    for round in [vec!["a", "b", "c"], vec![], vec!["d"]] {
        departures.set(round.iter().map(|text| file(text)).collect());
        here.write_all(b"xy").await.unwrap();
        let mut bytes = [0; 2];
        there.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"xy");
        let passed = arrivals.take();
        assert_eq!(texts(&passed), round);
        for file in &passed.files {
            let flags = rustix::io::fcntl_getfd(file).unwrap();
            assert!(
                flags.contains(rustix::io::FdFlags::CLOEXEC),
                "no child inherits it"
            );
        }
    }
    // None goes the other way.
    drop(arrivals.take());
    there.write_all(b"z").await.unwrap();
    assert_eq!(here.read_u8().await.unwrap(), b'z');
}

/// Ends of one pipe: its other end tells when all of them are closed.
fn pipe_ends(count: usize) -> (io::PipeReader, Vec<Arc<File>>) {
    let (reader, writer) = pipe().unwrap();
    let ends = (0..count).map(|_| Arc::new(File::from(OwnedFd::from(writer.try_clone().unwrap()))));
    (reader, ends.collect())
}

async fn all_are_closed(mut reader: io::PipeReader) {
    let closed = tokio::task::spawn_blocking(move || reader.read(&mut [0]).unwrap());
    let closed = tokio::time::timeout(Duration::from_secs(60), closed).await;
    assert_eq!(closed.expect("not all are closed").unwrap(), 0);
}

#[tokio::test]
async fn what_there_is_no_room_for_is_not_taken_in() {
    let (mut here, departures, mut there, arrivals) = ends(3);
    let (reader, files) = pipe_ends(5);
    departures.set(files);
    here.write_all(b"x").await.unwrap();
    there.read_u8().await.unwrap();
    let passed = arrivals.take();
    assert_eq!(passed.files.len(), 3);
    assert_eq!(arrivals.permits.available_permits(), 0);
    let permits = Arc::clone(&arrivals.permits);
    drop(passed);
    all_are_closed(reader).await;
    let all = permits.acquire_many(3);
    tokio::time::timeout(Duration::from_secs(60), all)
        .await
        .unwrap()
        .unwrap()
        .forget();
}

/// The system itself lets go of the others, so that no thread of ours may hang with one of them.
#[tokio::test]
async fn no_descriptor_is_had_for_which_there_is_no_room() {
    for room in 0..=GROUP {
        let (here, there) = Stream::pair().unwrap();
        let (reader, files) = pipe_ends(GROUP);
        let descriptors: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(GROUP))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        sendmsg(&here, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
        drop(descriptors);
        drop(files);
        let (bytes, taken) = system::receive(&there, &mut [0; 9], room).unwrap();
        assert_eq!((bytes, taken.len()), (1, room));
        drop(taken);
        all_are_closed(reader).await;
    }
}

/// Also of somebody who does not keep to the bounds, and who never makes a request of it.
#[tokio::test]
async fn a_connection_keeps_one_group_and_no_more() {
    let (here, there) = Stream::pair().unwrap();
    let arrivals = Arrivals::new(Arc::new(Semaphore::new(1000)));
    let mut there = Carrier::receiving(there, arrivals.clone());
    let (reader, files) = pipe_ends(3 * GROUP);
    let descriptors: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
    for descriptors in [&descriptors[..GROUP], &descriptors[GROUP..]] {
        here.writable().await.unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2 * GROUP))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        sendmsg(&here, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
        there.read_u8().await.unwrap();
    }
    drop(files);
    assert_eq!(arrivals.permits.available_permits(), 1000 - GROUP);
    drop((there, arrivals));
    all_are_closed(reader).await;
}
