// SPDX-License-Identifier: GPL-2.0

//! How much of a virtqueue is served before the worker turns to the next one.

/// Packets in one slice. Stock vhost's limit for one work, which keeps small packets of one
/// virtqueue from starving the others (`VHOST_NET_PKT_WEIGHT` in drivers/vhost/net.c).
const PACKETS_MAX: u32 = 256;
/// Bytes in one slice (`VHOST_NET_WEIGHT`).
const BYTES_MAX: usize = 0x80000;
/// Bytes that reading a descriptor counts as: its size. Chains without any data, which a guest can
/// make of 65536 descriptors, end a slice as well.
const DESCRIPTOR_BYTES: usize = 16;

/// What is left of the slice that is being served.
pub struct Budget {
    packets: u32,
    bytes: usize,
}

impl Budget {
    /// A fresh slice.
    pub const fn new() -> Self {
        Self {
            packets: PACKETS_MAX,
            bytes: BYTES_MAX,
        }
    }

    /// Charges one packet of `bytes` for which `descriptors` were read; returns whether the slice
    /// goes on. Packets that are dropped and turns that are tried again are charged as well, so
    /// every loop of the data path ends.
    #[must_use]
    pub fn charge(&mut self, bytes: usize, descriptors: usize) -> bool {
        let bytes = bytes.saturating_add(descriptors.saturating_mul(DESCRIPTOR_BYTES));
        self.packets = self.packets.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.packets > 0 && self.bytes > 0
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new()
    }
}
