// SPDX-License-Identifier: GPL-2.0

//! Plants the bugs that the corpus has to find.

#[path = "../planting.rs"]
mod planting;

use planting::Bug;

const BUGS: &[Bug] = &[
    Bug {
        name: "jump_is_believed",
        file: "ring/chain.rs",
        text: "if avail_idx.wrapping_sub(self.next_avail) > self.num {",
        instead: "if false {",
    },
    Bug {
        name: "index_is_believed",
        file: "ring/chain.rs",
        text: "            if index >= self.num {\n                return",
        instead: "            if false {\n                return",
    },
    Bug {
        name: "loop_is_followed",
        file: "ring/chain.rs",
        text: "for _ in 0..self.num {",
        instead: "for _ in 0..u64::MAX {",
    },
    Bug {
        name: "tables_are_read_without_end",
        file: "ring/chain.rs",
        text: "if self.work >= WORK_MAX {",
        instead: "if false {",
    },
    Bug {
        name: "each_chain_counts_alone",
        file: "ring/chain.rs",
        text: "work: self.work,",
        instead: "work: 0,",
    },
    Bug {
        name: "pieces_of_an_entry_are_free",
        file: "ring/chain.rs",
        text: "self.count()?;\n            let (base, run) = mem.translate(addr.wrapping_add(2",
        instead: "let (base, run) = mem.translate(addr.wrapping_add(2",
    },
    Bug {
        name: "pieces_of_a_buffer_are_free",
        file: "ring/chain.rs",
        text: "self.count()?;\n            addr = addr.checked_add(take)",
        instead: "addr = addr.checked_add(take)",
    },
    Bug {
        name: "table_nests",
        file: "ring/chain.rs",
        text: "if entry.has(INDIRECT) {",
        instead: "if false {",
    },
    Bug {
        name: "table_ends_anywhere",
        file: "ring/chain.rs",
        text: "if u64::from(table.len) % DESCRIPTOR_SIZE != 0 {",
        instead: "if false {",
    },
    Bug {
        name: "table_has_no_end",
        file: "ring/chain.rs",
        text: "        }\n        Err(RingError::Loop)\n    }\n\n    /// Checks",
        instead: "        }\n        Ok(())\n    }\n\n    /// Checks",
    },
    Bug {
        name: "readable_comes_after_writable",
        file: "ring/chain.rs",
        text: "} else if self.writable > 0 {",
        instead: "} else if false {",
    },
    Bug {
        name: "buffer_leaves_its_region",
        file: "ring/chain.rs",
        text: "len: len.min(run) as usize,",
        instead: "len: len as usize,",
    },
    Bug {
        name: "buffer_wraps",
        file: "ring/chain.rs",
        text: "addr = addr.checked_add(take).ok_or(RingError::Unmapped)?;",
        instead: "addr = addr.wrapping_add(take);",
    },
    Bug {
        name: "descriptor_is_read_twice",
        file: "ring/chain.rs",
        text: "None => Descriptor::read(mem, self.layout.descriptor(index))?,",
        instead: "None => {
                    let _ = Descriptor::read(mem, self.layout.descriptor(index))?;
                    Descriptor::read(mem, self.layout.descriptor(index))?
                }",
    },
    Bug {
        name: "work_is_not_told",
        file: "ring/chain.rs",
        text: "self.work = collector.work;",
        instead: "",
    },
    Bug {
        name: "refused_chain_is_gone",
        file: "ring/chain.rs",
        text: "        walked?;\n        self.next_avail = self.next_avail.wrapping_add(1);",
        instead: "        self.next_avail = self.next_avail.wrapping_add(1);\n        walked?;",
    },
    Bug {
        name: "only_one_is_put_back",
        file: "ring/chain.rs",
        text: "wrapping_sub(count)",
        instead: "wrapping_sub(count.min(1))",
    },
    Bug {
        name: "used_ring_has_no_end",
        file: "ring/used.rs",
        text: "usize::from(self.num - slot).min(rest.len())",
        instead: "rest.len()",
    },
    Bug {
        name: "failed_elements_count",
        file: "ring/used.rs",
        text: "if result.is_err() {",
        instead: "if false {",
    },
    Bug {
        name: "driver_is_not_looked_at_again",
        file: "ring/notify.rs",
        text: "self.refresh(mem)",
        instead: "Ok(false)",
    },
    Bug {
        name: "event_is_off_by_one",
        file: "ring/notify.rs",
        text: "new.wrapping_sub(event).wrapping_sub(1) <",
        instead: "new.wrapping_sub(event) <",
    },
];

fn main() {
    planting::plant(BUGS);
}
