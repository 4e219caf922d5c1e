// SPDX-License-Identifier: GPL-2.0
//! Instructions for each packet with another driver than our own: DPDK's testpmd and its virtio-user (tier T1).
//!
//! It sends as fast as it can from a thread that polls, so its ring is full whenever the serving thread has the
//! machine's only processor. What it is to receive comes in batches, each complete before the serving thread sees the
//! first of it. A process of it on either module stands still while that on the other one is measured.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use vhost_iocm_selftests::thread::Thread;
use vhost_iocm_selftests::wire::PacketSocket;
use vhost_iocm_selftests::xdp::{self, Program};
use vhost_iocm_selftests::{cpu, interface, segment, wait};

use crate::counts::{settle, BATCHES, ROUNDS};
use crate::pairs::{self, Wanted};
use crate::record::{Record, Tier};
use crate::subject::{Module, Subjects};
use crate::workload::Direction;

/// Bytes of a packet, and packets of a batch that is received: as in the shape of that name.
const LENGTH: usize = 64;
const BATCH: u64 = 64;
/// Where the program is, as tests/clients/build unpacks it.
const DPDK: &str = "build/clients/dpdk";
/// The only node that it takes for one of the kernel's vhost_net.
const NODE: &str = "/dev/vhost-net";
/// For how long sending is measured.
const TIME: Duration = Duration::from_millis(100);
/// Packets that a measurement of sending has to have at least.
const PACKETS: u64 = 1000;

/// Measures the metrics that are wanted, if the program is there.
pub fn run(subjects: &Subjects, wanted: &Wanted) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for direction in Direction::ALL {
        let metric = format!("t1_testpmd_{}{LENGTH}_insns", direction.name());
        if !wanted.has(&metric) {
            continue;
        }
        if !Path::new(DPDK).join("complete").exists() {
            eprintln!("{metric} is not measured: {DPDK} is not complete, see tests/clients/build");
            continue;
        }
        let mut stock = Card::start(subjects, Module::Stock, direction)?;
        let mut ours = Card::start(subjects, Module::Ours, direction)?;
        records.extend(pairs::measure(
            Tier::T1,
            &metric,
            ROUNDS,
            |module| match module {
                Module::Stock => stock.measure(),
                Module::Ours => ours.measure(),
            },
        )?);
        stock.end()?;
        ours.end()?;
    }
    Ok(records)
}

/// A process that sends or receives packets of 64 bytes. It stands still but while it is measured.
struct Card {
    child: Child,
    /// It ends when it reads a line.
    input: Option<ChildStdin>,
    thread: Thread,
    tap: &'static str,
    /// The tap's counter of such packets.
    counter: &'static str,
    traffic: Traffic,
}

/// What is at the other end of the tap.
enum Traffic {
    /// A program that drops what the process sends.
    Dropped { _drop: OwnedFd },
    /// A socket through which the process is sent this packet.
    Sent { wire: PacketSocket, packet: Vec<u8> },
}

impl Card {
    fn start(subjects: &Subjects, module: Module, direction: Direction) -> Result<Self> {
        let tap = match module {
            Module::Stock => "testpmd-stock",
            Module::Ours => "testpmd-ours",
        };
        let libraries = find(&Path::new(DPDK).join("usr/lib"), |name| {
            name.ends_with("-linux-gnu")
        })?;
        // It takes no other node, so it finds ours in the place of that one.
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c"])
            .arg(r#"mount --bind "$1" "$2" && shift 2 && exec stdbuf -oL "$@""#)
            .arg("sh")
            .args([subjects.node(module), Path::new(NODE)])
            .arg(Path::new(DPDK).join("usr/bin/dpdk-testpmd"))
            .env("LD_LIBRARY_PATH", &libraries);
        for plugin in ["bus_vdev", "mempool_ring", "net_virtio"] {
            let prefix = format!("librte_{plugin}.so.");
            // The name that goes on with a release, and not with the number of an interface alone.
            let plugin = find(&libraries, |name| {
                let release = name.strip_prefix(&prefix);
                release.is_some_and(|release| release.contains('.'))
            })?;
            command.arg("-d").arg(plugin);
        }
        let mode = match direction {
            Direction::Transmit => "--forward-mode=txonly",
            Direction::Receive => "--forward-mode=rxonly",
        };
        let log = format!("/tmp/{tap}.log");
        let device = format!("--vdev=net_virtio_user0,path={NODE},iface={tap},queue_size=256");
        command
            .args([
                "--no-huge",
                "-m",
                "64",
                "--no-pci",
                "--no-telemetry",
                "--file-prefix",
                tap,
            ])
            .args(["--lcores", "0@0,1@0", &device, "--"])
            .args(["--total-num-mbufs=4096", "--txd=256", "--rxd=256"])
            .args([mode, "--txpkts=64"])
            .stdin(Stdio::piped())
            .stdout(File::create(&log)?)
            .stderr(File::create(format!("{log}.err"))?);
        let mut child = command.spawn().context("start testpmd")?;
        let input = child.stdin.take();
        let started = wait::until("testpmd to start", || {
            ensure!(child.try_wait()?.is_none(), "testpmd ended");
            Ok(fs::read_to_string(&log)?.contains("Press enter to exit"))
        });
        if let Err(error) = started {
            let _ = child.kill();
            let said = fs::read_to_string(&log).unwrap_or_default()
                + &fs::read_to_string(format!("{log}.err")).unwrap_or_default();
            return Err(error.context(said));
        }
        let status = Command::new("ip")
            .args(["link", "set", tap, "up"])
            .status()?;
        ensure!(status.success(), "{tap} does not come up");
        let (counter, traffic) = match direction {
            Direction::Transmit => {
                let _drop = xdp::attach(tap, Program::Drop)?;
                ("rx_dropped", Traffic::Dropped { _drop })
            }
            Direction::Receive => {
                let wire = PacketSocket::new(tap, 0)?;
                let (_, packet) = segment::unheard(LENGTH);
                ("tx_packets", Traffic::Sent { wire, packet })
            }
        };
        let thread = subjects.thread(module, child.id(), tap, "0")?;
        let card = Self {
            child,
            input,
            thread,
            tap,
            counter,
            traffic,
        };
        card.signal(Signal::SIGSTOP)?;
        Ok(card)
    }

    /// Instructions of the serving thread for each packet.
    fn measure(&mut self) -> Result<f64> {
        self.signal(Signal::SIGCONT)?;
        let (before, ran) = (self.count()?, self.thread.runtime()?);
        let least = match &self.traffic {
            Traffic::Dropped { .. } => {
                std::thread::sleep(TIME);
                PACKETS
            }
            Traffic::Sent { wire, packet } => {
                let _first = cpu::run_first()?;
                for batch in 1..=u64::from(BATCHES) {
                    for _ in 0..BATCH {
                        ensure!(wire.send(packet)?, "the wire is full");
                    }
                    wait::until("a batch to be received", || {
                        Ok(self.count()? >= before + batch * BATCH)
                    })?;
                    settle();
                }
                u64::from(BATCHES) * BATCH
            }
        };
        self.signal(Signal::SIGSTOP)?;
        // What is in the ring is served.
        std::thread::sleep(TIME / 10);
        let packets = self.count()? - before;
        let ran = self.thread.runtime()? - ran;
        ensure!(packets >= least, "only {packets} packets of {least}");
        Ok(ran.as_nanos() as f64 / packets as f64)
    }

    fn count(&self) -> Result<u64> {
        interface::counter(self.tap, self.counter)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let process = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(process, signal).with_context(|| format!("{signal} for testpmd"))
    }

    fn end(mut self) -> Result<()> {
        self.signal(Signal::SIGCONT)?;
        if let Some(mut input) = self.input.take() {
            input.write_all(b"\n")?;
        }
        let status = self.child.wait()?;
        ensure!(status.success(), "testpmd ended with {status}");
        Ok(())
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        // It has ended already where nothing went wrong.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An entry of a directory whose name is a wanted one.
fn find(directory: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        if is_wanted(&entry.file_name().to_string_lossy()) {
            return Ok(fs::canonicalize(entry.path())?);
        }
    }
    anyhow::bail!("nothing of DPDK in {}", directory.display())
}
