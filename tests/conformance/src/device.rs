// SPDX-License-Identifier: GPL-2.0
//! A vhost device as an open file: requests with any argument, messages, and their answers.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;

/// Virtqueues of a device: 0 receives, 1 transmits.
pub const VIRTQUEUES: usize = 2;
/// The virtqueue that carries packets to the guest.
pub const RECEIVE: usize = 0;
/// The virtqueue that carries packets from the guest.
pub const TRANSMIT: usize = 1;

/// Feature bits, by the names of the virtio specification and of `linux/vhost.h`.
pub mod feature {
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const NOTIFY_ON_EMPTY: u64 = 1 << 24;
    pub const LOG_ALL: u64 = 1 << 26;
    pub const VIRTIO_NET_HDR: u64 = 1 << 27;
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
    pub const IN_ORDER: u64 = 1 << 35;
    pub const RING_RESET: u64 = 1 << 40;
}

/// Backend feature: messages of the device IOTLB have the second format.
pub const IOTLB_MSG_V2: u64 = 1 << 1;

/// Requests, by their names in `linux/vhost.h`.
pub mod request {
    pub const GET_FEATURES: u32 = 0x8008_af00;
    pub const SET_FEATURES: u32 = 0x4008_af00;
    pub const SET_OWNER: u32 = 0x0000_af01;
    pub const RESET_OWNER: u32 = 0x0000_af02;
    pub const SET_MEM_TABLE: u32 = 0x4008_af03;
    pub const SET_LOG_BASE: u32 = 0x4008_af04;
    pub const SET_LOG_FD: u32 = 0x4004_af07;
    pub const NEW_WORKER: u32 = 0x8004_af08;
    pub const FREE_WORKER: u32 = 0x4004_af09;
    pub const SET_VRING_NUM: u32 = 0x4008_af10;
    pub const SET_VRING_ADDR: u32 = 0x4028_af11;
    pub const SET_VRING_BASE: u32 = 0x4008_af12;
    pub const GET_VRING_BASE: u32 = 0xc008_af12;
    pub const SET_VRING_ENDIAN: u32 = 0x4008_af13;
    pub const GET_VRING_ENDIAN: u32 = 0x4008_af14;
    pub const ATTACH_VRING_WORKER: u32 = 0x4008_af15;
    pub const GET_VRING_WORKER: u32 = 0xc008_af16;
    pub const SET_VRING_KICK: u32 = 0x4008_af20;
    pub const SET_VRING_CALL: u32 = 0x4008_af21;
    pub const SET_VRING_ERR: u32 = 0x4008_af22;
    pub const SET_VRING_BUSYLOOP_TIMEOUT: u32 = 0x4008_af23;
    pub const GET_VRING_BUSYLOOP_TIMEOUT: u32 = 0x4008_af24;
    pub const SET_BACKEND_FEATURES: u32 = 0x4008_af25;
    pub const GET_BACKEND_FEATURES: u32 = 0x8008_af26;
    pub const NET_SET_BACKEND: u32 = 0x4008_af30;
    pub const SCSI_SET_ENDPOINT: u32 = 0x40e8_af40;
    pub const VSOCK_SET_GUEST_CID: u32 = 0x4008_af60;
    pub const VDPA_GET_DEVICE_ID: u32 = 0x8004_af70;
    pub const GET_FEATURES_ARRAY: u32 = 0x8008_af83;
    pub const SET_FEATURES_ARRAY: u32 = 0x4008_af83;
    pub const SET_FORK_FROM_OWNER: u32 = 0x4001_af84;
    pub const GET_FORK_FROM_OWNER: u32 = 0x8001_af85;
}

/// Bytes of a message of the device IOTLB, to a kernel of 64 bits. One in the first format has a hole
/// there which callers of 32 bits do not have in their headers, and a kernel does not make up for
/// that: that is why there is a second format.
pub const MESSAGE: usize = 72;

/// What a call returned: a number, or an error.
pub type Answer = Result<usize, Errno>;

/// An answer in words.
pub fn describe(answer: &Answer) -> String {
    match answer {
        Ok(number) => number.to_string(),
        Err(errno) => format!("{errno:?}"),
    }
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

impl AsRawFd for Device {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Room for what a request writes at its argument: that is at most as many words of features as the
/// argument says.
const ROOM: usize = 64 << 10;

impl Device {
    /// Opens the node without waiting in reads.
    pub fn open(node: &Path) -> Result<Self> {
        Self::open_with(node, libc::O_NONBLOCK)
    }

    /// Opens the node with these flags.
    pub fn open_with(node: &Path, flags: i32) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags | libc::O_CLOEXEC)
            .open(node)
            .with_context(|| format!("open {}", node.display()))?;
        Ok(Self { file })
    }

    /// The same device by another descriptor.
    pub fn clone_handle(&self) -> Result<Self> {
        let file = self
            .file
            .try_clone()
            .context("duplicate the device's descriptor")?;
        Ok(Self { file })
    }

    /// Issues a request whose argument is passed as it is.
    ///
    /// # Safety
    ///
    /// What the request may write at the argument is not mapped, not writable, or the caller's.
    pub unsafe fn call_at(&self, request: u32, argument: usize) -> Answer {
        // The type of the request's number is that of the C library.
        // SAFETY: Passed on to the caller.
        Errno::result(unsafe { libc::ioctl(self.file.as_raw_fd(), request as _, argument) })
            .map(|value| value as usize)
    }

    /// Issues a request with a copy of these bytes, which are changed into what it wrote.
    pub fn call(&self, request: u32, bytes: &mut [u8]) -> Answer {
        let mut room = vec![0u64; ROOM / 8];
        assert!(
            bytes.len() <= ROOM / 2,
            "an argument of {} bytes",
            bytes.len()
        );
        let place = room.as_mut_ptr();
        // SAFETY: The bytes fit the room, which is nobody else's.
        unsafe { place.cast::<u8>().copy_from(bytes.as_ptr(), bytes.len()) };
        // SAFETY: The room is larger than everything that a request writes for the arguments of these
        // tests, of which none asks for more than a thousand words of features.
        let answer = unsafe { self.call_at(request, place as usize) };
        // SAFETY: As above.
        unsafe {
            bytes
                .as_mut_ptr()
                .copy_from(place.cast::<u8>(), bytes.len())
        };
        answer
    }

    /// Issues a request that only reads its argument.
    pub fn set(&self, request: u32, bytes: &[u8]) -> Answer {
        self.call(request, &mut bytes.to_vec())
    }

    /// Issues a request about a virtqueue, a number with it.
    pub fn set_state(&self, request: u32, index: u32, number: u32) -> Answer {
        self.set(request, &words(&[index, number]))
    }

    /// The number that a request tells about a virtqueue.
    pub fn state(&self, request: u32, index: u32) -> Result<u32, Errno> {
        let mut bytes = words(&[index, 0xdead_beef]);
        self.call(request, &mut bytes)?;
        Ok(u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]))
    }

    /// Becomes the owner.
    pub fn set_owner(&self) -> Answer {
        self.set(request::SET_OWNER, &[])
    }

    /// Sets the first word of features.
    pub fn set_features(&self, features: u64) -> Answer {
        self.set(request::SET_FEATURES, &features.to_ne_bytes())
    }

    /// Sets both words of features.
    pub fn set_features_array(&self, features: [u64; 2]) -> Answer {
        self.set(
            request::SET_FEATURES_ARRAY,
            &long_words(&[2, features[0], features[1]]),
        )
    }

    /// Reads the device's messages, into a buffer that is poisoned.
    pub fn read(&self, length: usize) -> (Answer, Vec<u8>) {
        let mut bytes = vec![0xaa; length];
        let answer = (&self.file).read(&mut bytes).map_err(errno);
        (answer, bytes)
    }

    /// Writes a message.
    pub fn write(&self, bytes: &[u8]) -> Answer {
        (&self.file).write(bytes).map_err(errno)
    }

    /// Waits until all that was queued for the device is done, which stock vhost does in every request
    /// that it knows for a device as a whole.
    pub fn flush(&self) -> Result<()> {
        let answer = self.set(request::SET_LOG_FD, &words(&[u32::MAX]));
        ensure!(answer.is_ok(), "flush: {}", describe(&answer));
        Ok(())
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// Words of 32 bits as they stand in memory.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Words of 64 bits as they stand in memory.
pub fn long_words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The argument of `SET_VRING_ADDR`.
#[derive(Clone, Copy)]
pub struct Addresses {
    /// The virtqueue.
    pub index: u32,
    /// Flags, of which bit 0 says that writes to the used ring are logged.
    pub flags: u32,
    /// The descriptor table.
    pub descriptors: u64,
    /// The used ring.
    pub used: u64,
    /// The available ring.
    pub available: u64,
    /// Where the used ring is in the log.
    pub log: u64,
}

impl Addresses {
    /// The structure as it stands in memory.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = words(&[self.index, self.flags]);
        bytes.extend(long_words(&[
            self.descriptors,
            self.used,
            self.available,
            self.log,
        ]));
        bytes
    }
}

/// The argument of `SET_MEM_TABLE`: guest-physical address, length and address of each region.
pub fn memory_table(regions: &[[u64; 3]]) -> Vec<u8> {
    let mut bytes = words(&[regions.len() as u32, 0]);
    for [guest, length, host] in regions {
        bytes.extend(long_words(&[*guest, *length, *host, 0]));
    }
    bytes
}

/// A message of the device IOTLB.
#[derive(Clone, Copy)]
pub struct Message {
    /// Format: 1 or 2.
    pub format: u32,
    /// Start of the range.
    pub iova: u64,
    /// Bytes of the range.
    pub size: u64,
    /// Where it is in the caller's memory.
    pub address: u64,
    /// Permission: 1 to read, 2 to write, 3 for both.
    pub permission: u8,
    /// What it says: 1 miss, 2 update, 3 invalidate, 4 access fails, 5 and 6 ends of a batch.
    pub kind: u8,
}

impl Message {
    /// The message as the kernel has it, whose words have 64 bits.
    pub fn bytes(&self) -> Vec<u8> {
        // The hole in the first format, or what the second has for address spaces.
        let mut bytes = words(&[self.format, 0]);
        bytes.extend(self.rest());
        bytes.resize(MESSAGE, 0);
        bytes
    }

    /// The message as a caller of 32 bits has it in the first format: without the hole.
    pub fn bytes_of_32_bits(&self) -> Vec<u8> {
        let mut bytes = words(&[self.format]);
        bytes.extend(self.rest());
        bytes.resize(MESSAGE - 4, 0);
        bytes
    }

    fn rest(&self) -> Vec<u8> {
        let mut bytes = long_words(&[self.iova, self.size, self.address]);
        bytes.extend([self.permission, self.kind]);
        bytes
    }
}
