// SPDX-License-Identifier: GPL-2.0

//! The limits of the original IOcm: how much of a virtqueue is served at once, how long others may
//! wait meanwhile, and how soon it is served again.
//!
//! While one virtqueue is served another one of the worker is *stuck* when it has waited for longer,
//! or has more to do, than its limits allow. The slice then ends once it has moved its minimum, and
//! the one that is stuck is served first. It pays for that as for every slice: limits make slices
//! shorter and change their order, and shares stay what they are.
//!
//! Times are cycles of the time stamp counter, in which they are written and read.

use super::budget::{Data, BYTES_MAX, BYTES_MIN};
use crate::engine::tunable::Tunable;

/// The largest number of entries of a ring (virtio 1.3, 2.7).
const ITEMS_MAX: u32 = 32_768;
/// The longest time that can be set: some hundred milliseconds, which is far more than a slice.
const CYCLES_MAX: u32 = 1_000_000_000;

/// The limits of a virtqueue.
pub struct Limits {
    /// Bytes that a slice may move whoever else is stuck.
    pub min_processed_data: Tunable,
    /// Bytes after which a slice ends.
    pub max_processed_data: Tunable,
    /// The virtqueue is stuck when it is polled and has more buffers to transmit; 0 is no limit.
    pub max_stuck_pending_items: Tunable,
    /// The virtqueue is stuck when it is polled and has had work for longer; 0 is no limit.
    pub max_stuck_cycles: Tunable,
    /// While the virtqueue is polled it is not served again sooner; 0 is no limit.
    pub min_poll_rate: Tunable,
}

impl Limits {
    /// The defaults; `poll_rate_max` is the largest value of `min_poll_rate`.
    pub const fn new(poll_rate_max: u32) -> Self {
        Self {
            min_processed_data: Tunable::new(BYTES_MIN as u32, 0, BYTES_MAX as u32),
            max_processed_data: Tunable::new(BYTES_MAX as u32, 1, BYTES_MAX as u32),
            max_stuck_pending_items: Tunable::new(0, 0, ITEMS_MAX),
            max_stuck_cycles: Tunable::new(0, 0, CYCLES_MAX),
            min_poll_rate: Tunable::new(0, 0, poll_rate_max),
        }
    }

    /// How much a slice moves.
    pub fn data(&self) -> Data {
        Data {
            min: self.min_processed_data.get() as usize,
            max: self.max_processed_data.get() as usize,
        }
    }

    /// Whether the virtqueue can be stuck at all.
    pub fn can_be_stuck(&self) -> bool {
        self.max_stuck_pending_items.get() != 0 || self.max_stuck_cycles.get() != 0
    }

    /// Whether the virtqueue, which is polled and has work, is stuck: it has waited for so many
    /// cycles and has so many buffers to transmit.
    pub fn is_stuck(&self, waited: u64, items: u16) -> bool {
        exceeds(u64::from(items), &self.max_stuck_pending_items)
            || exceeds(waited, &self.max_stuck_cycles)
    }

    /// Whether the virtqueue, which is polled, was served too short a time ago: so many cycles.
    pub fn is_too_soon(&self, passed: u64) -> bool {
        passed < self.min_poll_rate.get()
    }
}

/// The limits of a worker.
pub struct WorkerLimits {
    /// A virtqueue that is not polled is stuck when its work has waited for longer; 0 is no limit.
    pub work_list_max_stuck: Tunable,
    /// For how long a batch of frames may keep soft interrupts off; 0 is no limit.
    pub max_disabled_soft_interrupts: Tunable,
}

impl WorkerLimits {
    /// No limits.
    pub const fn new() -> Self {
        Self {
            work_list_max_stuck: Tunable::new(0, 0, CYCLES_MAX),
            max_disabled_soft_interrupts: Tunable::new(0, 0, CYCLES_MAX),
        }
    }

    /// Whether works can be stuck at all.
    pub fn can_be_stuck(&self) -> bool {
        self.work_list_max_stuck.get() != 0
    }

    /// Whether a work that has waited for so many cycles is stuck.
    pub fn is_stuck(&self, waited: u64) -> bool {
        exceeds(waited, &self.work_list_max_stuck)
    }
}

impl Default for WorkerLimits {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether `value` is beyond a limit, of which 0 is none.
fn exceeds(value: u64, limit: &Tunable) -> bool {
    let limit = limit.get();
    limit != 0 && value > limit
}
