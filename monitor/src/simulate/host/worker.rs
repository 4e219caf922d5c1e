// SPDX-License-Identifier: GPL-2.0

//! Workers: what they serve next, which the engine's own scheduler says, and how long that takes.

use super::device::{Moved, Status};
use super::place::Place;
use super::{Event, Host};
use std::collections::VecDeque;
use vhost_iocm_engine::engine::sched::budget::{Budget, Data};
use vhost_iocm_engine::engine::sched::credit::quantum;
use vhost_iocm_engine::engine::sched::polling::Tunables;

/// The module's defaults, in nanoseconds.
const SLICE: u64 = 200_000;
const POLLING: Tunables = Tunables {
    start: 50_000,
    idle: 1_000_000,
};
/// How often the model looks whether a worker that only polls can stop: the shortest patience.
const PATIENCE: u64 = POLLING.idle / 16;

pub(super) struct Worker {
    pub(super) cpu: u32,
    pub(super) fresh: VecDeque<(usize, usize)>,
    pub(super) ready: VecDeque<(usize, usize)>,
    pub(super) spent: VecDeque<(usize, usize)>,
    pub(super) polled: VecDeque<(usize, usize)>,
    pub(super) round: u64,
    pub(super) look: bool,
    /// Whether an event will let it go on.
    pub(super) active: bool,
    /// Whether an event will let it look whether it can stop polling.
    pub(super) checking: bool,
    /// What its slice serves: the device and the virtqueue, and for how long.
    pub(super) slice: Option<(usize, usize, u64)>,
    pub(super) batch: Vec<Moved>,
    pub(super) busy: u64,
    pub(super) polled_empty: u64,
    /// When it was made.
    pub(super) made: u64,
    pub(super) removed: bool,
    pub(super) pending_sum: u64,
    pub(super) slices: u64,
}

impl Host<'_> {
    pub(super) fn make_worker(&mut self, cpu: u32) {
        self.workers.push(Worker {
            cpu,
            fresh: VecDeque::new(),
            ready: VecDeque::new(),
            spent: VecDeque::new(),
            polled: VecDeque::new(),
            round: 1,
            look: false,
            active: false,
            checking: false,
            slice: None,
            batch: Vec::new(),
            busy: 0,
            polled_empty: 0,
            made: self.now,
            removed: false,
            pending_sum: 0,
            slices: 0,
        });
        self.note_change();
    }

    pub(super) fn live_workers(&self) -> impl Iterator<Item = (usize, &Worker)> {
        self.workers
            .iter()
            .enumerate()
            .filter(|(_, worker)| !worker.removed)
    }

    /// Lets a worker that does nothing notice that there is work.
    pub(super) fn rouse(&mut self, number: usize) {
        let worker = &mut self.workers[number];
        if worker.active {
            return;
        }
        worker.active = true;
        let delay = if worker.polled.is_empty() {
            self.costs.wake_latency
        } else {
            // Half a round of looks.
            self.costs.look * (worker.polled.len() as f64 / 2.0 + 0.5)
        };
        self.push(self.now + delay as u64, Event::Turn(number));
    }

    /// Lets a worker take turns until it begins a slice or has nothing to do.
    pub(super) fn turn(&mut self, number: usize) {
        if self.workers[number].removed {
            return;
        }
        let mut time = self.now;
        let mut idle = 0;
        loop {
            let worker = &mut self.workers[number];
            worker.look = !worker.look;
            if worker.look {
                if let Some((device, queue)) = self.next_work(number) {
                    self.begin_slice(number, device, queue, time);
                    return;
                }
                if self.workers[number].polled.is_empty() {
                    return;
                }
            } else if let Some((device, queue)) = worker.polled.pop_front() {
                let look = self.costs.look as u64;
                worker.polled_empty += look;
                time += look;
                if queue == self.entry(device) {
                    self.pull(device, time);
                }
                let virtqueue = &mut self.devices[device].queues[queue];
                if !virtqueue.waiting.is_empty() {
                    virtqueue.status = Status::Listed;
                    self.begin_slice(number, device, queue, time);
                    return;
                }
                virtqueue.counters.polls_empty += 1;
                if virtqueue.polling.keep(virtqueue.mode, time, &POLLING) {
                    let worker = &mut self.workers[number];
                    worker.polled.push_back((device, queue));
                    idle += 1;
                    let has_work = !(worker.fresh.is_empty()
                        && worker.ready.is_empty()
                        && worker.spent.is_empty());
                    if idle >= worker.polled.len() && !has_work {
                        // It goes on polling, which needs no events until something happens.
                        if !std::mem::replace(&mut worker.checking, true) {
                            self.push(time + PATIENCE, Event::Patience(number));
                        }
                        return;
                    }
                } else {
                    virtqueue.polling.park(time);
                    virtqueue.status = Status::Armed;
                    idle = 0;
                    self.arm(device);
                }
            }
        }
    }

    /// The virtqueue that is served next, as the module chooses it.
    fn next_work(&mut self, number: usize) -> Option<(usize, usize)> {
        loop {
            let worker = &mut self.workers[number];
            let next = worker.fresh.pop_front().or_else(|| {
                worker.ready.pop_front().or_else(|| {
                    worker.round += 1;
                    std::mem::swap(&mut worker.ready, &mut worker.spent);
                    worker.ready.pop_front()
                })
            })?;
            let (device, queue) = next;
            let device = &mut self.devices[device];
            let other = &device.queues[1 - queue];
            let competitors = 1 + u32::from(other.status == Status::Listed);
            let quantum = quantum(SLICE, device.weight, competitors);
            if device.queues[queue].credit.may_run(worker.round, quantum) {
                return Some(next);
            }
            worker.spent.push_back(next);
        }
    }

    fn begin_slice(&mut self, number: usize, device: usize, queue: usize, begin: u64) {
        let is_entry = queue == self.entry(device);
        if is_entry {
            self.pull(device, begin);
        }
        let mut time = begin + self.costs.slice as u64;
        let mut budget = Budget::new(begin + SLICE, Data::default());
        let virtqueue = &mut self.devices[device].queues[queue];
        let oldest = virtqueue.waiting.front().map_or(begin, |front| front.since);
        let age = begin.saturating_sub(oldest);
        virtqueue.counters.begin(age);
        virtqueue.polling.work(begin, &POLLING);
        let worker = &mut self.workers[number];
        worker.slices += 1;
        worker.pending_sum += age;
        let mut batch = std::mem::take(&mut worker.batch);
        batch.clear();
        let mut told = 0;
        loop {
            if is_entry {
                self.pull(device, time);
            }
            let virtqueue = &mut self.devices[device].queues[queue];
            let Some(packet) = virtqueue.waiting.pop_front() else {
                break;
            };
            time += virtqueue.service;
            batch.push(Moved {
                born: packet.born,
                done: time,
            });
            if batch.len() - told == self.signal_batch {
                for moved in &mut batch[told..] {
                    moved.done = time;
                }
                told = batch.len();
            }
            let bytes = virtqueue.bytes as usize;
            if !budget.charge(bytes, 1, || time, |_| false) {
                break;
            }
        }
        for moved in &mut batch[told..] {
            moved.done = time;
        }
        let worker = &mut self.workers[number];
        worker.batch = batch;
        worker.slice = Some((device, queue, time - begin));
        worker.active = true;
        self.push(time, Event::SliceEnd(number));
    }

    pub(super) fn end_slice(&mut self, number: usize) {
        let worker = &mut self.workers[number];
        worker.active = false;
        let Some((device, queue, took)) = worker.slice.take() else {
            return;
        };
        worker.busy += took;
        let batch = std::mem::take(&mut worker.batch);
        let virtqueue = &mut self.devices[device].queues[queue];
        virtqueue.counters.served += took;
        virtqueue.counters.packets += batch.len() as u64;
        virtqueue.counters.bytes += batch.len() as u64 * u64::from(virtqueue.bytes);
        let left = virtqueue.credit.charge(took);
        self.moved(device, queue, &batch);
        self.workers[number].batch = batch;
        if queue == self.entry(device) {
            self.pull(device, self.now);
        }
        let device_ref = &mut self.devices[device];
        let virtqueue = &mut device_ref.queues[queue];
        if device_ref.place != Place::Worker(number) {
            virtqueue.status = Status::Armed;
            virtqueue.polling.park(self.now);
            self.hand_over(device, queue);
        } else if !virtqueue.waiting.is_empty() {
            let worker = &mut self.workers[number];
            if left {
                worker.ready.push_back((device, queue));
            } else {
                worker.spent.push_back((device, queue));
            }
        } else if virtqueue.polling.start(virtqueue.mode, &POLLING) {
            virtqueue.status = Status::Polled;
            self.workers[number].polled.push_back((device, queue));
            self.arm(device);
        } else {
            virtqueue.status = Status::Armed;
            self.arm(device);
        }
        self.turn(number);
    }
}
