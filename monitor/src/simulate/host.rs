// SPDX-License-Identifier: GPL-2.0

//! The host: what happens when.
//!
//! Nothing happens for a single packet of a busy virtqueue: what has come is looked up when a slice
//! begins, and while it lasts. So a run takes time by slices and packets, not by events and packets.

use super::costs::Costs;
use super::measure::{Meter, Outcome, WINDOW};
use super::processor::Pool;
use super::scenario::{Arrival, Load, Phase, Scenario};
use crate::policy::{
    Action, Core, Device as DeviceView, Limits, Observation, Place as PlaceView, Plan, Policy,
    Role, Target, Virtqueue as VirtqueueView, Worker as WorkerView,
};
use rand::rngs::StdRng;
use rand::SeedableRng;
use rand_distr::{Distribution, Exp1, Pareto};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use vhost_iocm_engine::engine::abi::{DeviceId, VirtqueueId, WorkerId};
use vhost_iocm_engine::engine::sched::budget::{Budget, Data};
use vhost_iocm_engine::engine::sched::credit::{quantum, Credit};
use vhost_iocm_engine::engine::sched::polling::{Mode, Polling, Tunables};
use vhost_iocm_engine::engine::sched::standby::State;

const MILLISECOND: u64 = 1_000_000;
/// The module's defaults, in nanoseconds.
const SLICE: u64 = 200_000;
const POLLING: Tunables = Tunables {
    start: 50_000,
    idle: 1_000_000,
};
/// How often the model looks whether a worker that only polls can stop: the shortest patience.
const PATIENCE: u64 = POLLING.idle / 16;
/// Packets that wait in a virtqueue and the backend behind it before they are dropped: a tap's
/// queue of 1000 packets and some of the ring.
const QUEUE_MAX: usize = 1024;
/// Packets of one work of a home thread, as stock vhost has it.
const HOME_BATCH: usize = 256;
/// Virtqueues of a device.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Pareto's shape of the times for which bursts last.
const BURST_SHAPE: f64 = 1.5;

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

#[derive(Clone, Copy, Debug)]
struct Packet {
    /// When its request began.
    born: u64,
    /// Since when it waits.
    since: u64,
}

/// A packet that was moved.
#[derive(Clone, Copy, Debug)]
struct Moved {
    /// When its request began.
    born: u64,
    /// When the other side was told.
    done: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Home,
    Worker(usize),
}

/// Where a virtqueue on a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// It waits for a notification.
    Armed,
    /// It is on a list of those with work, or is being served.
    Listed,
    /// It is polled.
    Polled,
}

/// What an interval counts.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    served: u64,
    packets: u64,
    bytes: u64,
    slices: u64,
    notifications: u64,
    polls_empty: u64,
    pending_max: u64,
    pending_sum: u64,
}

impl Counters {
    fn begin(&mut self, age: u64) {
        self.slices += 1;
        self.pending_max = self.pending_max.max(age);
        self.pending_sum += age;
    }
}

struct Virtqueue {
    waiting: VecDeque<Packet>,
    status: Status,
    credit: Credit,
    polling: Polling,
    mode: Mode,
    counters: Counters,
    bytes: u32,
    /// The time to move a packet.
    service: u64,
}

struct Device {
    load: usize,
    vm: u32,
    weight: u32,
    /// Whether its VM is there.
    present: bool,
    place: Place,
    queues: [Virtqueue; 2],
    /// Whether its home thread is at work.
    home_active: bool,
    home_batch: Vec<Moved>,
    home_queue: usize,
    home_work: u64,
    /// CPU time for notifications and interrupts that the guest has to spend yet.
    debt: f64,
    guest_busy: u64,
    random: StdRng,
    random_guest: StdRng,
    /// When the next request comes; `u64::MAX` if none does.
    next: u64,
    /// Until when a burst lasts, if it does.
    on_until: u64,
    /// When an event stands for the next request; `u64::MAX` if none does. A load that rises needs
    /// one that is earlier than the one there is, which then counts no more.
    armed: u64,
    /// The factors of the present phase.
    rate: f64,
    guest: f64,
    /// Closed load: clients that are there.
    clients: u32,
}

struct Worker {
    cpu: u32,
    fresh: VecDeque<(usize, usize)>,
    ready: VecDeque<(usize, usize)>,
    spent: VecDeque<(usize, usize)>,
    polled: VecDeque<(usize, usize)>,
    round: u64,
    look: bool,
    /// Whether an event will let it go on.
    active: bool,
    /// Whether an event will let it look whether it can stop polling.
    checking: bool,
    /// What its slice moves: the virtqueue, and when the requests began.
    slice: Option<(usize, usize, u64)>,
    batch: Vec<Moved>,
    busy: u64,
    polled_empty: u64,
    /// When it was made.
    made: u64,
    removed: bool,
    pending_max: u64,
    pending_sum: u64,
    slices: u64,
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

    fn make_devices(&mut self, setup: &Setup<'_>) {
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
                        guest_busy: 0,
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

    // The load.

    fn load_of(&self, device: usize) -> &'a Load {
        &self.scenario.load[self.devices[device].load]
    }

    /// The virtqueue to which requests come first.
    fn entry(&self, device: usize) -> usize {
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

    fn set_background(&mut self) {
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

    fn begin_phase(&mut self, number: usize) {
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

    fn set_present(&mut self, number: usize, present: bool) {
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

    /// A device that is opened goes to the worker that has the fewest, if there is any.
    fn place_new(&mut self, number: usize) {
        let is_live = match self.devices[number].place {
            Place::Home => false,
            Place::Worker(worker) => !self.workers[worker].removed,
        };
        if is_live {
            return;
        }
        let fewest = self
            .live_workers()
            .map(|(worker, _)| worker)
            .min_by_key(|worker| {
                self.devices
                    .iter()
                    .filter(|device| device.present && device.place == Place::Worker(*worker))
                    .count()
            });
        self.devices[number].place = fewest.map_or(Place::Home, Place::Worker);
        for virtqueue in &mut self.devices[number].queues {
            virtqueue.status = Status::Armed;
        }
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
    fn pull(&mut self, number: usize, time: u64) {
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
    fn arm(&mut self, number: usize) {
        let device = &mut self.devices[number];
        let time = device.next.max(self.now);
        if time < device.armed && device.next < self.end {
            device.armed = time;
            self.push(time, Event::Arrival(number));
        }
    }

    /// A client begins.
    fn begin_request(&mut self, number: usize) {
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
        device.guest_busy += work as u64;
        let job = Job::Guest {
            device: number,
            born,
        };
        self.pool.add(self.now, (work as u64).max(1), job);
    }

    /// Packets of a virtqueue were moved: what comes next for their requests.
    fn moved(&mut self, number: usize, queue: usize, batch: &[Moved]) {
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

    fn end_job(&mut self, job: Job) {
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

    // Moving packets.

    /// A notification, unless nobody needs one.
    fn notify(&mut self, number: usize, queue: usize) {
        let device = &mut self.devices[number];
        let exit = if queue == TRANSMIT {
            self.costs.exit
        } else {
            0.0
        };
        match device.place {
            Place::Home => {
                if !device.home_active {
                    device.home_active = true;
                    device.queues[queue].counters.notifications += 1;
                    device.debt += exit;
                    self.used += exit;
                    let time = self.now + self.costs.wake_latency as u64;
                    self.push(time, Event::Home(number));
                }
            }
            Place::Worker(worker) => match device.queues[queue].status {
                Status::Armed => {
                    device.queues[queue].status = Status::Listed;
                    device.queues[queue].counters.notifications += 1;
                    device.debt += exit;
                    self.used += exit;
                    self.workers[worker].fresh.push_back((number, queue));
                    self.rouse(worker);
                }
                Status::Polled => self.rouse(worker),
                Status::Listed => (),
            },
        }
    }

    /// Lets a worker that does nothing notice that there is work.
    fn rouse(&mut self, number: usize) {
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
    fn turn(&mut self, number: usize) {
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
        worker.pending_max = worker.pending_max.max(age);
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

    fn end_slice(&mut self, number: usize) {
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

    /// Gives a virtqueue that nobody serves to who serves its device.
    fn hand_over(&mut self, number: usize, queue: usize) {
        if queue == self.entry(number) {
            self.pull(number, self.now);
        }
        if self.devices[number].queues[queue].waiting.is_empty() {
            self.arm(number);
        } else {
            self.notify(number, queue);
        }
    }

    /// A home thread takes what waits.
    fn run_home(&mut self, number: usize) {
        self.pull(number, self.now);
        self.begin_home_work(number, self.costs.wake_work);
    }

    fn begin_home_work(&mut self, number: usize, extra: f64) {
        let device = &mut self.devices[number];
        let first = 1 - device.home_queue;
        let Some(queue) = [first, 1 - first]
            .into_iter()
            .find(|queue| !device.queues[*queue].waiting.is_empty())
        else {
            device.home_active = false;
            self.arm(number);
            return;
        };
        device.home_queue = queue;
        let virtqueue = &mut device.queues[queue];
        let count = virtqueue.waiting.len().min(HOME_BATCH);
        if let Some(front) = virtqueue.waiting.front() {
            virtqueue
                .counters
                .begin(self.now.saturating_sub(front.since));
        }
        device.home_batch.clear();
        device
            .home_batch
            .extend(virtqueue.waiting.drain(..count).map(|packet| Moved {
                born: packet.born,
                done: 0,
            }));
        let work = (self.costs.slice + extra) as u64 + virtqueue.service * count as u64;
        device.home_work = work;
        self.used += work as f64;
        self.pool.add(self.now, work, Job::Home { device: number });
    }

    fn end_home(&mut self, number: usize) {
        let device = &mut self.devices[number];
        let queue = device.home_queue;
        let mut batch = std::mem::take(&mut device.home_batch);
        for moved in &mut batch {
            moved.done = self.now;
        }
        let virtqueue = &mut device.queues[queue];
        virtqueue.counters.served += device.home_work;
        virtqueue.counters.packets += batch.len() as u64;
        virtqueue.counters.bytes += batch.len() as u64 * u64::from(virtqueue.bytes);
        self.moved(number, queue, &batch);
        self.devices[number].home_batch = batch;
        self.pull(number, self.now);
        if self.devices[number].place == Place::Home {
            self.begin_home_work(number, 0.0);
        } else {
            self.devices[number].home_active = false;
            for queue in [RECEIVE, TRANSMIT] {
                self.hand_over(number, queue);
            }
        }
    }

    // Cores and plans.

    fn live_workers(&self) -> impl Iterator<Item = (usize, &Worker)> {
        self.workers
            .iter()
            .enumerate()
            .filter(|(_, worker)| !worker.removed)
    }

    fn account_kept(&mut self) {
        self.used += f64::from(self.kept) * (self.now - self.kept_since) as f64;
        self.kept_since = self.now;
    }

    fn take_core(&mut self) {
        self.account_kept();
        self.kept += 1;
        self.guest_cores = self.guest_cores.saturating_sub(1);
        self.pool.set_cores(self.now, self.guest_cores);
    }

    fn note_change(&mut self) {
        let count = self.live_workers().count() as u32;
        self.changes
            .push((self.now as f64 / MILLISECOND as f64, count));
    }

    fn make_worker(&mut self, cpu: u32) {
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
            pending_max: 0,
            pending_sum: 0,
            slices: 0,
        });
        self.note_change();
    }

    fn decide(&mut self, policy: &mut dyn Policy) {
        if !self.plan.is_empty() || !self.taking.is_empty() {
            return;
        }
        let observation = self.observe();
        let plan = policy.decide(&observation);
        if plan.is_empty() {
            return;
        }
        self.plan = plan.steps.iter().map(|step| step.action.clone()).collect();
        if let Some(log) = &mut self.log {
            log.push((self.now, plan));
        }
        self.carry_on();
    }

    /// Does the next steps of the plan, up to one that takes time.
    fn carry_on(&mut self) {
        let handover = self.costs.handover as u64;
        for cpu in std::mem::take(&mut self.taking) {
            self.make_worker(cpu);
        }
        while let Some(action) = self.plan.pop_front() {
            match action {
                Action::AddCore { cpu } => {
                    self.take_core();
                    self.taking.push(cpu);
                    // Cores that are added one after the other are taken at the same time.
                    if matches!(self.plan.front(), Some(Action::AddCore { .. })) {
                        continue;
                    }
                    self.push(self.now + handover, Event::Continue);
                    return;
                }
                Action::GiveCoreBack { worker } => {
                    self.workers[worker.0 as usize].removed = true;
                    self.note_change();
                    self.returning.push_back(1);
                    self.push(self.now + handover, Event::Return);
                }
                Action::MoveDevice { device, target } => {
                    self.move_device(device.0 as usize, target);
                }
                Action::SetPoll { virtqueue, mode } => {
                    self.devices[virtqueue.device.0 as usize].queues[virtqueue.index as usize]
                        .mode = mode;
                }
                Action::SetWeight { device, weight } => {
                    self.devices[device.0 as usize].weight = weight;
                }
                // Both virtqueues of a device have one place in this model.
                Action::MoveVirtqueue { .. } => (),
            }
        }
    }

    fn move_device(&mut self, number: usize, target: Target) {
        let place = match target {
            Target::Home => Place::Home,
            Target::Worker(worker) => Place::Worker(worker.0 as usize),
            Target::NewOn(cpu) => {
                let Some((worker, _)) = self.live_workers().find(|(_, worker)| worker.cpu == cpu)
                else {
                    return;
                };
                Place::Worker(worker)
            }
        };
        let before = std::mem::replace(&mut self.devices[number].place, place);
        if before == place {
            return;
        }
        self.moves += 1;
        let Place::Worker(worker) = before else {
            // A home thread that is at work hands over when it ends.
            if !self.devices[number].home_active {
                for queue in [RECEIVE, TRANSMIT] {
                    self.hand_over(number, queue);
                }
            }
            return;
        };
        let worker = &mut self.workers[worker];
        for list in [
            &mut worker.fresh,
            &mut worker.ready,
            &mut worker.spent,
            &mut worker.polled,
        ] {
            list.retain(|(device, _)| *device != number);
        }
        let served = worker.slice.map(|(device, queue, _)| (device, queue));
        for queue in [RECEIVE, TRANSMIT] {
            if served != Some((number, queue)) {
                let virtqueue = &mut self.devices[number].queues[queue];
                virtqueue.polling.park(self.now);
                virtqueue.status = Status::Armed;
                self.hand_over(number, queue);
            }
        }
    }

    fn observe(&mut self) -> Observation {
        let interval = self.now - self.last_interval;
        self.last_interval = self.now;
        self.pool.advance(self.now);
        let usage = self.pool.usage();
        let share = f64::from(self.guest_cores.max(1));
        let busy = ((usage.0 - self.last_usage.0) / share) as u64;
        let waited = ((usage.1 - self.last_usage.1) / share) as u64;
        self.last_usage = usage;
        let cores = (0..self.scenario.cores)
            .map(|cpu| {
                let worker = self.live_workers().find(|(_, worker)| worker.cpu == cpu);
                Core {
                    cpu,
                    node: 0,
                    siblings: Vec::new(),
                    role: worker
                        .map_or(Role::Guests, |(index, _)| Role::Io(WorkerId(index as u32))),
                    busy: worker.map_or(busy.min(interval), |(_, worker)| worker.busy),
                    waited: if worker.is_some() { 0 } else { waited },
                }
            })
            .collect();
        let now = self.now;
        let workers = self
            .workers
            .iter_mut()
            .enumerate()
            .filter(|(_, worker)| !worker.removed)
            .map(|(index, worker)| {
                let view = WorkerView {
                    id: WorkerId(index as u32),
                    cpu: Some(worker.cpu),
                    node: Some(0),
                    state: State::Active,
                    locked: false,
                    busy: worker.busy,
                    polled_empty: worker.polled_empty,
                    total: interval.min(now - worker.made),
                    pending_max: worker.pending_max,
                    pending_average: worker.pending_sum / worker.slices.max(1),
                };
                worker.busy = 0;
                worker.polled_empty = 0;
                worker.pending_max = 0;
                worker.pending_sum = 0;
                worker.slices = 0;
                view
            })
            .collect();
        let devices = self
            .devices
            .iter_mut()
            .enumerate()
            .filter(|(_, device)| device.present)
            .map(|(index, device)| view_device(index, device))
            .collect();
        Observation {
            time: self.now,
            interval,
            cores,
            workers,
            devices,
            limits: Limits {
                cores_max: self.scenario.cores_max,
                ..Limits::default()
            },
        }
    }
}

fn view_device(index: usize, device: &mut Device) -> DeviceView {
    let id = DeviceId(index as u32);
    let place = match device.place {
        Place::Home => PlaceView::Home,
        Place::Worker(worker) => PlaceView::Worker(WorkerId(worker as u32)),
    };
    let virtqueues = device
        .queues
        .iter_mut()
        .zip(0..)
        .map(|(virtqueue, index)| {
            let counters = std::mem::take(&mut virtqueue.counters);
            VirtqueueView {
                id: VirtqueueId { device: id, index },
                place,
                poll: virtqueue.mode,
                served: counters.served,
                packets: counters.packets,
                bytes: counters.bytes,
                slices: counters.slices,
                notifications: counters.notifications,
                polls_empty: counters.polls_empty,
                pending_max: counters.pending_max,
                pending_average: counters.pending_sum / counters.slices.max(1),
            }
        })
        .collect();
    DeviceView {
        id,
        vm: device.vm,
        node: Some(0),
        weight: device.weight,
        guest_busy: std::mem::take(&mut device.guest_busy),
        virtqueues,
    }
}
