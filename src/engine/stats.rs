// SPDX-License-Identifier: GPL-2.0

//! Counters that are read without stopping who writes them.
//!
//! Times are nanoseconds of the scheduler clock.

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

/// A number that goes up and down, or a point in time. One thread writes.
#[derive(Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// A gauge at 0.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Sets the number.
    pub fn set(&self, value: u64) {
        self.0.store(value);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load()
    }
}

/// How long something takes: the longest time and the moving average, in nanoseconds. One thread
/// at a time writes.
#[derive(Default)]
pub struct Age {
    longest: AtomicU64,
    average: AtomicU64,
}

/// Weight of a new value in the moving average: one in 2^3.
const AVERAGE_SHIFT: u32 = 3;

impl Age {
    /// Nothing measured yet.
    pub const fn new() -> Self {
        Self {
            longest: AtomicU64::new(0),
            average: AtomicU64::new(0),
        }
    }

    /// Adds a measured value.
    pub fn add(&self, value: u64) {
        if value > self.longest.load() {
            self.longest.store(value);
        }
        let average = self.average.load();
        let new = average - (average >> AVERAGE_SHIFT) + (value >> AVERAGE_SHIFT);
        self.average.store(new);
    }

    /// The longest time so far.
    pub fn longest(&self) -> u64 {
        self.longest.load()
    }

    /// The moving average.
    pub fn average(&self) -> u64 {
        self.average.load()
    }
}

/// What is counted for a virtqueue. Except for `kicks`, who serves the virtqueue is the writer.
#[derive(Default)]
pub struct VirtqueueStats {
    /// Packets moved between guest and backend.
    pub packets: Counter,
    /// Bytes of these packets, without the virtio header: what an interface would count.
    pub bytes: Counter,
    /// Guest notifications: wake-ups of the kick eventfd.
    pub kicks: Counter,
    /// Interrupts sent to the guest: signals of the call eventfd.
    pub interrupts: Counter,
    /// Slices served because of a guest notification or a socket event.
    pub notif_works: Counter,
    /// Time of these slices.
    pub notif_time: Counter,
    /// Bytes moved in them.
    pub notif_bytes: Counter,
    /// How many of them ended before the work did.
    pub notif_limited: Counter,
    /// For how long work had waited when they began.
    pub notif_wait: Counter,
    /// Looks at the virtqueue while it is polled.
    pub polls: Counter,
    /// Slices served because a look found something.
    pub poll_kicks: Counter,
    /// Time of these slices.
    pub poll_time: Counter,
    /// Bytes moved in them.
    pub poll_bytes: Counter,
    /// How many of them ended before the work did.
    pub poll_limited: Counter,
    /// Time between their beginnings and the ends of the slices before them.
    pub poll_wait: Counter,
    /// For how long it had not been known, when they began, that there is no work.
    pub poll_pending: Counter,
    /// Looks that found work and left it, so that what comes meanwhile shares a slice with it.
    pub poll_coalesced: Counter,
    /// Looks that found nothing.
    pub poll_empty: Counter,
    /// Time of these looks.
    pub poll_empty_time: Counter,
    /// When a worker that polls the virtqueue looked at it last; 0 if none did yet.
    pub last_poll: Gauge,
    /// Times that others were served while the virtqueue had waited for longer than its limits
    /// allow, or the worker's.
    pub stuck_times: Counter,
    /// For how long it had waited then.
    pub stuck_time: Counter,
    /// Times that the virtqueue was left to its guest to notify, after it had been polled.
    pub parks: Counter,
    /// Times that packets waited in the socket and the guest had no buffers for them.
    pub ring_full: Counter,
    /// Time served by workers.
    pub served_time: Counter,
    /// Time served by the home thread, page faults included.
    pub home_time: Counter,
    /// Slices served by the home thread.
    pub home_works: Counter,
    /// Times that the virtqueue left its worker since guest memory was not resident.
    pub left_fault: Counter,
    /// Times that it left its worker since its backend cannot be served there.
    pub left_backend: Counter,
    /// Times that it left its worker since user space wants it to be served at home.
    pub left_home: Counter,
    /// Changes of the address space that its slices needed.
    pub mm_switches: Counter,
    /// Ring errors: the virtqueue stopped until the next kick.
    pub errors: Counter,
    /// Packets that could not be delivered and were dropped.
    pub drops: Counter,
    /// Age of the work when its slice began.
    pub pending: Age,
}

impl VirtqueueStats {
    /// Counters at 0.
    pub const fn new() -> Self {
        Self {
            packets: Counter::new(),
            bytes: Counter::new(),
            kicks: Counter::new(),
            interrupts: Counter::new(),
            notif_works: Counter::new(),
            notif_time: Counter::new(),
            notif_bytes: Counter::new(),
            notif_limited: Counter::new(),
            notif_wait: Counter::new(),
            polls: Counter::new(),
            poll_kicks: Counter::new(),
            poll_time: Counter::new(),
            poll_bytes: Counter::new(),
            poll_limited: Counter::new(),
            poll_wait: Counter::new(),
            poll_pending: Counter::new(),
            poll_coalesced: Counter::new(),
            poll_empty: Counter::new(),
            poll_empty_time: Counter::new(),
            last_poll: Gauge::new(),
            stuck_times: Counter::new(),
            stuck_time: Counter::new(),
            parks: Counter::new(),
            ring_full: Counter::new(),
            served_time: Counter::new(),
            home_time: Counter::new(),
            home_works: Counter::new(),
            left_fault: Counter::new(),
            left_backend: Counter::new(),
            left_home: Counter::new(),
            mm_switches: Counter::new(),
            errors: Counter::new(),
            drops: Counter::new(),
            pending: Age::new(),
        }
    }
}

/// What is counted for a worker, by itself.
#[derive(Default)]
pub struct WorkerStats {
    /// Turns of the worker's loop.
    pub loops: Counter,
    /// When the last turn ended, by the time stamp counter.
    pub last_loop: Gauge,
    /// Turns in which no work was on the worker's lists.
    pub empty_works: Counter,
    /// Works that are on the lists now.
    pub pending_works: Gauge,
    /// Works that had waited for longer than the limit while others were served.
    pub stuck_works: Counter,
    /// Works for which there was nothing to serve: the virtqueue had no backend any more.
    pub noqueue_works: Counter,
    /// Slices served.
    pub works: Counter,
    /// Changes of the address space.
    pub mm_switches: Counter,
    /// Times that the worker went to sleep.
    pub wait: Counter,
    /// Time spent serving.
    pub busy_time: Counter,
    /// Time in which the worker ran and served nothing.
    pub spare_time: Counter,
    /// The part of it in slices that a notification brought about.
    pub notif_time: Counter,
    /// The part of it in slices that a look at a polled virtqueue brought about.
    pub poll_time: Counter,
    /// Time spent looking at polled virtqueues that had nothing.
    pub empty_poll_time: Counter,
    /// Looks at polled virtqueues.
    pub polls: Counter,
    /// Looks that found nothing.
    pub empty_polls: Counter,
    /// Virtqueues that are polled now.
    pub polled: Gauge,
    /// Time asleep.
    pub idle_time: Counter,
    /// Time in which the worker could have run and its CPU ran something else.
    pub stolen_time: Counter,
    /// Times that soft interrupts were let in again: batches of frames that were sent.
    pub enabled_interrupts: Counter,
    /// Slices during which soft interrupts ran.
    pub softirq_slices: Counter,
    /// Soft interrupts that ran during slices.
    pub softirqs: Counter,
    /// Time that they took, which is not part of the time spent serving.
    pub softirq_time: Counter,
    /// Age of work when its slice began.
    pub pending: Age,
    /// Times that the worker was woken after it had been parked. The fast loop is the writer.
    pub wakes: Counter,
}

impl WorkerStats {
    /// Counters at 0.
    pub const fn new() -> Self {
        Self {
            loops: Counter::new(),
            last_loop: Gauge::new(),
            empty_works: Counter::new(),
            pending_works: Gauge::new(),
            stuck_works: Counter::new(),
            noqueue_works: Counter::new(),
            works: Counter::new(),
            mm_switches: Counter::new(),
            wait: Counter::new(),
            busy_time: Counter::new(),
            spare_time: Counter::new(),
            notif_time: Counter::new(),
            poll_time: Counter::new(),
            empty_poll_time: Counter::new(),
            polls: Counter::new(),
            empty_polls: Counter::new(),
            polled: Gauge::new(),
            idle_time: Counter::new(),
            stolen_time: Counter::new(),
            enabled_interrupts: Counter::new(),
            softirq_slices: Counter::new(),
            softirqs: Counter::new(),
            softirq_time: Counter::new(),
            pending: Age::new(),
            wakes: Counter::new(),
        }
    }
}
