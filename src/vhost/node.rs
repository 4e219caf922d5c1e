// SPDX-License-Identifier: GPL-2.0

//! The node in /dev, and what it means to open and to close it.

use super::device::Device;
use super::pool::Pool;
use super::sysfs::DeviceDirectories;
use crate::kern::misc::{Node, Poll};
use crate::kern::user::Argument;
use kernel::iov::{IovIterDest, IovIterSource};
use kernel::prelude::*;
use kernel::sync::Arc;

/// /dev/vhost-net, or what module parameter `device` calls it.
pub struct VhostNet {
    pool: Arc<Pool>,
}

impl VhostNet {
    /// A node whose devices the workers of `pool` serve.
    pub fn new(pool: Arc<Pool>) -> Self {
        Self { pool }
    }
}

impl Node for VhostNet {
    type File = OpenDevice;

    fn open(&self) -> Result<OpenDevice> {
        let device = self.pool.add_device()?;
        let mut open = OpenDevice {
            directories: None,
            device,
            pool: self.pool.clone(),
        };
        open.directories = Some(DeviceDirectories::new(&self.pool, &open.device)?);
        Ok(open)
    }

    fn ioctl(file: &OpenDevice, command: u32, argument: Argument) -> Result<u32> {
        file.device.ioctl(command, argument)
    }

    fn read(file: &OpenDevice, to: &mut IovIterDest<'_>, nonblocking: bool) -> Result<usize> {
        file.device.read(to, nonblocking)
    }

    fn write(file: &OpenDevice, from: &mut IovIterSource<'_>) -> Result<usize> {
        file.device.write(from)
    }

    fn poll(file: &OpenDevice, poll: &Poll<'_>) -> Result<bool> {
        file.device.poll(poll)
    }
}

/// A device as long as its file is open.
pub struct OpenDevice {
    directories: Option<DeviceDirectories>,
    device: Arc<Device>,
    pool: Arc<Pool>,
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        // Without a lock held: this waits for readers and writers of the files, which may want
        // the pool's.
        self.directories = None;
        self.device.close();
        self.pool.remove_device(self.device.id);
    }
}
