// SPDX-License-Identifier: GPL-2.0
//! Where the instructions of a packet are executed: in which function, and in which part of the kernel (tier T1).
//!
//! The serving thread is interrupted each time that it has run for a certain time more (perf's cpu-clock), which on
//! the emulated machine is so many instructions, and the function in which that happens is counted. So it is by
//! samples how the instructions are divided, while how many there are is counted. What is executed with interrupts
//! disabled is found where they are enabled again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{ensure, Context, Result};
use perf_event::data::Record as Event;
use perf_event::events::Software;
use perf_event::{Builder, SampleFlag, Sampler};
use rustc_demangle::demangle;
use serde::{Deserialize, Serialize};
use vhost_iocm_selftests::cpu;
use vhost_iocm_selftests::random::Random;

use crate::counts::{self, settle};
use crate::pairs::Wanted;
use crate::record::{Record, Tier};
use crate::subject::{Module, Subjects};
use crate::workload::{Direction, Shape, Workload, SHAPES};

/// Nanoseconds between two samples of a batch, at least and below. It is another time for each batch, or the same
/// places would be found again and again.
const PERIOD: [u64; 2] = [10_000, 20_000];
/// Samples of a profile. A part of the half is known to 1.4 % of the whole with a confidence of 95 %.
const SAMPLES: usize = 5000;
/// Bytes for the samples of a batch.
const BUFFER: usize = 1 << 16;
/// Says whether programs of BPF are among the kernel's symbols.
const BPF_SYMBOLS: &str = "/proc/sys/net/core/bpf_jit_kallsyms";

/// A part of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// The module that serves, with those that it is made of.
    Module,
    /// Tun and tap.
    Tun,
    /// Copies, whoever makes them.
    Copies,
    /// All else.
    Rest,
}

impl Part {
    const ALL: [Self; 4] = [Self::Module, Self::Tun, Self::Copies, Self::Rest];

    fn name(self) -> &'static str {
        match self {
            Self::Module => "module",
            Self::Tun => "tun",
            Self::Copies => "copies",
            Self::Rest => "rest",
        }
    }

    fn of(function: &Function) -> Self {
        let name = function.name.as_str();
        let has = |words: &[&str]| words.iter().any(|word| name.contains(word));
        if function.module.starts_with("vhost") {
            Self::Module
        } else if has(&["copy", "memcpy", "memset", "rep_movs", "rep_stos"])
            || has(&["clear_user", "iov_iter", "datagram_iter"])
        {
            Self::Copies
        } else if name.starts_with("tun_") || name.starts_with("__tun_") {
            Self::Tun
        } else {
            Self::Rest
        }
    }
}

/// A function of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Function {
    name: String,
    /// The module that it is in, or nothing.
    module: String,
}

/// What a function takes of a packet, with either module.
#[derive(Debug, Deserialize, Serialize)]
pub struct Row {
    /// Of which packets.
    pub profile: String,
    /// Its name.
    pub function: String,
    /// The module that it is in, or nothing.
    pub module: String,
    /// Instructions of a packet with the kernel's vhost_net.
    pub stock: f64,
    /// The same with vhost_iocm.
    pub ours: f64,
}

/// Measures the profiles that are wanted: what the parts take, and what each function does.
pub fn run(subjects: &Subjects, wanted: &Wanted) -> Result<(Vec<Record>, Vec<Row>)> {
    let (mut records, mut rows) = (Vec::new(), Vec::new());
    fs::write(BPF_SYMBOLS, "1").with_context(|| format!("write {BPF_SYMBOLS}"))?;
    for direction in Direction::ALL {
        for shape in &SHAPES {
            let profile = format!("t1_{}{}", direction.name(), shape.name);
            let metric = |part: Part| format!("{profile}_insns_in_{}", part.name());
            if !Part::ALL.iter().any(|part| wanted.has(&metric(*part))) {
                continue;
            }
            let stock = measure(subjects, Module::Stock, direction, shape)?;
            let ours = measure(subjects, Module::Ours, direction, shape)?;
            for part in Part::ALL {
                for (name, costs) in [("stock", &stock), ("ours", &ours)] {
                    let inside = costs.iter().filter(|(found, _)| Part::of(found) == part);
                    let cost = inside.map(|(_, cost)| cost).sum();
                    let metric = format!("{}_{name}", metric(part));
                    records.push(Record::new(Tier::T1, metric, &[cost]));
                }
            }
            let functions: BTreeSet<_> = stock.keys().chain(ours.keys()).collect();
            let mut table: Vec<Row> = functions
                .into_iter()
                .map(|function| Row {
                    profile: profile.clone(),
                    function: function.name.clone(),
                    module: function.module.clone(),
                    stock: stock.get(function).copied().unwrap_or(0.0),
                    ours: ours.get(function).copied().unwrap_or(0.0),
                })
                .collect();
            let most = |row: &Row| row.stock.max(row.ours);
            table.sort_by(|one, other| most(other).total_cmp(&most(one)));
            rows.extend(table);
        }
    }
    Ok((records, rows))
}

/// Instructions of a packet in each function.
fn measure(
    subjects: &Subjects,
    module: Module,
    direction: Direction,
    shape: &Shape,
) -> Result<BTreeMap<Function, f64>> {
    let each = counts::measure(subjects, module, direction, shape, "0")?;
    let whole = if shape.large {
        each * shape.length as f64
    } else {
        each
    };
    let mut subject = subjects.open(module, shape.card(), "0")?;
    let nic = &mut subject.nic;
    let workload = Workload::new(nic, shape, direction)?;
    let _first = cpu::run_first()?;
    workload.serve(nic)?;
    let symbols = Symbols::read()?;
    let mut random = Random::new(1);
    let mut counted: BTreeMap<Function, usize> = BTreeMap::new();
    let mut samples = 0;
    while samples < SAMPLES {
        let more = random.below((PERIOD[1] - PERIOD[0]) as usize) as u64;
        let mut sampler = Builder::new(Software::CPU_CLOCK)
            .observe_pid(subject.thread.id)
            .any_cpu()
            .include_kernel()
            .exclude_user(true)
            .sample_period(PERIOD[0] + more)
            .sample(SampleFlag::IP)
            .build()
            .context("perf_event_open")?
            .sampled(BUFFER)?;
        sampler.enable()?;
        workload.serve(nic)?;
        settle();
        samples += drain(&mut sampler, |address| {
            *counted.entry(symbols.find(address)).or_default() += 1;
        })?;
    }
    Ok(counted
        .into_iter()
        .map(|(function, count)| (function, whole * count as f64 / samples as f64))
        .collect())
}

/// Calls `each` with the address of each sample that there is; returns their number.
fn drain(sampler: &mut Sampler, mut each: impl FnMut(u64)) -> Result<usize> {
    let mut samples = 0;
    while let Some(record) = sampler.next_record() {
        match record.parse_record()? {
            Event::Sample(sample) => {
                each(sample.ip().context("a sample without an address")?);
                samples += 1;
            }
            Event::Lost(_) | Event::LostSamples(_) => anyhow::bail!("samples were lost"),
            Event::Throttle(_) => anyhow::bail!("the kernel samples too rarely"),
            _ => (),
        }
    }
    Ok(samples)
}

/// The functions of the kernel, by their addresses.
struct Symbols(Vec<(u64, Function)>);

impl Symbols {
    fn read() -> Result<Self> {
        let text = fs::read_to_string("/proc/kallsyms").context("read the kernel's symbols")?;
        let symbols = Self::parse(&text)?;
        ensure!(
            symbols.0.last().is_some_and(|(address, _)| *address > 0),
            "the kernel does not tell addresses"
        );
        Ok(symbols)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut symbols = Vec::new();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(address), Some(kind), Some(name)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            if matches!(kind, "t" | "T" | "w" | "W") {
                let address = u64::from_str_radix(address, 16).context("an address")?;
                let module = words.next().unwrap_or("");
                symbols.push((
                    address,
                    Function {
                        name: format!("{:#}", demangle(name)),
                        module: module.trim_matches(['[', ']']).to_owned(),
                    },
                ));
            }
        }
        symbols.sort_by_key(|(address, _)| *address);
        Ok(Self(symbols))
    }

    fn find(&self, address: u64) -> Function {
        let behind = self.0.partition_point(|(begin, _)| *begin <= address);
        let found = behind.checked_sub(1).map(|index| self.0[index].1.clone());
        found.unwrap_or_else(|| Function {
            name: format!("{address:#x}"),
            module: String::new(),
        })
    }
}

/// Profiles as tables for people.
pub fn tell(rows: &[Row]) -> String {
    let mut text = String::new();
    for profile in rows.chunk_by(|one, other| one.profile == other.profile) {
        let sum = |of: fn(&Row) -> f64| profile.iter().map(of).sum::<f64>();
        text += &format!(
            "{}: instructions of a packet, {:.0} with vhost_net and {:.0} with vhost_iocm\n{:>10} {:>10}\n",
            profile[0].profile,
            sum(|row| row.stock),
            sum(|row| row.ours),
            "vhost_net",
            "vhost_iocm"
        );
        for row in profile {
            let module = match row.module.as_str() {
                "" => String::new(),
                module => format!(" [{module}]"),
            };
            text += &format!(
                "{:>10.1} {:>10.1} {}{module}\n",
                row.stock, row.ours, row.function
            );
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_in_the_function_that_begins_before() {
        let text = "ffffffff81000000 T _text\nffffffffc0001000 t serve\t[vhost_net]\n\
                    ffffffff81000100 t tun_do_read\nffffffff81000180 d data\n";
        let symbols = Symbols::parse(text).expect("the addresses are numbers");
        let name = |address| symbols.find(address).name;
        assert_eq!(name(0xffffffff810000ff), "_text");
        assert_eq!(name(0xffffffff81000100), "tun_do_read");
        // What is no function is none.
        assert_eq!(name(0xffffffff81000190), "tun_do_read");
        let serve = symbols.find(0xffffffffc0001004);
        assert_eq!(serve.module, "vhost_net");
        assert_eq!(Part::of(&serve), Part::Module);
        assert_eq!(name(1), "0x1");
    }

    #[test]
    fn parts_are_told_apart_by_names() {
        for (name, module, part) in [
            ("iocm_entries_peek", "vhost_iocm", Part::Module),
            ("vhost_get_vq_desc_n", "vhost", Part::Module),
            ("tun_do_read", "", Part::Tun),
            ("_copy_to_iter", "", Part::Copies),
            ("__skb_datagram_iter", "", Part::Copies),
            ("memcpy_orig", "", Part::Copies),
            ("schedule", "", Part::Rest),
        ] {
            let function = Function {
                name: name.to_owned(),
                module: module.to_owned(),
            };
            assert_eq!(Part::of(&function), part, "{name}");
        }
    }
}
