// SPDX-License-Identifier: GPL-2.0

//! Messages on the device's file: `struct vhost_msg` and `struct vhost_msg_v2`.
//!
//! Both have the same places on machines of 64 bits: a type of 4 bytes, 4 bytes that are unused here,
//! `struct vhost_iotlb_msg`, and room up to the length of a message. Numbers are in the byte order of
//! the machine.

use super::map::Permissions;
use super::misses::Miss;

/// Bytes of a message.
pub const SIZE: usize = 72;
/// Bytes of it that mean something.
pub const MEANT: usize = 40;

/// Where the fields are.
const IOVA: usize = 8;
const LEN: usize = 16;
const USER_ADDR: usize = 24;
const PERMISSIONS: usize = 32;
const KIND: usize = 33;

// Kinds of messages (`VHOST_IOTLB_MISS` and so on).
const MISS: u8 = 1;
const UPDATE: u8 = 2;
const INVALIDATE: u8 = 3;

/// The layout of messages, by its number in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// `VHOST_IOTLB_MSG`.
    #[default]
    V1 = 1,
    /// `VHOST_IOTLB_MSG_V2`.
    V2 = 2,
}

/// What user space wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The addresses from `first` to `last` are translated so.
    Update {
        /// First address.
        first: u64,
        /// Last address, not below the first.
        last: u64,
        /// Where they begin in the owner's address space.
        user_addr: u64,
        /// What may be done with them.
        permissions: Permissions,
    },
    /// No translation holds any more that has an address from `first` to `last`.
    Invalidate {
        /// First address.
        first: u64,
        /// Last address.
        last: u64,
    },
    /// Something that is no request, or a range that wraps.
    Refused,
}

/// What is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Reads a message. What is behind [`MEANT`] bytes is ignored, and need not be there.
///
/// # Errors
///
/// [`Malformed`] if it is too short, of an unknown type, or updates nothing.
pub fn decode(bytes: &[u8]) -> Result<Request, Malformed> {
    let bytes: &[u8; MEANT] = bytes.first_chunk().ok_or(Malformed)?;
    let [t0, t1, t2, t3, ..] = *bytes;
    const V1: u32 = Version::V1 as u32;
    const V2: u32 = Version::V2 as u32;
    if !matches!(u32::from_ne_bytes([t0, t1, t2, t3]), V1 | V2) {
        return Err(Malformed);
    }
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_ne_bytes(word)
    };
    let (first, len) = (word(IOVA), word(LEN));
    // A length of 0 from address 0 on is everything: stock vhost lets this wrap.
    let last = first.wrapping_add(len).wrapping_sub(1);
    match bytes[KIND] {
        UPDATE if len == 0 => Err(Malformed),
        UPDATE if last < first => Ok(Request::Refused),
        UPDATE => Ok(Request::Update {
            first,
            last,
            user_addr: word(USER_ADDR),
            permissions: Permissions(bytes[PERMISSIONS]),
        }),
        INVALIDATE => Ok(Request::Invalidate { first, last }),
        _ => Ok(Request::Refused),
    }
}

/// Writes the message that asks for a translation. All that it does not use is 0.
pub fn encode(version: Version, miss: Miss) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    bytes[..4].copy_from_slice(&(version as u32).to_ne_bytes());
    bytes[IOVA..IOVA + 8].copy_from_slice(&miss.addr.to_ne_bytes());
    bytes[PERMISSIONS] = Permissions::of(miss.access).0;
    bytes[KIND] = MISS;
    bytes
}
