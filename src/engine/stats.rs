// SPDX-License-Identifier: GPL-2.0

//! Counters that are read without stopping who writes them.

use crate::atomics::AtomicU64;

/// An event counter. It only grows and wraps after 2^64 events.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// A counter at 0.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds to a counter that one thread at a time writes: no locked instruction is needed.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load().wrapping_add(count));
    }

    /// Adds one to a counter that many CPUs write at once.
    pub fn add_shared(&self) {
        self.0.fetch_add(1);
    }

    /// The number of events so far.
    pub fn get(&self) -> u64 {
        self.0.load()
    }
}

/// What is counted for a virtqueue.
#[derive(Default)]
pub struct VirtqueueStats {
    /// Packets moved between guest and backend.
    pub packets: Counter,
    /// Bytes of these packets, without the virtio header: what an interface would count.
    pub bytes: Counter,
    /// Guest notifications: wake-ups of the kick eventfd.
    pub kicks: Counter,
    /// Slices served because of a guest notification or a socket event.
    pub works: Counter,
    /// Interrupts sent to the guest: signals of the call eventfd.
    pub interrupts: Counter,
    /// Ring errors: the virtqueue stopped until the next kick.
    pub errors: Counter,
    /// Packets that could not be delivered and were dropped.
    pub drops: Counter,
}

impl VirtqueueStats {
    /// Counters at 0.
    pub const fn new() -> Self {
        Self {
            packets: Counter::new(),
            bytes: Counter::new(),
            kicks: Counter::new(),
            works: Counter::new(),
            interrupts: Counter::new(),
            errors: Counter::new(),
            drops: Counter::new(),
        }
    }
}

/// What is counted for a worker.
#[derive(Default)]
pub struct WorkerStats {
    /// Turns of the worker's loop.
    pub loops: Counter,
    /// Slices served.
    pub works: Counter,
    /// Changes of the address space.
    pub mm_switches: Counter,
    /// Times that the worker went to sleep.
    pub wait: Counter,
}

impl WorkerStats {
    /// Counters at 0.
    pub const fn new() -> Self {
        Self {
            loops: Counter::new(),
            works: Counter::new(),
            mm_switches: Counter::new(),
            wait: Counter::new(),
        }
    }
}
