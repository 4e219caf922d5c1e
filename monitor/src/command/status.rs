// SPDX-License-Identifier: GPL-2.0

//! `iocm status`.

use super::print;
use crate::arguments::Status;
use crate::failure::Result;
use crate::host::process::Process;
use crate::host::snapshot::{Reader, Snapshot, Virtqueue, Worker};
use crate::host::Root;
use comfy_table::{presets, Table};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A table without lines, whose first row has the names of the columns.
pub fn table(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(columns);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// A table as text, without blanks at the ends of its lines.
pub fn text(table: &Table) -> String {
    let lines = table.lines().map(|line| line.trim_end().to_owned() + "\n");
    lines.collect()
}

/// Shows the host once, or again and again.
///
/// # Errors
///
/// No module, and whatever reading fails with.
pub fn run(root: &Root, options: &Status) -> Result<()> {
    let mut reader = Reader::open(root)?;
    let mut before: Option<(Instant, Snapshot)> = None;
    loop {
        let (time, now) = (Instant::now(), reader.read()?);
        let names = vm_names(root, &now);
        let elapsed = before
            .as_ref()
            .map(|(earlier, snapshot)| (time.duration_since(*earlier), snapshot));
        if options.json {
            print(&format!("{}\n", to_json(&now, &names)))?;
        } else {
            print(&to_tables(&now, elapsed, &names))?;
        }
        let Some(seconds) = options.watch else {
            return Ok(());
        };
        before = Some((time, now));
        std::thread::sleep(Duration::from_secs_f64(seconds));
        if !options.json {
            print("\n")?;
        }
    }
}

/// The table of the workers.
///
/// # Errors
///
/// No module, and whatever reading fails with.
pub fn workers(root: &Root) -> Result<String> {
    let now = Reader::open(root)?.read()?;
    Ok(text(&workers_table(&now, None)))
}

/// The names of the VMs, by their processes.
pub fn vm_names(root: &Root, snapshot: &Snapshot) -> BTreeMap<i64, String> {
    let owners = snapshot.devices.iter().map(|device| device.owner);
    owners
        .filter_map(|owner| {
            let pid = i32::try_from(owner).ok().filter(|pid| *pid > 0)?;
            Some((owner, Process::name(root, pid)?))
        })
        .collect()
}

/// All of it for programs: what the snapshot says, and the names of the VMs.
fn to_json(snapshot: &Snapshot, names: &BTreeMap<i64, String>) -> serde_json::Value {
    let mut value = json!(snapshot);
    if let Some(devices) = value["devices"].as_array_mut() {
        for (device, of) in devices.iter_mut().zip(&snapshot.devices) {
            device["vm"] = json!(names.get(&of.owner));
        }
    }
    value
}

/// What a worker is there for, in a word.
pub fn state(worker: &Worker) -> &'static str {
    match worker.state {
        0 => "active",
        1 => "parked",
        2 => "woken",
        _ => "?",
    }
}

/// The mode of polling, in a word.
pub fn mode(virtqueue: &Virtqueue) -> &'static str {
    match virtqueue.mode {
        0 => "0",
        1 => "1",
        2 => "auto",
        _ => "?",
    }
}

/// A time in a unit that suits it.
pub fn time(nanoseconds: u64) -> String {
    match nanoseconds {
        0..1_000 => format!("{nanoseconds} ns"),
        1_000..1_000_000 => format!("{:.1} us", nanoseconds as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", nanoseconds as f64 / 1e6),
        _ => format!("{:.1} s", nanoseconds as f64 / 1e9),
    }
}

/// A number with a suffix for thousands.
pub fn count(number: f64) -> String {
    // The sum of nothing is -0.
    match number + 0.0 {
        number @ ..1e4 => format!("{number:.0}"),
        ..1e7 => format!("{:.1}k", number / 1e3),
        ..1e10 => format!("{:.1}M", number / 1e6),
        _ => format!("{:.1}G", number / 1e9),
    }
}

type Earlier<'a> = Option<(Duration, &'a Snapshot)>;

fn workers_table(now: &Snapshot, earlier: Earlier) -> Table {
    let columns = [
        "WORKER", "CPU", "PID", "STATE", "BUSY", "VQS", "POLLED", "WAITING", "AGE", "",
    ];
    let mut table = table(&columns);
    for worker in &now.workers {
        let before = earlier
            .and_then(|(elapsed, snapshot)| Some((elapsed, snapshot.worker(worker.id)?.busy_time)));
        let busy = match before {
            Some((elapsed, busy)) => {
                let part = worker.busy_time.saturating_sub(busy) as f64 / elapsed.as_nanos() as f64;
                format!("{:.1} %", 100.0 * part)
            }
            None => time(worker.busy_time),
        };
        let mut notes = Vec::new();
        if worker.id == now.default_worker {
            notes.push("default".to_owned());
        }
        if worker.locked {
            notes.push("locked".to_owned());
        }
        if worker.group != 0 {
            notes.push(format!("group {}", worker.group));
        }
        let serves = now
            .virtqueues
            .iter()
            .filter(|virtqueue| virtqueue.worker == worker.id)
            .count();
        table.add_row([
            format!("w.{}", worker.id),
            match worker.cpu {
                -1 => "any".to_owned(),
                cpu => cpu.to_string(),
            },
            worker.pid.to_string(),
            state(worker).to_owned(),
            busy,
            serves.to_string(),
            worker.polled.to_string(),
            worker.pending_works.to_string(),
            time(worker.pending_average),
            notes.join(", "),
        ]);
    }
    table
}

fn to_tables(now: &Snapshot, earlier: Earlier, names: &BTreeMap<i64, String>) -> String {
    let mut devices = table(&["DEVICE", "VM", "PID", "INTERFACE", "WEIGHT", "CEILING", ""]);
    for device in &now.devices {
        let interface = match (device.receive_backend, device.transmit_backend) {
            (receive, transmit) if receive == transmit => receive.to_string(),
            (receive, transmit) => format!("{receive}/{transmit}"),
        };
        devices.add_row([
            format!("d.{}", device.id),
            names
                .get(&device.owner)
                .cloned()
                .unwrap_or_else(|| device.comm.to_string()),
            device.owner.to_string(),
            interface,
            device.weight.to_string(),
            format!("{:.1} %", f64::from(device.max_time_share) / 10.0),
            if device.placed { "" } else { "at home" }.to_owned(),
        ]);
    }
    let per_second = if earlier.is_some() { "/S" } else { "" };
    let columns = [
        "VIRTQUEUE".to_owned(),
        "WORKER".to_owned(),
        "POLL".to_owned(),
        format!("PACKETS{per_second}"),
        format!("BYTES{per_second}"),
        format!("KICKS{per_second}"),
        format!("INTERRUPTS{per_second}"),
        "SERVED".to_owned(),
        "AGE".to_owned(),
        "DROPS".to_owned(),
    ];
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let mut virtqueues = table(&columns);
    for virtqueue in &now.virtqueues {
        let before = earlier.and_then(|(elapsed, snapshot)| {
            let before = snapshot
                .of_device(virtqueue.device)
                .find(|before| before.index == virtqueue.index)?;
            Some((elapsed, before))
        });
        let rate = |get: fn(&Virtqueue) -> u64| match before {
            Some((elapsed, before)) => {
                let difference = get(virtqueue).saturating_sub(get(before));
                count(difference as f64 / elapsed.as_secs_f64())
            }
            None => count(get(virtqueue) as f64),
        };
        let served = |virtqueue: &Virtqueue| virtqueue.served_time + virtqueue.home_time;
        virtqueues.add_row([
            format!("vq.{}.{}", virtqueue.device, virtqueue.index),
            if virtqueue.home {
                "home".to_owned()
            } else {
                format!("w.{}", virtqueue.worker)
            },
            format!(
                "{}{}",
                mode(virtqueue),
                if virtqueue.polled { " now" } else { "" }
            ),
            rate(|virtqueue| virtqueue.packets),
            rate(|virtqueue| virtqueue.bytes),
            rate(|virtqueue| virtqueue.kicks),
            rate(|virtqueue| virtqueue.interrupts),
            match before {
                Some((elapsed, before)) => {
                    let part = served(virtqueue).saturating_sub(served(before)) as f64
                        / elapsed.as_nanos() as f64;
                    format!("{:.1} %", 100.0 * part)
                }
                None => time(served(virtqueue)),
            },
            time(virtqueue.pending_average),
            virtqueue.drops.to_string(),
        ]);
    }
    let mut tables = text(&workers_table(now, earlier));
    for (table, rows) in [
        (devices, now.devices.len()),
        (virtqueues, now.virtqueues.len()),
    ] {
        if rows > 0 {
            tables.push('\n');
            tables.push_str(&text(&table));
        }
    }
    tables
}
