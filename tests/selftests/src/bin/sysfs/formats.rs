// SPDX-License-Identifier: GPL-2.0
//! The files of the tree: names, modes and what can be read.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileExt, PermissionsExt};

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use vhost_iocm_selftests::control::{virtqueue, Control};
use vhost_iocm_selftests::counters::{Counters, AGES, OF_DEVICE, OF_WORKER};
use vhost_iocm_selftests::device::{RECEIVE, TRANSMIT};
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::refusal::expect_refused;
use vhost_iocm_selftests::wait;

const READ: u32 = 0o444;
const WRITE: u32 = 0o200;
const READ_WRITE: u32 = 0o644;

/// Files by directory, with their modes. N, D and Q stand for numbers.
const FILES: &[(&str, u32)] = &[
    ("epoch", READ_WRITE),
    ("cycles", READ),
    ("nr_iocores", READ),
    ("iocores_utilization", READ),
    ("worker/create", READ_WRITE),
    ("worker/remove", WRITE),
    ("worker/default", READ_WRITE),
    ("worker/placement", READ_WRITE),
    ("worker/w.N/cpu", READ),
    ("worker/w.N/cpus", READ_WRITE),
    ("worker/w.N/wanted_cpus", READ),
    ("worker/w.N/displaced", READ),
    ("worker/w.N/node", READ),
    ("worker/w.N/pid", READ),
    ("worker/w.N/nice", READ_WRITE),
    ("worker/w.N/priority", READ_WRITE),
    ("worker/w.N/locked", READ_WRITE),
    ("worker/w.N/group", READ_WRITE),
    ("worker/w.N/work_list_max_stuck_cycles", READ_WRITE),
    ("worker/w.N/max_disabled_soft_interrupts_cycles", READ_WRITE),
    ("worker/w.N/state", READ_WRITE),
    ("worker/w.N/load", READ),
    ("worker/w.N/pending_ns_now", READ),
    ("worker/w.N/dev_list", READ),
    ("worker/w.N/status", READ),
    ("dev/d.N/worker", READ_WRITE),
    ("dev/d.N/owner", READ),
    ("dev/d.N/vq_list", READ),
    ("dev/d.N/weight", READ_WRITE),
    ("dev/d.N/max_time_share", READ_WRITE),
    ("dev/d.N/home", READ_WRITE),
    ("dev/d.N/placed", READ),
    ("dev/d.N/delay_per_work", READ_WRITE),
    ("dev/d.N/delay_per_kbyte", READ_WRITE),
    ("dev/d.N/status", READ),
    ("vq/vq.D.Q/dev", READ),
    ("vq/vq.D.Q/worker", READ_WRITE),
    ("vq/vq.D.Q/poll", READ_WRITE),
    ("vq/vq.D.Q/home", READ_WRITE),
    ("vq/vq.D.Q/can_poll", READ),
    ("vq/vq.D.Q/last_poll_cycles", READ),
    ("vq/vq.D.Q/min_processed_data_limit", READ_WRITE),
    ("vq/vq.D.Q/max_processed_data_limit", READ_WRITE),
    ("vq/vq.D.Q/max_stuck_pending_items", READ_WRITE),
    ("vq/vq.D.Q/max_stuck_cycles", READ_WRITE),
    ("vq/vq.D.Q/min_poll_rate", READ_WRITE),
    ("vq/vq.D.Q/pending_ns_now", READ),
    ("vq/vq.D.Q/status", READ),
];

/// Lines of the status files beside the counters.
const WORKER_STATUS: &[&str] = &[
    "cpu",
    "cpus",
    "wanted_cpus",
    "displaced",
    "node",
    "pid",
    "nice",
    "priority",
    "locked",
    "default",
    "group",
    "state",
    "load",
    "work_list_max_stuck_cycles",
    "max_disabled_soft_interrupts_cycles",
    "pending_ns_now",
    "dev_list",
];
const DEVICE_STATUS: &[&str] = &[
    "worker",
    "owner",
    "comm",
    "home_pid",
    "backend",
    "weight",
    "max_time_share",
    "home",
    "placed",
    "delay_per_work",
    "delay_per_kbyte",
    "pending_ns_max",
    "pending_ns_avg",
];
const VIRTQUEUE_STATUS: &[&str] = &[
    "dev",
    "worker",
    "poll",
    "home",
    "can_poll",
    "last_poll_cycles",
    "min_processed_data_limit",
    "max_processed_data_limit",
    "max_stuck_pending_items",
    "max_stuck_cycles",
    "min_poll_rate",
    "pending_ns_now",
    "move_ns_max",
    "move_slices_max",
];

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case("every file is there and has its mode", move || {
        control.restore()?;
        let (nic, device) =
            control.device_made_by(|| Nic::new(&options.node, NicOptions::default()))?;
        let worker = control.read_line(&format!("dev/{device}/worker"))?;
        let virtqueue = virtqueue(&device, TRANSMIT);
        let counters = |directory: &'static str, names: &[&[&'static str]]| {
            let names = names.concat().into_iter();
            names.map(move |name| (format!("{directory}/{name}"), READ))
        };
        let files = FILES
            .iter()
            .map(|(name, mode)| ((*name).to_owned(), *mode))
            .chain(counters("worker/w.N", &[OF_WORKER, AGES]))
            .chain(counters("vq/vq.D.Q", &[OF_DEVICE, AGES]));
        for (name, mode) in files {
            let name = name
                .replace("w.N", &worker)
                .replace("d.N", &device)
                .replace("vq.D.Q", &virtqueue);
            let found = std::fs::metadata(control.path(&name))
                .with_context(|| format!("{name} is missing"))?
                .permissions()
                .mode()
                & 0o7777;
            ensure!(
                found == mode,
                "{name} has mode {found:o}, expected {mode:o}"
            );
        }
        drop(nic);
        Ok(())
    });

    suite.case("status files have exactly their names", move || {
        let (nic, device) =
            control.device_made_by(|| Nic::new(&options.node, NicOptions::default()))?;
        let worker = control.read_line(&format!("dev/{device}/worker"))?;
        let names = |file: &str| -> Result<BTreeSet<String>> {
            Ok(control.read_status(file)?.into_keys().collect())
        };
        let expect = |file: &str, expected: &[&[&str]]| {
            let expected = expected.concat().into_iter().map(str::to_owned);
            let expected: BTreeSet<_> = expected.collect();
            let found = names(file)?;
            ensure!(
                found == expected,
                "{file} has {found:?}, expected {expected:?}"
            );
            Ok(())
        };
        let worker_status = format!("worker/{worker}/status");
        expect(&worker_status, &[WORKER_STATUS, OF_WORKER, AGES])?;
        Counters::of_worker(control, &worker)?;
        expect(&format!("dev/{device}/status"), &[DEVICE_STATUS, OF_DEVICE])?;
        Counters::of_device(control, &device)?;
        for index in [RECEIVE, TRANSMIT] {
            let name = virtqueue(&device, index);
            let file = format!("vq/{name}/status");
            expect(&file, &[VIRTQUEUE_STATUS, OF_DEVICE, AGES])?;
            Counters::of_virtqueue(control, &name)?;
        }
        drop(nic);
        Ok(())
    });

    suite.case(
        "the epoch grows by one with every 1, and takes nothing else",
        move || {
            let epoch = || Ok::<u64, anyhow::Error>(control.read_line("epoch")?.parse()?);
            let start = epoch()?;
            for (turn, text) in ["1", "1\n", "1"].into_iter().enumerate() {
                control.set("epoch", text)?;
                let now = epoch()?;
                ensure!(
                    now == start + turn as u64 + 1,
                    "after {turn} ones the epoch is {now}"
                );
            }
            for text in [
                "0", "2", "-1", "x", "11", "1 ", " 1", "\n", "1\n\n", "1\0", "+1x",
            ] {
                expect_refused(control, "epoch", text, Errno::EINVAL)?;
            }
            Ok(())
        },
    );

    suite.case("cycles grow", move || {
        let cycles = || Ok::<u64, anyhow::Error>(control.read_line("cycles")?.parse()?);
        let (first, second) = (cycles()?, cycles()?);
        ensure!(first < second, "{first} cycles, then {second}");
        Ok(())
    });

    suite.case("nr_iocores is the number of workers", move || {
        control.restore()?;
        for expected in 1..4 {
            let (said, found) = (control.read_line("nr_iocores")?, control.workers()?.len());
            ensure!(
                said == expected.to_string() && found == expected,
                "nr_iocores says {said}, {found} workers are there, expected {expected}"
            );
            control.create_worker(-1)?;
        }
        control.restore().map(drop)
    });

    suite.case(
        "files that cannot be written refuse it, and the other way round",
        move || {
            for (name, mode) in FILES.iter().filter(|(name, _)| !name.contains('.')) {
                let path = control.path(name);
                // Root passes every mode; what is left is that the file has no such operation.
                if *mode == READ {
                    let answer = control.write(name, "1");
                    ensure!(answer.is_err(), "{name} took a write");
                }
                if *mode == WRITE {
                    ensure!(std::fs::read(&path).is_err(), "{name} could be read");
                }
            }
            Ok(())
        },
    );

    suite.case("a file read in pieces says the same as in one", move || {
        let (nic, device) =
            control.device_made_by(|| Nic::new(&options.node, NicOptions::default()))?;
        let name = format!("dev/{device}/status");
        let mut same = false;
        wait::until("the device to rest", || {
            let whole = control.read(&name)?;
            let file = std::fs::File::open(control.path(&name))?;
            let mut pieces = Vec::new();
            let mut piece = [0; 7];
            loop {
                let length = file.read_at(&mut piece, pieces.len() as u64)?;
                if length == 0 {
                    break;
                }
                pieces.extend_from_slice(&piece[..length]);
            }
            same = whole.as_bytes() == pieces;
            Ok(same)
        })?;
        drop(nic);
        Ok(())
    });
}
