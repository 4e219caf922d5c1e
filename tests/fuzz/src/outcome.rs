// SPDX-License-Identifier: GPL-2.0

//! What happened in a run, so that a corpus can be asked what it reaches.

use vhost_iocm_engine::engine::error::RingError;

/// Something that the engine did, right or wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A chain was taken whose descriptors all stand in the ring's table.
    DirectChain,
    /// A chain was taken that has an indirect table.
    IndirectChain,
    /// The same with several tables.
    ManyTables,
    /// A chain was taken with an entry that regions divide.
    StraddlingEntry,
    /// A chain was taken with a buffer that regions divide.
    DividedBuffer,
    /// A chain without any buffer was taken.
    EmptyChain,
    /// A chain of hundreds of descriptors was taken.
    LongChain,
    /// A chain was taken although memory changed while it was read.
    ChangedChain,
    /// A chain was refused, and memory changed while it was read.
    ChangedRefusal,
    /// A chain was taken through regions that overlap.
    OverlappingRegions,
    /// The ring was empty.
    EmptyRing,
    /// The engine read thousands of descriptors for one packet.
    MuchWork,
    /// More chains were taken than the ring has entries, before any was given back.
    MoreThanTheRing,
    /// Chains were put back and found again.
    Unpopped,
    /// Elements went around the end of the used ring.
    UsedWrapped,
    /// Elements could not be given back, and could later.
    PushedAgain,
    /// A slice ended because of the packets in it.
    SliceOfPackets,
    /// A slice ended because of bytes or descriptors.
    SliceOfBytes,
    /// A slice ended because of its time.
    SliceOfTime,
    /// An interrupt was due, by flags or by the event index.
    Interrupt,
    /// None was, by flags.
    NoInterruptByFlags,
    /// None was, by the event index.
    NoInterruptByEvent,
    /// Entries appeared before the driver was asked to notify.
    News,
    /// None did.
    NoNews,
    /// A memory table was refused.
    TableRefused,
    /// The ring could not be started.
    NotStarted,
}

/// All of them.
pub const EVENTS: [Event; 26] = [
    Event::DirectChain,
    Event::IndirectChain,
    Event::ManyTables,
    Event::StraddlingEntry,
    Event::DividedBuffer,
    Event::EmptyChain,
    Event::LongChain,
    Event::ChangedChain,
    Event::ChangedRefusal,
    Event::OverlappingRegions,
    Event::EmptyRing,
    Event::MuchWork,
    Event::MoreThanTheRing,
    Event::Unpopped,
    Event::UsedWrapped,
    Event::PushedAgain,
    Event::SliceOfPackets,
    Event::SliceOfBytes,
    Event::SliceOfTime,
    Event::Interrupt,
    Event::NoInterruptByFlags,
    Event::NoInterruptByEvent,
    Event::News,
    Event::NoNews,
    Event::TableRefused,
    Event::NotStarted,
];

/// All errors that taking a chain can have.
pub const ERRORS: [RingError; 11] = [
    RingError::Fault,
    RingError::AvailIndex,
    RingError::DescriptorIndex,
    RingError::Loop,
    RingError::ReadableAfterWritable,
    RingError::IndirectLength,
    RingError::IndirectTooLong,
    RingError::IndirectNested,
    RingError::Unmapped,
    RingError::TooManySegments,
    RingError::TooManyDescriptors,
];

/// What was seen, each once.
#[derive(Clone, Debug, Default)]
pub struct Outcomes {
    /// Errors of taking a chain.
    pub errors: Vec<RingError>,
    /// Everything else.
    pub events: Vec<Event>,
}

impl Outcomes {
    pub(crate) fn saw(&mut self, event: Event) {
        if !self.events.contains(&event) {
            self.events.push(event);
        }
    }

    pub(crate) fn saw_error(&mut self, error: RingError) {
        if !self.errors.contains(&error) {
            self.errors.push(error);
        }
    }
}
