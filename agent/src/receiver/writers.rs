//! The large transfers of one link, each with a thread of its own that takes its orders.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Weak,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use dropwire_protocol::{TransferId, receiver::OfferSequence};

use super::incoming::Order;
use crate::failpoints;

/// Most of them at a time, those included that were released and still come to their end.
const MOST: usize = 64;
/// Most orders that wait for a writer; their bytes are bounded by the link's window and by all links' room.
const ORDERS: usize = 256;

/// Those of one link. One that has ended by itself is let go when the next one starts.
#[derive(Default)]
pub(super) struct Writers {
    open: HashMap<TransferId, Writer>,
    /// Released: they end as soon as they see it.
    ending: Vec<JoinHandle<()>>,
}

struct Writer {
    sequence: OfferSequence,
    orders: Arc<SyncSender<Order>>,
    thread: JoinHandle<()>,
}

impl Writers {
    /// Are there as many as there may be?
    pub(super) fn is_full(&mut self) -> bool {
        if !failpoints::mutant("large-ended") {
            self.open.retain(|_, writer| !writer.thread.is_finished());
        }
        self.ending.retain(|thread| !thread.is_finished());
        self.open.len() + self.ending.len() >= MOST
    }

    /// Starts one. It gets its orders, and a handle to wake itself with. An error: the system gives no thread.
    pub(super) fn start(
        &mut self,
        id: TransferId,
        sequence: OfferSequence,
        run: impl FnOnce(&Receiver<Order>, Weak<SyncSender<Order>>) + Send + 'static,
    ) -> io::Result<()> {
        let (sender, orders) = sync_channel(ORDERS);
        let sender = Arc::new(sender);
        let wake = Arc::downgrade(&sender);
        let thread = thread::Builder::new()
            .name("inbox-large".into())
            .spawn(move || run(&orders, wake))?;
        self.release(id);
        let writer = Writer {
            sequence,
            orders: sender,
            thread,
        };
        self.open.insert(id, writer);
        Ok(())
    }

    /// Is this offer of the transfer one of these?
    pub(super) fn has(&self, id: TransferId, sequence: OfferSequence) -> bool {
        self.open
            .get(&id)
            .is_some_and(|writer| writer.sequence == sequence)
    }

    /// Hands an order on, waiting while too many wait; nothing happens if that offer has ended and said why.
    pub(super) fn pass_on(&mut self, id: TransferId, sequence: OfferSequence, order: Order) {
        let writer = self.open.get(&id).filter(|writer| writer.sequence == sequence);
        if writer.is_some_and(|writer| writer.orders.send(order).is_err()) {
            self.release(id);
        }
    }

    /// Lets the transfer's writer come to its end. Was there one?
    pub(super) fn release(&mut self, id: TransferId) -> bool {
        let released = self.open.remove(&id);
        let was_there = released.is_some();
        self.ending.extend(released.map(|writer| writer.thread));
        was_there
    }

    /// Lets all of them come to their ends, for which the returned threads are to be waited for.
    pub(super) fn release_all(self) -> Vec<JoinHandle<()>> {
        let open = self.open.into_values().map(|writer| writer.thread);
        self.ending.into_iter().chain(open).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn id(n: usize) -> TransferId {
        TransferId([n as u8; 16])
    }

    /// Takes orders until it is released.
    fn serve(orders: &Receiver<Order>, _: Weak<SyncSender<Order>>) {
        while orders.recv().is_ok() {}
    }

    #[test]
    fn those_that_ended_by_themselves_leave_nothing_behind() {
        let mut writers = Writers::default();
        for n in 0..2 * MOST {
            writers.start(id(n), OfferSequence(1), |_, _| ()).unwrap();
            while !writers.open[&id(n)].thread.is_finished() {
                thread::yield_now();
            }
            assert!(!writers.is_full());
            assert!(writers.open.is_empty() && writers.ending.is_empty());
        }
    }

    #[test]
    fn one_that_is_released_counts_until_it_has_ended() {
        let mut writers = Writers::default();
        let (go_on, waits) = mpsc::channel::<()>();
        writers
            .start(id(0), OfferSequence(1), move |_, _| {
                let _ = waits.recv();
            })
            .unwrap();
        for n in 1..MOST {
            writers.start(id(n), OfferSequence(1), serve).unwrap();
        }
        assert!(writers.is_full());
        assert!(writers.release(id(0)) && !writers.release(id(0)));
        assert!(writers.is_full());
        drop(go_on);
        while writers.is_full() {
            thread::yield_now();
        }
        for thread in writers.release_all() {
            thread.join().unwrap();
        }
    }

    #[test]
    fn an_order_goes_to_its_opening_only() {
        let mut writers = Writers::default();
        let (tell, told) = mpsc::channel();
        writers
            .start(id(0), OfferSequence(2), move |orders, _| {
                while orders.recv().is_ok() {
                    tell.send(()).unwrap();
                }
            })
            .unwrap();
        assert!(writers.has(id(0), OfferSequence(2)) && !writers.has(id(0), OfferSequence(1)));
        for sequence in [1, 2, 3] {
            writers.pass_on(id(0), OfferSequence(sequence), Order::Wake);
        }
        writers.pass_on(id(1), OfferSequence(2), Order::Wake);
        for thread in writers.release_all() {
            thread.join().unwrap();
        }
        assert_eq!(told.iter().count(), 1);
    }
}
