// SPDX-License-Identifier: GPL-2.0
//! Who answers for the IOMMU of a guest: reads which translations the device lacks, and tells them.
//! Addresses are translated to themselves.

use std::collections::BTreeSet;

use anyhow::{ensure, Result};

use super::scene::Reply;
use crate::device::{Device, Message, MESSAGE};
use crate::memory::{Arena, PAGE, REGION, STARTS};
use crate::rig::{done, RINGS};

const UPDATE: u8 = 2;
const INVALIDATE: u8 = 3;

const WRITE: u8 = 2;
const BOTH: u8 = 3;

/// What is known of a device's questions.
#[derive(Default)]
pub struct Iommu {
    /// Those without an answer: address and permission. The same one is asked again with each attempt,
    /// by stock vhost as often as it tries.
    pub asked: BTreeSet<(u64, u8)>,
}

/// The region that an address is in, and the bytes from its start on.
fn region(address: u64) -> Option<(u64, u64)> {
    STARTS.into_iter().find_map(|start| {
        let offset = address.checked_sub(start)?;
        (offset < REGION).then_some((start, offset))
    })
}

impl Iommu {
    /// Reads the questions that wait.
    pub fn read(&mut self, device: &Device) -> Result<()> {
        loop {
            let (answer, bytes) = device.read(MESSAGE);
            match answer {
                Ok(length) => ensure!(length == MESSAGE, "a question of {length} bytes"),
                Err(_) => return Ok(()),
            }
            // Questions have the second format.
            let mut address = [0; 8];
            address.copy_from_slice(&bytes[8..16]);
            self.asked
                .insert((u64::from_ne_bytes(address), bytes[8 + 24]));
        }
    }

    /// The questions, in words.
    pub fn describe(&self) -> String {
        format!("asked {:x?}", self.asked)
    }

    fn write(
        device: &Device,
        kind: u8,
        iova: u64,
        size: u64,
        to: u64,
        permission: u8,
    ) -> Result<()> {
        let message = Message {
            format: 2,
            iova,
            size,
            address: to,
            permission,
            kind,
        };
        done(device.write(&message.bytes()))
    }

    /// Takes translations back.
    pub fn unmap(device: &Device, from: u64, length: u64) -> Result<()> {
        Self::write(device, INVALIDATE, from, length, 0, 0)
    }

    /// Translates a range to itself. Nothing else is translated there, since two translations of an address
    /// are both as good.
    fn map(device: &Device, arena: &Arena, from: u64, length: u64, permission: u8) -> Result<()> {
        Self::unmap(device, from, length)?;
        Self::write(device, UPDATE, from, length, arena.host(from), permission)
    }

    /// Translates all pages of a range.
    pub fn map_pages(device: &Device, arena: &Arena, from: u64, length: u64) -> Result<()> {
        let page = PAGE as u64;
        let start = from / page * page;
        let end = (from + length).next_multiple_of(page);
        Self::map(device, arena, start, end - start, BOTH)
    }

    /// Answers all questions.
    pub fn answer(&mut self, device: &Device, arena: &Arena, bytes: u64, how: Reply) -> Result<()> {
        for (address, permission) in self.asked.clone() {
            let Some((start, offset)) = region(address) else {
                continue;
            };
            let first = offset / bytes * bytes;
            let page = offset / PAGE as u64;
            // The first half of what the device writes to there, see `Places::take`.
            let receives = permission == WRITE
                && (start == STARTS[0] && (RINGS..RINGS + RINGS / 4).contains(&offset)
                    || start == STARTS[2] && offset < REGION / 4);
            match how {
                Reply::Forbidden => {
                    Self::map(device, arena, start + first, bytes, BOTH & !permission)?;
                }
                Reply::Elsewhere if receives => {
                    let iova = start + page * PAGE as u64;
                    Self::unmap(device, iova, PAGE as u64)?;
                    let to = arena.host(iova + PAGE as u64);
                    Self::write(device, UPDATE, iova, PAGE as u64, to, permission)?;
                    self.forget(iova, PAGE as u64);
                    continue;
                }
                Reply::Beside => {
                    let other = (page + 1) % (REGION / PAGE as u64);
                    let iova = start + other * PAGE as u64;
                    Self::map(device, arena, iova, PAGE as u64, BOTH)?;
                    self.forget(iova, PAGE as u64);
                    continue;
                }
                Reply::Right | Reply::Elsewhere => {
                    let permission = if bytes > PAGE as u64 {
                        BOTH
                    } else {
                        permission
                    };
                    Self::map(device, arena, start + first, bytes, permission)?;
                }
            }
            self.forget(start + first, bytes);
        }
        Ok(())
    }

    fn forget(&mut self, from: u64, bytes: u64) {
        self.asked
            .retain(|(address, _)| !(from..from + bytes).contains(address));
    }
}
