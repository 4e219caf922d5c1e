// SPDX-License-Identifier: GPL-2.0
//! A vhost device: one open file of the node, and its ioctls.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use vhost::vhost_kern::vhost_binding::{
    vhost_memory_region, vhost_vring_addr, vhost_vring_file, vhost_vring_state, VhostMemory,
    VHOST_GET_FEATURES, VHOST_GET_VRING_BASE, VHOST_NET_SET_BACKEND, VHOST_RESET_OWNER,
    VHOST_SET_BACKEND_FEATURES, VHOST_SET_FEATURES, VHOST_SET_LOG_BASE, VHOST_SET_LOG_FD,
    VHOST_SET_MEM_TABLE, VHOST_SET_OWNER, VHOST_SET_VRING_ADDR, VHOST_SET_VRING_BASE,
    VHOST_SET_VRING_CALL, VHOST_SET_VRING_ERR, VHOST_SET_VRING_KICK, VHOST_SET_VRING_NUM,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vmm_sys_util::ioctl::ioctl_with_val;

/// Index of the virtqueue that carries packets to the guest.
pub const RECEIVE: u32 = 0;
/// Index of the virtqueue that carries packets from the guest.
pub const TRANSMIT: u32 = 1;

/// Feature: a packet may take several receive buffers.
pub const MRG_RXBUF: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
/// Feature: call whenever the available ring is found empty.
pub const NOTIFY_ON_EMPTY: u64 = 1 << 24;
/// Feature: the dirty log of live migration.
pub const LOG_ALL: u64 = 1 << 26;
/// Feature: the device supplies the virtio-net header, the socket has none.
pub const DEVICE_HEADER: u64 = 1 << 27;
/// Feature: descriptors may point to tables of descriptors.
pub const INDIRECT_DESC: u64 = 1 << 28;
/// Feature: notifications are asked for by ring index.
pub const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
/// Feature: virtio 1.
pub const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
/// Feature: addresses go through the device IOTLB.
pub const ACCESS_PLATFORM: u64 = 1 << 33;
/// Feature: buffers are used in the order in which they were made available.
pub const IN_ORDER: u64 = 1 << 35;
/// Feature: a single virtqueue may be reset.
pub const RING_RESET: u64 = 1 << 40;

/// Features from number 64 on: segmentation of packets in UDP tunnels, from the host and from the
/// guest (VIRTIO_NET_F_GUEST_UDP_TUNNEL_GSO, VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO).
pub const UDP_TUNNELS: u64 = 1 << (65 - 64) | 1 << (67 - 64);

/// Features that vhost_iocm offers.
///
/// They are those of Linux 7.2's vhost_net.
pub const FEATURES: u64 = MRG_RXBUF
    | NOTIFY_ON_EMPTY
    | LOG_ALL
    | DEVICE_HEADER
    | INDIRECT_DESC
    | EVENT_IDX
    | VERSION_1
    | ACCESS_PLATFORM
    | IN_ORDER
    | RING_RESET;
/// Features from number 64 on that it offers.
pub const HIGH_FEATURES: u64 = UDP_TUNNELS;

/// Numbers of requests that the bindings lack, named as in the kernel's headers.
#[expect(missing_docs, reason = "the macros take no documentation")]
pub mod request {
    use vhost::vhost_kern::vhost_binding::{vhost_vring_state, VHOST};
    use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr};

    ioctl_ior_nr!(VHOST_GET_FEATURES_ARRAY, VHOST, 0x83, u64);
    ioctl_iow_nr!(VHOST_SET_FEATURES_ARRAY, VHOST, 0x83, u64);
    ioctl_iow_nr!(
        VHOST_SET_VRING_BUSYLOOP_TIMEOUT,
        VHOST,
        0x23,
        vhost_vring_state
    );
    ioctl_iow_nr!(
        VHOST_GET_VRING_BUSYLOOP_TIMEOUT,
        VHOST,
        0x24,
        vhost_vring_state
    );
    ioctl_iow_nr!(VHOST_SET_FORK_FROM_OWNER, VHOST, 0x84, u8);
    ioctl_ior_nr!(VHOST_GET_FORK_FROM_OWNER, VHOST, 0x85, u8);
}

/// Whether the vhost that is loaded lets user space say of which kind home threads are
/// (`CONFIG_VHOST_ENABLE_FORK_OWNER_CONTROL`).
pub fn knows_fork_owner() -> bool {
    ["vhost_iocm", "vhost"].iter().any(|module| {
        let parameters = Path::new("/sys/module").join(module).join("parameters");
        parameters.join("fork_from_owner_default").exists()
    })
}

/// An open vhost device.
pub struct Device {
    file: File,
}

impl From<OwnedFd> for Device {
    fn from(fd: OwnedFd) -> Self {
        Self { file: fd.into() }
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Device {
    /// Opens the node, and with that makes a device that nobody owns.
    pub fn open(node: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(node)
            .with_context(|| format!("open {}", node.display()))?;
        Ok(Self { file })
    }

    /// Issues an ioctl whose argument is passed as it is: a number, or an address good or bad.
    ///
    /// # Safety
    ///
    /// What the request writes at the argument must be memory that the caller may have overwritten, or
    /// not be mapped.
    pub unsafe fn ioctl(&self, request: u64, argument: u64) -> Result<i32, Errno> {
        // SAFETY: Passed on to the caller.
        Errno::result(unsafe { ioctl_with_val(&self.file, request, argument) })
    }

    /// Issues one of the requests below that take nothing.
    fn command(&self, request: u64) -> Result<(), Errno> {
        // SAFETY: The request has no argument.
        unsafe { self.ioctl(request, 0) }.map(drop)
    }

    /// Issues one of the requests below that only read their argument.
    fn set<T>(&self, request: u64, argument: &T) -> Result<(), Errno> {
        // SAFETY: Nothing is written.
        unsafe { self.ioctl(request, std::ptr::from_ref(argument) as u64) }.map(drop)
    }

    /// Asks for a home thread of a kind: 1 is a thread of the owner, 0 a kernel thread.
    pub fn set_fork_from_owner(&self, kind: u8) -> Result<(), Errno> {
        self.set(request::VHOST_SET_FORK_FROM_OWNER(), &kind)
    }

    /// The kind of the home thread that the device has, or would get.
    pub fn fork_from_owner(&self) -> Result<u8, Errno> {
        let mut kind = u8::MAX;
        // SAFETY: The request writes this byte.
        unsafe {
            self.ioctl(
                request::VHOST_GET_FORK_FROM_OWNER(),
                std::ptr::from_mut(&mut kind) as u64,
            )
        }?;
        Ok(kind)
    }

    /// Makes the calling process the owner.
    pub fn set_owner(&self) -> Result<(), Errno> {
        self.command(VHOST_SET_OWNER())
    }

    /// Puts the device back into the state of a fresh one.
    pub fn reset_owner(&self) -> Result<(), Errno> {
        self.command(VHOST_RESET_OWNER())
    }

    /// The features offered.
    pub fn features(&self) -> Result<u64, Errno> {
        let mut features = 0u64;
        // SAFETY: The request writes the 64 bits of this variable.
        unsafe {
            self.ioctl(
                VHOST_GET_FEATURES(),
                std::ptr::from_mut(&mut features) as u64,
            )
        }?;
        Ok(features)
    }

    /// Acknowledges features.
    pub fn set_features(&self, features: u64) -> Result<(), Errno> {
        self.set(VHOST_SET_FEATURES(), &features)
    }

    /// Acknowledges features by words of 64.
    pub fn set_features_array(&self, words: &[u64; 2]) -> Result<(), Errno> {
        let [low, high] = *words;
        self.set(request::VHOST_SET_FEATURES_ARRAY(), &[2, low, high])
    }

    /// Sets the translation from guest-physical to host-virtual addresses.
    pub fn set_memory_table(&self, regions: &[vhost_memory_region]) -> Result<(), Errno> {
        let count = u16::try_from(regions.len()).map_err(|_| Errno::E2BIG)?;
        let mut table = VhostMemory::new(count);
        for (index, region) in regions.iter().enumerate() {
            table
                .set_region(index as u32, region)
                .map_err(|_| Errno::E2BIG)?;
        }
        // The regions lie behind the header.
        self.set(VHOST_SET_MEM_TABLE(), table.get_header())
    }

    /// Sets the size of a ring.
    pub fn set_size(&self, index: u32, size: u32) -> Result<(), Errno> {
        self.set(
            VHOST_SET_VRING_NUM(),
            &vhost_vring_state { index, num: size },
        )
    }

    /// Sets the host-virtual addresses of a ring.
    pub fn set_addresses(&self, addresses: vhost_vring_addr) -> Result<(), Errno> {
        self.set(VHOST_SET_VRING_ADDR(), &addresses)
    }

    /// Sets the next available index to fetch.
    pub fn set_base(&self, index: u32, base: u32) -> Result<(), Errno> {
        self.set(
            VHOST_SET_VRING_BASE(),
            &vhost_vring_state { index, num: base },
        )
    }

    /// The next available index that the device will fetch.
    pub fn base(&self, index: u32) -> Result<u32, Errno> {
        let mut state = vhost_vring_state {
            index,
            num: u32::MAX,
        };
        // SAFETY: The request writes the structure of this variable.
        unsafe {
            self.ioctl(
                VHOST_GET_VRING_BASE(),
                std::ptr::from_mut(&mut state) as u64,
            )
        }?;
        Ok(state.num)
    }

    /// Sets for how long a virtqueue is polled after its last work, in units of 1.024 microseconds.
    pub fn set_busyloop_timeout(&self, index: u32, timeout: u32) -> Result<(), Errno> {
        let state = vhost_vring_state {
            index,
            num: timeout,
        };
        self.set(request::VHOST_SET_VRING_BUSYLOOP_TIMEOUT(), &state)
    }

    /// Sets where the dirty log begins in this process.
    pub fn set_log_base(&self, address: u64) -> Result<(), Errno> {
        self.set(VHOST_SET_LOG_BASE(), &address)
    }

    /// Sets the eventfd that is signalled after something was logged; none unbinds.
    pub fn set_log_event(&self, event: Option<&dyn AsRawFd>) -> Result<(), Errno> {
        self.set(VHOST_SET_LOG_FD(), &number(event))
    }

    /// Acknowledges backend features.
    pub fn set_backend_features(&self, features: u64) -> Result<(), Errno> {
        self.set(VHOST_SET_BACKEND_FEATURES(), &features)
    }

    /// Reads from the device's file.
    pub fn read(&self, bytes: &mut [u8]) -> Result<usize, Errno> {
        nix::unistd::read(&self.file, bytes)
    }

    /// Writes to the device's file.
    pub fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        nix::unistd::write(&self.file, bytes)
    }

    /// Sets whether reading waits for something to be read.
    pub fn set_blocking(&self, blocking: bool) -> Result<()> {
        let flags = if blocking {
            OFlag::empty()
        } else {
            OFlag::O_NONBLOCK
        };
        fcntl(&self.file, FcntlArg::F_SETFL(flags)).context("F_SETFL")?;
        Ok(())
    }

    /// The same device by another descriptor.
    pub fn try_clone(&self) -> Result<Self> {
        let file = self.file.try_clone().context("duplicate the descriptor")?;
        Ok(Self { file })
    }

    fn set_file(&self, request: u64, index: u32, fd: RawFd) -> Result<(), Errno> {
        self.set(request, &vhost_vring_file { index, fd })
    }

    /// Sets the eventfd by which the guest says that it added chains; none unbinds.
    pub fn set_kick(&self, index: u32, event: Option<&dyn AsRawFd>) -> Result<(), Errno> {
        self.set_file(VHOST_SET_VRING_KICK(), index, number(event))
    }

    /// Sets the eventfd by which the device says that it used chains; none unbinds.
    pub fn set_call(&self, index: u32, event: Option<&dyn AsRawFd>) -> Result<(), Errno> {
        self.set_file(VHOST_SET_VRING_CALL(), index, number(event))
    }

    /// Sets the eventfd by which the device complains about a ring; none unbinds.
    pub fn set_error(&self, index: u32, event: Option<&dyn AsRawFd>) -> Result<(), Errno> {
        self.set_file(VHOST_SET_VRING_ERR(), index, number(event))
    }

    /// Sets the socket behind a virtqueue; none stops the virtqueue.
    pub fn set_backend(&self, index: u32, socket: Option<&dyn AsRawFd>) -> Result<(), Errno> {
        self.set_file(VHOST_NET_SET_BACKEND(), index, number(socket))
    }
}

/// The descriptor's number, or the one that means none.
fn number(fd: Option<&dyn AsRawFd>) -> RawFd {
    fd.map_or(-1, AsRawFd::as_raw_fd)
}
