// SPDX-License-Identifier: GPL-2.0

//! vhost_iocm: a vhost-net device that shared workers on side cores serve.

#[path = "kern/atomics.rs"]
pub mod atomics;
pub mod engine;
pub mod kern;
pub mod vhost;

use kern::affinity::Hotplug;
use kern::control::Control;
use kern::misc::{device_name, Registration};
use kern::thread::Thread;
use kernel::prelude::*;
use kernel::sync::Arc;
use vhost::fast_loop::FastLoop;
use vhost::pool::Pool;
use vhost::VhostNet;

/// The minor of /dev/vhost-net (`VHOST_NET_MINOR`).
const MINOR: u32 = 238;

module! {
    type: Module,
    name: "vhost_iocm",
    authors: ["The vhost-iocm project"],
    description: "Host kernel accelerator for virtio net on shared I/O cores",
    license: "GPL",
    alias: ["char-major-10-238", "devname:vhost-net"],
}

/// The module, in the order in which its parts go: nobody opens the node any more, then the fast
/// loop ends, then the workers, then the class goes in which they were shown, and CPUs are not followed any more.
struct Module {
    _node: Pin<KBox<Registration<VhostNet>>>,
    _fast_loop: Thread<FastLoop>,
    _workers: Workers,
    _control: Control<Pool>,
    _hotplug: Hotplug,
}

/// The workers, as long as the module is loaded.
struct Workers(Arc<Pool>);

impl Drop for Workers {
    fn drop(&mut self) {
        self.0.clear();
    }
}

impl kernel::Module for Module {
    fn init(module: &'static ThisModule) -> Result<Self> {
        let hotplug = Hotplug::new()?;
        let pool = Pool::new()?;
        let control = Control::new(pool.clone())?;
        let workers = Workers(pool.clone());
        pool.create_first_worker()?;
        let fast_loop = FastLoop::start(&pool)?;
        let node = VhostNet::new(pool);
        let node = match device_name() {
            None => Registration::new(c"vhost-net", Some(MINOR), module, node)?,
            Some(name) => Registration::new(name, None, module, node)?,
        };
        Ok(Self {
            _node: node,
            _fast_loop: fast_loop,
            _workers: workers,
            _control: control,
            _hotplug: hotplug,
        })
    }
}
