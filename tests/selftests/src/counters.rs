// SPDX-License-Identifier: GPL-2.0
//! The counters of virtqueues, devices and workers.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use crate::control::Control;
use crate::thread::Thread;
use crate::wait;

/// Counters of a virtqueue that only grow; a device has their sums.
pub const OF_DEVICE: &[&str] = &[
    "handled_packets",
    "handled_bytes",
    "kicks",
    "interrupts",
    "notif_works",
    "notif_cycles",
    "notif_bytes",
    "notif_limited",
    "notif_wait",
    "poll_kicks",
    "poll_cycles",
    "poll_bytes",
    "poll_limited",
    "poll_wait",
    "poll_pending_cycles",
    "poll_coalesced",
    "polls",
    "poll_empty",
    "poll_empty_cycles",
    "stuck_times",
    "stuck_cycles",
    "parks",
    "ring_full",
    "served_ns",
    "home_ns",
    "home_works",
    "left_fault",
    "left_backend",
    "left_home",
    "mm_switches",
    "errors",
    "drops",
    "moves",
    "log_errors",
];

/// How old work of a virtqueue, a device or a worker was when its slice began.
pub const AGES: &[&str] = &["pending_ns_max", "pending_ns_avg"];

/// Counters of a worker, beside the ages.
pub const OF_WORKER: &[&str] = &[
    "loops",
    "last_loop_tsc_end",
    "empty_works",
    "pending_works",
    "stuck_works",
    "noqueue_works",
    "works",
    "mm_switches",
    "wait",
    "busy_ns",
    "idle_ns",
    "stolen_ns",
    "cycles",
    "enabled_interrupts",
    "ksoftirq_occurrences",
    "ksoftirqs",
    "ksoftirq_time",
    "polls",
    "empty_polls",
    "empty_poll_ns",
    "polled",
    "total_work_cycles",
    "poll_cycles",
    "notif_cycles",
    "wakes",
];

/// What the counters of one directory of the control interface said at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    directory: String,
    values: BTreeMap<String, u64>,
}

impl Counters {
    fn read(control: &Control, directory: String, names: &[&[&str]]) -> Result<Self> {
        let file = format!("{directory}/status");
        let status = control.read_status(&file)?;
        let mut values = BTreeMap::new();
        for name in names.concat() {
            let text = status
                .get(name)
                .with_context(|| format!("{file} has no {name}"))?;
            let value = text
                .parse()
                .with_context(|| format!("{name} of {file} is {text:?}"))?;
            values.insert(name.to_owned(), value);
        }
        Ok(Self { directory, values })
    }

    /// Waits until the slice has ended that a worker may be in. What is seen of a slice, frames and
    /// notifications, it counts at its end.
    fn settle(control: &Control, worker: &str) -> Result<()> {
        let thread = Thread::parse(&control.read_line(&format!("worker/{worker}/pid"))?)?;
        let loops = || control.read_counter(&format!("worker/{worker}/status"), "loops");
        let before = loops()?;
        wait::until("the slice to end", || {
            Ok(matches!(thread.state()?, 'S' | 'I') || loops()? > before)
        })
    }

    /// Those of a virtqueue.
    pub fn of_virtqueue(control: &Control, virtqueue: &str) -> Result<Self> {
        Self::settle(
            control,
            &control.read_line(&format!("vq/{virtqueue}/worker"))?,
        )?;
        Self::read(control, format!("vq/{virtqueue}"), &[OF_DEVICE, AGES])
    }

    /// Those of a device.
    pub fn of_device(control: &Control, device: &str) -> Result<Self> {
        for worker in control.read_list(&format!("dev/{device}/worker"))? {
            Self::settle(control, &worker)?;
        }
        Self::read(control, format!("dev/{device}"), &[OF_DEVICE, AGES])
    }

    /// Those of a worker.
    pub fn of_worker(control: &Control, worker: &str) -> Result<Self> {
        Self::settle(control, worker)?;
        Self::read(control, format!("worker/{worker}"), &[OF_WORKER, AGES])
    }

    /// Waits until a worker has slept for a moment: what is seen of a slice, it counts a little later.
    pub fn expect_rest(control: &Control, worker: &str) -> Result<()> {
        let mut last = None;
        wait::until("the worker to rest", || {
            let now = Self::of_worker(control, worker)?.get("loops")?;
            Ok(last.replace(now) == Some(now))
        })
    }

    /// One of them.
    pub fn get(&self, name: &str) -> Result<u64> {
        let value = self.values.get(name);
        value
            .copied()
            .with_context(|| format!("{} has no counter {name}", self.directory))
    }

    /// How far each has moved since an earlier look.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut moved = self.clone();
        for (name, value) in &mut moved.values {
            let before = earlier.values.get(name).copied().unwrap_or(0);
            *value = value.saturating_sub(before);
        }
        moved
    }

    /// Those that are not zero.
    pub fn moved(&self) -> Vec<(&str, u64)> {
        let values = self.values.iter();
        values
            .filter(|(_, value)| **value > 0)
            .map(|(name, value)| (name.as_str(), *value))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(kicks: u64, polls: u64) -> Counters {
        Counters {
            directory: "vq/vq.0.1".into(),
            values: BTreeMap::from([("kicks".into(), kicks), ("polls".into(), polls)]),
        }
    }

    #[test]
    fn differences() {
        let moved = counters(5, 7).since(&counters(2, 7));
        assert_eq!(moved, counters(3, 0));
        assert_eq!(moved.moved(), [("kicks", 3)]);
        assert_eq!(moved.get("kicks").unwrap(), 3);
        assert!(moved.get("parks").is_err());
    }
}
