// SPDX-License-Identifier: GPL-2.0

//! The text formats of the control interface.

use std::fmt;

use proptest::prelude::*;
use vhost_iocm_engine::engine::abi::{
    parse_cpu_list, parse_flag, parse_mode, parse_number, parse_removal, parse_signed,
    parse_worker, write_list, DeviceId, Malformed, VirtqueueId, WorkerId,
};
use vhost_iocm_engine::engine::sched::polling::Mode;

use crate::cases;

#[test]
fn identifiers_are_printed_with_the_letter_of_their_kind() {
    assert_eq!(WorkerId(0).to_string(), "w.0");
    assert_eq!(DeviceId(u32::MAX).to_string(), "d.4294967295");
    let device = DeviceId(12);
    assert_eq!(VirtqueueId { device, index: 1 }.to_string(), "vq.12.1");
}

#[test]
fn a_worker_is_read_with_and_without_a_newline() {
    assert_eq!(parse_worker(b"w.17"), Ok(WorkerId(17)));
    assert_eq!(parse_worker(b"w.17\n"), Ok(WorkerId(17)));
}

#[test]
fn the_smallest_and_the_largest_worker_are_read() {
    assert_eq!(parse_worker(b"w.0"), Ok(WorkerId(0)));
    assert_eq!(parse_worker(b"w.4294967295"), Ok(WorkerId(u32::MAX)));
}

#[test]
fn what_is_not_exactly_one_worker_is_malformed() {
    let texts: [&[u8]; 36] = [
        b"",
        b"\n",
        b"\0",
        b"w",
        b"w.",
        b"w.\n",
        b"0",
        b".0",
        b"w0",
        b"w,0",
        b"W.0",
        b"d.0",
        b"vq.0.0",
        b"w..0",
        b"w.0.0",
        b"w.w.0",
        b" w.0",
        b"\nw.0",
        b"w.0 ",
        b"w. 0",
        b"w.0\n\n",
        b"w.0\r\n",
        b"w.0\0",
        b"w.0\n\0",
        b"w.0\tw.1\n",
        b"w.00",
        b"w.01",
        b"w.+1",
        b"w.-1",
        b"w.-0",
        b"w.0x1",
        b"w.1a",
        b"w.1_0",
        b"w.4294967296",
        b"w.99999999999999999999999999",
        "w.\u{0661}".as_bytes(),
    ];
    for text in texts {
        let shown = String::from_utf8_lossy(text);
        assert_eq!(parse_worker(text), Err(Malformed), "{shown:?}");
    }
}

#[test]
fn a_worker_is_removed_alone_or_with_an_heir() {
    assert_eq!(parse_removal(b"w.3"), Ok((WorkerId(3), None)));
    assert_eq!(parse_removal(b"w.3\n"), Ok((WorkerId(3), None)));
    let with_heir = Ok((WorkerId(3), Some(WorkerId(0))));
    assert_eq!(parse_removal(b"w.3 w.0"), with_heir);
    assert_eq!(parse_removal(b"w.3 w.0\n"), with_heir);
    for text in [
        "",
        "\n",
        " ",
        "w.3 ",
        " w.3",
        "w.3  w.0",
        "w.3\tw.0",
        "w.3 w.0 ",
        "w.3 w.0 w.1",
        "w.3\n\n",
        "w.3\nw.0",
        "w.3 w.0\n\n",
        "w.3 0",
        "3 w.0",
        "w.3 d.0",
    ] {
        assert_eq!(parse_removal(text.as_bytes()), Err(Malformed), "{text:?}");
    }
}

#[test]
fn a_number_has_digits_only_and_may_be_too_large() {
    assert_eq!(parse_number(b"0"), Ok(0));
    assert_eq!(parse_number(b"100\n"), Ok(100));
    assert_eq!(parse_number(b"4294967295"), Ok(u32::MAX));
    assert_eq!(parse_number(b"99999999999999999999"), Ok(u32::MAX));
    for text in [
        "", "\n", "-1", "+1", "1 ", " 1", "1.5", "0x10", "1\n\n", "ten",
    ] {
        assert_eq!(parse_number(text.as_bytes()), Err(Malformed), "{text:?}");
    }
}

/// The ranges of a list of CPUs.
fn cpu_list(text: &[u8]) -> Result<Vec<(u32, u32)>, Malformed> {
    let mut ranges = Vec::new();
    parse_cpu_list(text, |first, last| {
        ranges.push((first, last));
        Ok(())
    })
    .map(|()| ranges)
}

#[test]
fn a_list_of_cpus_has_numbers_and_ranges() {
    assert_eq!(cpu_list(b"3"), Ok(vec![(3, 3)]));
    assert_eq!(cpu_list(b"2-3\n"), Ok(vec![(2, 3)]));
    assert_eq!(cpu_list(b"0,2"), Ok(vec![(0, 0), (2, 2)]));
    assert_eq!(cpu_list(b"7-7,0-3,1\n"), Ok(vec![(7, 7), (0, 3), (1, 1)]));
    assert_eq!(
        cpu_list(b"4294967295,99999999999-99999999999"),
        Ok(vec![(u32::MAX, u32::MAX); 2])
    );
}

#[test]
fn what_is_no_list_of_cpus_is_malformed() {
    for text in [
        "", "\n", ",", "1,", ",1", "1,,2", "1-", "-1", "1-2-3", "3-2", "1 2", " 1", "1 ", "1, 2",
        "1-2\n\n", "1\n2", "0-7:1/2", "all", "N", "0x1", "1\0", "w.0", "--1", "+1",
    ] {
        assert_eq!(cpu_list(text.as_bytes()), Err(Malformed), "{text:?}");
    }
}

#[test]
fn who_takes_a_list_of_cpus_may_refuse_it() {
    #[derive(Debug, PartialEq)]
    enum Refused {
        Text,
        Range(u32, u32),
    }
    impl From<Malformed> for Refused {
        fn from(_: Malformed) -> Self {
            Self::Text
        }
    }
    let refuse = |first, last| match first {
        5 => Err(Refused::Range(first, last)),
        _ => Ok(()),
    };
    assert_eq!(
        parse_cpu_list(b"1,5-8,x", refuse),
        Err(Refused::Range(5, 8))
    );
    assert_eq!(parse_cpu_list(b"1,x,5-8", refuse), Err(Refused::Text));
    assert_eq!(parse_cpu_list(b"1,6-8", refuse), Ok(()));
}

#[test]
fn what_is_printed_for_a_mode_is_read_as_that_mode() {
    for mode in [Mode::Never, Mode::Always, Mode::Auto] {
        assert_eq!(parse_mode(mode.to_string().as_bytes()), Ok(mode));
        assert_eq!(parse_mode(format!("{mode}\n").as_bytes()), Ok(mode));
    }
    for text in ["", "2", "Auto", "auto ", "autox", "1\n\n", "-1"] {
        assert_eq!(parse_mode(text.as_bytes()), Err(Malformed), "{text:?}");
    }
}

#[test]
fn a_cpu_is_a_signed_number_with_or_without_a_newline() {
    let texts: [(&[u8], i32); 9] = [
        (b"0", 0),
        (b"0\n", 0),
        (b"7\n", 7),
        (b"-1", -1),
        (b"-1\n", -1),
        (b"-0", 0),
        (b"007", 7),
        (b"2147483647", i32::MAX),
        (b"-2147483648", i32::MIN),
    ];
    for (text, cpu) in texts {
        let shown = String::from_utf8_lossy(text);
        assert_eq!(parse_signed(text), Ok(cpu), "{shown:?}");
    }
}

#[test]
fn a_number_that_is_too_long_is_out_of_range_and_not_malformed() {
    for text in ["2147483649", "4294967296", "18446744073709551616"] {
        let out_of_range = parse_signed(text.as_bytes()).expect("a number");
        assert_eq!(out_of_range, i32::MAX, "{text}");
        let negative = format!("-{text}");
        let out_of_range = parse_signed(negative.as_bytes()).expect("a number");
        assert_eq!(out_of_range, i32::MIN, "{negative}");
    }
}

#[test]
fn what_is_not_exactly_one_number_is_malformed() {
    let texts: [&[u8]; 22] = [
        b"",
        b"\n",
        b"\0",
        b"-",
        b"-\n",
        b"--1",
        b"+1",
        b"- 1",
        b" 1",
        b"1 ",
        b"\t1",
        b"1\n\n",
        b"\n1",
        b"1\r\n",
        b"1\0",
        b"1-",
        b"0x1",
        b"1.0",
        b"1,2",
        b"one",
        b"99999999999999999999x",
        "\u{0661}".as_bytes(),
    ];
    for text in texts {
        let shown = String::from_utf8_lossy(text);
        assert_eq!(parse_signed(text), Err(Malformed), "{shown:?}");
    }
}

#[test]
fn a_flag_is_0_or_1_with_or_without_a_newline() {
    assert_eq!(parse_flag(b"0"), Ok(false));
    assert_eq!(parse_flag(b"1"), Ok(true));
    assert_eq!(parse_flag(b"0\n"), Ok(false));
    assert_eq!(parse_flag(b"1\n"), Ok(true));
}

#[test]
fn what_is_not_exactly_one_flag_is_malformed() {
    let texts: [&[u8]; 16] = [
        b"", b"\n", b"\0", b"2", b"-1", b"+1", b"00", b"01", b"10", b" 1", b"1 ", b"1\n\n", b"\n1",
        b"1\r\n", b"y", b"on",
    ];
    for text in texts {
        let shown = String::from_utf8_lossy(text);
        assert_eq!(parse_flag(text), Err(Malformed), "{shown:?}");
    }
}

fn list(count: u32) -> String {
    let mut out = String::new();
    write_list(&mut out, (0..count).map(WorkerId)).expect("room without end");
    out
}

#[test]
fn a_list_of_nothing_is_empty() {
    assert_eq!(list(0), "");
}

#[test]
fn a_list_of_one_item_is_that_item_and_a_newline() {
    assert_eq!(list(1), "w.0\n");
}

#[test]
fn items_of_a_list_are_separated_by_tabs() {
    assert_eq!(list(3), "w.0\tw.1\tw.2\n");
}

/// Room for a number of bytes, like the page of a sysfs attribute.
struct Page {
    text: String,
    room: usize,
}

impl fmt::Write for Page {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.text.len() + text.len() > self.room {
            return Err(fmt::Error);
        }
        self.text.push_str(text);
        Ok(())
    }
}

#[test]
fn a_list_without_enough_room_is_cut_after_an_item() {
    let whole = list(12);
    let cuts: Vec<_> = whole.match_indices(['\t', '\n']).map(|cut| cut.0).collect();
    for room in 0..=whole.len() {
        let mut page = Page {
            text: String::new(),
            room,
        };
        write_list(&mut page, (0..12).map(WorkerId)).expect("short names");
        let cut = cuts.iter().rfind(|cut| **cut <= room).unwrap_or(&0);
        let newline = if *cut > 0 && room > *cut { "\n" } else { "" };
        assert_eq!(page.text, format!("{}{newline}", &whole[..*cut]), "{room}");
    }
}

#[test]
fn the_longest_names_fit_into_a_list() {
    let device = DeviceId(u32::MAX);
    let index = u32::MAX;
    let mut out = String::new();
    write_list(&mut out, [VirtqueueId { device, index }; 2]).expect("a name of the interface");
    let name = "vq.4294967295.4294967295";
    assert_eq!(out, format!("{name}\t{name}\n"));
}

#[test]
fn an_item_longer_than_any_name_is_an_error_and_not_cut() {
    let mut out = String::new();
    let items = ["short", "a name that goes on for more bytes than there are"];
    assert_eq!(write_list(&mut out, items), Err(fmt::Error));
    assert_eq!(out, "short");
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn what_is_printed_for_a_worker_is_read_as_that_worker(number: u32, newline: bool) {
        let mut text = WorkerId(number).to_string();
        if newline {
            text.push('\n');
        }
        prop_assert_eq!(parse_worker(text.as_bytes()), Ok(WorkerId(number)));
    }

    #[test]
    fn each_worker_has_one_spelling(text in "w\\.[0-9]{1,11}") {
        if let Ok(worker) = parse_worker(text.as_bytes()) {
            prop_assert_eq!(worker.to_string(), text);
        }
    }

    #[test]
    fn what_is_printed_for_a_list_of_cpus_is_read_as_that_list(
        ranges in prop::collection::vec((0u32.., 0u32..).prop_map(|(a, b)| (a.min(b), a.max(b))), 1..8)
    ) {
        let text: Vec<_> = ranges.iter().map(|(first, last)| format!("{first}-{last}")).collect();
        prop_assert_eq!(cpu_list(text.join(",").as_bytes()), Ok(ranges));
    }

    #[test]
    fn no_text_makes_a_list_of_cpus_go_wrong(text in "[-0-9,\n ]{0,12}") {
        if let Ok(ranges) = cpu_list(text.as_bytes()) {
            prop_assert!(!ranges.is_empty());
            prop_assert!(ranges.iter().all(|(first, last)| first <= last));
            prop_assert!(!text.contains(' '));
        }
    }

    #[test]
    fn what_is_printed_for_a_number_is_read_as_that_number(cpu: i32) {
        prop_assert_eq!(parse_signed(cpu.to_string().as_bytes()), Ok(cpu));
    }

    #[test]
    fn only_one_spelling_of_a_worker_and_nothing_else_is_accepted(
        text in proptest::collection::vec(prop_oneof![
            Just(b'w'), Just(b'.'), Just(b'\n'), b'0'..=b'9', any::<u8>(),
        ], 0..14),
    ) {
        // The standard library parses the number here, after its own stricter look at the text.
        let naive = || {
            let text = std::str::from_utf8(&text).ok()?;
            let digits = text.strip_suffix('\n').unwrap_or(text).strip_prefix("w.")?;
            let number: u32 = digits.parse().ok()?;
            (number.to_string() == digits).then_some(WorkerId(number))
        };
        prop_assert_eq!(parse_worker(&text).ok(), naive());
    }

    #[test]
    fn only_signed_numbers_are_accepted_for_a_cpu(
        text in proptest::collection::vec(prop_oneof![
            Just(b'-'), Just(b'+'), Just(b'\n'), b'0'..=b'9', any::<u8>(),
        ], 0..8),
    ) {
        let naive = || {
            let text = std::str::from_utf8(&text).ok()?;
            let text = text.strip_suffix('\n').unwrap_or(text);
            if text.starts_with('+') {
                return None;
            }
            text.parse::<i32>().ok()
        };
        prop_assert_eq!(parse_signed(&text).ok(), naive());
    }

    #[test]
    fn a_list_can_be_taken_apart_again(
        ids in proptest::collection::vec(any::<(u32, u32)>(), 1..40),
    ) {
        let ids = ids.into_iter().map(|(device, index)| VirtqueueId {
            device: DeviceId(device),
            index,
        });
        let ids: Vec<_> = ids.collect();
        let mut out = String::new();
        write_list(&mut out, &ids).expect("room without end");
        let line = out.strip_suffix('\n').expect("a newline at the end");
        let items: Vec<_> = line.split('\t').map(String::from).collect();
        let expected: Vec<_> = ids.iter().map(ToString::to_string).collect();
        prop_assert_eq!(items, expected);
    }
}

#[test]
fn the_smallest_number_of_32_bits_is_read_as_itself() {
    assert_eq!(parse_signed(b"-2147483648"), Ok(i32::MIN));
}
