//! One side of a link without registry, socket and TLS.

use std::sync::Arc;

use dropwire_protocol::{AgentId, Local, message::Hello};
use tokio::{
    io::DuplexStream,
    sync::{Barrier, mpsc, watch},
};
use tokio_util::sync::CancellationToken;

use super::harness::{File, Store};
use crate::{
    identity::Identity,
    link::{
        LinkEvent, Request, Sink as _, Timing,
        driver::{Ends, Orders, driver},
        handshake::greet,
        rate::Rate,
        wire::{Counted, Traffic},
    },
};

/// An agent as the driver sees it.
pub(super) struct Side {
    pub(super) sink: Arc<Store>,
    peer: AgentId,
    requests: (mpsc::Sender<Request>, Option<mpsc::Receiver<Request>>),
}

impl Side {
    pub(super) fn new(identity: &Arc<Identity>, peer: &Arc<Identity>) -> Self {
        let (give, take) = mpsc::channel(16);
        Self {
            sink: Store::new(identity),
            peer: peer.id(),
            requests: (give, Some(take)),
        }
    }

    pub(super) async fn offer(&mut self, count: u8, size: usize) {
        for number in 0..count {
            let file = File::new([self.peer.0[0] ^ number; 16], size, false);
            let _ = self.requests.0.send(Request::Offer(file.outgoing())).await;
        }
    }

    /// Runs until `count` transfers of either side are delivered.
    pub(super) async fn run(&mut self, stream: DuplexStream, count: usize, together: &Barrier) {
        let timing = Timing::default();
        let hello = Hello {
            version_min: 0,
            version_max: 0,
            name: "side".into(),
            software: "test".into(),
            window: 1 << 20,
            max_open: 16,
            run: None,
        };
        let (ping_after, dead_after) = (timing.ping_after, timing.dead_after);
        let local = Local {
            hello,
            max_file_size: None,
            ping_after,
            dead_after,
        };
        let traffic = Arc::new(Traffic::default());
        let link = greet(Counted::new(stream, traffic.clone()), traffic, local, &timing)
            .await
            .unwrap();
        let (commands, outcomes) = self.sink.attach(self.peer);
        let (events, mut told) = mpsc::channel(1);
        let (_orders, orders) = watch::channel(Orders::default());
        let cancel = CancellationToken::new();
        let unlimited = Arc::new(Rate::new(None));
        let ends = Ends {
            commands,
            outcomes,
            requests: self.requests.1.take().unwrap(),
            events,
            shared_key: Box::new(drop),
            orders,
            cancel: cancel.clone(),
            upload: unlimited.clone(),
            download: unlimited,
            timing,
        };
        let listen = async {
            for _ in 0..count {
                assert!(matches!(told.recv().await, Some(LinkEvent::Delivered { .. })));
            }
            // The other side may still wait for our receipts.
            together.wait().await;
            told
        };
        tokio::select! {
            biased;
            _told = listen => {}
            error = driver(link, ends) => panic!("the link ended: {error:?}"),
        }
    }
}
