// SPDX-License-Identifier: GPL-2.0
//! Interfaces that are no taps: pairs that are connected to each other, and what is made on top of them.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use nix::unistd::Pid;
use vmm_sys_util::ioctl::ioctl_with_ref;

use crate::header::MODERN_LENGTH;
use crate::wait;

fn ip(words: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(words).output().context("run ip")?;
    ensure!(
        output.status.success(),
        "ip {}: {}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Keeps IPv6 from sending packets of its own.
fn silence(name: &str) -> Result<()> {
    let knob = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    match std::fs::write(&knob, "1") {
        // A kernel without IPv6 has nothing to silence.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.with_context(|| format!("write {knob}")),
    }
}

/// Brings an interface up, which then sends nothing by itself.
pub fn bring_up(name: &str) -> Result<()> {
    silence(name)?;
    ip(&["link", "set", name, "arp", "off", "up"])
}

/// What an interface has counted, by the name of the file in its `statistics`.
pub fn counter(name: &str, counter: &str) -> Result<u64> {
    let file = format!("/sys/class/net/{name}/statistics/{counter}");
    let text = std::fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    text.trim().parse().with_context(|| format!("parse {file}"))
}

/// Moves an interface to the network namespace of a thread.
pub fn move_to_namespace(name: &str, thread: Pid) -> Result<()> {
    ip(&["link", "set", name, "netns", &thread.to_string()])
}

/// Two interfaces: what one of them sends the other receives.
pub struct Pair {
    /// The one that the device under test is connected to.
    pub near: String,
    /// The other.
    pub far: String,
}

impl Pair {
    /// Makes a pair and brings it up.
    pub fn new(name: &str) -> Result<Self> {
        let pair = Self {
            near: format!("{name}n"),
            far: format!("{name}f"),
        };
        let (near, far) = (pair.near.as_str(), pair.far.as_str());
        ip(&["link", "add", near, "type", "veth", "peer", "name", far])?;
        bring_up(near)?;
        bring_up(far)?;
        Ok(pair)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // What is made on top of it goes with it. If it cannot be removed, the next of the same name
        // cannot be made, and says so.
        let _ = ip(&["link", "delete", &self.near]);
    }
}

/// A bridge between interfaces.
pub struct Bridge {
    name: String,
}

impl Bridge {
    /// Makes a bridge and brings it up.
    pub fn new(name: &str, ports: &[&str]) -> Result<Self> {
        ip(&["link", "add", name, "type", "bridge", "mcast_snooping", "0"])?;
        let bridge = Self { name: name.into() };
        for port in ports {
            ip(&["link", "set", port, "master", name])?;
        }
        bring_up(name)?;
        Ok(bridge)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // As for a pair.
        let _ = ip(&["link", "delete", &self.name]);
    }
}

/// The file of a macvtap or ipvtap.
pub struct TapOnTop {
    file: File,
}

impl AsRawFd for TapOnTop {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl TapOnTop {
    /// Makes an interface of this kind, `macvtap` or `ipvtap`, on the near one of a pair, and opens its
    /// node. Before every packet is a header with a number of buffers.
    pub fn new(pair: &Pair, kind: &str, mode: &str) -> Result<Self> {
        let name = format!("{}t", pair.near);
        ip(&[
            "link", "add", "link", &pair.near, "name", &name, "type", kind, "mode", mode,
        ])?;
        bring_up(&name)?;
        let index = nix::net::if_::if_nametoindex(name.as_str())?;
        let node = format!("/dev/tap{index}");
        wait::until("the node of the tap", || Ok(std::fs::exists(&node)?))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(&node)
            .with_context(|| format!("open {node}"))?;
        let length = MODERN_LENGTH as i32;
        // SAFETY: The request reads an int at its argument.
        Errno::result(unsafe { ioctl_with_ref(&file, libc::TUNSETVNETHDRSZ, &length) })
            .context("TUNSETVNETHDRSZ")?;
        Ok(Self { file })
    }
}
