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

/// The used ring is mapped to be written, so that is what is asked for. Stock vhost asks for permission to
/// read, also where it writes.
const MISS_OF_USED_RING: &str = "a device writes its used ring";

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
    Difference {
        case: "a memory table of more regions than there may be translations",
        stock: "virtqueue 1: base 0, used 0, flags 1, available event 0, call false, error true",
        ours: "virtqueue 1: base 1, used 1, flags 0, available event 0, call true, error false",
        reason: "stock vhost keeps a memory table as it keeps translations, with the same limit, so that its \
                 first regions are forgotten in silence; a table has no limit but its own here",
    },
    Difference {
        case: "reads of every length in format 1",
        stock: "(format [1, 0, 0, 0, 0, 0, 0, 0], iova 0x180012000, size 0x0, address 0x0, permission 1, kind 1, then 98f99bb3)",
        ours: "(format [1, 0, 0, 0, 0, 0, 0, 0], iova 0x180012000, size 0x0, address 0x0, permission 2, kind 1, then 98f99bb3)",
        reason: MISS_OF_USED_RING,
    },
    Difference {
        case: "a miss of each ring, then updates, in format 1",
        stock: "Some(PollFlags(POLLIN | POLLRDNORM)), 72 (format [1, 0, 0, 0, 0, 0, 0, 0], iova 0x180002000, size 0x0, address 0x0, permission 1, kind 1, then 98f99bb3), EAGAIN",
        ours: "Some(PollFlags(POLLIN | POLLRDNORM)), 72 (format [1, 0, 0, 0, 0, 0, 0, 0], iova 0x180002000, size 0x0, address 0x0, permission 2, kind 1, then 98f99bb3), EAGAIN",
        reason: MISS_OF_USED_RING,
    },
    Difference {
        case: "a miss of each ring, then updates, in format 1",
        stock: "Some(PollFlags(POLLIN | POLLRDNORM)), 72 (format [1, 0, 0, 0, 0, 0, 0, 0], iova 0x180012000, size 0x0, address 0x0, permission 1, kind 1, then 98f99bb3), EAGAIN",
        ours: "Some(PollFlags(POLLIN | POLLRDNORM)), 72 (format [1, 0, 0, 0, 0, 0, 0, 0], iova 0x180012000, size 0x0, address 0x0, permission 2, kind 1, then 98f99bb3), EAGAIN",
        reason: MISS_OF_USED_RING,
    },
    Difference {
        case: "reads of every length in format 2",
        stock: "(format [2, 0, 0, 0, 0, 0, 0, 0], iova 0x180012000, size 0x0, address 0x0, permission 1, kind 1, then 98f99bb3)",
        ours: "(format [2, 0, 0, 0, 0, 0, 0, 0], iova 0x180012000, size 0x0, address 0x0, permission 2, kind 1, then 98f99bb3)",
        reason: MISS_OF_USED_RING,
    },
    Difference {
        case: "a miss of each ring, then updates, in format 2",
        stock: "Some(PollFlags(POLLIN | POLLRDNORM)), 72 (format [2, 0, 0, 0, 0, 0, 0, 0], iova 0x180002000, size 0x0, address 0x0, permission 1, kind 1, then 98f99bb3), EAGAIN",
        ours: "Some(PollFlags(POLLIN | POLLRDNORM)), 72 (format [2, 0, 0, 0, 0, 0, 0, 0], iova 0x180002000, size 0x0, address 0x0, permission 2, kind 1, then 98f99bb3), EAGAIN",
        reason: MISS_OF_USED_RING,
    },
    Difference {
        case: "a miss of each ring, then updates, in format 2",
        stock: "Some(PollFlags(POLLIN | POLLRDNORM)), 72 (format [2, 0, 0, 0, 0, 0, 0, 0], iova 0x180012000, size 0x0, address 0x0, permission 1, kind 1, then 98f99bb3), EAGAIN",
        ours: "Some(PollFlags(POLLIN | POLLRDNORM)), 72 (format [2, 0, 0, 0, 0, 0, 0, 0], iova 0x180012000, size 0x0, address 0x0, permission 2, kind 1, then 98f99bb3), EAGAIN",
        reason: MISS_OF_USED_RING,
    },
    Difference {
        case: "ACCESS_PLATFORM forgets addresses and mappings",
        stock: "Some(PollFlags(POLLIN | POLLRDNORM)), 72 (format [2, 0, 0, 0, 0, 0, 0, 0], iova 0x180012000, size 0x0, address 0x0, permission 1, kind 1, then 98f99bb3), EAGAIN",
        ours: "Some(PollFlags(POLLIN | POLLRDNORM)), 72 (format [2, 0, 0, 0, 0, 0, 0, 0], iova 0x180012000, size 0x0, address 0x0, permission 2, kind 1, then 98f99bb3), EAGAIN",
        reason: MISS_OF_USED_RING,
    },
    Difference {
        case: "a miss of each ring, then updates, in format 1",
        stock: "the refused start signals an error: true",
        ours: "the refused start signals an error: false",
        reason: "a start that is refused is answered by an errno; the error eventfd is for a ring that \
                 is in use",
    },
    Difference {
        case: "a miss of each ring, then updates, in format 2",
        stock: "the refused start signals an error: true",
        ours: "the refused start signals an error: false",
        reason: "a start that is refused is answered by an errno; the error eventfd is for a ring that \
                 is in use",
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
