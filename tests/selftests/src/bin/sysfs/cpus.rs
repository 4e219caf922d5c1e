// SPDX-License-Identifier: GPL-2.0
//! The CPUs of a worker, set and read through the tree.

use std::path::Path;

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::cpu;
use vhost_iocm_selftests::ktap::{skip, Outcome, Suite};
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::refusal::expect_refused;
use vhost_iocm_selftests::thread::Thread;
use vhost_iocm_selftests::traffic::Background;

/// Texts that are no list of CPUs.
const MALFORMED: &[&str] = &[
    "\n", "x", "0-", "-", "-1", "1-0", "0 1", "0x1", "w.0", "0\0", "0\n\n", "0,x", "0,", "0-0-0",
    "all", "0-1:1/2",
];

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case(
        "a worker runs where its cpus say, under traffic",
        move || follow(options, control),
    );

    suite.case("what is no list of CPUs is refused", move || {
        control.restore()?;
        for cpu in [-1, 0] {
            let worker = control.create_worker(cpu)?;
            let file = format!("worker/{worker}/cpus");
            for text in MALFORMED {
                expect_refused(control, &file, text, Errno::EINVAL)?;
            }
            for text in ["65536", "0-65536", "0,99999999999"] {
                expect_refused(control, &file, text, Errno::ERANGE)?;
            }
        }
        control.restore().map(drop)
    });

    suite.case("a worker with a CPU has that CPU's NUMA node", move || {
        control.restore()?;
        let worker = control.create_worker(0)?;
        let node: i32 = control
            .read_line(&format!("worker/{worker}/node"))?
            .parse()?;
        let nodes = Path::new("/sys/devices/system/node");
        if nodes.join("node0").exists() {
            let link = nodes.join(format!("node{node}/cpu0"));
            ensure!(link.exists(), "CPU 0 is not of node {node}");
        }
        control.restore().map(drop)
    });
}

fn follow(options: &Options, control: &Control) -> Result<Outcome> {
    if cpu::count()? < 2 {
        return skip("needs two CPUs");
    }
    let worker = control.restore()?;
    let thread = Thread::parse(&control.read_line(&format!("worker/{worker}/pid"))?)?;
    let expect = |cpus: &str| {
        let said = control.read_line(&format!("worker/{worker}/cpus"))?;
        let allowed = thread.allowed_cpus()?;
        ensure!(
            said == cpus && allowed == cpus,
            "cpus says {said}, the thread may run on {allowed}, expected {cpus}"
        );
        let single = if cpus.len() == 1 { cpus } else { "-1" };
        let cpu = control.read_line(&format!("worker/{worker}/cpu"))?;
        ensure!(cpu == single, "cpus is {cpus} and cpu {cpu}");
        Ok(())
    };
    let all = thread.allowed_cpus()?;
    expect(&all).context("at first")?;
    let mut nic = Nic::new(&options.node, NicOptions::default())?;
    let result = std::thread::scope(|scope| {
        let traffic = Background::start(scope, &mut nic)?;
        let placed = (|| {
            for (text, cpus) in [("1\n", "1"), ("0-1", "0-1"), ("0", "0"), ("0,1\n", "0-1")] {
                control.set(&format!("worker/{worker}/cpus"), text)?;
                expect(cpus)?;
                traffic.advance(5)?;
            }
            // Like taskset.
            cpu::place(nix::unistd::Pid::from_raw(thread.id), &[1])?;
            expect("1")?;
            traffic.advance(5)
        })();
        traffic.conclude(placed)
    });
    control.set(&format!("worker/{worker}/cpus"), &all)?;
    expect(&all)?;
    result.map(|_| Outcome::Pass)
}
