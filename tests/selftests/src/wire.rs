// SPDX-License-Identifier: GPL-2.0
//! The host's side of a tap: a packet socket on its interface.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    recv, send, setsockopt, socket, sockopt, AddressFamily, MsgFlags, SockFlag, SockType,
};

use crate::header::{NetHeader, LEGACY_LENGTH};
use crate::wait;

/// Room for frames that arrive while the test does something else. The kernel charges a small frame
/// with a multiple of its size.
const RECEIVE_BUFFER: usize = 32 << 20;
/// The largest packet with its header.
const LARGEST: usize = crate::segment::MAXIMUM + LEGACY_LENGTH;

/// A raw packet socket that sees one EtherType on one interface.
pub struct PacketSocket {
    socket: OwnedFd,
    /// Whether a virtio-net header, always a legacy one, comes before every packet.
    header: bool,
    buffer: Vec<u8>,
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl PacketSocket {
    /// A socket for complete packets of this EtherType.
    pub fn new(interface: &str, ethertype: u16) -> Result<Self> {
        Self::open(interface, ethertype, false)
    }

    /// A socket for packets whose checksum and segmentation may be open, as their header says.
    pub fn with_header(interface: &str, ethertype: u16) -> Result<Self> {
        Self::open(interface, ethertype, true)
    }

    fn open(interface: &str, ethertype: u16, header: bool) -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // Protocol none: nothing arrives before the socket is bound to the interface.
        let socket =
            socket(AddressFamily::Packet, SockType::Raw, flags, None).context("packet socket")?;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).context("SO_RCVBUFFORCE")?;
        if header {
            set_option(&socket, libc::PACKET_VNET_HDR, 1).context("PACKET_VNET_HDR")?;
        }
        bind(&socket, interface, ethertype)?;
        Ok(Self {
            socket,
            header,
            buffer: vec![0; LARGEST],
        })
    }

    /// A socket for packets of this EtherType to be the backend of a device, with a virtio-net header
    /// before every packet or none.
    pub fn as_backend(interface: &str, ethertype: u16, header: bool) -> Result<Self> {
        Self::open(interface, ethertype, header)
    }

    /// Sends a packet. Returns false when there is no room for it now.
    pub fn send(&self, packet: &[u8]) -> Result<bool> {
        self.send_with(&NetHeader::default(), packet)
    }

    /// Sends a packet with what its header leaves to the receiver.
    pub fn send_with(&self, header: &NetHeader, packet: &[u8]) -> Result<bool> {
        let result = if self.header {
            let mut bytes = header.encode(false);
            bytes.extend_from_slice(packet);
            send(self.as_raw_fd(), &bytes, MsgFlags::empty())
        } else {
            ensure!(
                *header == NetHeader::default(),
                "this socket carries no header"
            );
            send(self.as_raw_fd(), packet, MsgFlags::empty())
        };
        match result {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::ENOBUFS) => Ok(false),
            Err(error) => Err(error).context("send on the packet socket"),
        }
    }

    /// Takes the next packet, if there is one.
    pub fn receive(&mut self) -> Result<Option<&[u8]>> {
        Ok(self.receive_with()?.map(|(_, packet)| packet))
    }

    /// Takes the next packet with what its header leaves open.
    pub fn receive_with(&mut self) -> Result<Option<(NetHeader, &[u8])>> {
        let length = match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
            Ok(length) => length,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(error) => return Err(error).context("receive on the packet socket"),
        };
        let bytes = &self.buffer[..length];
        if !self.header {
            return Ok(Some((NetHeader::default(), bytes)));
        }
        let header = bytes
            .get(..LEGACY_LENGTH)
            .and_then(NetHeader::decode)
            .with_context(|| format!("packet of {length} bytes has no header"))?;
        Ok(Some((header, &bytes[LEGACY_LENGTH..])))
    }

    /// Waits for the next packet.
    pub fn expect(&mut self) -> Result<Vec<u8>> {
        Ok(self.expect_with()?.1)
    }

    /// Waits for the next packet with what its header leaves open.
    pub fn expect_with(&mut self) -> Result<(NetHeader, Vec<u8>)> {
        let arrived = wait::readable(&[self.as_fd()], wait::patience())?;
        ensure!(
            arrived,
            "no packet arrived at the host within {:?}",
            wait::patience()
        );
        let (header, packet) = self
            .receive_with()?
            .context("a packet arrived and is gone")?;
        Ok((header, packet.to_vec()))
    }

    /// Packets that the socket itself had no room for since the last look.
    pub fn drops(&self) -> Result<u32> {
        // SAFETY: The statistics are plain old data, for which zero is a value.
        let mut statistics: libc::tpacket_stats = unsafe { std::mem::zeroed() };
        let mut length = size_of_val(&statistics) as libc::socklen_t;
        // SAFETY: Value and length are those of a structure of this function, which the kernel fills.
        Errno::result(unsafe {
            libc::getsockopt(
                self.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                std::ptr::from_mut(&mut statistics).cast(),
                &mut length,
            )
        })
        .context("PACKET_STATISTICS")?;
        Ok(statistics.tp_drops)
    }
}

fn set_option(socket: &OwnedFd, option: libc::c_int, value: libc::c_int) -> Result<(), Errno> {
    // SAFETY: Value and length are those of an integer of this function, which the kernel reads.
    Errno::result(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            std::ptr::from_ref(&value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    })
    .map(drop)
}

fn bind(socket: &OwnedFd, interface: &str, ethertype: u16) -> Result<()> {
    let index = nix::net::if_::if_nametoindex(interface)
        .with_context(|| format!("index of interface {interface}"))?;
    // SAFETY: A link-layer address is plain old data, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = index as i32;
    // SAFETY: Address and length are those of a structure of this function, which the kernel reads.
    Errno::result(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            std::ptr::from_ref(&address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    })
    .with_context(|| format!("bind the packet socket to {interface}"))?;
    Ok(())
}
