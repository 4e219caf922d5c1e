// SPDX-License-Identifier: GPL-2.0
//! The device IOTLB as user space sees it: questions and answers on the device's file.
//!
//! An I/O virtual address is a guest-physical one here. To the device they are as different as any.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use nix::errno::Errno;
use vm_memory::GuestAddress;

use crate::device::Device;
use crate::memory::{GuestMemory, PAGE};
use crate::nic::{Nic, Queue};
use crate::wait;

/// Bytes of a message.
pub const MESSAGE: usize = 72;
/// Bytes of it that mean something.
pub const MEANT: usize = 40;
/// Backend feature: messages have their second layout.
pub const MESSAGES_V2: u64 = 2;

/// What may be done with memory: read it.
pub const READ: u8 = 1;
/// What may be done with memory: write it.
pub const WRITE: u8 = 2;

/// Kind of a message: a translation is lacking.
pub const MISS: u8 = 1;
/// Kind of a message: a translation.
pub const UPDATE: u8 = 2;
/// Kind of a message: translations that hold no more.
pub const INVALIDATE: u8 = 3;

/// The fields of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Layout, 1 or 2.
    pub version: u32,
    /// First address.
    pub iova: u64,
    /// Length in bytes.
    pub size: u64,
    /// Where that is in this process.
    pub uaddr: u64,
    /// What may be done with it.
    pub perm: u8,
    /// What the message is.
    pub kind: u8,
}

impl Message {
    /// The message as it is written.
    pub fn encode(&self) -> [u8; MESSAGE] {
        let mut bytes = [0; MESSAGE];
        bytes[..4].copy_from_slice(&self.version.to_ne_bytes());
        for (at, value) in [(8, self.iova), (16, self.size), (24, self.uaddr)] {
            bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        }
        bytes[32] = self.perm;
        bytes[33] = self.kind;
        bytes
    }

    /// The fields of what was read, and nothing besides may be in it.
    pub fn decode(bytes: &[u8; MESSAGE]) -> Result<Self> {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(word)
        };
        let message = Self {
            version: word(0) as u32,
            iova: word(8),
            size: word(16),
            uaddr: word(24),
            perm: bytes[32],
            kind: bytes[33],
        };
        ensure!(
            message.encode() == *bytes,
            "{bytes:x?} has more than {message:x?}"
        );
        Ok(message)
    }
}

/// A translation of these addresses that allows everything.
pub fn update(iova: u64, size: u64, uaddr: u64) -> Message {
    Message {
        version: 1,
        iova,
        size,
        uaddr,
        perm: READ | WRITE,
        kind: UPDATE,
    }
}

/// These addresses have no translation any more.
pub fn invalidate(iova: u64, size: u64) -> Message {
    Message {
        version: 1,
        iova,
        size,
        kind: INVALIDATE,
        ..Message::default()
    }
}

/// The IOMMU of a card: who answers its device's questions.
pub struct Iommu {
    /// The card's device.
    pub device: Device,
    memory: Arc<GuestMemory>,
    /// Bytes of which a question is answered, a power of two.
    grain: u64,
    /// Questions that were answered.
    pub answers: AtomicU64,
}

impl Iommu {
    /// An IOMMU of pages of this size.
    pub fn new(nic: &Nic, grain: u64) -> Result<Self> {
        let device = nic.device.try_clone()?;
        device.set_blocking(false)?;
        Ok(Self {
            device,
            memory: nic.memory.clone(),
            grain,
            answers: AtomicU64::new(0),
        })
    }

    /// Sends a message, which must be taken.
    pub fn send(&self, message: &Message) -> Result<()> {
        let sent = self
            .device
            .write(&message.encode())
            .with_context(|| format!("{message:x?}"))?;
        ensure!(sent == MESSAGE, "{sent} bytes of {message:x?} were taken");
        Ok(())
    }

    /// Tells the translations of a part of the memory, by pages of the IOMMU.
    pub fn map(&self, start: GuestAddress, length: u64, perm: u8) -> Result<()> {
        let first = start.0 / self.grain * self.grain;
        for page in (first..start.0 + length).step_by(self.grain as usize) {
            self.map_page(page, perm)?;
        }
        Ok(())
    }

    fn map_page(&self, page: u64, perm: u8) -> Result<()> {
        let uaddr = self.memory.host_address(GuestAddress(page))?;
        self.send(&Message {
            perm,
            ..update(page, self.grain, uaddr)
        })
    }

    /// Tells the translations of the used ring, without which a backend is refused.
    pub fn map_used(&self, queue: &Queue) -> Result<()> {
        let (start, length) = queue.ring.layout().used_part();
        self.map(start, length, READ | WRITE)
    }

    /// The next question, if there is one.
    pub fn question(&self) -> Result<Option<Message>> {
        let mut bytes = [0xa5; MESSAGE];
        match self.device.read(&mut bytes) {
            Ok(MESSAGE) => Message::decode(&bytes).map(Some),
            Ok(length) => bail!("read a message of {length} bytes"),
            Err(Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error).context("read a message"),
        }
    }

    /// Waits for a question.
    pub fn expect_question(&self) -> Result<Message> {
        let asked = wait::readable(&[self.device.as_fd()], wait::patience())?;
        ensure!(asked, "no translation was asked for");
        self.question()?
            .context("a question is readable and not there")
    }

    /// Answers all questions until it is told to stop.
    pub fn answer_until(&self, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::SeqCst) {
            if wait::readable(&[self.device.as_fd()], Duration::from_millis(20))? {
                self.answer()?;
            }
        }
        Ok(())
    }

    /// Answers the questions that there are.
    pub fn answer(&self) -> Result<()> {
        while let Some(question) = self.question()? {
            ensure!(question.kind == MISS, "{question:x?} is no question");
            self.answers.fetch_add(1, Ordering::SeqCst);
            self.map_page(question.iova / self.grain * self.grain, READ | WRITE)?;
        }
        Ok(())
    }
}

/// A page of an IOMMU as the processor has them.
pub const SMALL: u64 = PAGE;
/// A page of an IOMMU that covers a whole region.
pub const LARGE: u64 = 1 << 20;
