// SPDX-License-Identifier: GPL-2.0
//! The monitor on a real module: it follows a load that comes and goes without losing a packet, keeps
//! guests off the CPUs that it takes, and may be killed at any instant.

mod cost;
mod follow;
mod kills;
mod places;
mod refusals;
mod running;

use std::process::ExitCode;

use clap::Parser;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::options::Options;

#[derive(Parser)]
struct Arguments {
    /// How often the monitor is killed (default: 200, in a debug kernel 20).
    #[arg(long)]
    kills: Option<u32>,

    /// Seed of the instants at which it is killed.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = &arguments.options;
    let kills = arguments.kills.unwrap_or(options.volume(200, 10));
    let seed = arguments.seed;
    let mut suite = Suite::new();
    suite.case(
        "a core is taken when the load comes, given back when it goes, and no packet is lost",
        move || follow::follow(options),
    );
    suite.case(
        format!("a monitor that is killed {kills} times in the middle of a change harms nothing, and the next one takes over"),
        move || kills::killed(options, kills, seed),
    );
    suite.case(
        "a VM leaves a core by the cpuset of its own cgroup, or by its threads' affinity, and comes back",
        move || places::left(options),
    );
    suite.case(
        "a core without which a VM would have none is not taken, and all that was done for it is undone",
        move || places::refused(options),
    );
    suite.case(
        "interrupts of a network card move to the core if that is wanted and irqbalance does not run",
        places::interrupts,
    );
    suite.case(
        "what cannot be done is said in one sentence",
        refusals::refusals,
    );
    suite.measurement(
        "an interval of 10 ms costs less than a hundredth of a CPU with 64 devices",
        move || cost::interval(options),
    );
    suite.run(&options.filters)
}
