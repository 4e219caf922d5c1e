// SPDX-License-Identifier: GPL-2.0
//! The data path: every packet that a driver hands over or should get, and no other, arrives whole.

mod broken;
mod counted;
mod given_back;
mod layouts;
mod notification;
mod offload;
mod receive;
mod transmit;
mod xdp;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::traffic::{Direction, Traffic};
use vhost_iocm_selftests::wait;

/// Most buffers of a chain.
const CHAIN_MAX: u16 = 1024;

fn main() -> ExitCode {
    let options = Options::parse();
    let bench = broken::Bench::new(&options);
    let mut suite = Suite::new();
    layouts::add(&mut suite, &options);
    transmit::add(&mut suite, &options);
    receive::add(&mut suite, &options);
    counted::add(&mut suite, &options);
    given_back::add(&mut suite, &options);
    offload::add(&mut suite, &options);
    xdp::add(&mut suite, &options);
    notification::add(&mut suite, &options);
    broken::add(&mut suite, &options, &bench);
    suite.run(&options.filters)
}

/// Runs this many frames over a new card in the directions given.
fn exchange(options: &Options, nic: NicOptions, directions: Direction, frames: u64) -> Result<()> {
    let mut nic = Nic::new(&options.node, nic)?;
    Traffic::new(&mut nic, directions)?.run(frames)
}

/// Waits until the device's worker no longer turns its loop: it does not spin for buffers.
fn expect_idle(nic: &Nic) -> Result<()> {
    let control = Control::default();
    let device = control.device_of(nic.tap.name())?;
    let worker = control.read_line(&format!("dev/{device}/worker"))?;
    let loops = || control.read_counter(&format!("worker/{worker}/status"), "loops");
    let mut last = loops()?;
    let mut same = 0;
    wait::until("the worker to go idle", || {
        let now = loops()?;
        same = if now == last { same + 1 } else { 0 };
        last = now;
        Ok(same >= 5)
    })
}
