// SPDX-License-Identifier: GPL-2.0
//! What packets take that come when they come, whether or not the last ones were served (tiers T2 and T3).
//!
//! Arrivals are a Poisson process, divided among devices at random, and the tap sends each packet back. A packet's
//! latency counts from the moment at which it was to be sent, so one that has to wait for the driver or for room in
//! the ring has waited. Every packet has a number and a checksum, and all have to come back. The driver has a
//! processor, and whoever serves it the other one. It takes packets as soon as it sees them, and has itself told of the
//! next one whenever it has seen all, as a guest would that is interrupted and then looks until there is nothing.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use nix::sys::resource::{setrlimit, Resource};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Exp};
use vhost_iocm_selftests::cpu::{self, Left};
use vhost_iocm_selftests::frame;
use vhost_iocm_selftests::header::NetHeader;
use vhost_iocm_selftests::nic::NicOptions;
use vhost_iocm_selftests::parameter::Parameter;
use vhost_iocm_selftests::statistics::{median, quantile};
use vhost_iocm_selftests::thread::Thread;
use vhost_iocm_selftests::wait;
use vhost_iocm_selftests::xdp::{self, Program};

use crate::pairs::{self, Wanted};
use crate::rates::IDLE;
use crate::record::{Kind, Record, Tier};
use crate::subject::{Module, Subject, Subjects};

/// Bytes of a frame.
const LENGTH: usize = 64;
/// Loads of one device, in percent of what vhost_net and the driver come to together.
const LOADS: [u32; 4] = [10, 50, 80, 95];
/// Devices that share `LOAD` percent of that.
const DEVICES: [usize; 4] = [2, 8, 32, 128];
const LOAD: u32 = 50;
/// Devices that have nothing to do.
const STILL: usize = 64;
/// Files that may be open.
const FILES: u64 = 4096;
/// How long a measurement takes.
const TIME: Duration = Duration::from_millis(700);
/// Rounds of four measurements.
const ROUNDS: usize = 4;
/// Packets of a device that are on their way at most, so that the tap, which queues 500, drops none.
const MOST: usize = 256;
/// Packets on their way when it is found what the driver and vhost_net come to.
const WINDOW: usize = 64;

/// What is told of a measurement, by the last part of the metric's name.
const PARTS: [(&str, Kind); 7] = [
    ("latency_p50", Kind::Indicative),
    ("latency_p90", Kind::Indicative),
    ("latency_p99", Kind::Indicative),
    ("kicks_per_packet", Kind::Count),
    ("interrupts_per_packet", Kind::Count),
    ("wakeups_per_packet", Kind::Count),
    ("switches_per_packet", Kind::Count),
];

/// Measures the metrics that are wanted, and tells each as soon as it is known.
pub fn run(
    subjects: &Subjects,
    wanted: &Wanted,
    mut tell: impl FnMut(&[Record]) -> Result<()>,
) -> Result<()> {
    let mut cases: Vec<(Tier, String, usize, u32)> = Vec::new();
    for load in LOADS {
        cases.push((Tier::T2, format!("t2_open_{load}"), 1, load));
    }
    for devices in DEVICES {
        let name = format!("t3_open_{devices}_devices");
        cases.push((Tier::T3, name, devices, LOAD));
    }
    cases.retain(|(_, name, ..)| {
        let is_wanted = |(part, _): &(&str, _)| wanted.has(&format!("{name}_{part}"));
        PARTS.iter().any(is_wanted)
    });
    // A device with its driver has nine or so.
    setrlimit(Resource::RLIMIT_NOFILE, FILES, FILES).context("RLIMIT_NOFILE")?;
    if !cases.is_empty() {
        let capacity = capacity(subjects)?;
        for (tier, name, devices, load) in cases {
            let rate = capacity * f64::from(load) / 100.0;
            tell(&measure(subjects, wanted, tier, &name, devices, rate)?)?;
        }
    }
    let metric = "t3_idle_64_wakeups_per_second";
    if wanted.has(metric) {
        tell(
            &pairs::measure(Tier::T3, metric, ROUNDS, |module| {
                wakeups_without_work(subjects, module)
            })?[..2],
        )?;
    }
    Ok(())
}

/// The metrics of so many devices that have so many packets in a second together.
fn measure(
    subjects: &Subjects,
    wanted: &Wanted,
    tier: Tier,
    name: &str,
    devices: usize,
    rate: f64,
) -> Result<Vec<Record>> {
    let mut values: [[Vec<f64>; 2]; PARTS.len()] = Default::default();
    for _ in 0..ROUNDS {
        for module in [Module::Stock, Module::Ours, Module::Ours, Module::Stock] {
            let measured = Crowd::new(subjects, module, devices)?.serve(rate)?;
            for (values, value) in values.iter_mut().zip(measured) {
                values[usize::from(module == Module::Ours)].push(value);
            }
        }
    }
    let mut records = Vec::new();
    for ((part, kind), [stock, ours]) in PARTS.iter().zip(&values) {
        let metric = format!("{name}_{part}");
        if !wanted.has(&metric) {
            continue;
        }
        let mut compared = Vec::from(pairs::compare(
            tier,
            &metric,
            ("stock", stock),
            ("ours", ours),
        ));
        for record in &mut compared[..2] {
            record.kind = *kind;
        }
        // Nothing can be divided by what did not happen.
        if stock[1..].contains(&0.0) {
            compared.truncate(2);
        }
        records.append(&mut compared);
    }
    Ok(records)
}

/// What vhost_net and the driver come to together, in packets of a second.
fn capacity(subjects: &Subjects) -> Result<f64> {
    let rates = (0..3)
        .map(|_| Crowd::new(subjects, Module::Stock, 1)?.serve_all())
        .collect::<Result<Vec<_>>>()?;
    Ok(median(&rates))
}

/// How often the threads are woken in a second that serve devices which had a packet once.
fn wakeups_without_work(subjects: &Subjects, module: Module) -> Result<f64> {
    let mut crowd = Crowd::new(subjects, module, STILL)?;
    for device in 0..STILL {
        crowd.send(device, Instant::now())?;
    }
    crowd.take_all()?;
    // Polling ends.
    std::thread::sleep(2 * IDLE);
    let before = crowd.sleeps()?;
    let start = Instant::now();
    std::thread::sleep(2 * TIME);
    Ok((crowd.sleeps()? - before) as f64 / start.elapsed().as_secs_f64())
}

/// A device whose tap sends everything back.
struct Echo {
    subject: Subject,
    /// When each packet was to be sent that has not come back.
    due: VecDeque<Instant>,
    account: frame::Account,
    sent: u64,
    _program: OwnedFd,
}

/// Devices of one module, and the threads that serve them.
struct Crowd {
    echoes: Vec<Echo>,
    threads: Vec<Thread>,
    latencies: Vec<f64>,
    _left: Left,
    _idle: Parameter,
}

impl Crowd {
    fn new(subjects: &Subjects, module: Module, devices: usize) -> Result<Self> {
        let last = cpu::count()? - 1;
        ensure!(last > 0, "driver and serving threads need a CPU each");
        let idle = Parameter::set_time("poll_idle_us", IDLE)?;
        let left = cpu::leave(last)?;
        let mut threads: Vec<Thread> = Vec::new();
        let mut echoes = Vec::new();
        for _ in 0..devices {
            let options = NicOptions {
                ring_size: 128,
                ..NicOptions::default()
            };
            let subject = subjects.open(module, options, "1")?;
            if !threads.contains(&subject.thread) {
                cpu::place(Pid::from_raw(subject.thread.id), &[last])?;
                threads.push(subject.thread);
            }
            subject.nic.touch_buffers()?;
            let program = xdp::attach(subject.nic.tap.name(), Program::SendBack)?;
            echoes.push(Echo {
                subject,
                due: VecDeque::new(),
                account: frame::Account::default(),
                sent: 0,
                _program: program,
            });
        }
        let mut crowd = Self {
            echoes,
            threads,
            latencies: Vec::new(),
            _left: left,
            _idle: idle,
        };
        // What is made at first use is not measured.
        for device in 0..devices {
            crowd.send(device, Instant::now())?;
        }
        crowd.take_all()?;
        Ok(crowd)
    }

    /// Serves packets that come so many in a second, and says what `PARTS` names.
    fn serve(mut self, rate: f64) -> Result<[f64; PARTS.len()]> {
        let devices = self.echoes.len();
        // The same arrivals for both modules.
        let mut random = StdRng::seed_from_u64(1);
        let pauses = Exp::new(rate).context("a rate")?;
        let mut next = |after: Instant| {
            let pause = Duration::from_secs_f64(pauses.sample(&mut random));
            (after + pause, random.random_range(0..devices))
        };
        self.latencies.clear();
        self.calls()?;
        let (kicks, sleeps, switches) = (self.kicks(), self.sleeps()?, self.switches()?);
        let start = Instant::now();
        let (mut due, mut device) = next(start);
        while due < start + TIME {
            let now = Instant::now();
            ensure!(now < start + TIME + wait::patience(), "nothing goes on");
            while due <= now && due < start + TIME && self.send(device, due)? {
                (due, device) = next(due);
            }
            self.take()?;
        }
        self.take_all()?;
        let packets = self.latencies.len() as f64;
        ensure!(packets > 0.0, "nothing was sent");
        let counts = [
            self.kicks() - kicks,
            self.calls()?,
            self.sleeps()? - sleeps,
            self.switches()? - switches,
        ]
        .map(|count| count as f64 / packets);
        let [kicks, calls, sleeps, switches] = counts;
        let latency = |share| quantile(&self.latencies, share);
        Ok([
            latency(0.5),
            latency(0.9),
            latency(0.99),
            kicks,
            calls,
            sleeps,
            switches,
        ])
    }

    /// Has as many packets on their way as `WINDOW` all the time, and says how many come back in a second.
    fn serve_all(mut self) -> Result<f64> {
        self.latencies.clear();
        let start = Instant::now();
        while start.elapsed() < TIME {
            while self.echoes[0].due.len() < WINDOW && self.send(0, Instant::now())? {}
            self.take()?;
        }
        Ok(self.latencies.len() as f64 / start.elapsed().as_secs_f64())
    }

    /// Sends a packet that was due then, unless it has to wait.
    fn send(&mut self, device: usize, due: Instant) -> Result<bool> {
        let echo = &mut self.echoes[device];
        if echo.due.len() >= MOST {
            return Ok(false);
        }
        let frame = frame::encode(1, echo.sent, LENGTH);
        let nic = &mut echo.subject.nic;
        nic.reclaim()?;
        if !nic.add_transmit(&NetHeader::default(), &frame)? {
            return Ok(false);
        }
        nic.transmit.ring.disable_call()?;
        nic.transmit.publish()?;
        echo.sent += 1;
        echo.due.push_back(due);
        Ok(true)
    }

    /// Takes what has come back.
    fn take(&mut self) -> Result<()> {
        for echo in self.echoes.iter_mut().filter(|echo| !echo.due.is_empty()) {
            let nic = &mut echo.subject.nic;
            let mut taken = 0;
            loop {
                while let Some(received) = nic.take_received()? {
                    let sequence = frame::decode(&received.packet)?.sequence;
                    echo.account.note(sequence);
                    let due = echo.due.pop_front().context("a packet came twice")?;
                    self.latencies.push(due.elapsed().as_nanos() as f64);
                    taken += 1;
                }
                if taken == 0 || !nic.receive.ring.enable_call()? {
                    break;
                }
            }
            if taken > 0 {
                nic.replenish()?;
                echo.account.expect_order()?;
            }
        }
        std::hint::spin_loop();
        Ok(())
    }

    /// Takes all that is on its way.
    fn take_all(&mut self) -> Result<()> {
        let end = Instant::now() + wait::patience();
        while self.echoes.iter().any(|echo| !echo.due.is_empty()) {
            ensure!(Instant::now() < end, "a packet has not come back");
            self.take()?;
        }
        for echo in &self.echoes {
            echo.account.expect_all(echo.sent)?;
        }
        Ok(())
    }

    fn kicks(&self) -> u64 {
        let nics = self.echoes.iter().map(|echo| &echo.subject.nic);
        nics.map(|nic| nic.transmit.kicks + nic.receive.kicks).sum()
    }

    /// Interrupts since the last look.
    fn calls(&self) -> Result<u64> {
        let nics = self.echoes.iter().map(|echo| &echo.subject.nic);
        nics.map(|nic| Ok(nic.transmit.calls()? + nic.receive.calls()?))
            .sum()
    }

    fn sleeps(&self) -> Result<u64> {
        self.threads.iter().map(|thread| thread.sleeps()).sum()
    }

    fn switches(&self) -> Result<u64> {
        self.threads.iter().map(|thread| thread.switches()).sum()
    }
}
