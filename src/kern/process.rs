// SPDX-License-Identifier: GPL-2.0

//! Who calls.

use core::ptr;
use kernel::bindings;
use kernel::prelude::*;

/// The longest name of a process, with the zero that ends it (`TASK_COMM_LEN`).
pub const NAME_SIZE: usize = 16;

/// The number and the name of a process, at the time when it was asked for.
#[derive(Clone, Copy)]
pub struct Process {
    /// The number in the initial namespace.
    pub pid: i32,
    /// The name, ended by a zero. The process chooses it.
    pub name: [u8; NAME_SIZE],
}

impl Process {
    /// The current process.
    pub fn current() -> Self {
        let current = current!();
        let leader = current.group_leader();
        // SAFETY: The leader's structure is valid as long as the current thread runs.
        let name = unsafe { &raw const (*leader.as_ptr()).comm };
        Self {
            pid: leader.pid(),
            // SAFETY: The name has this size. It may change meanwhile, which can mix two names;
            // whatever is read ends in a zero, as the last byte never changes.
            name: unsafe { ptr::read_volatile(name.cast()) },
        }
    }
}

const _: () = assert!(NAME_SIZE == bindings::TASK_COMM_LEN as usize);
