// SPDX-License-Identifier: GPL-2.0

//! The program `iocm`.

use clap::Parser;
use iocm::arguments::Arguments;
use std::process::ExitCode;

fn main() -> ExitCode {
    match iocm::command::run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("iocm: {failure}");
            ExitCode::from(&failure)
        }
    }
}
