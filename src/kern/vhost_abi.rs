// SPDX-License-Identifier: GPL-2.0

//! The vhost ABI (include/uapi/linux/vhost.h): ioctl numbers and structures.

use super::bindings;
use kernel::transmute::{AsBytes, FromBytes};

pub use super::bindings::{
    vhost_memory_region, vhost_vring_addr, vhost_vring_file, vhost_vring_state,
};

/// The ioctls that the node knows, by their names in the ABI without `VHOST_`.
pub mod ioctl {
    pub use super::bindings::{
        IOCM_GET_BACKEND_FEATURES as GET_BACKEND_FEATURES, IOCM_GET_FEATURES as GET_FEATURES,
        IOCM_GET_FEATURES_ARRAY as GET_FEATURES_ARRAY,
        IOCM_GET_FORK_FROM_OWNER as GET_FORK_FROM_OWNER, IOCM_GET_VRING_BASE as GET_VRING_BASE,
        IOCM_GET_VRING_BUSYLOOP_TIMEOUT as GET_VRING_BUSYLOOP_TIMEOUT,
        IOCM_NET_SET_BACKEND as NET_SET_BACKEND, IOCM_RESET_OWNER as RESET_OWNER,
        IOCM_SET_BACKEND_FEATURES as SET_BACKEND_FEATURES, IOCM_SET_FEATURES as SET_FEATURES,
        IOCM_SET_FEATURES_ARRAY as SET_FEATURES_ARRAY,
        IOCM_SET_FORK_FROM_OWNER as SET_FORK_FROM_OWNER, IOCM_SET_LOG_BASE as SET_LOG_BASE,
        IOCM_SET_LOG_FD as SET_LOG_FD, IOCM_SET_MEM_TABLE as SET_MEM_TABLE,
        IOCM_SET_OWNER as SET_OWNER, IOCM_SET_VRING_ADDR as SET_VRING_ADDR,
        IOCM_SET_VRING_BASE as SET_VRING_BASE,
        IOCM_SET_VRING_BUSYLOOP_TIMEOUT as SET_VRING_BUSYLOOP_TIMEOUT,
        IOCM_SET_VRING_CALL as SET_VRING_CALL, IOCM_SET_VRING_ERR as SET_VRING_ERR,
        IOCM_SET_VRING_KICK as SET_VRING_KICK, IOCM_SET_VRING_NUM as SET_VRING_NUM,
    };
}

/// Whether the kernel's own vhost has `SET_FORK_FROM_OWNER` and its counterpart.
pub const FORK_OWNER_CONTROL: bool = cfg!(CONFIG_VHOST_ENABLE_FORK_OWNER_CONTROL);

/// The number of the flag of `struct vhost_vring_addr` by which the used ring is logged.
pub const VHOST_VRING_F_LOG: u32 = bindings::VHOST_VRING_F_LOG;

/// The head of `struct vhost_memory`, before its regions.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct MemoryHead {
    /// The number of regions that follow.
    pub nregions: u32,
    /// Must be 0.
    pub padding: u32,
}

// SAFETY: Two integers without padding: every bit pattern is a value.
unsafe impl FromBytes for MemoryHead {}
// SAFETY: Two integers without padding: every bit pattern is a value.
unsafe impl FromBytes for vhost_vring_state {}
// SAFETY: Two integers without padding, all bytes of which are initialised.
unsafe impl AsBytes for vhost_vring_state {}
// SAFETY: Two integers without padding: every bit pattern is a value.
unsafe impl FromBytes for vhost_vring_file {}
// SAFETY: Integers without padding: every bit pattern is a value.
unsafe impl FromBytes for vhost_vring_addr {}
