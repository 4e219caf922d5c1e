// SPDX-License-Identifier: GPL-2.0

//! The header that precedes every packet of a virtio network device (virtio 1.3, 5.1.6).

/// Bytes of the header that legacy devices use without MRG_RXBUF, and the part that all share.
pub const LEGACY_LEN: usize = 10;
/// Bytes of the header with `num_buffers`.
pub const LEN: usize = 12;

/// Bytes of the header with what UDP tunnels need: after `num_buffers` come a hash report and the
/// offsets of the outer headers.
pub const TUNNEL_LEN: usize = 24;

/// In `flags`: the checksum is left to the device.
const NEEDS_CSUM: u8 = 1;

/// The first bytes of a header, as they lie in memory.
///
/// Fields in order: flags, gso_type (8 bits each); hdr_len, gso_size, csum_start, csum_offset (16
/// bits each, little-endian: legacy guests of the hosts that this module serves are so, too).
pub type Header = [u8; LEGACY_LEN];

/// The checksum that a header asks for lies outside of its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChecksumOutside;

/// Makes `hdr_len` cover the checksum field, as the consumers of a tap require.
///
/// `frame_len` is the length in bytes of header and packet together. Returns the new value of the
/// field where it has to change, and an error when the checksum would lie outside the frame.
pub fn checked_hdr_len(header: &Header, frame_len: usize) -> Result<Option<u16>, ChecksumOutside> {
    if header[0] & NEEDS_CSUM == 0 {
        return Ok(None);
    }
    let field = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let (hdr_len, csum_start, csum_offset) = (field(2), field(6), field(8));
    let needed = u32::from(csum_start) + u32::from(csum_offset) + 2;
    if needed <= u32::from(hdr_len) {
        return Ok(None);
    }
    // Stock vhost stores the sum in 16 bits and lets it wrap; a sum that does not fit lies outside
    // of any frame that gets here.
    match u16::try_from(needed) {
        Ok(hdr_len) if usize::from(hdr_len) <= frame_len => Ok(Some(hdr_len)),
        _ => Err(ChecksumOutside),
    }
}

/// Stores `hdr_len` in `header`.
pub fn set_hdr_len(header: &mut Header, hdr_len: u16) {
    header[2..4].copy_from_slice(&hdr_len.to_le_bytes());
}
