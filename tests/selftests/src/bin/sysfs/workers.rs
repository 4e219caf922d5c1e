// SPDX-License-Identifier: GPL-2.0
//! Workers: creating, removing, locking, electing and placing them.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::unistd::Pid;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::cpu;
use vhost_iocm_selftests::device::Device;
use vhost_iocm_selftests::ktap::{skip, Outcome, Suite};
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::{Flavour, Options};
use vhost_iocm_selftests::parameter::{self, Parameter};
use vhost_iocm_selftests::refusal::{expect_refused, MALFORMED_WORKERS};
use vhost_iocm_selftests::thread::Thread;
use vhost_iocm_selftests::traffic::{Background, Direction, Traffic};
use vhost_iocm_selftests::wait;

/// Most workers at a time.
const WORKERS_MAX: usize = 1024;
/// Most ids that one look at worker/create gives.
const CREATED_MAX: usize = 32;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case(
        "a worker is created on the CPU asked for, or on none",
        move || {
            control.restore()?;
            for cpu in [-1, 0, 0] {
                let worker = control.create_worker(cpu)?;
                expect_cpu(control, &worker, cpu)?;
                let pid = control.read_line(&format!("worker/{worker}/pid"))?;
                ensure!(
                    Path::new("/proc").join(&pid).exists(),
                    "{worker} has pid {pid}, which no process has"
                );
                for (file, expected) in [("locked", "0"), ("dev_list", "")] {
                    let said = control.read(&format!("worker/{worker}/{file}"))?;
                    ensure!(
                        said.trim_end() == expected,
                        "{file} of the new {worker} is {said:?}"
                    );
                }
            }
            control.restore().map(drop)
        },
    );

    suite.case(
        "worker/create tells what was created since the last look",
        move || {
            control.restore()?;
            control.read_list("worker/create")?;
            let before = control.workers()?;
            for _ in 0..3 {
                control.set("worker/create", "-1\n")?;
            }
            let told = control.read_list("worker/create")?;
            let new: Vec<_> = control.workers()?.difference(&before).cloned().collect();
            let mut sorted = told.clone();
            sorted.sort();
            ensure!(sorted == new, "created {new:?}, told {told:?}");
            let again = control.read_list("worker/create")?;
            ensure!(again.is_empty(), "told {again:?} a second time");

            for _ in 0..CREATED_MAX + 3 {
                control.set("worker/create", "-1")?;
            }
            let told = control.read_list("worker/create")?;
            ensure!(told.len() == CREATED_MAX, "told {} ids at once", told.len());
            let workers = control.workers()?;
            ensure!(
                told.iter().all(|worker| workers.contains(worker)),
                "told of {told:?}"
            );
            control.restore().map(drop)
        },
    );

    suite.case("a worker is created on the CPUs of a list", move || {
        if cpu::count()? < 2 {
            return skip("needs two CPUs");
        }
        control.restore()?;
        for (text, cpus, cpu) in [
            ("0-1\n", "0-1", -1),
            ("1,0", "0-1", -1),
            ("1-1", "1", 1),
            ("0,0-0", "0", 0),
        ] {
            let worker = control.create_worker_on(text)?;
            expect_cpu(control, &worker, cpu)?;
            let said = control.read_line(&format!("worker/{worker}/cpus"))?;
            ensure!(said == cpus, "{text:?} made a worker on {said}");
            let thread = Thread::parse(&control.read_line(&format!("worker/{worker}/pid"))?)?;
            let allowed = thread.allowed_cpus()?;
            ensure!(
                allowed == cpus,
                "the thread of {worker} may run on {allowed}, expected {cpus}"
            );
        }
        control.restore()?;
        Ok(Outcome::Pass)
    });

    suite.case("a worker has the nice value that is set", move || {
        control.restore()?;
        let parameter = Parameter::set("worker_nice", "-5")?;
        let worker = control.create_worker(-1)?;
        drop(parameter);
        let file = format!("worker/{worker}/nice");
        let thread = Thread::parse(&control.read_line(&format!("worker/{worker}/pid"))?)?;
        let expect = |nice: &str| {
            let said = control.read_line(&file)?;
            let found = thread.nice()?.to_string();
            ensure!(
                said == nice && found == nice,
                "nice says {said}, the thread has {found}, expected {nice}"
            );
            Ok(())
        };
        expect("-5").context("from the parameter")?;
        for nice in ["19", "-20", "0", "7"] {
            control.set(&file, nice)?;
            expect(nice)?;
        }
        for text in ["\n", "x", "1x", "+1", " 1", "1.0"] {
            expect_refused(control, &file, text, Errno::EINVAL)?;
        }
        for text in ["20", "-21", "99999999999"] {
            expect_refused(control, &file, text, Errno::ERANGE)?;
        }
        for text in ["20", "-21", "x"] {
            let answer = parameter::write("worker_nice", text);
            ensure!(
                answer == Err(Errno::EINVAL),
                "worker_nice took {text}: {answer:?}"
            );
        }
        control.restore().map(drop)
    });

    suite.case(
        "a worker has the real-time priority that is set",
        move || {
            control.restore()?;
            let parameter = Parameter::set("worker_priority", "3")?;
            let worker = control.create_worker(-1)?;
            drop(parameter);
            let file = format!("worker/{worker}/priority");
            let thread = Thread::parse(&control.read_line(&format!("worker/{worker}/pid"))?)?;
            let expect = |priority: &str| {
                let said = control.read_line(&file)?;
                let found = (thread.real_time_priority()?, thread.policy()?);
                // SCHED_OTHER and SCHED_FIFO.
                let policy = u32::from(priority != "0");
                ensure!(
                    said == priority && found == (priority.parse()?, policy),
                    "priority says {said}, the thread has {found:?}, expected {priority}"
                );
                Ok(())
            };
            expect("3").context("from the parameter")?;
            control.set(&format!("worker/{worker}/nice"), "4")?;
            for priority in ["1", "99", "0", "50"] {
                control.set(&file, priority)?;
                expect(priority)?;
            }
            control.set("worker/default", &worker)?;
            let mut nic = Nic::new(&options.node, NicOptions::default())?;
            Traffic::new(&mut nic, Direction::Both)?.run(20)?;
            drop(nic);
            control.set(&file, "0")?;
            expect("0")?;
            let nice = control.read_line(&format!("worker/{worker}/nice"))?;
            ensure!(nice == "4", "the nice value is {nice} afterwards, it was 4");
            for text in ["\n", "x", "-1", "1x", "fifo"] {
                expect_refused(control, &file, text, Errno::EINVAL)?;
            }
            for text in ["100", "99999999999"] {
                expect_refused(control, &file, text, Errno::ERANGE)?;
            }
            control.restore().map(drop)
        },
    );

    suite.case("bad CPUs are refused when a worker is created", move || {
        control.restore()?;
        control.read_list("worker/create")?;
        for text in [
            "\n", "x", "1x", "0x0", "1 2", "--1", "-", "+", "0\0", " ", "w.0", ",", "0,", "0,,0",
            "0-", "1-0", "-1,0", "0,-1", "0-0-0", "all", "0-1:1/2", "0, 0",
        ] {
            expect_refused(control, "worker/create", text, Errno::EINVAL)?;
        }
        for text in [
            "-2",
            "-2147483648",
            "65536",
            "2147483647",
            "0,65536",
            "0-65536",
            "0-99999999999",
        ] {
            expect_refused(control, "worker/create", text, Errno::ERANGE)?;
        }
        let told = control.read_list("worker/create")?;
        ensure!(told.is_empty(), "refused writes created {told:?}");
        Ok(())
    });

    suite.case("a CPU that is offline is refused", move || {
        offline_cpu(control)
    });

    suite.case(
        "a worker outlives its CPU, and goes back to it",
        move || lost_cpu(options, control),
    );

    suite.case(
        "who polls a worker's displaced is told when its CPU goes and comes",
        move || told_of_lost_cpu(control),
    );

    suite.case(
        "a worker goes back to its CPU unless an operator moved it",
        move || lost_cpu_and_operators(control),
    );

    suite.case("there are at most 1024 workers", move || {
        if Flavour::of_environment() == Flavour::Debug {
            return skip("takes minutes in a debug kernel");
        }
        control.restore()?;
        for number in control.workers()?.len()..WORKERS_MAX {
            control
                .set("worker/create", "-1")
                .with_context(|| format!("worker {number}"))?;
        }
        let answer = control.write("worker/create", "-1");
        ensure!(answer == Err(Errno::ENOSPC), "one more gave {answer:?}");
        remove_at_once(control)?;
        Ok(Outcome::Pass)
    });

    suite.case(
        "a worker is removed only when it is locked and has no devices",
        move || {
            let first = control.restore()?;
            let worker = control.create_worker(-1)?;
            let pid = control.read_line(&format!("worker/{worker}/pid"))?;
            for text in MALFORMED_WORKERS {
                expect_refused(control, "worker/remove", text, Errno::EINVAL)?;
            }
            expect_refused(control, "worker/remove", "w.999999", Errno::ENOENT)?;
            expect_refused(control, "worker/remove", &worker, Errno::EBUSY).context("unlocked")?;

            let (device, name) = control.device_made_by(|| Device::open(&options.node))?;
            control.move_device(&name, &worker)?;
            control.set(&format!("worker/{worker}/locked"), "1")?;
            expect_refused(control, "worker/remove", &worker, Errno::EBUSY)
                .context("with a device")?;
            control.move_device(&name, &first)?;
            control.set("worker/remove", &format!("{worker}\n"))?;
            ensure!(
                !control.exists(&format!("worker/{worker}")),
                "{worker} is still there"
            );
            wait::until("the worker's thread to end", || {
                Ok(!Path::new("/proc").join(&pid).exists())
            })?;
            expect_refused(control, "worker/remove", &worker, Errno::ENOENT).context("again")?;
            expect_refused(
                control,
                &format!("dev/{name}/worker"),
                &worker,
                Errno::ENOENT,
            )?;
            drop(device);

            let next = control.create_worker(-1)?;
            ensure!(next != worker, "the id {worker} was used again");
            control.restore().map(drop)
        },
    );

    suite.case("a busy worker under traffic is not removed", move || {
        let worker = control.restore()?;
        let other = control.create_worker(-1)?;
        let mut nic = Nic::new(&options.node, NicOptions::default())?;
        let refused = std::thread::scope(|scope| {
            let traffic = Background::start(scope, &mut nic)?;
            let tried = (|| {
                control.set(&format!("worker/{worker}/locked"), "1")?;
                for _ in 0..20 {
                    traffic.advance(1)?;
                    let answer = control.write("worker/remove", &worker);
                    ensure!(answer == Err(Errno::EBUSY), "removing gave {answer:?}");
                }
                let now = control.read_line("worker/default")?;
                ensure!(now == other, "the default is {now}, expected {other}");
                Ok(())
            })();
            traffic.conclude(tried)
        });
        drop(nic);
        control.restore()?;
        refused.map(drop)
    });

    suite.case("locking takes 0 and 1, and nothing else", move || {
        let first = control.restore()?;
        let worker = control.create_worker(-1)?;
        let file = format!("worker/{worker}/locked");
        for text in ["1", "1\n", "0\n", "0", "1"] {
            control.set(&file, text)?;
            let now = control.read_line(&file)?;
            ensure!(now == text.trim_end(), "wrote {text:?}, reads {now:?}");
        }
        for text in [
            "\n", "2", "-1", "x", "01", "1 ", " 1", "0\n\n", "true", "1\0",
        ] {
            expect_refused(control, &file, text, Errno::EINVAL)?;
        }
        expect_refused(control, "worker/default", &worker, Errno::EBUSY)?;
        let (device, name) = control.device_made_by(|| Device::open(&options.node))?;
        expect_refused(
            control,
            &format!("dev/{name}/worker"),
            &worker,
            Errno::EBUSY,
        )?;
        let on = control.read_line(&format!("dev/{name}/worker"))?;
        ensure!(
            on == first,
            "the device is on {on}, expected the default {first}"
        );
        drop(device);
        control.restore().map(drop)
    });

    suite.case("new devices go to the default worker", move || {
        control.restore()?;
        for cpu in [0, -1] {
            let worker = control.create_worker(cpu)?;
            control.set("worker/default", &format!("{worker}\n"))?;
            let now = control.read_line("worker/default")?;
            ensure!(now == worker, "the default is {now}, expected {worker}");
            let flag = control.read_counter(&format!("worker/{worker}/status"), "default")?;
            ensure!(flag == 1, "the status of {worker} says default:{flag}");
            let (device, name) = control.device_made_by(|| Device::open(&options.node))?;
            let on = control.read_line(&format!("dev/{name}/worker"))?;
            ensure!(on == worker, "a new device is on {on}, expected {worker}");
            let list = control.read_list(&format!("worker/{worker}/dev_list"))?;
            ensure!(list == [name], "dev_list of {worker} is {list:?}");
            drop(device);
            let list = control.read(&format!("worker/{worker}/dev_list"))?;
            ensure!(
                list.is_empty(),
                "dev_list is {list:?} after the device is gone"
            );
        }
        for text in MALFORMED_WORKERS {
            expect_refused(control, "worker/default", text, Errno::EINVAL)?;
        }
        expect_refused(control, "worker/default", "w.999999", Errno::ENOENT)?;
        control.restore().map(drop)
    });

    suite.case(
        "locking the default worker elects the lowest that is not locked",
        move || {
            let first = control.restore()?;
            let created: Vec<_> = (0..3)
                .map(|_| control.create_worker(-1))
                .collect::<Result<_>>()?;
            let lock = |worker: &str| control.set(&format!("worker/{worker}/locked"), "1");
            let expect_default = |worker: &str| {
                let now = control.read_line("worker/default")?;
                ensure!(now == worker, "the default is {now}, expected {worker}");
                Ok(())
            };
            control.set("worker/default", &created[1])?;
            lock(&created[1])?;
            expect_default(&first)?;
            lock(&created[0])?;
            expect_default(&first)?;
            lock(&first)?;
            expect_default(&created[2])?;
            // The last one that is not locked: now there must be a new one.
            let before = control.workers()?;
            lock(&created[2])?;
            let new: Vec<_> = control.workers()?.difference(&before).cloned().collect();
            ensure!(new.len() == 1, "locking the last worker made {new:?}");
            expect_default(&new[0])?;
            expect_cpu(control, &new[0], -1)?;
            // Whoever elected it looks for it at worker/create like for any other.
            let told = control.read_list("worker/create")?;
            ensure!(
                told.is_empty() || told == new,
                "told {told:?}, elected {new:?}"
            );
            control.restore().map(drop)
        },
    );

    suite.case(
        "the first worker can be removed like any other",
        move || {
            let first = control.restore()?;
            let second = control.create_worker(-1)?;
            control.remove_worker(&first)?;
            let workers = control.workers()?;
            ensure!(workers.iter().eq([&second]), "left are {workers:?}");
            let mut nic = Nic::new(&options.node, NicOptions::default())?;
            Traffic::new(&mut nic, Direction::Both)?.run(20)
        },
    );

    suite.case("a worker follows taskset, and its cpu says so", move || {
        taskset(options, control)
    });
}

/// Removes all workers but the default one, several at a time, as each removal waits for the kernel.
fn remove_at_once(control: &Control) -> Result<()> {
    let default = control.read_line("worker/default")?;
    let workers: Vec<_> = control
        .workers()?
        .into_iter()
        .filter(|worker| *worker != default)
        .collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = workers
            .chunks(WORKERS_MAX / 16)
            .map(|chunk| {
                scope.spawn(|| {
                    chunk
                        .iter()
                        .try_for_each(|worker| control.remove_worker(worker))
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("panicked")))
    })?;
    let left = control.workers()?;
    ensure!(left.iter().eq([&default]), "left are {left:?}");
    Ok(())
}

fn expect_cpu(control: &Control, worker: &str, cpu: i32) -> Result<()> {
    let said = control.read_line(&format!("worker/{worker}/cpu"))?;
    ensure!(
        said == cpu.to_string(),
        "cpu of {worker} is {said}, expected {cpu}"
    );
    let status = control.read_status(&format!("worker/{worker}/status"))?;
    let said = status.get("cpu");
    ensure!(
        said == Some(&cpu.to_string()),
        "the status of {worker} says cpu {said:?}"
    );
    Ok(())
}

/// Takes the last CPU offline while the closure runs, if that can be done.
fn while_offline(run: impl FnOnce(i32) -> Result<()>) -> Result<Outcome> {
    let cpu = std::thread::available_parallelism()?.get() as i32 - 1;
    let switch = format!("/sys/devices/system/cpu/cpu{cpu}/online");
    if cpu == 0 || std::fs::write(&switch, "0").is_err() {
        return skip("no CPU can be taken offline");
    }
    let result = run(cpu);
    std::fs::write(&switch, "1").context("bring the CPU back")?;
    result.map(|()| Outcome::Pass)
}

fn offline_cpu(control: &Control) -> Result<Outcome> {
    control.restore()?;
    while_offline(|cpu| expect_refused(control, "worker/create", &cpu.to_string(), Errno::ENODEV))
}

fn lost_cpu(options: &Options, control: &Control) -> Result<Outcome> {
    control.restore()?;
    let last = std::thread::available_parallelism()?.get() as i32 - 1;
    let worker = control.create_worker(last)?;
    control.set("worker/default", &worker)?;
    let mut nic = Nic::new(&options.node, NicOptions::default())?;
    let outcome = std::thread::scope(|scope| {
        let traffic = Background::start(scope, &mut nic)?;
        let mut outcome = Outcome::Pass;
        let done = (|| {
            traffic.advance(20)?;
            expect_place(control, &worker, last, &last.to_string(), false)?;
            outcome = while_offline(|cpu| {
                expect_place(control, &worker, -1, &cpu.to_string(), true)?;
                traffic.advance(20)
            })?;
            expect_place(control, &worker, last, &last.to_string(), false)?;
            traffic.advance(20)
        })();
        traffic.conclude(done)?;
        Ok(outcome)
    });
    drop(nic);
    control.restore()?;
    outcome
}

/// Checks where a worker may run, where it is wanted, and whether it is displaced.
fn expect_place(
    control: &Control,
    worker: &str,
    cpu: i32,
    wanted: &str,
    displaced: bool,
) -> Result<()> {
    let found = control.read_line(&format!("worker/{worker}/wanted_cpus"))?;
    ensure!(
        found == wanted,
        "{worker} is wanted on {found}, expected {wanted}"
    );
    let found = control.read_line(&format!("worker/{worker}/displaced"))?;
    ensure!(
        found == u8::from(displaced).to_string(),
        "displaced of {worker} is {found}"
    );
    expect_cpu(control, worker, cpu)
}

/// A sleeping worker loses its CPU, and those who poll its file are told.
fn told_of_lost_cpu(control: &Control) -> Result<Outcome> {
    control.restore()?;
    let last = std::thread::available_parallelism()?.get() as i32 - 1;
    let name = last.to_string();
    let worker = control.create_worker(last)?;
    let file = File::open(control.path(&format!("worker/{worker}/displaced")))?;
    let expect_told = |told: bool| {
        let mut entries = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
        let patience = if told {
            PollTimeout::try_from(wait::patience())?
        } else {
            PollTimeout::ZERO
        };
        let count = poll(&mut entries, patience)?;
        ensure!(
            (count == 1) == told,
            "{count} files are ready, expected {told}"
        );
        // Reading is what makes the next change count.
        file.read_at(&mut [0; 8], 0)?;
        Ok(())
    };
    file.read_at(&mut [0; 8], 0)?;
    expect_told(false)?;
    let outcome = while_offline(|_| {
        expect_told(true).context("after the CPU went")?;
        expect_place(control, &worker, -1, &name, true)?;
        expect_told(false)
    })?;
    if outcome == Outcome::Pass {
        expect_told(true).context("after the CPU came back")?;
        expect_place(control, &worker, last, &name, false)?;
    }
    control.restore()?;
    Ok(outcome)
}

/// What an operator does to a worker counts more than where it was before.
fn lost_cpu_and_operators(control: &Control) -> Result<Outcome> {
    control.restore()?;
    let last = std::thread::available_parallelism()?.get() as i32 - 1;
    let name = last.to_string();
    if last == 0 {
        return skip("needs two CPUs");
    }
    let place = |worker: &str, cpu: i32| -> Result<()> {
        let thread = Thread::parse(&control.read_line(&format!("worker/{worker}/pid"))?)?;
        cpu::place(Pid::from_raw(thread.id), &[cpu as usize])
    };
    // Written to, placed by its number, and placed there before; and one that may run on both.
    let written = control.create_worker(last)?;
    let placed = control.create_worker(last)?;
    let before = control.create_worker(0)?;
    place(&before, last)?;
    let both = control.create_worker_on(&format!("0,{last}"))?;
    let both_cpus = control.read_line(&format!("worker/{both}/cpus"))?;
    let outcome = while_offline(|cpu| {
        for worker in [&written, &placed, &before] {
            expect_place(control, worker, -1, &name, true)?;
        }
        expect_place(control, &both, -1, &both_cpus, false)?;
        let file = format!("worker/{written}/cpus");
        expect_refused(control, &file, &cpu.to_string(), Errno::ENODEV)?;
        control.set(&file, "0")?;
        expect_place(control, &written, 0, "0", false)?;
        place(&placed, 0)?;
        expect_place(control, &placed, 0, "0", false)
    })?;
    if outcome == Outcome::Pass {
        expect_place(control, &written, 0, "0", false)?;
        expect_place(control, &placed, 0, "0", false)?;
        expect_place(control, &before, last, &name, false)?;
        expect_place(control, &both, -1, &both_cpus, false)?;
    }
    control.restore()?;
    Ok(outcome)
}

fn taskset(options: &Options, control: &Control) -> Result<Outcome> {
    if cpu::count()? < 2 {
        return skip("needs two CPUs");
    }
    control.restore()?;
    let worker = control.create_worker(0)?;
    control.set("worker/default", &worker)?;
    let thread = Thread::parse(&control.read_line(&format!("worker/{worker}/pid"))?)?;
    let mut nic = Nic::new(&options.node, NicOptions::default())?;
    std::thread::scope(|scope| {
        let traffic = Background::start(scope, &mut nic)?;
        let placed = (|| {
            for (cpus, said) in [(&[1][..], 1), (&[0, 1], -1), (&[0], 0), (&[1], 1)] {
                cpu::place(Pid::from_raw(thread.id), cpus)?;
                expect_cpu(control, &worker, said)?;
                traffic.advance(5)?;
                let last = thread.last_cpu()?;
                if said >= 0 && last != said {
                    bail!("{worker} is placed on CPU {said} and ran on {last}");
                }
            }
            Ok(())
        })();
        traffic.conclude(placed)
    })?;
    drop(nic);
    control.restore()?;
    Ok(Outcome::Pass)
}
