// SPDX-License-Identifier: GPL-2.0
//! The cases.

mod backends;
mod events;
mod limits;
mod log;
mod matrix;
mod messages;
mod packets;
mod process;
mod values;

pub use matrix::call_as_other;

use crate::case::Cases;

/// All cases.
pub fn all() -> Cases {
    let mut cases = Cases::default();
    matrix::add(&mut cases);
    values::add(&mut cases);
    limits::add(&mut cases);
    backends::add(&mut cases);
    events::add(&mut cases);
    messages::add(&mut cases);
    log::add(&mut cases);
    packets::add(&mut cases);
    process::add(&mut cases);
    cases
}
