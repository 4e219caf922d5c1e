// SPDX-License-Identifier: GPL-2.0

//! The program `iocm`.

fn main() {}
