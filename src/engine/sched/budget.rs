// SPDX-License-Identifier: GPL-2.0

//! How much of a virtqueue is served before the worker turns to the next one.

/// Packets in one slice. Stock vhost's limit for one work, which keeps small packets of one
/// virtqueue from starving the others (`VHOST_NET_PKT_WEIGHT` in drivers/vhost/net.c).
const PACKETS_MAX: u32 = 256;
/// Bytes in one slice (`VHOST_NET_WEIGHT`).
pub const BYTES_MAX: usize = 0x80000;
/// Bytes that a slice moves whoever waits meanwhile: a frame of Ethernet, as in the original IOcm.
pub const BYTES_MIN: usize = 1500;
/// Bytes that reading a descriptor counts as: its size. Chains without any data end a slice as well.
const DESCRIPTOR_BYTES: usize = 16;
/// The clock is read once for so many packets, or bytes: reading it costs as much as a tenth of a
/// small packet. The bytes are as many as the most descriptors that are read for a packet count as.
const CLOCK_PACKETS: u32 = 16;
const CLOCK_BYTES: usize = 0x10000;

/// How much data one slice moves, in bytes as [`Budget::charge`] counts them.
#[derive(Clone, Copy, Debug)]
pub struct Data {
    /// So much, whoever waits meanwhile.
    pub min: usize,
    /// No more than this, to which the last packet may add.
    pub max: usize,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            min: BYTES_MIN,
            max: BYTES_MAX,
        }
    }
}

/// What is left of the slice that is being served.
pub struct Budget {
    packets: u32,
    bytes: usize,
    /// What is left of the bytes when the minimum was moved.
    enough: usize,
    /// When the slice ends, in nanoseconds.
    end: u64,
    /// What is left at the next look at the clock.
    next_look: (u32, usize),
}

impl Budget {
    /// A fresh slice of so much `data` that ends at `end`, in nanoseconds of the clock that
    /// [`Budget::charge`] gets.
    pub fn new(end: u64, data: Data) -> Self {
        let bytes = data.max.min(BYTES_MAX);
        Self {
            packets: PACKETS_MAX,
            bytes,
            enough: bytes.saturating_sub(data.min),
            end,
            next_look: (
                PACKETS_MAX - CLOCK_PACKETS,
                bytes.saturating_sub(CLOCK_BYTES),
            ),
        }
    }

    /// Charges one packet of `bytes` for which `descriptors` were read; returns whether the slice
    /// goes on. Packets that are dropped and turns that are tried again are charged as well, so
    /// every loop of the data path ends.
    ///
    /// When it is time to look at the clock, and the minimum was moved, `is_other_stuck` is asked
    /// whether somebody else has waited for too long by then.
    #[must_use]
    pub fn charge(
        &mut self,
        bytes: usize,
        descriptors: usize,
        clock: impl FnOnce() -> u64,
        is_other_stuck: impl FnOnce(u64) -> bool,
    ) -> bool {
        let bytes = bytes.saturating_add(descriptors.saturating_mul(DESCRIPTOR_BYTES));
        self.packets = self.packets.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
        if self.packets == 0 || self.bytes == 0 {
            return false;
        }
        if self.packets > self.next_look.0 && self.bytes > self.next_look.1 {
            return true;
        }
        self.next_look = (
            self.packets.saturating_sub(CLOCK_PACKETS),
            self.bytes.saturating_sub(CLOCK_BYTES),
        );
        let now = clock();
        now < self.end && !(self.bytes <= self.enough && is_other_stuck(now))
    }
}
