// SPDX-License-Identifier: GPL-2.0
//! Who answers for the IOMMU of a guest: reads which translations the device lacks, and tells them.
//! Addresses are translated to themselves.

use std::collections::BTreeSet;

use anyhow::{ensure, Result};

use super::scene::Reply;
use crate::device::{Device, Message, MESSAGE};
use crate::memory::{Arena, PAGE, REGION, STARTS};
use crate::rig::{done, RINGS};

const PAGE_BYTES: u64 = PAGE as u64;

const UPDATE: u8 = 2;
const INVALIDATE: u8 = 3;

const WRITE: u8 = 2;
const BOTH: u8 = 3;

/// What is known of a device's questions, and what was told it.
#[derive(Default)]
pub struct Iommu {
    /// Those without an answer: address and permission. The same one is asked again with each attempt,
    /// by stock vhost as often as it tries.
    pub asked: BTreeSet<(u64, u8)>,
    /// The ranges that have a translation: start, bytes, and permission. No two overlap.
    mapped: Vec<(u64, u64, u8)>,
}

/// The region that an address is in, and the bytes from its start on.
fn region(address: u64) -> Option<(u64, u64)> {
    STARTS.into_iter().find_map(|start| {
        let offset = address.checked_sub(start)?;
        (offset < REGION).then_some((start, offset))
    })
}

impl Iommu {
    /// Reads the questions that wait. Returns whether one of them came too late: what it asks for has been
    /// told meanwhile. Stock vhost does not go on by an answer to a question that nobody had read.
    pub fn read(&mut self, device: &Device) -> Result<bool> {
        let mut late = false;
        loop {
            let (answer, bytes) = device.read(MESSAGE);
            match answer {
                Ok(length) => ensure!(length == MESSAGE, "a question of {length} bytes"),
                Err(_) => return Ok(late),
            }
            // Questions have the second format.
            let mut address = [0; 8];
            address.copy_from_slice(&bytes[8..16]);
            let question = (u64::from_ne_bytes(address), bytes[8 + 24]);
            if self.is_answered(question) {
                late = true;
            } else {
                self.asked.insert(question);
            }
        }
    }

    fn is_answered(&self, (address, permission): (u64, u8)) -> bool {
        self.mapped.iter().any(|(start, bytes, allowed)| {
            (*start..start + bytes).contains(&address) && allowed & permission != 0
        })
    }

    /// The questions, in words.
    pub fn describe(&self) -> String {
        format!("asked {:x?}", self.asked)
    }

    /// Forgets all translations, as the device does when its features are set.
    pub fn reset(&mut self) {
        self.mapped.clear();
    }

    /// Takes translations back.
    pub fn unmap(&mut self, device: &Device, from: u64, bytes: u64) -> Result<()> {
        self.mapped
            .retain(|(start, length, _)| start + length <= from || from + bytes <= *start);
        let message = Message {
            format: 2,
            iova: from,
            size: bytes,
            address: 0,
            permission: 0,
            kind: INVALIDATE,
        };
        done(device.write(&message.bytes()))
    }

    /// Translates a range to the memory that is here in this process. Nothing else is translated there any
    /// more, since of two translations of an address either may be used.
    fn map(
        &mut self,
        device: &Device,
        (from, bytes): (u64, u64),
        to: u64,
        permission: u8,
    ) -> Result<()> {
        self.unmap(device, from, bytes)?;
        self.mapped.push((from, bytes, permission));
        self.asked
            .retain(|(address, _)| !(from..from + bytes).contains(address));
        let message = Message {
            format: 2,
            iova: from,
            size: bytes,
            address: to,
            permission,
            kind: UPDATE,
        };
        done(device.write(&message.bytes()))
    }

    /// Translates all pages of a range to themselves.
    pub fn map_pages(
        &mut self,
        device: &Device,
        arena: &Arena,
        from: u64,
        length: u64,
    ) -> Result<()> {
        let start = from / PAGE_BYTES * PAGE_BYTES;
        let end = (from + length).next_multiple_of(PAGE_BYTES);
        self.map(device, (start, end - start), arena.host(start), BOTH)
    }

    /// Answers a question. Returns whether it still was one: the answer to another may have been one to it.
    pub fn answer(
        &mut self,
        device: &Device,
        arena: &Arena,
        (address, permission): (u64, u8),
        bytes: u64,
        how: Reply,
    ) -> Result<bool> {
        let Some((start, offset)) = region(address) else {
            return Ok(false);
        };
        if !self.asked.contains(&(address, permission)) {
            return Ok(false);
        }
        let chunk = start + offset / bytes * bytes;
        let page = offset / PAGE_BYTES;
        // The first half of what the device writes to there, see `Places::take`.
        let receives = permission == WRITE
            && (start == STARTS[0] && (RINGS..RINGS + RINGS / 4).contains(&offset)
                || start == STARTS[2] && offset < REGION / 4);
        let (range, to, permission) = match how {
            Reply::Forbidden => ((chunk, bytes), chunk, BOTH & !permission),
            Reply::Elsewhere if receives => {
                let from = start + page * PAGE_BYTES;
                ((from, PAGE_BYTES), from + PAGE_BYTES, permission)
            }
            Reply::Beside => {
                let from = start + (page + 1) % (REGION / PAGE_BYTES) * PAGE_BYTES;
                ((from, PAGE_BYTES), from, BOTH)
            }
            _ if bytes == PAGE_BYTES => ((chunk, bytes), chunk, permission),
            _ => ((chunk, bytes), chunk, BOTH),
        };
        self.map(device, range, arena.host(to), permission)?;
        Ok(true)
    }
}
