// SPDX-License-Identifier: GPL-2.0
//! Which pages a device wrote, whatever its dirty log says: memory before and after.

use std::collections::BTreeSet;

use crate::memory::{Arena, PAGE, REGION, STARTS};

/// What was in memory before the device had something to do.
pub struct Before(Vec<u8>);

impl Before {
    /// Now.
    pub fn now(arena: &Arena) -> Self {
        Self(arena.copy())
    }

    /// The guest-physical addresses of the bytes that are different now.
    fn changes(&self, arena: &Arena) -> Vec<u64> {
        let now = arena.copy();
        let changed = |(at, (old, new)): (usize, (&u8, &u8))| {
            (old != new).then(|| {
                let region = at / REGION as usize;
                STARTS[region] + at as u64 % REGION
            })
        };
        let bytes = self.0.iter().zip(&now).enumerate();
        bytes.filter_map(changed).collect()
    }

    /// The pages that changed. `place` says which guest-physical address the log has for one; nothing, if
    /// it need not be there.
    pub fn pages(&self, arena: &Arena, place: impl Fn(u64) -> Option<u64>) -> BTreeSet<u64> {
        let changes = self.changes(arena).into_iter();
        changes
            .filter_map(place)
            .map(|address| address / PAGE as u64)
            .collect()
    }
}
