// SPDX-License-Identifier: GPL-2.0
//! Owners die by SIGKILL under traffic, and nothing of them stays.

use std::process::ExitCode;

use anyhow::{ensure, Context, Result};
use clap::Parser;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::frame;
use vhost_iocm_selftests::ktap::{diagnostic, Suite};
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::process::Owner;
use vhost_iocm_selftests::tap;
use vhost_iocm_selftests::traffic::{Background, WINDOW};
use vhost_iocm_selftests::wait;
use vhost_iocm_selftests::wire::PacketSocket;

const KILLS: u32 = 50;

#[derive(Parser)]
struct Arguments {
    /// How many owners are killed.
    #[arg(long, default_value_t = KILLS)]
    kills: u32,

    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let Arguments { kills, options } = Arguments::parse();
    let mut suite = Suite::new();
    suite.case(
        format!("{kills} owners killed under traffic leave nothing and disturb nobody"),
        || kill_owners(&options, kills),
    );
    suite.run(&options.filters)
}

fn kill_owners(options: &Options, kills: u32) -> Result<()> {
    let control = (!options.stock).then(Control::default);
    if let Some(control) = &control {
        control.restore()?;
    }
    let mut survivor = Nic::new(&options.node, NicOptions::default())?;
    let before = control.as_ref().map(Control::devices).transpose()?;
    let sent = std::thread::scope(|scope| {
        let traffic = Background::start(scope, &mut survivor)?;
        let killed = (0..kills).try_for_each(|turn| {
            traffic.advance(1)?;
            kill_one(options, turn).with_context(|| format!("owner {turn}"))
        });
        let killed = killed.and_then(|()| traffic.advance(1));
        traffic.conclude(killed)
    })?;
    diagnostic(format!(
        "{kills} kills: the other device carried {} frames to the host and {} to the driver",
        sent.0, sent.1
    ));
    if let (Some(control), Some(before)) = (control, before) {
        let after = control.devices()?;
        ensure!(
            after == before,
            "before the kills: {before:?}, after: {after:?}"
        );
    }
    Ok(())
}

fn kill_one(options: &Options, turn: u32) -> Result<()> {
    let interface = format!("killed{turn}");
    let owner = Owner::reflect(&options.node, &interface)?;
    let mut wire = PacketSocket::new(&interface, frame::ETHERTYPE)?;
    let mut account = frame::Account::default();
    let mut sent = 0;
    // A different number each time, so that the end comes at different places of the rings.
    let reflected = 10 + u64::from(turn * 7 % 50);
    while account.received < reflected {
        while sent - account.received < WINDOW / 2 {
            ensure!(wire.send(&frame::encode(2, sent, 200))?, "the wire is full");
            sent += 1;
        }
        account.note(frame::decode(&wire.expect()?)?.sequence);
    }
    let in_order =
        account.duplicated == 0 && account.reordered == 0 && account.received == reflected;
    ensure!(in_order, "reflected out of order: {account:?}");
    if !options.stock {
        let control = Control::default();
        let device = control.device_of(&interface)?;
        let shown = control.read_line(&format!("dev/{device}/owner"))?;
        ensure!(
            shown == owner.pid().to_string(),
            "the owner of {device} is {shown}"
        );
    }
    // Half a window of frames is still on its way.
    let status = owner.kill()?;
    ensure!(
        status.code().is_none(),
        "the owner was not killed: {status}"
    );
    wait::until("the tap of the killed owner to go", || {
        Ok(!tap::interface_exists(&interface))
    })?;
    if options.stock {
        return Ok(());
    }
    wait::until("the device of the killed owner to go", || {
        Ok(Control::default().device_of(&interface).is_err())
    })
}
