// SPDX-License-Identifier: GPL-2.0
//! The mode of a virtqueue, and the parameters of all of them.

use anyhow::{ensure, Result};
use nix::errno::Errno;
use vhost_iocm_selftests::control::{virtqueue, Control};
use vhost_iocm_selftests::device::{Device, RECEIVE, TRANSMIT};
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::parameter::{self, Parameter};
use vhost_iocm_selftests::refusal::expect_refused;

const MODES: [&str; 3] = ["0", "1", "auto"];

/// Parameters that are times: name, default, smallest and largest, in microseconds.
const TIMES: [(&str, u64, u64, u64); 4] = [
    ("slice_us", 200, 10, 10_000),
    ("poll_start_us", 50, 1, 1_000_000),
    ("poll_idle_us", 1000, 1, 10_000_000),
    ("poll_recheck_us", 1000, 10, 1_000_000),
];

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case(
        "a virtqueue takes each mode, and its sibling keeps its own",
        move || {
            let (_device, name) = control.device_made_by(|| Device::open(&options.node))?;
            let files =
                [RECEIVE, TRANSMIT].map(|index| format!("vq/{}/poll", virtqueue(&name, index)));
            let mut now = ["auto", "auto"];
            for (turn, mode) in MODES.iter().cycle().take(9).enumerate() {
                let which = turn % 2;
                let newline = if turn % 3 == 0 { "\n" } else { "" };
                control.set(&files[which], &format!("{mode}{newline}"))?;
                now[which] = mode;
                for (file, expected) in files.iter().zip(now) {
                    let said = control.read_line(file)?;
                    ensure!(said == expected, "{file} is {said}, expected {expected}");
                }
            }
            Ok(())
        },
    );

    suite.case(
        "what is no mode is refused, and nothing changes",
        move || {
            let (_device, name) = control.device_made_by(|| Device::open(&options.node))?;
            let file = format!("vq/{}/poll", virtqueue(&name, TRANSMIT));
            for mode in MODES {
                control.set(&file, mode)?;
                for text in [
                    "\n", "2", "-1", "x", "01", "1 ", " 1", "0\n\n", "true", "1\0", "Auto", "aut",
                    "auto ", "autox", "auto\0", "0 1", "on",
                ] {
                    expect_refused(control, &file, text, Errno::EINVAL)?;
                }
            }
            Ok(())
        },
    );

    suite.case("a virtqueue that runs can be polled", move || {
        let (nic, name) =
            control.device_made_by(|| Nic::new(&options.node, NicOptions::default()))?;
        for queue in [&nic.receive, &nic.transmit] {
            let file = format!("vq/{}/can_poll", virtqueue(&name, queue.index));
            let said = control.read_line(&file)?;
            ensure!(said == "1", "{file} of a running device is {said:?}");
        }
        Ok(())
    });

    suite.case("new virtqueues get the mode of the module", move || {
        let first = parameter::read("poll")?;
        ensure!(first == "auto", "the module's mode is {first} at first");
        for mode in MODES {
            let _mode = Parameter::set("poll", mode)?;
            let (_device, name) = control.device_made_by(|| Device::open(&options.node))?;
            for index in [RECEIVE, TRANSMIT] {
                let said = control.read_line(&format!("vq/{}/poll", virtqueue(&name, index)))?;
                ensure!(said == mode, "the mode is {said}, the module's {mode}");
            }
        }
        Ok(())
    });

    suite.case(
        "the module's parameters take what is in their bounds, and nothing else",
        parameters,
    );
}

fn parameters() -> Result<()> {
    let refused = |name: &str, text: &str| {
        let before = parameter::read(name)?;
        let answer = parameter::write(name, text);
        ensure!(
            answer == Err(Errno::EINVAL),
            "{name} answered {text:?} with {answer:?}"
        );
        let after = parameter::read(name)?;
        ensure!(
            after == before,
            "the refused {text:?} changed {name} from {before} to {after}"
        );
        Ok(())
    };
    for text in ["\n", "2", "-1", "x", "autox", "Auto", "yes"] {
        refused("poll", text)?;
    }
    for (name, default, smallest, largest) in TIMES {
        let first = parameter::read(name)?;
        ensure!(
            first == default.to_string(),
            "{name} is {first} at first, expected {default}"
        );
        for number in [smallest, largest, default] {
            let _number = Parameter::set(name, &number.to_string())?;
            let said = parameter::read(name)?;
            ensure!(
                said == number.to_string(),
                "wrote {number}, {name} is {said}"
            );
        }
        for number in [smallest - 1, largest + 1, u64::from(u32::MAX)] {
            refused(name, &number.to_string())?;
        }
        for text in ["\n", "x", "-1", "1 2", "auto"] {
            refused(name, text)?;
        }
    }
    Ok(())
}
