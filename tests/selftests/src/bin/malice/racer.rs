// SPDX-License-Identifier: GPL-2.0
//! Another CPU of the hostile guest, which changes memory while the device reads it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vhost_iocm_fuzz::Write;

use crate::arena::Arena;

/// How often everything is changed before the thread looks for something new to do.
const ROUNDS: usize = 16;

/// A thread that gives places two values in turn.
pub struct Racer {
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    races: Mutex<Races>,
    changed: Condvar,
}

#[derive(Default)]
struct Races {
    pairs: Vec<[Write; 2]>,
    end: bool,
}

impl Shared {
    fn races(&self) -> MutexGuard<'_, Races> {
        self.races.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Racer {
    /// Starts the thread, which has nothing to do yet.
    pub fn new(arena: Arc<Arena>) -> Self {
        let shared = Arc::new(Shared::default());
        let seen = shared.clone();
        let thread = std::thread::spawn(move || run(&arena, &seen));
        Self {
            thread: Some(thread),
            shared,
        }
    }

    /// Gives a place two values in turn from now on, until [`calm`](Self::calm).
    pub fn race(&self, pair: [Write; 2]) {
        self.shared.races().pairs.push(pair);
        self.shared.changed.notify_one();
    }

    /// Ends all races. When this returns, nothing is written any more.
    pub fn calm(&self) {
        self.shared.races().pairs.clear();
    }
}

impl Drop for Racer {
    fn drop(&mut self) {
        self.shared.races().end = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported when it happened.
            let _ = thread.join();
        }
    }
}

fn run(arena: &Arena, shared: &Shared) {
    let mut races = shared.races();
    while !races.end {
        if races.pairs.is_empty() {
            let waited = shared.changed.wait(races);
            races = waited.unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        for round in 0..ROUNDS {
            for pair in &races.pairs {
                arena.write(&pair[round % 2]);
            }
        }
        // Whoever wants to change the races gets a chance.
        drop(races);
        std::thread::yield_now();
        races = shared.races();
    }
}
