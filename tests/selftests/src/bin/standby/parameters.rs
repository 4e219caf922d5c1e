// SPDX-License-Identifier: GPL-2.0
//! What user space sets the fast loop to.

use anyhow::{ensure, Result};
use nix::errno::Errno;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::parameter::{self, Parameter};

/// The names with the smallest value, the default, and the largest.
const PARAMETERS: &[(&str, u32, u32, u32)] = &[
    ("wake_pending_us", 10, 1_000, 1_000_000),
    ("balance_us", 100, 1_000, 1_000_000),
    ("park_load", 0, 600, 1_000),
    ("park_after_us", 1_000, 100_000, 60_000_000),
    ("max_woken", 0, 1_024, 1_024),
];

pub fn add(suite: &mut Suite<'_>) {
    suite.case(
        "the tunables have their defaults and take what is in range",
        || {
            for (name, smallest, default, largest) in PARAMETERS {
                let expect = |value: u32| -> Result<()> {
                    let now = parameter::read(name)?;
                    ensure!(
                        now == value.to_string(),
                        "{name} is {now}, expected {value}"
                    );
                    Ok(())
                };
                expect(*default)?;
                for value in [*smallest, *largest] {
                    let set = Parameter::set(name, &value.to_string())?;
                    expect(value)?;
                    let outside = [
                        largest.checked_add(1).map(|above| above.to_string()),
                        smallest.checked_sub(1).map(|below| below.to_string()),
                        Some("x".to_owned()),
                        Some("-1".to_owned()),
                        Some("\n".to_owned()),
                        Some("4294967296".to_owned()),
                    ];
                    for text in outside.into_iter().flatten() {
                        let answer = parameter::write(name, &text);
                        ensure!(
                            matches!(answer, Err(Errno::EINVAL | Errno::ERANGE)),
                            "writing {text:?} to {name} gave {answer:?}"
                        );
                        expect(value)?;
                    }
                    drop(set);
                }
                expect(*default)?;
            }
            Ok(())
        },
    );
}
