// SPDX-License-Identifier: GPL-2.0

//! Who serves which virtqueue, and when.

pub mod budget;
pub mod credit;
pub mod ownership;
pub mod polling;
pub mod share;
