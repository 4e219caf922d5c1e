// SPDX-License-Identifier: GPL-2.0
//! Who is moved off a core, or onto it, and back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{bail, ensure, Context, Result};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::cpu;
use vhost_iocm_selftests::ktap::{diagnostic, skip, Outcome};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::process::Owner;
use vhost_iocm_selftests::thread::Thread;
use vhost_iocm_selftests::wait;

use crate::running::{io_cores, journal, program, restored, Monitor};

/// A cgroup, removed when it goes out of scope.
struct Cgroup(PathBuf);

impl Cgroup {
    /// A new one below the root with this for its CPUs; empty: those of its parent.
    fn new(name: &str, cpus: &str) -> Result<Self> {
        let path = Path::new("/sys/fs/cgroup").join(name);
        fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        let cgroup = Self(path);
        if !cpus.is_empty() {
            fs::write(cgroup.0.join("cpuset.cpus"), cpus).context("cpuset.cpus")?;
        }
        Ok(cgroup)
    }

    fn add(&self, pid: u32) -> Result<()> {
        let file = self.0.join("cgroup.procs");
        fs::write(&file, pid.to_string()).with_context(|| format!("write {}", file.display()))
    }

    fn cpus(&self) -> Result<String> {
        let cpus = fs::read_to_string(self.0.join("cpuset.cpus")).context("cpuset.cpus")?;
        Ok(cpus.trim_end().to_owned())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Processes that were killed leave it a moment later.
        let removed = wait::until("the cgroup to be empty", || {
            Ok(fs::remove_dir(&self.0).is_ok())
        });
        if let Err(error) = removed {
            diagnostic(format!("{error:#}"));
        }
    }
}

/// Where all threads of a process may run, as /proc says it; nothing if they differ.
fn allowed(pid: u32) -> Result<Option<String>> {
    let mut all: Option<String> = None;
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let cpus = Thread::parse(&name)?.allowed_cpus()?;
        match &all {
            Some(other) if *other != cpus => return Ok(None),
            _ => all = Some(cpus),
        }
    }
    Ok(all)
}

/// Waits until all threads of all of these processes may run on these CPUs.
fn expect_allowed(monitor: &mut Monitor, owners: &[&Owner], cpus: &str) -> Result<()> {
    for owner in owners {
        monitor.until(&format!("process {} to be on {cpus}", owner.pid()), || {
            Ok(allowed(owner.pid())?.as_deref() == Some(cpus))
        })?;
    }
    Ok(())
}

/// The last CPU, the list of all others, and that of all.
fn lists() -> Result<(usize, String, String)> {
    let last = cpu::count()? - 1;
    ensure!(last > 0, "this takes two CPUs");
    let others = match last {
        1 => "0".to_owned(),
        _ => format!("0-{}", last - 1),
    };
    Ok((last, others, format!("0-{last}")))
}

/// A monitor that keeps the last CPU, whatever there is to do.
fn keep(last: usize, more: &str) -> Result<Monitor> {
    Monitor::start(&format!(
        "interval_ms = 10\n{more}[limits]\ncores_min = 1\ncores_max = 1\ncpus = [{last}]\n"
    ))
}

pub fn left(options: &Options) -> Result<()> {
    let control = Control::default();
    control.restore()?;
    let (last, others, all) = lists()?;
    // As libvirt makes one; one that is no scope, with nobody else in it, and CPUs of its own; and
    // one that is shared, so that others than the VM would have to leave with it.
    let scope = Cgroup::new("iocm-one.scope", "")?;
    let own = Cgroup::new("iocm-two", &all)?;
    let shared = Cgroup::new("iocm-three", "")?;
    let owner = |tap: &str| Owner::reflect(&options.node, tap);
    let (one, two, three, four) = (
        owner("one")?,
        owner("two")?,
        owner("three")?,
        owner("four")?,
    );
    scope.add(one.pid())?;
    own.add(two.pid())?;
    shared.add(three.pid())?;
    let stranger = Stranger::start("sleep")?;
    shared.add(stranger.0.id())?;

    let mut monitor = keep(last, "")?;
    monitor.until("the core to be taken", || {
        Ok(io_cores(&control)? == [last] && journal().contains("taken"))
    })?;
    expect_allowed(&mut monitor, &[&one, &two, &three, &four], &others)?;
    ensure!(scope.cpus()? == others, "the scope has {}", scope.cpus()?);
    ensure!(own.cpus()? == others, "the VM's cgroup has {}", own.cpus()?);
    ensure!(
        shared.cpus()?.is_empty(),
        "the shared cgroup has {}",
        shared.cpus()?
    );
    ensure!(
        allowed(stranger.0.id())?.as_deref() == Some(all.as_str()),
        "who has nothing to do with it was moved"
    );
    let late = owner("late")?;
    expect_allowed(&mut monitor, &[&late], &others)?;

    // Killed, it leaves everything as it is, and the next one knows what was before.
    drop(monitor);
    ensure!(own.cpus()? == others, "the VM's cgroup has {}", own.cpus()?);
    let status = program()?.args(["monitor", "--restore"]).status()?;
    ensure!(status.success(), "restoring ended with {status}");
    ensure!(scope.cpus()?.is_empty(), "the scope has {}", scope.cpus()?);
    ensure!(own.cpus()? == all, "the VM's cgroup has {}", own.cpus()?);
    for owner in [&one, &two, &three, &four, &late] {
        let cpus = allowed(owner.pid())?;
        ensure!(
            cpus.as_deref() == Some(all.as_str()),
            "process {} is on {cpus:?}",
            owner.pid()
        );
    }
    for owner in [one, two, three, four, late] {
        owner.kill()?;
    }
    restored(&control)
}

pub fn refused(options: &Options) -> Result<()> {
    let control = Control::default();
    control.restore()?;
    let (last, _, all) = lists()?;
    let scope = Cgroup::new("iocm-one.scope", "")?;
    let bound = Cgroup::new("iocm-bound.scope", &last.to_string())?;
    let one = Owner::reflect(&options.node, "one")?;
    let two = Owner::reflect(&options.node, "two")?;
    let free = Owner::reflect(&options.node, "free")?;
    scope.add(one.pid())?;
    bound.add(two.pid())?;
    let before = control.workers()?;

    let mut monitor = keep(last, "")?;
    let log = monitor.log.clone();
    monitor.until("the core to be given up", || {
        Ok(fs::read_to_string(&log)?.contains("a plan failed"))
    })?;
    let said = monitor.log();
    for words in ["so all of it is undone", "iocm-bound.scope", "no CPU left"] {
        ensure!(said.contains(words), "no {words:?} in {said}");
    }
    ensure!(
        journal().contains("\"cores\": {}"),
        "the journal says {}",
        journal()
    );
    drop(monitor);
    ensure!(control.workers()? == before, "{:?}", control.workers()?);
    ensure!(scope.cpus()?.is_empty(), "the scope has {}", scope.cpus()?);
    ensure!(
        bound.cpus()? == last.to_string(),
        "the bound VM has {}",
        bound.cpus()?
    );
    for owner in [&one, &free] {
        let cpus = allowed(owner.pid())?;
        ensure!(cpus.as_deref() == Some(all.as_str()), "moved to {cpus:?}");
    }
    for owner in [one, two, free] {
        owner.kill()?;
    }
    restored(&control)
}

/// A process that only sleeps, under this name.
struct Stranger(Child);

impl Stranger {
    fn start(name: &str) -> Result<Self> {
        let program = crate::running::directory()?.join(name);
        fs::copy("/bin/sleep", &program).context("copy sleep")?;
        let child = Command::new(&program)
            .arg("3600")
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("run {}", program.display()))?;
        Ok(Self(child))
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The interrupts of the machine's network cards.
fn card_interrupts() -> Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir("/sys/class/net")? {
        // That of a virtio card hangs on the PCI device above the virtio device.
        let directory = entry?.path().join("device/../msi_irqs");
        let Ok(entries) = fs::read_dir(directory) else {
            continue;
        };
        for entry in entries {
            numbers.push(entry?.file_name().to_string_lossy().parse()?);
        }
    }
    Ok(numbers)
}

fn handled_on(interrupt: u32) -> Result<String> {
    let file = format!("/proc/irq/{interrupt}/smp_affinity_list");
    let list = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    Ok(list.trim_end().to_owned())
}

pub fn interrupts() -> Result<Outcome> {
    let control = Control::default();
    control.restore()?;
    let interrupts = card_interrupts()?;
    if interrupts.is_empty() {
        return skip("this machine has no network card with interrupts of its own");
    }
    let (last, ..) = lists()?;
    let places =
        || -> Result<Vec<String>> { interrupts.iter().map(|it| handled_on(*it)).collect() };
    let before = places()?;
    let core = vec![last.to_string(); interrupts.len()];
    ensure!(before != core, "they are on CPU {last} already");
    let restore = || -> Result<()> {
        let status = program()?.args(["monitor", "--restore"]).status()?;
        ensure!(status.success(), "restoring ended with {status}");
        ensure!(places()? == before, "they came back to {:?}", places()?);
        Ok(())
    };
    // In how many intervals they would have moved: they do before the worker is made.
    let taken = |monitor: &mut Monitor| {
        monitor.until("the core to be taken", || {
            Ok(io_cores(&control)? == [last] && journal().contains("taken"))
        })
    };

    let mut monitor = keep(last, "")?;
    taken(&mut monitor)?;
    ensure!(places()? == before, "they moved, and nobody wanted that");
    drop(monitor);
    restore()?;

    let balancer = Stranger::start("irqbalance")?;
    let mut monitor = keep(last, "interrupts = true\n")?;
    taken(&mut monitor)?;
    ensure!(places()? == before, "they moved in spite of irqbalance");
    drop(balancer);
    monitor.until("interrupts to move when irqbalance has ended", || {
        Ok(places()? == core)
    })?;
    drop(monitor);
    restore()?;

    let mut monitor = keep(last, "interrupts = true\n")?;
    taken(&mut monitor)?;
    if places()? != core {
        bail!("they are on {:?} and not on {core:?}", places()?);
    }
    diagnostic(format!(
        "interrupts {interrupts:?} moved from {before:?} to {core:?}"
    ));
    drop(monitor);
    restore()?;
    restored(&control)?;
    Ok(Outcome::Pass)
}
