// SPDX-License-Identifier: GPL-2.0
//! What the tap alone takes of serving large packets: the same packets written to a tap, and read from one, by a
//! process (tier T1). Both modules call the same functions of tun for them, so neither can do with less.

use anyhow::{ensure, Context, Result};
use nix::sys::time::TimeValLike;
use nix::time::{clock_gettime, ClockId};
use nix::unistd::{read, write};
use vhost_iocm_selftests::segment;
use vhost_iocm_selftests::tap::Tap;
use vhost_iocm_selftests::wire::PacketSocket;

use crate::counts::ROUNDS;
use crate::pairs::Wanted;
use crate::record::{Record, Tier};
use crate::workload::{Direction, SHAPES};

/// Packets of a measurement.
const PACKETS: u32 = 320;

/// Measures the metrics that are wanted.
pub fn run(wanted: &Wanted) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for direction in Direction::ALL {
        let metric = format!("t1_{}64k_insns_per_byte_tap", direction.name());
        if wanted.has(&metric) {
            let costs: Vec<_> = (0..ROUNDS)
                .map(|_| measure(direction))
                .collect::<Result<_>>()?;
            records.push(Record::new(Tier::T1, metric, &costs));
        }
    }
    Ok(records)
}

/// Instructions of one byte.
fn measure(direction: Direction) -> Result<f64> {
    let [.., shape] = &SHAPES;
    let tap = Tap::new(&shape.card().tap)?;
    let wire = PacketSocket::with_header(tap.name(), 0)?;
    let (header, packet) = segment::unheard(shape.length);
    let whole = [header.encode(true), packet.clone()].concat();
    let mut buffer = vec![0; whole.len()];
    let mut ran = 0;
    for _ in 0..PACKETS {
        match direction {
            Direction::Transmit => {
                let start = now()?;
                let length = write(&tap, &whole).context("write to the tap")?;
                ran += now()? - start;
                ensure!(length == whole.len(), "a packet was cut");
            }
            Direction::Receive => {
                ensure!(wire.send_with(&header, &packet)?, "the wire is full");
                let start = now()?;
                let length = read(&tap, &mut buffer).context("read from the tap")?;
                ran += now()? - start;
                ensure!(length == whole.len(), "a packet was cut");
            }
        }
    }
    Ok(shape.divide(ran as f64, f64::from(PACKETS)))
}

/// For how many nanoseconds, which are instructions, this thread has run.
fn now() -> Result<i64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("clock")?;
    Ok(time.num_nanoseconds())
}
