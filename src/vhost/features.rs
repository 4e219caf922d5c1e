// SPDX-License-Identifier: GPL-2.0

//! Which features the device offers, and what they mean for packets.

use crate::engine::vnet;

const MRG_RXBUF: u32 = 15;
const NOTIFY_ON_EMPTY: u32 = 24;
/// The number of a feature that the driver never sees: user space wants to know which pages are
/// written.
const LOG_ALL: u32 = 26;
/// The number of the legacy feature ANY_LAYOUT: vhost itself has the packets' headers, and
/// exchanges none with the socket.
const VIRTIO_NET_HDR: u32 = 27;
const INDIRECT_DESC: u32 = 28;
const EVENT_IDX: u32 = 29;
const VERSION_1: u32 = 32;
/// All addresses are I/O virtual ones, which the device IOTLB translates.
const ACCESS_PLATFORM: u32 = 33;
const IN_ORDER: u32 = 35;
/// Resetting a virtqueue needs nothing from the kernel: user space stops it and starts it again.
const RING_RESET: u32 = 40;

// In the second word. What UDP tunnels need is done by driver and tap: here they change the length
// of the header only.
const GUEST_UDP_TUNNEL_GSO: u32 = 65 - 64;
const HOST_UDP_TUNNEL_GSO: u32 = 67 - 64;

/// The words of features that are known: 0 to 63 and 64 to 127.
pub const WORDS: usize = 2;

/// What is offered.
pub const OFFERED: [u64; WORDS] = [
    1 << MRG_RXBUF
        | 1 << NOTIFY_ON_EMPTY
        | 1 << LOG_ALL
        | 1 << VIRTIO_NET_HDR
        | 1 << INDIRECT_DESC
        | 1 << EVENT_IDX
        | 1 << VERSION_1
        | 1 << ACCESS_PLATFORM
        | 1 << IN_ORDER
        | 1 << RING_RESET,
    1 << GUEST_UDP_TUNNEL_GSO | 1 << HOST_UDP_TUNNEL_GSO,
];

/// The backend feature by which messages have their second layout (`VHOST_BACKEND_F_IOTLB_MSG_V2`).
pub const MESSAGES_V2: u64 = 1 << 1;

/// The backend features that are offered.
pub const BACKEND_OFFERED: u64 = MESSAGES_V2;

/// The features that user space has set; at first none.
#[derive(Clone, Copy, Default)]
pub struct Features([u64; WORDS]);

impl Features {
    /// The given features, if they are offered.
    pub fn new(words: [u64; WORDS]) -> Option<Self> {
        let offered = words
            .iter()
            .zip(OFFERED)
            .all(|(word, offered)| word & !offered == 0);
        offered.then_some(Self(words))
    }

    fn has(&self, bit: u32) -> bool {
        self.0[0] & 1 << bit != 0
    }

    /// A packet may fill several receive buffers.
    pub fn mergeable(&self) -> bool {
        self.has(MRG_RXBUF)
    }

    /// Notifications are suppressed by index.
    pub fn event_idx(&self) -> bool {
        self.has(EVENT_IDX)
    }

    /// An empty available ring is always worth an interrupt.
    pub fn notify_on_empty(&self) -> bool {
        self.has(NOTIFY_ON_EMPTY)
    }

    /// Buffers are used in the order in which they were made available, and one element of the used
    /// ring stands for several of them.
    pub fn in_order(&self) -> bool {
        self.has(IN_ORDER)
    }

    fn tunnels(&self) -> bool {
        self.0[1] != 0
    }

    /// Addresses go through the device IOTLB.
    pub fn translates(&self) -> bool {
        self.has(ACCESS_PLATFORM)
    }

    /// What is written into buffers is logged.
    pub fn logs(&self) -> bool {
        self.has(LOG_ALL)
    }

    /// The header of a received packet counts its buffers.
    pub fn counts_buffers(&self) -> bool {
        self.mergeable() || self.has(VERSION_1)
    }

    /// The bytes of header that vhost itself takes off or puts on.
    pub fn vhost_header_len(&self) -> usize {
        if self.has(VIRTIO_NET_HDR) {
            self.header_len()
        } else {
            0
        }
    }

    /// The bytes of header that the socket takes and gives.
    pub fn socket_header_len(&self) -> usize {
        if self.has(VIRTIO_NET_HDR) {
            0
        } else {
            self.header_len()
        }
    }

    fn header_len(&self) -> usize {
        if self.tunnels() {
            vnet::TUNNEL_LEN
        } else if self.counts_buffers() {
            vnet::LEN
        } else {
            vnet::LEGACY_LEN
        }
    }
}
