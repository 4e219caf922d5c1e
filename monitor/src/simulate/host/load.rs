// SPDX-License-Identifier: GPL-2.0

//! The load: when requests come, what guests do with them, and when they are done.

use super::device::{Moved, Packet, RECEIVE, TRANSMIT};
use super::{Event, Host, Job, MILLISECOND};
use crate::simulate::scenario::{Arrival, Load, Phase};
use rand_distr::{Distribution, Exp1, Pareto};

/// Packets that wait in a virtqueue and the backend behind it before they are dropped: a tap's
/// queue of 1000 packets and some of the ring.
const QUEUE_MAX: usize = 1024;
/// Pareto's shape of the times for which bursts last.
const BURST_SHAPE: f64 = 1.5;

impl<'a> Host<'a> {
    fn load_of(&self, device: usize) -> &'a Load {
        &self.scenario.load[self.devices[device].load]
    }

    /// The virtqueue to which requests come first.
    pub(super) fn entry(&self, device: usize) -> usize {
        if self.load_of(device).receive_bytes > 0 {
            RECEIVE
        } else {
            TRANSMIT
        }
    }

    fn phase_of(&self, device: usize) -> Option<&'a Phase> {
        let now = self.now;
        self.load_of(device)
            .phase
            .iter()
            .rfind(|phase| phase.at_ms * MILLISECOND <= now)
    }

    pub(super) fn set_background(&mut self) {
        let mut threads = 0.0;
        let mut vm = 0;
        for number in 0..self.devices.len() {
            let device = &self.devices[number];
            if device.present && device.vm != vm {
                vm = device.vm;
                threads += self
                    .phase_of(number)
                    .and_then(|phase| phase.compute)
                    .unwrap_or(self.load_of(number).compute);
            }
        }
        self.pool.set_background(self.now, threads);
    }

    pub(super) fn begin_phase(&mut self, number: usize) {
        let Some(phase) = self.phase_of(number) else {
            return;
        };
        let entry = self.entry(number);
        self.pull(number, self.now);
        self.devices[number].rate = phase.rate;
        self.devices[number].guest = phase.guest;
        if self.devices[number].present {
            self.begin_load(number);
        }
        if !self.devices[number].queues[entry].waiting.is_empty() {
            self.notify(number, entry);
        }
        self.set_background();
    }

    pub(super) fn set_present(&mut self, number: usize, present: bool) {
        if !present {
            self.pull(number, self.now);
            self.devices[number].next = u64::MAX;
        }
        self.devices[number].present = present;
        if present {
            self.place_new(number);
            self.devices[number].on_until = self.now;
            self.begin_load(number);
        }
        self.set_background();
    }

    /// Lets requests come as the present phase has it.
    fn begin_load(&mut self, number: usize) {
        match self.load_of(number).arrival {
            Arrival::Open { .. } | Arrival::Bursts { .. } => {
                let now = self.now;
                self.devices[number].next = now;
                self.devices[number].on_until = self.devices[number].on_until.min(now);
                self.draw_next(number);
                self.arm(number);
            }
            Arrival::Closed { clients, .. } => {
                let wanted = (f64::from(clients) * self.devices[number].rate).round() as u32;
                while self.devices[number].clients < wanted {
                    self.devices[number].clients += 1;
                    let time = self.now + self.think(number);
                    self.push(time, Event::Begin(number));
                }
            }
        }
    }

    fn think(&mut self, number: usize) -> u64 {
        let Arrival::Closed { think_us, .. } = self.load_of(number).arrival else {
            return 0;
        };
        if think_us == 0.0 {
            return 0;
        }
        let draw: f64 = Exp1.sample(&mut self.devices[number].random);
        (draw * think_us * 1000.0) as u64
    }

    /// Draws when the request after `next` comes.
    fn draw_next(&mut self, number: usize) {
        let arrival = &self.load_of(number).arrival;
        let device = &mut self.devices[number];
        let factor = device.rate;
        let (Arrival::Open { rate } | Arrival::Bursts { rate, .. }) = *arrival else {
            return;
        };
        let rate = rate * factor;
        if rate <= 0.0 {
            device.next = u64::MAX;
            return;
        }
        let gap: f64 = Exp1.sample(&mut device.random);
        device.next = device.next.saturating_add((gap * 1e9 / rate) as u64);
        if let Arrival::Bursts { on_ms, off_ms, .. } = *arrival {
            while device.next > device.on_until {
                let pause: f64 = Exp1.sample(&mut device.random);
                let shortest = on_ms * (BURST_SHAPE - 1.0) / BURST_SHAPE;
                let length = Pareto::new(shortest, BURST_SHAPE)
                    .map_or(shortest, |pareto| pareto.sample(&mut device.random));
                let gap: f64 = Exp1.sample(&mut device.random);
                let begin = device.on_until + (pause * off_ms * MILLISECOND as f64) as u64;
                device.on_until = begin + (length.min(on_ms * 100.0) * MILLISECOND as f64) as u64;
                device.next = begin + (gap * 1e9 / rate) as u64;
            }
        }
    }

    /// Takes the requests that have come until `time`.
    pub(super) fn pull(&mut self, number: usize, time: u64) {
        if self.devices[number].next > time {
            return;
        }
        let entry = self.entry(number);
        while self.devices[number].next <= time {
            let device = &mut self.devices[number];
            let born = device.next;
            let waiting = &mut device.queues[entry].waiting;
            if waiting.len() < QUEUE_MAX {
                waiting.push_back(Packet { born, since: born });
            } else {
                self.meter.note_dropped(device.load);
            }
            self.draw_next(number);
        }
    }

    /// Lets an event stand for the next request of an open load, since nobody looks.
    pub(super) fn arm(&mut self, number: usize) {
        let device = &mut self.devices[number];
        let time = device.next.max(self.now);
        if time < device.armed && device.next < self.end {
            device.armed = time;
            self.push(time, Event::Arrival(number));
        }
    }

    /// A client begins.
    pub(super) fn begin_request(&mut self, number: usize) {
        let Arrival::Closed { clients, .. } = self.load_of(number).arrival else {
            return;
        };
        let device = &mut self.devices[number];
        let wanted = (f64::from(clients) * device.rate).round() as u32;
        if !device.present || device.clients > wanted {
            device.clients -= 1;
            return;
        }
        if self.load_of(number).receive_bytes > 0 {
            self.enqueue(number, RECEIVE, self.now);
        } else {
            self.work_in_guest(number, self.now);
        }
    }

    fn enqueue(&mut self, number: usize, queue: usize, born: u64) {
        let since = self.now;
        self.devices[number].queues[queue]
            .waiting
            .push_back(Packet { born, since });
        self.notify(number, queue);
    }

    fn work_in_guest(&mut self, number: usize, born: u64) {
        let mean = self.load_of(number).guest_us * 1000.0;
        let device = &mut self.devices[number];
        let draw: f64 = if mean > 0.0 {
            Exp1.sample(&mut device.random_guest)
        } else {
            0.0
        };
        let work = draw * mean * device.guest + std::mem::take(&mut device.debt);
        let job = Job::Guest {
            device: number,
            born,
        };
        self.pool.add(self.now, (work as u64).max(1), job);
    }

    /// Packets of a virtqueue were moved: what comes next for their requests.
    pub(super) fn moved(&mut self, number: usize, queue: usize, batch: &[Moved]) {
        if batch.is_empty() {
            return;
        }
        let load = self.load_of(number);
        self.devices[number].debt += self.costs.interrupt;
        let is_last = queue == TRANSMIT || (load.guest_us == 0.0 && load.transmit_bytes == 0);
        for moved in batch {
            if is_last {
                self.complete(number, moved.born, moved.done);
            } else {
                self.work_in_guest(number, moved.born);
            }
        }
    }

    fn complete(&mut self, number: usize, born: u64, done: u64) {
        let load = self.load_of(number);
        let time = (done - born) as f64 / (load.target_us * 1000.0);
        self.meter.note(self.devices[number].load, time as f32);
        if matches!(load.arrival, Arrival::Closed { .. }) {
            let time = self.now + self.think(number);
            self.push(time, Event::Begin(number));
        }
    }

    pub(super) fn end_job(&mut self, job: Job) {
        match job {
            Job::Guest { device, born } => {
                if self.load_of(device).transmit_bytes > 0 {
                    self.enqueue(device, TRANSMIT, born);
                } else {
                    self.complete(device, born, self.now);
                }
            }
            Job::Home { device } => self.end_home(device),
        }
    }
}
