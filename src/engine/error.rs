// SPDX-License-Identifier: GPL-2.0

//! Why a virtqueue cannot be served any further.

use crate::engine::log::OutOfRange;

/// A reason to stop serving a virtqueue until its driver or its owner acts.
///
/// Each rejection has its own name; the errno that user space of stock vhost knows for it is
/// chosen in `kern/error.rs`. Section numbers are those of the virtio 1.3 specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingError {
    /// Ring memory could not be read or written.
    Fault,
    /// The available index moved by more than the ring size (2.7.13).
    AvailIndex,
    /// A head in the available ring, or a `next` field, is not below the ring size (2.7.5).
    DescriptorIndex,
    /// A chain has more descriptors than its table, so it must contain a loop (2.7.5.2).
    Loop,
    /// A device-readable descriptor follows a device-writable one (2.7.4.2).
    ReadableAfterWritable,
    /// The length of an indirect table is not a multiple of the descriptor size (2.7.5.3).
    IndirectLength,
    /// An indirect table has more entries than a 16-bit `next` field can name (2.7.5.3).
    IndirectTooLong,
    /// An indirect table contains an indirect descriptor (2.7.5.3.1).
    IndirectNested,
    /// The memory table has no region for an address.
    Unmapped,
    /// The device IOTLB does not allow the access to an address.
    Forbidden,
    /// The device IOTLB has no translation for an address. The virtqueue goes on when user space
    /// has told it.
    Miss,
    /// A chain needs more segments than the data path accepts.
    TooManySegments,
    /// More descriptors have to be read for a packet than any driver needs.
    TooManyDescriptors,
    /// A transmit chain has device-writable descriptors, or carries no packet (5.1.6.2).
    TransmitChain,
    /// A receive chain has device-readable descriptors, or no room at all (5.1.6.3).
    ReceiveChain,
}

impl From<OutOfRange> for RingError {
    fn from(_: OutOfRange) -> Self {
        Self::Unmapped
    }
}
