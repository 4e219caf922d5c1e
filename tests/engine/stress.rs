// SPDX-License-Identifier: GPL-2.0

//! Ownership with real threads: what the exploration cannot see is the hardware.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::Duration;

use vhost_iocm_engine::engine::sched::ownership::{Ownership, Then};

const WORKERS: usize = 2;
const VIRTQUEUES: usize = 3;
const MARKERS: usize = 2;
const MARKS: u64 = 300_000;
const OPERATORS: usize = 2;
const OPERATIONS: usize = 30_000;
/// Long enough for the slowest machine: it only passes when something was lost.
const LOST: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Virtqueue {
    ownership: Ownership,
    owner: AtomicUsize,
    /// Work that marks announce.
    produced: AtomicU64,
    /// Only touched by who has the virtqueue, which is what the relaxed order relies on.
    consumed: AtomicU64,
    busy: AtomicBool,
    released: (Mutex<()>, Condvar),
}

impl Virtqueue {
    /// Runs `work` as the only one who does.
    fn alone(&self, work: impl FnOnce()) {
        assert!(!self.busy.swap(true, Ordering::Relaxed), "taken twice");
        work();
        self.busy.store(false, Ordering::Relaxed);
    }

    fn consume(&self) {
        let produced = self.produced.load(Ordering::Relaxed);
        self.consumed.store(produced, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct List {
    queue: Mutex<VecDeque<usize>>,
    filled: Condvar,
}

#[derive(Default)]
struct Host {
    virtqueues: [Virtqueue; VIRTQUEUES],
    lists: [List; WORKERS],
    taken: AtomicUsize,
}

impl Host {
    fn follow(&self, index: usize, then: Then) {
        let virtqueue = &self.virtqueues[index];
        match then {
            Then::Rest => (),
            Then::List => {
                let list = &self.lists[virtqueue.owner.load(Ordering::Relaxed)];
                list.queue.lock().unwrap().push_back(index);
                list.filled.notify_one();
            }
            Then::Wake => {
                let _guard = virtqueue.released.0.lock().unwrap();
                virtqueue.released.1.notify_all();
            }
        }
    }

    fn mark(&self, index: usize) {
        self.virtqueues[index]
            .produced
            .fetch_add(1, Ordering::Relaxed);
        self.follow(index, self.virtqueues[index].ownership.mark());
    }

    /// Serves whatever is on the list of `worker` until `stop`, an index beyond all virtqueues.
    fn serve(&self, worker: usize) {
        loop {
            let list = &self.lists[worker];
            let queue = list.queue.lock().unwrap();
            let (mut queue, timeout) = list
                .filled
                .wait_timeout_while(queue, LOST, |queue| queue.is_empty())
                .unwrap();
            assert!(!timeout.timed_out(), "a worker was forgotten");
            let index = queue.pop_front().unwrap();
            drop(queue);
            let Some(virtqueue) = self.virtqueues.get(index) else {
                return;
            };
            if !virtqueue.ownership.begin() {
                continue;
            }
            let mine = virtqueue.owner.load(Ordering::Relaxed) == worker;
            virtqueue.alone(|| {
                if mine {
                    virtqueue.consume();
                }
            });
            let count = self.taken.fetch_add(1, Ordering::Relaxed);
            // Every now and then a slice ends before the work does.
            let then = virtqueue.ownership.finish(!mine || count.is_multiple_of(7));
            self.follow(index, then);
        }
    }

    /// Holds a virtqueue while `change` runs.
    fn hold(&self, index: usize, change: impl FnOnce(&Virtqueue)) {
        let virtqueue = &self.virtqueues[index];
        if !virtqueue.ownership.try_hold(false) {
            let guard = virtqueue.released.0.lock().unwrap();
            let released = &virtqueue.released.1;
            let held =
                released.wait_timeout_while(guard, LOST, |_| !virtqueue.ownership.try_hold(true));
            assert!(!held.unwrap().1.timed_out(), "a holder was forgotten");
        }
        virtqueue.alone(|| change(virtqueue));
        self.follow(index, virtqueue.ownership.release());
    }
}

#[test]
fn threads_that_mark_serve_and_move_lose_nothing_and_never_meet() {
    let host = Host::default();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let host = &host;
                scope.spawn(move || host.serve(worker))
            })
            .collect();
        thread::scope(|scope| {
            for marker in 0..MARKERS {
                let host = &host;
                scope.spawn(move || {
                    for mark in 0..MARKS {
                        host.mark((marker + mark as usize) % VIRTQUEUES);
                    }
                });
            }
            for operator in 0..OPERATORS {
                let host = &host;
                scope.spawn(move || {
                    for operation in 0..OPERATIONS {
                        let owner = (operator + operation / 2) % WORKERS;
                        host.hold(operation % VIRTQUEUES, |virtqueue| {
                            virtqueue.owner.store(owner, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        // All marks were made. What is left to serve is on a list or being served; waiting for
        // it must not add marks that would hide a lost one.
        let deadline = std::time::Instant::now() + LOST;
        let served = |virtqueue: &Virtqueue| {
            let produced = virtqueue.produced.load(Ordering::Relaxed);
            virtqueue.consumed.load(Ordering::Relaxed) == produced
        };
        while !host.virtqueues.iter().all(served) {
            assert!(std::time::Instant::now() < deadline, "a mark was lost");
            thread::yield_now();
        }
        for list in &host.lists {
            list.queue.lock().unwrap().push_back(VIRTQUEUES);
            list.filled.notify_one();
        }
        for worker in workers {
            worker.join().unwrap();
        }
    });
    let produced = |virtqueue: &Virtqueue| virtqueue.produced.load(Ordering::Relaxed);
    let produced: u64 = host.virtqueues.iter().map(produced).sum();
    assert_eq!(produced, MARKERS as u64 * MARKS);
}
