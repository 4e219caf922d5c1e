// SPDX-License-Identifier: GPL-2.0

//! Workers: threads that serve the virtqueues of many devices of many processes.

use super::net;
use super::virtqueue::Virtqueue;
use crate::engine::abi::WorkerId;
use crate::engine::stats::WorkerStats;
use crate::kern::inbox::{Fifo, Inbox};
use crate::kern::served::Served;
use crate::kern::thread::{Body, Current};
use kernel::prelude::*;
use kernel::sync::Arc;

/// What a worker is, apart from its thread.
pub struct Worker {
    /// Its name in the control interface.
    pub id: WorkerId,
    /// What is counted.
    pub stats: WorkerStats,
    inbox: Arc<Inbox<Virtqueue>>,
}

impl Worker {
    /// Makes a worker that has no thread yet.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(id: WorkerId) -> Result<Arc<Self>> {
        Ok(Arc::new(
            Self {
                id,
                stats: WorkerStats::new(),
                inbox: Inbox::new()?,
            },
            GFP_KERNEL,
        )?)
    }

    /// Where the virtqueues that this worker serves are handed to it.
    pub fn inbox_ref(&self) -> Arc<Inbox<Virtqueue>> {
        self.inbox.clone()
    }

    /// Serves one slice of `virtqueue`, and lists it again if there is more to do.
    fn serve(
        &self,
        virtqueue: Arc<Served<Virtqueue>>,
        list: &mut Fifo<Virtqueue>,
        current: &mut Current,
    ) {
        let Some(mut slice) = virtqueue.begin(&self.inbox) else {
            return;
        };
        self.stats.works.add(1);
        let (virtqueue, queue) = slice.split();
        let again = net::serve(virtqueue, queue, &mut current.mm, &self.stats);
        if let Some(virtqueue) = slice.finish(again) {
            list.push(virtqueue);
        }
    }
}

impl Body for Worker {
    type Service = Virtqueue;

    fn inbox(&self) -> &Inbox<Virtqueue> {
        &self.inbox
    }

    fn run(&self, current: &mut Current) {
        let mut list = Fifo::new();
        loop {
            self.stats.loops.add(1);
            // Asked before the last look into the inbox: nothing comes any more once a thread is
            // being stopped, so an empty list is final then.
            let stopping = current.should_stop();
            list.take_all(&self.inbox);
            match list.pop() {
                Some(virtqueue) => self.serve(virtqueue, &mut list, current),
                None if stopping => return,
                None => {
                    current.mm.leave();
                    self.stats.wait.add(1);
                    current.sleep_unless(&self.inbox);
                }
            }
            current.breathe();
        }
    }
}
