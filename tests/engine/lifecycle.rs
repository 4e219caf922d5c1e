// SPDX-License-Identifier: GPL-2.0

//! Setting a ring up, starting it and taking its state out again.

use vhost_iocm_engine::engine::error::RingError;
use vhost_iocm_engine::engine::ring::{Layout, Ring};

use crate::guest::{Access, Guest};

#[test]
fn ring_sizes_are_powers_of_two_up_to_32768() {
    for num in 0..=0x2_0000_u32 {
        let mut ring = Ring::new();
        let allowed = num.count_ones() == 1 && num <= 32768;
        assert_eq!(ring.set_num(num), allowed, "{num}");
    }
    assert!(!Ring::new().set_num(1 << 31));
    assert!(!Ring::new().set_num(u32::MAX));
}

#[test]
fn a_refused_size_leaves_the_ring_as_it_was() {
    let mut ring = Ring::new();
    assert!(ring.set_num(8));
    assert!(!ring.set_num(9));
    assert!(!ring.set_num(0x1_0008));
    assert_eq!(ring.num(), 8);
}

#[test]
fn a_new_ring_has_one_entry_and_no_addresses() {
    for ring in [Ring::new(), Ring::default()] {
        assert_eq!((ring.num(), ring.base()), (1, 0));
        assert_eq!(ring.layout(), Layout::default());
        assert!(!ring.is_set_up());
        assert!(!ring.event_idx());
    }
}

#[test]
fn any_address_makes_a_ring_set_up() {
    let layouts = [(1, 0, 0), (0, 2, 0), (0, 0, 4)];
    for (desc, avail, used) in layouts {
        let layout = Layout { desc, avail, used };
        let mut ring = Ring::new();
        ring.set_layout(layout);
        assert!(ring.is_set_up());
        assert_eq!(ring.layout(), layout);
    }
}

#[test]
fn event_fields_belong_to_the_ring_when_they_were_negotiated() {
    let layout = Layout {
        desc: 0x1000,
        avail: 0x2000,
        used: 0x3000,
    };
    assert_eq!(
        layout.parts(256, false),
        [(0x1000, 4096), (0x2000, 516), (0x3000, 2052)]
    );
    assert_eq!(
        layout.parts(256, true),
        [(0x1000, 4096), (0x2000, 518), (0x3000, 2054)]
    );
    assert_eq!(
        layout.parts(32768, true),
        [(0x1000, 0x8_0000), (0x2000, 0x1_0006), (0x3000, 0x4_0006)]
    );
}

#[test]
fn everything_that_is_touched_lies_in_the_parts_of_the_ring() {
    for (event_idx, ahead) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut guest = Guest::new(4).starting_at(0).with_features(event_idx, false);
        if ahead {
            guest.mem.offer_ahead();
        }
        guest.post_singles(4);
        guest.drain();
        guest.push(4);
        guest.needs_interrupt();
        guest.needs_interrupt();
        guest.disable_notify();
        guest.enable_notify().unwrap();
        let parts = guest.layout.parts(4, event_idx);
        for access in guest.mem.touches() {
            let (addr, len) = match access {
                Access::ReadU16(addr) | Access::WriteU16(addr, _) => (addr, 2),
                Access::ReadAhead(addr, len) => (addr, len as u64),
                Access::ReadDescriptor(addr) => (addr, 16),
                Access::WriteUsed(addr, count) => (addr, 8 * count as u64),
                Access::Translate(_) => continue,
            };
            let inside = |(part, size): &(u64, u64)| *part <= addr && addr + len <= part + size;
            assert!(parts.iter().any(inside), "{access:x?}");
        }
    }
}

#[test]
fn the_base_is_the_next_entry_to_take() {
    let mut guest = Guest::new(4).starting_at(0xffff);
    guest.post_singles(2);
    guest.pop_head();
    assert_eq!(guest.ring.base(), 0);
}

#[test]
fn setting_the_base_forgets_the_index_of_the_driver() {
    let mut guest = Guest::new(4);
    guest.post_singles(4);
    guest.pop_head();
    guest.ring.set_base(4);
    assert_eq!(guest.pop(), Ok(None));
    guest.ring.set_base(2);
    assert_eq!(guest.pop_head(), Some(2));
}

#[test]
fn a_base_beyond_what_was_seen_of_the_driver_is_not_available() {
    let mut guest = Guest::new(4);
    guest.post_singles(2);
    guest.pop_head();
    guest.write_avail_idx(3);
    guest.ring.set_base(3);
    assert_eq!(guest.pop(), Ok(None));
}

#[test]
fn starting_takes_up_the_used_index_in_memory() {
    let mut guest = Guest::new(4).starting_at(41);
    guest.push(1);
    assert_eq!(guest.used_idx(), 42);
}

#[test]
fn starting_writes_the_flags_that_are_in_force() {
    let mut guest = Guest::new(4).starting_at(0);
    assert_eq!(guest.used_flags(), 0);
    guest.disable_notify();
    guest.mem.poke(guest.layout.used, &[0, 0]);
    guest.ring.start(&guest.mem).unwrap();
    assert_eq!(guest.used_flags(), 1);
    guest.mem.poke(guest.layout.used, &[1, 0]);
    guest.enable_notify().unwrap();
    guest.ring.start(&guest.mem).unwrap();
    assert_eq!(guest.used_flags(), 0);
}

#[test]
fn starting_makes_the_next_interrupt_unconditional() {
    let mut guest = Guest::new(4).starting_at(0).with_features(true, false);
    guest.write_used_event(100);
    assert!(guest.needs_interrupt());
    assert!(!guest.needs_interrupt());
    guest.ring.start(&guest.mem).unwrap();
    assert!(guest.needs_interrupt());
}

#[test]
fn a_ring_that_cannot_be_reached_is_not_started() {
    let guest = Guest::new(4);
    for field in [guest.layout.used, guest.layout.used + 2] {
        guest.mem.break_range(field..field + 2);
        let mut ring = guest.ring;
        assert_eq!(ring.start(&guest.mem), Err(RingError::Fault));
        guest.mem.repair();
    }
}
