// SPDX-License-Identifier: GPL-2.0

//! Who serves which virtqueue, and when.

pub mod batch;
pub mod budget;
pub mod credit;
pub mod delay;
pub mod limits;
pub mod load;
pub mod ownership;
pub mod placement;
pub mod polling;
pub mod share;
pub mod standby;
pub mod turn;
