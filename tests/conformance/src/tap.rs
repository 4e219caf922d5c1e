// SPDX-License-Identifier: GPL-2.0
//! A tap behind a device, and a packet socket on the host's side of it.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    recv, send, setsockopt, socket, sockopt, AddressFamily, MsgFlags, SockFlag, SockType,
};

mod ioctl {
    nix::ioctl_write_ptr_bad!(set_interface, libc::TUNSETIFF, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_header, libc::TUNSETVNETHDRSZ, libc::c_int);
    nix::ioctl_write_ptr_bad!(set_send_buffer, libc::TUNSETSNDBUF, libc::c_int);
    nix::ioctl_write_int_bad!(set_offload, libc::TUNSETOFFLOAD);
    nix::ioctl_write_ptr_bad!(set_queue, libc::TUNSETQUEUE, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);
    nix::ioctl_read_bad!(index, libc::SIOCGIFINDEX, libc::ifreq);
}

/// Bytes in flight towards the host that are no limit. Only then are packets sent in batches.
pub const NO_LIMIT: i32 = i32::MAX;

/// A tap whose packets have a virtio-net header, up and silent.
pub struct Tap {
    file: File,
    name: [libc::c_char; libc::IFNAMSIZ],
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// A control file of tun that is no interface yet.
pub fn bare() -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .context("open /dev/net/tun")
}

fn request(name: &[libc::c_char; libc::IFNAMSIZ]) -> libc::ifreq {
    // SAFETY: An interface request is plain old data, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name = *name;
    request
}

impl Tap {
    /// A tap of a name that is free.
    pub fn new() -> Result<Self> {
        Self::with(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR)
    }

    /// An interface with these flags.
    pub fn with(flags: i32) -> Result<Self> {
        let mut name = [0; libc::IFNAMSIZ];
        for (to, from) in name.iter_mut().zip(b"conform%d") {
            *to = *from as libc::c_char;
        }
        let tap = Self::open(name, flags)?;
        tap.silence()?;
        tap.set_up(true)?;
        Ok(tap)
    }

    /// One more queue of an interface with several.
    pub fn queue(&self) -> Result<Self> {
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
        Self::open(self.name, flags)
    }

    fn open(name: [libc::c_char; libc::IFNAMSIZ], flags: i32) -> Result<Self> {
        let file = bare()?;
        let mut request = request(&name);
        request.ifr_ifru.ifru_flags = flags as i16;
        // SAFETY: The request reads and writes the structure.
        unsafe { ioctl::set_interface(file.as_raw_fd(), &raw mut request) }.context("TUNSETIFF")?;
        Ok(Self {
            file,
            name: request.ifr_name,
        })
    }

    /// Detaches this queue of an interface with several, or attaches it again.
    pub fn attach(&self, attach: bool) -> Result<()> {
        let mut request = request(&self.name);
        request.ifr_ifru.ifru_flags = if attach {
            libc::IFF_ATTACH_QUEUE
        } else {
            libc::IFF_DETACH_QUEUE
        } as i16;
        // SAFETY: The request reads the structure.
        unsafe { ioctl::set_queue(self.as_raw_fd(), &raw const request) }.context("TUNSETQUEUE")?;
        Ok(())
    }

    /// The interface's name.
    pub fn name(&self) -> String {
        self.name
            .iter()
            .take_while(|c| **c != 0)
            .map(|c| char::from(*c as u8))
            .collect()
    }

    /// Sets the bytes of the header, and the limit of bytes in flight towards the host.
    pub fn configure(&self, header: usize, send_buffer: i32) -> Result<()> {
        let header = header as libc::c_int;
        // SAFETY: The request reads an int.
        unsafe { ioctl::set_header(self.as_raw_fd(), &raw const header) }
            .context("TUNSETVNETHDRSZ")?;
        // SAFETY: The request reads an int.
        unsafe { ioctl::set_send_buffer(self.as_raw_fd(), &raw const send_buffer) }
            .context("TUNSETSNDBUF")?;
        // The guest takes no packet that is not complete.
        // SAFETY: The request takes a number.
        unsafe { ioctl::set_offload(self.as_raw_fd(), 0) }.context("TUNSETOFFLOAD")?;
        Ok(())
    }

    /// Keeps IPv6 from sending packets of its own.
    fn silence(&self) -> Result<()> {
        let knob = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", self.name());
        match std::fs::write(&knob, "1") {
            // A kernel without IPv6 has nothing to silence.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            result => result.with_context(|| format!("write {knob}")),
        }
    }

    /// Brings the interface up or down.
    pub fn set_up(&self, up: bool) -> Result<()> {
        let mut request = request(&self.name);
        let up = if up { libc::IFF_UP } else { 0 };
        request.ifr_ifru.ifru_flags = (up | libc::IFF_NOARP) as i16;
        let control = control()?;
        // SAFETY: The request reads the structure.
        unsafe { ioctl::set_flags(control.as_raw_fd(), &raw const request) }
            .context("SIOCSIFFLAGS")?;
        Ok(())
    }

    /// The interface's number.
    fn index(&self) -> Result<i32> {
        let mut request = request(&self.name);
        let control = control()?;
        // SAFETY: The request reads and writes the structure.
        unsafe { ioctl::index(control.as_raw_fd(), &raw mut request) }.context("SIOCGIFINDEX")?;
        // SAFETY: The request has written the index.
        Ok(unsafe { request.ifr_ifru.ifru_ifindex })
    }

    /// Takes the packets that wait for the guest and drops them. Returns how many those were.
    pub fn discard(&self) -> Result<usize> {
        let mut packet = vec![0; usize::from(u16::MAX)];
        for count in 0.. {
            match (&self.file).read(&mut packet) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(count),
                Err(error) => return Err(error).context("read from the tap"),
            }
        }
        Ok(0)
    }
}

fn control() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    socket(AddressFamily::Inet, SockType::Datagram, flags, None).context("control socket")
}

/// Room for packets that arrive while a test does something else.
const RECEIVE_BUFFER: usize = 8 << 20;

/// The host's side of a tap.
pub struct Wire {
    socket: OwnedFd,
}

impl AsRawFd for Wire {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Wire {
    /// A raw packet socket that sees all that the guest sends.
    pub fn new(tap: &Tap) -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // Protocol none: nothing arrives before the socket is bound to the interface.
        let socket =
            socket(AddressFamily::Packet, SockType::Raw, flags, None).context("packet socket")?;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).context("SO_RCVBUFFORCE")?;
        let wire = Self { socket };
        wire.set_option(libc::PACKET_IGNORE_OUTGOING, 1)?;
        wire.bind(tap.index()?, libc::ETH_P_ALL as u16)?;
        Ok(wire)
    }

    fn set_option(&self, option: libc::c_int, value: libc::c_int) -> Result<()> {
        // SAFETY: Value and length are those of an integer of this function, which the kernel reads.
        Errno::result(unsafe {
            libc::setsockopt(
                self.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                std::ptr::from_ref(&value).cast(),
                size_of_val(&value) as libc::socklen_t,
            )
        })
        .context("option of a packet socket")?;
        Ok(())
    }

    fn bind(&self, interface: i32, protocol: u16) -> Result<()> {
        // SAFETY: A link-layer address is plain old data, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = interface;
        // SAFETY: Address and length are those of a structure of this function, which the kernel reads.
        Errno::result(unsafe {
            libc::bind(
                self.as_raw_fd(),
                std::ptr::from_ref(&address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        })
        .context("bind the packet socket")?;
        Ok(())
    }

    /// Sends a packet to the guest.
    pub fn send(&self, packet: &[u8]) -> Result<()> {
        let sent =
            send(self.as_raw_fd(), packet, MsgFlags::empty()).context("send to the guest")?;
        ensure!(sent == packet.len(), "{sent} bytes were sent");
        Ok(())
    }

    /// Takes the next packet that the guest sent, if there is one.
    pub fn receive(&self) -> Result<Option<Vec<u8>>> {
        let mut packet = vec![0; 70_000];
        match recv(self.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            Ok(length) => {
                packet.truncate(length);
                Ok(Some(packet))
            }
            Err(Errno::EAGAIN | Errno::ENETDOWN) => Ok(None),
            Err(error) => Err(error).context("receive from the guest"),
        }
    }
}
