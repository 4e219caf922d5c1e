// SPDX-License-Identifier: GPL-2.0

//! A device: one open file of the node, with two virtqueues.

use super::features::{Features, BACKEND_OFFERED, MESSAGES_V2, OFFERED, WORDS};
use super::home::HomeWork;
use super::log::Log;
use super::net::Mediated;
use super::virtqueue::{
    is_accessible, new_iotlb, Backend, Buffers, Common, Direction, End, Iotlb, Kick, Queue,
    SocketEvent, Virtqueue,
};
use crate::engine::abi::{DeviceId, VirtqueueId, WorkerId};
use crate::engine::iotlb::message::{self, Request, Version};
use crate::engine::ring::{Layout, Ring};
use crate::engine::stats::Tally;
use crate::kern::error::{enobufs, eopnotsupp, ring_errno};
use crate::kern::eventfd::{EventFd, FileRef};
use crate::kern::home::{Home, Kind};
use crate::kern::inbox::Inbox;
use crate::kern::misc::Poll;
use crate::kern::mm::OwnerMm;
use crate::kern::parameters;
use crate::kern::process::Process;
use crate::kern::receiver::Receiver;
use crate::kern::served::{Hold, Served};
use crate::kern::snapshot::Snapshot;
use crate::kern::socket::{Socket, NAME_SIZE};
use crate::kern::user::{access_ok, Argument, MemoryTable, UserMemory};
use crate::kern::vhost_abi::{
    ioctl, vhost_vring_addr, vhost_vring_file, vhost_vring_state, MemoryHead, FORK_OWNER_CONTROL,
    VHOST_VRING_F_LOG,
};
use crate::kern::watch::{Watch, READABLE, WRITABLE};
use kernel::iov::{IovIterDest, IovIterSource};
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::{new_mutex, new_spinlock, Arc, Mutex, SpinLock};

/// Virtqueues of a device: one receives, one transmits. More queues are more devices.
pub const VIRTQUEUES: usize = 2;

/// In the flags of `VHOST_SET_VRING_ADDR`: writes to the used ring are logged.
const USED_RING_LOGGED: u32 = 1 << VHOST_VRING_F_LOG;

/// What ioctls set for the device as a whole.
#[derive(Default)]
struct Setup {
    owner: Option<OwnerMm>,
    /// The thread that the device has at home.
    home: Option<Home<HomeWork>>,
    /// Of which kind it is, or is going to be.
    home_kind: Kind,
    memory: Option<Arc<MemoryTable>>,
}

impl Setup {
    /// Of a device that nobody owns.
    fn unowned() -> Self {
        Self {
            home_kind: parameters::home_kind(),
            ..Self::default()
        }
    }

    /// The home thread is to end, and whoever stops the device waits for the slice that it serves.
    fn interrupt(&self) {
        if let Some(home) = &self.home {
            home.interrupt();
        }
    }

    /// The owner, if it is the caller.
    fn check_owner(&self) -> Result<&OwnerMm> {
        match &self.owner {
            Some(owner) if owner.as_current().is_some() => Ok(owner),
            _ => Err(EPERM),
        }
    }
}

/// What the control interface says about a device.
#[derive(Clone, Copy, Default)]
pub struct Label {
    /// The process that owns it.
    pub owner: Option<Process>,
    /// The interfaces behind its virtqueues, with the zero that ends the names.
    pub backends: [Option<[u8; NAME_SIZE]>; VIRTQUEUES],
    /// Whether workers may serve the virtqueues, with the backends that they have.
    pub shared: [bool; VIRTQUEUES],
}

/// A device.
#[pin_data]
pub struct Device {
    /// Its name in the control interface.
    pub id: DeviceId,
    /// What its virtqueues have in common.
    pub common: Arc<Common>,
    virtqueues: [Arc<Served<Virtqueue>>; VIRTQUEUES],
    #[pin]
    setup: Mutex<Setup>,
    #[pin]
    label: SpinLock<Label>,
}

impl Device {
    /// Makes a device that `worker`, the reader of `inbox`, serves.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `ENOSPC` when the snapshot has no room for it.
    pub fn new(
        id: DeviceId,
        worker: WorkerId,
        inbox: Arc<Inbox<Virtqueue>>,
        snapshot: &Arc<Snapshot>,
    ) -> Result<Arc<Self>> {
        let common = Arc::new(Common::new(id, snapshot)?, GFP_KERNEL)?;
        let virtqueue = |index| {
            let id = VirtqueueId { device: id, index };
            Virtqueue::new(id, common.clone(), worker, inbox.clone(), snapshot)
        };
        let virtqueues = [virtqueue(0)?, virtqueue(1)?];
        Arc::pin_init(
            pin_init!(Self {
                id,
                common,
                virtqueues,
                setup <- new_mutex!(Setup::unowned(), "vhost_iocm::Device::setup"),
                label <- new_spinlock!(Label::default(), "vhost_iocm::Device::label"),
            }),
            GFP_KERNEL,
        )
    }

    /// The virtqueues, by their index.
    pub fn virtqueues(&self) -> &[Arc<Served<Virtqueue>>; VIRTQUEUES] {
        &self.virtqueues
    }

    /// Whether user space wants all virtqueues to be served by the home thread.
    pub fn is_wanted_home(&self) -> bool {
        self.virtqueues
            .iter()
            .all(|virtqueue| virtqueue.is_wanted_home())
    }

    /// Sets that for all of them. It counts from their next slices on.
    pub fn set_home(&self, home: bool) {
        for virtqueue in &self.virtqueues {
            virtqueue.set_home(home);
        }
    }

    /// What the control interface says about the device.
    pub fn label(&self) -> Label {
        *self.label.lock()
    }

    /// Changes that, and tells readers of the snapshot.
    fn relabel(&self, change: impl FnOnce(&mut Label)) {
        let mut label = self.label.lock();
        change(&mut label);
        self.common.note_label(&label);
    }

    /// Ends all that the device does, when its file is closed.
    pub fn close(&self) {
        self.setup.lock().interrupt();
        self.stop();
        self.common.channel.close();
        let setup = core::mem::take(&mut *self.setup.lock());
        // Waits for the end of the home thread.
        drop(setup);
    }

    /// Takes everything out of the virtqueues. Slices that come later find nothing to serve.
    fn stop(&self) {
        for virtqueue in &self.virtqueues {
            // What is taken out is dropped when the virtqueue is not held any more: leaving wait
            // queues and giving packets back to the tap may take a while.
            let queue = core::mem::take(&mut *virtqueue.as_arc_borrow().hold());
            drop(queue);
        }
        self.common.channel.set_open(false);
        self.common.channel.set_version(Version::default());
        self.relabel(|label| *label = Label::default());
    }

    /// An ioctl on the device's file.
    ///
    /// # Errors
    ///
    /// Those of stock vhost-net, in the order in which it finds them; see ioctl(2) of vhost.
    pub fn ioctl(&self, command: u32, argument: Argument) -> Result<u32> {
        match command {
            ioctl::NET_SET_BACKEND => self.set_backend(argument.read()?)?,
            ioctl::GET_FEATURES => argument.write(&OFFERED[0])?,
            ioctl::SET_FEATURES => self.set_features([argument.read()?, 0])?,
            ioctl::GET_FEATURES_ARRAY => get_features_array(argument)?,
            ioctl::SET_FEATURES_ARRAY => self.set_features(read_features_array(argument)?)?,
            ioctl::GET_BACKEND_FEATURES => argument.write(&BACKEND_OFFERED)?,
            ioctl::SET_BACKEND_FEATURES => {
                let features = argument.read::<u64>()?;
                if features & !BACKEND_OFFERED != 0 {
                    return Err(eopnotsupp());
                }
                let _setup = self.setup.lock();
                self.common
                    .channel
                    .set_version(if features & MESSAGES_V2 != 0 {
                        Version::V2
                    } else {
                        Version::V1
                    });
            }
            ioctl::SET_OWNER => self.set_owner()?,
            ioctl::RESET_OWNER => self.reset_owner()?,
            ioctl::SET_FORK_FROM_OWNER if FORK_OWNER_CONTROL => self.set_home_kind(argument)?,
            ioctl::GET_FORK_FROM_OWNER if FORK_OWNER_CONTROL => {
                let setup = self.setup.lock();
                argument.write(&u8::from(setup.home_kind == Kind::Task))?;
            }
            _ => {
                let mut setup = self.setup.lock();
                setup.check_owner()?;
                match command {
                    ioctl::SET_MEM_TABLE => self.set_memory(&mut setup, argument)?,
                    ioctl::SET_LOG_BASE => self.set_log_base(argument.read()?)?,
                    ioctl::SET_LOG_FD => self.set_log_event(argument.read()?)?,
                    _ => self.vring_ioctl(command, argument)?,
                }
            }
        }
        Ok(0)
    }

    /// Reads the question for a translation that the device IOTLB lacks. Returns how many bytes were
    /// read, which is 0 where there is no room for a whole one.
    ///
    /// # Errors
    ///
    /// Those of [`Channel::read`](super::channel::Channel::read).
    pub fn read(&self, to: &mut IovIterDest<'_>, nonblocking: bool) -> Result<usize> {
        if to.len() < message::SIZE {
            return Ok(0);
        }
        let deliver = |bytes: &[u8; message::SIZE]| to.copy_to_iter(bytes);
        self.common.channel.read(nonblocking, deliver)
    }

    /// Takes a translation that user space tells, or takes back. Returns the length of a message, even
    /// if less was written.
    ///
    /// # Errors
    ///
    /// `EINVAL` for what is no message, `EFAULT` for what is refused, as in stock vhost.
    pub fn write(&self, from: &mut IovIterSource<'_>) -> Result<usize> {
        let mut bytes = [0; message::MEANT];
        let len = from.copy_from_iter(&mut bytes);
        let request = message::decode(&bytes[..len]).map_err(|_| EINVAL)?;
        let _setup = self.setup.lock();
        match request {
            Request::Update {
                first,
                last,
                user_addr,
                permissions,
            } => {
                let len = last - first + 1;
                let end = user_addr.checked_add(len - 1);
                if end.is_none() || permissions.allow_any() && !access_ok(user_addr, len) {
                    return Err(EFAULT);
                }
                self.change_iotlb(|iotlb| iotlb.insert(first, last, user_addr, permissions))?;
                self.resume(first, last);
            }
            Request::Invalidate { first, last } => {
                // When this returns no slice uses the old translations any more, so user space may
                // unmap what they led to.
                self.change_iotlb(|iotlb| iotlb.remove(first, last))?;
            }
            Request::Refused => return Err(EFAULT),
        }
        Ok(message::SIZE)
    }

    /// Whether there is something to be read.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn poll(&self, poll: &Poll<'_>) -> Result<bool> {
        self.common.channel.poll(poll)
    }

    /// Changes the device IOTLB of each virtqueue.
    fn change_iotlb(&self, change: impl Fn(&mut Iotlb)) -> Result {
        for index in 0..VIRTQUEUES {
            // All have one or none.
            change(self.hold(index).iotlb.as_mut().ok_or(EFAULT)?);
        }
        Ok(())
    }

    /// Lets virtqueues go on that wait for a translation of an address from `first` to `last`. The
    /// device IOTLB has been changed: who has missed it before has posted that by now.
    fn resume(&self, first: u64, last: u64) {
        for (index, virtqueue) in self.virtqueues.iter().enumerate() {
            if self.common.channel.resolve(index, first, last) {
                virtqueue.note_pending();
                virtqueue.as_arc_borrow().mark();
            }
        }
    }

    fn hold(&self, index: usize) -> Hold<'_, Virtqueue> {
        self.virtqueues[index].as_arc_borrow().hold()
    }

    fn set_owner(&self) -> Result {
        let mut setup = self.setup.lock();
        if setup.owner.is_some() {
            return Err(EBUSY);
        }
        let owner = OwnerMm::current()?;
        let buffers = [Buffers::new()?, Buffers::new()?];
        let name = CString::try_from_fmt(format_args!("vhost-{}", current!().pid()))?;
        let work = HomeWork::new(&self.virtqueues, owner.clone())?;
        // Whatever forbids another thread is ENOMEM to a caller of stock vhost.
        let home = Home::start(setup.home_kind, &name, work).map_err(|_| ENOMEM)?;
        for (index, buffers) in buffers.into_iter().enumerate() {
            let mut queue = self.hold(index);
            queue.buffers = Some(buffers);
            queue.owner = Some(owner.clone());
        }
        setup.owner = Some(owner);
        setup.home = Some(home);
        let process = Process::current();
        self.relabel(|label| label.owner = Some(process));
        Ok(())
    }

    fn reset_owner(&self) -> Result {
        let mut setup = self.setup.lock();
        setup.check_owner()?;
        let memory = MemoryTable::empty()?;
        setup.interrupt();
        self.stop();
        for index in 0..VIRTQUEUES {
            self.hold(index).memory = Some(memory.clone());
        }
        *setup = Setup {
            memory: Some(memory),
            ..Setup::unowned()
        };
        Ok(())
    }

    fn set_home_kind(&self, argument: Argument) -> Result {
        let mut setup = self.setup.lock();
        if setup.owner.is_some() {
            return Err(EBUSY);
        }
        setup.home_kind = match argument.read::<u8>()? {
            0 => Kind::Kthread,
            1 => Kind::Task,
            _ => return Err(EINVAL),
        };
        Ok(())
    }

    fn set_features(&self, words: [u64; WORDS]) -> Result {
        let features = Features::new(words).ok_or_else(eopnotsupp)?;
        let setup = self.setup.lock();
        // What is not served yet is checked when it gets its backend.
        if features.logs() && !self.can_use(setup.memory.as_deref(), |_| true) {
            return Err(EFAULT);
        }
        let translates = features.translates();
        let iotlb = || translates.then(new_iotlb).transpose();
        // A new one each time, without any translation. Stock vhost has no other errno for this.
        let iotlbs = [iotlb().map_err(|_| EFAULT)?, iotlb().map_err(|_| EFAULT)?];
        if translates {
            self.common.channel.set_open(true);
        }
        for (index, iotlb) in iotlbs.into_iter().enumerate() {
            let old = {
                let mut queue = self.hold(index);
                queue.set_features(features);
                queue.set_iotlb(iotlb)
            };
            drop(old);
        }
        if !translates {
            self.common.channel.set_open(false);
        }
        Ok(())
    }

    fn set_memory(&self, setup: &mut Setup, argument: Argument) -> Result {
        let head = argument.read::<MemoryHead>()?;
        if head.padding != 0 {
            return Err(eopnotsupp());
        }
        if head.nregions > parameters::regions_max() {
            return Err(E2BIG);
        }
        let regions = argument.offset(size_of::<MemoryHead>());
        let memory = MemoryTable::read(regions, head.nregions as usize)?;
        // What is not served yet is checked when it gets its backend.
        if !self.can_use(Some(&memory), |queue| queue.features.logs()) {
            return Err(EFAULT);
        }
        for index in 0..VIRTQUEUES {
            // When this returns no slice uses the old table any more, so user space may unmap
            // what it described.
            self.hold(index).memory = Some(memory.clone());
        }
        setup.memory = Some(memory);
        Ok(())
    }

    /// Whether all virtqueues that are served could go on with `memory`, and with a dirty log of it
    /// where `logs` says that there is one.
    fn can_use(&self, memory: Option<&MemoryTable>, logs: impl Fn(&Queue) -> bool) -> bool {
        (0..VIRTQUEUES).all(|index| {
            let queue = self.hold(index);
            queue.backend.is_none()
                || memory.is_some_and(|memory| {
                    is_accessible(memory, logs(&queue).then_some(queue.log.base))
                })
        })
    }

    fn set_log_base(&self, base: u64) -> Result {
        let mut result = Ok(());
        for index in 0..VIRTQUEUES {
            // When this returns no slice writes to the old log any more, so user space may free it.
            let mut queue = self.hold(index);
            // As in stock vhost, the other virtqueue is changed all the same.
            if queue.backend.is_some() && !queue.is_log_accessible(base) {
                result = Err(EFAULT);
            } else {
                queue.log.base = base;
            }
        }
        result
    }

    fn set_log_event(&self, fd: i32) -> Result {
        let event = match EventFd::from_fd(fd)? {
            Some(event) => Some(Arc::new(event, GFP_KERNEL)?),
            None => None,
        };
        for index in 0..VIRTQUEUES {
            let old = core::mem::replace(&mut self.hold(index).log.event, event.clone());
            drop(old);
        }
        Ok(())
    }

    /// The ioctls that name a virtqueue. User memory is not touched while one is held: a page
    /// fault of its owner must delay neither its worker nor who wants to move it. What is checked
    /// in between stays true, as ioctls of a device exclude each other.
    fn vring_ioctl(&self, command: u32, argument: Argument) -> Result {
        let index = argument.read::<u32>()? as usize;
        if index >= VIRTQUEUES {
            return Err(enobufs());
        }
        match command {
            ioctl::SET_VRING_NUM => {
                self.check_inactive(index)?;
                let state = argument.read::<vhost_vring_state>()?;
                if !self.hold(index).ring.set_num(state.num) {
                    return Err(EINVAL);
                }
            }
            ioctl::SET_VRING_BASE => {
                self.check_inactive(index)?;
                let state = argument.read::<vhost_vring_state>()?;
                let base = u16::try_from(state.num).map_err(|_| EINVAL)?;
                self.hold(index).ring.set_base(base);
            }
            ioctl::GET_VRING_BASE => {
                let base = self.hold(index).ring.base();
                argument.write(&vhost_vring_state {
                    index: index as u32,
                    num: u32::from(base),
                })?;
            }
            ioctl::SET_VRING_ADDR => self.set_addresses(index, argument.read()?)?,
            ioctl::SET_VRING_KICK => {
                self.set_kick(index, argument.read::<vhost_vring_file>()?.fd)?;
            }
            ioctl::SET_VRING_CALL => {
                let call = EventFd::from_fd(argument.read::<vhost_vring_file>()?.fd)?;
                let old = core::mem::replace(&mut self.hold(index).call, call);
                drop(old);
            }
            ioctl::SET_VRING_ERR => {
                let error = EventFd::from_fd(argument.read::<vhost_vring_file>()?.fd)?;
                let old = core::mem::replace(&mut self.hold(index).error, error);
                drop(old);
            }
            ioctl::SET_VRING_BUSYLOOP_TIMEOUT => {
                let state = argument.read::<vhost_vring_state>()?;
                self.hold(index).polling.set_timeout(state.num);
            }
            ioctl::GET_VRING_BUSYLOOP_TIMEOUT => {
                let timeout = self.hold(index).polling.timeout();
                argument.write(&vhost_vring_state {
                    index: index as u32,
                    num: timeout,
                })?;
            }
            _ => return Err(ENOTTY),
        }
        Ok(())
    }

    fn check_inactive(&self, index: usize) -> Result {
        match self.hold(index).backend {
            Some(_) => Err(EBUSY),
            None => Ok(()),
        }
    }

    fn set_addresses(&self, index: usize, addresses: vhost_vring_addr) -> Result {
        if addresses.flags & !USED_RING_LOGGED != 0 {
            return Err(eopnotsupp());
        }
        let logged = addresses.flags & USED_RING_LOGGED != 0;
        let layout = Layout {
            desc: addresses.desc_user_addr,
            avail: addresses.avail_user_addr,
            used: addresses.used_user_addr,
        };
        // The alignments of the specification (2.7): stock vhost checks these and not the
        // descriptor table's.
        if layout.avail % 2 != 0 || layout.used % 4 != 0 || addresses.log_guest_addr % 4 != 0 {
            return Err(EINVAL);
        }
        let mut queue = self.hold(index);
        let mut ring = queue.ring;
        ring.set_layout(layout);
        let log = Log {
            used: logged.then_some(addresses.log_guest_addr),
            ..queue.log.clone()
        };
        if queue.backend.is_some()
            && !(queue.is_ring_accessible(&ring) && queue.is_used_log_accessible(&log, log.base))
        {
            return Err(EINVAL);
        }
        queue.ring = ring;
        queue.log = log;
        // The page of the old ring is nobody's business any more.
        queue.avail_idx = None;
        Ok(())
    }

    fn set_kick(&self, index: usize, fd: i32) -> Result {
        let kick = FileRef::from_eventfd(fd)?;
        if self.hold(index).kick == kick {
            return Ok(());
        }
        let old = {
            let mut queue = self.hold(index);
            (
                core::mem::replace(&mut queue.kick, kick.clone()),
                queue.kick_watch.take(),
            )
        };
        drop(old);
        if let Some(kick) = kick {
            // A kick that came before is served as soon as somebody watches.
            let target = Kick(self.virtqueues[index].clone());
            let watch = Watch::new(kick, READABLE, target)?;
            self.hold(index).kick_watch = Some(watch);
        }
        Ok(())
    }

    fn set_backend(&self, file: vhost_vring_file) -> Result {
        let setup = self.setup.lock();
        let owner = setup.check_owner()?;
        let index = file.index as usize;
        let direction = match index {
            0 => Direction::Receive,
            1 => Direction::Transmit,
            _ => return Err(enobufs()),
        };
        if file.fd == -1 {
            self.common.channel.forget(index);
        }
        let memory = setup.memory.as_ref().ok_or(EFAULT)?;
        if !self.hold(index).is_accessible() {
            return Err(EFAULT);
        }

        let backend = match file.fd {
            -1 => None,
            fd => {
                let socket = Socket::from_fd(fd)?;
                if self.is_backend(index, &socket) {
                    return Ok(());
                }
                let name = socket.name();
                Some((self.make_backend(index, direction, socket, &name)?, name))
            }
        };

        // Without a backend the virtqueue is not served, so its ring may be used here, where
        // touching it may take as long as the owner's page faults do.
        let old = self.hold(index).take_backend();
        let (name, shared) = match backend {
            None => {
                self.give_up(index, old);
                (None, false)
            }
            Some((backend, name)) => {
                let mm = owner.as_current().ok_or(EPERM)?;
                // The indices may have moved since the first look, as long as there was a backend.
                // Nobody else uses or changes the device IOTLB meanwhile.
                let (before, features, log, iotlb) = {
                    let mut queue = self.hold(index);
                    let iotlb = queue.iotlb.take();
                    (queue.ring, queue.features, queue.log.clone(), iotlb)
                };
                let mut ring = before;
                let user = UserMemory::new(memory, &mm);
                let memory = Mediated::new(
                    user,
                    iotlb.as_ref(),
                    &log,
                    features.logs(),
                    ring.layout(),
                    false,
                );
                let started = ring.start(&memory);
                let mut tally = Tally::default();
                let miss = memory.finish(&mut tally);
                self.hold(index).iotlb = iotlb;
                self.note(index, &tally);
                if let Some(miss) = miss {
                    self.common.channel.post(index, miss);
                }
                if let Err(error) = started {
                    self.install(index, before, old);
                    return Err(ring_errno(error));
                }
                let shared = backend.end.is_sharable();
                self.install(index, ring, Some(backend));
                self.give_up(index, old);
                (Some(name), shared)
            }
        };
        self.relabel(|label| {
            label.backends[index] = name;
            label.shared[index] = shared;
        });
        Ok(())
    }

    fn is_backend(&self, index: usize, socket: &Socket) -> bool {
        match &self.hold(index).backend {
            Some(backend) => backend.end.socket() == socket,
            None => false,
        }
    }

    /// Drops a backend that was taken away, and counts what is lost with it.
    fn give_up(&self, index: usize, backend: Option<Backend>) {
        let drops = backend.map_or(0, |backend| backend.end.leave());
        if drops > 0 {
            self.note(
                index,
                &Tally {
                    drops,
                    ..Tally::default()
                },
            );
        }
    }

    fn make_backend(
        &self,
        index: usize,
        direction: Direction,
        socket: Socket,
        name: &[u8; NAME_SIZE],
    ) -> Result<Backend> {
        let events = match direction {
            Direction::Receive => READABLE,
            Direction::Transmit => WRITABLE,
        };
        let target = SocketEvent(self.virtqueues[index].clone());
        let watch = Watch::new(socket.file()?, events, target)?;
        let end = match direction {
            Direction::Receive => End::Receive(Receiver::new(socket, name)?),
            Direction::Transmit => End::Transmit(socket),
        };
        Ok(Backend { end, _watch: watch })
    }

    /// Counts and reports what was done in an ioctl.
    fn note(&self, index: usize, tally: &Tally) {
        // Nobody else counts while this is held.
        let queue = self.hold(index);
        {
            let stats = &self.virtqueues[index].stats;
            let _section = stats.sequence.write();
            stats.add(tally);
        }
        queue.report(tally);
    }

    /// Sets ring and backend, and lets the virtqueue be served: packets may wait already, and those that
    /// come while its ring lacks a translation are a reason to look again.
    fn install(&self, index: usize, ring: Ring, backend: Option<Backend>) {
        let virtqueue = &self.virtqueues[index];
        {
            let mut queue = self.hold(index);
            queue.ring = ring;
            queue.backend = backend;
        }
        virtqueue.arm();
        virtqueue.as_arc_borrow().mark();
    }
}

fn get_features_array(argument: Argument) -> Result {
    let count = argument.read::<u64>()?;
    let mut at = argument.offset(size_of::<u64>());
    for word in OFFERED.iter().take(count.min(WORDS as u64) as usize) {
        at.write(word)?;
        at = at.offset(size_of::<u64>());
    }
    at.zero_words(count.saturating_sub(WORDS as u64))
}

fn read_features_array(argument: Argument) -> Result<[u64; WORDS]> {
    let count = argument.read::<u64>()?;
    let mut words = [0; WORDS];
    let mut at = argument.offset(size_of::<u64>());
    for word in words.iter_mut().take(count.min(WORDS as u64) as usize) {
        *word = at.read()?;
        at = at.offset(size_of::<u64>());
    }
    if at.are_words_zero(count.saturating_sub(WORDS as u64))? {
        Ok(words)
    } else {
        Err(eopnotsupp())
    }
}
