// SPDX-License-Identifier: GPL-2.0
//! Single virtqueues move between workers as devices do.

use std::fs::OpenOptions;
use std::io::Write;

use super::chaos::expect_short_moves;
use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use vhost_iocm_selftests::control::{virtqueue, Control};
use vhost_iocm_selftests::counters::Counters;
use vhost_iocm_selftests::device::{Device, RECEIVE, TRANSMIT};
use vhost_iocm_selftests::ktap::{diagnostic, Suite};
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::refusal::{expect_refused, MALFORMED_WORKERS};
use vhost_iocm_selftests::traffic::{Background, Direction, Traffic};

/// Frames in each direction.
const FRAMES: u64 = 50;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case(
        "a virtqueue is on the worker that it was moved to, and its sibling is not",
        move || split(options, control),
    );

    suite.case(
        "a virtqueue is served by its own worker and by no other",
        move || served(options, control),
    );

    suite.case("moving a device moves all its virtqueues", move || {
        let first = control.restore()?;
        let second = control.create_worker(-1)?;
        let (_device, name) = control.device_made_by(|| Device::open(&options.node))?;
        for (apart, together) in [(&second, &first), (&first, &second)] {
            control.move_virtqueue(&virtqueue(&name, TRANSMIT), apart)?;
            control.move_device(&name, together)?;
            expect_placed(control, &name, [together, together])?;
        }
        control.restore().map(drop)
    });

    suite.case(
        "what is no worker to move a virtqueue to is refused, and nothing changes",
        move || {
            let first = control.restore()?;
            let second = control.create_worker(-1)?;
            let (_device, name) = control.device_made_by(|| Device::open(&options.node))?;
            // Once with its virtqueues together, and once apart.
            for place in [&first, &second] {
                let moved = virtqueue(&name, TRANSMIT);
                control.move_virtqueue(&moved, place)?;
                let file = format!("vq/{moved}/worker");
                for text in MALFORMED_WORKERS {
                    expect_refused(control, &file, text, Errno::EINVAL)?;
                }
                for several in ["w.0\tw.1", "w.0 w.1"] {
                    expect_refused(control, &file, several, Errno::EINVAL)?;
                }
                expect_refused(control, &file, "w.999999", Errno::ENOENT)?;
                let locked = control.create_worker(-1)?;
                control.set(&format!("worker/{locked}/locked"), "1")?;
                expect_refused(control, &file, &locked, Errno::EBUSY)?;
            }
            control.restore().map(drop)
        },
    );

    suite.case(
        "a file of a virtqueue that is held open outlives it and says so",
        move || {
            let first = control.restore()?;
            let (device, name) = control.device_made_by(|| Device::open(&options.node))?;
            let path = control.path(&format!("vq/{}/worker", virtqueue(&name, TRANSMIT)));
            let mut file = OpenOptions::new().write(true).open(path)?;
            file.write_all(first.as_bytes())?;
            drop(device);
            let answer = file.write(first.as_bytes());
            let errno = answer.err().and_then(|error| error.raw_os_error());
            ensure!(
                errno == Some(Errno::ENODEV as i32),
                "moving a virtqueue that is gone gave {errno:?}"
            );
            Ok(())
        },
    );

    suite.case("a virtqueue moves in every state of its life", move || {
        states(options, control)
    });

    let moves = options.volume(2000, 200);
    suite.case(
        format!("{moves} moves of single virtqueues under two-way traffic lose nothing"),
        move || under_traffic(options, control, moves),
    );
}

/// Checks where the virtqueues of a device are, by everything that says it.
fn expect_placed(control: &Control, device: &str, workers: [&String; 2]) -> Result<()> {
    for (index, worker) in [RECEIVE, TRANSMIT].into_iter().zip(workers) {
        let name = virtqueue(device, index);
        let said = control.read_line(&format!("vq/{name}/worker"))?;
        let status = control.read_status(&format!("vq/{name}/status"))?;
        ensure!(
            said == *worker && status.get("worker") == Some(worker),
            "{name} says {said}, its status {:?}, expected {worker}",
            status.get("worker")
        );
    }
    let mut expected = workers.to_vec();
    expected.dedup();
    let mut said = control.read_list(&format!("dev/{device}/worker"))?;
    // The order is not promised.
    expected.sort();
    said.sort();
    ensure!(
        said.iter().eq(expected.iter().copied()),
        "{device} is on {said:?}, expected {expected:?}"
    );
    for worker in control.workers()? {
        let list = control.read_list(&format!("worker/{worker}/dev_list"))?;
        let listed = list.iter().filter(|listed| *listed == device).count();
        let there = usize::from(expected.contains(&&worker));
        ensure!(
            listed == there,
            "{worker} lists {device} {listed} times, expected {there}"
        );
    }
    Ok(())
}

fn split(options: &Options, control: &Control) -> Result<()> {
    let workers = [
        control.restore()?,
        control.create_worker(0)?,
        control.create_worker(-1)?,
    ];
    let (mut nic, name) =
        control.device_made_by(|| Nic::new(&options.node, NicOptions::default()))?;
    expect_placed(control, &name, [&workers[0], &workers[0]])?;
    for receive in &workers {
        // With and without the newline that echo writes.
        let text = format!("{receive}\n");
        control.set(&format!("vq/{}/worker", virtqueue(&name, RECEIVE)), &text)?;
        for transmit in &workers {
            control.move_virtqueue(&virtqueue(&name, TRANSMIT), transmit)?;
            expect_placed(control, &name, [receive, transmit])?;
            Traffic::new(&mut nic, Direction::Both)?
                .run(FRAMES)
                .with_context(|| format!("{receive} receives, {transmit} transmits"))?;
        }
    }
    drop(nic);
    control.restore().map(drop)
}

fn served(options: &Options, control: &Control) -> Result<()> {
    let first = control.restore()?;
    let second = control.create_worker(-1)?;
    let (mut nic, name) =
        control.device_made_by(|| Nic::new(&options.node, NicOptions::default()))?;
    for (transmits, receives) in [(&first, &second), (&second, &first)] {
        control.move_virtqueue(&virtqueue(&name, TRANSMIT), transmits)?;
        control.move_virtqueue(&virtqueue(&name, RECEIVE), receives)?;
        for (direction, busy, idle) in [
            (Direction::Transmit, transmits, receives),
            (Direction::Receive, receives, transmits),
        ] {
            let look = |worker| {
                Counters::expect_rest(control, worker)?;
                Counters::of_worker(control, worker)?.get("works")
            };
            let before = (look(busy)?, look(idle)?);
            Traffic::new(&mut nic, direction)?.run(FRAMES)?;
            let works = (look(busy)? - before.0, look(idle)? - before.1);
            ensure!(
                works.0 > 0 && works.1 == 0,
                "{direction:?}: {busy} served {} slices, {idle} {}",
                works.0,
                works.1
            );
        }
    }
    drop(nic);
    control.restore().map(drop)
}

fn states(options: &Options, control: &Control) -> Result<()> {
    let first = control.restore()?;
    let second = control.create_worker(0)?;
    let (opened, name) = control.device_made_by(|| Device::open(&options.node))?;
    let move_round = |when: &str| -> Result<()> {
        let steps = [(&second, &first), (&second, &second), (&first, &second)];
        // Twice to the last one: the second time it is there already.
        for (receive, transmit) in steps.into_iter().chain([steps[2], (&first, &first)]) {
            control.move_virtqueue(&virtqueue(&name, RECEIVE), receive)?;
            control.move_virtqueue(&virtqueue(&name, TRANSMIT), transmit)?;
            expect_placed(control, &name, [receive, transmit]).context(when.to_owned())?;
        }
        Ok(())
    };
    move_round("without owner")?;
    let mut nic = Nic::prepare(opened, NicOptions::default())?;
    move_round("all set, without backends")?;
    nic.start()?;
    Traffic::new(&mut nic, Direction::Both)?.run(FRAMES)?;
    move_round("idle")?;
    for mode in ["1", "auto", "0"] {
        control.set_poll_of_device(&name, mode)?;
        Traffic::new(&mut nic, Direction::Both)?.run(FRAMES)?;
        move_round(&format!("polling {mode}"))?;
    }
    control.set(&format!("dev/{name}/home"), "1")?;
    Traffic::new(&mut nic, Direction::Both)?.run(FRAMES)?;
    move_round("at home")?;
    control.set(&format!("dev/{name}/home"), "0")?;
    Traffic::new(&mut nic, Direction::Both)?.run(FRAMES)?;
    nic.stop_queue(&nic.receive)?;
    move_round("half stopped")?;
    nic.stop()?;
    move_round("stopped")?;
    nic.device.reset_owner()?;
    move_round("given up")?;
    drop(nic);
    control.restore().map(drop)
}

fn under_traffic(options: &Options, control: &Control, moves: u32) -> Result<()> {
    let workers = [
        control.restore()?,
        control.create_worker(0)?,
        control.create_worker(-1)?,
    ];
    let (mut nic, name) =
        control.device_made_by(|| Nic::new(&options.node, NicOptions::default()))?;
    let sent = std::thread::scope(|scope| {
        let traffic = Background::start(scope, &mut nic)?;
        let moved = (0..moves as usize).try_for_each(|turn| {
            traffic.advance(1)?;
            // Steps of different length, so that the two meet and part in every combination.
            let (index, step) = [(RECEIVE, 1), (TRANSMIT, 2)][turn % 2];
            let worker = &workers[turn / 2 * step % workers.len()];
            control
                .move_virtqueue(&virtqueue(&name, index), worker)
                .with_context(|| format!("move {turn}"))
        });
        let moved = moved.and_then(|()| traffic.advance(2));
        traffic.conclude(moved)
    })?;
    diagnostic(format!(
        "{moves} moves: {} frames to the host and {} to the driver",
        sent.0, sent.1
    ));
    expect_short_moves(control, &name)?;
    drop(nic);
    control.restore().map(drop)
}
