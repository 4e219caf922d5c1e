// SPDX-License-Identifier: GPL-2.0
//! What the tools of the original IOcm do: a telemetry collector that reads every counter, and an I/O
//! manager that steers with what it read. Neither knows of anything that the original did not have.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{ensure, Context, Result};
use clap::Parser;
use nix::errno::Errno;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::cpu;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::traffic::{Direction, Traffic};

const OF_WORKER: &[&str] = &[
    "loops",
    "enabled_interrupts",
    "cycles",
    "mm_switches",
    "wait",
    "empty_works",
    "empty_polls",
    "stuck_works",
    "noqueue_works",
    "pending_works",
    "poll_cycles",
    "notif_cycles",
    "total_work_cycles",
    "last_loop_tsc_end",
    "ksoftirq_occurrences",
    "ksoftirq_time",
    "ksoftirqs",
    "work_list_max_stuck_cycles",
    "max_disabled_soft_interrupts_cycles",
];
const OF_DEVICE: &[&str] = &["delay_per_work", "delay_per_kbyte"];
const OF_VIRTQUEUE: &[&str] = &[
    "poll_kicks",
    "poll_cycles",
    "poll_bytes",
    "poll_wait",
    "poll_empty",
    "poll_empty_cycles",
    "poll_coalesced",
    "poll_limited",
    "poll_pending_cycles",
    "notif_works",
    "notif_cycles",
    "notif_bytes",
    "notif_wait",
    "notif_limited",
    "ring_full",
    "stuck_times",
    "stuck_cycles",
    "handled_bytes",
    "handled_packets",
    "last_poll_cycles",
    "min_processed_data_limit",
    "max_processed_data_limit",
    "max_stuck_pending_items",
    "max_stuck_cycles",
    "min_poll_rate",
];

fn main() -> ExitCode {
    let options = Options::parse();
    let control = Control::default();
    let mut suite = Suite::new();
    suite.case(
        "the collector finds every file, with one number in each",
        || with_traffic(&options, &control, || collect(&control).map(drop)),
    );
    suite.case(
        "the collector finds the same numbers in status files",
        || with_traffic(&options, &control, || statuses(&control)),
    );
    suite.case(
        "the collector's differences tell how busy I/O cores are",
        || utilization(&options, &control),
    );
    suite.case(
        "the manager adds an I/O core, fills it, and removes it",
        || cores(&options, &control),
    );
    suite.case("the manager switches polling as it likes", || {
        polling(&options, &control)
    });
    suite.case("the manager sets every limit", || {
        limits(&options, &control)
    });
    suite.case("the manager counts its epochs", || {
        let epoch = || number(&control, "epoch");
        let before = epoch()?;
        control.set("epoch", "1\n")?;
        ensure!(epoch()? == before + 1, "from {before} to {}", epoch()?);
        ensure!(
            control.write("epoch", "2\n") == Err(Errno::EINVAL),
            "it took a 2"
        );
        Ok(())
    });
    suite.run(&options.filters)
}

/// Reads a file as the original's tools do: one decimal number and a newline.
fn number(control: &Control, file: &str) -> Result<u64> {
    let text = control.read(file)?;
    let digits = text
        .strip_suffix('\n')
        .filter(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()));
    digits
        .with_context(|| format!("{file} says {text:?}, not a number"))?
        .parse()
        .with_context(|| format!("{file} says {text:?}"))
}

fn with_traffic(
    options: &Options,
    control: &Control,
    then: impl FnOnce() -> Result<()>,
) -> Result<()> {
    control.side_core()?;
    let mut nic = Nic::new(&options.node, NicOptions::default())?;
    Traffic::new(&mut nic, Direction::Both)?.run(50)?;
    then()?;
    drop(nic);
    control.restore().map(drop)
}

/// Walks from the workers over their devices to the virtqueues, and reads all numbers, by their files.
fn collect(control: &Control) -> Result<BTreeMap<String, u64>> {
    let mut numbers = BTreeMap::new();
    let mut read = |directory: &str, names: &[&str]| -> Result<()> {
        for name in names {
            let file = format!("{directory}/{name}");
            numbers.insert(file.clone(), number(control, &file)?);
        }
        Ok(())
    };
    let mut virtqueues = 0;
    for worker in control.workers()? {
        read(&format!("worker/{worker}"), OF_WORKER)?;
        let cpu = control.read_line(&format!("worker/{worker}/cpu"))?;
        ensure!(cpu == "-1" || cpu.parse::<u32>().is_ok(), "CPU {cpu}");
        number(control, &format!("worker/{worker}/pid"))?;
        number(control, &format!("worker/{worker}/locked"))?;
        for device in control.read_list(&format!("worker/{worker}/dev_list"))? {
            read(&format!("dev/{device}"), OF_DEVICE)?;
            let on = control.read_line(&format!("dev/{device}/worker"))?;
            ensure!(on == worker, "{worker} lists {device}, which is on {on}");
            let owner = control.read_line(&format!("dev/{device}/owner"))?;
            ensure!(owner == std::process::id().to_string(), "owner {owner}");
            for virtqueue in control.read_list(&format!("dev/{device}/vq_list"))? {
                read(&format!("vq/{virtqueue}"), OF_VIRTQUEUE)?;
                let of = control.read_line(&format!("vq/{virtqueue}/dev"))?;
                ensure!(of == device, "{virtqueue} of {device} says {of}");
                number(control, &format!("vq/{virtqueue}/can_poll"))?;
                virtqueues += 1;
            }
        }
    }
    ensure!(virtqueues == 2, "found {virtqueues} virtqueues");
    number(control, "nr_iocores")?;
    number(control, "cycles")?;
    Ok(numbers)
}

/// What moves by itself.
const MOVING: &[&str] = &["last_poll_cycles"];

fn statuses(control: &Control) -> Result<()> {
    let mut same = false;
    vhost_iocm_selftests::wait::until("the workers to rest", || {
        let before = collect(control)?;
        same = true;
        for (file, number) in &before {
            let (directory, name) = file.rsplit_once('/').context("no directory")?;
            if !MOVING.contains(&name) {
                let line = control.read_counter(&format!("{directory}/status"), name)?;
                same &= line == *number;
            }
        }
        Ok(same)
    })
}

/// The lines of `iocores_utilization`: CPU, cycles of work, cycles in all.
fn utilizations(control: &Control) -> Result<BTreeMap<u32, (u64, u64)>> {
    let text = control.read("iocores_utilization")?;
    let line = |line: &str| -> Result<(u32, (u64, u64))> {
        let mut fields = line.split(' ');
        let cpu = fields
            .next()
            .and_then(|name| name.strip_prefix("cpu"))
            .with_context(|| format!("line {line:?}"))?;
        let mut field = || fields.next().with_context(|| format!("line {line:?}"));
        let times = (field()?.parse()?, field()?.parse()?);
        ensure!(fields.next().is_none(), "line {line:?}");
        Ok((cpu.parse()?, times))
    };
    text.lines().map(line).collect()
}

fn utilization(options: &Options, control: &Control) -> Result<()> {
    control.side_core()?;
    let last = u32::try_from(cpu::count()? - 1)?;
    let mut nic = Nic::new(&options.node, NicOptions::default())?;
    let look = || -> Result<(u64, u64)> {
        let found = utilizations(control)?;
        found
            .get(&last)
            .copied()
            .with_context(|| format!("no CPU {last} in {found:?}"))
    };
    let before = look()?;
    Traffic::new(&mut nic, Direction::Both)?.run(500)?;
    let after = look()?;
    let (work, total) = (after.0 - before.0, after.1 - before.1);
    ensure!(
        0 < work && work <= total,
        "{work} cycles of work in {total}"
    );
    drop(nic);
    control.restore().map(drop)
}

fn cores(options: &Options, control: &Control) -> Result<()> {
    let first = control.restore()?;
    let mut nic = Nic::new(&options.node, NicOptions::default())?;
    let count = number(control, "nr_iocores")?;
    // What was created before is no news any more.
    control.read_list("worker/create")?;
    control.set("worker/create", &format!("{}\n", cpu::count()? - 1))?;
    let added = control.read_list("worker/create")?;
    let [added] = &added[..] else {
        anyhow::bail!("created {added:?}");
    };
    ensure!(
        number(control, "nr_iocores")? == count + 1,
        "the core is not counted"
    );
    control.set("worker/default", added)?;
    let devices = control.read_list(&format!("worker/{first}/dev_list"))?;
    for device in &devices {
        control.set(&format!("dev/{device}/worker"), added)?;
    }
    Traffic::new(&mut nic, Direction::Both)?.run(50)?;
    let moved = control.read_list(&format!("worker/{added}/dev_list"))?;
    ensure!(
        moved == devices && !devices.is_empty(),
        "{moved:?} of {devices:?}"
    );

    // It is removed when it is locked and has no devices, and not before.
    ensure!(
        control.write("worker/remove", added) == Err(Errno::EBUSY),
        "removed"
    );
    control.set(&format!("worker/{added}/locked"), "1")?;
    ensure!(
        control.write("worker/remove", added) == Err(Errno::EBUSY),
        "removed"
    );
    let elected = control.read_line("worker/default")?;
    ensure!(elected == first, "the default worker is {elected}");
    for device in &devices {
        control.set(&format!("dev/{device}/worker"), &first)?;
    }
    control.set("worker/remove", added)?;
    ensure!(
        number(control, "nr_iocores")? == count,
        "the core is counted"
    );
    Traffic::new(&mut nic, Direction::Both)?.run(50)
}

fn polling(options: &Options, control: &Control) -> Result<()> {
    control.restore()?;
    let (mut nic, device) =
        control.device_made_by(|| Nic::new(&options.node, NicOptions::default()))?;
    for mode in ["1", "0", "1"] {
        for virtqueue in control.read_list(&format!("dev/{device}/vq_list"))? {
            let directory = format!("vq/{virtqueue}");
            ensure!(
                number(control, &format!("{directory}/can_poll"))? == 1,
                "cannot"
            );
            control.set(&format!("{directory}/poll"), mode)?;
            ensure!(
                control.read_line(&format!("{directory}/poll"))? == mode,
                "not {mode}"
            );
        }
        Traffic::new(&mut nic, Direction::Both)?.run(100)?;
    }
    Ok(())
}

fn limits(options: &Options, control: &Control) -> Result<()> {
    let worker = control.side_core()?;
    let (mut nic, device) =
        control.device_made_by(|| Nic::new(&options.node, NicOptions::default()))?;
    for (name, value) in [
        ("work_list_max_stuck_cycles", 100_000),
        ("max_disabled_soft_interrupts_cycles", 50_000),
    ] {
        set(control, &format!("worker/{worker}/{name}"), value)?;
    }
    for (name, value) in [("delay_per_work", 1000), ("delay_per_kbyte", 100)] {
        set(control, &format!("dev/{device}/{name}"), value)?;
    }
    for virtqueue in control.read_list(&format!("dev/{device}/vq_list"))? {
        control.set(&format!("vq/{virtqueue}/poll"), "1")?;
        for (name, value) in [
            ("min_processed_data_limit", 3000),
            ("max_processed_data_limit", 65_536),
            ("max_stuck_pending_items", 8),
            ("max_stuck_cycles", 100_000),
            ("min_poll_rate", 20_000),
        ] {
            set(control, &format!("vq/{virtqueue}/{name}"), value)?;
        }
    }
    Traffic::new(&mut nic, Direction::Both)?.run(options.volume(2000, 200))?;
    drop(nic);
    control.restore().map(drop)
}

fn set(control: &Control, file: &str, value: u64) -> Result<()> {
    control.set(file, &format!("{value}\n"))?;
    let said = number(control, file)?;
    ensure!(said == value, "{file} is {said} after {value} was written");
    Ok(())
}
