// SPDX-License-Identifier: GPL-2.0

//! The device IOTLB against models that are slow and plain.

use proptest::prelude::*;
use vhost_iocm_engine::engine::iotlb::map::{Entry, Map, Permissions, Untranslated};
use vhost_iocm_engine::engine::iotlb::message::{
    decode, encode, Malformed, Request, Version, MEANT, SIZE,
};
use vhost_iocm_engine::engine::iotlb::misses::{Miss, Misses};
use vhost_iocm_engine::engine::mem::Access;

use crate::cases;

const BOTH: Permissions = Permissions(3);

fn map(limit: usize) -> Map<Vec<Entry>> {
    Map::new(vec![Entry::default(); limit])
}

/// Stock vhost's list of mappings, in the order in which they were added.
#[derive(Default)]
struct Model {
    limit: usize,
    entries: Vec<(u64, u64, u64, u8)>,
}

impl Model {
    fn insert(&mut self, first: u64, last: u64, user: u64, permissions: u8) {
        if self.entries.len() == self.limit {
            self.entries.remove(0);
        }
        self.entries.push((first, last, user, permissions));
    }

    fn remove(&mut self, first: u64, last: u64) {
        self.entries
            .retain(|entry| !(entry.0 <= last && first <= entry.1));
    }

    fn translate(&self, addr: u64, access: Access) -> Result<(u64, u64), Untranslated> {
        // The first minimum is the oldest.
        let entry = self
            .entries
            .iter()
            .filter(|entry| entry.0 <= addr && addr <= entry.1)
            .min_by_key(|entry| entry.0)
            .ok_or(Untranslated::Missing)?;
        if entry.3 & Permissions::of(access).0 == 0 {
            return Err(Untranslated::Forbidden);
        }
        Ok((
            entry.2.wrapping_add(addr - entry.0),
            (entry.1 - addr).saturating_add(1),
        ))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u64, u64, u64, u8),
    Remove(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u64..200, 1u64..60, any::<u64>(), 0u8..4)
            .prop_map(|(first, len, user, permissions)| {
                Step::Insert(first, first + len - 1, user, permissions)
            }),
        1 => (0u64..200, 0u64..60).prop_map(|(first, len)| {
            Step::Remove(first, first.wrapping_add(len).wrapping_sub(1))
        }),
    ]
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn the_map_translates_like_a_list(
        limit in 1usize..12,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut map = map(limit);
        let mut model = Model { limit, ..Model::default() };
        for step in steps {
            match step {
                Step::Insert(first, last, user, permissions) => {
                    map.insert(first, last, user, Permissions(permissions));
                    model.insert(first, last, user, permissions);
                }
                Step::Remove(first, last) => {
                    map.remove(first, last);
                    model.remove(first, last);
                }
            }
            prop_assert_eq!(map.len(), model.entries.len());
            for addr in 0..270 {
                for access in [Access::Read, Access::Write] {
                    prop_assert_eq!(map.translate(addr, access), model.translate(addr, access));
                }
            }
        }
    }
}

#[test]
fn the_ends_of_the_address_space_are_addresses() {
    let mut map = map(2);
    map.insert(1, u64::MAX, 0x1000, BOTH);
    assert_eq!(map.translate(0, Access::Read), Err(Untranslated::Missing));
    assert_eq!(map.translate(1, Access::Read), Ok((0x1000, u64::MAX)));
    assert_eq!(
        map.translate(u64::MAX, Access::Write),
        Ok((0x1000u64.wrapping_add(u64::MAX - 1), 1))
    );
    map.insert(0, u64::MAX, 0x2000, BOTH);
    assert_eq!(map.translate(0, Access::Read), Ok((0x2000, u64::MAX)));
}

#[test]
fn a_new_translation_takes_the_place_of_the_oldest() {
    let mut map = map(2048);
    for page in 0..5000u64 {
        map.insert(page << 12, (page << 12) + 4095, page, BOTH);
    }
    assert_eq!(map.len(), 2048);
    assert!(map.translate((5000 - 2048) << 12, Access::Read).is_ok());
    assert!(map.translate((5000 - 2049) << 12, Access::Read).is_err());
}

#[test]
fn a_map_without_room_has_no_translation() {
    let mut map = map(0);
    map.insert(0, 10, 0, BOTH);
    map.remove(0, u64::MAX);
    assert!(map.is_empty());
    assert_eq!(map.translate(5, Access::Read), Err(Untranslated::Missing));
}

/// A message with these fields.
fn message(version: u32, iova: u64, len: u64, user: u64, permissions: u8, kind: u8) -> Vec<u8> {
    let mut bytes = vec![0xaa; SIZE];
    bytes[..4].copy_from_slice(&version.to_ne_bytes());
    bytes[8..16].copy_from_slice(&iova.to_ne_bytes());
    bytes[16..24].copy_from_slice(&len.to_ne_bytes());
    bytes[24..32].copy_from_slice(&user.to_ne_bytes());
    bytes[32] = permissions;
    bytes[33] = kind;
    bytes
}

#[test]
fn requests_are_read_as_they_are_written() {
    for version in [1, 2] {
        let update = message(version, 0x1000, 0x2000, 0x7f00, 3, 2);
        let expected = Request::Update {
            first: 0x1000,
            last: 0x2fff,
            user_addr: 0x7f00,
            permissions: BOTH,
        };
        assert_eq!(decode(&update), Ok(expected));
        assert_eq!(decode(&update[..MEANT]), Ok(expected));
        let invalidate = message(version, 0x1000, 0x1000, 0, 0, 3);
        let (first, last) = (0x1000, 0x1fff);
        assert_eq!(decode(&invalidate), Ok(Request::Invalidate { first, last }));
    }
}

#[test]
fn everything_is_invalidated_by_a_range_of_nothing_from_0_on() {
    let (first, last) = (0, u64::MAX);
    let all = message(1, 0, 0, 0, 0, 3);
    assert_eq!(decode(&all), Ok(Request::Invalidate { first, last }));
}

#[test]
fn what_is_no_message_is_told_from_what_is_refused() {
    assert_eq!(decode(&[]), Err(Malformed));
    assert_eq!(
        decode(&message(1, 0, 1, 0, 3, 2)[..MEANT - 1]),
        Err(Malformed)
    );
    assert_eq!(decode(&message(0, 0, 1, 0, 3, 2)), Err(Malformed));
    assert_eq!(decode(&message(3, 0, 1, 0, 3, 2)), Err(Malformed));
    assert_eq!(decode(&message(1, 0, 0, 0, 3, 2)), Err(Malformed));
    assert_eq!(
        decode(&message(1, u64::MAX, 2, 0, 3, 2)),
        Ok(Request::Refused)
    );
    for kind in [0, 1, 4, 5, 6, 255] {
        assert_eq!(decode(&message(2, 0, 1, 0, 3, kind)), Ok(Request::Refused));
    }
}

#[test]
fn a_question_has_nothing_but_its_fields() {
    let miss = Miss {
        addr: 0x1122_3344_5566_7788,
        access: Access::Write,
    };
    for version in [Version::V1, Version::V2] {
        let mut expected = [0; SIZE];
        expected[..4].copy_from_slice(&(version as u32).to_ne_bytes());
        expected[8..16].copy_from_slice(&miss.addr.to_ne_bytes());
        expected[32] = 2;
        expected[33] = 1;
        assert_eq!(encode(version, miss), expected);
    }
}

fn miss(addr: u64) -> Miss {
    Miss {
        addr,
        access: Access::Read,
    }
}

#[test]
fn a_virtqueue_asks_one_question_at_a_time() {
    let mut misses = Misses::<2>::new();
    assert!(misses.post(0, miss(1)));
    assert!(!misses.post(0, miss(1)));
    assert!(misses.post(0, miss(2)));
    assert_eq!(misses.take(), Some((0, miss(2))));
    assert_eq!(misses.take(), None);
}

#[test]
fn a_question_that_was_read_may_be_asked_again() {
    let mut misses = Misses::<2>::new();
    misses.post(1, miss(5));
    assert_eq!(misses.take(), Some((1, miss(5))));
    assert!(!misses.has_unread());
    assert!(misses.post(1, miss(5)));
    assert!(misses.has_unread());
}

#[test]
fn questions_are_read_in_the_order_in_which_they_were_asked() {
    let mut misses = Misses::<2>::new();
    misses.post(1, miss(1));
    misses.post(0, miss(2));
    assert_eq!(misses.take(), Some((1, miss(1))));
    misses.post(1, miss(3));
    assert_eq!(misses.take(), Some((0, miss(2))));
    assert_eq!(misses.take(), Some((1, miss(3))));
}

#[test]
fn an_answer_resumes_who_waits_for_it_whether_the_question_was_read_or_not() {
    let mut misses = Misses::<2>::new();
    misses.post(0, miss(0x1000));
    misses.post(1, miss(0x2000));
    assert_eq!(misses.take(), Some((0, miss(0x1000))));
    assert!(!misses.resolve(0, 0, 0xfff));
    assert!(!misses.resolve(0, 0x1001, u64::MAX));
    assert!(misses.resolve(0, 0x1000, 0x1000));
    assert!(!misses.resolve(0, 0x1000, 0x1000));
    assert!(misses.resolve(1, 0, 0x2000));
    assert!(!misses.has_unread());
}

#[test]
fn what_is_forgotten_is_neither_read_nor_resumed() {
    let mut misses = Misses::<2>::new();
    misses.post(0, miss(1));
    misses.post(1, miss(1));
    misses.forget(0);
    assert_eq!(misses.take(), Some((1, miss(1))));
    assert!(!misses.resolve(0, 0, u64::MAX));
    assert!(misses.resolve(1, 0, u64::MAX));
}

#[test]
fn there_are_no_more_virtqueues_than_slots() {
    let mut misses = Misses::<2>::new();
    assert!(!misses.post(2, miss(1)));
    assert!(!misses.resolve(2, 0, u64::MAX));
    misses.forget(2);
    assert!(!misses.has_unread());
}
