//! What a sender asks of the receiver beside its transfers: how one that it gave up has ended, to forget those
//! whose outcome it has, and to give files that it keeps another time. Only so many are unanswered at a time; the rest
//! wait here.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    Error, Message, Mtime, TransferId, Violation,
    message::{Forget, LateTime, MAX_ASKED, MAX_BATCH, Withdraw},
};

#[derive(Default)]
pub(crate) struct Questions {
    withdraw: Asked,
    forget: Asked,
    /// Of those that wait to be forgotten.
    late: BTreeMap<TransferId, Mtime>,
    /// What is not to be forgotten. Both are answered by Forgotten, so of one transfer only one is asked at a time.
    retime: BTreeMap<TransferId, Mtime>,
    retiming: BTreeSet<TransferId>,
}

#[derive(Default)]
struct Asked {
    waiting: BTreeSet<TransferId>,
    unanswered: BTreeSet<TransferId>,
}

impl Questions {
    pub(crate) fn withdrawing(&self, id: TransferId) -> bool {
        self.withdraw.waiting.contains(&id) || self.withdraw.unanswered.contains(&id)
    }

    pub(crate) fn withdraw(&mut self, id: TransferId) {
        self.withdraw.add(id);
    }

    pub(crate) fn forget(&mut self, ids: Vec<TransferId>, times: Vec<LateTime>) {
        self.late
            .extend(times.into_iter().map(|late| (late.id, late.mtime)));
        ids.into_iter().for_each(|id| self.forget.add(id));
    }

    pub(crate) fn retime(&mut self, times: Vec<LateTime>) {
        self.retime
            .extend(times.into_iter().map(|late| (late.id, late.mtime)));
    }

    /// The next question that may be asked now.
    pub(crate) fn poll(&mut self) -> Option<Message> {
        let unanswered = self.withdraw.unanswered.len() + self.forget.unanswered.len() + self.retiming.len();
        let room = MAX_ASKED.saturating_sub(unanswered);
        if let Some(id) = self.withdraw.ask(room.min(1), |_| true).pop() {
            return Some(Message::Withdraw(Withdraw { id }));
        }
        let times = self.ask_to_retime(room.min(MAX_BATCH));
        if !times.is_empty() {
            let (ids, times) = (Vec::new(), Some(times));
            return Some(Message::Forget(Forget { ids, times }));
        }
        let (retime, retiming) = (&self.retime, &self.retiming);
        let is_free = |id: &TransferId| !retime.contains_key(id) && !retiming.contains(id);
        let ids = self.forget.ask(room.min(MAX_BATCH), is_free);
        if ids.is_empty() {
            return None;
        }
        let late = |id: &TransferId| self.late.remove(id).map(|mtime| LateTime { id: *id, mtime });
        let times: Vec<_> = ids.iter().filter_map(late).collect();
        let times = (!times.is_empty()).then_some(times);
        Some(Message::Forget(Forget { ids, times }))
    }

    fn ask_to_retime(&mut self, most: usize) -> Vec<LateTime> {
        let is_free = |id: &TransferId| !self.forget.unanswered.contains(id) && !self.retiming.contains(id);
        let free = self.retime.iter().filter(|(id, _)| is_free(id)).take(most);
        let times: Vec<_> = free
            .map(|(id, mtime)| LateTime {
                id: *id,
                mtime: *mtime,
            })
            .collect();
        for late in &times {
            self.retime.remove(&late.id);
            self.retiming.insert(late.id);
        }
        times
    }

    pub(crate) fn answered_withdraw(&mut self, message: &'static str, id: TransferId) -> Result<(), Error> {
        let asked = self.withdraw.unanswered.remove(&id);
        asked
            .then_some(())
            .ok_or_else(|| Error::violation(message, id, Violation::NotAsked))
    }

    /// Those that are forgotten, and those that only had their times set.
    pub(crate) fn answered_forget(
        &mut self,
        ids: Vec<TransferId>,
    ) -> Result<(Vec<TransferId>, Vec<TransferId>), Error> {
        let (mut forgotten, mut retimed) = (Vec::new(), Vec::new());
        for id in ids {
            if self.forget.unanswered.remove(&id) {
                forgotten.push(id);
            } else if self.retiming.remove(&id) {
                retimed.push(id);
            } else {
                return Err(Error::violation("Forgotten", id, Violation::NotAsked));
            }
        }
        Ok((forgotten, retimed))
    }
}

impl Asked {
    fn add(&mut self, id: TransferId) {
        if !self.unanswered.contains(&id) {
            self.waiting.insert(id);
        }
    }

    fn ask(&mut self, most: usize, may_be: impl Fn(&TransferId) -> bool) -> Vec<TransferId> {
        let ids: Vec<_> = self.waiting.iter().copied().filter(may_be).take(most).collect();
        for id in &ids {
            self.waiting.remove(id);
            self.unanswered.insert(*id);
        }
        ids
    }
}
