// SPDX-License-Identifier: GPL-2.0
//! Other processes that own devices.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{ensure, Context, Result};
use clap::ValueEnum;
use nix::sys::signal::{kill, Signal};
use nix::sys::socket::{recvmsg, sendmsg, ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr};
use nix::unistd::Pid;

use crate::wait;

/// Frames that the driver of a stalled device transmits into the stall.
pub const STALLED_FRAMES: u64 = 64;
/// Their stream.
pub const STALLED_STREAM: u32 = 1;

/// What of a device's memory can be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The buffers of packets to the driver.
    ReceiveBuffers,
    /// The buffers of packets from the driver.
    TransmitBuffers,
    /// The available ring of the packets from the driver.
    Available,
    /// The used ring of the packets from the driver.
    Used,
    /// Nothing; the driver just does not look at its rings.
    Nothing,
}

impl Part {
    fn name(self) -> Result<String> {
        let value = self.to_possible_value();
        let value = value.context("a part of the memory has no name")?;
        Ok(value.get_name().to_owned())
    }
}

/// What a device can be kept busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Packets {
    /// Frames of Ethernet's usual size.
    Frames,
    /// The same, of which one is under way at a time, so that the driver waits for each and notifies of
    /// the next.
    SingleFrames,
    /// TCP segments of 64 KiB, to be cut by who receives them.
    Segments,
}

/// A process of the program `owner`, killed when it goes out of scope.
pub struct Owner {
    child: Child,
    /// Where the process says that it is ready, and what it hands over.
    pub channel: UnixStream,
}

impl Owner {
    /// Starts a process that owns a device of this node with a tap of this name, and reflects every
    /// frame that it receives.
    pub fn reflect(node: &Path, tap: &str) -> Result<Self> {
        Self::spawn(&["reflect", "--tap", tap], node)
    }

    /// Like [`reflect`](Self::reflect), and hands the device's descriptor over as well.
    pub fn lend(node: &Path, tap: &str) -> Result<(Self, OwnedFd)> {
        let owner = Self::spawn(&["reflect", "--lend", "--tap", tap], node)?;
        let fd = receive_fd(&owner.channel)?;
        Ok((owner, fd))
    }

    /// Starts a process with so many MiB of memory that owns a running device, whose descriptor it hands
    /// over. When told to go on it tries to become a program that is none, and then another one that keeps
    /// the device open.
    pub fn replace(node: &Path, tap: &str, ballast: usize) -> Result<(Self, OwnedFd)> {
        let ballast = ballast.to_string();
        let owner = Self::spawn(&["replace", "--tap", tap, "--ballast", &ballast], node)?;
        let fd = receive_fd(&owner.channel)?;
        Ok((owner, fd))
    }

    /// Starts a process that owns a device and, when told to, takes this part of its memory away.
    pub fn stall(node: &Path, tap: &str, part: Part) -> Result<Self> {
        let part = part.name()?;
        Self::spawn(&["stall", "--tap", tap, "--part", &part], node)
    }

    /// Starts a process that owns a device and, when told to, moves this part of its memory into a file.
    pub fn stall_in(node: &Path, tap: &str, part: Part, file: &Path) -> Result<Self> {
        let part = part.name()?;
        let file = file.to_str().context("the path is no text")?;
        let arguments = ["stall", "--tap", tap, "--part", &part, "--file", file];
        Self::spawn(&arguments, node)
    }

    /// Starts a process that keeps its device busy with packets of this kind, once it is told to.
    pub fn saturate(node: &Path, tap: &str, packets: Packets) -> Result<Self> {
        let packets = packets
            .to_possible_value()
            .context("a kind of packets has no name")?;
        let arguments = ["saturate", "--tap", tap, "--packets", packets.get_name()];
        Self::spawn(&arguments, node)
    }

    /// Starts a process that transmits batches of so many packets of `length` bytes, or receives them. Each time that it
    /// is told to go on it puts up a batch, or shows what it has put up to its device and waits until
    /// that has served it, by turns. One that receives first takes a batch with the buffers that it has.
    pub fn batches(
        node: &Path,
        tap: &str,
        packets: u16,
        length: usize,
        receive: bool,
    ) -> Result<Self> {
        let (packets, length) = (packets.to_string(), length.to_string());
        let mut arguments = vec!["batches", "--tap", tap];
        arguments.extend(["--packets", &packets, "--length", &length]);
        if receive {
            arguments.push("--receive");
        }
        Self::spawn(&arguments, node)
    }

    fn spawn(arguments: &[&str], node: &Path) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair().context("socket pair")?;
        ours.set_read_timeout(Some(wait::patience()))?;
        let program = std::env::current_exe()?.with_file_name("owner");
        let child = Command::new(&program)
            .args(arguments)
            .arg(node)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .with_context(|| format!("run {}", program.display()))?;
        let owner = Self {
            child,
            channel: ours,
        };
        owner
            .expect_done()
            .context("the owner process did not get ready")?;
        Ok(owner)
    }

    /// Tells the process to go on with what it was started for.
    pub fn go_on(&self) -> Result<()> {
        (&self.channel).write_all(b"g").context("tell the owner")
    }

    /// Waits until the process has done what it was told to.
    pub fn expect_done(&self) -> Result<()> {
        let mut byte = [0];
        (&self.channel)
            .read_exact(&mut byte)
            .context("wait for the owner")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it with SIGKILL and waits for its end.
    pub fn kill(self) -> Result<ExitStatus> {
        self.kill_by(Signal::SIGKILL)
    }

    /// Kills it with a signal that it does not catch, and waits for its end.
    pub fn kill_by(mut self, signal: Signal) -> Result<ExitStatus> {
        kill(Pid::from_raw(self.pid() as i32), signal).context("kill the owner")?;
        self.child.wait().context("wait for the owner")
    }

    /// Lets it exit on its own, without closing its device before, and waits for its end.
    pub fn release(mut self) -> Result<()> {
        self.channel
            .shutdown(std::net::Shutdown::Both)
            .context("close the owner's channel")?;
        let mut status = None;
        wait::until("the owner process to exit", || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })?;
        ensure!(
            status.is_some_and(|s| s.success()),
            "the owner process failed: {status:?}"
        );
        Ok(())
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // It may have been waited for already; a process that is gone needs no kill.
        if matches!(self.child.try_wait(), Ok(None)) && self.child.kill().is_ok() {
            let _ = self.child.wait();
        }
    }
}

/// Hands a descriptor to the other side of the channel.
pub fn send_fd(channel: &UnixStream, fd: BorrowedFd<'_>) -> Result<()> {
    let bytes = [std::io::IoSlice::new(b"f")];
    let fds = [fd.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&fds)];
    sendmsg::<UnixAddr>(
        channel.as_raw_fd(),
        &bytes,
        &message,
        MsgFlags::empty(),
        None,
    )
    .context("send a descriptor")?;
    Ok(())
}

/// Takes a descriptor from the other side of the channel.
pub fn receive_fd(channel: &UnixStream) -> Result<OwnedFd> {
    let mut byte = [0];
    let mut bytes = [std::io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let message = recvmsg::<UnixAddr>(
        channel.as_raw_fd(),
        &mut bytes,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )
    .context("receive a descriptor")?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            if let [fd] = fds[..] {
                // SAFETY: The kernel has just installed this descriptor for the receiver of the
                // message, which nobody else saw.
                return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    anyhow::bail!("the message carries no descriptor")
}
