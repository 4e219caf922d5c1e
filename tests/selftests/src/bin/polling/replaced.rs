// SPDX-License-Identifier: GPL-2.0
//! The page that a worker looks at may be replaced by another at any time: by a balloon, by migration, by
//! whoever maps the guest's memory. No virtqueue hangs on the old one.

use anyhow::{ensure, Result};
use vhost_iocm_selftests::card::{never_parked, Card};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::ktap::{diagnostic, Suite};
use vhost_iocm_selftests::memory::GuestMemory;
use vhost_iocm_selftests::nic::{NicOptions, Queue};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::parameter::Parameter;
use vhost_iocm_selftests::userfault::Holes;

/// How a page is replaced.
type Replace = fn(&GuestMemory, &Queue) -> Result<()>;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    let ways: [(&str, Replace); 2] = [
        ("by another mapping", exchange),
        ("by giving it up and filling it again", refill),
    ];
    for (how, replace) in ways {
        suite.case(
            format!("a polled available ring is replaced {how}, and traffic goes on"),
            move || replaced(options, control, &[replace]),
        );
    }

    suite.case(
        "a polled available ring is replaced in all ways in turn",
        // A page that was exchanged is private, and is given up by MADV_DONTNEED.
        move || replaced(options, control, &[refill, exchange, refill, exchange]),
    );

    suite.case(
        "a replaced page is also noticed when the ring is rarely looked at in full",
        move || {
            let _recheck = Parameter::set("poll_recheck_us", "200000")?;
            replaced(options, control, &[exchange])
        },
    );
}

/// The page of the available ring, which in these tests has nothing else in it.
fn exchange(memory: &GuestMemory, queue: &Queue) -> Result<()> {
    let (start, length) = queue.ring.layout().available_part();
    let pages = memory.pages(start, length);
    pages
        .into_iter()
        .try_for_each(|page| memory.exchange_page(page))
}

fn refill(memory: &GuestMemory, queue: &Queue) -> Result<()> {
    Holes::punch(memory, &[queue.ring.layout().available_part()])?.fill()
}

fn replaced(options: &Options, control: &Control, ways: &[Replace]) -> Result<()> {
    let rounds = options.volume(60, 20);
    let _parked = never_parked()?;
    let nic = NicOptions {
        pages_apart: true,
        ..NicOptions::default()
    };
    let mut card = Card::polled(options, control, nic)?;
    let mut unasked = 0;
    for (_, replace) in (0..rounds).zip(ways.iter().cycle()) {
        for queue in [&card.nic.transmit, &card.nic.receive] {
            replace(&card.nic.memory, queue)?;
        }
        unasked += card.exchange(2)?;
    }
    diagnostic(format!(
        "{unasked} of {} frames each way without a kick",
        2 * rounds
    ));
    // Otherwise the virtqueues were not polled, and there was no page to hang on.
    ensure!(unasked > 0, "every frame needed a kick");
    Ok(())
}
