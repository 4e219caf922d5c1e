// SPDX-License-Identifier: GPL-2.0

//! Devices, their virtqueues, and what they count.

use super::place::Place;
use super::{Event, Host, Setup, MILLISECOND};
use rand::rngs::StdRng;
use rand::SeedableRng;
use std::collections::VecDeque;
use vhost_iocm_engine::engine::sched::credit::Credit;
use vhost_iocm_engine::engine::sched::polling::{Mode, Polling};

/// Virtqueues of a device.
pub(super) const RECEIVE: usize = 0;
pub(super) const TRANSMIT: usize = 1;

#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    /// When its request began.
    pub(super) born: u64,
    /// Since when it waits.
    pub(super) since: u64,
}

/// A packet that was moved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moved {
    /// When its request began.
    pub(super) born: u64,
    /// When the other side was told.
    pub(super) done: u64,
}

/// What an interval counts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub(super) served: u64,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) slices: u64,
    pub(super) notifications: u64,
    pub(super) polls_empty: u64,
    pub(super) pending_max: u64,
    pub(super) pending_sum: u64,
}

impl Counters {
    pub(super) fn begin(&mut self, age: u64) {
        self.slices += 1;
        self.pending_max = self.pending_max.max(age);
        self.pending_sum += age;
    }
}

/// Where a virtqueue on a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// It waits for a notification.
    Armed,
    /// It is on a list of those with work, or is being served.
    Listed,
    /// It is polled.
    Polled,
}

pub(super) struct Virtqueue {
    pub(super) waiting: VecDeque<Packet>,
    pub(super) status: Status,
    pub(super) credit: Credit,
    pub(super) polling: Polling,
    pub(super) mode: Mode,
    pub(super) counters: Counters,
    pub(super) bytes: u32,
    /// The time to move a packet.
    pub(super) service: u64,
}

pub(super) struct Device {
    pub(super) load: usize,
    pub(super) vm: u32,
    pub(super) weight: u32,
    /// Whether its VM is there.
    pub(super) present: bool,
    pub(super) place: Place,
    pub(super) queues: [Virtqueue; 2],
    /// Whether its home thread is at work.
    pub(super) home_active: bool,
    pub(super) home_batch: Vec<Moved>,
    pub(super) home_queue: usize,
    pub(super) home_work: u64,
    /// CPU time for notifications and interrupts that the guest has to spend yet.
    pub(super) debt: f64,
    pub(super) random: StdRng,
    pub(super) random_guest: StdRng,
    /// When the next request comes; `u64::MAX` if none does.
    pub(super) next: u64,
    /// Until when a burst lasts, if it does.
    pub(super) on_until: u64,
    /// When an event stands for the next request; `u64::MAX` if none does. A load that rises needs
    /// one that is earlier than the one there is, which then counts no more.
    pub(super) armed: u64,
    /// The factors of the present phase.
    pub(super) rate: f64,
    pub(super) guest: f64,
    /// Closed load: clients that are there.
    pub(super) clients: u32,
}

impl Host<'_> {
    pub(super) fn make_devices(&mut self, setup: &Setup<'_>) {
        let mut vm = 0;
        for (index, load) in self.scenario.load.iter().enumerate() {
            for copy in 0..load.vms {
                vm += 1;
                let delay = u64::from(copy) * load.stagger_ms;
                for _ in 0..load.queues {
                    let number = self.devices.len();
                    let seed = setup
                        .seed
                        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                        .wrapping_add(number as u64 * 2);
                    let place = match setup.cores {
                        0 => Place::Home,
                        cores => Place::Worker(number % cores as usize),
                    };
                    let costs = &self.costs;
                    let queue = |bytes| Virtqueue {
                        waiting: VecDeque::new(),
                        status: Status::Armed,
                        credit: Credit::new(),
                        polling: Polling::new(),
                        mode: Mode::Auto,
                        counters: Counters::default(),
                        bytes,
                        service: costs.service(bytes),
                    };
                    let queues = [queue(load.receive_bytes), queue(load.transmit_bytes)];
                    self.devices.push(Device {
                        load: index,
                        vm,
                        weight: load.weight,
                        present: false,
                        place,
                        queues,
                        home_active: false,
                        home_batch: Vec::new(),
                        home_queue: 0,
                        home_work: 0,
                        debt: 0.0,
                        random: StdRng::seed_from_u64(seed),
                        random_guest: StdRng::seed_from_u64(seed + 1),
                        next: u64::MAX,
                        on_until: 0,
                        armed: u64::MAX,
                        rate: 1.0,
                        guest: 1.0,
                        clients: 0,
                    });
                    let from = (load.from_ms + delay) * MILLISECOND;
                    self.push(from, Event::Presence(number, true));
                    if load.until_ms > 0 {
                        let until = (load.until_ms + delay) * MILLISECOND;
                        self.push(until, Event::Presence(number, false));
                    }
                    for phase in &load.phase {
                        self.push(phase.at_ms * MILLISECOND, Event::Phase(number));
                    }
                }
            }
        }
    }
}
