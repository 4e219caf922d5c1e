// SPDX-License-Identifier: GPL-2.0

//! The only place where reasons become errnos.

use crate::engine::abi::Malformed;
use crate::engine::error::RingError;
use kernel::bindings;
use kernel::prelude::*;

// Errnos that the kernel crate has no constants for.

/// `EBADFD`: the file is in a state in which this makes no sense.
pub fn ebadfd() -> Error {
    Error::from_errno(-(bindings::EBADFD as i32))
}

/// `ERESTARTSYS`: a signal has come, after which the call may be made again.
pub fn erestartsys() -> Error {
    Error::from_errno(-(bindings::ERESTARTSYS as i32))
}

/// `ENOBUFS`: there is no room, or no such virtqueue.
pub fn enobufs() -> Error {
    Error::from_errno(-(bindings::ENOBUFS as i32))
}

/// `ENOTSOCK`: the descriptor is no backend.
pub fn enotsock() -> Error {
    Error::from_errno(-(bindings::ENOTSOCK as i32))
}

/// `EOPNOTSUPP`: the feature is not offered.
pub fn eopnotsupp() -> Error {
    Error::from_errno(-(bindings::EOPNOTSUPP as i32))
}

/// A ring error as stock vhost reports it to who set up the ring.
pub fn ring_errno(error: RingError) -> Error {
    match error {
        RingError::Fault
        | RingError::Unmapped
        | RingError::Forbidden
        | RingError::Miss
        | RingError::TransmitChain => EFAULT,
        RingError::AvailIndex
        | RingError::DescriptorIndex
        | RingError::Loop
        | RingError::ReadableAfterWritable
        | RingError::IndirectLength
        | RingError::IndirectNested
        | RingError::ReceiveChain => EINVAL,
        RingError::IndirectTooLong | RingError::TooManyDescriptors => E2BIG,
        RingError::TooManySegments => enobufs(),
    }
}

/// Text that no value of an attribute reads like.
pub fn malformed(_: Malformed) -> Error {
    EINVAL
}

impl From<Malformed> for Error {
    fn from(error: Malformed) -> Self {
        malformed(error)
    }
}

/// Whether user memory could not be reached.
pub fn is_fault(error: Error) -> bool {
    error == EFAULT
}

/// Whether a socket that refused a packet may take it later.
pub fn may_pass(error: Error) -> bool {
    error == EAGAIN || error == ENOMEM || error == enobufs()
}
