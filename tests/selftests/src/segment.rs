// SPDX-License-Identifier: GPL-2.0
//! TCP packets whose checksum and segmentation are left to the other side.

use anyhow::{ensure, Result};

use crate::frame::{self, ETHERNET_HEADER};
use crate::header::NetHeader;

/// EtherType of IPv4.
pub const ETHERTYPE: u16 = 0x0800;

const IP_HEADER: usize = 20;
const TCP_HEADER: usize = 20;
const TCP_START: usize = ETHERNET_HEADER + IP_HEADER;
/// Bytes before the payload.
pub const HEADERS: usize = TCP_START + TCP_HEADER;
/// The largest IPv4 packet, with its Ethernet header.
pub const MAXIMUM: usize = ETHERNET_HEADER + u16::MAX as usize;

/// Payload of a segment of a TCP packet with time stamps on an Ethernet.
pub const SIZE: u16 = 1448;

const TCP_CHECKSUM: usize = 16;
const PROTOCOL_TCP: u8 = 6;
/// Addresses from the range for documentation, which no host has.
const SOURCE: [u8; 4] = [192, 0, 2, 1];
const DESTINATION: [u8; 4] = [192, 0, 2, 2];

/// Builds a TCP packet of this many bytes with the checksum left open, as a guest hands it over: the
/// field holds the sum of the pseudo header only.
pub fn encode(sequence: u32, length: usize) -> Vec<u8> {
    assert!(
        (HEADERS..=MAXIMUM).contains(&length),
        "packet of {length} bytes"
    );
    let mut packet = vec![0; length];
    packet[..6].copy_from_slice(&[0x02, 0, 0, 0, 0, 2]);
    packet[6..12].copy_from_slice(&[0x02, 0, 0, 0, 0, 1]);
    packet[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());

    let ip = &mut packet[ETHERNET_HEADER..TCP_START];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&((length - ETHERNET_HEADER) as u16).to_be_bytes());
    ip[8] = 64;
    ip[9] = PROTOCOL_TCP;
    ip[12..16].copy_from_slice(&SOURCE);
    ip[16..20].copy_from_slice(&DESTINATION);
    let checksum = !fold(sum(0, ip));
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());

    let tcp = &mut packet[TCP_START..];
    tcp[..4].copy_from_slice(&[0x13, 0x88, 0x13, 0x89]);
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    tcp[12] = 0x50;
    tcp[13] = 0x10;
    for (offset, byte) in tcp[TCP_HEADER..].iter_mut().enumerate() {
        *byte = (offset as u8) ^ (offset >> 8) as u8 ^ sequence as u8;
    }
    let pseudo = pseudo_header(length - TCP_START);
    tcp[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&fold(pseudo).to_be_bytes());
    packet
}

/// The header that leaves the checksum of such a packet to the other side.
pub fn checksum_header() -> NetHeader {
    NetHeader::needs_checksum(TCP_START as u16, TCP_CHECKSUM as u16)
}

/// The header that leaves the segmentation of such a packet to the other side.
pub fn segmentation_header(size: u16) -> NetHeader {
    let (headers, start) = (HEADERS as u16, TCP_START as u16);
    NetHeader::tcp_segmentation(headers, size, start, TCP_CHECKSUM as u16)
}

/// A packet of this many bytes for which nobody listens, with its header: one that a frame is too short for is
/// to be cut into segments.
pub fn unheard(length: usize) -> (NetHeader, Vec<u8>) {
    if length > frame::MAXIMUM {
        (segmentation_header(SIZE), encode(0, length))
    } else {
        (NetHeader::default(), frame::unheard(length))
    }
}

/// Fills in the checksum as the header asks, as a network card does.
pub fn complete(header: &NetHeader, packet: &mut [u8]) {
    if *header == NetHeader::default() {
        return;
    }
    let start = usize::from(header.checksum_start);
    let at = start + usize::from(header.checksum_offset);
    let checksum = !fold(sum(0, &packet[start..]));
    packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Checks the TCP checksum of a packet.
pub fn verify(packet: &[u8]) -> Result<()> {
    ensure!(packet.len() >= HEADERS, "packet of {} bytes", packet.len());
    let tcp = &packet[TCP_START..];
    let total = fold(sum(pseudo_header(tcp.len()), tcp));
    ensure!(total == 0xffff, "TCP checksum is wrong: sum {total:#06x}");
    Ok(())
}

fn pseudo_header(length: usize) -> u32 {
    sum(
        sum(u32::from(PROTOCOL_TCP) + length as u32, &SOURCE),
        &DESTINATION,
    )
}

fn sum(start: u32, bytes: &[u8]) -> u32 {
    bytes.chunks(2).fold(start, |total, pair| {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        // 64 KiB of words cannot overflow 32 bits.
        total + u32::from(word)
    })
}

fn fold(mut total: u32) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completed_packet_verifies() {
        for length in [HEADERS, HEADERS + 1, 1514, MAXIMUM] {
            let mut packet = encode(42, length);
            assert!(verify(&packet).is_err());
            complete(&checksum_header(), &mut packet);
            verify(&packet).unwrap();
            packet[length - 1] ^= 0x40;
            assert!(verify(&packet).is_err());
        }
    }

    #[test]
    fn headers_point_at_the_checksum() {
        let header = segmentation_header(1448);
        assert_eq!((header.checksum_start, header.checksum_offset), (34, 16));
        assert_eq!(header.header_length, 54);
    }
}
