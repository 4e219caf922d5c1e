// SPDX-License-Identifier: GPL-2.0
//! Pictures of ratios: each with its interval, what stock by stock comes to, and the target.

use std::fs;
use std::path::Path;

use anyhow::{anyhow, Context, Result};
use clap::ValueEnum;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::record::{Kind, Record, Tier};
use crate::results::read;

/// What this project had aimed at, in parts of stock.
const TARGETS: [(&str, f64); 17] = [
    ("t1_tx64_insns_per_packet", 0.90),
    ("t1_rx64_insns_per_packet", 0.90),
    ("t1_tx1500_insns_per_packet", 0.95),
    ("t1_rx1500_insns_per_packet", 0.95),
    ("t1_tx64k_insns_per_byte", 0.95),
    ("t1_rx64k_insns_per_byte", 0.95),
    ("t1_idle63_cost", 1.02),
    ("t2_sawtooth_kicks_per_packet", 0.02),
    ("t3_cost_slope_64_active", 1.15),
    ("t4_small_vms_throughput", 1.5),
    ("t4_large_vm_throughput", 1.3),
    ("t4_exits_per_packet", 0.1),
    ("t4_dynamic_vs_best_static", 0.95),
    ("t5_tx64_time_per_packet", 0.90),
    ("t5_rx64_time_per_packet", 0.90),
    ("t5_tx64k_time_per_byte", 0.95),
    ("t5_rx64k_time_per_byte", 0.95),
];

/// Pixels: of a row, of what is around the rows (left, above, right, below), and of the rows' width.
const ROW: i32 = 24;
const AROUND: [i32; 4] = [290, 44, 24, 44];
const WIDTH: i32 = 560;

const BETTER: RGBColor = RGBColor(20, 130, 60);
const WORSE: RGBColor = RGBColor(190, 40, 30);
const NEITHER: RGBColor = RGBColor(90, 90, 90);
const SAME: RGBColor = RGBColor(222, 222, 222);
const TARGET: RGBColor = RGBColor(30, 80, 190);

/// Draws the ratios among the records in the file `results`: those of each tier into a file of its own in
/// `directory`.
///
/// # Errors
///
/// No results, and files that cannot be written.
pub fn draw(results: &Path, directory: &Path) -> Result<()> {
    let records = read(results)?;
    for tier in Tier::value_variants() {
        let is_wanted = |record: &&Record| record.tier == *tier && record.kind == Kind::Ratio;
        let ratios: Vec<&Record> = records.iter().filter(is_wanted).collect();
        if ratios.is_empty() {
            continue;
        }
        let path = directory.join(format!("{}.svg", tier.name()));
        fs::write(&path, picture(&ratios)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn picture(ratios: &[&Record]) -> Result<String> {
    let [left, above, right, below] = AROUND;
    let height = above + ROW * ratios.len() as i32 + below;
    let mut text = String::new();
    {
        let size = ((left + WIDTH + right) as u32, height as u32);
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        rows(&area, ratios)?;
        area.present().map_err(failed)?;
    }
    let words = "<!-- SPDX-License-Identifier: GPL-2.0 -->\n<svg";
    Ok(text.replacen("<svg", words, 1))
}

fn rows(area: &Area<'_>, ratios: &[&Record]) -> Result<()> {
    let [left, above, right, below] = AROUND;
    let bounds = range(ratios);
    let height = ratios.len() as f64;
    let mut chart = ChartBuilder::on(area)
        .margin_left(left)
        .margin_top(above)
        .margin_right(right)
        .margin_bottom(below)
        .build_cartesian_2d(bounds[0].ln()..bounds[1].ln(), 0.0..height)
        .map_err(failed)?;
    for tick in ticks(bounds) {
        let colour = if tick == 1.0 { BLACK } else { SAME };
        let line = vec![(tick.ln(), 0.0), (tick.ln(), height)];
        chart
            .draw_series(LineSeries::new(line, colour.stroke_width(1)))
            .map_err(failed)?;
        let part = (tick / bounds[0]).ln() / (bounds[1] / bounds[0]).ln();
        let x = left + (f64::from(WIDTH) * part).round() as i32;
        let y = above + ROW * ratios.len() as i32 + 12;
        area.draw(&Text::new(tick.to_string(), (x, y), style(HPos::Center)))
            .map_err(failed)?;
    }
    let middle = (left + WIDTH / 2, above + ROW * ratios.len() as i32 + 32);
    let words = "vhost_iocm / vhost_net";
    area.draw(&Text::new(words, middle, style(HPos::Center)))
        .map_err(failed)?;
    for (index, record) in ratios.iter().enumerate() {
        let middle = height - index as f64 - 0.5;
        let inside = |value: f64| value.clamp(bounds[0], bounds[1]).ln();
        if let Some([least, greatest]) = record.same_interval {
            let band = [
                (inside(least), middle - 0.3),
                (inside(greatest), middle + 0.3),
            ];
            chart
                .draw_series([Rectangle::new(band, SAME.filled())])
                .map_err(failed)?;
        }
        let [least, greatest] = record.interval;
        let colour = verdict(record);
        let whisker = vec![(inside(least), middle), (inside(greatest), middle)];
        chart
            .draw_series(LineSeries::new(whisker, colour.stroke_width(2)))
            .map_err(failed)?;
        chart
            .draw_series([Circle::new(
                (inside(record.median), middle),
                4,
                colour.filled(),
            )])
            .map_err(failed)?;
        if let Some(target) = target(record) {
            let mark = vec![
                (inside(target), middle - 0.4),
                (inside(target), middle + 0.4),
            ];
            chart
                .draw_series(LineSeries::new(mark, TARGET.stroke_width(2)))
                .map_err(failed)?;
        }
        let at = (left - 8, above + ROW * index as i32 + ROW / 2);
        area.draw(&Text::new(record.metric.clone(), at, style(HPos::Right)))
            .map_err(failed)?;
    }
    legend(area)
}

/// How words are written.
fn style(position: HPos) -> TextStyle<'static> {
    let font = ("sans-serif", 13).into_font().color(&BLACK);
    font.pos(Pos::new(position, VPos::Center))
}

/// The numbers on the scale.
fn ticks(bounds: [f64; 2]) -> impl Iterator<Item = f64> {
    const WIDE: [f64; 15] = [
        0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0,
    ];
    const NARROW: [f64; 11] = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.5, 2.0];
    let is_wide = bounds[1] / bounds[0] > 4.0;
    let all = if is_wide { &WIDE[..] } else { &NARROW };
    let inside = move |tick: &f64| (bounds[0]..=bounds[1]).contains(tick);
    all.iter().copied().filter(inside)
}

/// What the marks are, in a line above.
fn legend(area: &Area<'_>) -> Result<()> {
    let mut x = 12;
    for (colour, words) in [
        (BETTER, "better"),
        (WORSE, "worse"),
        (NEITHER, "neither is certain"),
        (SAME, "vhost_net by itself"),
        (TARGET, "target"),
    ] {
        area.draw(&Rectangle::new([(x, 14), (x + 12, 26)], colour.filled()))
            .map_err(failed)?;
        area.draw(&Text::new(words, (x + 18, 20), style(HPos::Left)))
            .map_err(failed)?;
        x += 44 + 8 * words.len() as i32;
    }
    Ok(())
}

/// From where to where everything lies, with 1 in it.
fn range(ratios: &[&Record]) -> [f64; 2] {
    let mut bounds = [0.8, 1.25f64];
    for record in ratios {
        for value in record.interval.into_iter().chain(target(record)) {
            // What is nothing has no place on such a scale.
            if value > 0.0 {
                bounds = [bounds[0].min(value / 1.1), bounds[1].max(value * 1.1)];
            }
        }
    }
    [bounds[0].max(1e-4), bounds[1].min(1e4)]
}

fn target(record: &Record) -> Option<f64> {
    let found = TARGETS.iter().find(|(metric, _)| record.metric == *metric);
    found.map(|(_, target)| *target)
}

/// Whether more is better: of guests everything but what each packet takes is a rate.
fn is_rate(record: &Record) -> bool {
    record.tier == Tier::T4
        && !record.metric.ends_with("_per_packet")
        && !record.metric.ends_with("_share")
}

/// The colour of a ratio: that of neither if its interval has 1 in it.
fn verdict(record: &Record) -> RGBColor {
    let [least, greatest] = record.interval;
    if (least..=greatest).contains(&1.0) {
        NEITHER
    } else if (least > 1.0) == is_rate(record) {
        BETTER
    } else {
        WORSE
    }
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("a picture cannot be drawn: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratio(tier: Tier, metric: &str, interval: [f64; 2]) -> Record {
        Record {
            metric: metric.to_owned(),
            tier,
            kind: Kind::Ratio,
            n: 3,
            median: interval[0].midpoint(interval[1]),
            interval,
            same_interval: Some([0.9, 1.1]),
        }
    }

    #[test]
    fn fewer_instructions_and_more_messages_are_better() {
        let colour = |tier, metric, interval| verdict(&ratio(tier, metric, interval));
        assert_eq!(
            colour(Tier::T1, "t1_tx64_insns_per_packet", [0.7, 0.8]),
            BETTER
        );
        assert_eq!(
            colour(Tier::T5, "t5_rx64k_time_per_byte", [1.1, 1.2]),
            WORSE
        );
        assert_eq!(colour(Tier::T4, "t4_mqtt", [1.1, 1.2]), BETTER);
        assert_eq!(colour(Tier::T4, "t4_exits_per_packet", [0.1, 0.2]), BETTER);
        assert_eq!(colour(Tier::T4, "t4_web", [0.9, 1.2]), NEITHER);
    }

    #[test]
    fn each_ratio_has_a_row() {
        let records = [
            ratio(Tier::T4, "t4_mqtt", [1.1, 30.0]),
            ratio(Tier::T4, "t4_exits_per_packet", [0.0, 0.2]),
        ];
        let text = picture(&records.each_ref()).expect("a picture");
        for record in &records {
            assert!(text.contains(&record.metric));
        }
        assert_eq!(text.matches("<circle").count(), records.len());
    }
}
