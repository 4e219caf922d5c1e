// SPDX-License-Identifier: GPL-2.0
//! Writers, readers, and devices that come and go, all at once.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{bail, ensure, Context, Result};
use nix::errno::Errno;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::device::Device;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::traffic::Background;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case("devices move while they are opened and closed", move || {
        let rounds = options.volume(200, 15);
        let first = control.restore()?;
        let workers = [first, control.create_worker(0)?, control.create_worker(-1)?];
        race(
            control,
            || open_and_close(options, rounds),
            &[&|| {
                for device in control.devices()? {
                    for worker in &workers {
                        // The device may have gone since it was listed.
                        let answer = control.write(&format!("dev/{device}/worker"), worker);
                        expect(answer, &[Errno::ENOENT, Errno::ENODEV])?;
                    }
                }
                Ok(())
            }],
        )
    });

    suite.case(
        "workers come and go while devices are opened and closed",
        move || {
            let rounds = options.volume(200, 15);
            let first = control.restore()?;
            race(
                control,
                || open_and_close(options, rounds),
                &[&|| {
                    let worker = control.create_worker(-1)?;
                    control.set("worker/default", &worker)?;
                    control.set(&format!("worker/{worker}/locked"), "1")?;
                    for device in control.read_list(&format!("worker/{worker}/dev_list"))? {
                        let answer = control.write(&format!("dev/{device}/worker"), &first);
                        expect(answer, &[Errno::ENOENT, Errno::ENODEV])?;
                    }
                    // A device that was being opened may still have arrived. It goes by itself.
                    expect(control.write("worker/remove", &worker), &[Errno::EBUSY])
                }],
            )
        },
    );

    suite.case(
        "files are read while what they belong to goes away",
        move || {
            let rounds = options.volume(200, 15);
            control.restore()?;
            race(
                control,
                || open_and_close(options, rounds),
                &[&|| control.snapshot().map(drop).or_else(gone), &|| {
                    for device in control.devices()? {
                        control
                            .read(&format!("dev/{device}/status"))
                            .map(drop)
                            .or_else(gone)?;
                    }
                    Ok(())
                }],
            )
        },
    );

    suite.case(
        "two writers create, lock and remove at once, under traffic",
        move || {
            let rounds = options.volume(100, 10);
            let first = control.restore()?;
            let mut nic = Nic::new(&options.node, NicOptions::default())?;
            let device = control.device_of(nic.tap.name())?;
            let result = std::thread::scope(|scope| {
                let traffic = Background::start(scope, &mut nic)?;
                let writer = || -> Result<()> {
                    for _ in 0..rounds {
                        control.set("worker/create", "-1")?;
                        for worker in control.workers()? {
                            if worker == first {
                                continue;
                            }
                            let gone = [Errno::ENOENT, Errno::ENODEV, Errno::EBUSY];
                            let move_to =
                                |to: &str| control.write(&format!("dev/{device}/worker"), to);
                            expect(move_to(&worker), &gone)?;
                            let lock = control.write(&format!("worker/{worker}/locked"), "1");
                            expect(lock, &gone)?;
                            expect(move_to(&first), &gone)?;
                            expect(control.write("worker/remove", &worker), &gone)?;
                        }
                    }
                    Ok(())
                };
                let writers = [scope.spawn(writer), scope.spawn(writer)];
                let written = writers.into_iter().try_for_each(|thread| {
                    thread.join().unwrap_or_else(|_| bail!("a writer panicked"))
                });
                let written = written.and_then(|()| traffic.advance(2));
                traffic.conclude(written)
            });
            drop(nic);
            control.restore()?;
            result.map(drop)
        },
    );
}

/// Accepts success and these errors.
fn expect(answer: Result<(), Errno>, errors: &[Errno]) -> Result<()> {
    match answer {
        Err(errno) if !errors.contains(&errno) => bail!("the answer is {errno:?}"),
        _ => Ok(()),
    }
}

/// Accepts that a file is no longer there.
fn gone(error: anyhow::Error) -> Result<()> {
    let errno = error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::raw_os_error);
    match errno.map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ENODEV) => Ok(()),
        _ => Err(error),
    }
}

/// Opens and closes devices in every state.
fn open_and_close(options: &Options, rounds: u32) -> Result<()> {
    for round in 0..rounds {
        let device = Device::open(&options.node)?;
        if round % 2 == 0 {
            device.set_owner()?;
        }
        if round % 4 == 0 {
            device.reset_owner()?;
        }
        if round % 10 == 0 {
            drop(Nic::new(&options.node, NicOptions::default())?);
        }
    }
    Ok(())
}

/// Repeats the disturbances, each in a thread of its own, until what they disturb is done twice over,
/// and checks that everything is as it was before.
fn race(
    control: &Control,
    disturbed: impl Fn() -> Result<()> + Sync,
    disturbances: &[&(dyn Fn() -> Result<()> + Sync)],
) -> Result<()> {
    let before = control.devices()?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let threads: Vec<_> = disturbances
            .iter()
            .map(|disturb| {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        disturb()?;
                    }
                    Ok(())
                })
            })
            .collect();
        let workers = [scope.spawn(&disturbed), scope.spawn(&disturbed)];
        let mut results: Vec<Result<()>> = Vec::new();
        for worker in workers {
            results.push(worker.join().unwrap_or_else(|_| bail!("panicked")));
        }
        done.store(true, Ordering::Relaxed);
        for thread in threads {
            results.push(thread.join().unwrap_or_else(|_| bail!("panicked")));
        }
        results.into_iter().collect::<Result<()>>()
    })?;
    let after = control.devices()?;
    ensure!(
        after == before,
        "devices before: {before:?}, after: {after:?}"
    );
    control.restore().context("afterwards").map(drop)
}
