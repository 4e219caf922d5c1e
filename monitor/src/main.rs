// SPDX-License-Identifier: GPL-2.0

//! The program `iocm`.

use clap::{Parser, Subcommand};
use iocm::simulate::cli;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Simulate(cli::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Simulate(args) => cli::run(&args),
    }
}
