// SPDX-License-Identifier: GPL-2.0
//! What becomes of a device, and of its owner's memory and thread, when the owner becomes another program,
//! dumps core or ends, while another process has the device open, or is frozen.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use clap::Parser;
use nix::errno::Errno;
use nix::sys::resource::{getrlimit, setrlimit, Resource, RLIM_INFINITY};
use nix::sys::signal::Signal;
use vhost_iocm_selftests::cgroup::{self, Group};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::device::{Device, RECEIVE};
use vhost_iocm_selftests::frame::{self, Account};
use vhost_iocm_selftests::ktap::{skip, Outcome, Suite};
use vhost_iocm_selftests::meminfo::available;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::process::Owner;
use vhost_iocm_selftests::tap;
use vhost_iocm_selftests::thread;
use vhost_iocm_selftests::traffic::{Background, Direction, Traffic};
use vhost_iocm_selftests::wait;
use vhost_iocm_selftests::wire::PacketSocket;

/// Memory of an owner, in MiB: so much that nothing else here can be taken for it.
const BALLAST: usize = 256;
/// What the rest of the machine may do meanwhile.
const NOISE: usize = 64;

fn main() -> ExitCode {
    let options = &Options::parse();
    let control = &Control::default();
    let mut suite = Suite::new();
    suite.case(
        "an owner that becomes another program under traffic leaves no thread, and loses the device",
        || replace(options, control),
    );
    suite.case(
        "an owner that dumps core under traffic ends, and so does its device",
        || dump_core(options, control),
    );
    suite.case(
        "the memory of an owner that ended is free while another process has the device",
        || free_memory(options, control),
    );
    suite.case(
        "a home thread is in its owner's cgroup, and moves with it",
        || cgroup(options, control),
    );
    for at_home in [true, false] {
        let place = if at_home { "at home" } else { "by a worker" };
        suite.case(
            format!("an owner that is frozen and served {place} goes on where it stood, and holds up nobody"),
            move || freeze(options, control, at_home),
        );
    }
    suite.case(
        "a system that is frozen under traffic, served at home and by a worker, goes on where it stood",
        || suspend(options, control),
    );
    suite.run(&options.filters)
}

/// Sends frames towards a device that nobody looks after.
fn disturb(interface: &str) -> Result<()> {
    let wire = PacketSocket::new(interface, frame::ETHERTYPE)?;
    for sequence in 0..100 {
        // A full tap drops them.
        wire.send(&frame::encode(2, sequence, 200))?;
    }
    Ok(())
}

fn replace(options: &Options, control: &Control) -> Result<()> {
    const INTERFACE: &str = "replaced0";
    control.restore()?;
    let (owner, lent) = Owner::replace(&options.node, INTERFACE, 0)?;
    let device = Device::from(lent);
    let name = control.device_of(INTERFACE)?;
    let process = owner.pid();
    let homes = || thread::named(process, &format!("vhost-{process}"));
    disturb(INTERFACE)?;
    wait::until("a home thread", || Ok(homes()?.len() == 1))?;

    owner.go_on()?;
    owner
        .expect_done()
        .context("the attempt to become a program that is none")?;
    ensure!(
        homes()?.len() == 1,
        "the failed attempt ended the home thread"
    );
    disturb(INTERFACE)?;

    owner.go_on()?;
    owner.expect_done().context("becoming another program")?;
    let threads = fs::read_dir(format!("/proc/{process}/task"))?.count();
    ensure!(threads == 1, "the new program has {threads} threads");
    disturb(INTERFACE)?;
    // What owned the device was the memory of the program before.
    let answer = device.base(RECEIVE);
    ensure!(answer == Err(Errno::EPERM), "the base is {answer:?}");
    let answer = device.set_owner();
    ensure!(answer == Err(Errno::EBUSY), "it can be owned: {answer:?}");
    let mut neighbour = Nic::new(&options.node, NicOptions::default())?;
    Traffic::new(&mut neighbour, Direction::Both)?.run(20)?;
    owner.release()?;
    drop(device);
    expect_gone(control, &name, INTERFACE)
}

fn expect_gone(control: &Control, device: &str, interface: &str) -> Result<()> {
    wait::until("the device to go", || {
        Ok(!control.exists(&format!("dev/{device}")))
    })?;
    wait::until("the tap to go with the device", || {
        Ok(!tap::interface_exists(interface))
    })
}

/// Where core dumps go, as long as this exists.
struct CorePattern {
    _setting: Setting,
}

impl CorePattern {
    const CORE: &str = "/dev/shm/vhost-iocm-core";

    fn new() -> Result<Self> {
        let _setting = Setting::new("/proc/sys/kernel/core_pattern", Self::CORE)?;
        Ok(Self { _setting })
    }
}

impl Drop for CorePattern {
    fn drop(&mut self) {
        let _ = fs::remove_file(Self::CORE);
    }
}

fn dump_core(options: &Options, control: &Control) -> Result<()> {
    const INTERFACE: &str = "dumped0";
    control.restore()?;
    let _pattern = CorePattern::new()?;
    let (soft, hard) = getrlimit(Resource::RLIMIT_CORE)?;
    setrlimit(Resource::RLIMIT_CORE, RLIM_INFINITY, RLIM_INFINITY)?;
    let owner = Owner::lend(&options.node, INTERFACE);
    setrlimit(Resource::RLIMIT_CORE, soft, hard)?;
    let (owner, lent) = owner?;
    let name = control.device_of(INTERFACE)?;
    let mut neighbour = Nic::new(&options.node, NicOptions::default())?;
    std::thread::scope(|scope| {
        let traffic = Background::start(scope, &mut neighbour)?;
        let dumped = (|| {
            traffic.advance(1)?;
            disturb(INTERFACE)?;
            // The standard library of its language catches SIGSEGV.
            let status = owner.kill_by(Signal::SIGABRT)?;
            ensure!(status.core_dumped(), "it ended with {status}");
            disturb(INTERFACE)?;
            traffic.advance(1)
        })();
        traffic.conclude(dumped)
    })?;
    let size = fs::metadata(CorePattern::CORE).context("the core")?.len();
    ensure!(size > 0, "the core is empty");
    drop(Device::from(lent));
    expect_gone(control, &name, INTERFACE)
}

fn free_memory(options: &Options, control: &Control) -> Result<()> {
    const INTERFACE: &str = "ballast0";
    control.restore()?;
    let before = available()?;
    let (owner, lent) = Owner::replace(&options.node, INTERFACE, BALLAST)?;
    let device = Device::from(lent);
    let name = control.device_of(INTERFACE)?;
    disturb(INTERFACE)?;
    let taken = before.saturating_sub(available()?);
    ensure!(
        taken >= BALLAST - NOISE,
        "an owner with {BALLAST} MiB takes {taken} MiB"
    );
    owner.kill()?;
    // The device and its tap are there as before, and get packets.
    ensure!(control.exists(&format!("dev/{name}")), "the device went");
    disturb(INTERFACE)?;
    wait::until("the owner's memory to be free", || {
        Ok(available()? + NOISE >= before)
    })?;
    ensure!(control.exists(&format!("dev/{name}")), "the device went");
    drop(device);
    expect_gone(control, &name, INTERFACE)
}

fn cgroup(options: &Options, control: &Control) -> Result<Outcome> {
    control.restore()?;
    if !cgroup::exist() {
        return skip("this kernel has no cgroups");
    }
    let process = std::process::id();
    let group = Group::new("vhost-iocm-lifetime")?;
    let mut nic = Nic::new(&options.node, NicOptions::default())?;
    let homes = || thread::named(process, &format!("vhost-{process}"));
    wait::until("a home thread", || Ok(homes()?.len() == 1))?;
    let home = homes()?[0];
    let same = || -> Result<String> {
        let (own, its) = (cgroup::of(process as i32)?, cgroup::of(home.id)?);
        ensure!(
            own == its,
            "the process is in {own:?}, its home thread in {its:?}"
        );
        Ok(own)
    };
    let before = same().context("at first")?;
    group.enter()?;
    let after = same().context("after a move")?;
    ensure!(before != after, "the move changed nothing: {before:?}");
    Traffic::new(&mut nic, Direction::Both)?.run(20)?;
    Ok(Outcome::Pass)
}

fn freeze(options: &Options, control: &Control, at_home: bool) -> Result<Outcome> {
    const INTERFACE: &str = "frozen0";
    /// Less than what has room in the rings.
    const FRAMES: u64 = 100;
    control.restore()?;
    if !cgroup::exist() {
        return skip("this kernel has no cgroups");
    }
    let owner = Owner::reflect(&options.node, INTERFACE)?;
    let device = control.device_of(INTERFACE)?;
    control.set(
        &format!("dev/{device}/home"),
        if at_home { "1" } else { "0" },
    )?;
    // It goes when the owner has.
    let group = Group::new("vhost-iocm-frozen")?;
    group.admit(owner.pid())?;
    let mut wire = PacketSocket::new(INTERFACE, frame::ETHERTYPE)?;
    let mut account = Account::default();
    let (mut sent, mut back) = (0, 0);
    let mut neighbour = Nic::new(&options.node, NicOptions::default())?;
    for frozen in [false, true, false, true, false] {
        group.freeze(frozen)?;
        for _ in 0..FRAMES {
            let frame = frame::encode(2, sent, frame::MINIMUM);
            ensure!(wire.send(&frame)?, "the wire is full");
            sent += 1;
        }
        Traffic::new(&mut neighbour, Direction::Both)?.run(20)?;
        if frozen {
            ensure!(
                wire.receive()?.is_none(),
                "a frozen owner has sent something"
            );
            continue;
        }
        wait::until("the frames to come back", || {
            while let Some(frame) = wire.receive()? {
                account.note(frame::decode(frame)?.sequence);
                back += 1;
            }
            Ok(back >= sent)
        })?;
    }
    account.expect_all(sent)?;
    owner.release()?;
    drop(group);
    Ok(Outcome::Pass)
}

/// What is written to a file as long as this exists.
struct Setting {
    path: &'static str,
    before: String,
}

impl Setting {
    fn new(path: &'static str, text: &str) -> Result<Self> {
        let before = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        fs::write(path, text).with_context(|| format!("write {text:?} to {path}"))?;
        // Where there is a choice, what is chosen is in brackets.
        let chosen = before.split(['[', ']']).nth(1).unwrap_or(&before);
        Ok(Self {
            path,
            before: chosen.trim_end().to_owned(),
        })
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        // What cannot be put back is the next test's to find.
        let _ = fs::write(self.path, &self.before);
    }
}

fn suspend(options: &Options, control: &Control) -> Result<Outcome> {
    const TEST: &str = "/sys/power/pm_test";
    if !fs::read_to_string(TEST).is_ok_and(|levels| levels.contains("freezer")) {
        return skip("this kernel has no test of suspending");
    }
    control.restore()?;
    // As for suspending, but after a second all are thawed.
    let _level = Setting::new(TEST, "freezer")?;
    let _delay = Setting::new("/sys/module/suspend/parameters/pm_test_delay", "1")?;
    let mut cards = Vec::new();
    for home in ["1", "0"] {
        let nic = Nic::new(&options.node, NicOptions::default())?;
        let device = control.device_of(nic.tap.name())?;
        control.set(&format!("dev/{device}/home"), home)?;
        cards.push(nic);
    }
    std::thread::scope(|scope| {
        let traffic = cards
            .iter_mut()
            .map(|nic| Background::start(scope, nic))
            .collect::<Result<Vec<_>>>()?;
        let mut result = (|| {
            for _ in 0..2 {
                for traffic in &traffic {
                    traffic.advance(2)?;
                }
                let before = Instant::now();
                fs::write("/sys/power/state", "freeze").context("freeze the system")?;
                ensure!(
                    before.elapsed() >= Duration::from_secs(1),
                    "the system was not frozen"
                );
            }
            for traffic in &traffic {
                traffic.advance(2)?;
            }
            Ok(())
        })();
        for traffic in traffic {
            result = traffic.conclude(result).map(drop);
        }
        result
    })?;
    Ok(Outcome::Pass)
}
