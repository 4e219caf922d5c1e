// SPDX-License-Identifier: GPL-2.0
//! The device IOTLB: every address goes through it, and what it lacks is asked for.

mod messages;
mod rings;
mod traffic;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use vhost_iocm_selftests::device::{Device, ACCESS_PLATFORM, EVENT_IDX, MRG_RXBUF, VERSION_1};
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;

fn main() -> ExitCode {
    let options = Options::parse();
    let mut suite = Suite::new();
    messages::add(&mut suite, &options);
    rings::add(&mut suite, &options);
    traffic::add(&mut suite, &options);
    suite.run(&options.filters)
}

const FEATURES: u64 = VERSION_1 | MRG_RXBUF | EVENT_IDX | ACCESS_PLATFORM;

fn nic_options() -> NicOptions {
    NicOptions {
        features: FEATURES,
        pages_apart: true,
        ..NicOptions::default()
    }
}

/// A card that is all set, but without backends.
fn prepared(options: &Options, nic: NicOptions) -> Result<Nic> {
    Nic::prepare(Device::open(&options.node)?, nic)
}
