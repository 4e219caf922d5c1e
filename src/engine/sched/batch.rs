// SPDX-License-Identifier: GPL-2.0

//! How many frames are handed to a tap at once.
//!
//! A tap keeps soft interrupts off while it takes a batch. With a limit for that time, batches are
//! made as large as frames fit into it by what one took on average lately.

/// Weight of a new batch in the moving average: one in 2^3.
const AVERAGE_SHIFT: u32 = 3;

/// The batches of a virtqueue.
#[derive(Clone, Copy, Debug, Default)]
pub struct Batches {
    /// The longest time of a batch, in nanoseconds; 0 is no limit.
    limit: u64,
    /// Moving average of the time of one frame, in 1/2^[`AVERAGE_SHIFT`] nanoseconds, so that rounding
    /// does not make frames of some nanoseconds twice as dear; 0 if it is not known.
    cost: u64,
    /// Batches sent that were not asked for yet.
    sent: u64,
}

impl Batches {
    /// No limit, and nothing known.
    pub const fn new() -> Self {
        Self {
            limit: 0,
            cost: 0,
            sent: 0,
        }
    }

    /// Sets the longest time of a batch, in nanoseconds; 0 is no limit.
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Whether there is a limit, so that batches have to be timed.
    pub fn is_limited(&self) -> bool {
        self.limit != 0
    }

    /// The frames of the next batch, from 1 to `most`. As long as it is not known what one takes,
    /// it is tried with one.
    ///
    /// What fits is rounded up: a frame takes less in a larger batch, since each batch has a share that
    /// does not depend on its size, and batches that only ever were rounded down would not grow to find
    /// that out.
    pub fn size(&self, most: usize) -> usize {
        match (self.limit, self.cost >> AVERAGE_SHIFT) {
            (0, _) => most,
            (_, 0) => 1,
            (limit, cost) => usize::try_from(limit.div_ceil(cost))
                .unwrap_or(most)
                .clamp(1, most.max(1)),
        }
    }

    /// Notes that a batch of `frames`, at least one, was sent; `took` nanoseconds if it was timed.
    pub fn note_sent(&mut self, frames: u64, took: Option<u64>) {
        self.sent += 1;
        if let Some(took) = took {
            let cost = (took / frames.max(1)).clamp(1, u64::MAX >> AVERAGE_SHIFT);
            self.cost = if self.cost == 0 {
                cost << AVERAGE_SHIFT
            } else {
                self.cost - (self.cost >> AVERAGE_SHIFT) + cost
            };
        }
    }

    /// How many batches were sent since this was asked last.
    pub fn take_sent(&mut self) -> u64 {
        core::mem::take(&mut self.sent)
    }
}
