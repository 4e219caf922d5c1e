// SPDX-License-Identifier: GPL-2.0
//! The files of the tree: names, modes and what can be read.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileExt, PermissionsExt};

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use vhost_iocm_selftests::control::Control;
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
    ("worker/w.N/cpu", READ),
    ("worker/w.N/cpus", READ_WRITE),
    ("worker/w.N/node", READ),
    ("worker/w.N/pid", READ),
    ("worker/w.N/locked", READ_WRITE),
    ("worker/w.N/dev_list", READ),
    ("worker/w.N/status", READ),
    ("dev/d.N/worker", READ_WRITE),
    ("dev/d.N/owner", READ),
    ("dev/d.N/vq_list", READ),
    ("dev/d.N/weight", READ_WRITE),
    ("dev/d.N/max_time_share", READ_WRITE),
    ("dev/d.N/home", READ_WRITE),
    ("dev/d.N/status", READ),
    ("vq/vq.D.Q/dev", READ),
    ("vq/vq.D.Q/worker", READ_WRITE),
    ("vq/vq.D.Q/poll", READ_WRITE),
    ("vq/vq.D.Q/can_poll", READ),
    ("vq/vq.D.Q/status", READ),
];

const WORKER_STATUS: &[&str] = &[
    "cpu", "cpus", "node", "pid", "locked", "default", "dev_list",
];
const WORKER_COUNTERS: &[&str] = &[
    "loops",
    "works",
    "mm_switches",
    "wait",
    "busy_ns",
    "idle_ns",
    "stolen_ns",
    "polls",
    "empty_polls",
    "empty_poll_ns",
    "polled",
    "total_work_cycles",
    "poll_cycles",
    "notif_cycles",
    "pending_ns_max",
    "pending_ns_avg",
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
];
const VIRTQUEUE_STATUS: &[&str] = &[
    "dev",
    "worker",
    "poll",
    "can_poll",
    "pending_ns_max",
    "pending_ns_avg",
];
const COUNTERS: &[&str] = &[
    "handled_packets",
    "handled_bytes",
    "kicks",
    "interrupts",
    "notif_works",
    "notif_cycles",
    "notif_bytes",
    "notif_limited",
    "poll_kicks",
    "poll_cycles",
    "poll_bytes",
    "poll_limited",
    "polls",
    "poll_empty",
    "poll_empty_cycles",
    "parks",
    "ring_full",
    "served_ns",
    "home_ns",
    "home_works",
    "left_fault",
    "left_backend",
    "left_home",
    "mm_switches",
    "errors",
    "drops",
];

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case("every file is there and has its mode", move || {
        control.restore()?;
        let (nic, device) =
            control.device_made_by(|| Nic::new(&options.node, NicOptions::default()))?;
        let worker = control.read_line(&format!("dev/{device}/worker"))?;
        let virtqueue = format!("vq.{}.1", device.trim_start_matches("d."));
        let counters = |directory: &'static str, names: &'static [&str]| {
            names
                .iter()
                .map(move |name| (format!("{directory}/{name}"), READ))
        };
        let files = FILES
            .iter()
            .map(|(name, mode)| ((*name).to_owned(), *mode))
            .chain(counters("worker/w.N", WORKER_COUNTERS))
            .chain(counters("vq/vq.D.Q", COUNTERS));
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
        let number = device.trim_start_matches("d.");
        let names = |file: &str| -> Result<BTreeSet<String>> {
            Ok(control.read_status(file)?.into_keys().collect())
        };
        let expect = |file: &str, own: &[&str], counters: &[&str]| {
            let expected: BTreeSet<_> = own
                .iter()
                .chain(counters)
                .map(|name| (*name).to_owned())
                .collect();
            let found = names(file)?;
            ensure!(
                found == expected,
                "{file} has {found:?}, expected {expected:?}"
            );
            Ok(())
        };
        let of_worker = format!("worker/{worker}/status");
        expect(&of_worker, WORKER_STATUS, WORKER_COUNTERS)?;
        expect(&format!("dev/{device}/status"), DEVICE_STATUS, COUNTERS)?;
        for index in 0..2 {
            let file = format!("vq/vq.{number}.{index}/status");
            expect(&file, VIRTQUEUE_STATUS, COUNTERS)?;
            for counter in COUNTERS {
                control.read_counter(&file, counter)?;
            }
        }
        for counter in WORKER_COUNTERS {
            control.read_counter(&of_worker, counter)?;
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
