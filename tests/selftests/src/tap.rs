// SPDX-License-Identifier: GPL-2.0
//! A tap device, the backend of a vhost device.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{bail, ensure, Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{socket, AddressFamily, SockFlag, SockType};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

use crate::wait;

/// A network interface whose packets go to whoever holds its file.
pub struct Tap {
    file: File,
    name: String,
}

/// What can be chosen about a tap.
#[derive(Clone, Debug)]
pub struct TapOptions {
    /// Name of the interface; the kernel replaces `%d` with a number.
    pub name: String,
    /// Length of the virtio-net header before every packet; none for packets without header.
    pub header_length: Option<usize>,
    /// The largest packet without Ethernet header.
    pub mtu: u16,
    /// Whether the guest takes packets with open checksums and of more than one segment.
    pub offload: bool,
    /// Whether the interface may have several queues, each of which is a file.
    pub multi_queue: bool,
    /// Limit of bytes in flight towards the host; none for the default, which is no limit.
    pub send_buffer: Option<i32>,
}

impl Default for TapOptions {
    fn default() -> Self {
        Self {
            name: "iocm%d".into(),
            header_length: Some(crate::header::MODERN_LENGTH),
            mtu: 1500,
            offload: false,
            multi_queue: false,
            send_buffer: None,
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl Tap {
    /// Creates a tap and brings it up.
    pub fn new(options: &TapOptions) -> Result<Self> {
        let tap = Self::open(options)?;
        if let Some(length) = options.header_length {
            tap.set_header_length(length)?;
        }
        if let Some(limit) = options.send_buffer {
            tap.set_int(libc::TUNSETSNDBUF, limit)?;
        }
        let offload = if options.offload {
            libc::TUN_F_CSUM | libc::TUN_F_TSO4
        } else {
            0
        };
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        Errno::result(unsafe { ioctl_with_val(&tap.file, libc::TUNSETOFFLOAD, offload.into()) })
            .context("TUNSETOFFLOAD")?;
        tap.silence()?;
        configure(&tap.name, |request| {
            request.ifr_ifru.ifru_mtu = options.mtu.into();
            libc::SIOCSIFMTU
        })?;
        tap.set_up(true)?;
        Ok(tap)
    }

    /// Opens a queue of the interface that the options name, which is created if it is not there.
    fn open(options: &TapOptions) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .context("open /dev/net/tun")?;
        let mut request = interface_request(&options.name)?;
        let header = if options.header_length.is_some() {
            libc::IFF_VNET_HDR
        } else {
            0
        };
        let queues = if options.multi_queue {
            libc::IFF_MULTI_QUEUE
        } else {
            0
        };
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | header | queues) as i16;
        // SAFETY: The argument is the interface request that TUNSETIFF reads and writes.
        Errno::result(unsafe { ioctl_with_mut_ref(&file, libc::TUNSETIFF, &mut request) })
            .with_context(|| format!("create tap {}", options.name))?;
        let name = interface_name(&request)?;
        Ok(Self { file, name })
    }

    /// Another queue of the same interface, which was created with these options.
    pub fn another_queue(&self, options: &TapOptions) -> Result<Self> {
        Self::open(&TapOptions {
            name: self.name.clone(),
            ..options.clone()
        })
    }

    /// Sets the length of the virtio-net header before every packet.
    pub fn set_header_length(&self, length: usize) -> Result<()> {
        self.set_int(libc::TUNSETVNETHDRSZ, length as i32)
    }

    /// Attaches the queue to its interface, or detaches it: then nothing comes or goes.
    pub fn set_attached(&self, attached: bool) -> Result<()> {
        const IFF_ATTACH_QUEUE: i16 = 0x200;
        const IFF_DETACH_QUEUE: i16 = 0x400;
        const TUNSETQUEUE: u64 = 0x4004_54d9;
        let mut request = interface_request(&self.name)?;
        request.ifr_ifru.ifru_flags = if attached {
            IFF_ATTACH_QUEUE
        } else {
            IFF_DETACH_QUEUE
        };
        // SAFETY: The argument is the interface request that TUNSETQUEUE reads.
        Errno::result(unsafe { ioctl_with_ref(&self.file, TUNSETQUEUE, &request) })
            .context("TUNSETQUEUE")?;
        Ok(())
    }

    /// Brings the interface up or down.
    pub fn set_up(&self, up: bool) -> Result<()> {
        configure(&self.name, |request| {
            let up = if up { libc::IFF_UP } else { 0 };
            request.ifr_ifru.ifru_flags = (up | libc::IFF_NOARP) as i16;
            libc::SIOCSIFFLAGS
        })
    }

    /// Name of the interface.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sends a packet, with the header if the tap has one, as the guest's side.
    pub fn send(&self, packet: &[u8]) -> Result<()> {
        let sent = (&self.file).write(packet).context("write to the tap")?;
        ensure!(sent == packet.len(), "the tap took {sent} bytes");
        Ok(())
    }

    /// Waits for a packet to the guest's side.
    pub fn expect(&self) -> Result<Vec<u8>> {
        let arrived = wait::readable(&[self.file.as_fd()], wait::patience())?;
        ensure!(
            arrived,
            "no packet arrived at the tap within {:?}",
            wait::patience()
        );
        let mut packet = vec![0; usize::from(u16::MAX)];
        let length = (&self.file)
            .read(&mut packet)
            .context("read from the tap")?;
        packet.truncate(length);
        Ok(packet)
    }

    /// Takes the packets that wait for the guest's side, and drops them.
    pub fn discard(&self) -> Result<()> {
        let mut packet = vec![0; usize::from(u16::MAX)];
        loop {
            match (&self.file).read(&mut packet) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("read from the tap"),
            }
        }
    }

    fn set_int(&self, request: u64, value: i32) -> Result<()> {
        // SAFETY: The requests that are passed here read an int at their argument.
        Errno::result(unsafe { ioctl_with_ref(&self.file, request, &value) })
            .with_context(|| format!("ioctl {request:#x} on {}", self.name))?;
        Ok(())
    }

    /// Keeps IPv6 from sending packets of its own, which would spoil exact counts.
    fn silence(&self) -> Result<()> {
        let knob = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", self.name);
        match std::fs::write(&knob, "1") {
            // A kernel without IPv6 has nothing to silence.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            result => result.with_context(|| format!("write {knob}")),
        }
    }
}

/// Whether an interface of this name exists.
pub fn interface_exists(name: &str) -> bool {
    std::path::Path::new("/sys/class/net").join(name).exists()
}

fn interface_request(name: &str) -> Result<libc::ifreq> {
    if name.len() >= libc::IFNAMSIZ {
        bail!("interface name {name} is too long");
    }
    // SAFETY: An interface request is plain old data, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn interface_name(request: &libc::ifreq) -> Result<String> {
    let bytes: Vec<u8> = request.ifr_name.iter().map(|c| *c as u8).collect();
    Ok(CStr::from_bytes_until_nul(&bytes)?.to_str()?.to_owned())
}

/// Configures an interface: the closure fills in the request and returns the ioctl that takes it.
fn configure(name: &str, fill: impl FnOnce(&mut libc::ifreq) -> libc::c_ulong) -> Result<()> {
    let control = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .context("control socket")?;
    let mut request = interface_request(name)?;
    let number = fill(&mut request);
    // SAFETY: All interface ioctls take an interface request, of which they read the field that the
    // closure filled in.
    Errno::result(unsafe { ioctl_with_ref(&control, number, &request) })
        .with_context(|| format!("ioctl {number:#x} on interface {name}"))?;
    Ok(())
}
