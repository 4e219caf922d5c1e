// SPDX-License-Identifier: GPL-2.0
//! Asks the kernel's leak detector for memory of the module that nobody points to any more.
//!
//! Run it last, while the module is loaded: its name is in a report only as long as it is.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use clap::Parser;
use vhost_iocm_selftests::ktap::{diagnostic, skip, Outcome, Suite};
use vhost_iocm_selftests::options::{in_user_mode_linux, Options};

const KMEMLEAK: &str = "/sys/kernel/debug/kmemleak";

/// The detector does not report an object before it is five seconds old. Nothing tells when all are.
const AGE: Duration = Duration::from_secs(6);

fn main() -> ExitCode {
    let options = Options::parse();
    let mut suite = Suite::new();
    suite.case(
        "the kernel finds no leaked memory of the module",
        find_leaks,
    );
    suite.run(&options.filters)
}

fn find_leaks() -> Result<Outcome> {
    if !Path::new(KMEMLEAK).exists() {
        return skip("this kernel has no kmemleak");
    }
    if in_user_mode_linux() {
        // LLVM gives the data of its code model sections that are not scanned, so all that only these
        // point to counts as leaked.
        return skip("kmemleak does not know all data of User Mode Linux");
    }
    for _ in 0..2 {
        std::thread::sleep(AGE);
        std::fs::write(KMEMLEAK, "scan").context("scan")?;
    }
    let report = std::fs::read_to_string(KMEMLEAK).context("read the report")?;
    diagnostic(&report);
    let ours: Vec<_> = objects(&report)
        .into_iter()
        .filter(|object| is_ours(object))
        .collect();
    ensure!(
        ours.is_empty(),
        "{} objects leaked by the module, first:\n{}",
        ours.len(),
        ours[0]
    );
    Ok(Outcome::Pass)
}

/// The objects of a report. Each begins with an unindented line.
fn objects(report: &str) -> Vec<String> {
    let mut objects: Vec<String> = Vec::new();
    for line in report.lines() {
        match objects.last_mut().filter(|_| line.starts_with(' ')) {
            Some(object) => {
                object.push('\n');
                object.push_str(line);
            }
            None => objects.push(line.to_owned()),
        }
    }
    objects
}

/// Whether the module's code is in the object's backtrace: by its name, or, after it was unloaded, as
/// an address that belongs to nobody. No other module is unloaded in these tests but vhost_net.
fn is_ours(object: &str) -> bool {
    object.contains("[vhost_iocm]")
        || object.lines().any(|line| {
            line.trim_start()
                .split(' ')
                .next_back()
                .is_some_and(|last| last.starts_with("0x"))
                && line.contains("[<")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "\
unreferenced object 0xffff88810a1b2c00 (size 192):
  comm \"insmod\", pid 81, jiffies 4294900000
  hex dump (first 32 bytes):
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................
  backtrace (crc 3a5d1d1f):
    [<00000000a1b2c3d4>] __kmalloc_noprof+0x2a1/0x390
    [<00000000a1b2c3d5>] rust_helper_krealloc+0x1d/0x30 [vhost_iocm]
unreferenced object 0xffff88810a1b2d00 (size 64):
  comm \"swapper/0\", pid 1, jiffies 4294667296
  backtrace (crc 0):
    kmem_cache_alloc_noprof+0x1a1/0x290
    do_one_initcall+0x59/0x2b0
";

    #[test]
    fn report_is_cut_into_objects() {
        let objects = objects(REPORT);
        assert_eq!(objects.len(), 2);
        assert!(is_ours(&objects[0]));
        assert!(!is_ours(&objects[1]));
    }

    #[test]
    fn empty_report_has_none() {
        assert!(objects("").is_empty());
    }
}
