// SPDX-License-Identifier: GPL-2.0
//! What vhost_iocm does otherwise than stock vhost_net, on purpose.
//!
//! Each entry holds for one case and must go on to occur: one that does not is a failure, too.

/// A deliberate difference.
pub struct Difference {
    /// The case's name.
    pub case: &'static str,
    /// A line of its record on stock vhost.
    pub stock: &'static str,
    /// What vhost_iocm does instead.
    pub ours: &'static str,
    /// Why.
    pub reason: &'static str,
}

/// All of them.
pub const DIFFERENCES: &[Difference] = &[
    Difference {
        case: "SET_MEM_TABLE of an empty region at zero stopped",
        stock: "set: 0",
        ours: "set: EFAULT",
        reason:
            "an empty region at zero, and no other empty one, is the whole address space to stock \
                 vhost, since the last address is computed from the length and wraps",
    },
    Difference {
        case: "SET_MEM_TABLE of a good and a bad region stopped",
        stock: "set: 0",
        ours: "set: EFAULT",
        reason: "the same: its bad region is an empty one at zero",
    },
    Difference {
        case: "starting writes the used ring's flags, and reads its index",
        stock:
            "virtqueue 0: base 0, used 4711, flags 0, available event 0, call false, error false",
        ours: "virtqueue 0: base 0, used 4711, flags 1, available event 0, call false, error false",
        reason:
            "a receive virtqueue is served once when it is started, and from then on its driver \
                 need not kick; stock vhost serves it when the first packet comes",
    },
    Difference {
        case: "SET_MEM_TABLE of an empty region at zero stopped",
        stock: "start: EFAULT",
        ours: "start: 0",
        reason: "the same: the table that was refused did not replace the good one",
    },
    Difference {
        case: "SET_MEM_TABLE of a good and a bad region stopped",
        stock: "start: EFAULT",
        ours: "start: 0",
        reason: "the same: the table that was refused did not replace the good one",
    },
];

/// What vhost_iocm is expected to do in this case, when stock vhost does this. The error names an
/// entry that does not fit the case any more.
pub fn expected(case: &str, mut lines: Vec<String>) -> Result<Vec<String>, String> {
    for difference in DIFFERENCES.iter().filter(|known| known.case == case) {
        let mut found = false;
        for line in lines.iter_mut().filter(|line| *line == difference.stock) {
            *line = difference.ours.to_owned();
            found = true;
        }
        if !found {
            return Err(format!(
                "stock vhost does not say {:?} any more, see the differences ({})",
                difference.stock, difference.reason
            ));
        }
    }
    Ok(lines)
}
