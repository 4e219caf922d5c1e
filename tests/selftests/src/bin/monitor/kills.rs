// SPDX-License-Identifier: GPL-2.0
//! Monitors that are killed while a core changes hands.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{ensure, Context, Result};
use nix::sched::CpuSet;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::cpu;
use vhost_iocm_selftests::ktap::diagnostic;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::random::Random;
use vhost_iocm_selftests::traffic::{Background, Direction, Traffic};
use vhost_iocm_selftests::wait;

use crate::running::{affinity, io_cores, journal, program, restored, server_of, Monitor};

/// One in so many killed monitors leaves what it was doing to one that is killed over that as well.
const AGAIN: usize = 4;

/// The host that a core is taken from.
struct Host<'a> {
    control: &'a Control,
    /// The CPU.
    cpu: usize,
    /// The device whose owner, this process, leaves it.
    device: &'a str,
    /// Where this process may run when nobody takes it anything.
    before: CpuSet,
}

/// What somebody finds who looks at the host after a monitor was killed.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    /// What the journal says of the core.
    phase: &'static str,
    has_worker: bool,
    serves_device: bool,
    has_guests: bool,
}

impl Host<'_> {
    fn look(&self) -> Result<Found> {
        let journal = journal();
        let phases = ["taking", "taken", "returning"];
        let phase = phases.into_iter().find(|phase| journal.contains(phase));
        let server = server_of(self.control, self.device)?;
        let serves_device = match server {
            Some(worker) => {
                self.control.read_line(&format!("worker/{worker}/cpu"))? == self.cpu.to_string()
            }
            None => false,
        };
        Ok(Found {
            phase: phase.unwrap_or("free"),
            has_worker: io_cores(self.control)? == [self.cpu],
            serves_device,
            has_guests: affinity(std::process::id())? == self.before,
        })
    }

    /// What is found when the core was taken, or given back, as far as the monitor goes with that.
    fn is_settled(&self, taken: bool) -> Result<bool> {
        let phase = if taken { "taken" } else { "free" };
        Ok(self.look()?
            == Found {
                phase,
                has_worker: taken,
                serves_device: taken,
                has_guests: !taken,
            })
    }

    /// Starts a monitor that takes the core, or gives it back.
    fn start(&self, take: bool) -> Result<Monitor> {
        let cores = usize::from(take);
        Monitor::start(&format!(
            "interval_ms = 10\n[limits]\ncores_min = {cores}\ncores_max = {cores}\ncpus = [{}]\n",
            self.cpu
        ))
    }

    /// Starts one that has something to change, and waits until it begins: it says so before it does.
    fn begin(&self, take: bool) -> Result<Monitor> {
        let monitor = self.start(take)?;
        let end = Instant::now() + wait::patience();
        // A pause between two looks may be longer than the whole change.
        while !monitor.log().contains("a change") {
            ensure!(Instant::now() < end, "no change: {}", monitor.log());
            std::thread::yield_now();
        }
        Ok(monitor)
    }

    /// Lets a monitor make what it finds what it is to be.
    fn settle(&self, take: bool) -> Result<()> {
        let what = if take { "taken" } else { "given back" };
        self.start(take)?
            .until(&format!("the core to be {what}"), || self.is_settled(take))
    }

    /// How often the journal can be read until a core is taken, or given back. Clocks are too coarse
    /// for so short a time where the kernel is a process.
    fn length(&self, take: bool) -> Result<usize> {
        let monitor = self.begin(take)?;
        let end = Instant::now() + wait::patience();
        let done = if take { "taken" } else { "\"cores\": {}" };
        let mut looks = 1;
        while !journal().contains(done) {
            ensure!(Instant::now() < end, "no end: {}", monitor.log());
            looks += 1;
        }
        drop(monitor);
        self.settle(take)?;
        Ok(looks)
    }
}

/// Where in the change it was, in words.
fn instant(take: bool, found: &Found) -> &'static str {
    match (take, found.phase) {
        (true, "free") => "taking: before anything was noted",
        (true, "taking") if found.has_worker => "taking: the worker came",
        (true, "taking") if found.has_guests => "taking: guests were leaving",
        (true, "taking") => "taking: guests had left",
        (true, "taken") if !found.serves_device => "taking: the device was to move",
        (true, "taken") => "taking: at the end",
        (true, _) => "taking: an earlier change was being undone",
        (false, "taken") if found.serves_device => "giving back: before anything was done",
        (false, "taken") => "giving back: the device had moved",
        (false, "returning") if found.has_worker => "giving back: the worker was to go",
        (false, "returning") => "giving back: the worker had gone",
        (false, "free") if !found.has_guests => "giving back: guests were coming back",
        (false, "free") => "giving back: at the end",
        (false, _) => "giving back: an earlier change was being undone",
    }
}

pub fn killed(options: &Options, kills: u32, seed: u64) -> Result<()> {
    let control = Control::default();
    control.restore()?;
    let cpu = cpu::count()? - 1;
    ensure!(cpu > 0, "this takes two CPUs");
    let mut random = Random::new(seed);
    let mut nic = Nic::new(&options.node, NicOptions::default())?;
    let device = control.device_of(nic.tap.name())?;
    let host = Host {
        control: &control,
        cpu,
        device: &device,
        before: affinity(std::process::id())?,
    };
    let mut instants: BTreeMap<&str, u32> = BTreeMap::new();
    let frames = std::thread::scope(|scope| -> Result<(u64, u64)> {
        let traffic = Background::start(scope, &mut nic)?;
        let result = (|| {
            let lengths = [host.length(true)?, host.length(false)?];
            for kill in 0..kills {
                let take = match host.look()?.phase {
                    "free" => true,
                    "taken" => false,
                    // It is undone whatever is wanted.
                    _ => random.below(2) == 0,
                };
                let monitor = host.begin(take)?;
                for _ in 0..random.below(lengths[usize::from(!take)] + 1) {
                    journal();
                }
                drop(monitor);
                let found = host.look()?;
                *instants.entry(instant(take, &found)).or_default() += 1;
                let after = || format!("after kill {kill}, {found:?}");
                traffic.advance(1).with_context(after)?;
                if random.below(AGAIN) > 0 {
                    host.settle(take).with_context(after)?;
                }
            }
            Ok(())
        })();
        traffic.conclude(result)
    })?;
    for (instant, count) in &instants {
        diagnostic(format!("{instant}: {count} times"));
    }
    diagnostic(format!("{frames:?} frames"));
    Traffic::new(&mut nic, Direction::Both)?.run(50)?;
    let status = program()?.args(["monitor", "--restore"]).status()?;
    ensure!(status.success(), "restoring ended with {status}");
    ensure!(
        affinity(std::process::id())? == host.before,
        "this process is not where it was"
    );
    let unfinished: u32 = instants
        .iter()
        .filter(|(instant, _)| !instant.ends_with("at the end"))
        .map(|(_, count)| count)
        .sum();
    ensure!(
        unfinished >= kills / 10,
        "only {unfinished} of {kills} monitors were killed in the middle"
    );
    drop(nic);
    restored(&control)
}
