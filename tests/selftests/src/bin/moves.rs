// SPDX-License-Identifier: GPL-2.0
//! Devices move between workers under traffic, and no packet notices.

use std::process::ExitCode;

use anyhow::{ensure, Context, Result};
use clap::Parser;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::device::{MRG_RXBUF, VERSION_1};
use vhost_iocm_selftests::ktap::{diagnostic, Suite};
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::{Flavour, Options};
use vhost_iocm_selftests::ring::Chaining;
use vhost_iocm_selftests::traffic::{Background, Direction, Traffic};

#[derive(Parser)]
struct Arguments {
    /// How often the device moves (default: 1000, in a debug kernel 100).
    #[arg(long)]
    moves: Option<u32>,

    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = &arguments.options;
    let moves = arguments.moves.unwrap_or(match Flavour::of_environment() {
        Flavour::Plain => 1000,
        Flavour::Debug => 100,
    });
    let mut suite = Suite::new();

    suite.case(
        format!("{moves} moves under two-way traffic lose, duplicate and reorder nothing"),
        move || move_one(options, NicOptions::default(), moves),
    );

    suite.case(
        format!(
            "{} moves with flags and indirect chains lose nothing either",
            moves / 10
        ),
        move || {
            let nic = NicOptions {
                features: VERSION_1 | MRG_RXBUF,
                chaining: Chaining::Indirect,
                ..NicOptions::default()
            };
            move_one(options, nic, moves / 10)
        },
    );

    suite.case(
        format!(
            "{} moves of three devices at once disturb none of them",
            moves / 5
        ),
        move || move_three(options, moves / 5),
    );

    suite.case("a device moves in every state of its life", move || {
        move_states(options)
    });

    suite.run(&options.filters)
}

/// Two workers beside the one that is always there: one on each of the first two CPUs.
fn workers(control: &Control) -> Result<Vec<String>> {
    let first = control.restore()?;
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as i32);
    Ok(vec![
        first,
        control.create_worker(0)?,
        control.create_worker(1 % cpus)?,
    ])
}

fn move_one(options: &Options, nic: NicOptions, moves: u32) -> Result<()> {
    let control = Control::default();
    let workers = workers(&control)?;
    let mut nic = Nic::new(&options.node, nic)?;
    let device = control.device_of(nic.tap.name())?;
    let sent = std::thread::scope(|scope| {
        let traffic = Background::start(scope, &mut nic)?;
        let moved = (0..moves).try_for_each(|turn| {
            // Frames arrive between any two moves: each of them happens under traffic.
            traffic.advance(2)?;
            let worker = &workers[(turn as usize + 1) % workers.len()];
            control
                .move_device(&device, worker)
                .with_context(|| format!("move {turn}"))?;
            let now = control.read_line(&format!("dev/{device}/worker"))?;
            ensure!(now == *worker, "moved to {worker}, is on {now}");
            Ok(())
        });
        let moved = moved.and_then(|()| traffic.advance(2));
        traffic.conclude(moved)
    })?;
    diagnostic(format!(
        "{moves} moves: {} frames to the host and {} to the driver, none lost, duplicated or reordered",
        sent.0, sent.1
    ));
    drop(nic);
    control.restore().map(drop)
}

fn move_three(options: &Options, moves: u32) -> Result<()> {
    let control = Control::default();
    let workers = workers(&control)?;
    let card = || Nic::new(&options.node, NicOptions::default());
    let mut cards = [card()?, card()?, card()?];
    let devices = cards
        .each_ref()
        .map(|nic| control.device_of(nic.tap.name()));
    let devices: Vec<_> = devices.into_iter().collect::<Result<_>>()?;
    std::thread::scope(|scope| {
        let mut flows = Vec::new();
        for nic in &mut cards {
            flows.push(Background::start(scope, nic)?);
        }
        let moved = (0..moves as usize).try_for_each(|turn| {
            let which = turn % flows.len();
            flows[which].advance(1)?;
            // Steps of different length, so that the devices meet on a worker in every combination.
            let worker = &workers[(turn / flows.len() * (which + 1)) % workers.len()];
            control.move_device(&devices[which], worker)
        });
        let moved = moved.and_then(|()| flows.iter().try_for_each(|flow| flow.advance(2)));
        let ended: Vec<_> = flows.into_iter().map(Background::finish).collect();
        for end in ended {
            end?;
        }
        moved
    })?;
    for worker in &workers {
        for device in control.read_list(&format!("worker/{worker}/dev_list"))? {
            let on = control.read_line(&format!("dev/{device}/worker"))?;
            ensure!(on == *worker, "{worker} lists {device}, which is on {on}");
        }
    }
    drop(cards);
    control.restore().map(drop)
}

fn move_states(options: &Options) -> Result<()> {
    let control = Control::default();
    let workers = workers(&control)?;
    let move_round = |device: &str| -> Result<()> {
        // Twice to each: the second time it is there already.
        for worker in workers.iter().chain(workers.last()) {
            control.move_device(device, worker)?;
            let now = control.read_line(&format!("dev/{device}/worker"))?;
            ensure!(now == *worker, "moved to {worker}, is on {now}");
        }
        Ok(())
    };
    let (opened, device) =
        control.device_made_by(|| vhost_iocm_selftests::device::Device::open(&options.node))?;
    move_round(&device).context("without owner")?;
    let mut nic = Nic::prepare(opened, NicOptions::default())?;
    move_round(&device).context("all set, without backends")?;
    nic.start()?;
    Traffic::new(&mut nic, Direction::Both)?.run(20)?;
    move_round(&device).context("idle")?;
    Traffic::new(&mut nic, Direction::Both)?.run(20)?;
    nic.stop()?;
    move_round(&device).context("stopped")?;
    nic.device.reset_owner()?;
    move_round(&device).context("given up")?;
    drop(nic);
    ensure!(
        !control.devices()?.contains(&device),
        "{device} is still there"
    );
    control.restore().map(drop)
}
