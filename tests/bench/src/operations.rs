// SPDX-License-Identifier: GPL-2.0
//! What single operations of ours take, in instructions of an emulated machine with one processor (tier T1). Stock has
//! none of them.

use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use vhost_iocm_selftests::control::{virtqueue, Control};
use vhost_iocm_selftests::device::TRANSMIT;
use vhost_iocm_selftests::nic::{Nic, NicOptions};

use crate::pairs::Wanted;
use crate::record::{Record, Tier};
use crate::subject::Subjects;

/// Measurements of each.
const ROUNDS: usize = 9;
/// Moves, and reads, of one measurement.
const TIMES: u32 = 200;
/// For how long nothing is found.
const TIME: Duration = Duration::from_millis(50);

/// Measures the metrics that are wanted.
pub fn run(subjects: &Subjects, wanted: &Wanted) -> Result<Vec<Record>> {
    type Measure = fn(&mut Host) -> Result<f64>;
    let measures: [(&str, Measure); 3] = [
        ("t1_empty_poll_insns", Host::empty_poll),
        ("t1_move_insns", Host::move_device),
        ("t1_sysfs_read_insns", Host::read),
    ];
    let mut records = Vec::new();
    for (metric, measure) in measures {
        if wanted.has(metric) {
            let mut host = Host::new(subjects)?;
            let costs: Vec<f64> = (0..ROUNDS)
                .map(|_| measure(&mut host))
                .collect::<Result<_>>()?;
            records.push(Record::new(Tier::T1, metric.into(), &costs));
            host.end()?;
        }
    }
    Ok(records)
}

/// A device without traffic, and two workers.
struct Host {
    control: Control,
    workers: [String; 2],
    device: String,
    nic: Nic,
}

impl Host {
    fn new(subjects: &Subjects) -> Result<Self> {
        let control = Control::default();
        let workers = [control.restore()?, control.create_worker(-1)?];
        let (nic, device) =
            control.device_made_by(|| Nic::new(&subjects.ours, NicOptions::default()))?;
        control.set_poll_of_device(&device, "0")?;
        Ok(Self {
            control,
            workers,
            device,
            nic,
        })
    }

    fn end(self) -> Result<()> {
        drop(self.nic);
        self.control.restore()?;
        Ok(())
    }

    /// A look at a polled virtqueue that has nothing, as the worker accounts for it.
    fn empty_poll(&mut self) -> Result<f64> {
        let worker = format!("worker/{}", self.workers[0]);
        let control = &self.control;
        let counts = || -> Result<[u64; 2]> {
            Ok([
                control
                    .read_line(&format!("{worker}/empty_poll_ns"))?
                    .parse()?,
                control
                    .read_line(&format!("{worker}/empty_polls"))?
                    .parse()?,
            ])
        };
        let before = counts()?;
        // A worker polls what it was told to until it has found nothing for a while (`poll_idle_us`).
        self.control
            .set_poll(&virtqueue(&self.device, TRANSMIT), "1")?;
        self.nic.transmit.kick()?;
        std::thread::sleep(TIME);
        self.control
            .set_poll(&virtqueue(&self.device, TRANSMIT), "0")?;
        let after = counts()?;
        ensure!(after[1] > before[1], "nothing was polled");
        Ok((after[0] - before[0]) as f64 / (after[1] - before[1]) as f64)
    }

    /// To write a worker into the file of a device: both of its virtqueues move, and have nothing to do.
    fn move_device(&mut self) -> Result<f64> {
        let start = Instant::now();
        for time in 0..TIMES {
            let worker = &self.workers[1 - time as usize % 2];
            self.control.move_device(&self.device, worker)?;
        }
        Ok(each(start))
    }

    /// To open, read and close the file of a counter.
    fn read(&mut self) -> Result<f64> {
        let file = format!("vq/{}/kicks", virtqueue(&self.device, TRANSMIT));
        let start = Instant::now();
        for _ in 0..TIMES {
            self.control.read_line(&file)?;
        }
        Ok(each(start))
    }
}

/// Nanoseconds, which are instructions, of one time.
fn each(start: Instant) -> f64 {
    start.elapsed().as_nanos() as f64 / f64::from(TIMES)
}
