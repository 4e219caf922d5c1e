// SPDX-License-Identifier: GPL-2.0

//! The report: one HTML file with its plots inside.

use super::cli::Report;
use super::experiment::{Comparison, Results, Row};
use super::measure::{Outcome, WINDOW};
use anyhow::{anyhow, Result};
use plotters::prelude::*;
use std::fmt::Write;

const SIZE: (u32, u32) = (620, 300);
/// The colours of lines and points, with what they stand for.
const DEFAULT: RGBColor = RGBColor(204, 0, 0);
const ORIGINAL: RGBColor = RGBColor(0, 70, 204);
const STOCK: RGBColor = RGBColor(0, 128, 0);
const FIXED: RGBColor = RGBColor(110, 110, 110);
const OPTIMUM: RGBColor = BLACK;

/// The report.
///
/// # Errors
///
/// A plot cannot be drawn.
pub fn html(all: &Report) -> Result<String> {
    let mut page = String::from(
        "<!DOCTYPE html>\n<!-- SPDX-License-Identifier: GPL-2.0 -->\n<html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>Policies for I/O cores, simulated</title>\n<style>\
         body{font:15px/1.4 sans-serif;max-width:1280px;margin:1em auto;padding:0 1em}\
         table{border-collapse:collapse;font-size:14px}\
         td,th{padding:2px 10px;text-align:right;border-bottom:1px solid #ddd}\
         td:first-child,th:first-child{text-align:left}\
         .key b{font-weight:normal;border-bottom:3px solid;margin-right:1em}\
         .plots{display:flex;flex-wrap:wrap;gap:8px}svg{max-width:100%;height:auto}</style>\n\
         <h1>Policies for I/O cores, simulated</h1>\n\
         <p>The cost of a window of 100 ms is the number of cores that I/O used, and one more for each \
         100 % by which the 99th percentile of the time that requests took was beyond its target, up \
         to four. The optimum knows what comes. The load is the same for all policies; each seed has \
         its own costs of packets, wake-ups, notifications and hand-overs.</p>\n",
    );
    for (results, comparisons) in all {
        section(&mut page, results, comparisons)?;
    }
    page.push_str("</html>\n");
    Ok(page)
}

fn section(page: &mut String, results: &Results, comparisons: &[Comparison]) -> Result<()> {
    let scenario = &results.scenario;
    write!(
        page,
        "<h2>{}</h2>\n<p>{}. {} seeds; the optimum costs {:.3} cores.</p>\n<div class=\"plots\">",
        scenario.name, scenario.description, results.seeds, results.optimum.mean
    )?;
    page.push_str(&drawn(|area| frontier(area, results))?);
    if let Some(first) = comparisons.first() {
        page.push_str(&drawn(|area| time_line(area, first))?);
    }
    page.push_str("</div>\n<p class=\"key\">");
    for (name, RGBColor(red, green, blue)) in [
        ("default policy", DEFAULT),
        ("original policy", ORIGINAL),
        ("stock threads", STOCK),
        ("optimum", OPTIMUM),
        ("fixed numbers of cores", FIXED),
    ] {
        write!(
            page,
            "<b style=\"border-color:rgb({red},{green},{blue})\">{name}</b>"
        )?;
    }
    page.push_str(
        "Left: means over the seeds. Right: the first seed.</p>\n<table><tr><th>policy</th><th>cost</th><th>of the optimum</th><th>worst seed</th>\
         <th>cores</th><th>p99 of target</th><th>windows late</th><th>changes</th></tr>\n",
    );
    for row in results.rows.iter().filter(|row| row.runs > 0) {
        writeln!(
            page,
            "<tr><td>{}</td><td>{:.3}</td><td>{:.2} ± {:.2}</td><td>{:.2}</td><td>{:.3}</td>\
             <td>{:.2}</td><td>{:.1} %</td><td>{:.1}</td></tr>",
            row.name,
            row.cost.mean,
            row.ratio.mean,
            row.ratio.half_width,
            row.ratio_max,
            row.cores.mean,
            row.p99.mean,
            row.late * 100.0,
            row.changes
        )?;
    }
    page.push_str("</table>\n");
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn drawn(draw: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        draw(&area)?;
        area.present().map_err(failed)?;
    }
    Ok(text)
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("a plot cannot be drawn: {error}")
}

/// Cores against the p99 of each policy.
fn frontier(area: &Area<'_>, results: &Results) -> Result<()> {
    let rows: Vec<&Row> = results.rows.iter().filter(|row| row.runs > 0).collect();
    let most = |value: &dyn Fn(&Row) -> f64| rows.iter().map(|row| value(row)).fold(0.1, f64::max);
    let width = most(&|row| row.cores.mean) * 1.15;
    let height = most(&|row| row.p99.mean) * 1.15;
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .x_label_area_size(36)
        .y_label_area_size(46)
        .build_cartesian_2d(0.0..width, 0.0..height)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc("core-seconds in a second")
        .y_desc("p99, in parts of its target")
        .label_style(("sans-serif", 13))
        .max_light_lines(1)
        .draw()
        .map_err(failed)?;
    for row in rows {
        let at = (row.cores.mean, row.p99.mean);
        let (colour, label) = match row.name.as_str() {
            "default policy" => (DEFAULT, ""),
            "original policy" => (ORIGINAL, ""),
            "stock threads" => (STOCK, ""),
            fixed => (FIXED, fixed.trim_start_matches("static ")),
        };
        chart
            .draw_series([Circle::new(at, 5, colour.filled())])
            .map_err(failed)?;
        let style = ("sans-serif", 13).into_font().color(&colour);
        let text = EmptyElement::at(at) + Text::new(label.to_owned(), (8, -12), style);
        chart.draw_series([text]).map_err(failed)?;
    }
    Ok(())
}

/// Cores over time, of the first seed.
fn time_line(area: &Area<'_>, comparison: &Comparison) -> Result<()> {
    let window = WINDOW as f64 / 1e9;
    let line = |outcome: &Outcome| -> Vec<(f64, f64)> {
        outcome
            .windows
            .iter()
            .enumerate()
            .map(|(index, one)| ((index as f64 + 1.0) * window, one.cores))
            .collect()
    };
    let optimum: Vec<(f64, f64)> = comparison
        .optimum
        .cores
        .iter()
        .enumerate()
        .map(|(index, cores)| {
            let used = comparison.fixed[*cores].windows[index].cores;
            ((index as f64 + 1.0) * window, used)
        })
        .collect();
    let lines = [
        (STOCK, line(&comparison.fixed[0])),
        (ORIGINAL, line(&comparison.original)),
        (OPTIMUM, optimum),
        (DEFAULT, line(&comparison.standard)),
    ];
    let end = comparison.optimum.cores.len() as f64 * window;
    let height = lines
        .iter()
        .flat_map(|(_, line)| line)
        .map(|(_, cores)| *cores)
        .fold(1.0, f64::max)
        * 1.05;
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .x_label_area_size(36)
        .y_label_area_size(46)
        .build_cartesian_2d(0.0..end, 0.0..height)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc("seconds")
        .y_desc("cores that I/O used")
        .label_style(("sans-serif", 13))
        .max_light_lines(1)
        .draw()
        .map_err(failed)?;
    for (colour, line) in lines {
        chart
            .draw_series(LineSeries::new(line, colour.stroke_width(2)))
            .map_err(failed)?;
    }
    Ok(())
}
