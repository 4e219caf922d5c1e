// SPDX-License-Identifier: GPL-2.0

//! `iocm top`: workers and devices in the terminal.

use super::status::{count, state, time, vm_names};
use crate::failure::{Failure, Result};
use crate::host::control::{worker_name, Control, Object};
use crate::host::snapshot::{Reader, Snapshot, Virtqueue, Worker};
use crate::host::Root;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Row, Sparkline, Table};
use ratatui::Frame;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};
use vhost_iocm_engine::engine::abi::{DeviceId, WorkerId};

/// How many looks are remembered for the histories.
const HISTORY: usize = 120;
/// Columns of a bar.
const BAR: usize = 14;
/// Columns of a history.
const SPARKLINE: u16 = 18;

/// By what devices are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Device,
    Packets,
    Bytes,
    Time,
    Age,
}

impl Sort {
    fn next(self) -> Self {
        match self {
            Self::Device => Self::Packets,
            Self::Packets => Self::Bytes,
            Self::Bytes => Self::Time,
            Self::Time => Self::Age,
            Self::Age => Self::Device,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Packets => "packets",
            Self::Bytes => "bytes",
            Self::Time => "time",
            Self::Age => "age",
        }
    }
}

/// What is selected: a row of one of the two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pane {
    Workers,
    Devices,
}

/// Something to do, once the user has said yes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Let a worker serve a device.
    Move(DeviceId, WorkerId),
    /// Let a worker run on other CPUs.
    Pin(WorkerId, String),
    /// Lock a worker, or unlock it.
    Lock(WorkerId, bool),
}

impl Change {
    fn question(&self) -> String {
        match self {
            Self::Move(device, worker) => format!("Move {device} to {worker}?"),
            Self::Pin(worker, cpus) => format!("Let {worker} run on CPU {cpus}?"),
            Self::Lock(worker, true) => format!("Lock {worker}?"),
            Self::Lock(worker, false) => format!("Unlock {worker}?"),
        }
    }

    fn apply(&self, control: &Control) -> Result<()> {
        match self {
            Self::Move(device, worker) => control.move_to(Object::Device(*device), *worker),
            Self::Pin(worker, cpus) => control.set(Object::Worker(*worker), "cpus", cpus),
            Self::Lock(worker, locked) => {
                let value = if *locked { "1" } else { "0" };
                control.set(Object::Worker(*worker), "locked", value)
            }
        }
    }
}

/// What keys mean.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Mode {
    Look,
    Filter,
    /// A worker's name for a device.
    AskWorker(DeviceId, String),
    /// CPUs for a worker.
    AskCpus(WorkerId, String),
    Confirm(Change),
    Help,
}

/// What a key leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing beyond a new picture.
    Nothing,
    /// The end.
    Quit,
    /// Something that was confirmed.
    Do(Change),
}

/// A row of the table of devices.
struct DeviceRow {
    id: u32,
    vm: String,
    interface: String,
    worker: String,
    packets: f64,
    bytes: f64,
    /// Part of a core.
    time: f64,
    age: u64,
    polled: bool,
}

/// Everything that the picture shows.
pub struct Top {
    now: Snapshot,
    before: Option<(Duration, Snapshot)>,
    names: BTreeMap<i64, String>,
    /// Utilisation in percent, the latest last.
    histories: BTreeMap<u32, VecDeque<u64>>,
    pane: Pane,
    selected: usize,
    sort: Sort,
    filter: String,
    mode: Mode,
    /// The outcome of the last change.
    message: String,
}

impl Top {
    /// A picture of this.
    pub fn new(now: Snapshot, names: BTreeMap<i64, String>) -> Self {
        Self {
            now,
            before: None,
            names,
            histories: BTreeMap::new(),
            pane: Pane::Devices,
            selected: 0,
            sort: Sort::Device,
            filter: String::new(),
            mode: Mode::Look,
            message: String::new(),
        }
    }

    /// Takes a new look after this time.
    pub fn update(&mut self, now: Snapshot, elapsed: Duration, names: BTreeMap<i64, String>) {
        let before = std::mem::replace(&mut self.now, now);
        self.before = Some((elapsed, before));
        self.names = names;
        let live: Vec<u32> = self.now.workers.iter().map(|worker| worker.id).collect();
        self.histories.retain(|id, _| live.contains(id));
        for worker in &self.now.workers {
            let percent = (100.0 * self.busy(worker)).round() as u64;
            let history = self.histories.entry(worker.id).or_default();
            history.push_back(percent.min(100));
            if history.len() > HISTORY {
                history.pop_front();
            }
        }
    }

    /// The part of the last interval that a worker was serving.
    fn busy(&self, worker: &Worker) -> f64 {
        let Some((elapsed, before)) = &self.before else {
            return 0.0;
        };
        let earlier = before
            .worker(worker.id)
            .map_or(0, |worker| worker.busy_time);
        worker.busy_time.saturating_sub(earlier) as f64 / elapsed.as_nanos().max(1) as f64
    }

    fn rows(&self) -> Vec<DeviceRow> {
        let filter = self.filter.to_lowercase();
        let mut rows: Vec<DeviceRow> = self
            .now
            .devices
            .iter()
            .map(|device| {
                let sum = |get: fn(&Virtqueue) -> u64| {
                    let Some((elapsed, before)) = &self.before else {
                        return 0.0;
                    };
                    let total: u64 = self
                        .now
                        .of_device(device.id)
                        .map(|now| {
                            let mut earlier = before.of_device(device.id);
                            let earlier = earlier.find(|before| before.index == now.index);
                            get(now).saturating_sub(earlier.map_or(0, get))
                        })
                        .sum();
                    total as f64 / elapsed.as_secs_f64().max(1e-9)
                };
                let mut workers: Vec<String> = self
                    .now
                    .of_device(device.id)
                    .map(|virtqueue| {
                        if virtqueue.home || !device.placed {
                            "home".to_owned()
                        } else {
                            format!("w.{}", virtqueue.worker)
                        }
                    })
                    .collect();
                workers.dedup();
                DeviceRow {
                    id: device.id,
                    vm: self
                        .names
                        .get(&device.owner)
                        .cloned()
                        .unwrap_or_else(|| device.comm.to_string()),
                    interface: device.receive_backend.to_string(),
                    worker: workers.join(","),
                    packets: sum(|virtqueue| virtqueue.packets),
                    bytes: sum(|virtqueue| virtqueue.bytes),
                    time: sum(|virtqueue| virtqueue.served_time + virtqueue.home_time) / 1e9,
                    age: self
                        .now
                        .of_device(device.id)
                        .map(|virtqueue| virtqueue.pending_average)
                        .max()
                        .unwrap_or(0),
                    polled: self.now.of_device(device.id).any(|queue| queue.polled),
                }
            })
            .filter(|row| {
                let text = format!("d.{} {} {} {}", row.id, row.vm, row.interface, row.worker);
                text.to_lowercase().contains(&filter)
            })
            .collect();
        let largest = |a: f64, b: f64| b.total_cmp(&a);
        match self.sort {
            Sort::Device => {}
            Sort::Packets => rows.sort_by(|a, b| largest(a.packets, b.packets)),
            Sort::Bytes => rows.sort_by(|a, b| largest(a.bytes, b.bytes)),
            Sort::Time => rows.sort_by(|a, b| largest(a.time, b.time)),
            Sort::Age => rows.sort_by_key(|row| std::cmp::Reverse(row.age)),
        }
        rows
    }

    fn length(&self) -> usize {
        match self.pane {
            Pane::Workers => self.now.workers.len(),
            Pane::Devices => self.rows().len(),
        }
    }

    fn selected_worker(&self) -> Option<&Worker> {
        match self.pane {
            Pane::Workers => self.now.workers.get(self.selected),
            Pane::Devices => None,
        }
    }

    fn selected_device(&self) -> Option<DeviceId> {
        match self.pane {
            Pane::Workers => None,
            Pane::Devices => self.rows().get(self.selected).map(|row| DeviceId(row.id)),
        }
    }

    /// Says how a change went.
    pub fn report(&mut self, message: String) {
        self.message = message;
    }

    /// What a key does.
    pub fn key(&mut self, key: KeyCode) -> Wish {
        match std::mem::replace(&mut self.mode, Mode::Look) {
            Mode::Look => return self.look_key(key),
            Mode::Help => {}
            Mode::Filter => match key {
                KeyCode::Enter => {}
                KeyCode::Esc => self.filter.clear(),
                _ => {
                    edit(&mut self.filter, key);
                    self.selected = 0;
                    self.mode = Mode::Filter;
                }
            },
            Mode::AskWorker(device, mut text) => match key {
                KeyCode::Esc => {}
                KeyCode::Enter => match worker_name(&text) {
                    Ok(worker) => self.mode = Mode::Confirm(Change::Move(device, worker)),
                    Err(error) => self.message = error,
                },
                _ => {
                    edit(&mut text, key);
                    self.mode = Mode::AskWorker(device, text);
                }
            },
            Mode::AskCpus(worker, mut text) => match key {
                KeyCode::Esc => {}
                KeyCode::Enter => self.mode = Mode::Confirm(Change::Pin(worker, text)),
                _ => {
                    edit(&mut text, key);
                    self.mode = Mode::AskCpus(worker, text);
                }
            },
            Mode::Confirm(change) => match key {
                KeyCode::Char('y') => return Wish::Do(change),
                KeyCode::Char('n') | KeyCode::Esc => self.message = "nothing was changed".into(),
                _ => self.mode = Mode::Confirm(change),
            },
        }
        Wish::Nothing
    }

    fn look_key(&mut self, key: KeyCode) -> Wish {
        match key {
            KeyCode::Char('q') => return Wish::Quit,
            KeyCode::Char('?' | 'h') => self.mode = Mode::Help,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('/') => self.mode = Mode::Filter,
            KeyCode::Tab => {
                self.pane = match self.pane {
                    Pane::Workers => Pane::Devices,
                    Pane::Devices => Pane::Workers,
                };
                self.selected = 0;
            }
            KeyCode::Up => self.selected = self.selected.saturating_sub(1),
            KeyCode::Down => {
                self.selected = (self.selected + 1).min(self.length().saturating_sub(1));
            }
            KeyCode::Char('m') => match self.selected_device() {
                Some(device) => self.mode = Mode::AskWorker(device, "w.".into()),
                None => self.message = "select a device first, with Tab and the arrows".into(),
            },
            KeyCode::Char('p') => match self.selected_worker() {
                Some(worker) => self.mode = Mode::AskCpus(WorkerId(worker.id), String::new()),
                None => self.message = "select a worker first, with Tab and the arrows".into(),
            },
            KeyCode::Char('l') => match self.selected_worker() {
                Some(worker) => {
                    let change = Change::Lock(WorkerId(worker.id), !worker.locked);
                    self.mode = Mode::Confirm(change);
                }
                None => self.message = "select a worker first, with Tab and the arrows".into(),
            },
            _ => {}
        }
        Wish::Nothing
    }

    /// Paints the picture.
    pub fn draw(&self, frame: &mut Frame) {
        let area = frame.area();
        // Half of the screen at most for workers, so that devices are seen.
        let workers = (self.now.workers.len() as u16 + 1).min(area.height.saturating_sub(3) / 2);
        let [title, upper, gap, lower, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(workers),
            Constraint::Length(1),
            Constraint::Min(2),
            Constraint::Length(1),
        ])
        .areas(area);
        self.draw_title(frame, title);
        self.draw_workers(frame, upper);
        frame.render_widget(Paragraph::new(""), gap);
        self.draw_devices(frame, lower);
        frame.render_widget(Paragraph::new(self.foot()), foot);
        self.draw_dialog(frame, area);
    }

    fn draw_title(&self, frame: &mut Frame, area: Rect) {
        let packets: f64 = self.rows().iter().map(|row| row.packets).sum();
        let mut title = format!(
            "iocm  {} workers  {} devices  {} packets/s  sort: {}",
            self.now.workers.len(),
            self.now.devices.len(),
            count(packets),
            self.sort.name()
        );
        if !self.filter.is_empty() {
            title.push_str(&format!("  filter: {}", self.filter));
        }
        let style = Style::new().add_modifier(Modifier::BOLD);
        frame.render_widget(Paragraph::new(title).style(style), area);
    }

    fn draw_workers(&self, frame: &mut Frame, area: Rect) {
        let header = format!(
            "{:<7}{:>4} {:<7}{:<w$} {:>5} {:<s$} {:>4} {:>9}",
            "WORKER",
            "CPU",
            "STATE",
            "UTILISATION",
            "",
            "HISTORY",
            "VQS",
            "AGE",
            w = BAR,
            s = usize::from(SPARKLINE)
        );
        let line = |row: u16| Rect {
            y: area.y + row,
            height: 1,
            ..area
        };
        if area.height == 0 {
            return;
        }
        let heading = Style::new().fg(Color::Cyan);
        frame.render_widget(Paragraph::new(header).style(heading), line(0));
        let room = usize::from(area.height) - 1;
        let first = match self.pane {
            Pane::Workers => (self.selected + 1).saturating_sub(room),
            Pane::Devices => 0,
        };
        for (index, worker) in self.now.workers.iter().enumerate().skip(first).take(room) {
            let row = line((index - first) as u16 + 1);
            let busy = self.busy(worker).min(1.0);
            let full = (busy * BAR as f64).round() as usize;
            let colour = match busy {
                ..0.6 => Color::Green,
                ..0.9 => Color::Yellow,
                _ => Color::Red,
            };
            let serves = self
                .now
                .virtqueues
                .iter()
                .filter(|virtqueue| virtqueue.worker == worker.id && !virtqueue.home)
                .count();
            let cpu = match worker.cpu {
                -1 => "any".to_owned(),
                cpu => cpu.to_string(),
            };
            let state = if worker.locked {
                "locked"
            } else {
                state(worker)
            };
            let style = self.style(Pane::Workers, index);
            let spans = vec![
                Span::styled(
                    format!("{:<7}{cpu:>4} {state:<7}", format!("w.{}", worker.id)),
                    style,
                ),
                Span::styled("█".repeat(full), Style::new().fg(colour)),
                Span::styled("░".repeat(BAR - full), Style::new().fg(Color::DarkGray)),
                Span::raw(format!(
                    " {:>4.0}% {:<s$} {serves:>4} {:>9}",
                    100.0 * busy,
                    "",
                    time(worker.pending_average),
                    s = usize::from(SPARKLINE)
                )),
            ];
            frame.render_widget(Paragraph::new(Line::from(spans)), row);
            let history = self.histories.get(&worker.id).cloned().unwrap_or_default();
            let skip = history.len().saturating_sub(usize::from(SPARKLINE));
            let history: Vec<u64> = history.into_iter().skip(skip).collect();
            let place = Rect {
                x: row.x + 7 + 4 + 1 + 7 + BAR as u16 + 7,
                width: SPARKLINE,
                ..row
            };
            let sparkline = Sparkline::default()
                .data(&history)
                .max(100)
                .style(Style::new().fg(colour));
            frame.render_widget(sparkline, place.intersection(area));
        }
    }

    fn style(&self, pane: Pane, index: usize) -> Style {
        if self.pane == pane && self.selected == index {
            Style::new().add_modifier(Modifier::REVERSED)
        } else {
            Style::new()
        }
    }

    fn draw_devices(&self, frame: &mut Frame, area: Rect) {
        let rows = self.rows();
        let room = usize::from(area.height).saturating_sub(1);
        let first = match self.pane {
            Pane::Devices => (self.selected + 1).saturating_sub(room.max(1)),
            Pane::Workers => 0,
        };
        let shown = rows.iter().enumerate().skip(first).map(|(index, row)| {
            Row::new([
                format!("d.{}", row.id),
                row.vm.clone(),
                row.interface.clone(),
                row.worker.clone(),
                count(row.packets),
                format!("{}B", count(row.bytes)),
                format!("{:.1}%", 100.0 * row.time),
                time(row.age),
                if row.polled { "polled" } else { "" }.to_owned(),
            ])
            .style(self.style(Pane::Devices, index))
        });
        let header = [
            "DEVICE", "VM", "TAP", "WORKER", "PKT/S", "BYTES/S", "CORE", "AGE", "",
        ];
        let widths = [
            Constraint::Length(6),
            Constraint::Min(12),
            Constraint::Length(9),
            Constraint::Length(9),
            Constraint::Length(7),
            Constraint::Length(8),
            Constraint::Length(6),
            Constraint::Length(8),
            Constraint::Length(6),
        ];
        let table = Table::new(shown, widths)
            .header(Row::new(header).style(Style::new().fg(Color::Cyan)))
            .column_spacing(1);
        frame.render_widget(table, area);
    }

    fn foot(&self) -> String {
        match &self.mode {
            Mode::Filter => format!("show devices with: {}_", self.filter),
            Mode::AskWorker(device, text) => format!("move {device} to worker: {text}_"),
            Mode::AskCpus(worker, text) => format!("CPUs for {worker}: {text}_"),
            _ if !self.message.is_empty() => self.message.clone(),
            _ => "Tab pane  arrows select  s sort  / filter  m move  p pin  l lock  ? help  q quit"
                .into(),
        }
    }

    fn draw_dialog(&self, frame: &mut Frame, area: Rect) {
        let text = match &self.mode {
            Mode::Confirm(change) => format!("{}\n\ny: yes    n: no", change.question()),
            Mode::Help => "\
Tab         workers or devices
Up, Down    select
s           sort devices: device, packets, bytes, time, age
/           show only devices that contain a text
m           move the selected device to a worker
p           let the selected worker run on other CPUs
l           lock or unlock the selected worker
q           quit

CORE is the part of a core that was used for the device, AGE for how
long its work had waited on average when it was served."
                .into(),
            _ => return,
        };
        let width = text.lines().map(str::len).max().unwrap_or(0) as u16 + 4;
        let height = text.lines().count() as u16 + 2;
        let place = Rect {
            x: area.width.saturating_sub(width) / 2,
            y: area.height.saturating_sub(height) / 2,
            width: width.min(area.width),
            height: height.min(area.height),
        };
        frame.render_widget(Clear, place);
        let block = Block::bordered().style(Style::new().fg(Color::White));
        let inner = block.inner(place);
        frame.render_widget(block, place);
        frame.render_widget(Paragraph::new(text), inner);
    }
}

/// Changes a line that is being typed.
fn edit(text: &mut String, key: KeyCode) {
    match key {
        KeyCode::Char(letter) => text.push(letter),
        KeyCode::Backspace => {
            text.pop();
        }
        _ => {}
    }
}

/// Watches until the user has seen enough.
///
/// # Errors
///
/// No module, no terminal, and whatever reading fails with.
pub fn run(root: &Root, interval: f64) -> Result<()> {
    let control = Control::open(root)?;
    let mut reader = Reader::open(root)?;
    let now = reader.read()?;
    let names = vm_names(root, &now);
    let mut top = Top::new(now, names);
    let mut terminal = ratatui::try_init().map_err(terminal_failure)?;
    let result = (|| {
        let interval = Duration::from_secs_f64(interval);
        let mut last = Instant::now();
        loop {
            terminal
                .draw(|frame| top.draw(frame))
                .map_err(terminal_failure)?;
            let left = interval.saturating_sub(last.elapsed());
            if event::poll(left).map_err(terminal_failure)? {
                let event = event::read().map_err(terminal_failure)?;
                if let Event::Key(key) = event {
                    if key.kind == KeyEventKind::Press {
                        match top.key(key.code) {
                            Wish::Nothing => {}
                            Wish::Quit => return Ok(()),
                            Wish::Do(change) => top.report(match change.apply(&control) {
                                Ok(()) => "done".into(),
                                Err(failure) => failure.to_string(),
                            }),
                        }
                    }
                }
            }
            if last.elapsed() >= interval {
                let now = reader.read()?;
                let names = vm_names(root, &now);
                top.update(now, last.elapsed(), names);
                last = Instant::now();
            }
        }
    })();
    ratatui::restore();
    result
}

fn terminal_failure(source: std::io::Error) -> Failure {
    Failure::System {
        what: "this terminal cannot be used, try `iocm status --watch 1`".into(),
        source,
    }
}
