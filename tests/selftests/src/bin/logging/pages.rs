// SPDX-License-Identifier: GPL-2.0
//! Which pages are logged.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{ensure, Context, Result};
use vhost_iocm_selftests::device::{
    DEVICE_HEADER, EVENT_IDX, INDIRECT_DESC, IN_ORDER, MRG_RXBUF, RECEIVE, VERSION_1,
};
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::log::{DirtyLog, Switch, Written};
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::ring::{Chaining, Descriptor, NEXT, WRITE};
use vhost_iocm_selftests::traffic::{Direction, Traffic};
use vhost_iocm_selftests::wait;
use vhost_iocm_selftests::wire::PacketSocket;
use vhost_iocm_selftests::{device, frame};
use vm_memory::GuestAddress;

/// Frames of one round.
const FRAMES: u64 = 100;

fn options_of(features: u64) -> NicOptions {
    NicOptions {
        features,
        pages_apart: true,
        ..NicOptions::default()
    }
}

/// Checks that what was logged is what was written, and nothing that could not have been.
fn compare(
    changed: &BTreeSet<GuestAddress>,
    writable: &BTreeSet<GuestAddress>,
    logged: &BTreeSet<GuestAddress>,
) -> Result<()> {
    ensure!(!changed.is_empty(), "nothing was written");
    let missed: Vec<_> = changed.difference(logged).collect();
    ensure!(missed.is_empty(), "written and not logged: {missed:x?}");
    let invented: Vec<_> = logged.difference(writable).collect();
    ensure!(invented.is_empty(), "logged and not written: {invented:x?}");
    Ok(())
}

/// Lets a running card log while frames go in these directions, and compares.
fn round(nic: &mut Nic, directions: Direction) -> Result<()> {
    let log = DirtyLog::new()?;
    let switch = Switch::new(nic)?;
    switch.on(&log)?;
    let before = Written::of(nic)?;
    Traffic::new(nic, directions)?.run(FRAMES)?;
    // Until then a slice that has moved the last frame may still be logging.
    switch.off()?;
    let changed = before.changed(&Written::of(nic)?);
    compare(&changed, &before.pages(), &log.take())
}

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options) {
    let modern = VERSION_1 | MRG_RXBUF | EVENT_IDX;
    let layouts = [
        ("by default", options_of(modern)),
        ("without event index", options_of(VERSION_1 | MRG_RXBUF)),
        ("with a legacy header", options_of(EVENT_IDX)),
        ("with buffers used in order", options_of(modern | IN_ORDER)),
        (
            "with the header supplied by the device",
            options_of(modern | DEVICE_HEADER),
        ),
        (
            "with several buffers for a packet",
            NicOptions {
                receive_length: 300,
                segments: 3,
                ..options_of(modern)
            },
        ),
        (
            "with indirect chains",
            NicOptions {
                chaining: Chaining::Indirect,
                ..options_of(modern | INDIRECT_DESC)
            },
        ),
        (
            "with a used ring of several pages",
            NicOptions {
                ring_size: 1024,
                start: 600,
                ..options_of(modern)
            },
        ),
        (
            "while the index wraps",
            NicOptions {
                start: 65500,
                ..options_of(modern)
            },
        ),
    ];
    for (name, nic) in layouts {
        suite.case(
            format!("every page that is written is logged, {name}"),
            move || round(&mut Nic::new(&options.node, nic)?, Direction::Both),
        );
    }

    suite.case(
        "both regions of a buffer across them are logged",
        move || {
            let nic = NicOptions {
                across_regions: true,
                receive_chains: Some(1),
                transmit_chains: Some(1),
                ..options_of(modern)
            };
            round(&mut Nic::new(&options.node, nic)?, Direction::Receive)
        },
    );

    suite.case("nothing is logged when logging is off", move || {
        let mut nic = Nic::new(&options.node, options_of(modern))?;
        let log = DirtyLog::new()?;
        nic.device.set_log_base(log.address())?;
        Traffic::new(&mut nic, Direction::Both)?.run(FRAMES)?;
        let switch = Switch::new(&nic)?;
        switch.on(&log)?;
        switch.off()?;
        log.take();
        Traffic::new(&mut nic, Direction::Both)?.run(FRAMES)?;
        nic.stop()?;
        let logged = log.take();
        ensure!(logged.is_empty(), "{} pages were logged", logged.len());
        Ok(())
    });

    suite.case(
        "LOG_ALL logs buffers, the flag of a ring its used ring",
        move || {
            let mut nic = Nic::new(&options.node, options_of(modern))?;
            let log = DirtyLog::new()?;
            nic.device.set_log_base(log.address())?;
            let features = nic.options().features;
            let buffers: BTreeSet<_> = nic.receive.buffer_pages(&nic.memory).into_iter().collect();
            let (start, length) = nic.receive.ring.layout().used_part();
            let ring: BTreeSet<_> = nic.memory.pages(start, length).into_iter().collect();

            nic.device.set_features(features | device::LOG_ALL)?;
            Traffic::new(&mut nic, Direction::Receive)?.run(FRAMES)?;
            nic.device.set_features(features)?;
            let logged = log.take();
            ensure!(!logged.is_empty(), "no buffer was logged");
            ensure!(logged.is_subset(&buffers), "more than buffers was logged");

            let mut addresses = nic.addresses(&nic.receive)?;
            addresses.flags = 1;
            addresses.log_guest_addr = start.0;
            nic.device.set_addresses(addresses)?;
            Traffic::new(&mut nic, Direction::Receive)?.run(FRAMES)?;
            nic.device.set_addresses(nic.addresses(&nic.receive)?)?;
            let logged = log.take();
            ensure!(
                logged == ring,
                "of the ring {ring:x?} {logged:x?} was logged"
            );
            Ok(())
        },
    );

    suite.case("logging is switched on and off under traffic", move || {
        let mut nic = Nic::new(&options.node, options_of(modern))?;
        let switch = Switch::new(&nic)?;
        let log = DirtyLog::new()?;
        let shown = Shown::of(&nic)?;
        let rounds = options.volume(30, 5);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let result = watch(&switch, &log, &shown, rounds);
                done.store(true, Ordering::SeqCst);
                result
            });
            let traffic = Traffic::new(&mut nic, Direction::Both)
                .and_then(|mut traffic| traffic.run_while(|_| !done.load(Ordering::SeqCst)));
            let watched = watcher
                .join()
                .map_err(|_| anyhow::anyhow!("the watcher panicked"))?;
            traffic.and(watched)
        })
    });

    suite.case(
        "two devices mark one log at once and lose no mark",
        move || {
            let log = DirtyLog::new()?;
            let mut nics = [
                Nic::new(&options.node, options_of(modern))?,
                Nic::new(&options.node, options_of(modern))?,
            ];
            let rounds = options.volume(20, 4);
            let done = AtomicBool::new(false);
            let taken = thread::scope(|scope| -> Result<BTreeSet<GuestAddress>> {
                let (done, log) = (&done, &log);
                let clear = scope.spawn(move || {
                    let mut taken = BTreeSet::new();
                    while !done.load(Ordering::SeqCst) {
                        taken.append(&mut log.take());
                    }
                    taken
                });
                let users: Vec<_> = nics
                    .iter_mut()
                    .map(|nic| {
                        scope.spawn(move || -> Result<BTreeSet<GuestAddress>> {
                            let switch = Switch::new(nic)?;
                            switch.on(log)?;
                            let before = Written::of(nic)?;
                            Traffic::new(nic, Direction::Both)?.run(FRAMES * rounds)?;
                            nic.stop()?;
                            Ok(before.changed(&Written::of(nic)?))
                        })
                    })
                    .collect();
                let changed: Result<Vec<_>> = users
                    .into_iter()
                    .map(|user| user.join().map_err(|_| anyhow::anyhow!("panicked"))?)
                    .collect();
                done.store(true, Ordering::SeqCst);
                let mut taken = clear
                    .join()
                    .map_err(|_| anyhow::anyhow!("the clearing thread panicked"))?;
                taken.append(&mut log.take());
                for changed in changed? {
                    let missed = changed.difference(&taken).count();
                    ensure!(missed == 0, "{missed} pages were written and not logged");
                }
                Ok(taken)
            })?;
            ensure!(!taken.is_empty(), "nothing was logged");
            Ok(())
        },
    );

    // In stock vhost each of them took an entry of an array that had no room for them
    // (CVE-2019-14835).
    suite.case(
        "empty buffers are not logged, however many there are",
        move || {
            let nic = NicOptions {
                ring_size: 1024,
                receive_chains: Some(0),
                ..options_of(VERSION_1 | MRG_RXBUF)
            };
            let mut nic = Nic::new(&options.node, nic)?;
            let log = DirtyLog::new()?;
            let switch = Switch::new(&nic)?;
            switch.on(&log)?;
            let buffer = nic.memory.allocate(4096, 4096)?;
            let empty = nic.memory.allocate(4096, 4096)?;
            for index in 0..1022 {
                let descriptor = Descriptor::new(empty, 0, WRITE | NEXT, index + 1);
                nic.receive.ring.write_descriptor(index, descriptor)?;
            }
            let last = Descriptor::new(buffer, 2048, WRITE, 0);
            nic.receive.ring.write_descriptor(1022, last)?;
            nic.receive.ring.write_available_entry(0, 0)?;
            nic.receive.ring.write_available_index(1)?;
            let wire = PacketSocket::new(nic.tap.name(), frame::ETHERTYPE)?;
            ensure!(wire.send(&[0xff; 60])?, "the wire is full");
            nic.receive.kick()?;
            wait::until("the packet to arrive", || nic.receive.ring.has_used())?;
            switch.off()?;
            ensure!(nic.device.base(RECEIVE)? == 1, "another chain was taken");
            let logged = log.take();
            ensure!(logged.contains(&buffer), "the buffer is not logged");
            ensure!(!logged.contains(&empty), "empty buffers are logged");
            Ok(())
        },
    );

    suite.case(
        "a log that is not there yet is filled by who may wait for it",
        move || {
            let mut nic = Nic::new(&options.node, options_of(modern))?;
            for _ in 0..3 {
                // A new log has no page.
                round(&mut nic, Direction::Both)?;
            }
            Ok(())
        },
    );
}

/// What a watcher needs to see the pages of a card that another thread uses.
struct Shown {
    pages: Vec<(GuestAddress, u64)>,
}

impl Shown {
    fn of(nic: &Nic) -> Result<Self> {
        let pages = Written::of(nic)?.pages().into_iter();
        let pages = pages
            .map(|page| Ok((page, nic.memory.host_address(page)?)))
            .collect::<Result<_>>()?;
        Ok(Self { pages })
    }

    /// What is in the pages now.
    fn read(&self) -> Vec<Vec<u8>> {
        let page = |(_, address): &(GuestAddress, u64)| {
            let place = *address as *const u8;
            // SAFETY: The page is one of the card's memory, which lives as long as the card. The device
            // writes to it meanwhile, so bytes are read one by one and as they are.
            (0..4096).map(move |at| unsafe { place.add(at).read_volatile() })
        };
        self.pages.iter().map(|it| page(it).collect()).collect()
    }
}

/// Switches logging on and off, and compares each time.
fn watch(switch: &Switch, log: &DirtyLog, shown: &Shown, rounds: u32) -> Result<()> {
    let writable: BTreeSet<_> = shown.pages.iter().map(|(page, _)| *page).collect();
    for round in 0..rounds {
        switch.on(log)?;
        // What is written from here on is logged.
        let before = shown.read();
        let mut after = before.clone();
        wait::until("something to be written", || {
            after = shown.read();
            Ok(after != before)
        })?;
        // What was written until there has been logged when this returns.
        switch.off()?;
        let pages = shown.pages.iter().zip(before.iter().zip(&after));
        let changed: BTreeSet<_> = pages
            .filter(|(_, (before, after))| before != after)
            .map(|((page, _), _)| *page)
            .collect();
        compare(&changed, &writable, &log.take()).with_context(|| format!("in round {round}"))?;
    }
    Ok(())
}
