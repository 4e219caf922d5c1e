// SPDX-License-Identifier: GPL-2.0
//! What the monitor itself costs.

use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::cpu;
use vhost_iocm_selftests::ktap::diagnostic;
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::process::Owner;
use vhost_iocm_selftests::thread::Thread;

use crate::running::{io_cores, restored, Monitor};

/// VMs with a device each.
const DEVICES: usize = 64;
/// For how long the monitor is watched.
const TIME: Duration = Duration::from_secs(20);

pub fn interval(options: &Options) -> Result<()> {
    let control = Control::default();
    control.restore()?;
    let last = cpu::count()? - 1;
    // With a core that is kept there is most to look at. It takes a second CPU.
    let cores = last.min(1);
    let owners = (0..DEVICES)
        .map(|number| Owner::reflect(&options.node, &format!("vm{number}")))
        .collect::<Result<Vec<_>>>()?;
    let mut monitor = Monitor::start(&format!(
        "interval_ms = 10\n[limits]\ncores_min = {cores}\ncores_max = {cores}\ncpus = [{last}]\n"
    ))?;
    monitor.until("the core to be taken", || {
        Ok(io_cores(&control)?.len() == cores)
    })?;
    std::thread::sleep(Duration::from_secs(1));
    let thread = Thread::parse(&monitor.pid().to_string())?;
    let (start, before) = (Instant::now(), thread.runtime()?);
    std::thread::sleep(TIME);
    let (passed, used) = (start.elapsed(), thread.runtime()? - before);
    let part = used.as_secs_f64() / passed.as_secs_f64();
    diagnostic(format!(
        "{DEVICES} VMs with a device each: the monitor used {used:?} in {passed:?}, {:.2} % of a CPU",
        100.0 * part
    ));
    drop(monitor);
    for owner in owners {
        owner.kill()?;
    }
    restored(&control)?;
    ensure!(part <= 0.01, "more than 1 % of a CPU");
    Ok(())
}
