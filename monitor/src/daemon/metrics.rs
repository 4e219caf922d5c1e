// SPDX-License-Identifier: GPL-2.0

//! Metrics in the OpenMetrics format, for Prometheus and the like.

use super::config::Listen;
use crate::failure::{Failure, Result};
use crate::host::snapshot::{Snapshot, Virtqueue};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use tiny_http::{Header, Response, Server};

/// What a VM has used: the sum over its devices, those that it has closed included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charge {
    /// Time of workers, in nanoseconds.
    pub worker_time: u64,
    /// Time of its home threads, in nanoseconds.
    pub home_time: u64,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What is told.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Everything as it was last.
    pub snapshot: Snapshot,
    /// VMs by their processes.
    pub names: BTreeMap<i32, String>,
    /// What they have used.
    pub charges: BTreeMap<i32, Charge>,
    /// CPUs that the monitor keeps for I/O.
    pub cores: usize,
    /// Decisions so far.
    pub decisions: u64,
    /// Steps that were carried out.
    pub steps: u64,
    /// Plans that failed.
    pub failures: u64,
}

impl State {
    /// Takes a new look, and charges what was used since the last one.
    pub fn update(&mut self, snapshot: &Snapshot, names: &BTreeMap<i32, String>) {
        for device in &snapshot.devices {
            let Some(owner) = i32::try_from(device.owner).ok().filter(|pid| *pid > 0) else {
                continue;
            };
            let charge = self.charges.entry(owner).or_default();
            for now in snapshot.of_device(device.id) {
                let mut earlier = self.snapshot.of_device(device.id);
                let before = earlier.find(|before| before.index == now.index);
                let since =
                    |get: fn(&Virtqueue) -> u64| get(now).saturating_sub(before.map_or(0, get));
                charge.worker_time += since(|virtqueue| virtqueue.served_time);
                charge.home_time += since(|virtqueue| virtqueue.home_time);
                charge.packets += since(|virtqueue| virtqueue.packets);
                charge.bytes += since(|virtqueue| virtqueue.bytes);
            }
        }
        // A VM that has ended is no series any more; Prometheus keeps what it has read.
        self.charges.retain(|owner, _| {
            let owner = i64::from(*owner);
            snapshot.devices.iter().any(|device| device.owner == owner)
        });
        self.snapshot.clone_from(snapshot);
        if self.names != *names {
            self.names.clone_from(names);
        }
    }

    /// All of it as text.
    pub fn encode(&self) -> String {
        type Labels = Vec<(&'static str, String)>;
        let mut registry = Registry::with_prefix("iocm");
        let mut gauge = |name: &str, help: &str, values: Vec<(Labels, i64)>| {
            let family = Family::<Labels, Gauge>::default();
            for (labels, value) in values {
                family.get_or_create(&labels).set(value);
            }
            registry.register(name, help, family);
        };
        let of_worker = |id: u32| vec![("worker", format!("w.{id}"))];
        let workers = &self.snapshot.workers;
        gauge(
            "cores",
            "CPUs that the monitor keeps for I/O",
            vec![(Vec::new(), self.cores as i64)],
        );
        gauge(
            "worker_cpu",
            "CPU of a worker, -1 if it may run on several",
            workers
                .iter()
                .map(|worker| (of_worker(worker.id), worker.cpu))
                .collect(),
        );
        gauge(
            "worker_active",
            "1 if a worker is not parked",
            workers
                .iter()
                .map(|worker| (of_worker(worker.id), i64::from(!worker.is_parked())))
                .collect(),
        );
        gauge(
            "worker_pending_nanoseconds",
            "Moving average of the age of work when its slice began",
            workers
                .iter()
                .map(|worker| (of_worker(worker.id), worker.pending_average as i64))
                .collect(),
        );
        let mut counter =
            |name: &str, help: &str, unit: Option<Unit>, values: Vec<(Labels, f64)>| {
                let family = Family::<Labels, Counter<f64, AtomicU64>>::default();
                for (labels, value) in values {
                    family.get_or_create(&labels).inc_by(value);
                }
                match unit {
                    Some(unit) => registry.register_with_unit(name, help, unit, family),
                    None => registry.register(name, help, family),
                }
            };
        let seconds = |nanoseconds: u64| nanoseconds as f64 / 1e9;
        for (name, help, get) in [
            (
                "worker_busy",
                "Time that a worker spent serving",
                (|worker| worker.busy_time) as fn(&crate::host::snapshot::Worker) -> u64,
            ),
            (
                "worker_polling",
                "Time that a worker spent looking at polled virtqueues that had nothing",
                |worker| worker.empty_poll_time,
            ),
            ("worker_idle", "Time that a worker was asleep", |worker| {
                worker.idle_time
            }),
        ] {
            let values = workers
                .iter()
                .map(|worker| (of_worker(worker.id), seconds(get(worker))));
            counter(name, help, Some(Unit::Seconds), values.collect());
        }
        let of_vm = |pid: i32| {
            let name = self
                .names
                .get(&pid)
                .map_or_else(String::new, |name| escape(name));
            vec![("vm", name), ("pid", pid.to_string())]
        };
        let charges = |get: fn(&Charge) -> f64| {
            let values = self.charges.iter();
            values
                .map(|(pid, charge)| (of_vm(*pid), get(charge)))
                .collect()
        };
        counter(
            "vm_worker",
            "Time of workers that a VM has used, to be charged to it",
            Some(Unit::Seconds),
            charges(|charge| charge.worker_time as f64 / 1e9),
        );
        counter(
            "vm_home",
            "Time of home threads that a VM has used; its cgroup is charged already",
            Some(Unit::Seconds),
            charges(|charge| charge.home_time as f64 / 1e9),
        );
        counter(
            "vm_packets",
            "Packets of a VM",
            None,
            charges(|charge| charge.packets as f64),
        );
        counter(
            "vm_transferred",
            "Bytes of a VM's packets",
            Some(Unit::Bytes),
            charges(|charge| charge.bytes as f64),
        );
        for (name, help, value) in [
            ("decisions", "Decisions of the monitor", self.decisions),
            ("steps", "Steps that were carried out", self.steps),
            ("failures", "Plans that failed", self.failures),
        ] {
            counter(name, help, None, vec![(Vec::new(), value as f64)]);
        }
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = encode(&mut text, &registry);
        text
    }
}

/// A value of a label as OpenMetrics wants it, which the encoder leaves to us. Who starts a VM chooses
/// its name, and must not be able to say anything about another one.
fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// The state that the daemon writes and the server reads.
pub type Shared = Arc<Mutex<State>>;

/// Changes the state.
pub fn with<T>(shared: &Shared, change: impl FnOnce(&mut State) -> T) -> T {
    change(&mut shared.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Offers the metrics, in a thread that ends when what is returned is dropped.
///
/// # Errors
///
/// The address is taken, or the socket cannot be made.
pub fn serve(listen: &Listen, shared: Shared) -> Result<Offer> {
    let server = match listen {
        Listen::Address(address) => Server::http(address),
        Listen::Socket(path) => {
            // What an earlier monitor has left there.
            let _ = std::fs::remove_file(path);
            Server::http_unix(path)
        }
    };
    let server = server.map_err(|error| {
        Failure::Configuration(format!("metrics cannot be offered at {listen:?}: {error}"))
    })?;
    let server = Arc::new(server);
    let requests = Arc::clone(&server);
    std::thread::spawn(move || {
        for request in requests.incoming_requests() {
            let text = with(&shared, |state| state.encode());
            let mut response = Response::from_string(text);
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            if let Ok(header) = Header::from_bytes("Content-Type", kind) {
                response.add_header(header);
            }
            // Who asked may have gone.
            let _ = request.respond(response);
        }
    });
    Ok(Offer(server))
}

/// Metrics that are offered.
pub struct Offer(Arc<Server>);

impl Drop for Offer {
    fn drop(&mut self) {
        self.0.unblock();
    }
}
