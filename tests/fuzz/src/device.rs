// SPDX-License-Identifier: GPL-2.0

//! The device side under test, and what it has to do: each call of the engine is followed by a
//! model, and what it returned and which memory it touched is compared.

use std::collections::VecDeque;

use vhost_iocm_engine::engine::error::RingError;
use vhost_iocm_engine::engine::mem::{Segment, UsedElem};
use vhost_iocm_engine::engine::ring::Layout;

use crate::act::Setup;
use crate::memory::{Calls, Memory, Touch};
use crate::oracle::{Replay, Walk, WORK_MAX};
use crate::outcome::{Event, Outcomes};

/// Accesses and translations for a descriptor: its own, and that of its buffer or table. Pieces of
/// one are counted as more of them.
const DESCRIPTOR_WORK: usize = 3;
/// Accesses of a call that are not for descriptors or segments.
const CALL_WORK: usize = 4;

/// The part of the engine that is fuzzed. A trait, so that variants of it with a bug can take its
/// place; [`device_ring`](crate::device_ring) implements it. The methods are those of
/// [`Ring`](vhost_iocm_engine::engine::ring::Ring).
#[allow(missing_docs, reason = "they are documented there")]
pub trait DeviceRing {
    /// Another one, as after `open`.
    fn fresh(&self) -> Box<dyn DeviceRing>;
    fn set_num(&mut self, num: u32) -> bool;
    fn num(&self) -> u16;
    fn set_layout(&mut self, layout: Layout);
    fn set_features(&mut self, event_idx: bool, notify_on_empty: bool);
    fn set_base(&mut self, base: u16);
    fn base(&self) -> u16;
    fn avail_idx_address(&self) -> u64;
    fn has_news(&self, avail_idx: u16) -> bool;
    fn start(&mut self, mem: &Memory) -> Result<(), RingError>;
    fn pop(&mut self, mem: &Memory, segments: &mut [Segment]) -> Result<Option<Taken>, RingError>;
    fn unpop(&mut self, count: u16);
    fn is_empty(&mut self, mem: &Memory) -> bool;
    fn take_work(&mut self) -> usize;
    fn push_used(&mut self, mem: &Memory, elems: &[UsedElem]) -> Result<(), RingError>;
    fn disable_notify(&mut self, mem: &Memory) -> Result<(), RingError>;
    fn enable_notify(&mut self, mem: &Memory) -> Result<bool, RingError>;
    fn needs_interrupt(&mut self, mem: &Memory) -> bool;
}

/// A chain: its head, and its numbers of readable and writable segments.
pub type Taken = (u16, usize, usize);

/// Implements [`DeviceRing`] for the `Ring` of the module `ring` of the engine, or of a copy of it.
#[macro_export]
macro_rules! device_ring {
    ($($module:tt)+) => {
        const _: () = {
            use $crate::interface::{Layout, RingError, Segment, UsedElem};
            use $crate::{DeviceRing, Memory, Taken};
            use $($module)+ as ring;

            impl DeviceRing for ring::Ring {
                fn fresh(&self) -> Box<dyn DeviceRing> {
                    Box::new(ring::Ring::new())
                }
                fn set_num(&mut self, num: u32) -> bool {
                    ring::Ring::set_num(self, num)
                }
                fn num(&self) -> u16 {
                    ring::Ring::num(self)
                }
                fn set_layout(&mut self, layout: Layout) {
                    let Layout { desc, avail, used } = layout;
                    ring::Ring::set_layout(self, ring::Layout { desc, avail, used });
                }
                fn set_features(&mut self, event_idx: bool, notify_on_empty: bool) {
                    ring::Ring::set_features(self, event_idx, notify_on_empty);
                }
                fn set_base(&mut self, base: u16) {
                    ring::Ring::set_base(self, base);
                }
                fn base(&self) -> u16 {
                    ring::Ring::base(self)
                }
                fn avail_idx_address(&self) -> u64 {
                    ring::Ring::avail_idx_address(self)
                }
                fn has_news(&self, avail_idx: u16) -> bool {
                    ring::Ring::has_news(self, avail_idx)
                }
                fn start(&mut self, mem: &Memory) -> Result<(), RingError> {
                    ring::Ring::start(self, mem)
                }
                fn pop(
                    &mut self,
                    mem: &Memory,
                    segments: &mut [Segment],
                ) -> Result<Option<Taken>, RingError> {
                    let popped = ring::Ring::pop(self, mem, segments)?;
                    Ok(popped.map(|it| {
                        let used = &segments[..it.readable + it.writable];
                        assert_eq!(it.len, used.iter().map(|it| it.len).sum::<usize>());
                        (it.head, it.readable, it.writable)
                    }))
                }
                fn unpop(&mut self, count: u16) {
                    ring::Ring::unpop(self, count);
                }
                fn is_empty(&mut self, mem: &Memory) -> bool {
                    ring::Ring::is_empty(self, mem)
                }
                fn take_work(&mut self) -> usize {
                    ring::Ring::take_work(self)
                }
                fn push_used(
                    &mut self,
                    mem: &Memory,
                    elems: &[UsedElem],
                ) -> Result<(), RingError> {
                    ring::Ring::push_used(self, mem, elems)
                }
                fn disable_notify(&mut self, mem: &Memory) -> Result<(), RingError> {
                    ring::Ring::disable_notify(self, mem)
                }
                fn enable_notify(&mut self, mem: &Memory) -> Result<bool, RingError> {
                    ring::Ring::enable_notify(self, mem)
                }
                fn needs_interrupt(&mut self, mem: &Memory) -> bool {
                    ring::Ring::needs_interrupt(self, mem)
                }
            }
        };
    };
}

device_ring!(vhost_iocm_engine::engine::ring);

/// The ring and the model of what it has to be.
pub(crate) struct Device {
    ring: Box<dyn DeviceRing>,
    pub(crate) layout: Layout,
    pub(crate) num: u16,
    event_idx: bool,
    notify_on_empty: bool,
    /// The next available entry to take, and the driver's index as it was read last.
    pub(crate) next_avail: u16,
    seen_avail: u16,
    /// The used index as it was published, and elements since the last decision to interrupt, if
    /// there was one.
    next_used: u16,
    undecided: Option<usize>,
    quiet: bool,
    /// Heads of chains that were taken and not given back, oldest first.
    pub(crate) outstanding: VecDeque<u16>,
    /// Elements that could not be given back the last time.
    failed: usize,
    /// The next chain that is taken was put back before.
    unpopped: bool,
    /// Work on the packet that is being made, as it has to be told.
    packet_work: usize,
    /// Work of all calls.
    pub(crate) work: usize,
    pub(crate) outcomes: Outcomes,
}

impl Device {
    pub(crate) fn new(ring: Box<dyn DeviceRing>) -> Self {
        let num = ring.num();
        Self {
            ring,
            layout: Layout::default(),
            num,
            event_idx: false,
            notify_on_empty: false,
            next_avail: 0,
            seen_avail: 0,
            next_used: 0,
            undecided: None,
            quiet: false,
            outstanding: VecDeque::new(),
            failed: 0,
            unpopped: false,
            packet_work: 0,
            work: 0,
            outcomes: Outcomes::default(),
        }
    }

    /// A ring as after `VHOST_RESET_OWNER`.
    pub(crate) fn reset(&mut self) {
        let (work, outcomes) = (self.work, std::mem::take(&mut self.outcomes));
        *self = Self {
            work,
            outcomes,
            ..Self::new(self.ring.fresh())
        };
    }

    pub(crate) fn set_num(&mut self, num: u32) {
        let allowed = num.is_power_of_two() && num <= 1 << 15;
        assert_eq!(self.ring.set_num(num), allowed);
        if allowed {
            self.num = num as u16;
        }
        assert_eq!(self.ring.num(), self.num);
    }

    pub(crate) fn set_layout(&mut self, layout: Layout) {
        self.layout = layout;
        self.ring.set_layout(layout);
    }

    pub(crate) fn set_features(&mut self, event_idx: bool, notify_on_empty: bool) {
        (self.event_idx, self.notify_on_empty) = (event_idx, notify_on_empty);
        self.ring.set_features(event_idx, notify_on_empty);
    }

    pub(crate) fn set_base(&mut self, base: u16) {
        (self.next_avail, self.seen_avail) = (base, base);
        self.outstanding.clear();
        self.ring.set_base(base);
    }

    /// How the ring is set up.
    pub(crate) fn setup(&self) -> Setup {
        Setup {
            num: self.num,
            layout: self.layout,
            base: self.next_avail,
            event_idx: self.event_idx,
            notify_on_empty: self.notify_on_empty,
        }
    }

    // Where the fields of the ring are (virtio 1.3, 2.7.6 and 2.7.8).

    fn avail_idx(&self) -> u64 {
        self.layout.avail.wrapping_add(2)
    }

    pub(crate) fn avail_entry(&self, index: u16) -> u64 {
        let slot = u64::from(index % self.num);
        self.layout.avail.wrapping_add(4 + 2 * slot)
    }

    pub(crate) fn used_event(&self) -> u64 {
        let num = u64::from(self.num);
        self.layout.avail.wrapping_add(4 + 2 * num)
    }

    fn used_idx(&self) -> u64 {
        self.layout.used.wrapping_add(2)
    }

    fn used_entry(&self, index: u16) -> u64 {
        let slot = u64::from(index % self.num);
        self.layout.used.wrapping_add(4 + 8 * slot)
    }

    fn avail_event(&self) -> u64 {
        let num = u64::from(self.num);
        self.layout.used.wrapping_add(4 + 8 * num)
    }

    fn end(&mut self, memory: &Memory) -> Calls {
        let calls = memory.end();
        self.work += calls.work();
        assert_eq!(self.ring.base(), self.next_avail);
        calls
    }

    /// Looks at the available index as who polls does; returns whether there is something to do.
    pub(crate) fn peek(&mut self, memory: &Memory) -> bool {
        assert_eq!(self.ring.avail_idx_address(), self.avail_idx());
        let index = memory.peek_u16(self.avail_idx());
        let news = index.is_some_and(|index| self.ring.has_news(index));
        assert_eq!(news, index.is_some_and(|index| index != self.seen_avail));
        news
    }

    pub(crate) fn start(&mut self, memory: &Memory) {
        memory.begin(CALL_WORK);
        let result = self.ring.start(memory);
        let calls = self.end(memory);
        let mut touches = Replay::new(&calls.touches);
        let flags = u16::from(self.quiet);
        let expected = if !wrote(touches.next(), self.layout.used, flags) {
            Err(RingError::Fault)
        } else {
            self.undecided = None;
            touches.read_u16(self.used_idx()).map(|index| {
                self.next_used = index;
                self.failed = 0;
            })
        };
        touches.assert_end();
        assert_eq!(result, expected);
        if result.is_err() {
            self.outcomes.saw(Event::NotStarted);
        }
    }

    /// What a look at the available index has to find.
    fn look(&mut self, touches: &mut Replay<'_>) -> Result<bool, RingError> {
        let index = touches.read_u16(self.avail_idx())?;
        if usize::from(index.wrapping_sub(self.next_avail)) > usize::from(self.num) {
            return Err(RingError::AvailIndex);
        }
        let news = index != self.seen_avail;
        self.seen_avail = index;
        Ok(news)
    }

    /// Takes a chain for the packet that is being made, with room for `room` segments. Returns its
    /// length in bytes, and `None` when there was none.
    pub(crate) fn pop(&mut self, memory: &Memory, room: usize) -> Result<Option<usize>, RingError> {
        let untouched = Segment { base: 1, len: 2 };
        let mut segments = vec![untouched; room];
        let work_before = self.packet_work;
        memory.begin(CALL_WORK + DESCRIPTOR_WORK * (WORK_MAX - work_before));
        let popped = self.ring.pop(memory, &mut segments);
        let calls = memory.end();
        self.work += calls.work();

        let mut touches = Replay::new(&calls.touches);
        let mut walk = Walk::new(memory, self.layout.desc, self.num, room, work_before);
        let expected = self.take(&mut touches, &mut walk);
        touches.assert_end();
        let work = walk.work - work_before;
        assert!(
            calls.work() <= CALL_WORK + DESCRIPTOR_WORK * work,
            "{} accesses are called {work} descriptors",
            calls.work()
        );
        self.packet_work = walk.work;
        let taken = expected.map(|head| head.map(|head| (head, walk.readable, walk.writable)));
        assert_eq!(popped, taken);
        assert_eq!(self.ring.base(), self.next_avail);
        match taken {
            Ok(Some((head, readable, writable))) => {
                let (used, rest) = segments.split_at(readable + writable);
                assert_eq!(used, walk.segments);
                // Who writes more than there is writes where it goes on.
                assert!(rest.iter().take(4).all(|it| *it == untouched));
                self.outstanding.push_back(head);
                self.note_chain(memory, &calls, &walk, work);
                let len = walk.segments.iter().map(|it| it.len);
                Ok(Some(len.fold(0, usize::saturating_add)))
            }
            Ok(None) => {
                self.outcomes.saw(Event::EmptyRing);
                Ok(None)
            }
            Err(error) => {
                self.outcomes.saw_error(error);
                if calls.changed {
                    self.outcomes.saw(Event::ChangedRefusal);
                }
                Err(error)
            }
        }
    }

    /// Ends the packet that is being made; returns how many descriptors were read for it.
    pub(crate) fn take_work(&mut self) -> usize {
        let work = self.ring.take_work();
        assert_eq!(work, std::mem::take(&mut self.packet_work));
        if work > WORK_MAX / 2 {
            self.outcomes.saw(Event::MuchWork);
        }
        work
    }

    /// What taking a chain has to find: its head, nothing, or why not.
    fn take(
        &mut self,
        touches: &mut Replay<'_>,
        walk: &mut Walk<'_>,
    ) -> Result<Option<u16>, RingError> {
        if self.seen_avail == self.next_avail && !self.look(touches)? {
            return Ok(None);
        }
        let head = touches.read_u16(self.avail_entry(self.next_avail))?;
        walk.run(touches, head)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(head))
    }

    fn note_chain(&mut self, memory: &Memory, calls: &Calls, walk: &Walk<'_>, work: usize) {
        let events = [
            (walk.tables == 0, Event::DirectChain),
            (walk.tables > 0, Event::IndirectChain),
            (walk.tables > 1, Event::ManyTables),
            (walk.straddling > 0, Event::StraddlingEntry),
            (walk.divided > 0, Event::DividedBuffer),
            (walk.segments.is_empty(), Event::EmptyChain),
            (work > 200, Event::LongChain),
            (calls.changed, Event::ChangedChain),
            (
                memory.overlaps() && !walk.segments.is_empty(),
                Event::OverlappingRegions,
            ),
            (
                self.outstanding.len() > usize::from(self.num),
                Event::MoreThanTheRing,
            ),
            (std::mem::take(&mut self.unpopped), Event::Unpopped),
        ];
        for (_, event) in events.into_iter().filter(|(seen, _)| *seen) {
            self.outcomes.saw(event);
        }
    }

    /// Puts the last `count` chains back.
    pub(crate) fn unpop(&mut self, count: usize) {
        let count = count.min(self.outstanding.len());
        self.outstanding.truncate(self.outstanding.len() - count);
        self.next_avail = self.next_avail.wrapping_sub(count as u16);
        self.ring.unpop(count as u16);
        self.unpopped = count > 0;
        assert_eq!(self.ring.base(), self.next_avail);
    }

    pub(crate) fn is_empty(&mut self, memory: &Memory) {
        memory.begin(CALL_WORK);
        let empty = self.ring.is_empty(memory);
        let calls = self.end(memory);
        let mut touches = Replay::new(&calls.touches);
        let expected = self.seen_avail == self.next_avail && self.look(&mut touches) == Ok(false);
        touches.assert_end();
        assert_eq!(empty, expected);
    }

    /// Gives the oldest `count` chains back, at once.
    pub(crate) fn push(&mut self, memory: &Memory, count: usize, len: u32) {
        let count = count.min(self.outstanding.len());
        let elems = self.outstanding.iter().take(count).map(|head| UsedElem {
            id: u32::from(*head),
            len,
        });
        let elems: Vec<_> = elems.collect();
        memory.begin(CALL_WORK + count);
        let result = self.ring.push_used(memory, &elems);
        let calls = self.end(memory);
        let mut touches = Replay::new(&calls.touches);
        let expected = self.check_elems(&mut touches, &elems);
        touches.assert_end();
        assert_eq!(result, expected);
        if result.is_err() {
            self.failed = count;
            return;
        }
        if count > 0 && std::mem::take(&mut self.failed) > 0 {
            self.outcomes.saw(Event::PushedAgain);
        }
        self.outstanding.drain(..count);
        self.undecided = self.undecided.map(|undecided| undecided + count);
    }

    /// What giving `elems` back has to write: each in its slot, at most as many at once as there
    /// are slots to the end, and the index behind them.
    fn check_elems(
        &mut self,
        touches: &mut Replay<'_>,
        elems: &[UsedElem],
    ) -> Result<(), RingError> {
        let mut index = self.next_used;
        let mut rest = elems;
        while !rest.is_empty() {
            let to_the_end = usize::from(self.num - index % self.num);
            let (now, later) = rest.split_at(to_the_end.min(rest.len()));
            match touches.next() {
                Some(Touch::WriteUsed(addr, elems, done))
                    if *addr == self.used_entry(index) && elems == now =>
                {
                    if !done {
                        return Err(RingError::Fault);
                    }
                }
                other => panic!("{other:x?} where {now:?} are to be written"),
            }
            index = index.wrapping_add(now.len() as u16);
            rest = later;
        }
        if !wrote(touches.next(), self.used_idx(), index) {
            return Err(RingError::Fault);
        }
        if index / self.num != self.next_used / self.num {
            self.outcomes.saw(Event::UsedWrapped);
        }
        self.next_used = index;
        Ok(())
    }

    pub(crate) fn disable(&mut self, memory: &Memory) -> Result<(), RingError> {
        memory.begin(CALL_WORK);
        let result = self.ring.disable_notify(memory);
        let calls = self.end(memory);
        let mut touches = Replay::new(&calls.touches);
        let writes = !self.quiet && !self.event_idx;
        let expected = if writes && !wrote(touches.next(), self.layout.used, 1) {
            Err(RingError::Fault)
        } else {
            self.quiet = true;
            Ok(())
        };
        touches.assert_end();
        assert_eq!(result, expected);
        result
    }

    pub(crate) fn enable(&mut self, memory: &Memory) -> Result<bool, RingError> {
        memory.begin(CALL_WORK);
        let result = self.ring.enable_notify(memory);
        let calls = self.end(memory);
        let mut touches = Replay::new(&calls.touches);
        let expected = if !self.quiet {
            Ok(false)
        } else {
            let (addr, value) = if self.event_idx {
                (self.avail_event(), self.seen_avail)
            } else {
                (self.layout.used, 0)
            };
            if wrote(touches.next(), addr, value) {
                self.quiet = false;
                self.look(&mut touches)
            } else {
                Err(RingError::Fault)
            }
        };
        touches.assert_end();
        assert_eq!(result, expected);
        match result {
            Ok(true) => self.outcomes.saw(Event::News),
            Ok(false) => self.outcomes.saw(Event::NoNews),
            Err(_) => (),
        }
        result
    }

    pub(crate) fn decide_interrupt(&mut self, memory: &Memory) {
        memory.begin(CALL_WORK);
        let needed = self.ring.needs_interrupt(memory);
        let calls = self.end(memory);
        let mut touches = Replay::new(&calls.touches);
        let expected = self.interrupt_is_due(&mut touches);
        touches.assert_end();
        assert_eq!(needed, expected);
        self.outcomes.saw(match (needed, self.event_idx) {
            (true, _) => Event::Interrupt,
            (false, false) => Event::NoInterruptByFlags,
            (false, true) => Event::NoInterruptByEvent,
        });
    }

    fn interrupt_is_due(&mut self, touches: &mut Replay<'_>) -> bool {
        if self.notify_on_empty && self.seen_avail == self.next_avail {
            return true;
        }
        if !self.event_idx {
            let flags = touches.read_u16(self.layout.avail);
            return flags.map_or(true, |flags| flags & 1 == 0);
        }
        match self.undecided.replace(0) {
            // With that many elements every index was passed.
            None | Some(0x1_0000..) => true,
            Some(count) => {
                let event = touches.read_u16(self.used_event());
                let passed = |event: u16| {
                    let mut indices =
                        (1..=count as u16).map(|back| self.next_used.wrapping_sub(back));
                    indices.any(|index| index == event)
                };
                event.map_or(true, passed)
            }
        }
    }
}

/// Checks that a field was written; returns whether that worked.
fn wrote(touch: Option<&Touch>, addr: u64, value: u16) -> bool {
    match touch {
        Some(&Touch::WriteU16(at, written, done)) if (at, written) == (addr, value) => done,
        other => panic!("{other:x?} where {value:#x} is to be written to {addr:#x}"),
    }
}
