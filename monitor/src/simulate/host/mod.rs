// SPDX-License-Identifier: GPL-2.0

//! The host: what happens when.
//!
//! Nothing happens for a single packet of a busy virtqueue: what has come is looked up when a slice
//! begins, and while it lasts. So a run takes time by slices and packets, not by events and packets.

mod cores;
mod device;
mod home;
mod load;
mod observation;
mod place;
mod worker;

use super::costs::Costs;
use super::measure::{Meter, Outcome, WINDOW};
use super::processor::Pool;
use super::scenario::Scenario;
use crate::policy::{Action, Plan, Policy};
use device::Device;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use worker::Worker;

const MILLISECOND: u64 = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The next request of a device comes.
    Arrival(usize),
    /// A client of a device begins.
    Begin(usize),
    /// A device's home thread runs.
    Home(usize),
    /// A worker takes its next turn.
    Turn(usize),
    /// A worker that only polls looks whether it can stop.
    Patience(usize),
    /// A worker's slice ends.
    SliceEnd(usize),
    /// A phase of a device's load begins.
    Phase(usize),
    /// A VM comes (true) or goes.
    Presence(usize, bool),
    /// The next steps of a plan are done.
    Continue,
    /// Guests get cores back.
    Return,
    /// A policy decides.
    Interval,
    /// A window of the measurement ends.
    Window,
}

/// What runs on the guests' cores.
#[derive(Clone, Copy, Debug)]
enum Job {
    /// A guest works on a request.
    Guest { device: usize, born: u64 },
    /// A home thread moves packets.
    Home { device: usize },
}

/// How a run is set up.
pub struct Setup<'a> {
    /// The scenario.
    pub scenario: &'a Scenario,
    /// The costs.
    pub costs: Costs,
    /// The load is the same for all runs with the same seed.
    pub seed: u64,
    /// Packets after which a worker tells the other side, at the latest: 64 in the module.
    pub signal_batch: usize,
    /// Cores that are kept for I/O from the beginning. Devices are spread over them by turns.
    pub cores: u32,
}

/// A run.
pub struct Host<'a> {
    scenario: &'a Scenario,
    costs: Costs,
    signal_batch: usize,
    now: u64,
    end: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    sequence: u64,
    pool: Pool<Job>,
    devices: Vec<Device>,
    workers: Vec<Worker>,
    meter: Meter,
    /// Cores that guests have.
    guest_cores: u32,
    /// Cores that come back to guests.
    returning: VecDeque<u32>,
    /// Core-nanoseconds that I/O used in this window: those of kept cores until `kept_since`.
    used: f64,
    kept: u32,
    kept_since: u64,
    plan: VecDeque<Action>,
    /// CPUs that the plan takes until its next event.
    taking: Vec<u32>,
    last_interval: u64,
    last_usage: (f64, f64),
    changes: Vec<(f64, u32)>,
    moves: u64,
    /// The decisions, if they are wanted: when, and the plan.
    pub log: Option<Vec<(u64, Plan)>>,
}

impl<'a> Host<'a> {
    /// A host at the beginning of a scenario.
    pub fn new(setup: &Setup<'a>) -> Self {
        let scenario = setup.scenario;
        let mut host = Self {
            scenario,
            costs: setup.costs,
            signal_batch: setup.signal_batch,
            now: 0,
            end: scenario.duration_ms * MILLISECOND,
            events: BinaryHeap::new(),
            sequence: 0,
            pool: Pool::new(scenario.cores),
            devices: Vec::new(),
            workers: Vec::new(),
            meter: Meter::new(scenario.load.len()),
            guest_cores: scenario.cores,
            returning: VecDeque::new(),
            used: 0.0,
            kept: 0,
            kept_since: 0,
            plan: VecDeque::new(),
            taking: Vec::new(),
            last_interval: 0,
            last_usage: (0.0, 0.0),
            changes: Vec::new(),
            moves: 0,
            log: None,
        };
        for cpu in 0..setup.cores {
            host.take_core();
            host.make_worker(cpu);
        }
        host.changes.clear();
        host.make_devices(setup);
        host.set_background();
        host
    }

    fn push(&mut self, time: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((time, self.sequence, event)));
    }

    /// Runs the scenario to its end.
    pub fn run(mut self, mut policy: Option<&mut dyn Policy>) -> (Outcome, Vec<(u64, Plan)>) {
        self.push(WINDOW, Event::Window);
        if policy.is_some() {
            self.push(self.scenario.interval_ms * MILLISECOND, Event::Interval);
        }
        loop {
            let event_at = self.events.peek().map(|Reverse((time, ..))| *time);
            let job_at = self.pool.next_end();
            let is_job = job_at.is_some_and(|job| event_at.is_none_or(|event| job <= event));
            let Some(at) = (if is_job { job_at } else { event_at }) else {
                break;
            };
            if at > self.end {
                break;
            }
            self.now = at;
            if is_job {
                self.pool.advance(at);
                if let Some(job) = self.pool.take() {
                    self.end_job(job);
                }
            } else if let Some(Reverse((_, _, event))) = self.events.pop() {
                self.handle(event, &mut policy);
            }
        }
        let log = self.log.take().unwrap_or_default();
        let (windows, time) = self.meter.finish();
        let outcome = Outcome {
            done: windows.iter().map(|window| window.done).sum(),
            windows,
            time,
            changes: self.changes,
            moves: self.moves,
        };
        (outcome, log)
    }

    fn handle(&mut self, event: Event, policy: &mut Option<&mut dyn Policy>) {
        match event {
            Event::Arrival(device) => {
                if self.devices[device].armed != self.now {
                    return;
                }
                self.devices[device].armed = u64::MAX;
                let entry = self.entry(device);
                self.pull(device, self.now);
                if self.devices[device].queues[entry].waiting.is_empty() {
                    self.arm(device);
                } else {
                    self.notify(device, entry);
                }
            }
            Event::Begin(device) => self.begin_request(device),
            Event::Home(device) => self.run_home(device),
            Event::Turn(worker) => {
                self.workers[worker].active = false;
                self.turn(worker);
            }
            Event::Patience(worker) => {
                self.workers[worker].checking = false;
                if !self.workers[worker].active {
                    self.turn(worker);
                }
            }
            Event::SliceEnd(worker) => self.end_slice(worker),
            Event::Phase(device) => self.begin_phase(device),
            Event::Presence(device, present) => self.set_present(device, present),
            Event::Continue => self.carry_on(),
            Event::Return => {
                let cores = self.returning.pop_front().unwrap_or(0);
                self.account_kept();
                self.kept -= cores;
                self.guest_cores += cores;
                self.pool.set_cores(self.now, self.guest_cores);
            }
            Event::Interval => {
                if let Some(policy) = policy {
                    self.decide(&mut **policy);
                }
                let next = self.now + self.scenario.interval_ms * MILLISECOND;
                self.push(next, Event::Interval);
            }
            Event::Window => {
                self.account_kept();
                let workers = self.live_workers().count() as u32;
                self.meter.end_window(self.used / WINDOW as f64, workers);
                self.used = 0.0;
                self.push(self.now + WINDOW, Event::Window);
            }
        }
    }
}
