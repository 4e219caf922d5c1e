// SPDX-License-Identifier: GPL-2.0

//! Plants the bugs that the explorations have to find.

#[path = "../planting.rs"]
mod planting;

use planting::Bug;

const BUGS: &[Bug] = &[
    // The pending mark.
    Bug {
        name: "drops_a_mark_while_somebody_has_it",
        file: "sched/ownership.rs",
        text: "(old | PENDING, Then::Rest)",
        instead: "(old, Then::Rest)",
    },
    // The second look, at what was marked meanwhile.
    Bug {
        name: "does_not_look_again_after_a_slice",
        file: "sched/ownership.rs",
        text: "let mut new = old & !SERVED;",
        instead: "let mut new = old & !(SERVED | PENDING);",
    },
    Bug {
        name: "does_not_look_again_after_a_hold",
        file: "sched/ownership.rs",
        text: "Self::give_away(old & !HELD)",
        instead: "Self::give_away(old & !(HELD | PENDING))",
    },
    // The order that an exchange brings about.
    Bug {
        name: "orders_nothing",
        file: "sched/ownership.rs",
        text: "use crate::atomics::AtomicU32;",
        instead: "use crate::atomics::Unordered as AtomicU32;",
    },
    // The rest of the word.
    Bug {
        name: "ignores_who_came_before",
        file: "sched/ownership.rs",
        text: "Err(current) => old = current,",
        instead: "Err(_) => return result,",
    },
    Bug {
        name: "lists_twice",
        file: "sched/ownership.rs",
        text: "if old & (LISTED | SERVED | HELD) == 0 {",
        instead: "if old & (SERVED | HELD) == 0 {",
    },
    Bug {
        name: "lists_again_what_is_listed",
        file: "sched/ownership.rs",
        text: "} else if new & PENDING != 0 && new & LISTED == 0 {",
        instead: "} else if new & PENDING != 0 {",
    },
    Bug {
        name: "serves_what_is_held",
        file: "sched/ownership.rs",
        text: "if old & HELD != 0 || old & PENDING == 0 {",
        instead: "if old & PENDING == 0 {",
    },
    Bug {
        name: "holds_what_is_served",
        file: "sched/ownership.rs",
        text: "} else if old & (SERVED | HELD) != 0 {",
        instead: "} else if old & HELD != 0 {",
    },
    Bug {
        name: "forgets_who_waits",
        file: "sched/ownership.rs",
        text: "(old | WANTED, false)",
        instead: "(old, false)",
    },
    Bug {
        name: "forgets_more_work",
        file: "sched/ownership.rs",
        text: "let mut new = old & !SERVED;\n            if more {",
        instead: "let mut new = old & !SERVED;\n            if false {",
    },
    // Polling and the home thread.
    Bug {
        name: "polled_one_is_lost_when_it_is_held",
        file: "sched/ownership.rs",
        text: "(unlisted | PENDING, false)",
        instead: "(unlisted, false)",
    },
    Bug {
        name: "polled_one_is_lost_when_it_is_wanted",
        file: "sched/ownership.rs",
        text: "Self::give_away(new | PENDING)",
        instead: "Self::give_away(new)",
    },
    Bug {
        name: "polled_one_is_not_listed",
        file: "sched/ownership.rs",
        text: "(new | LISTED, Then::List)\n            }\n        })\n    }\n\n    /// Tries",
        instead: "(new, Then::List)\n            }\n        })\n    }\n\n    /// Tries",
    },
    Bug {
        name: "leaves_without_its_work",
        file: "sched/ownership.rs",
        text: "(old & !SERVED) | AWAY | PENDING",
        instead: "(old & !SERVED) | AWAY",
    },
    Bug {
        name: "does_not_come_back",
        file: "sched/ownership.rs",
        text: "old & !(SERVED | AWAY)",
        instead: "old & !SERVED",
    },
    Bug {
        name: "does_not_look_again_when_it_comes_back",
        file: "sched/ownership.rs",
        text: "old & !(SERVED | AWAY)",
        instead: "old & !(SERVED | AWAY | PENDING)",
    },
    // The same for the notifications.
    Bug {
        name: "does_not_look_again",
        file: "ring/notify.rs",
        text: "        self.refresh(mem)\n",
        instead: "        Ok(false)\n",
    },
    Bug {
        name: "looks_again_without_a_barrier",
        file: "ring/notify.rs",
        text: "        atomics::smp_mb();\n        self.refresh(mem)",
        instead: "        self.refresh(mem)",
    },
    Bug {
        name: "reads_the_wish_without_a_barrier",
        file: "ring/notify.rs",
        text: "        atomics::smp_mb();\n        if self.notify_on_empty",
        instead: "        if self.notify_on_empty",
    },
    Bug {
        name: "reads_an_entry_without_a_barrier",
        file: "ring/chain.rs",
        text: "        atomics::smp_rmb();\n",
        instead: "",
    },
    Bug {
        name: "publishes_without_a_barrier",
        file: "ring/used.rs",
        text: "        atomics::smp_wmb();\n",
        instead: "",
    },
    // The sequence of a record of the snapshot.
    Bug {
        name: "begins_without_a_barrier",
        file: "snapshot/sequence.rs",
        text: "        smp_wmb();\n        Self {",
        instead: "        Self {",
    },
    Bug {
        name: "ends_without_a_barrier",
        file: "snapshot/sequence.rs",
        text: "        smp_wmb();\n        self.sequence.store",
        instead: "        self.sequence.store",
    },
    Bug {
        name: "copies_before_the_sequence",
        file: "snapshot/sequence.rs",
        text: "    smp_rmb();\n    let seen",
        instead: "    let seen",
    },
    Bug {
        name: "copies_after_the_sequence",
        file: "snapshot/sequence.rs",
        text: "    smp_rmb();\n    let after",
        instead: "    let after",
    },
    Bug {
        name: "does_not_compare_sequences",
        file: "snapshot/sequence.rs",
        text: "before == after && before.iter()",
        instead: "before.iter()",
    },
    Bug {
        name: "takes_what_is_being_written",
        file: "snapshot/sequence.rs",
        text: "before == after && before.iter().all(|sequence| sequence % 2 == 0)",
        instead: "before == after",
    },
    Bug {
        name: "looks_at_one_sequence_alone",
        file: "snapshot/sequence.rs",
        text: "let after = [record[0].load(), record[COUNTERS].load()];",
        instead: "let after = [record[0].load(), before[1]];",
    },
];

fn main() {
    planting::plant(BUGS);
}
