// SPDX-License-Identifier: GPL-2.0

//! A snapshot that is followed says what one says that is read anew, and what has changed.

mod tree;

use iocm::host::snapshot::{Changes, Reader, Snapshot};
use proptest::prelude::*;
use tree::Tree;
use vhost_iocm_engine::engine::snapshot::{
    DeviceRecord, DeviceSettings, VirtqueueRecord, COUNTERS, MAGIC, PAGE_HEAD, VERSION,
};
use vhost_iocm_engine::engine::stats::VirtqueueStats;

/// Words of a page.
const PAGE: usize = 512;
/// The pages: their kinds, the words of a record, and how many of them there are.
const PAGES: [(u64, usize, usize); 2] = [(2, 24, 5), (3, 72, 7)];

/// What the module may do to a record: the page, the record, and what with it.
#[derive(Clone, Debug)]
enum Step {
    /// An object comes, with these numbers. Who is there already goes first.
    Come(usize, usize, u64, u64),
    /// It goes.
    Go(usize, usize),
    /// Its description changes.
    Describe(usize, usize, u64),
    /// What belongs together is counted.
    Count(usize, u64),
    /// A word changes by itself: that with this place in the list of those.
    Set(usize, usize, u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = || (0..2usize).prop_flat_map(|page| (Just(page), 0..PAGES[page].2));
    let step = prop_oneof![
        (place(), 0..4u64, 0..2u64)
            .prop_map(|((page, record), device, index)| Step::Come(page, record, device, index)),
        place().prop_map(|(page, record)| Step::Go(page, record)),
        (place(), 0..9u64).prop_map(|((page, record), value)| Step::Describe(page, record, value)),
        (0..7usize, 1..9u64).prop_map(|(record, more)| Step::Count(record, more)),
        (0..7usize, 0..7usize, 0..9u64)
            .prop_map(|(record, word, value)| Step::Set(record, word, value)),
    ];
    prop::collection::vec(step, 0..6)
}

/// The file of the module, written as the module does: within sections.
struct Module {
    tree: Tree,
    words: Vec<u64>,
    /// Virtqueues that there are, by record, so that there are no two with the same numbers.
    used: Vec<Vec<Option<(u64, u64)>>>,
}

impl Module {
    fn new() -> Self {
        let mut words = vec![0; PAGE];
        words[..7].copy_from_slice(&[MAGIC, VERSION, PAGE as u64 * 8, 3, 3, 1, 0]);
        for (kind, size, count) in PAGES {
            let mut page = vec![0; PAGE];
            page[..3].copy_from_slice(&[kind, size as u64 * 8, count as u64]);
            words.extend(page);
        }
        let module = Self {
            tree: Tree::new(),
            words,
            used: PAGES.map(|(_, _, count)| vec![None; count]).into(),
        };
        module.write();
        module
    }

    fn write(&self) {
        let bytes: Vec<u8> = self
            .words
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        if self.tree.path("sys/class/vhost/snapshot").exists() {
            // It is mapped: it changes where it is.
            self.tree.overwrite("sys/class/vhost/snapshot", 0, &bytes);
        } else {
            self.tree.write("sys/class/vhost/snapshot", bytes);
        }
    }

    fn record(&mut self, page: usize, record: usize) -> &mut [u64] {
        let size = PAGES[page].1;
        let start = (page + 1) * PAGE + PAGE_HEAD + record * size;
        &mut self.words[start..start + size]
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Come(page, record, device, index) => {
                let key = (device, if page == 0 { 0 } else { index });
                self.take(&Step::Go(page, record));
                if self.used[page].contains(&Some(key)) {
                    return;
                }
                self.used[page][record] = Some(key);
                let words = self.record(page, record);
                let (sequence, generation) = (words[0], words[1]);
                let counters = words[COUNTERS];
                words.fill(0);
                words[..5].copy_from_slice(&[sequence + 2, generation + 1, 1, device, index]);
                words[COUNTERS] = counters;
            }
            Step::Go(page, record) => {
                if self.used[page][record].take().is_some() {
                    let words = self.record(page, record);
                    words[0] += 2;
                    words[2] = 0;
                }
            }
            Step::Describe(page, record, value) => {
                let words = self.record(page, record);
                words[0] += 2;
                words[5] = value;
            }
            Step::Count(record, more) => {
                let field = VirtqueueStats::FIELDS
                    .iter()
                    .find(|field| field.name == "packets");
                let packets = COUNTERS + field.expect("a field").word;
                let words = self.record(1, record);
                words[COUNTERS] += 2;
                words[packets] += more;
            }
            Step::Set(record, word, value) => {
                let of = |fields: &[vhost_iocm_engine::engine::snapshot::Field], name| {
                    let field = fields.iter().find(|field| field.name == name);
                    field.expect("a field").word
                };
                let (page, place) = [
                    (0, of(DeviceRecord::FIELDS, "placed")),
                    (0, COUNTERS + of(DeviceSettings::FIELDS, "weight")),
                    (0, COUNTERS + of(DeviceSettings::FIELDS, "max_time_share")),
                    (1, of(VirtqueueRecord::FIELDS, "mode")),
                    (1, of(VirtqueueRecord::FIELDS, "home")),
                    (1, COUNTERS + of(VirtqueueStats::FIELDS, "kicks")),
                    (1, COUNTERS + of(VirtqueueStats::FIELDS, "polls")),
                ][word];
                let words = self.record(page, record % PAGES[page].2);
                words[place] = value;
                // What is not counted together is looks that find nothing.
                if place == COUNTERS + of(VirtqueueStats::FIELDS, "polls") {
                    words[COUNTERS + of(VirtqueueStats::FIELDS, "poll_empty")] = value;
                }
            }
        }
    }
}

/// Whether a list says of each object that is not the same what it was, and names no other one.
fn says_what_was<T: Clone + PartialEq + std::fmt::Debug, K: Ord + Copy>(
    changed: &[T],
    before: &[T],
    now: &[T],
    key: impl Fn(&T) -> K,
    new: impl Fn(K) -> T,
) -> Result<(), TestCaseError> {
    let find = |list: &[T], wanted: K| list.iter().find(|object| key(object) == wanted).cloned();
    prop_assert!(changed.is_sorted_by(|one, other| key(one) < key(other)));
    for object in before.iter().chain(now) {
        let (was, is) = (find(before, key(object)), find(now, key(object)));
        let said = find(changed, key(object));
        if was != is {
            prop_assert_eq!(said, Some(was.unwrap_or_else(|| new(key(object)))));
        } else if said.is_some() {
            // It is read anew where it has another place, which is no harm.
            prop_assert_eq!(said, was);
        }
    }
    for object in changed {
        let (was, is) = (find(before, key(object)), find(now, key(object)));
        prop_assert!(was.is_some() || is.is_some());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_is_followed_is_what_is_read(rounds in prop::collection::vec(steps(), 1..12)) {
        let mut module = Module::new();
        let root = module.tree.root();
        let mut reader = Reader::map(&root).expect("a reader");
        let (mut snapshot, mut changes) = (Snapshot::default(), Changes::default());
        reader.follow(&mut snapshot, &mut changes).expect("a look");
        for steps in rounds {
            for step in &steps {
                module.take(step);
            }
            module.write();
            let before = snapshot.clone();
            reader.follow(&mut snapshot, &mut changes).expect("a look");
            let anew = Reader::open(&root).and_then(|mut reader| reader.read()).expect("a look");
            prop_assert_eq!(&snapshot, &anew);
            prop_assert!(snapshot.devices.is_sorted_by_key(|device| device.id));
            let of_virtqueue = |of: &iocm::host::snapshot::Virtqueue| (of.device, of.index);
            prop_assert!(snapshot.virtqueues.is_sorted_by_key(of_virtqueue));
            says_what_was(
                &changes.devices,
                &before.devices,
                &snapshot.devices,
                |device| device.id,
                |id| iocm::host::snapshot::Device { id, ..Default::default() },
            )?;
            says_what_was(
                &changes.virtqueues,
                &before.virtqueues,
                &snapshot.virtqueues,
                |virtqueue| (virtqueue.device, virtqueue.index),
                |(device, index)| iocm::host::snapshot::Virtqueue {
                    device,
                    index,
                    ..Default::default()
                },
            )?;
        }
    }
}
