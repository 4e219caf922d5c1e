// SPDX-License-Identifier: GPL-2.0
//! Not a test: the process that tests make own a device, pass it on, stall, exit or die.

mod batches;
mod reflect;
mod replace;
mod saturate;
mod stall;
mod test;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::process::{Packets, Part};
use vhost_iocm_selftests::tap::TapOptions;

use crate::test::Test;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Own a device and send back every frame that it receives.
    Reflect {
        #[command(flatten)]
        card: Card,
        /// Hand the device's descriptor to the test.
        #[arg(long)]
        lend: bool,
    },
    /// When told to, transmit frames out of memory that is partly missing; when told again, bring the
    /// memory back and go on as a reflector.
    Stall {
        #[command(flatten)]
        card: Card,
        /// What is missing.
        #[arg(long)]
        part: Part,
        /// Where it is instead: in this file, whose server stops, rather than nowhere.
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// Own a device that runs, and hand its descriptor to the test. When told to, try to become a program
    /// that is none; when told again, become one that keeps the device open.
    Replace {
        #[command(flatten)]
        card: Card,
        /// MiB of memory that the process has beside the device's.
        #[arg(long, default_value_t = 0)]
        ballast: usize,
    },
    /// Keep open what the program before has left, until told otherwise.
    Linger,
    /// When told to, never let the device run out of packets to transmit, or give it one after the other.
    Saturate {
        #[command(flatten)]
        card: Card,
        /// What to transmit.
        #[arg(long)]
        packets: Packets,
    },
    /// When told to, put up a batch of packets, or of buffers for them; when told again, show it to
    /// the device and wait until all of it was used; and so on.
    Batches {
        #[command(flatten)]
        card: Card,
        /// Packets of a batch.
        #[arg(long)]
        packets: u16,
        /// Bytes of a packet. One that a frame is too short for is to be cut into segments.
        #[arg(long)]
        length: usize,
        /// Receive instead of transmitting. The first batch is received without being told to put up
        /// buffers.
        #[arg(long)]
        receive: bool,
    },
}

/// Where the device comes from and what is behind it.
#[derive(Args)]
struct Card {
    /// Device node.
    node: PathBuf,
    /// Name of the tap.
    #[arg(long)]
    tap: String,
}

impl Card {
    fn open(self, options: NicOptions) -> Result<Nic> {
        let tap = TapOptions {
            name: self.tap,
            ..options.tap
        };
        Nic::new(&self.node, NicOptions { tap, ..options })
    }
}

fn main() -> Result<()> {
    let test = Test::new()?;
    match Arguments::parse().command {
        Command::Reflect { card, lend } => reflect::run(card, lend, &test),
        Command::Replace { card, ballast } => replace::run(card, ballast, &test),
        Command::Linger => replace::linger(&test),
        Command::Stall { card, part, file } => stall::run(card, part, file, &test),
        Command::Saturate { card, packets } => saturate::run(card, packets, &test),
        Command::Batches {
            card,
            packets,
            length,
            receive,
        } => batches::run(card, packets, length, receive, &test),
    }
}
