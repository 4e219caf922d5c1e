// SPDX-License-Identifier: GPL-2.0

//! Counters that are read without stopping who writes them. They lie in the snapshot, whose readers
//! see them through `snapshot::read_record`; a counter is added at the end of its group, so that the
//! others keep their places.
//!
//! Times are nanoseconds of the scheduler clock.

use super::snapshot::{Field, Sequence};
use crate::atomics::AtomicU64;
use core::mem::{offset_of, size_of};

/// An event counter. It only grows and wraps after 2^64 events.
#[derive(Default)]
#[repr(transparent)]
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
#[repr(transparent)]
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

    /// Sets the number, unless it is greater already.
    pub fn raise(&self, value: u64) {
        if value > self.0.load() {
            self.0.store(value);
        }
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load()
    }
}

/// How long something takes: the longest time and the moving average, in nanoseconds. One thread
/// at a time writes.
#[derive(Default)]
#[repr(C)]
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

/// Declares what is counted for a kind of object, in the order in which the snapshot has it: the
/// structure, its counters at 0, and the table of their names and places.
macro_rules! counters {
    ($(#[$doc:meta])* pub struct $name:ident {
        $($(#[$field_doc:meta])* $field:ident: $type:ident,)*
    }) => {
        $(#[$doc])*
        #[repr(C)]
        pub struct $name {
            /// Changes with the counters that change together.
            pub sequence: Sequence,
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl $name {
            /// The counters and where they are, from the beginning of this group.
            pub const FIELDS: &'static [Field] = &[$(
                Field {
                    name: stringify!($field),
                    word: offset_of!(Self, $field) / size_of::<AtomicU64>(),
                    words: size_of::<$type>() / size_of::<AtomicU64>(),
                },
            )*];

            /// Counters at 0.
            pub const fn new() -> Self {
                Self {
                    sequence: Sequence::new(),
                    $($field: $type::new(),)*
                }
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }
    };
}

counters! {
    /// What is counted for a virtqueue. Who serves it, or has it on a list, is the writer, except of
    /// `kicks`.
    ///
    /// What one slice adds is added at its end, in one section of `sequence`: packets, bytes and
    /// times agree in whatever a reader sees. Looks that find nothing, and leaving the worker without
    /// a slice, are counted without.
    pub struct VirtqueueStats {
        /// Packets moved between guest and backend.
        packets: Counter,
        /// Bytes of these packets, without the virtio header: what an interface would count.
        bytes: Counter,
        /// Guest notifications: wake-ups of the kick eventfd.
        kicks: Counter,
        /// Interrupts sent to the guest: signals of the call eventfd.
        interrupts: Counter,
        /// Slices served because of a guest notification or a socket event.
        notif_works: Counter,
        /// Time of these slices.
        notif_time: Counter,
        /// Bytes moved in them.
        notif_bytes: Counter,
        /// How many of them ended before the work did.
        notif_limited: Counter,
        /// For how long work had waited when they began.
        notif_wait: Counter,
        /// Looks at the virtqueue while it is polled.
        polls: Counter,
        /// Slices served because a look found something.
        poll_kicks: Counter,
        /// Time of these slices.
        poll_time: Counter,
        /// Bytes moved in them.
        poll_bytes: Counter,
        /// How many of them ended before the work did.
        poll_limited: Counter,
        /// Time between their beginnings and the ends of the slices before them.
        poll_wait: Counter,
        /// For how long it had not been known, when they began, that there is no work.
        poll_pending: Counter,
        /// Looks that found work and left it, so that what comes meanwhile shares a slice with it.
        poll_coalesced: Counter,
        /// Looks that found nothing.
        poll_empty: Counter,
        /// Time of these looks.
        poll_empty_time: Counter,
        /// When a worker that polls the virtqueue looked at it last; 0 if none did yet.
        last_poll: Gauge,
        /// Times that others were served while the virtqueue had waited for longer than its limits
        /// allow, or the worker's.
        stuck_times: Counter,
        /// For how long it had waited then.
        stuck_time: Counter,
        /// Times that the virtqueue was left to its guest to notify, after it had been polled.
        parks: Counter,
        /// Times that packets waited in the socket and the guest had no buffers for them.
        ring_full: Counter,
        /// Time served by workers.
        served_time: Counter,
        /// Time served by the home thread, page faults included.
        home_time: Counter,
        /// Slices served by the home thread.
        home_works: Counter,
        /// Times that the virtqueue left its worker since guest memory was not resident.
        left_fault: Counter,
        /// Times that it left its worker since its backend cannot be served there.
        left_backend: Counter,
        /// Times that it left its worker since user space wants it to be served at home.
        left_home: Counter,
        /// Changes of the address space that its slices needed.
        mm_switches: Counter,
        /// Ring errors: the virtqueue stopped until the next kick.
        errors: Counter,
        /// Packets that could not be delivered and were dropped.
        drops: Counter,
        /// 1 while it is polled, as its last slice left it.
        polled: Gauge,
        /// Age of the work when its slice began.
        pending: Age,
        /// Times that work which waited went to another worker.
        moves: Counter,
        /// Time between the request and the arrival on the other worker's lists.
        move_time: Age,
        /// The most slices, of the one worker and the other, that ended meanwhile.
        move_slices: Gauge,
        /// Writes to guest memory of which the dirty log could not be told.
        log_errors: Counter,
    }
}

/// What a slice of a virtqueue did so far. It is kept apart, and counted when the slice ends.
#[derive(Default)]
pub struct Tally {
    /// Packets moved.
    pub packets: u64,
    /// Bytes of these packets.
    pub bytes: u64,
    /// Interrupts sent.
    pub interrupts: u64,
    /// Whether packets waited and the guest had no buffers for them.
    pub ring_full: u64,
    /// Packets dropped.
    pub drops: u64,
    /// Ring errors.
    pub errors: u64,
    /// Writes of which the dirty log could not be told.
    pub log_errors: u64,
    /// Changes of the address space.
    pub mm_switches: u64,
    /// Whether the virtqueue was left to its guest to notify.
    pub parks: u64,
}

impl VirtqueueStats {
    /// Counts what a slice did. The caller is in a section.
    pub fn add(&self, tally: &Tally) {
        self.packets.add(tally.packets);
        self.bytes.add(tally.bytes);
        self.interrupts.add(tally.interrupts);
        self.ring_full.add(tally.ring_full);
        self.drops.add(tally.drops);
        self.errors.add(tally.errors);
        self.log_errors.add(tally.log_errors);
        self.mm_switches.add(tally.mm_switches);
        self.parks.add(tally.parks);
    }
}

counters! {
    /// What is counted for a worker, by itself: slices in one section of `sequence` each, the rest
    /// without.
    pub struct WorkerStats {
        /// Turns of the worker's loop.
        loops: Counter,
        /// When the last turn ended, by the time stamp counter.
        last_loop: Gauge,
        /// Turns in which no work was on the worker's lists.
        empty_works: Counter,
        /// Works that are on the lists now.
        pending_works: Gauge,
        /// Works that had waited for longer than the limit while others were served.
        stuck_works: Counter,
        /// Works for which there was nothing to serve: the virtqueue had no backend any more.
        noqueue_works: Counter,
        /// Slices served.
        works: Counter,
        /// Changes of the address space.
        mm_switches: Counter,
        /// Times that the worker went to sleep.
        wait: Counter,
        /// Time spent serving.
        busy_time: Counter,
        /// Time in which the worker ran and served nothing.
        spare_time: Counter,
        /// The part of it in slices that a notification brought about.
        notif_time: Counter,
        /// The part of it in slices that a look at a polled virtqueue brought about.
        poll_time: Counter,
        /// Time spent looking at polled virtqueues that had nothing.
        empty_poll_time: Counter,
        /// Looks at polled virtqueues.
        polls: Counter,
        /// Looks that found nothing.
        empty_polls: Counter,
        /// Virtqueues that are polled now.
        polled: Gauge,
        /// Time asleep.
        idle_time: Counter,
        /// Time in which the worker could have run and its CPU ran something else.
        stolen_time: Counter,
        /// Times that soft interrupts were let in again: batches of frames that were sent.
        enabled_interrupts: Counter,
        /// Slices during which soft interrupts ran.
        softirq_slices: Counter,
        /// Soft interrupts that ran during slices.
        softirqs: Counter,
        /// Time that they took, which is not part of the time spent serving.
        softirq_time: Counter,
        /// Age of work when its slice began.
        pending: Age,
        /// Times that the worker was woken after it had been parked. The fast loop is the writer.
        wakes: Counter,
    }
}
