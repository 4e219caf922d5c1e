// SPDX-License-Identifier: GPL-2.0
//! A worker is removed with all that it serves.

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use vhost_iocm_selftests::control::{virtqueue, Control};
use vhost_iocm_selftests::device::{Device, TRANSMIT};
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::refusal::expect_refused;
use vhost_iocm_selftests::thread::Thread;
use vhost_iocm_selftests::traffic::Background;
use vhost_iocm_selftests::wait;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case(
        "removing a worker in favour of another moves all that it serves",
        move || {
            let kept = control.restore()?;
            let removed = control.create_worker(-1)?;
            let devices: Vec<_> = (0..3)
                .map(|_| control.device_made_by(|| Device::open(&options.node)))
                .collect::<Result<_>>()?;
            control.move_device(&devices[0].1, &removed)?;
            control.move_virtqueue(&virtqueue(&devices[1].1, TRANSMIT), &removed)?;
            let pid = control.read_line(&format!("worker/{removed}/pid"))?;
            control.set(&format!("worker/{removed}/locked"), "1")?;
            control.set("worker/remove", &format!("{removed} {kept}\n"))?;
            ensure!(
                !control.exists(&format!("worker/{removed}")),
                "{removed} is still there"
            );
            let thread = Thread::parse(&pid)?;
            wait::until("the worker's thread to end", || Ok(!thread.exists()))?;
            for (_, name) in &devices {
                let on = control.read_list(&format!("dev/{name}/worker"))?;
                ensure!(on == [kept.clone()], "{name} is on {on:?}");
            }
            Ok(())
        },
    );

    suite.case(
        "a removal in favour of what cannot take over is refused, and nothing changes",
        move || {
            let kept = control.restore()?;
            let removed = control.create_worker(-1)?;
            let (_device, name) = control.device_made_by(|| Device::open(&options.node))?;
            control.move_virtqueue(&virtqueue(&name, TRANSMIT), &removed)?;
            let refused = |text: &str, errno| expect_refused(control, "worker/remove", text, errno);
            let pair = format!("{removed} {kept}");
            refused(&pair, Errno::EBUSY).context("not locked")?;
            control.set(&format!("worker/{removed}/locked"), "1")?;
            refused(&removed, Errno::EBUSY).context("without a heir")?;
            for malformed in [
                format!("{pair} "),
                format!(" {pair}"),
                format!("{pair} {kept}"),
                format!("{pair}\n\n"),
                format!("{pair}\0"),
                format!("{removed}  {kept}"),
                format!("{removed},{kept}"),
                format!("{removed} 0"),
                format!("{removed} "),
                format!("{removed}\n{kept}"),
                format!("{removed} {}", name),
            ] {
                refused(&malformed, Errno::EINVAL)?;
            }
            refused(&format!("{removed} w.999999"), Errno::ENOENT)?;
            refused(&format!("w.999999 {kept}"), Errno::ENOENT)?;
            // To itself: it is locked.
            refused(&format!("{removed} {removed}"), Errno::EBUSY)?;
            let locked = control.create_worker(-1)?;
            control.set(&format!("worker/{locked}/locked"), "1")?;
            refused(&format!("{removed} {locked}"), Errno::EBUSY)?;
            control.restore().map(drop)
        },
    );

    suite.case(
        "workers are removed under traffic, in favour of each other, and nothing is lost",
        move || under_traffic(options, control, options.volume(200, 20)),
    );
}

fn under_traffic(options: &Options, control: &Control, rounds: u32) -> Result<()> {
    let mut worker = control.restore()?;
    let (mut nic, name) =
        control.device_made_by(|| Nic::new(&options.node, NicOptions::default()))?;
    let result = std::thread::scope(|scope| {
        let traffic = Background::start(scope, &mut nic)?;
        let removed = (0..rounds).try_for_each(|round| {
            traffic.advance(1)?;
            let next = control.create_worker(-1)?;
            if round % 2 == 1 {
                // Half of it has gone ahead.
                control.move_virtqueue(&virtqueue(&name, round / 2 % 2), &next)?;
            }
            control.set(&format!("worker/{worker}/locked"), "1")?;
            control
                .set("worker/remove", &format!("{worker} {next}"))
                .with_context(|| format!("round {round}"))?;
            worker = next;
            let workers = control.workers()?;
            ensure!(workers.iter().eq([&worker]), "left are {workers:?}");
            Ok(())
        });
        let removed = removed.and_then(|()| traffic.advance(2));
        traffic.conclude(removed)
    });
    drop(nic);
    control.restore()?;
    result.map(drop)
}
