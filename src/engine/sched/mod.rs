// SPDX-License-Identifier: GPL-2.0

//! Who serves which virtqueue, and when.

pub mod budget;
pub mod credit;
pub mod load;
pub mod ownership;
pub mod placement;
pub mod polling;
pub mod share;
