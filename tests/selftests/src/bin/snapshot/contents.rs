// SPDX-License-Identifier: GPL-2.0
//! What the records say: the same as the text files, and at every moment something consistent.

use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use vhost_iocm_engine::engine::snapshot::{Kind, COUNTERS};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::ktap::{diagnostic, Suite};
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::snapshot::{find_by, read_patiently, Copy, Snapshot};
use vhost_iocm_selftests::traffic::{Background, Direction, Traffic};
use vhost_iocm_selftests::wait;

/// Names of the counters of a virtqueue in the text files and in the snapshot. Those in cycles are
/// the same as what is in nanoseconds there, so they are left out.
const OF_VIRTQUEUE: &[(&str, &str)] = &[
    ("home", "home"),
    ("handled_packets", "packets"),
    ("handled_bytes", "bytes"),
    ("kicks", "kicks"),
    ("interrupts", "interrupts"),
    ("notif_works", "notif_works"),
    ("notif_bytes", "notif_bytes"),
    ("notif_limited", "notif_limited"),
    ("poll_kicks", "poll_kicks"),
    ("poll_bytes", "poll_bytes"),
    ("poll_limited", "poll_limited"),
    ("polls", "polls"),
    ("poll_empty", "poll_empty"),
    ("parks", "parks"),
    ("ring_full", "ring_full"),
    ("served_ns", "served_time"),
    ("home_ns", "home_time"),
    ("home_works", "home_works"),
    ("left_fault", "left_fault"),
    ("left_backend", "left_backend"),
    ("left_home", "left_home"),
    ("mm_switches", "mm_switches"),
    ("errors", "errors"),
    ("drops", "drops"),
    ("moves", "moves"),
    ("move_ns_max", "move_time"),
    ("move_slices_max", "move_slices"),
    ("log_errors", "log_errors"),
    ("pending_ns_max", "pending"),
];

const OF_WORKER: &[(&str, &str)] = &[
    ("pid", "pid"),
    ("cpu", "cpu"),
    ("locked", "locked"),
    ("group", "group"),
    ("loops", "loops"),
    ("works", "works"),
    ("mm_switches", "mm_switches"),
    ("wait", "wait"),
    ("busy_ns", "busy_time"),
    ("stolen_ns", "stolen_time"),
    ("polls", "polls"),
    ("empty_polls", "empty_polls"),
    ("empty_poll_ns", "empty_poll_time"),
    ("polled", "polled"),
    ("pending_ns_max", "pending"),
];

const OF_DEVICE: &[(&str, &str)] = &[
    ("owner", "owner"),
    ("weight", "weight"),
    ("max_time_share", "max_time_share"),
    ("placed", "placed"),
];

fn number(name: &str) -> Result<u64> {
    let digits = name.rsplit('.').next().context("a name")?;
    Ok(digits.parse()?)
}

/// Compares a record with a status file, as soon as nothing moves any more.
fn compare(
    control: &Control,
    file: &str,
    names: &[(&str, &str)],
    copy: impl Fn() -> Result<Copy>,
) -> Result<()> {
    let mut differing = String::new();
    let equal = wait::until("the snapshot and the files to agree", || {
        let copy = copy()?;
        let status = control.read_status(file)?;
        differing.clear();
        for (text, word) in names {
            let said = status
                .get(*text)
                .with_context(|| format!("{file}: {text}"))?;
            let value = copy.get(word)?;
            if said.parse::<i64>()? != value as i64 {
                differing += &format!("{text}: {said}, {word}: {}; ", value as i64);
            }
        }
        Ok(differing.is_empty())
    });
    equal.with_context(|| format!("{file}: {differing}"))
}

fn equal_to_files(control: &Control, options: &Options) -> Result<()> {
    let first = control.restore()?;
    let other = control.create_worker(0)?;
    control.set(&format!("worker/{other}/group"), "7")?;
    let (mut nic, device) =
        control.device_made_by(|| Nic::new(&options.node, NicOptions::default()))?;
    control.set(&format!("dev/{device}/weight"), "321")?;
    control.set(&format!("dev/{device}/max_time_share"), "500")?;
    control.move_virtqueue(&format!("vq.{}.1", number(&device)?), &other)?;
    control.set_poll(&format!("vq.{}.0", number(&device)?), "0")?;
    Traffic::new(&mut nic, Direction::Both)?.run(100)?;

    let id = number(&device)?;
    let read =
        |kind, values: &[(&str, u64)]| find_by(&Snapshot::open()?.read()?, kind, values).cloned();
    compare(control, &format!("dev/{device}/status"), OF_DEVICE, || {
        read(Kind::Device, &[("id", id)])
    })?;
    let record = read(Kind::Device, &[("id", id)])?;
    for (status, name) in [
        ("comm", "comm"),
        ("backend", "receive_backend"),
        ("backend", "transmit_backend"),
    ] {
        let said = control.read_status(&format!("dev/{device}/status"))?[status].clone();
        let named = record.name(name)?;
        ensure!(said == named, "{status} is {said}, {name} is {named}");
    }
    for index in 0..2 {
        let values = [("device", id), ("index", index)];
        let file = format!("vq/vq.{id}.{index}/status");
        compare(control, &file, OF_VIRTQUEUE, || {
            read(Kind::Virtqueue, &values)
        })?;
        let record = read(Kind::Virtqueue, &values)?;
        let worker = control.read_line(&format!("vq/vq.{id}.{index}/worker"))?;
        ensure!(
            record.get("worker")? == number(&worker)?,
            "it is on {worker}"
        );
        ensure!(record.get("mode")? == 2 * index, "its mode");
        ensure!(record.get("packets")? == 100, "its packets");
    }
    for worker in [&first, &other] {
        let id = number(worker)?;
        compare(
            control,
            &format!("worker/{worker}/status"),
            OF_WORKER,
            || read(Kind::Worker, &[("id", id)]),
        )?;
    }

    // What is set is seen, without traffic as well.
    for (flag, text) in [(1, "1"), (0, "0")] {
        control.set(&format!("dev/{device}/home"), text)?;
        ensure!(
            read(Kind::Virtqueue, &[("device", id), ("index", 1)])?.get("home")? == flag,
            "home"
        );
    }
    control.set(&format!("worker/{other}/cpus"), "1")?;
    compare(
        control,
        &format!("worker/{other}/status"),
        &[("cpu", "cpu")],
        || read(Kind::Worker, &[("id", number(&other)?)]),
    )?;
    control.set("worker/default", &other)?;
    ensure!(
        Snapshot::open()?.header(6) == number(&other)?,
        "the default"
    );
    drop(nic);
    control.restore().map(drop)
}

/// What holds at every moment between two slices of a device that is not at home.
fn check_virtqueue(copy: &Copy) -> Result<()> {
    let get = |name| copy.get(name);
    let sum = |a, b| Ok::<_, anyhow::Error>(get(a)?.wrapping_add(get(b)?));
    ensure!(get("home_works")? == 0, "it was served at home: {copy:?}");
    ensure!(
        get("bytes")? == sum("notif_bytes", "poll_bytes")?,
        "bytes: {copy:?}"
    );
    ensure!(
        get("served_time")? == sum("notif_time", "poll_time")?,
        "time: {copy:?}"
    );
    // All frames have this length.
    ensure!(
        get("bytes")? == get("packets")? * LENGTH as u64,
        "packets: {copy:?}"
    );
    Ok(())
}

fn check_worker(copy: &Copy) -> Result<()> {
    let get = |name| copy.get(name);
    ensure!(
        get("busy_time")? == get("notif_time")? + get("poll_time")?,
        "time: {copy:?}"
    );
    ensure!(get("mm_switches")? <= get("works")?, "works: {copy:?}");
    Ok(())
}

const LENGTH: usize = 200;

fn consistent(control: &Control, options: &Options) -> Result<()> {
    control.side_core()?;
    let mut nic = Nic::new(&options.node, NicOptions::default())?;
    nic.touch_buffers()?;
    let device = control.device_of(nic.tap.name())?;
    let id = number(&device)?;
    let goal = options.volume(4_000, 1_000);
    let mut traffic = Traffic::with_lengths(&mut nic, Direction::Both, |_| LENGTH)?;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (reads, moved) = std::thread::scope(|scope| -> Result<(u64, u64)> {
        // One record after the other all the time, so that hardly a section is missed.
        let reader = scope.spawn(|| -> Result<(u64, u64)> {
            let snapshot = Snapshot::open()?;
            let records = snapshot.places(|copy| match copy.kind {
                Kind::Worker => Ok(true),
                Kind::Virtqueue => Ok(copy.get("device")? == id),
                Kind::Device => Ok(false),
            })?;
            let (mut reads, mut moved) = (0, 0);
            let mut last = vec![0; records.len()];
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for ((kind, record), last) in records.iter().zip(&mut last) {
                    for _ in 0..50 {
                        let copy = read_patiently(*kind, record)?;
                        reads += 1;
                        // What has not changed was looked at before.
                        if copy.words[COUNTERS] == *last {
                            continue;
                        }
                        moved += 1;
                        ensure!(copy.words[COUNTERS] > *last, "went back: {copy:?}");
                        *last = copy.words[COUNTERS];
                        match kind {
                            Kind::Worker => check_worker(&copy)?,
                            _ => check_virtqueue(&copy)?,
                        }
                    }
                }
            }
            Ok((reads, moved))
        });
        let sent = traffic.run(goal);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let read = reader
            .join()
            .map_err(|_| anyhow::anyhow!("the reader panicked"))?;
        sent?;
        read
    })?;
    diagnostic(format!("{reads} reads, the counters had moved in {moved}"));
    ensure!(
        moved >= 5,
        "the counters moved in {moved} of {reads} reads only"
    );
    drop(traffic);
    drop(nic);
    control.restore().map(drop)
}

fn one_worker_at_a_time(control: &Control, options: &Options) -> Result<()> {
    let first = control.restore()?;
    let second = control.create_worker(-1)?;
    let mut nic = Nic::new(&options.node, NicOptions::default())?;
    let device = control.device_of(nic.tap.name())?;
    let id = number(&device)?;
    let known = [number(&first)?, number(&second)?];
    let moves = options.volume(300, 50);
    std::thread::scope(|scope| {
        let traffic = Background::start(scope, &mut nic)?;
        let end = Instant::now() + Duration::from_secs(120);
        let moved = (0..moves).try_for_each(|turn| {
            ensure!(Instant::now() < end, "{turn} moves took two minutes");
            traffic.advance(1)?;
            let to = [&first, &second][turn % 2];
            control.move_device(&device, to)?;
            let copies = Snapshot::open()?.read()?;
            for index in 0..2 {
                let values = [("device", id), ("index", index)];
                let worker = find_by(&copies, Kind::Virtqueue, &values)?.get("worker")?;
                ensure!(
                    worker == number(to)?,
                    "moved to {to}, on {worker} of {known:?}"
                );
            }
            Ok(())
        });
        traffic.conclude(moved)
    })?;
    drop(nic);
    control.restore().map(drop)
}

/// Adds the cases.
pub fn add<'a>(suite: &mut Suite<'a>, control: &'a Control, options: &'a Options) {
    suite.case("records say what the files say", move || {
        equal_to_files(control, options)
    });
    suite.case(
        "packets, bytes and times of a record agree in every copy under traffic",
        move || consistent(control, options),
    );
    suite.case(
        "a virtqueue's record names its worker after each move",
        move || one_worker_at_a_time(control, options),
    );
}
