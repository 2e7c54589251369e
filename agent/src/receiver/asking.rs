//! Questions to a disk that may never answer: one at a time, so that whoever asks again and again leaves no more threads
//! behind than that one has.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::spawn_blocking, time::timeout};

use crate::poison::Unpoisoned as _;

/// How long an answer is waited for where somebody waits at a terminal.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// The questions of one kind, and their last answer.
pub(super) struct Asking<T> {
    /// Since when nobody has answered the one that is open.
    open: Arc<Mutex<Option<Instant>>>,
    answer: watch::Sender<T>,
}

impl<T: Clone + Default + Send + Sync + 'static> Default for Asking<T> {
    fn default() -> Self {
        Self {
            open: Arc::default(),
            answer: watch::Sender::default(),
        }
    }
}

impl<T: Clone + Send + Sync + 'static> Asking<T> {
    /// Asks, unless a question is open, and waits for the answer with so much `patience`. If that does not come: the last
    /// one, and for how long this one has been waited for.
    pub(super) async fn ask(
        &self,
        patience: Duration,
        question: impl FnOnce() -> T + Send + 'static,
    ) -> (T, Option<Duration>) {
        let mut answers = self.answer.subscribe();
        let since = {
            let mut open = self.open.lock().unpoisoned();
            let is_free = open.is_none() || crate::failpoints::mutant("one-question");
            let since = *open.get_or_insert_with(Instant::now);
            if is_free {
                let (open, answer) = (Open(Arc::clone(&self.open)), self.answer.clone());
                spawn_blocking(move || {
                    let told = question();
                    drop(open); // first: whoever hears may ask again
                    answer.send_replace(told);
                });
            }
            since
        };
        let silent = match timeout(patience, answers.changed()).await {
            Ok(_) => None,
            Err(_) => Some(since.elapsed()),
        };
        let answer = answers.borrow().clone();
        (answer, silent)
    }
}

/// The question that is open, until it is answered or has panicked.
struct Open(Arc<Mutex<Option<Instant>>>);

impl Drop for Open {
    fn drop(&mut self) {
        if !std::thread::panicking() || !crate::failpoints::mutant("question-panics") {
            *self.0.lock().unpoisoned() = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    };

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_question_that_panics_is_no_longer_open() {
        let asking = Asking::<u32>::default();
        let (told, silent) = asking.ask(Duration::ZERO, || panic!("asked for")).await;
        assert!(told == 0 && silent.is_some());
        let over = async {
            while asking.open.lock().unwrap().is_some() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), over).await.expect("it is over");
        assert_eq!(asking.ask(LONG, || 9).await, (9, None));
    }

    #[tokio::test]
    async fn one_question_is_open_at_a_time_and_the_last_answer_serves() {
        let (asking, asked) = (Asking::<u32>::default(), Arc::new(AtomicUsize::new(0)));
        assert_eq!(asking.ask(LONG, || 7).await, (7, None));
        let (answers, answer) = mpsc::channel::<u32>();
        let answer = Arc::new(Mutex::new(answer));
        let hangs = || {
            let (asked, answer) = (Arc::clone(&asked), Arc::clone(&answer));
            move || {
                asked.fetch_add(1, Ordering::SeqCst);
                answer.lock().unwrap().recv().unwrap_or_default()
            }
        };
        for _ in 0..5 {
            let (told, silent) = asking.ask(Duration::ZERO, hangs()).await;
            assert!(told == 7 && silent.is_some());
        }
        let (told, _) = tokio::join!(asking.ask(LONG, hangs()), async { answers.send(8).unwrap() });
        assert_eq!(told, (8, None));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert_eq!(asking.ask(LONG, || 9).await, (9, None));
    }
}
