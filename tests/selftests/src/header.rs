// SPDX-License-Identifier: GPL-2.0
//! The virtio-net header before every packet.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
};

/// Length of the legacy header, without a number of buffers.
pub const LEGACY_LENGTH: usize = 10;
/// Length of the header with mergeable buffers or VERSION_1.
pub const MODERN_LENGTH: usize = 12;

/// Length of the header with what UDP tunnels need.
pub const TUNNEL_LENGTH: usize = 24;

/// The header's fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetHeader {
    /// Flags, of which the driver uses NEEDS_CSUM.
    pub flags: u8,
    /// Kind of segmentation.
    pub gso_type: u8,
    /// Bytes of all headers of the packet.
    pub header_length: u16,
    /// Payload of each segment.
    pub gso_size: u16,
    /// Where the checksum starts.
    pub checksum_start: u16,
    /// Where the checksum goes, from its start.
    pub checksum_offset: u16,
    /// Receive buffers that the packet takes; only in the modern header.
    pub buffers: u16,
}

impl NetHeader {
    /// The header of a packet whose checksum the other side has to fill in.
    pub fn needs_checksum(start: u16, offset: u16) -> Self {
        Self {
            flags: VIRTIO_NET_HDR_F_NEEDS_CSUM as u8,
            gso_type: VIRTIO_NET_HDR_GSO_NONE as u8,
            checksum_start: start,
            checksum_offset: offset,
            ..Self::default()
        }
    }

    /// The header of a packet that the other side may have to cut into TCP segments.
    pub fn tcp_segmentation(header_length: u16, size: u16, start: u16, offset: u16) -> Self {
        Self {
            gso_type: VIRTIO_NET_HDR_GSO_TCPV4 as u8,
            header_length,
            gso_size: size,
            ..Self::needs_checksum(start, offset)
        }
    }

    /// The header as it stands before a packet, little-endian.
    pub fn encode(&self, modern: bool) -> Vec<u8> {
        let mut bytes = vec![self.flags, self.gso_type];
        let mut fields = vec![
            self.header_length,
            self.gso_size,
            self.checksum_start,
            self.checksum_offset,
        ];
        if modern {
            fields.push(self.buffers);
        }
        bytes.extend(fields.into_iter().flat_map(u16::to_le_bytes));
        bytes
    }

    /// Reads a legacy or modern header by the length of the bytes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let field = |at: usize| {
            bytes
                .get(at..at + 2)
                .map(|b| u16::from_le_bytes([b[0], b[1]]))
        };
        Some(Self {
            flags: *bytes.first()?,
            gso_type: *bytes.get(1)?,
            header_length: field(2)?,
            gso_size: field(4)?,
            checksum_start: field(6)?,
            checksum_offset: field(8)?,
            buffers: field(10).unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_those_of_the_specification() {
        assert_eq!(NetHeader::default().encode(false).len(), LEGACY_LENGTH);
        assert_eq!(NetHeader::default().encode(true).len(), MODERN_LENGTH);
    }

    #[test]
    fn decode_reverses_encode() {
        let mut header = NetHeader::tcp_segmentation(54, 1448, 34, 16);
        assert_eq!(NetHeader::decode(&header.encode(false)), Some(header));
        header.buffers = 3;
        assert_eq!(NetHeader::decode(&header.encode(true)), Some(header));
        assert_eq!(NetHeader::decode(&[0; 9]), None);
    }
}
