// SPDX-License-Identifier: GPL-2.0

//! When a parked worker helps one that has more than it can do, and when it is parked again.
//!
//! A parked worker serves nothing, and its core can do something else. As long as work does not
//! wait for long it stays so. Congestion is told by the age of the oldest work that waits (as
//! Shenango does, NSDI 2019): if it is too old at two checks in a row, a parked worker of the same
//! group is woken and *borrows* some of what the congested one serves. When both together would
//! have room in one for long enough, it gives everything back and is parked.
//!
//! Three things keep a worker from being woken and parked to and fro: the age at which there is
//! room is half of that at which there is congestion, the load at which there is room is less than
//! all of the time, and after each change nothing is changed for a while.

use crate::engine::abi::WorkerId;

/// What a worker is there for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It serves what it is given.
    #[default]
    Active,
    /// It serves nothing until it is woken.
    Parked,
    /// It was woken, and serves what it borrowed.
    Woken {
        /// From whom.
        lender: WorkerId,
    },
}

impl State {
    /// The number by which the snapshot has it.
    pub fn number(self) -> u64 {
        match self {
            Self::Active => 0,
            Self::Parked => 1,
            Self::Woken { .. } => 2,
        }
    }
}

/// What user space sets. Times are in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Tunables {
    /// The time between two checks.
    pub interval: u64,
    /// Older work is congestion.
    pub wake_age: u64,
    /// The most load, in parts per thousand, that two workers may have together to fit into one.
    pub park_load: u32,
    /// For how long they have to have room before one of them is parked; and how long the one that
    /// goes on alone is left alone afterwards.
    pub park_time: u64,
    /// Workers that may be woken at once.
    pub woken_max: u32,
}

/// Work has to be too old at so many checks in a row.
const LATE_CHECKS: u32 = 2;
/// After a worker was woken, what waited has so many checks to be served.
const SETTLING_CHECKS: u64 = 8;
/// What moved a packet within this time is busy, in nanoseconds.
const BUSY_TIME: u64 = 10_000_000;

impl Tunables {
    /// The age of work, in nanoseconds, above which there is no room.
    fn room_age(&self) -> u64 {
        self.wake_age / 2
    }

    /// The time, in nanoseconds, within which what moved a packet is busy: two checks at least.
    fn busy_time(&self) -> u64 {
        BUSY_TIME.max(self.interval.saturating_mul(2))
    }
}

/// What is remembered of a virtqueue from check to check, to tell whether it has work.
#[derive(Clone, Copy, Debug, Default)]
pub struct Activity {
    /// Packets that it had moved at the last check.
    packets: u64,
    /// When that was, in nanoseconds.
    checked: u64,
    /// When it had work last.
    busy: Option<u64>,
}

impl Activity {
    /// Notes at a check how many packets were moved so far, and whether work waits.
    pub fn note(&mut self, packets: u64, waits: bool, now: u64, tunables: &Tunables) {
        // Checks do not go on all the time: what moved since an old one is no news.
        let fresh = now.saturating_sub(self.checked) <= tunables.busy_time();
        if waits || (fresh && packets != self.packets) {
            self.busy = Some(now);
        }
        self.packets = packets;
        self.checked = now;
    }

    /// Whether the virtqueue has work, as far as was noted.
    pub fn is_busy(&self, now: u64, tunables: &Tunables) -> bool {
        self.busy
            .is_some_and(|busy| now.saturating_sub(busy) <= tunables.busy_time())
    }
}

/// What a check finds of one virtqueue.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Whether it has work.
    pub busy: bool,
    /// For how long that has waited, in nanoseconds.
    pub age: u64,
}

/// What a check finds of all that a worker serves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backlog {
    /// The age of the oldest work, in nanoseconds.
    oldest: u64,
    /// Devices that have work.
    devices: u32,
    /// Whether one of them has work in several virtqueues.
    several: bool,
}

impl Backlog {
    /// Adds a device: what was found of its virtqueues, `None` for those that others serve.
    pub fn add(&mut self, virtqueues: &[Option<Found>]) {
        let busy = virtqueues.iter().flatten().filter(|found| found.busy);
        let count = busy.clone().count();
        self.devices = self.devices.saturating_add(u32::from(count > 0));
        self.several |= count > 1;
        self.oldest = busy.map(|found| found.age).fold(self.oldest, u64::max);
    }

    /// Whether there is something that can be separated: to move the only virtqueue that has work
    /// would help nobody.
    fn is_separable(&self) -> bool {
        self.devices > 1 || self.several
    }
}

/// Chooses what a congested worker lends, device by device: of several that have work every other
/// one as a whole, of a single one the last of its virtqueues that have work. So it is never
/// everything.
#[derive(Clone, Copy, Debug)]
pub struct Split {
    devices: u32,
    /// Devices with work that were looked at.
    seen: u32,
}

impl Split {
    /// For a worker of which this was found at the same check.
    pub fn new(backlog: &Backlog) -> Self {
        Self {
            devices: backlog.devices,
            seen: 0,
        }
    }

    /// Which virtqueues of a device go, by their index; `busy` says which have work, and is `None`
    /// for those that others serve.
    pub fn takes<const N: usize>(&mut self, busy: [Option<bool>; N]) -> [bool; N] {
        let mut taken = [false; N];
        let is_busy = |entry: &Option<bool>| *entry == Some(true);
        if !busy.iter().any(is_busy) {
            return taken;
        }
        self.seen = self.seen.saturating_add(1);
        if self.devices > 1 {
            if self.seen.is_multiple_of(2) {
                taken = busy.map(|entry| entry.is_some());
            }
        } else if busy.iter().filter(|entry| is_busy(entry)).count() > 1 {
            if let Some(last) = busy.iter().rposition(is_busy) {
                taken[last] = true;
            }
        }
        taken
    }
}

/// What is remembered of a worker from check to check.
#[derive(Clone, Copy, Debug, Default)]
pub struct Record {
    /// At how many checks in a row its work was too old.
    late: u32,
    /// Since when it could have been parked, in nanoseconds.
    room: Option<u64>,
    /// Until when it is left alone, in nanoseconds.
    rest: u64,
}

impl Record {
    fn note(&mut self, oldest: u64, room: bool, now: u64, tunables: &Tunables) {
        self.late = if oldest > tunables.wake_age {
            self.late.saturating_add(1)
        } else {
            0
        };
        self.room = if room { self.room.or(Some(now)) } else { None };
    }

    fn rest_until(&mut self, time: u64) {
        *self = Self {
            rest: time,
            ..Self::default()
        };
    }
}

/// A worker as a check sees it.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Its number.
    pub worker: WorkerId,
    /// Its group.
    pub group: u32,
    /// What it is there for.
    pub state: State,
    /// Whether user space wants it to take nothing new.
    pub locked: bool,
    /// Its load in parts per thousand.
    pub load: u32,
    /// Virtqueues that it serves, idle ones included.
    pub virtqueues: u32,
    /// What was found of them.
    pub backlog: Backlog,
    /// What is remembered of it.
    pub record: Record,
}

impl View {
    /// Whether it takes virtqueues from anybody.
    fn is_usable(&self) -> bool {
        self.state == State::Active && !self.locked
    }

    fn is_woken(&self) -> bool {
        matches!(self.state, State::Woken { .. })
    }

    /// Whether it can be woken for a worker of `group`.
    fn can_help(&self, group: u32) -> bool {
        self.state == State::Parked && !self.locked && self.group == group
    }

    /// Whether it has more than it can do, and some of that can be taken from it. What a locked
    /// worker serves is left alone, as it would not be taken back.
    fn is_congested(&self) -> bool {
        self.state != State::Parked
            && !self.locked
            && self.record.late > 0
            && self.backlog.is_separable()
    }
}

/// All workers, by an index.
pub trait Workers {
    /// How many there are.
    fn count(&self) -> usize;

    /// One of them as it is now.
    fn view(&self, index: usize, now: u64) -> View;

    /// What is remembered of one of them.
    fn record(&mut self, index: usize) -> &mut Record;
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Wake a parked worker, and move to it what [`Split`] chooses of what another serves.
    Wake {
        /// The index of the parked one.
        woken: usize,
        /// The index of the congested one.
        congested: usize,
        /// Who gets back what is borrowed: the congested one, or from whom that one borrowed.
        lender: WorkerId,
    },
    /// Move all that a woken worker serves to another, and park it.
    Park {
        /// The index of the woken one.
        parked: usize,
        /// The index of who takes over.
        heir: usize,
    },
}

/// What a check comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What is to be done.
    pub act: Option<Act>,
    /// Whether there is to be another check: a worker is congested and could be helped, or one is
    /// woken.
    pub again: bool,
}

/// Checks all workers, of which [`View::backlog`] is up to date. `default` is the worker that takes
/// over when there is no lender any more. One thing at most is done at a time.
pub fn check(
    workers: &mut impl Workers,
    default: WorkerId,
    now: u64,
    tunables: &Tunables,
) -> Verdict {
    let mut woken = 0u32;
    for index in 0..workers.count() {
        let view = workers.view(index, now);
        let room = heir(workers, &view, default, now)
            .is_some_and(|heir| fit(&view, &workers.view(heir, now), tunables));
        woken = woken.saturating_add(u32::from(view.is_woken()));
        workers
            .record(index)
            .note(view.backlog.oldest, room, now, tunables);
    }
    let act = dismissal(workers, default, now, woken > tunables.woken_max)
        .or_else(|| relief(workers, now, woken < tunables.woken_max))
        .or_else(|| reunion(workers, default, now, tunables));
    let again = woken > 0 || act.is_some() || {
        tunables.woken_max > 0
            && views(workers, now)
                .any(|(_, view)| view.is_congested() && helper(workers, view.group, now).is_some())
    };
    match act {
        Some(Act::Wake {
            woken, congested, ..
        }) => {
            let rest = now.saturating_add(tunables.interval.saturating_mul(SETTLING_CHECKS));
            workers.record(woken).rest_until(rest);
            workers.record(congested).rest_until(rest);
        }
        Some(Act::Park { parked, heir }) => {
            workers.record(parked).rest_until(now);
            let rest = now.saturating_add(tunables.park_time);
            workers.record(heir).rest_until(rest);
        }
        None => (),
    }
    Verdict { act, again }
}

fn views(workers: &impl Workers, now: u64) -> impl Iterator<Item = (usize, View)> + '_ {
    (0..workers.count()).map(move |index| (index, workers.view(index, now)))
}

/// Who takes over from a woken worker: its lender, or the default worker.
fn heir(workers: &impl Workers, view: &View, default: WorkerId, now: u64) -> Option<usize> {
    let State::Woken { lender } = view.state else {
        return None;
    };
    let find = |id| views(workers, now).find(|(_, view)| view.worker == id && view.is_usable());
    find(lender)
        .or_else(|| find(default))
        .map(|(index, _)| index)
}

/// Whether one worker could do what two do now.
fn fit(one: &View, other: &View, tunables: &Tunables) -> bool {
    let in_time = |view: &View| view.backlog.oldest <= tunables.room_age();
    in_time(one) && in_time(other) && one.load.saturating_add(other.load) <= tunables.park_load
}

/// Parks a worker for which there is no reason any more to be awake: it serves nothing, or there are
/// too many.
fn dismissal(workers: &impl Workers, default: WorkerId, now: u64, too_many: bool) -> Option<Act> {
    let (parked, view) = views(workers, now)
        .find(|(_, view)| view.is_woken() && (too_many || view.virtqueues == 0))?;
    let heir = heir(workers, &view, default, now)?;
    Some(Act::Park { parked, heir })
}

/// Wakes a worker to help the one whose work is the oldest.
fn relief(workers: &impl Workers, now: u64, allowed: bool) -> Option<Act> {
    if !allowed {
        return None;
    }
    let (congested, view) = views(workers, now)
        .filter(|(_, view)| {
            view.is_congested()
                && view.record.late >= LATE_CHECKS
                && view.record.rest <= now
                && helper(workers, view.group, now).is_some()
        })
        .max_by_key(|(_, view)| view.backlog.oldest)?;
    let lender = match view.state {
        State::Woken { lender } => lender,
        _ => view.worker,
    };
    Some(Act::Wake {
        woken: helper(workers, view.group, now)?,
        congested,
        lender,
    })
}

/// The parked worker of a group that is woken next.
fn helper(workers: &impl Workers, group: u32, now: u64) -> Option<usize> {
    views(workers, now)
        .filter(|(_, view)| view.can_help(group))
        .min_by_key(|(_, view)| view.worker)
        .map(|(index, _)| index)
}

/// Parks a worker that has had room with its lender for long enough.
fn reunion(
    workers: &impl Workers,
    default: WorkerId,
    now: u64,
    tunables: &Tunables,
) -> Option<Act> {
    let (parked, view) = views(workers, now).find(|(_, view)| {
        view.record.rest <= now
            && view
                .record
                .room
                .is_some_and(|since| now.saturating_sub(since) >= tunables.park_time)
    })?;
    let heir = heir(workers, &view, default, now)?;
    Some(Act::Park { parked, heir })
}
