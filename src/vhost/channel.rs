// SPDX-License-Identifier: GPL-2.0

//! The channel of a device's file: on it user space is asked for translations that the device IOTLB
//! lacks.

use super::device::VIRTQUEUES;
use crate::engine::iotlb::message::{self, Version};
use crate::engine::iotlb::misses::{Miss, Misses};
use crate::kern::error::{ebadfd, erestartsys};
use crate::kern::misc::Poll;
use kernel::prelude::*;
use kernel::sync::poll::PollCondVar;
use kernel::sync::{new_spinlock, Arc, SpinLock};

/// What the channel has.
struct State {
    misses: Misses<VIRTQUEUES>,
    version: Version,
    /// Whether there is a device IOTLB. Without one nobody waits for questions.
    open: bool,
    /// Who waits for questions, once somebody has.
    readers: Option<Arc<PollCondVar>>,
}

impl State {
    /// Wakes who waits for questions. Who polls the file is woken as well, under the lock, so that
    /// what he waits on is neither kept nor dropped by a worker: dropping it takes a grace period.
    fn wake(&self) {
        if let Some(readers) = &self.readers {
            readers.notify_all();
        }
    }
}

/// The channel.
#[pin_data]
pub struct Channel {
    #[pin]
    state: SpinLock<State>,
}

impl Channel {
    /// A channel of a device without IOTLB.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                state <- new_spinlock!(
                    State {
                        misses: Misses::new(),
                        version: Version::V1,
                        open: false,
                        readers: None,
                    },
                    "vhost_iocm::Channel::state"
                ),
            }),
            GFP_KERNEL,
        )
    }

    /// Sets whether there is a device IOTLB. Without one all questions are forgotten, and who waits
    /// for one learns that.
    pub fn set_open(&self, open: bool) {
        let mut state = self.state.lock();
        state.open = open;
        if !open {
            state.misses = Misses::new();
            state.wake();
        }
    }

    /// Sets the layout of questions.
    pub fn set_version(&self, version: Version) {
        self.state.lock().version = version;
    }

    /// Asks for a translation that a virtqueue lacks. Does not sleep.
    pub fn post(&self, virtqueue: usize, miss: Miss) {
        let mut state = self.state.lock();
        if state.open && state.misses.post(virtqueue, miss) {
            state.wake();
        }
    }

    /// Whether a virtqueue waits for an address from `first` to `last`; it does not any more.
    pub fn resolve(&self, virtqueue: usize, first: u64, last: u64) -> bool {
        self.state.lock().misses.resolve(virtqueue, first, last)
    }

    /// Forgets what a virtqueue has asked for.
    pub fn forget(&self, virtqueue: usize) {
        self.state.lock().misses.forget(virtqueue);
    }

    /// Takes the next question, and hands it to `deliver`, which says whether it arrived.
    ///
    /// # Errors
    ///
    /// `EAGAIN` where one would have to wait and may not, `ERESTARTSYS` when a signal comes,
    /// `EBADFD` where one would have to wait for ever, `ENOMEM`.
    pub fn read(
        &self,
        nonblocking: bool,
        deliver: impl FnOnce(&[u8; message::SIZE]) -> usize,
    ) -> Result<usize> {
        let (virtqueue, miss, version) = self.next(nonblocking)?;
        let delivered = deliver(&message::encode(version, miss));
        if delivered < message::SIZE {
            // Nobody has read it, so it is asked again.
            self.post(virtqueue, miss);
        }
        Ok(delivered)
    }

    fn next(&self, nonblocking: bool) -> Result<(usize, Miss, Version)> {
        let readers = if nonblocking {
            None
        } else {
            Some(self.readers()?)
        };
        let mut state = self.state.lock();
        loop {
            if let Some((virtqueue, miss)) = state.misses.take() {
                return Ok((virtqueue, miss, state.version));
            }
            let Some(readers) = &readers else {
                return Err(EAGAIN);
            };
            if !state.open {
                return Err(ebadfd());
            }
            if readers.wait_interruptible(&mut state) {
                return Err(erestartsys());
            }
        }
    }

    /// Whether there is a question; whoever polls is told when there is.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn poll(&self, poll: &Poll<'_>) -> Result<bool> {
        poll.wait_on(&*self.readers()?);
        Ok(self.state.lock().misses.has_unread())
    }

    /// What readers wait on.
    fn readers(&self) -> Result<Arc<PollCondVar>> {
        if let Some(readers) = &self.state.lock().readers {
            return Ok(readers.clone());
        }
        let new = Arc::pin_init(
            PollCondVar::new(
                c"vhost_iocm::Channel::readers",
                kernel::static_lock_class!(),
            ),
            GFP_KERNEL,
        )?;
        let mut state = self.state.lock();
        let readers = match &state.readers {
            // Somebody was faster.
            Some(readers) => readers.clone(),
            None => {
                state.readers = Some(new.clone());
                new.clone()
            }
        };
        drop(state);
        // May take a grace period, if it was not needed.
        drop(new);
        Ok(readers)
    }

    /// Gives up what readers wait on, when the file is closed: there is none any more. May take a
    /// grace period.
    pub fn close(&self) {
        self.set_open(false);
        let readers = self.state.lock().readers.take();
        drop(readers);
    }
}
