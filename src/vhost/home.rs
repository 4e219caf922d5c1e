// SPDX-License-Identifier: GPL-2.0

//! A device at home: in a thread of its own, where it may wait for memory.

use super::net::{self, How, Next};
use super::virtqueue::Virtqueue;
use crate::engine::stats::Tally;
use crate::kern::cpu;
use crate::kern::home::Body;
use crate::kern::inbox::Inbox;
use crate::kern::mm::{InMm, OwnerMm};
use crate::kern::parameters;
use crate::kern::served::Served;
use crate::kern::thread::stolen_time;
use crate::kern::trace;
use kernel::prelude::*;
use kernel::sync::Arc;

/// What the home thread of a device works with.
pub struct HomeWork {
    inbox: Arc<Inbox<Virtqueue>>,
    virtqueues: KVec<Arc<Served<Virtqueue>>>,
    owner: OwnerMm,
}

impl HomeWork {
    /// Work for the virtqueues of a device of `owner`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(virtqueues: &[Arc<Served<Virtqueue>>], owner: OwnerMm) -> Result<Arc<Self>> {
        let mut own = KVec::with_capacity(virtqueues.len(), GFP_KERNEL)?;
        for virtqueue in virtqueues {
            own.push(virtqueue.clone(), GFP_KERNEL)?;
        }
        Ok(Arc::new(
            Self {
                inbox: Inbox::new()?,
                virtqueues: own,
                owner,
            },
            GFP_KERNEL,
        )?)
    }
}

impl Body for HomeWork {
    type Service = Virtqueue;

    fn inbox(&self) -> &Arc<Inbox<Virtqueue>> {
        &self.inbox
    }

    fn objects(&self) -> &[Arc<Served<Virtqueue>>] {
        &self.virtqueues
    }

    fn owner(&self) -> &OwnerMm {
        &self.owner
    }

    fn serve(&self, virtqueue: Arc<Served<Virtqueue>>, mm: Option<InMm<'_>>) {
        let Some(mut slice) = virtqueue.begin(&self.inbox, false) else {
            return;
        };
        let (virtqueue, queue) = slice.split();
        let begun = cpu::now();
        let stolen = stolen_time();
        // The age is told by who served the work first; what comes meanwhile is new.
        let _: Option<u64> = virtqueue.take_pending_age(begun);
        let stay = virtqueue.is_home() || !queue.is_sharable();
        // A virtqueue that its worker polls goes on being polled when it is back; nobody else looks.
        let polling = queue.polling.is_active() && !stay;
        let mut tally = Tally::default();
        if !polling && queue.polling.park(begun) {
            tally.parks += 1;
            trace::park(virtqueue.id);
        }
        let next = match mm {
            Some(mm) => {
                let mut how = How {
                    shared: false,
                    polling,
                    end: begun.saturating_add(parameters::slice()),
                    data: virtqueue.limits.data(),
                    is_other_stuck: None,
                };
                queue.batches.set_limit(0);
                let next = net::serve(virtqueue, queue, &mm, &mut how, &mut tally);
                // They are no worker's.
                let _: u64 = queue.batches.take_sent();
                next
            }
            None => Next::Wait,
        };
        let passed = cpu::now().saturating_sub(begun);
        let stolen = stolen_time().saturating_sub(stolen);
        {
            let stats = &virtqueue.stats;
            let _section = stats.sequence.write();
            stats.add(&tally);
            stats.home_works.add(1);
            stats.home_time.add(passed.saturating_sub(stolen));
            stats.polled.set(u64::from(queue.polling.is_active()));
        }
        queue.report(&tally);
        if !stay {
            trace::come_back(virtqueue.id);
        }
        slice.finish_at_home(matches!(next, Next::Again | Next::Look), stay);
    }
}
