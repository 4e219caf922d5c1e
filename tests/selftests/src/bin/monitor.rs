// SPDX-License-Identifier: GPL-2.0
//! The monitor on a real module: it follows a load that comes and goes without losing a packet, and
//! may be killed at any instant.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use clap::Parser;
use nix::sched::{sched_getaffinity, CpuSet};
use nix::unistd::Pid;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::cpu;
use vhost_iocm_selftests::ktap::{diagnostic, Suite};
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::process::{Owner, Packets};
use vhost_iocm_selftests::random::Random;
use vhost_iocm_selftests::traffic::{Background, Direction, Traffic};
use vhost_iocm_selftests::wait;

/// Devices that want all that they can get, when the load is full.
const BUSY: usize = 2;
/// For how long an idle host is watched.
const IDLE: Duration = Duration::from_secs(1);
/// The time between two little exchanges of frames on a host that is to be idle: an emulated one has to be
/// idle as well.
const REST: Duration = Duration::from_millis(200);
/// A killed monitor lived for less than this: the time of its start and of a transaction or two.
const LIFE: Duration = Duration::from_millis(120);

#[derive(Parser)]
struct Arguments {
    /// How often the monitor is killed (default: 200, in a debug kernel 20).
    #[arg(long)]
    kills: Option<u32>,

    /// Seed of the instants at which it is killed.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = &arguments.options;
    let kills = arguments.kills.unwrap_or(options.volume(200, 20));
    let seed = arguments.seed;
    let mut suite = Suite::new();
    suite.case(
        "a core is taken when the load comes, given back when it goes, and no packet is lost",
        move || follow(options),
    );
    suite.case(
        format!(
            "a monitor that is killed {kills} times harms nothing, and the next one takes over"
        ),
        move || killed(options, kills, seed),
    );
    suite.case("what cannot be done is said in one sentence", refusals);
    suite.run(&options.filters)
}

/// Where the files of a case are.
fn directory() -> Result<PathBuf> {
    let directory = PathBuf::from("/tmp/monitor");
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

fn program() -> Result<Command> {
    Ok(Command::new(
        std::env::current_exe()?.with_file_name("iocm"),
    ))
}

/// A monitor, ended when it goes out of scope.
struct Monitor {
    child: Child,
    log: PathBuf,
}

impl Monitor {
    /// Starts one whose configuration says this.
    fn start(config: &str) -> Result<Self> {
        let directory = directory()?;
        let file = directory.join("iocm.toml");
        fs::write(&file, config)?;
        let log = directory.join("log");
        let child = program()?
            .args(["monitor", "--config"])
            .arg(&file)
            .stderr(File::create(&log)?)
            .spawn()
            .context("start the monitor")?;
        Ok(Self { child, log })
    }

    /// What it has said so far.
    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for something, with the log in the message if it does not come.
    fn until(&mut self, what: &str, condition: impl FnMut() -> Result<bool>) -> Result<()> {
        let result = wait::until(what, condition);
        if let Some(status) = self.child.try_wait()? {
            bail!("the monitor ended with {status}: {}", self.log());
        }
        result.with_context(|| self.log())
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the threads of a process may run, as its first one.
fn affinity(pid: u32) -> Result<CpuSet> {
    sched_getaffinity(Pid::from_raw(pid as i32)).context("affinity")
}

/// The CPUs that have a worker of their own.
fn io_cores(control: &Control) -> Result<Vec<usize>> {
    let mut cpus = Vec::new();
    for worker in control.workers()? {
        // It may be removed in between.
        let Ok(cpu) = control.read_line(&format!("worker/{worker}/cpu")) else {
            continue;
        };
        cpus.extend(cpu.parse::<usize>());
    }
    Ok(cpus)
}

/// The worker that serves a device, or none if it is at home.
fn server_of(control: &Control, device: &str) -> Result<Option<String>> {
    if control.read_line(&format!("dev/{device}/home"))? == "1" {
        return Ok(None);
    }
    Ok(Some(control.read_line(&format!("dev/{device}/worker"))?))
}

fn follow(options: &Options) -> Result<()> {
    let control = Control::default();
    control.restore()?;
    let last = cpu::count()? - 1;
    ensure!(last > 0, "this takes two CPUs");
    let before = affinity(std::process::id())?;
    let mut nic = Nic::new(&options.node, NicOptions::default())?;
    let mut owners = Vec::new();
    let mut devices = Vec::new();
    for number in 0..BUSY {
        let tap = format!("busy{number}");
        owners.push(Owner::saturate(&options.node, &tap, Packets::Frames)?);
        devices.push(control.device_of(&tap)?);
    }
    // Two CPUs, on which the drivers run as well, have no load for which a whole core is worth it. So less
    // has to be gained by one, and it is kept for some seconds, however late it serves.
    let mut monitor = Monitor::start(&format!(
        "interval_ms = 20\n\
         [limits]\ncores_max = 1\ncpus = [{last}]\n\
         [policy.cores]\nage_us = 1000000\ngain = -0.75\nidle_intervals = 300\n"
    ))?;
    let log = monitor.log.clone();
    monitor.until("the monitor to watch", || {
        Ok(fs::read_to_string(&log)?.contains("the monitor watches"))
    })?;
    let idle = Instant::now();
    while idle.elapsed() < IDLE {
        Traffic::new(&mut nic, Direction::Both)?.run(2)?;
        ensure!(
            io_cores(&control)?.is_empty(),
            "an idle host has a side core: {}",
            monitor.log()
        );
        std::thread::sleep(REST);
    }

    let frames = std::thread::scope(|scope| -> Result<(u64, u64)> {
        let traffic = Background::start(scope, &mut nic)?;
        let result = (|| {
            traffic.advance(2)?;
            for owner in &owners {
                owner.go_on()?;
                owner.expect_done()?;
            }
            monitor.until("a side core for the load", || {
                Ok(io_cores(&control)? == [last])
            })?;
            monitor.until("the busy devices to be served there", || {
                for device in &devices {
                    let Some(worker) = server_of(&control, device)? else {
                        return Ok(false);
                    };
                    if control.read_line(&format!("worker/{worker}/cpu"))? != last.to_string() {
                        return Ok(false);
                    }
                }
                Ok(true)
            })?;
            for owner in &owners {
                ensure!(
                    !affinity(owner.pid())?.is_set(last)?,
                    "a guest may run on the side core"
                );
            }
            traffic.advance(20)
        })();
        traffic.conclude(result)
    })?;
    for owner in owners {
        owner.kill()?;
    }
    diagnostic(format!("{frames:?} frames while the side core came"));
    // Little traffic goes on while the core is given back, and none of that is lost either.
    let end = Instant::now() + wait::patience();
    while !io_cores(&control)?.is_empty() {
        ensure!(
            Instant::now() < end,
            "the side core is not given back: {}",
            monitor.log()
        );
        Traffic::new(&mut nic, Direction::Both)?.run(2)?;
        std::thread::sleep(REST);
    }
    monitor.until("this process to be where it was", || {
        Ok(affinity(std::process::id())? == before)
    })?;
    Traffic::new(&mut nic, Direction::Both)?.run(50)?;
    let log = monitor.log();
    for (what, word) in [("taken", "keep CPU"), ("given back", "give the CPU of")] {
        let line = log.lines().find(|line| line.contains(word));
        let line = line.with_context(|| format!("the log does not say that a core was {what}"))?;
        ensure!(line.contains("reason="), "no reason: {line}");
        diagnostic(line);
    }
    drop(monitor);
    drop(nic);
    restored(&control)
}

/// Undoes what monitors have left, and checks that nothing is.
fn restored(control: &Control) -> Result<()> {
    let status = program()?.args(["monitor", "--restore"]).status()?;
    ensure!(status.success(), "restoring ended with {status}");
    let cores = io_cores(control)?;
    ensure!(cores.is_empty(), "there are still workers on {cores:?}");
    let workers = control.workers()?;
    ensure!(workers.len() == 1, "there are still {workers:?}");
    for worker in workers {
        let locked = control.read_line(&format!("worker/{worker}/locked"))?;
        ensure!(locked == "0", "{worker} is locked");
    }
    control.restore().map(drop)
}

fn killed(options: &Options, kills: u32, seed: u64) -> Result<()> {
    let control = Control::default();
    control.restore()?;
    let last = cpu::count()? - 1;
    let before = affinity(std::process::id())?;
    let mut random = Random::new(seed);
    let mut nic = Nic::new(&options.node, NicOptions::default())?;
    let device = control.device_of(nic.tap.name())?;
    let mut unfinished = 0;
    let frames = std::thread::scope(|scope| -> Result<(u64, u64)> {
        let traffic = Background::start(scope, &mut nic)?;
        let result = (|| {
            for kill in 0..kills {
                // Limits that make each monitor undo what the one before it did.
                let cores = (kill + 1) % 2;
                let monitor = Monitor::start(&format!(
                    "interval_ms = 10\n[limits]\n\
                     cores_min = {cores}\ncores_max = {cores}\ncpus = [{last}]\n"
                ))?;
                let life = LIFE.as_micros() as usize;
                std::thread::sleep(Duration::from_micros(random.below(life) as u64));
                drop(monitor);
                let journal = fs::read_to_string("/run/iocm/journal.json").unwrap_or_default();
                if ["taking", "returning"]
                    .iter()
                    .any(|phase| journal.contains(phase))
                {
                    unfinished += 1;
                }
                traffic
                    .advance(1)
                    .with_context(|| format!("after kill {kill}"))?;
            }
            Ok(())
        })();
        traffic.conclude(result)
    })?;
    // The last one lives, and takes over whatever is there.
    let mut monitor = Monitor::start(&format!(
        "interval_ms = 10\n[limits]\ncores_min = 1\ncores_max = 1\ncpus = [{last}]\n"
    ))?;
    monitor.until("the last monitor to take the core", || {
        Ok(io_cores(&control)? == [last] && server_of(&control, &device)?.is_some())
    })?;
    drop(monitor);
    Traffic::new(&mut nic, Direction::Both)?.run(50)?;
    diagnostic(format!(
        "{frames:?} frames; {unfinished} of {kills} monitors were killed in the middle of a change"
    ));
    let status = program()?.args(["monitor", "--restore"]).status()?;
    ensure!(status.success(), "restoring ended with {status}");
    ensure!(
        affinity(std::process::id())? == before,
        "this process is not where it was"
    );
    drop(nic);
    restored(&control)
}

fn refusals() -> Result<()> {
    let control = Control::default();
    let worker = control.restore()?;
    let file = directory()?.join("broken.toml");
    fs::write(&file, "interval_ms = 100\nintervall = 3\n")?;
    let file = file.to_str().context("path")?;
    let cases: &[(&[&str], i32, &str)] = &[
        (&["set", &worker, "nice", "99"], 2, "takes -20 to 19"),
        (&["set", &worker, "colour", "3"], 2, "it has cpus"),
        (&["worker", "create", "4000"], 2, "online"),
        (&["worker", "remove", "w.4000"], 5, "no worker w.4000"),
        (&["move", "d.4000", &worker], 5, "no device d.4000"),
        (&["move", "d.4000", "d.3"], 2, "no worker"),
        (&["config", "check", file], 6, "line 2"),
        (&["config", "check", "/nowhere.toml"], 1, "nowhere.toml"),
    ];
    for (arguments, status, words) in cases {
        let output = program()?.args(*arguments).output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(*status) && text.contains(words),
            "{arguments:?} ended with {} and said {text}",
            output.status
        );
    }
    Ok(())
}
