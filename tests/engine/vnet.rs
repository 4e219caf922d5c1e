// SPDX-License-Identifier: GPL-2.0

//! The header of a packet.

use proptest::prelude::*;
use vhost_iocm_engine::engine::vnet::{
    checked_hdr_len, set_hdr_len, ChecksumOutside, Header, LEGACY_LEN, LEN,
};

use crate::cases;

const NEEDS_CSUM: u8 = 1;

fn header(flags: u8, hdr_len: u16, csum_start: u16, csum_offset: u16) -> Header {
    let mut header = [0xee; LEGACY_LEN];
    header[0] = flags;
    header[2..4].copy_from_slice(&hdr_len.to_le_bytes());
    header[6..8].copy_from_slice(&csum_start.to_le_bytes());
    header[8..10].copy_from_slice(&csum_offset.to_le_bytes());
    header
}

#[test]
fn headers_have_the_lengths_of_the_specification() {
    assert_eq!((LEGACY_LEN, LEN), (10, 12));
}

#[test]
fn a_header_without_a_checksum_to_fill_in_stays() {
    for flags in [0, 2, 4, 0xfe] {
        let header = header(flags, 0, u16::MAX, u16::MAX);
        assert_eq!(checked_hdr_len(&header, 0), Ok(None));
    }
}

#[test]
fn other_flags_do_not_hide_the_checksum() {
    let header = header(0xff, 0, 34, 16);
    assert_eq!(checked_hdr_len(&header, 100), Ok(Some(52)));
}

#[test]
fn a_header_length_that_covers_the_checksum_stays() {
    let header = header(NEEDS_CSUM, 52, 34, 16);
    assert_eq!(checked_hdr_len(&header, 100), Ok(None));
}

#[test]
fn a_header_length_that_covers_half_the_checksum_grows() {
    let header = header(NEEDS_CSUM, 51, 34, 16);
    assert_eq!(checked_hdr_len(&header, 100), Ok(Some(52)));
}

#[test]
fn a_checksum_may_be_the_last_of_a_frame() {
    let header = header(NEEDS_CSUM, 0, 34, 16);
    assert_eq!(checked_hdr_len(&header, 52), Ok(Some(52)));
}

#[test]
fn a_checksum_behind_its_frame_is_an_error() {
    let header = header(NEEDS_CSUM, 0, 34, 16);
    assert_eq!(checked_hdr_len(&header, 51), Err(ChecksumOutside));
}

#[test]
fn a_sum_that_16_bits_cannot_hold_is_an_error() {
    let largest = header(NEEDS_CSUM, 0, 65533, 0);
    assert_eq!(checked_hdr_len(&largest, 100_000), Ok(Some(u16::MAX)));
    for (start, offset) in [(65534, 0), (65533, 1), (65535, 65535), (0, 65534)] {
        let header = header(NEEDS_CSUM, u16::MAX, start, offset);
        assert_eq!(
            checked_hdr_len(&header, 100_000),
            Err(ChecksumOutside),
            "{start} {offset}"
        );
    }
}

#[test]
fn a_header_length_that_is_stored_is_the_one_that_is_read() {
    let mut grown = header(NEEDS_CSUM, 0, 34, 0x1210);
    set_hdr_len(&mut grown, 0x1234);
    assert_eq!(grown, header(NEEDS_CSUM, 0x1234, 34, 0x1210));
    assert_eq!(checked_hdr_len(&grown, 0), Ok(None));
}

/// The same by its definition: the header has to reach the last byte of the checksum, and that
/// byte has to be one of the frame that the field can name.
fn naive(header: &Header, frame_len: usize) -> Result<Option<u16>, ChecksumOutside> {
    let [flags, _, h0, h1, _, _, s0, s1, o0, o1] = *header;
    if flags % 2 == 0 {
        return Ok(None);
    }
    let end = (i64::from(s0) + 256 * i64::from(s1)) + (i64::from(o0) + 256 * i64::from(o1)) + 2;
    let hdr_len = i64::from(h0) + 256 * i64::from(h1);
    if hdr_len >= end {
        Ok(None)
    } else if end > frame_len as i64 || end > 65535 {
        Err(ChecksumOutside)
    } else {
        Ok(Some(end as u16))
    }
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn any_header_is_treated_as_the_definition_says(header: Header, frame_len in 0_usize..0x20000) {
        prop_assert_eq!(checked_hdr_len(&header, frame_len), naive(&header, frame_len));
    }

    #[test]
    fn headers_of_real_sizes_are_treated_as_the_definition_says(
        hdr_len in 0_u16..200,
        csum_start in 0_u16..100,
        csum_offset in 0_u16..100,
        frame_len in 0_usize..200,
    ) {
        let header = header(NEEDS_CSUM, hdr_len, csum_start, csum_offset);
        prop_assert_eq!(checked_hdr_len(&header, frame_len), naive(&header, frame_len));
    }
}
