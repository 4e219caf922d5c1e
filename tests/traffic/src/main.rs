// SPDX-License-Identifier: GPL-2.0
//! Numbered and checksummed traffic, to prove what a network path does to it.
//!
//! The same program runs on the host and, linked statically, in the test guests. `traffic serve`
//! answers on one side; `traffic udp` and `traffic tcp` drive a run from the other side and print
//! one line of JSON on standard output and one sentence on standard error. A client exits with 1
//! when anything was lost, duplicated, reordered or corrupted in either direction. `traffic kicks` says
//! how often a guest has notified its device.

mod kicks;
mod pattern;
mod serve;
mod tcp;
mod udp;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

/// Sends numbered, checksummed traffic and verifies what arrives.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer the clients of both protocols until killed.
    Serve {
        /// Address and port, used for UDP and for TCP.
        #[arg(long, default_value = "0.0.0.0:7000")]
        listen: SocketAddr,
    },
    /// Exchange numbered datagrams; every one is verified by the peer, sent back and verified again.
    Udp(UdpArguments),
    /// Stream checksummed data in one direction or in both at once.
    Tcp(TcpArguments),
    /// Print how often the driver of an interface has notified its device.
    Kicks {
        /// The interface, of virtio_net.
        interface: String,
    },
}

#[derive(Args)]
struct UdpArguments {
    /// The peer, where `traffic serve` answers.
    #[arg(long)]
    to: SocketAddr,
    /// Datagrams to send. Without it the run lasts until SIGTERM or SIGINT.
    #[arg(long)]
    count: Option<u64>,
    /// Bytes of UDP payload in each datagram.
    #[arg(long, default_value_t = 1400)]
    size: usize,
    /// Datagrams under way at most, so that no socket or device queue overflows by itself.
    #[arg(long, default_value_t = 64)]
    window: u64,
    /// Seconds without any arrival after which what is missing counts as lost.
    #[arg(long, default_value_t = 20)]
    patience: u64,
}

#[derive(Args)]
struct TcpArguments {
    /// The peer, where `traffic serve` answers.
    #[arg(long)]
    to: SocketAddr,
    /// Bytes to send to the peer.
    #[arg(long, default_value_t = 0)]
    send: u64,
    /// Bytes to receive from the peer, at the same time.
    #[arg(long, default_value_t = 0)]
    receive: u64,
    /// Send and receive until SIGTERM or SIGINT.
    #[arg(long, conflicts_with_all = ["send", "receive"])]
    endless: bool,
    /// Seconds without progress after which the run has failed.
    #[arg(long, default_value_t = 30)]
    patience: u64,
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Serve { listen } => {
            serve::Server::bind(listen)?.run()?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Udp(arguments) => {
            let stop = stopped_by_signal()?;
            let outcome = udp::run(
                &udp::Plan {
                    to: arguments.to,
                    count: arguments.count,
                    size: arguments.size,
                    window: arguments.window,
                    patience: Duration::from_secs(arguments.patience),
                },
                &stop,
            )?;
            println!("{}", serde_json::to_string(&outcome)?);
            eprintln!("{outcome}");
            Ok(exit_code(outcome.passed))
        }
        Command::Tcp(arguments) => {
            // What has an end of its own is ended by a signal at once.
            let (stop, send, receive) = if arguments.endless {
                (stopped_by_signal()?, tcp::ENDLESS, tcp::ENDLESS)
            } else {
                (Arc::default(), arguments.send, arguments.receive)
            };
            let outcome = tcp::run(
                &tcp::Plan {
                    to: arguments.to,
                    send,
                    receive,
                    patience: Duration::from_secs(arguments.patience),
                },
                &stop,
            )?;
            println!("{}", serde_json::to_string(&outcome)?);
            eprintln!("{outcome}");
            Ok(exit_code(outcome.passed))
        }
        Command::Kicks { interface } => {
            println!("{}", kicks::count(&interface)?);
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Becomes true when the run is to be brought to its end.
fn stopped_by_signal() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .context("cannot catch the signal that ends the run")?;
    }
    Ok(stop)
}

fn exit_code(passed: bool) -> ExitCode {
    if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
