// SPDX-License-Identifier: GPL-2.0

//! libFuzzer on the ring engine; `tests/fuzz/run` builds and runs it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    vhost_iocm_fuzz::run::<vhost_iocm_engine::engine::ring::Ring>(data);
});
