//! What a sender asks of the receiver beside its transfers: how one that it gave up has ended, and to forget those
//! whose outcome it has. Only so many are unanswered at a time; the rest wait here.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    Error, Message, Mtime, TransferId,
    message::{Forget, LateTime, MAX_ASKED, MAX_BATCH, Withdraw},
};

#[derive(Default)]
pub(crate) struct Questions {
    withdraw: Asked,
    forget: Asked,
    /// Of those that wait to be forgotten.
    late: BTreeMap<TransferId, Mtime>,
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

    /// The next question that may be asked now.
    pub(crate) fn poll(&mut self) -> Option<Message> {
        let room = MAX_ASKED.saturating_sub(self.withdraw.unanswered.len() + self.forget.unanswered.len());
        if let Some(id) = self.withdraw.ask(room.min(1)).pop() {
            return Some(Message::Withdraw(Withdraw { id }));
        }
        let ids = self.forget.ask(room.min(MAX_BATCH));
        if ids.is_empty() {
            return None;
        }
        let late = |id: &TransferId| self.late.remove(id).map(|mtime| LateTime { id: *id, mtime });
        let times: Vec<_> = ids.iter().filter_map(late).collect();
        let times = (!times.is_empty()).then_some(times);
        Some(Message::Forget(Forget { ids, times }))
    }

    pub(crate) fn answered_withdraw(&mut self, message: &str, id: TransferId) -> Result<(), Error> {
        let asked = self.withdraw.unanswered.remove(&id);
        asked
            .then_some(())
            .ok_or_else(|| Error::misplaced(message, id, "was not asked to be withdrawn"))
    }

    pub(crate) fn answered_forget(&mut self, ids: &[TransferId]) -> Result<(), Error> {
        ids.iter().try_for_each(|id| {
            let asked = self.forget.unanswered.remove(id);
            asked
                .then_some(())
                .ok_or_else(|| Error::misplaced("Forgotten", *id, "was not asked to be forgotten"))
        })
    }
}

impl Asked {
    fn add(&mut self, id: TransferId) {
        if !self.unanswered.contains(&id) {
            self.waiting.insert(id);
        }
    }

    fn ask(&mut self, most: usize) -> Vec<TransferId> {
        let ids: Vec<_> = self.waiting.iter().copied().take(most).collect();
        for id in &ids {
            self.waiting.remove(id);
            self.unanswered.insert(*id);
        }
        ids
    }
}
