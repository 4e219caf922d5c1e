// SPDX-License-Identifier: GPL-2.0
//! The device that stalls.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use vhost_iocm_selftests::control::{virtqueue, Control};
use vhost_iocm_selftests::device::RECEIVE;
use vhost_iocm_selftests::frame::{self, Account};
use vhost_iocm_selftests::options::Flavour;
use vhost_iocm_selftests::process::{receive_fd, Owner, Part, STALLED_FRAMES, STALLED_STREAM};
use vhost_iocm_selftests::store::Store;
use vhost_iocm_selftests::thread::Thread;
use vhost_iocm_selftests::userfault::{Fault, Faults};
use vhost_iocm_selftests::wait;
use vhost_iocm_selftests::wire::PacketSocket;

/// The tap behind the device.
pub const TAP: &str = "stalled0";

/// Frames that the host sends into the stall, and that the driver sends back after it.
const REFLECTED_STREAM: u32 = 2;
/// A frame that shows that all before it have come back.
const LAST_STREAM: u32 = 3;
/// Packets that a tap queues.
const TAP_QUEUE: u64 = 500;

/// A device of another process, whose memory can be taken away.
pub struct Stalled {
    /// Where the memory is, if it is not nowhere. Its end comes first, for the owner may wait for it.
    store: Option<Store>,
    owner: Owner,
    /// Its name in the control interface.
    pub device: String,
    part: Part,
    wire: PacketSocket,
    /// Frames that the host has sent.
    sent: u64,
    faults: Option<Faults>,
}

impl Stalled {
    /// Starts the process. Nothing of its memory is missing yet, and its device is idle.
    pub fn new(node: &Path, control: &Control, part: Part) -> Result<Self> {
        Self::of(None, Owner::stall(node, TAP, part)?, control, part)
    }

    /// Starts the process and the server of the file into which its memory will go.
    pub fn in_file(node: &Path, control: &Control, part: Part) -> Result<Self> {
        let store = Store::new()?;
        let owner = Owner::stall_in(node, TAP, part, &store.file())?;
        Self::of(Some(store), owner, control, part)
    }

    fn of(store: Option<Store>, owner: Owner, control: &Control, part: Part) -> Result<Self> {
        let device = control.device_of(TAP)?;
        // A device that is polled could find the frames of its driver before the memory is gone.
        control.set_poll_of_device(&device, "0")?;
        Ok(Self {
            store,
            owner,
            device,
            part,
            wire: PacketSocket::new(TAP, frame::ETHERTYPE)?,
            sent: 0,
            faults: None,
        })
    }

    /// The process that owns the device.
    pub fn owner(&self) -> u32 {
        self.owner.pid()
    }

    /// Name of the thread in which the device does what may sleep.
    pub fn home(&self) -> String {
        format!("vhost-{}", self.owner())
    }

    /// Takes the memory away, gives the device work in both directions, and returns when it touched what
    /// is missing.
    pub fn begin(&mut self) -> Result<()> {
        self.owner.go_on()?;
        if self.is_full() {
            return self.flood();
        }
        if let Some(store) = &self.store {
            // The memory is in the file.
            self.owner.expect_done()?;
            store.stop()?;
            self.owner.go_on()?;
            self.send_some(STALLED_FRAMES)?;
            return self.expect_sleep();
        }
        let mut faults = Faults::from(receive_fd(&self.owner.channel)?);
        self.send_some(STALLED_FRAMES)?;
        let fault = faults.expect()?;
        self.faults = Some(faults);
        self.expect_home(fault)
    }

    /// Gives the device, which is idle, a frame to receive, and waits until it is polled for it.
    pub fn be_polled(&mut self, control: &Control) -> Result<()> {
        self.send_some(1)?;
        let status = format!("vq/{}/status", virtqueue(&self.device, RECEIVE));
        wait::until("the idle device to be polled", || {
            Ok(control.read_counter(&status, "polls")? > 0)
        })
    }

    /// Whether it is the tap that has no room, rather than memory that is missing.
    pub fn is_full(&self) -> bool {
        self.part == Part::Nothing
    }

    /// Sends more frames than the device's buffers and the tap take. The others are dropped.
    pub fn flood(&mut self) -> Result<()> {
        self.send_some(4 * TAP_QUEUE)
    }

    fn send_some(&mut self, frames: u64) -> Result<()> {
        for _ in 0..frames {
            ensure!(self.send(REFLECTED_STREAM, self.sent)?, "the wire is full");
            self.sent += 1;
        }
        Ok(())
    }

    fn send(&self, stream: u32, sequence: u64) -> Result<bool> {
        self.wire
            .send(&frame::encode(stream, sequence, frame::MINIMUM))
    }

    /// The thread in which the device does what may sleep.
    fn home_thread(&self) -> Result<Thread> {
        let control = Control::default();
        let status = control.read_status(&format!("dev/{}/status", self.device))?;
        Thread::parse(status.get("home_pid").context("no home_pid")?)
    }

    /// Checks that it is the device's own thread that sleeps.
    fn expect_home(&self, fault: Fault) -> Result<()> {
        let name = fault.thread.name()?;
        let home = self.home_thread()?;
        ensure!(
            name == self.home() && home == fault.thread,
            "thread {} ({name}) sleeps in the page fault; the home thread of process {} is {}",
            fault.thread.id,
            self.owner(),
            home.id
        );
        Ok(())
    }

    /// Waits until the device's own thread sleeps, as nobody does who waits for work.
    fn expect_sleep(&self) -> Result<()> {
        wait::until("the home thread to sleep in a page fault", || {
            // It is known once it has run.
            let home = self.home_thread()?;
            Ok(home.id > 0 && home.state()? == 'D')
        })
    }

    /// Brings the memory back, and expects every frame of both directions once and in order.
    pub fn end(mut self) -> Result<()> {
        if let Some(store) = &self.store {
            store.go_on()?;
        }
        self.owner.go_on()?;
        self.owner.expect_done()?;
        let (mut own, mut reflected) = (Account::default(), Account::default());
        wait::until("the frames of the stall to arrive", || {
            // It is lost as long as the tap is full.
            self.send(LAST_STREAM, 0)?;
            while let Some(frame) = self.wire.receive()? {
                let numbered = frame::decode(frame)?;
                match numbered.stream {
                    STALLED_STREAM => own.note(numbered.sequence),
                    REFLECTED_STREAM => reflected.note(numbered.sequence),
                    LAST_STREAM => return Ok(true),
                    stream => bail!("a frame of stream {stream}"),
                }
            }
            Ok(false)
        })?;
        own.expect_all(STALLED_FRAMES)
            .context("from the stalled driver to the host")?;
        let back = "to the stalled driver and back";
        if self.is_full() {
            reflected.expect_order().context(back)?;
            ensure!(
                reflected.received >= TAP_QUEUE,
                "{back}: only {} frames of a full tap arrived",
                reflected.received
            );
            return Ok(());
        }
        reflected.expect_all(self.sent).context(back)
    }

    /// Does something that must not wait for the memory to come back.
    pub fn meanwhile<T: Send>(
        &self,
        what: &str,
        act: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(act);
            let end = Instant::now() + promptness();
            while !thread.is_finished() {
                if Instant::now() > end {
                    // The death of the process ends the fault, and with it the wait.
                    kill(Pid::from_raw(self.owner() as i32), Signal::SIGKILL)?;
                    bail!("not within {:?} beside a page fault: {what}", promptness());
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            thread.join().unwrap_or_else(|_| bail!("panicked: {what}"))
        })
        .with_context(|| what.to_owned())
    }

    /// Kills the process while its memory is still missing: the descriptor of the faults outlives it here.
    pub fn kill(self) -> Result<()> {
        let Self { owner, faults, .. } = self;
        let status = owner.kill()?;
        ensure!(status.code().is_none(), "the owner exited: {status}");
        drop(faults);
        Ok(())
    }

    /// Lets the process exit while its memory is missing.
    pub fn exit(self) -> Result<()> {
        let Self { owner, faults, .. } = self;
        owner.release()?;
        drop(faults);
        Ok(())
    }
}

/// How long something may take that waits for one slice of another device at most. Generous: the other
/// choice is as long as the test likes.
fn promptness() -> Duration {
    match Flavour::of_environment() {
        Flavour::Plain => Duration::from_secs(1),
        Flavour::Debug => Duration::from_secs(10),
    }
}
