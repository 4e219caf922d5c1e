// SPDX-License-Identifier: GPL-2.0
//! Soft interrupts take time from a worker, which is nobody's service.

use std::net::UdpSocket;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use nix::unistd::Pid;
use vhost_iocm_selftests::card::Card;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::counters::Counters;
use vhost_iocm_selftests::cpu;
use vhost_iocm_selftests::ktap::{diagnostic, skip, Outcome, Suite};
use vhost_iocm_selftests::load::Load;
use vhost_iocm_selftests::nic::NicOptions;
use vhost_iocm_selftests::options::{in_user_mode_linux, Flavour, Options};
use vhost_iocm_selftests::process::Packets;
use vhost_iocm_selftests::wait;

/// How long the worker is watched.
const TIME: Duration = Duration::from_secs(2);

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case(
        "soft interrupts during slices are counted, and not as service of anybody",
        move || {
            // Those of a slice are told apart only if no other thread ran meanwhile, and a slice of a
            // debug kernel takes so long that the flood does.
            if Flavour::of_environment() == Flavour::Debug {
                return skip("slices of a debug kernel are too long");
            }
            counted(options, control).map(|()| Outcome::Pass)
        },
    );
}

/// The loopback interface sends what it gets a moment later, from a soft interrupt of the CPU that sent.
struct Late(());

impl Late {
    fn new() -> Result<Self> {
        traffic_control(&[
            "add", "dev", "lo", "root", "netem", "delay", "1ms", "limit", "100000",
        ])?;
        Ok(Self(()))
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        if let Err(error) = traffic_control(&["del", "dev", "lo", "root"]) {
            diagnostic(format!("the loopback interface stays late: {error:#}"));
        }
    }
}

fn traffic_control(arguments: &[&str]) -> Result<()> {
    let status = Command::new("tc")
        .arg("qdisc")
        .args(arguments)
        .status()
        .context("run tc")?;
    ensure!(status.success(), "tc qdisc {arguments:?}: {status}");
    Ok(())
}

/// Floods the loopback interface from a CPU until `stop`.
fn flood(from: usize, stop: &AtomicBool) -> Result<()> {
    cpu::place(Pid::from_raw(0), &[from])?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let sink = UdpSocket::bind("127.0.0.1:0")?;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..64 {
            // What the sink has no room for is dropped by who receives it, which costs time as well.
            let _ = socket.send_to(&[0; 64], sink.local_addr()?);
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(())
}

fn counted(options: &Options, control: &Control) -> Result<()> {
    let load = Load::new(&options.node, control, 1, Packets::Frames)?;
    let nic = NicOptions::default();
    let mut idle = Card::beside(options, control, nic, "0", load.worker.clone())?;
    idle.exchange(4)?;
    idle.expect_quiet()?;
    load.begin()?;
    let look = || -> Result<_> {
        Ok((
            Counters::of_worker(control, &load.worker)?,
            Counters::of_device(control, &idle.device)?,
        ))
    };

    let _late = Late::new()?;
    let stop = AtomicBool::new(false);
    let worker_cpu = cpu::count()? - 1;
    let (before, after, elapsed) = std::thread::scope(|scope| -> Result<_> {
        let flood = scope.spawn(|| flood(worker_cpu, &stop));
        let watched = (|| {
            let start = Instant::now();
            let before = look()?;
            std::thread::sleep(TIME);
            wait::until("soft interrupts to be counted", || {
                let moved = look()?.0.since(&before.0);
                // User Mode Linux does not measure their time.
                Ok(moved.get("ksoftirqs")? >= 10
                    && (moved.get("ksoftirq_time")? > 0 || in_user_mode_linux()))
            })?;
            Ok((before, look()?, start.elapsed()))
        })();
        stop.store(true, Ordering::Relaxed);
        flood.join().expect("the flood does not panic")?;
        watched
    })?;
    let elapsed = elapsed.as_nanos() as u64;
    let (worker, other) = (after.0.since(&before.0), after.1.since(&before.1));
    diagnostic(format!("in {elapsed} ns: {:?}", worker.moved()));
    let get = |name| worker.get(name);
    ensure!(
        (1..=get("ksoftirqs")?).contains(&get("ksoftirq_occurrences")?)
            && get("ksoftirq_occurrences")? <= get("works")?,
        "{:?}",
        worker.moved()
    );
    // All the time there is has one owner. A slice that began before may end meanwhile.
    let sum = get("busy_ns")? + get("ksoftirq_time")? + get("stolen_ns")? + get("idle_ns")?;
    ensure!(
        sum <= elapsed + elapsed / 10,
        "{sum} ns of {elapsed}: {:?}",
        worker.moved()
    );
    ensure!(
        other.moved().is_empty(),
        "the idle device: {:?}",
        other.moved()
    );
    drop(idle);
    load.end()
}
