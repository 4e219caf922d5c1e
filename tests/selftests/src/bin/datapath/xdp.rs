// SPDX-License-Identifier: GPL-2.0
//! Programs of XDP at the tap: what they let through, drop or send back is every frame, however long, and whole.

use anyhow::{ensure, Context, Result};
use vhost_iocm_selftests::frame;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::traffic::{Direction, Traffic};
use vhost_iocm_selftests::wire::PacketSocket;
use vhost_iocm_selftests::xdp::{self, Program};
use vhost_iocm_selftests::{interface, wait};

/// Bytes of frames: short ones, around a page with its headers, and up to the longest of a packet.
const LENGTHS: [usize; 9] = [60, 1514, 3000, 3700, 4096, 9000, 33_000, 60_000, 65_000];
/// Bytes that a program wants before a frame: more than there would be without it, and less than it is promised.
const ROOM: u8 = 200;
/// Frames of each length.
const FRAMES: u64 = 30;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options) {
    for (program, claim) in [
        (
            Program::Pass,
            "frames of all lengths that XDP lets through arrive whole",
        ),
        (
            Program::PassWithRoom(ROOM),
            "frames of all lengths have the room before them that XDP is promised",
        ),
        (
            Program::Drop,
            "frames of all lengths that XDP drops are gone",
        ),
        (
            Program::SendBack,
            "frames of all lengths that XDP sends back come back whole",
        ),
    ] {
        suite.case(claim, move || see(options, program));
    }
    suite.case(
        "programs of XDP that come and go under traffic harm no frame",
        move || come_and_go(options),
    );
}

fn card(options: &Options) -> Result<Nic> {
    let nic = NicOptions {
        transmit_length: 1 << 16,
        receive_length: 1 << 16,
        ring_size: 64,
        ..NicOptions::default()
    };
    Nic::new(&options.node, nic)
}

fn see(options: &Options, program: Program) -> Result<()> {
    let mut nic = card(options)?;
    let tap = nic.tap.name().to_owned();
    let _attached = xdp::attach(&tap, program)?;
    let mut wire = PacketSocket::new(&tap, frame::ETHERTYPE)?;
    let dropped = || interface::counter(&tap, "rx_dropped");
    for length in LENGTHS {
        let before = dropped()?;
        for sequence in 0..FRAMES {
            let frame = frame::encode(1, sequence, length);
            ensure!(nic.transmit(&frame)?, "no room for frame {sequence}");
            if program != Program::Drop {
                let arrived = match program {
                    Program::SendBack => nic.receive().map(|received| received.packet),
                    _ => wire.expect(),
                };
                let arrived = arrived.with_context(|| format!("frame of {length} bytes"))?;
                ensure!(arrived == frame, "a frame of {length} bytes is another one");
                nic.replenish()?;
            }
        }
        nic.reclaim_all()?;
        // Stock vhost_net has long ones dropped where nobody counts them.
        if program == Program::Drop && !options.stock {
            wait::until("the frames to be dropped", || {
                Ok(dropped()? >= before + FRAMES)
            })?;
        }
        // Nobody else sees it, and nobody twice.
        ensure!(wire.receive()?.is_none(), "a frame of {length} bytes");
        ensure!(nic.take_received()?.is_none(), "a frame of {length} bytes");
    }
    Ok(())
}

/// Where there is a program the tap wants more room before a frame.
fn come_and_go(options: &Options) -> Result<()> {
    let mut nic = card(options)?;
    let tap = nic.tap.name().to_owned();
    for _ in 0..options.volume(50, 8) {
        let program = xdp::attach(&tap, Program::Pass)?;
        Traffic::new(&mut nic, Direction::Both)?.run(20)?;
        drop(program);
        Traffic::new(&mut nic, Direction::Both)?.run(20)?;
    }
    Ok(())
}
