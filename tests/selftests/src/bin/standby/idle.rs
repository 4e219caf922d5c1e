// SPDX-License-Identifier: GPL-2.0
//! What the fast loop costs while there is nothing for it to do: nothing.

use std::time::Duration;

use anyhow::{ensure, Result};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::parameter::Parameter;
use vhost_iocm_selftests::thread::{self, Thread};
use vhost_iocm_selftests::traffic::{Direction, Traffic};
use vhost_iocm_selftests::wait;

use crate::crowd::{expect_becomes, wake_easily, wakes, Crowd};

/// For how long nothing may happen.
const QUIET: Duration = Duration::from_secs(1);
const FRAMES: u64 = 200;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case(
        "the fast loop sleeps while a host with a parked worker is idle",
        move || {
            control.restore()?;
            control.create_parked()?;
            let _cards = (0..4)
                .map(|_| Nic::new(&options.node, NicOptions::default()))
                .collect::<Result<Vec<_>>>()?;
            expect_asleep(fast_loop()?)?;
            control.restore().map(drop)
        },
    );

    suite.case(
        "pending_ns_now tells what waits, and 0 at rest",
        move || {
            let mut crowd = Crowd::new(options, control)?;
            let worker = crowd.worker.clone();
            crowd.push(|_| {
                wait::until("work that waits", || {
                    let age: u64 = control
                        .read_line(&format!("worker/{worker}/pending_ns_now"))?
                        .parse()?;
                    Ok(age > 0 && waiting(control)?.iter().filter(|age| **age > 0).count() > 1)
                })
            })?;
            wait::until("all to rest", || {
                Ok(waiting(control)?.iter().all(|age| *age == 0))
            })?;
            for _ in 0..20 {
                let ages = waiting(control)?;
                ensure!(ages.iter().all(|age| *age == 0), "at rest {ages:?}");
            }
            crowd.end()
        },
    );

    suite.case(
        "the fast loop sleeps while no work waits for too long",
        move || {
            let _long = Parameter::set("wake_pending_us", "1000000")?;
            control.restore()?;
            control.create_parked()?;
            expect_asleep_under_traffic(options, control)
        },
    );

    suite.case(
        "the fast loop sleeps while nobody is parked who could help",
        move || {
            let _easily = wake_easily()?;
            control.restore()?;
            let other = control.create_parked()?;
            control.set(&format!("worker/{other}/group"), "1")?;
            let locked = control.create_parked()?;
            control.set(&format!("worker/{locked}/locked"), "1")?;
            expect_asleep_under_traffic(options, control)?;
            control.set(&format!("worker/{locked}/locked"), "0")?;
            let _none = Parameter::set("max_woken", "0")?;
            expect_asleep_under_traffic(options, control)
        },
    );

    suite.case(
        "the fast loop sleeps again once the last woken worker is parked",
        move || {
            let mut crowd = Crowd::new(options, control)?;
            let parked = control.create_parked()?;
            let _easily = wake_easily()?;
            let before = fast_loop()?.sleeps()?;
            crowd.push(|_| expect_becomes(control, &parked, "woken"))?;
            // It may have been parked and woken again meanwhile.
            ensure!(wakes(control, &parked)? >= 1, "it was not woken");
            // The claims above could not fail if this did not count.
            let sleeps = fast_loop()?.sleeps()? - before;
            ensure!(sleeps > 1, "the fast loop slept {sleeps} times");
            let _soon = Parameter::set("park_after_us", "1000")?;
            let _room = Parameter::set("park_load", "1000")?;
            crowd.end()?;
            expect_asleep(fast_loop()?)
        },
    );
}

/// What all virtqueues and workers say of how long work has waited.
fn waiting(control: &Control) -> Result<Vec<u64>> {
    let virtqueues = control.virtqueues()?.into_iter();
    let workers = control.workers()?.into_iter();
    virtqueues
        .map(|name| format!("vq/{name}"))
        .chain(workers.map(|name| format!("worker/{name}")))
        .map(|directory| {
            let file = format!("{directory}/pending_ns_now");
            let age = control.read_line(&file)?.parse()?;
            control.read_counter(&format!("{directory}/status"), "pending_ns_now")?;
            Ok(age)
        })
        .collect()
}

fn fast_loop() -> Result<Thread> {
    thread::of_kernel("vhost-balance")
}

/// Waits until the thread sleeps, and expects it to go on sleeping.
fn expect_asleep(thread: Thread) -> Result<()> {
    let mut last = 0;
    wait::until("the fast loop to sleep", || {
        let before = std::mem::replace(&mut last, thread.sleeps()?);
        std::thread::sleep(QUIET / 10);
        Ok(before == last)
    })?;
    std::thread::sleep(QUIET);
    let woken = thread.sleeps()? - last;
    ensure!(woken == 0, "it woke up {woken} times in {QUIET:?}");
    Ok(())
}

fn expect_asleep_under_traffic(options: &Options, control: &Control) -> Result<()> {
    let thread = fast_loop()?;
    let mut nic = Nic::new(&options.node, NicOptions::default())?;
    expect_asleep(thread)?;
    let before = thread.sleeps()?;
    Traffic::new(&mut nic, Direction::Both)?.run(FRAMES)?;
    let woken = thread.sleeps()? - before;
    ensure!(woken == 0, "it woke up {woken} times under traffic");
    drop(nic);
    for worker in control.workers()? {
        ensure!(wakes(control, &worker)? == 0, "{worker} was woken");
    }
    Ok(())
}
