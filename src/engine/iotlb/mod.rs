// SPDX-License-Identifier: GPL-2.0

//! The device IOTLB: a cache of the translations of an IOMMU that user space emulates.
//!
//! With `VIRTIO_F_ACCESS_PLATFORM` all addresses that a driver gives, and those of its rings, are I/O
//! virtual addresses. [`map`] has the translations that user space has told, [`misses`] asks for
//! those that are lacking, and [`message`] is how both are written on the device's file.

pub mod map;
pub mod message;
pub mod misses;
