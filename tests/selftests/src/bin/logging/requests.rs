// SPDX-License-Identifier: GPL-2.0
//! What the requests about the log accept and refuse.

use anyhow::{ensure, Result};
use nix::errno::Errno;
use vhost_iocm_selftests::device::{Device, LOG_ALL, RECEIVE, TRANSMIT};
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::log::{DirtyLog, Switch};
use vhost_iocm_selftests::nic::{new_event, Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::traffic::{Direction, Traffic};

/// An address that belongs to the kernel.
const KERNEL: u64 = 0xffff_8880_0000_0000;

fn expect(what: &str, answer: Result<(), Errno>, expected: Result<(), Errno>) -> Result<()> {
    ensure!(
        answer == expected,
        "{what}: {answer:?}, expected {expected:?}"
    );
    Ok(())
}

fn running(options: &Options) -> Result<Nic> {
    Nic::new(&options.node, NicOptions::default())
}

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options) {
    suite.case(
        "a device that is not served takes any log, and is refused its backend with a bad one",
        move || {
            let nic = Nic::prepare(Device::open(&options.node)?, NicOptions::default())?;
            let device = &nic.device;
            let features = nic.options().features;
            expect("a log base", device.set_log_base(KERNEL), Ok(()))?;
            expect("LOG_ALL", device.set_features(features | LOG_ALL), Ok(()))?;
            let answer = device.set_backend(TRANSMIT, Some(&nic.tap));
            expect("a backend", answer, Err(Errno::EFAULT))?;
            expect("a good base", device.set_log_base(0), Ok(()))?;
            let answer = device.set_backend(TRANSMIT, Some(&nic.tap));
            expect("a backend", answer, Ok(()))
        },
    );

    suite.case(
        "a running device refuses a log that is not its owner's",
        move || {
            let nic = running(options)?;
            let device = &nic.device;
            let features = nic.options().features;
            expect(
                "a base that is not used",
                device.set_log_base(KERNEL),
                Ok(()),
            )?;
            let answer = device.set_features(features | LOG_ALL);
            expect("LOG_ALL", answer, Err(Errno::EFAULT))?;
            expect("a base", device.set_log_base(0), Ok(()))?;
            let answer = device.set_features(features | LOG_ALL);
            expect("LOG_ALL with a good base", answer, Ok(()))?;
            expect(
                "a bad base",
                device.set_log_base(KERNEL),
                Err(Errno::EFAULT),
            )
        },
    );

    suite.case(
        "a base that one virtqueue refuses is the other's all the same",
        move || {
            let mut nic = running(options)?;
            let log = DirtyLog::new()?;
            Switch::new(&nic)?.on(&log)?;
            nic.device.set_backend(TRANSMIT, None)?;
            let answer = nic.device.set_log_base(KERNEL);
            expect("a bad base", answer, Err(Errno::EFAULT))?;
            let answer = nic.device.set_backend(TRANSMIT, Some(&nic.tap));
            expect("the backend of the other", answer, Err(Errno::EFAULT))?;
            Traffic::new(&mut nic, Direction::Receive)?.run(10)?;
            ensure!(!log.take().is_empty(), "the log of the first is gone");
            Ok(())
        },
    );

    suite.case(
        "the used ring's log is checked while it is served, and only then",
        move || {
            let nic = running(options)?;
            let mut addresses = nic.addresses(&nic.transmit)?;
            addresses.flags = 1;
            // The log has a bit for each page, so this address has a bit above all addresses.
            addresses.log_guest_addr = u64::MAX - 7;
            nic.device.set_log_base(KERNEL)?;
            let answer = nic.device.set_addresses(addresses);
            expect("an address", answer, Err(Errno::EINVAL))?;
            nic.device.set_backend(TRANSMIT, None)?;
            expect("an address", nic.device.set_addresses(addresses), Ok(()))?;
            let answer = nic.device.set_backend(TRANSMIT, Some(&nic.tap));
            expect("a backend", answer, Err(Errno::EFAULT))
        },
    );

    suite.case(
        "a memory table whose log is not its owner's is refused",
        move || {
            let nic = running(options)?;
            let log = DirtyLog::new()?;
            Switch::new(&nic)?.on(&log)?;
            let mut table = nic.memory.table()?;
            table[0].guest_phys_addr = 1 << 62;
            let answer = nic.device.set_memory_table(&table);
            expect("a table", answer, Err(Errno::EFAULT))
        },
    );

    suite.case("the log's eventfd is an eventfd, or none", move || {
        let device = Device::open(&options.node)?;
        expect("no owner", device.set_log_event(None), Err(Errno::EPERM))?;
        device.set_owner()?;
        let event = new_event()?;
        expect("an eventfd", device.set_log_event(Some(&event)), Ok(()))?;
        expect("-1", device.set_log_event(None), Ok(()))?;
        expect("-2", device.set_log_event(Some(&-2)), Err(Errno::EBADF))?;
        let file = std::fs::File::open("/dev/null")?;
        expect(
            "a file",
            device.set_log_event(Some(&file)),
            Err(Errno::EINVAL),
        )
    });

    // Each descriptor that is not given back keeps its file open (CVE-2015-6252), and 2000 are twice as
    // many as the process may have.
    suite.case(
        "the log's eventfd is given back when another replaces it",
        move || {
            let device = Device::open(&options.node)?;
            device.set_owner()?;
            let before = open_files()?;
            for _ in 0..2000 {
                let event = new_event()?;
                device.set_log_event(Some(&event))?;
            }
            device.set_log_event(None)?;
            let after = open_files()?;
            ensure!(
                after < before + 1000,
                "{before} files were open, and {after} after 2000 eventfds"
            );
            Ok(())
        },
    );

    suite.case(
        "the log's eventfd is signalled when something is logged",
        move || {
            let mut nic = running(options)?;
            let log = DirtyLog::new()?;
            let event = new_event()?;
            nic.device.set_log_event(Some(&event))?;
            Traffic::new(&mut nic, Direction::Both)?.run(10)?;
            ensure!(event.read().is_err(), "signalled without a log");
            Switch::new(&nic)?.on(&log)?;
            Traffic::new(&mut nic, Direction::Both)?.run(10)?;
            nic.stop()?;
            ensure!(event.read()? > 0, "not signalled");
            Ok(())
        },
    );

    suite.case("a device that was given up logs nothing", move || {
        let mut nic = running(options)?;
        let log = DirtyLog::new()?;
        Switch::new(&nic)?.on(&log)?;
        Traffic::new(&mut nic, Direction::Both)?.run(10)?;
        nic.stop()?;
        nic.device.reset_owner()?;
        log.take();
        nic.receive.restart(0)?;
        nic.transmit.restart(0)?;
        nic.set_up()?;
        nic.replenish()?;
        nic.start()?;
        Traffic::new(&mut nic, Direction::Both)?.run(10)?;
        nic.stop()?;
        let logged = log.take();
        ensure!(logged.is_empty(), "{} pages were logged", logged.len());
        for index in [RECEIVE, TRANSMIT] {
            ensure!(nic.device.base(index)? == 10, "nothing was served");
        }
        Ok(())
    });
}

/// Files that are open in the whole system.
fn open_files() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/sys/fs/file-nr")?;
    let count = text.split_whitespace().next().unwrap_or_default();
    Ok(count.parse()?)
}
