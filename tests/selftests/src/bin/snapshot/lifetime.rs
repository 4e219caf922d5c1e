// SPDX-License-Identifier: GPL-2.0
//! Records come and go, and mappings outlive what they show.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{ensure, Context, Result};
use nix::sys::signal::Signal;
use nix::sys::wait::{waitpid, WaitStatus};
use nix::unistd::{fork, ForkResult};
use vhost_iocm_engine::engine::snapshot::Kind;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::device::Device;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::module;
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::snapshot::{of, Snapshot};

fn used(snapshot: &Snapshot, kind: Kind) -> Result<usize> {
    Ok(of(&snapshot.read()?, kind).count())
}

fn come_and_go(options: &Options) -> Result<()> {
    let most = Snapshot::open()?.header(4) as usize;
    let snapshot = Snapshot::map(most)?;
    let before = (
        used(&snapshot, Kind::Device)?,
        used(&snapshot, Kind::Virtqueue)?,
    );
    let mut generation = snapshot.header(5);
    let open = |count| {
        (0..count)
            .map(|_| Device::open(&options.node))
            .collect::<Result<Vec<_>>>()
    };
    let devices = open(60)?;
    let pages = snapshot.pages();
    let after = (
        used(&snapshot, Kind::Device)?,
        used(&snapshot, Kind::Virtqueue)?,
    );
    ensure!(
        after == (before.0 + 60, before.1 + 120),
        "{before:?}, {after:?}"
    );
    ensure!(snapshot.header(5) != generation, "the generation stayed");
    generation = snapshot.header(5);
    drop(devices);
    let now = (
        used(&snapshot, Kind::Device)?,
        used(&snapshot, Kind::Virtqueue)?,
    );
    ensure!(now == before, "{now:?} after {before:?}");
    ensure!(snapshot.header(5) != generation, "the generation stayed");

    // Records are used again, with another generation and nothing of who had them.
    let devices = open(60)?;
    ensure!(
        snapshot.pages() == pages,
        "{pages} pages have become {}",
        snapshot.pages()
    );
    let copies = snapshot.read()?;
    let ids: BTreeSet<_> = of(&copies, Kind::Device)
        .map(|copy| copy.get("id").ok())
        .collect();
    ensure!(ids.len() == before.0 + 60, "devices have the same number");
    for copy in of(&copies, Kind::Virtqueue) {
        ensure!(copy.generation() >= 1, "{copy:?}");
        if copy.generation() > 1 {
            ensure!(
                copy.get("packets")? == 0 && copy.get("kicks")? == 0,
                "{copy:?}"
            );
        }
    }
    drop(devices);
    Ok(())
}

fn churn(options: &Options) -> Result<()> {
    let most = Snapshot::open()?.header(4) as usize;
    let snapshot = Snapshot::map(most)?;
    let before = snapshot.pages();
    let rounds = options.volume(2_000, 40);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| -> Result<u64> {
            let mut reads = 0;
            while !stop.load(Ordering::Relaxed) {
                for copy in of(&snapshot.read()?, Kind::Virtqueue) {
                    // A record is never seen between two objects.
                    ensure!(copy.get("index")? < 2 && copy.get("mode")? <= 2, "{copy:?}");
                }
                reads += 1;
            }
            Ok(reads)
        });
        let opened = (0..rounds).try_for_each(|_| Device::open(&options.node).map(drop));
        stop.store(true, Ordering::Relaxed);
        let reads = reader
            .join()
            .map_err(|_| anyhow::anyhow!("the reader panicked"))??;
        ensure!(reads > 0, "nothing was read");
        opened
    })?;
    let grown = snapshot.pages() - before;
    ensure!(grown < 16, "{grown} pages more for one device at a time");
    Ok(())
}

fn outlive_the_module() -> Result<()> {
    let snapshot = Snapshot::open()?;
    snapshot.read()?;
    let file = std::fs::File::open(vhost_iocm_selftests::snapshot::PATH)?;
    module::unload().context("unload a module whose snapshot is mapped")?;
    // SAFETY: The child touches memory, and ends.
    let status = match unsafe { fork() }? {
        ForkResult::Child => {
            let word = snapshot.header(0);
            // SAFETY: Ends the child at once.
            unsafe { libc::_exit((word & 1) as i32) }
        }
        ForkResult::Parent { child } => waitpid(child, None)?,
    };
    let mut byte = [0];
    let read = std::io::Read::read(&mut &file, &mut byte);
    // It is loaded again before anything is judged, so that the cases after this one can run.
    module::load("")?;
    let status_again = snapshot_is_dead(&snapshot)?;
    ensure!(
        matches!(status, WaitStatus::Signaled(_, Signal::SIGBUS, _)),
        "the mapping without its module: {status:?}"
    );
    ensure!(
        matches!(status_again, WaitStatus::Signaled(_, Signal::SIGBUS, _)),
        "the mapping beside a new module: {status_again:?}"
    );
    ensure!(read.is_err(), "the file of an unloaded module was read");
    drop(snapshot);
    ensure!(
        Snapshot::open()?.pages() >= 2,
        "the new module has no worker"
    );
    Ok(())
}

fn snapshot_is_dead(snapshot: &Snapshot) -> Result<WaitStatus> {
    // SAFETY: The child touches memory, and ends.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let word = snapshot.header(0);
            // SAFETY: Ends the child at once.
            unsafe { libc::_exit((word & 1) as i32) }
        }
        ForkResult::Parent { child } => Ok(waitpid(child, None)?),
    }
}

fn unload_under_readers(options: &Options) -> Result<()> {
    let rounds = options.volume(10, 2);
    for _ in 0..rounds {
        // Children that touch the snapshot all the time, until it goes away under them.
        let mut children = Vec::new();
        for _ in 0..2 {
            // SAFETY: The child maps, reads, and ends by a signal or at once.
            match unsafe { fork() }? {
                ForkResult::Child => loop {
                    let dead = match Snapshot::open() {
                        Ok(snapshot) => snapshot.read().is_err(),
                        Err(_) => true,
                    };
                    if dead {
                        // SAFETY: Ends the child at once.
                        unsafe { libc::_exit(0) }
                    }
                },
                ForkResult::Parent { child } => children.push(child),
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        let unloaded = module::unload();
        for child in children {
            waitpid(child, None)?;
        }
        unloaded.context("unload under readers")?;
        module::load("")?;
    }
    Ok(())
}

/// Adds the cases.
pub fn add<'a>(suite: &mut Suite<'a>, _control: &'a Control, options: &'a Options) {
    suite.case("devices come and go in a mapping that stays", move || {
        come_and_go(options)
    });
    suite.case(
        "devices that are opened and closed reuse records",
        move || churn(options),
    );
    suite.case(
        "a mapping outlives the module and shows nothing",
        outlive_the_module,
    );
    suite.case("the module is unloaded under readers", move || {
        unload_under_readers(options)
    });
}
