// SPDX-License-Identifier: GPL-2.0

//! All workers, devices and virtqueues with their counters, from the binary snapshot.

use super::control::CLASS;
use super::mapping::Mapping;
use super::name::Name;
use super::Root;
use crate::failure::{Failure, Result};
use serde::Serialize;
use std::fs::File;
use std::mem::replace;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use vhost_iocm_engine::atomics::{smp_rmb, AtomicU64};
use vhost_iocm_engine::engine::snapshot::sequence::look;
use vhost_iocm_engine::engine::snapshot::{
    DeviceRecord, DeviceSettings, Field, Kind, VirtqueueRecord, WorkerRecord, COUNTERS, MAGIC,
    PAGE_HEAD, RECORD_MAX, VERSION,
};
use vhost_iocm_engine::engine::stats::{VirtqueueStats, WorkerStats};

/// How often a record that is being written is read again, with the CPU left to its writer in
/// between.
const TRIES: usize = 100;
/// The most bytes that a page is believed to have.
const PAGE_MAX: u64 = 1 << 20;
/// Word of a record that is 1 while there is an object.
const USED: usize = 2;
/// Word of a record that says how many objects have used it.
const GENERATION: usize = 1;

/// A worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Worker {
    /// N of w.N.
    pub id: u32,
    /// Its thread, or 0 while it is being created.
    pub pid: i32,
    /// The CPU that it is bound to, or -1.
    pub cpu: i64,
    /// Whether it takes no new devices.
    pub locked: bool,
    /// Its group.
    pub group: u32,
    /// 0 active, 1 parked, 2 woken.
    pub state: u64,
    /// Turns of its loop.
    pub loops: u64,
    /// Slices served.
    pub works: u64,
    /// Works that are on its lists now.
    pub pending_works: u64,
    /// Changes of the address space.
    pub mm_switches: u64,
    /// Time spent serving, in nanoseconds.
    pub busy_time: u64,
    /// Time spent looking at polled virtqueues that had nothing, in nanoseconds.
    pub empty_poll_time: u64,
    /// Time that it ran and served nothing, in nanoseconds.
    pub spare_time: u64,
    /// Time asleep, in nanoseconds.
    pub idle_time: u64,
    /// Time in which its CPU ran something else, in nanoseconds.
    pub stolen_time: u64,
    /// Virtqueues that are polled now.
    pub polled: u64,
    /// Greatest age of work when its slice began, since ever, in nanoseconds.
    pub pending_max: u64,
    /// The moving average of that age, in nanoseconds.
    pub pending_average: u64,
    /// Times that the fast loop has woken it.
    pub wakes: u64,
}

impl Worker {
    /// Whether it serves nothing until it is made active or woken.
    pub fn is_parked(&self) -> bool {
        self.state == 1
    }
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Device {
    /// N of d.N.
    pub id: u32,
    /// The process that owns it, or -1.
    pub owner: i64,
    /// The name of that process.
    pub comm: Name,
    /// The interface behind the receive virtqueue.
    pub receive_backend: Name,
    /// The interface behind the transmit virtqueue.
    pub transmit_backend: Name,
    /// Whether there was a worker for it.
    pub placed: bool,
    /// Its share.
    pub weight: u32,
    /// Its ceiling in thousandths.
    pub max_time_share: u32,
}

/// A virtqueue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Virtqueue {
    /// D of vq.D.Q.
    pub device: u32,
    /// Q of vq.D.Q.
    pub index: u32,
    /// N of the w.N that serves it.
    pub worker: u32,
    /// When it is polled: 0 never, 1 always, 2 auto.
    pub mode: u64,
    /// Whether its home thread is to serve it.
    pub home: bool,
    /// Packets moved.
    pub packets: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Guest notifications.
    pub kicks: u64,
    /// Interrupts sent.
    pub interrupts: u64,
    /// Slices served because of a notification.
    pub notif_works: u64,
    /// Slices served because a look found something.
    pub poll_kicks: u64,
    /// Looks that found nothing.
    pub poll_empty: u64,
    /// Time served by workers, in nanoseconds.
    pub served_time: u64,
    /// Time served by the home thread, in nanoseconds.
    pub home_time: u64,
    /// Slices served by the home thread.
    pub home_works: u64,
    /// Ring errors.
    pub errors: u64,
    /// Packets dropped.
    pub drops: u64,
    /// Whether it is polled now.
    pub polled: bool,
    /// Greatest age of work when its slice began, since ever, in nanoseconds.
    pub pending_max: u64,
    /// The moving average of that age, in nanoseconds.
    pub pending_average: u64,
}

/// What changes whenever anything in a record does that is known here: its two sequences, and the words
/// that change by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    /// The number of the record, so that what is compared is of the same one.
    record: usize,
    sequences: [u64; 2],
    others: [u64; OTHERS],
}

/// The marks of all devices and of all virtqueues, in their order. They are on their own because all of them
/// are looked at each time, and little else is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    devices: Vec<Mark>,
    virtqueues: Vec<Mark>,
}

/// The most words of a record that change by themselves.
const OTHERS: usize = 4;

impl Mark {
    /// Of the record with this number. `others` are the words that change by themselves.
    fn of(number: usize, words: &Words<'_>, others: [usize; OTHERS]) -> Self {
        Self {
            record: number,
            sequences: [0, COUNTERS].map(|place| words.get(place)),
            others: others.map(|place| words.get(place)),
        }
    }
}

/// What is left as it is while its record is as it was.
trait Kept: Default {
    /// What it is known by, and ordered by.
    type Key: Ord;

    /// The words of its record that change by themselves.
    const OTHERS: [usize; OTHERS];

    /// What the record says.
    fn of(words: &Words<'_>) -> Self;

    /// What it is known by.
    fn key(&self) -> Self::Key;

    /// The same when nothing was counted yet.
    fn new(key: Self::Key) -> Self;
}

/// What is not as it was when a snapshot was read before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// All workers as they were.
    pub workers: Vec<Worker>,
    /// Devices that have changed or gone, as they were, and those that have come, as if nothing was set for
    /// them. In the order of their numbers.
    pub devices: Vec<Device>,
    /// Virtqueues for which anything was counted, or that have changed or gone, as they were, and those
    /// that have come, as if nothing was counted. In the order of their numbers.
    pub virtqueues: Vec<Virtqueue>,
}

/// All of it at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// In the order of their numbers.
    pub workers: Vec<Worker>,
    /// In the order of their numbers.
    pub devices: Vec<Device>,
    /// In the order of their numbers.
    pub virtqueues: Vec<Virtqueue>,
    /// The worker that new devices get.
    pub default_worker: u32,
    /// What tells whether anything of this has changed.
    #[serde(skip)]
    pub marks: Marks,
}

impl Snapshot {
    /// The virtqueues of a device.
    pub fn of_device(&self, device: u32) -> impl Iterator<Item = &Virtqueue> {
        let first = self
            .virtqueues
            .partition_point(|virtqueue| virtqueue.device < device);
        let rest = self.virtqueues[first..].iter();
        rest.take_while(move |virtqueue| virtqueue.device == device)
    }

    /// All virtqueues, to be taken device by device.
    pub fn by_device(&self) -> ByDevice<'_> {
        ByDevice(&self.virtqueues)
    }

    /// The processes that own devices, in the order of their numbers.
    pub fn owners(&self) -> Vec<i32> {
        let owners = self.devices.iter().map(|device| device.owner);
        let mut owners: Vec<i32> = owners
            .filter_map(|owner| i32::try_from(owner).ok().filter(|pid| *pid > 0))
            .collect();
        owners.sort_unstable();
        owners.dedup();
        owners
    }

    /// The device with this number.
    pub fn device(&self, id: u32) -> Option<&Device> {
        self.devices.iter().find(|device| device.id == id)
    }

    /// The worker with this number.
    pub fn worker(&self, id: u32) -> Option<&Worker> {
        self.workers.iter().find(|worker| worker.id == id)
    }
}

/// Virtqueues in the order of their devices: to go through all of them takes much less time than to
/// search for those of each device.
pub struct ByDevice<'a>(&'a [Virtqueue]);

impl Changes {
    /// Whether the device with this number has changed, come or gone.
    pub fn has_device(&self, id: u32) -> bool {
        self.devices
            .binary_search_by_key(&id, |device| device.id)
            .is_ok()
    }

    /// The worker with this number, as it was.
    pub fn worker(&self, id: u32) -> Option<&Worker> {
        self.workers.iter().find(|worker| worker.id == id)
    }

    /// The virtqueues, to be taken device by device.
    pub fn by_device(&self) -> ByDevice<'_> {
        ByDevice(&self.virtqueues)
    }
}

impl<'a> ByDevice<'a> {
    /// Those of a device. Devices are asked for in the order of their numbers; those that nobody asks for
    /// are hardly touched.
    pub fn of(&mut self, device: u32) -> &'a [Virtqueue] {
        if self.0.first().is_some_and(|first| first.device < device) {
            let before = self
                .0
                .partition_point(|virtqueue| virtqueue.device < device);
            self.0 = &self.0[before..];
        }
        let its = self.0.iter();
        let count = its
            .take_while(|virtqueue| virtqueue.device == device)
            .count();
        let (its, rest) = self.0.split_at(count);
        self.0 = rest;
        its
    }
}

/// Where a word is in records of these fields, by its name. The compiler looks it up.
const fn place(description: &[Field], counters: &[Field], name: &str) -> usize {
    match find(description, name) {
        Some(word) => word,
        None => match find(counters, name) {
            Some(word) => COUNTERS + word,
            None => panic!("the engine has no such field"),
        },
    }
}

const fn find(fields: &[Field], name: &str) -> Option<usize> {
    let name = name.as_bytes();
    let mut index = 0;
    while index < fields.len() {
        let other = fields[index].name.as_bytes();
        let mut same = 0;
        while same < name.len() && same < other.len() && name[same] == other[same] {
            same += 1;
        }
        if same == name.len() && same == other.len() {
            return Some(fields[index].word);
        }
        index += 1;
    }
    None
}

/// A record.
struct Words<'a>(&'a [AtomicU64]);

impl Words<'_> {
    /// A word; 0 if the module that is loaded does not have it yet.
    fn get(&self, place: usize) -> u64 {
        self.0.get(place).map_or(0, |word| word.load())
    }

    /// A name, which has two words.
    fn name(&self, place: usize) -> Name {
        Name::from_words([self.get(place), self.get(place + 1)])
    }
}

/// Where the words come from.
enum Source {
    /// The pages themselves. `None` until they are touched for the first time.
    Mapped(Option<Mapping>),
    /// Copies of single pages: dearer, and not ended by the end of the module.
    Read,
}

/// Something that reads the snapshot again and again.
pub struct Reader {
    file: File,
    source: Source,
    page_size: usize,
}

/// The beginning of the file.
struct Header {
    pages: usize,
    pages_max: usize,
    default_worker: u32,
}

impl Reader {
    /// Reads copies.
    ///
    /// # Errors
    ///
    /// [`Failure::NoModule`], or that the module is of another version.
    pub fn open(root: &Root) -> Result<Self> {
        let path = root.path(CLASS).join("snapshot");
        let file = File::open(&path).map_err(|error| {
            if super::is_gone(&error) {
                Failure::NoModule(root.path(CLASS))
            } else {
                Failure::file("open", &path, error)
            }
        })?;
        let mut reader = Self {
            file,
            source: Source::Read,
            page_size: 0,
        };
        let mut first = [0; 8 * 8];
        reader.read_at(&mut first, 0)?;
        let word = |index: usize| word_of(&first, index);
        if word(0) != MAGIC || word(1) != VERSION {
            return Err(Failure::Refused(format!(
                "the module's snapshot has version {}, and this program knows version {VERSION}; build both from the same sources",
                word(1)
            )));
        }
        if !(512..=PAGE_MAX).contains(&word(2)) || word(2) % 8 != 0 {
            return Err(Failure::Refused(format!(
                "the module's snapshot has pages of {} bytes, which cannot be",
                word(2)
            )));
        }
        reader.page_size = word(2) as usize;
        Ok(reader)
    }

    /// Maps the pages: reading costs no call of the system then.
    ///
    /// # Errors
    ///
    /// As [`Self::open`], and whatever mapping fails with.
    pub fn map(root: &Root) -> Result<Self> {
        let mut reader = Self::open(root)?;
        reader.source = Source::Mapped(None);
        Ok(reader)
    }

    /// Reads bytes of the file.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(bytes, offset).map_err(|error| {
            if super::is_gone(&error) || error.kind() == std::io::ErrorKind::UnexpectedEof {
                Failure::ModuleGone
            } else {
                Failure::System {
                    what: "cannot read the snapshot".into(),
                    source: error,
                }
            }
        })
    }

    /// Everything that there is now.
    ///
    /// # Errors
    ///
    /// [`Failure::ModuleGone`].
    pub fn read(&mut self) -> Result<Snapshot> {
        let mut snapshot = Snapshot::default();
        self.follow(&mut snapshot, &mut Changes::default())?;
        Ok(snapshot)
    }

    /// Makes a snapshot of this reader say what there is now, and says what has changed. Of devices
    /// and virtqueues whose records have not changed nothing but the marks is touched: most do nothing most of
    /// the time, and after a sleep it is touching memory that takes time.
    ///
    /// # Errors
    ///
    /// As [`Self::read`]. What the snapshot says then is of no use.
    pub fn follow(&mut self, snapshot: &mut Snapshot, changes: &mut Changes) -> Result<()> {
        std::mem::swap(&mut snapshot.workers, &mut changes.workers);
        snapshot.workers.clear();
        changes.devices.clear();
        changes.virtqueues.clear();
        let mut followers = Followers {
            workers: &mut snapshot.workers,
            devices: Follower::new(
                &mut snapshot.devices,
                &mut snapshot.marks.devices,
                &mut changes.devices,
            ),
            virtqueues: Follower::new(
                &mut snapshot.virtqueues,
                &mut snapshot.marks.virtqueues,
                &mut changes.virtqueues,
            ),
        };
        match &mut self.source {
            Source::Read => {
                let mut page = vec![0; self.page_size];
                self.read_at(&mut page, 0)?;
                let header = header(|index| word_of(&page, index));
                snapshot.default_worker = header.default_worker;
                for number in 1..header.pages {
                    let offset = number as u64 * self.page_size as u64;
                    let mut tries = 0;
                    // A record whose writer was interrupted is read again with its page.
                    loop {
                        self.read_at(&mut page, offset)?;
                        let words: Vec<AtomicU64> = (0..self.page_size / 8)
                            .map(|index| AtomicU64::new(word_of(&page, index)))
                            .collect();
                        let before = followers.taken();
                        let whole = followers.take_page(number, &words, 1);
                        tries += 1;
                        if whole || tries == TRIES {
                            break;
                        }
                        followers.go_back(before);
                        std::thread::yield_now();
                    }
                }
            }
            Source::Mapped(mapping) => {
                let mapping = match mapping {
                    Some(mapping) => mapping,
                    None => {
                        let mut first = [0; 8 * 8];
                        self.file
                            .read_exact_at(&mut first, 0)
                            .map_err(|_| Failure::ModuleGone)?;
                        // All that there can ever be: pages that are not touched cost nothing.
                        let pages = header(|index| word_of(&first, index)).pages_max;
                        let bytes = pages
                            .checked_mul(self.page_size)
                            .and_then(NonZeroUsize::new)
                            .ok_or(Failure::ModuleGone)?;
                        mapping.insert(Mapping::new(&self.file, bytes)?)
                    }
                };
                let words = mapping.words();
                let header = header(|index| words[index].load());
                // Pairs with the write barrier before the number grows: heads of new pages are
                // seen.
                smp_rmb();
                snapshot.default_worker = header.default_worker;
                let pages = words.chunks_exact(self.page_size / 8).take(header.pages);
                for (number, page) in pages.enumerate().skip(1) {
                    followers.take_page(number, page, TRIES);
                }
            }
        }
        followers.workers.sort_unstable_by_key(|worker| worker.id);
        followers.devices.finish();
        followers.virtqueues.finish();
        Ok(())
    }
}

/// A word of bytes.
fn word_of(bytes: &[u8], index: usize) -> u64 {
    let mut word = [0; 8];
    if let Some(bytes) = bytes.get(index * 8..index * 8 + 8) {
        word.copy_from_slice(bytes);
    }
    u64::from_ne_bytes(word)
}

fn header(word: impl Fn(usize) -> u64) -> Header {
    let pages_max = word(4).min(1 << 20) as usize;
    Header {
        pages: (word(3) as usize).min(pages_max),
        pages_max,
        default_worker: word(6) as u32,
    }
}

/// A record, with a number that no other one has.
type Numbered<'a> = (usize, &'a [AtomicU64]);

/// What brings a snapshot up to date, page by page.
struct Followers<'a> {
    workers: &'a mut Vec<Worker>,
    devices: Follower<'a, Device>,
    virtqueues: Follower<'a, Virtqueue>,
}

impl Followers<'_> {
    /// Takes the records of the page with this number, each of one moment. Returns false if a record was
    /// being written at each try; it is left out.
    fn take_page(&mut self, number: usize, page: &[AtomicU64], tries: usize) -> bool {
        let [kind, size, count] = [0, 1, 2].map(|index| page[index].load());
        let words = size as usize / 8;
        if !(COUNTERS + 1..=RECORD_MAX).contains(&words) {
            return true;
        }
        let records = page[PAGE_HEAD..].chunks_exact(words).take(count as usize);
        let records = (number * page.len()..).zip(records).filter(is_used);
        if kind == Kind::Worker as u64 {
            self.take_workers(records, tries)
        } else if kind == Kind::Device as u64 {
            self.devices.take(records, tries)
        } else if kind == Kind::Virtqueue as u64 {
            self.virtqueues.take(records, tries)
        } else {
            true
        }
    }

    /// Only words that are known here are loaded, which is less than half of them.
    fn take_workers<'b>(
        &mut self,
        records: impl Iterator<Item = Numbered<'b>>,
        tries: usize,
    ) -> bool {
        let mut whole = true;
        for (_, record) in records {
            let object = patiently(record, tries, worker);
            whole &= object.is_some();
            self.workers.extend(object.flatten());
        }
        whole
    }

    /// How many objects were taken of each kind.
    fn taken(&self) -> [usize; 3] {
        [
            self.workers.len(),
            self.devices.count,
            self.virtqueues.count,
        ]
    }

    /// Takes again what was taken since.
    fn go_back(&mut self, taken: [usize; 3]) {
        self.workers.truncate(taken[0]);
        self.devices.count = taken[1];
        self.virtqueues.count = taken[2];
    }
}

/// What brings the objects of a kind up to date.
struct Follower<'a, T: Kept> {
    /// The objects, each in the place of its record among all records.
    objects: &'a mut Vec<T>,
    /// The mark of each.
    marks: &'a mut Vec<Mark>,
    /// How many of them are of this time; those behind are of an earlier one.
    count: usize,
    /// What was replaced.
    changed: &'a mut Vec<T>,
    /// What is in the place of another one, or in a new one.
    moved: Vec<T::Key>,
}

impl<'a, T: Kept> Follower<'a, T> {
    fn new(objects: &'a mut Vec<T>, marks: &'a mut Vec<Mark>, changed: &'a mut Vec<T>) -> Self {
        Self {
            objects,
            marks,
            count: 0,
            changed,
            moved: Vec::new(),
        }
    }

    /// Takes records. All of a record is loaded only if its mark is not the same.
    fn take<'b>(&mut self, records: impl Iterator<Item = Numbered<'b>>, tries: usize) -> bool {
        let mut whole = true;
        for (number, record) in records {
            let mark = |words: &Words<'_>| Mark::of(number, words, T::OTHERS);
            // The object was read when both sequences were even. If they are the same still, nobody has
            // written since what belongs to them, that the record is used included.
            if self.marks.get(self.count) == Some(&mark(&Words(record))) {
                self.count += 1;
                continue;
            }
            let seen = patiently(record, tries, |words| (T::of(words), mark(words)));
            whole &= seen.is_some();
            if let Some((object, mark)) = seen.flatten() {
                self.put(object, mark);
            }
        }
        whole
    }

    fn put(&mut self, object: T, mark: Mark) {
        match self.marks.get_mut(self.count) {
            Some(place) => *place = mark,
            None => self.marks.push(mark),
        }
        match self.objects.get_mut(self.count) {
            Some(place) => {
                let before = replace(place, object);
                if before.key() != place.key() {
                    self.moved.push(place.key());
                }
                self.changed.push(before);
            }
            None => {
                self.moved.push(object.key());
                self.objects.push(object);
            }
        }
        self.count += 1;
    }

    /// Puts everything into order.
    fn finish(self) {
        self.changed.extend(self.objects.drain(self.count..));
        self.marks.truncate(self.count);
        // What was taken twice was replaced first by what it was then.
        self.changed.sort_by_key(T::key);
        self.changed
            .dedup_by(|later, first| later.key() == first.key());
        if self.moved.is_empty() {
            return;
        }
        let marks = self.marks.drain(..);
        let mut both: Vec<_> = self.objects.drain(..).zip(marks).collect();
        both.sort_unstable_by_key(|(object, _)| object.key());
        for (object, mark) in both {
            self.objects.push(object);
            self.marks.push(mark);
        }
        let known = self.changed.len();
        for key in self.moved {
            let before = self.changed[..known].binary_search_by(|object| object.key().cmp(&key));
            if before.is_err() {
                self.changed.push(T::new(key));
            }
        }
        self.changed.sort_by_key(T::key);
        self.changed
            .dedup_by(|later, first| later.key() == first.key());
    }
}

/// Most records are of no object: a look at one word spares the others.
fn is_used((_, record): &Numbered<'_>) -> bool {
    record[USED].load() == 1
}

/// What `take` says of a record at one moment, `Some(None)` if it is of no object any more, or `None` if
/// it was being written at each try.
fn patiently<T>(
    record: &[AtomicU64],
    tries: usize,
    take: impl Fn(&Words<'_>) -> T,
) -> Option<Option<T>> {
    (0..tries).find_map(|attempt| {
        if attempt > 0 {
            std::thread::yield_now();
        }
        let seen = look(record, |words| {
            let is_object = words[USED].load() == 1 && words[GENERATION].load() != 0;
            is_object.then(|| take(&Words(words)))
        });
        seen.ok()
    })
}

/// What the record of a worker says.
fn worker(words: &Words<'_>) -> Worker {
    macro_rules! at {
        ($name:literal) => {
            const { place(WorkerRecord::FIELDS, WorkerStats::FIELDS, $name) }
        };
    }
    let get = |place| words.get(place);
    Worker {
        id: get(at!("id")) as u32,
        pid: get(at!("pid")) as i32,
        cpu: get(at!("cpu")) as i64,
        locked: get(at!("locked")) != 0,
        group: get(at!("group")) as u32,
        state: get(at!("state")),
        loops: get(at!("loops")),
        works: get(at!("works")),
        pending_works: get(at!("pending_works")),
        mm_switches: get(at!("mm_switches")),
        busy_time: get(at!("busy_time")),
        empty_poll_time: get(at!("empty_poll_time")),
        spare_time: get(at!("spare_time")),
        idle_time: get(at!("idle_time")),
        stolen_time: get(at!("stolen_time")),
        polled: get(at!("polled")),
        pending_max: get(at!("pending")),
        pending_average: get(at!("pending") + 1),
        wakes: get(at!("wakes")),
    }
}

/// Where a word of a device's record is.
macro_rules! device_at {
    ($name:literal) => {
        const { place(DeviceRecord::FIELDS, DeviceSettings::FIELDS, $name) }
    };
}

impl Kept for Device {
    type Key = u32;

    const OTHERS: [usize; OTHERS] = [
        device_at!("placed"),
        device_at!("weight"),
        device_at!("max_time_share"),
        // There is no fourth one.
        device_at!("placed"),
    ];

    fn of(words: &Words<'_>) -> Self {
        use device_at as at;
        let get = |place| words.get(place);
        Self {
            id: get(at!("id")) as u32,
            owner: get(at!("owner")) as i64,
            comm: words.name(at!("comm")),
            receive_backend: words.name(at!("receive_backend")),
            transmit_backend: words.name(at!("transmit_backend")),
            placed: get(at!("placed")) != 0,
            weight: get(at!("weight")) as u32,
            max_time_share: get(at!("max_time_share")) as u32,
        }
    }

    fn key(&self) -> u32 {
        self.id
    }

    fn new(id: u32) -> Self {
        Self {
            id,
            ..Self::default()
        }
    }
}

/// Where a word of a virtqueue's record is.
macro_rules! virtqueue_at {
    ($name:literal) => {
        const { place(VirtqueueRecord::FIELDS, VirtqueueStats::FIELDS, $name) }
    };
}

impl Kept for Virtqueue {
    type Key = (u32, u32);

    const OTHERS: [usize; OTHERS] = [
        virtqueue_at!("mode"),
        virtqueue_at!("home"),
        virtqueue_at!("kicks"),
        virtqueue_at!("polls"),
    ];

    fn of(words: &Words<'_>) -> Self {
        use virtqueue_at as at;
        let get = |place| words.get(place);
        Self {
            device: get(at!("device")) as u32,
            index: get(at!("index")) as u32,
            worker: get(at!("worker")) as u32,
            mode: get(at!("mode")),
            home: get(at!("home")) != 0,
            packets: get(at!("packets")),
            bytes: get(at!("bytes")),
            kicks: get(at!("kicks")),
            interrupts: get(at!("interrupts")),
            notif_works: get(at!("notif_works")),
            poll_kicks: get(at!("poll_kicks")),
            poll_empty: get(at!("poll_empty")),
            served_time: get(at!("served_time")),
            home_time: get(at!("home_time")),
            home_works: get(at!("home_works")),
            errors: get(at!("errors")),
            drops: get(at!("drops")),
            polled: get(at!("polled")) != 0,
            pending_max: get(at!("pending")),
            pending_average: get(at!("pending") + 1),
        }
    }

    fn key(&self) -> (u32, u32) {
        (self.device, self.index)
    }

    fn new((device, index): (u32, u32)) -> Self {
        Self {
            device,
            index,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtqueues_are_those_of_their_device() {
        let virtqueue = |(device, index)| Virtqueue {
            device,
            index,
            ..Virtqueue::default()
        };
        let snapshot = Snapshot {
            virtqueues: [(1, 0), (1, 1), (4, 0), (6, 1)].map(virtqueue).into(),
            ..Snapshot::default()
        };
        let mut by_device = snapshot.by_device();
        for device in [0, 1, 2, 6, 7] {
            let its: Vec<&Virtqueue> = by_device.of(device).iter().collect();
            assert_eq!(its, snapshot.of_device(device).collect::<Vec<_>>());
        }
    }
}
