// SPDX-License-Identifier: GPL-2.0

//! A discrete-event model of a host, to try policies on: cores, VMs, devices and their load. It runs
//! the policies that the daemon runs, and workers that choose what they serve with the engine's
//! own scheduler.
//!
//! What it leaves out: caches, memory bandwidth, what SMT siblings and NUMA distances cost, the
//! latency of the host's scheduler beside that of a wake-up, and the physical network.

pub mod baseline;
pub mod cli;
pub mod costs;
pub mod experiment;
pub mod host;
pub mod measure;
pub mod processor;
pub mod report;
pub mod scenario;
