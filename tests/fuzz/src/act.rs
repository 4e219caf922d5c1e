// SPDX-License-Identifier: GPL-2.0

//! What guest and owner do in a script, for who plays it to another device than the model's.

use vhost_iocm_engine::engine::mem::Region;
use vhost_iocm_engine::engine::ring::Layout;

use crate::memory::Write;

/// One step of the guest or the owner.
///
/// Addresses are those of a process that has [`memory_size`](crate::memory_size) bytes at
/// [`OWNER`](crate::OWNER), which are all guest-physical memory that there is from
/// [`GUEST`](crate::GUEST) on until a table is set.
#[derive(Clone, Debug)]
pub enum Act {
    /// The owner sets the ring up, or up anew. It may be one that no device accepts.
    SetUp(Setup),
    /// The guest writes.
    Write(Write),
    /// The guest writes as soon as the device has touched memory that often.
    WriteLater(usize, Write),
    /// The guest writes two values in turn, all the time.
    Race([Write; 2]),
    /// It stops to do that.
    Calm,
    /// The owner replaces the memory table.
    SetTable(Vec<Region>),
    /// The device serves the ring.
    Serve,
}

/// How a ring is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Its number of entries.
    pub num: u16,
    /// Where it is.
    pub layout: Layout,
    /// The available entry that is taken first.
    pub base: u16,
    /// Whether EVENT_IDX is negotiated.
    pub event_idx: bool,
    /// Whether NOTIFY_ON_EMPTY is.
    pub notify_on_empty: bool,
}
