// SPDX-License-Identifier: GPL-2.0

//! The binary snapshot: its layout, and what readers get while it is written. All interleavings of
//! one record are explored in `tests/loom`.

use std::hint;
use std::mem::size_of;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vhost_iocm_engine::atomics::AtomicU64;
use vhost_iocm_engine::engine::snapshot::{
    clear_record, read_page, read_record,
    sequence::{look, Section},
    Busy, DeviceRecord, DeviceSettings, Field, Kind, Record, VirtqueueRecord, WorkerRecord,
    COUNTERS, PAGE_HEAD,
};
use vhost_iocm_engine::engine::stats::{VirtqueueStats, WorkerStats};

const ABI: &str = include_str!("../../sysfs-abi/testing/sysfs-class-vhost");
const PAGE: usize = 512;

fn words(count: usize) -> Vec<AtomicU64> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

/// The words of a record that have a name, as the document lists them.
fn named(description: &[Field], counters: &[Field]) -> Vec<(usize, String)> {
    let mut names = vec![
        (0, "sequence".to_owned()),
        (1, "generation".to_owned()),
        (2, "used".to_owned()),
    ];
    names.extend(description.iter().map(|f| (f.word, f.name.to_owned())));
    names.push((COUNTERS, "sequence".to_owned()));
    names.extend(
        counters
            .iter()
            .map(|field| (COUNTERS + field.word, field.name.to_owned())),
    );
    names
}

/// The table of words that the document has below this title.
fn documented(title: &str) -> Vec<(usize, String)> {
    let (_, table) = ABI.split_once(title).expect("a title in the document");
    table
        .lines()
        .skip_while(|line| !line.trim_start().starts_with('0'))
        .take_while(|line| line.starts_with("\t\t"))
        .filter_map(|line| {
            let mut parts = line.split_whitespace();
            let word = parts.next()?.parse().ok()?;
            Some((word, parts.next()?.to_owned()))
        })
        .collect()
}

#[test]
fn the_document_says_where_each_word_is() {
    let kinds = [
        (
            "A worker (kind 1)",
            named(WorkerRecord::FIELDS, WorkerStats::FIELDS),
        ),
        (
            "A device (kind 2)",
            named(DeviceRecord::FIELDS, DeviceSettings::FIELDS),
        ),
        (
            "A virtqueue (kind 3)",
            named(VirtqueueRecord::FIELDS, VirtqueueStats::FIELDS),
        ),
    ];
    for (title, layout) in kinds {
        let text: String = layout
            .iter()
            .map(|(word, name)| format!("\t\t{word:>4}  {name}\n"))
            .collect();
        assert_eq!(documented(title), layout, "{title}:\n{text}");
    }
}

#[test]
fn words_do_not_overlap_and_records_are_whole_cache_lines() {
    for (description, counters, size) in [
        (
            WorkerRecord::FIELDS,
            WorkerStats::FIELDS,
            WorkerRecord::SIZE,
        ),
        (
            DeviceRecord::FIELDS,
            DeviceSettings::FIELDS,
            DeviceRecord::SIZE,
        ),
        (
            VirtqueueRecord::FIELDS,
            VirtqueueStats::FIELDS,
            VirtqueueRecord::SIZE,
        ),
    ] {
        let mut next = 3;
        for field in description {
            assert_eq!(field.word, next, "{}", field.name);
            next += field.words;
        }
        assert!(next <= COUNTERS);
        let mut next = COUNTERS + 1;
        for field in counters {
            assert_eq!(COUNTERS + field.word, next, "{}", field.name);
            next += field.words;
        }
        assert!(next * size_of::<u64>() <= size);
        assert_eq!(size % 64, 0);
        assert_eq!(PAGE_HEAD * size_of::<u64>() % 64, 0);
    }
}

#[test]
fn a_record_that_is_written_is_busy_and_can_be_read_afterwards() {
    for first in [0, COUNTERS] {
        let record = words(COUNTERS + 8);
        let mut copy = vec![0; record.len()];
        let section = Section::begin(&record[first]);
        record[first + 1].store(7);
        assert_eq!(read_record(&record, &mut copy), Err(Busy));
        assert_eq!(copy[0] % 2, 1, "a busy copy says so");
        let second = |record: &[AtomicU64]| record[first + 1].load();
        assert_eq!(look(&record, second), Err(Busy));
        drop(section);
        assert_eq!(read_record(&record, &mut copy), Ok(()));
        assert_eq!((copy[first], copy[first + 1]), (2, 7));
        assert_eq!(look(&record, second), Ok(7));
    }
}

#[test]
fn a_cleared_record_keeps_its_sequences_and_its_generation() {
    let record = words(COUNTERS + 8);
    for (word, value) in record.iter().zip(2..) {
        word.store(2 * value);
    }
    clear_record(&record);
    for (index, word) in record.iter().enumerate() {
        let kept = [0, 1, COUNTERS].contains(&index);
        let expected = if kept { 2 * (index as u64 + 2) } else { 0 };
        assert_eq!(word.load(), expected, "word {index}");
    }
}

/// A page of records of 24 words, each word of which has its index in the page.
fn page() -> Vec<AtomicU64> {
    let page = words(PAGE);
    for (index, word) in page.iter().enumerate() {
        word.store(index as u64);
    }
    page[0].store(Kind::Device as u64);
    page[1].store(24 * 8);
    page[2].store(20);
    for record in 0..20 {
        page[PAGE_HEAD + 24 * record].store(0);
        page[PAGE_HEAD + 24 * record + COUNTERS].store(0);
    }
    page
}

#[test]
fn any_part_of_a_page_is_what_stands_there() {
    let page = page();
    let whole: Vec<u8> = page
        .iter()
        .flat_map(|word| word.load().to_ne_bytes())
        .collect();
    for (offset, len) in [
        (0, PAGE * 8),
        (0, 1),
        (3, 10),
        (64, 192),
        (65, 190),
        (250, 300),
        (PAGE * 8 - 5, 5),
        (1, PAGE * 8 - 1),
    ] {
        let mut bytes = vec![0xee; len];
        assert_eq!(read_page(&page, offset, &mut bytes), len);
        assert_eq!(
            bytes,
            whole[offset..offset + len],
            "{len} bytes at {offset}"
        );
    }
    let mut bytes = [0; 16];
    assert_eq!(read_page(&page, PAGE * 8 - 5, &mut bytes), 5);
    assert_eq!(read_page(&page, PAGE * 8, &mut bytes), 0);
    assert_eq!(read_page(&page, usize::MAX, &mut bytes), 0);
}

#[test]
fn a_busy_record_spoils_no_other_record_of_its_page() {
    let page = page();
    let _section = Section::begin(&page[PAGE_HEAD + 24 + COUNTERS]);
    let mut bytes = vec![0; PAGE * 8];
    read_page(&page, 0, &mut bytes);
    for record in 0..20 {
        let sequence = bytes[(PAGE_HEAD + 24 * record) * 8];
        assert_eq!(sequence % 2, u8::from(record == 1), "record {record}");
    }
}

#[test]
fn a_head_that_makes_no_sense_is_copied_as_words() {
    for (size, records) in [
        (0, 5),
        (8, 5),
        (24 * 8, u64::MAX),
        (u64::MAX, 1),
        (1 << 40, 1),
    ] {
        let page = page();
        page[1].store(size);
        page[2].store(records);
        let mut bytes = vec![0; PAGE * 8];
        let read = read_page(&page, 0, &mut bytes);
        assert!(read <= bytes.len());
    }
}

#[test]
fn copies_are_whole_while_a_writer_never_stops() {
    let record = words(COUNTERS + 32);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut value = 0;
            while !stop.load(Ordering::Relaxed) {
                value += 1;
                let section = Section::begin(&record[COUNTERS]);
                for word in &record[COUNTERS + 1..] {
                    word.store(value);
                }
                drop(section);
                // A slice takes much longer than its section.
                (0..300).for_each(|_| hint::spin_loop());
            }
        });
        let mut copy = vec![0; record.len()];
        let mut whole = 0;
        while whole < 2_000 {
            if read_record(&record, &mut copy).is_ok() {
                whole += 1;
                let value = copy[COUNTERS] / 2;
                assert!(copy[COUNTERS + 1..].iter().all(|word| *word == value));
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}
