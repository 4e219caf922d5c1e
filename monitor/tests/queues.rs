// SPDX-License-Identifier: GPL-2.0

//! The simulator agrees with the theory of queues.

use iocm::simulate::costs::Costs;
use iocm::simulate::host::{Host, Setup};
use iocm::simulate::measure::mean;
use iocm::simulate::processor::Pool;
use iocm::simulate::scenario::Scenario;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Exp1};

/// What theory says may be missed by 1 %.
const TOLERANCE: f64 = 0.01;
const REQUESTS: usize = 4_000_000;

/// The mean time that requests spend with one core that is shared, with Poisson arrivals, at a
/// load of 0.6, if a request takes 1000 ns on average.
fn shared_core(seed: u64, mut work: impl FnMut(&mut StdRng) -> f64) -> f64 {
    let mut random = StdRng::seed_from_u64(seed);
    let mut pool = Pool::new(1);
    let mut next = 0.0;
    let mut begun = 0;
    let mut times = Vec::with_capacity(REQUESTS);
    while times.len() < REQUESTS {
        let at = next as u64;
        match pool.next_end() {
            Some(end) if end <= at || begun == REQUESTS => {
                pool.advance(end);
                let born = pool.take().expect("a job that ends is there");
                times.push((end - born) as f64);
            }
            _ => {
                let took = work(&mut random);
                pool.add(at, took as u64, at);
                begun += 1;
                let gap: f64 = Exp1.sample(&mut random);
                next += gap * 100_000.0 / 0.6;
            }
        }
    }
    mean(times.into_iter())
}

/// M/M/1: the mean time is 1 / (mu - lambda).
#[test]
fn one_server_with_exponential_service() {
    let measured = shared_core(1, |random| {
        let draw: f64 = Exp1.sample(random);
        draw * 100_000.0
    });
    let theory = 100_000.0 / 0.4;
    assert!(
        (measured / theory - 1.0).abs() < TOLERANCE,
        "{measured} instead of {theory}"
    );
}

/// M/G/1 with processor sharing: the mean time depends on the mean of the service alone. Here one
/// request in ten takes fifty-five times as long as the others.
#[test]
fn processor_sharing_with_any_service() {
    let measured = shared_core(2, |random| {
        let long = random.random::<f64>() < 0.1;
        let unit = 100_000.0 / 6.4;
        if long {
            unit * 55.0
        } else {
            unit
        }
    });
    let theory = 100_000.0 / 0.4;
    assert!(
        (measured / theory - 1.0).abs() < TOLERANCE,
        "{measured} instead of {theory}"
    );
}

/// M/D/1: a worker that moves packets which all take the same time. The mean time is the service
/// times 1 + load / (2 (1 - load)).
#[test]
fn worker_with_packets_of_one_size() {
    let scenario = Scenario::parse(
        r#"
        description = "M/D/1"
        duration_ms = 60000
        cores = 2
        cores_max = 1
        [[load]]
        name = "packets"
        receive_bytes = 100
        target_us = 1.0
        arrival = { kind = "open", rate = 70000.0 }
        "#,
    )
    .expect("the scenario is valid");
    let nothing = Costs {
        packet: 10_000.0,
        kilobyte: 0.0,
        slice: 0.0,
        look: 0.0,
        exit: 0.0,
        wake_latency: 0.0,
        wake_work: 0.0,
        interrupt: 0.0,
        handover: 0.0,
    };
    let setup = Setup {
        scenario: &scenario,
        costs: nothing,
        seed: 3,
        signal_batch: 1,
        cores: 1,
    };
    let (outcome, _) = Host::new(&setup).run(None);
    let load: f64 = 0.7;
    let theory = 10.0 * (1.0 + load / (2.0 * (1.0 - load)));
    let measured = outcome.time.mean;
    assert!(outcome.done > 4_000_000);
    assert!(
        (measured / theory - 1.0).abs() < TOLERANCE,
        "{measured} us instead of {theory} us"
    );
}

/// A load that rises is served from its first request on, and not from when the next one of the
/// smaller load would have come.
#[test]
fn load_that_rises_is_served_at_once() {
    let scenario = Scenario::parse(
        r#"
        description = "from a request in a second to 20,000"
        duration_ms = 200
        cores = 2
        cores_max = 1
        [[load]]
        name = "requests"
        receive_bytes = 100
        target_us = 1000.0
        arrival = { kind = "open", rate = 1.0 }
        phase = [{ at_ms = 100, rate = 20000.0 }]
        "#,
    )
    .expect("the scenario is valid");
    for cores in [0, 1] {
        let setup = Setup {
            scenario: &scenario,
            costs: Costs::middle(),
            seed: 4,
            signal_batch: 64,
            cores,
        };
        let (outcome, _) = Host::new(&setup).run(None);
        let last = outcome.windows.last().expect("a window");
        assert!(last.done > 1_500, "{} requests", last.done);
        assert!(last.p99 < 1.0, "{} times the target", last.p99);
    }
}
