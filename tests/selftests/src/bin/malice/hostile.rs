// SPDX-License-Identifier: GPL-2.0
//! A device whose guest and owner follow a script of the fuzzer.

use std::path::Path;
use std::sync::Arc;

use anyhow::{bail, ensure, Context, Result};
use nix::errno::Errno;
use vhost::vhost_kern::vhost_binding::{vhost_memory_region, vhost_vring_addr};
use vhost_iocm_fuzz::{acts, memory_size, Act, Setup, GUEST, OWNER};
use vhost_iocm_selftests::control::{virtqueue, Control};
use vhost_iocm_selftests::counters::Counters;
use vhost_iocm_selftests::device::{EVENT_IDX, MRG_RXBUF, NOTIFY_ON_EMPTY, VERSION_1};
use vhost_iocm_selftests::frame;
use vhost_iocm_selftests::nic::{Nic, NicOptions, Queue};
use vhost_iocm_selftests::tap::TapOptions;
use vhost_iocm_selftests::traffic::{Direction, Traffic};
use vhost_iocm_selftests::wire::PacketSocket;

use crate::arena::Arena;
use crate::racer::Racer;

/// The tap behind the device.
const TAP: &str = "hostile0";
/// Bytes of the frames that the host sends to the guest.
const FRAME: usize = 200;
/// The memory is given up before every so many scripts, so that the device finds it missing.
const GIVE_UP: u64 = 64;
/// Frames over the device when its ring is sane.
const SANE_FRAMES: u64 = 20;
/// Turns of an empty loop for each access of the device that a write waits for.
const SPINS: usize = 20;

/// The device.
pub struct Hostile {
    nic: Nic,
    /// Its name in the control interface.
    pub device: String,
    arena: Arc<Arena>,
    racer: Racer,
    wire: PacketSocket,
    features: u64,
    /// How often it was told to serve a ring of a script.
    pub kicks: u64,
}

/// Which virtqueues follow the script.
#[derive(Clone, Copy)]
struct Which {
    receive: bool,
    transmit: bool,
}

impl Hostile {
    /// Makes the device, which is sane until it is told to be otherwise.
    pub fn new(node: &Path, control: &Control) -> Result<Self> {
        let options = NicOptions {
            tap: TapOptions {
                name: TAP.into(),
                ..TapOptions::default()
            },
            ..NicOptions::default()
        };
        let features = options.features;
        let (nic, device) = control.device_made_by(|| Nic::new(node, options))?;
        let arena = Arc::new(Arena::new()?);
        Ok(Self {
            wire: PacketSocket::new(nic.tap.name(), frame::ETHERTYPE)?,
            nic,
            device,
            racer: Racer::new(arena.clone()),
            arena,
            features,
            kicks: 0,
        })
    }

    /// Plays a script, to one of the virtqueues or to both, which use the same ring then.
    pub fn play(&mut self, number: u64, script: &[u8]) -> Result<()> {
        let which = Which {
            receive: !number.is_multiple_of(3),
            transmit: number % 3 != 1,
        };
        self.stop()?;
        if number.is_multiple_of(GIVE_UP) {
            self.arena.give_up()?;
        }
        let mut later = Vec::new();
        for (index, act) in acts(script).into_iter().enumerate() {
            match act {
                Act::SetUp(setup) => {
                    if index == 0 {
                        let size = memory_size(setup.num);
                        self.arena.clear(size);
                        self.set_table(&[vhost_memory_region {
                            guest_phys_addr: GUEST,
                            memory_size: size,
                            userspace_addr: OWNER,
                            flags_padding: 0,
                        }])?;
                    }
                    self.set_up(which, &setup)?;
                }
                Act::Write(write) => self.arena.write(&write),
                Act::WriteLater(after, write) => later.push((after, write)),
                Act::Race(pair) => self.racer.race(pair),
                Act::Calm => self.racer.calm(),
                Act::SetTable(regions) => {
                    let regions = regions.iter().map(|region| vhost_memory_region {
                        guest_phys_addr: region.guest_addr,
                        memory_size: region.size,
                        userspace_addr: region.user_addr,
                        flags_padding: region.flags,
                    });
                    self.set_table(&regions.collect::<Vec<_>>())?;
                }
                Act::Serve => {
                    self.kicks += 1;
                    if which.receive {
                        // A queue of the tap that is full drops it.
                        self.wire.send(&frame::unheard(FRAME))?;
                        self.nic.receive.kick()?;
                    }
                    if which.transmit {
                        self.nic.transmit.kick()?;
                    }
                    let mut passed = 0;
                    for (after, write) in later.drain(..) {
                        for _ in passed..after * SPINS {
                            std::hint::spin_loop();
                        }
                        passed = passed.max(after * SPINS);
                        self.arena.write(&write);
                    }
                }
            }
        }
        self.racer.calm();
        Ok(())
    }

    fn set_table(&self, regions: &[vhost_memory_region]) -> Result<()> {
        maybe(self.nic.device.set_memory_table(regions)).map(drop)
    }

    fn set_up(&mut self, which: Which, setup: &Setup) -> Result<()> {
        self.stop()?;
        let mut features = VERSION_1 | MRG_RXBUF;
        if setup.event_idx {
            features |= EVENT_IDX;
        }
        if setup.notify_on_empty {
            features |= NOTIFY_ON_EMPTY;
        }
        self.set_features(features)?;
        if which.receive {
            self.set_up_queue(&self.nic.receive, setup)?;
        }
        if which.transmit {
            self.set_up_queue(&self.nic.transmit, setup)?;
        }
        Ok(())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if std::mem::replace(&mut self.features, features) != features {
            self.nic.device.set_features(features)?;
        }
        Ok(())
    }

    fn set_up_queue(&self, queue: &Queue, setup: &Setup) -> Result<()> {
        let (device, index) = (&self.nic.device, queue.index);
        device.set_size(index, setup.num.into())?;
        device.set_base(index, setup.base.into())?;
        let addresses = vhost_vring_addr {
            index,
            flags: 0,
            desc_user_addr: setup.layout.desc,
            used_user_addr: setup.layout.used,
            avail_user_addr: setup.layout.avail,
            log_guest_addr: 0,
        };
        if maybe(device.set_addresses(addresses))? {
            maybe(device.set_backend(index, Some(&self.nic.tap)))?;
        }
        Ok(())
    }

    /// Errors that were signalled since the last look, for each virtqueue.
    pub fn signalled(&self) -> Result<[u64; 2]> {
        Ok([self.nic.receive.errors()?, self.nic.transmit.errors()?])
    }

    /// Errors that were counted, for each virtqueue.
    pub fn counted(&self, control: &Control) -> Result<[u64; 2]> {
        let count = |queue: &Queue| {
            Counters::of_virtqueue(control, &virtqueue(&self.device, queue.index))?.get("errors")
        };
        Ok([count(&self.nic.receive)?, count(&self.nic.transmit)?])
    }

    /// Stops both virtqueues. When this returns, nothing of the script is being served any more.
    pub fn stop(&self) -> Result<()> {
        for queue in [&self.nic.receive, &self.nic.transmit] {
            // Where there is no memory for a ring this is refused as well, and nothing was started.
            maybe(self.nic.device.set_backend(queue.index, None))?;
        }
        Ok(())
    }

    /// Sets the device up anew with a sane guest, and checks that it works.
    pub fn recover(&mut self) -> Result<()> {
        self.stop()?;
        self.signalled()?;
        self.set_features(self.nic.options().features)?;
        let nic = &mut self.nic;
        // What the host has sent into the script is not for the sane guest.
        nic.tap.discard()?;
        nic.device.set_memory_table(&nic.memory.table()?)?;
        for (queue, start) in [(&mut nic.receive, 9), (&mut nic.transmit, 7)] {
            queue.restart(start)?;
        }
        for queue in [&nic.receive, &nic.transmit] {
            nic.set_up_ring(queue)?;
        }
        nic.replenish()?;
        nic.start()?;
        Traffic::new(nic, Direction::Both)?
            .run(SANE_FRAMES)
            .context("a device that was hostile before")?;
        let errors = self.signalled()?;
        ensure!(errors == [0, 0], "errors of a sane ring: {errors:?}");
        Ok(())
    }
}

/// Whether something was accepted that the device may refuse.
fn maybe(result: Result<(), Errno>) -> Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(Errno::EINVAL | Errno::EFAULT) => Ok(false),
        Err(error) => bail!("refused for another reason than the script: {error}"),
    }
}
