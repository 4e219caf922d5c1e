// SPDX-License-Identifier: GPL-2.0
//! A case: steps on a device, which are taken on both nodes and whose records are compared.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{anyhow, bail, ensure, Context, Result};

use crate::device::Device;
use crate::differences;
use crate::fuzz::known;
use crate::fuzz::play::play;
use crate::fuzz::scene::Scene;
use crate::ktap::diagnostic;
use crate::rig::{Ground, Rig, State};
use crate::transcript::{difference, Transcript};

/// A node, and what devices of it get around them.
pub struct Node {
    /// Its path.
    pub path: PathBuf,
    /// Memory and tap.
    pub ground: Rc<Ground>,
    /// The same, where packets have no header.
    pub headless: Rc<Ground>,
}

impl Node {
    /// The node at this path.
    pub fn new(path: &Path) -> Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            ground: Ground::new()?,
            headless: Ground::without_header()?,
        })
    }

    /// A new device, in this state.
    pub fn rig(&self, state: State) -> Result<Rig> {
        Rig::new(&self.path, &self.ground, state)
    }

    /// A new device with nothing around it.
    pub fn open(&self) -> Result<Device> {
        Device::open(&self.path)
    }
}

/// A scene ends where these lines of stock vhost and of vhost_iocm say that they differ on purpose.
type Known = fn(&str, &str) -> bool;

type Steps = Box<dyn Fn(&Node, &mut Transcript<'_>) -> Result<()>>;

/// A case.
pub struct Case {
    /// What it is about.
    pub name: String,
    known: Known,
    steps: Steps,
}

impl Case {
    /// A case that plays a scene.
    pub fn of_scene(name: String, scene: Scene) -> Self {
        Self {
            name,
            known: known::is_passed_over,
            steps: Box::new(move |node, transcript| play(&scene, node, transcript)),
        }
    }

    /// Runs the case on both nodes. An error tells how they differ.
    pub fn run(&self, stock: &Node, ours: &Node, linger: Duration, records: bool) -> Result<()> {
        let mut transcript = Transcript::of_stock();
        (self.steps)(stock, &mut transcript).context("stock vhost")?;
        if records {
            diagnostic(transcript.lines.join("\n"));
        }
        ensure!(!transcript.lines.is_empty(), "the case notes nothing");
        let mut expected =
            differences::expected(&self.name, transcript.lines).map_err(|text| anyhow!(text))?;
        let mut transcript = Transcript::of_ours(&expected, linger).but_for(self.known);
        let result = (self.steps)(ours, &mut transcript);
        let Transcript { lines, stopped, .. } = transcript;
        if stopped {
            expected.truncate(lines.len());
        }
        match (difference(&expected, &lines), result) {
            (None, result) => result.context("vhost_iocm"),
            (Some(text), Ok(())) => bail!(text),
            (Some(text), Err(error)) => bail!("{text}\n{error:#}"),
        }
    }

    /// Runs the case until it finds no difference, a few times at most and each time slower: what a busy
    /// machine keeps from being done in time is done in the next attempt, and a true difference is there
    /// in each.
    pub fn run_patiently(&self, stock: &Node, ours: &Node, records: bool) -> Result<()> {
        let mut result = Ok(());
        for linger in LINGERS {
            result = self.run(stock, ours, linger, records);
            if result.is_ok() {
                break;
            }
        }
        result
    }
}

/// How long the attempts linger.
const LINGERS: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(20),
    Duration::from_millis(200),
];

/// A list of cases that is being made.
#[derive(Default)]
pub struct Cases {
    /// The cases, in their order.
    pub list: Vec<Case>,
}

impl Cases {
    /// Adds a case.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        steps: impl Fn(&Node, &mut Transcript<'_>) -> Result<()> + 'static,
    ) {
        self.list.push(Case {
            name: name.into(),
            known: |_, _| false,
            steps: Box::new(steps),
        });
    }

    /// Adds a case that plays a scene.
    pub fn add_scene(&mut self, name: impl Into<String>, scene: Scene) {
        self.list.push(Case::of_scene(name.into(), scene));
    }
}
