// SPDX-License-Identifier: GPL-2.0
//! Not a test: the process that tests make own a device, pass it on, exit or die.
//!
//! Its standard input is a socket to the test: it writes a byte when it is ready, and the end of file
//! asks it to exit.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use nix::sys::socket::{recv, MsgFlags};
use vhost_iocm_selftests::nic::{borrow, Nic, NicOptions};
use vhost_iocm_selftests::process::send_fd;
use vhost_iocm_selftests::tap::TapOptions;
use vhost_iocm_selftests::wait;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Own a device and send back every frame that it receives.
    Reflect {
        /// Device node.
        node: PathBuf,
        /// Name of the tap.
        #[arg(long)]
        tap: String,
        /// Hand the device's descriptor to the test.
        #[arg(long)]
        lend: bool,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Reflect { node, tap, lend } => {
            let options = NicOptions {
                tap: TapOptions {
                    name: tap,
                    ..TapOptions::default()
                },
                ..NicOptions::default()
            };
            let nic = Nic::new(&node, options)?;
            let channel = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
            (&channel).write_all(b"r").context("tell the test")?;
            if lend {
                send_fd(&channel, nic.device.as_fd())?;
            }
            reflect(nic, &channel)
        }
    }
}

fn reflect(mut nic: Nic, channel: &UnixStream) -> Result<()> {
    loop {
        let mut moved = nic.reclaim()? > 0;
        while let Some(received) = nic.take_received()? {
            moved = true;
            while !nic.transmit(&received.packet)? {
                nic.reclaim_all()?;
            }
        }
        nic.replenish()?;
        if moved || nic.receive.ring.enable_call()? || nic.transmit.ring.enable_call()? {
            continue;
        }
        let descriptors = [
            borrow(&nic.receive.call),
            borrow(&nic.transmit.call),
            channel.as_fd(),
        ];
        // The test may take as long as it likes between two frames.
        wait::readable(&descriptors, wait::patience())?;
        nic.receive.calls()?;
        nic.transmit.calls()?;
        let end = recv(
            channel.as_raw_fd(),
            &mut [0],
            MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK,
        );
        if end == Ok(0) {
            // Exit as a process that was not written for it: without closing anything before.
            std::process::exit(0);
        }
    }
}
