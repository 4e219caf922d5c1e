// SPDX-License-Identifier: GPL-2.0
//! A log that cannot be written.

use anyhow::{ensure, Result};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::ktap::{skip, Outcome, Suite};
use vhost_iocm_selftests::log::{DirtyLog, Switch};
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::traffic::{Direction, Traffic};

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options) {
    suite.case(
        "a log that cannot be written is complained about and counted, and traffic goes on",
        move || unwritable(options),
    );
}

fn unwritable(options: &Options) -> Result<Outcome> {
    if options.stock {
        return skip("vhost_net says nothing");
    }
    let mut nic = Nic::new(&options.node, NicOptions::default())?;
    let control = Control::default();
    let device = control.device_of(nic.tap.name())?;
    let number = device.trim_start_matches("d.").to_owned();
    let errors = |index: u32| -> Result<u64> {
        let line = control.read_line(&format!("vq/vq.{number}.{index}/log_errors"))?;
        Ok(line.parse()?)
    };
    let log = DirtyLog::new()?;
    let switch = Switch::new(&nic)?;
    switch.on(&log)?;
    Traffic::new(&mut nic, Direction::Both)?.run(20)?;
    ensure!((errors(0)?, errors(1)?) == (0, 0), "errors with a good log");

    // Bits that are set already need not be written.
    log.take();
    log.set_writable(false)?;
    Traffic::new(&mut nic, Direction::Both)?.run(20)?;
    for queue in [&nic.receive, &nic.transmit] {
        queue.expect_error()?;
        ensure!(errors(queue.index)? > 0, "no error is counted");
    }

    log.set_writable(true)?;
    // A slice of before may still be counting.
    switch.off()?;
    switch.on(&log)?;
    let before = (errors(0)?, errors(1)?);
    for queue in [&nic.receive, &nic.transmit] {
        queue.errors()?;
    }
    Traffic::new(&mut nic, Direction::Both)?.run(20)?;
    ensure!((errors(0)?, errors(1)?) == before, "errors go on");
    for queue in [&nic.receive, &nic.transmit] {
        ensure!(queue.errors()? == 0, "complaints go on");
    }
    Ok(Outcome::Pass)
}
