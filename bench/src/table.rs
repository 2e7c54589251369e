//! What came of it, for people and for programs.

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde_json::{Value, json};

use crate::{
    statistics::{Spread, ratios},
    work::Work,
    works::Run,
};

/// All runs of one contestant at one work, round by round; None where it failed.
pub struct Row {
    /// At what.
    pub work: Work,
    /// Who.
    pub contestant: &'static str,
    /// What came of each round.
    pub runs: Vec<Option<Run>>,
}

impl Row {
    fn figure(&self, index: usize) -> Vec<Option<f64>> {
        self.each(|run| run.figures.get(index).copied())
    }

    fn cpu(&self) -> Vec<Option<f64>> {
        self.each(|run| Some(run.used[0].cpu + run.used[1].cpu))
    }

    fn peak(&self, side: usize) -> Vec<Option<f64>> {
        self.each(|run| Some(run.used[side].peak))
    }

    fn each(&self, pick: impl Fn(&Run) -> Option<f64>) -> Vec<Option<f64>> {
        self.runs.iter().map(|run| run.as_ref().and_then(&pick)).collect()
    }
}

/// The table as Markdown. Of each work the first row is the one that the others are compared with; a ratio above 1
/// means that it is ahead, in processor time that it spends more.
pub fn text(rows: &[Row]) -> String {
    let mut table = Table::new();
    let first = rows.first().map_or("", |row| row.contestant);
    table.load_style(ASCII_MARKDOWN).set_header([
        "work".into(),
        "figure".into(),
        "who".into(),
        "median".into(),
        "least – most".into(),
        format!("{first} is × as good"),
        "least – most".into(),
        "CPU s, both".into(),
        format!("{first} ÷ it"),
        "peak MiB, sender + receiver".into(),
    ]);
    for work in Work::ALL {
        let of_work: Vec<&Row> = rows.iter().filter(|row| row.work == work).collect();
        for (index, figure) in work.figures().iter().enumerate() {
            for row in &of_work {
                let ours = of_work.first().filter(|first| first.contestant != row.contestant);
                let better = ours.map(|ours| good(&ours.figure(index), &row.figure(index), figure.more));
                let better = better.and_then(|ratios| Spread::of(&ratios));
                let cost = ours.and_then(|ours| Spread::of(&ratios(&ours.cpu(), &row.cpu())));
                let (median, range) = shown(spread(&row.figure(index)), number);
                let (better, better_range) = shown(better, ratio);
                let mut cells = vec![work.name().into(), figure.name.into(), row.contestant.into()];
                cells.extend([median, range, better, better_range]);
                // It belongs to the whole run: said once.
                if index == 0 {
                    let peak = [0, 1].map(|side| shown(spread(&row.peak(side)), number).0);
                    cells.extend([
                        shown(spread(&row.cpu()), number).0,
                        shown(cost, ratio).0,
                        peak.join(" + "),
                    ]);
                }
                table.add_row(cells);
            }
        }
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// The table as JSON, with every single run.
pub fn json(rows: &[Row]) -> Value {
    let rows = rows.iter().map(|row| {
        let ours = rows.iter().find(|first| first.work == row.work);
        let figures = row.work.figures().iter().enumerate().map(|(index, figure)| {
            let values = row.figure(index);
            let better = ours.map(|ours| good(&ours.figure(index), &values, figure.more));
            json!({
                "figure": figure.name,
                "more_is_better": figure.more,
                "runs": values,
                "median": spread(&values).map(|s| s.median),
                "ratio": better.and_then(|ratios| Spread::of(&ratios)).map(|s| json!({
                    "median": s.median, "least": s.least, "most": s.most,
                })),
            })
        });
        json!({
            "work": row.work.name(),
            "who": row.contestant,
            "figures": figures.collect::<Vec<_>>(),
            "cpu_seconds": row.cpu(),
            "cpu_ratio": ours.and_then(|ours| Spread::of(&ratios(&ours.cpu(), &row.cpu()))).map(|s| s.median),
            "peak_mib_sender": row.peak(0),
            "peak_mib_receiver": row.peak(1),
        })
    });
    Value::Array(rows.collect())
}

/// How many times as good ours is, round by round.
fn good(ours: &[Option<f64>], theirs: &[Option<f64>], more: bool) -> Vec<f64> {
    if more {
        ratios(ours, theirs)
    } else {
        ratios(theirs, ours)
    }
}

fn spread(values: &[Option<f64>]) -> Option<Spread> {
    Spread::of(&values.iter().flatten().copied().collect::<Vec<_>>())
}

/// Median, and range; a dash where there is nothing.
fn shown(spread: Option<Spread>, show: fn(f64) -> String) -> (String, String) {
    match spread {
        None => ("–".into(), "–".into()),
        Some(s) => (show(s.median), format!("{} – {}", show(s.least), show(s.most))),
    }
}

fn ratio(value: f64) -> String {
    format!("{value:.2}")
}

/// Four digits at most, unless more stand before the point.
fn number(value: f64) -> String {
    match value.abs() {
        1000.0.. => format!("{value:.0}"),
        100.0.. => format!("{value:.1}"),
        10.0.. => format!("{value:.2}"),
        1.0.. => format!("{value:.3}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Usage;

    fn row(work: Work, contestant: &'static str, runs: &[Option<f64>]) -> Row {
        let used = [Usage { cpu: 2.0, peak: 7.0 }, Usage { cpu: 1.0, peak: 30.0 }];
        let run = |figure: f64| Run {
            figures: vec![figure; work.figures().len()],
            used,
        };
        let runs = runs.iter().map(|r| r.map(run)).collect();
        Row {
            work,
            contestant,
            runs,
        }
    }

    #[test]
    fn numbers_have_four_digits_or_less() {
        let shown = [1234.5, 99.96, 12.34, 1.234, 0.1234, 0.0].map(number);
        assert_eq!(shown, ["1234", "99.96", "12.34", "1.234", "0.123", "0.000"]);
    }

    #[test]
    fn a_ratio_above_one_means_that_the_first_is_ahead() {
        let rows = [
            row(Work::Large, "ours", &[Some(400.0), Some(300.0), None]),
            row(Work::Large, "theirs", &[Some(200.0), Some(200.0), Some(100.0)]),
            row(Work::Latency, "ours", &[Some(5.0)]),
            row(Work::Latency, "theirs", &[Some(50.0)]),
        ];
        let text = text(&rows);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|l| l.split('|').map(str::trim).collect())
            .collect();
        let cells = |line: usize| &lines[line][1..11];
        assert_eq!(lines[0][6], "ours is × as good");
        let ours = ["large", "MB/s", "ours", "350.0", "300.0 – 400.0", "–", "–"];
        assert_eq!(cells(2)[..7], ours);
        let theirs = ["theirs", "200.0", "100.0 – 200.0", "1.75", "1.50 – 2.00"];
        assert_eq!(cells(3)[2..7], theirs);
        assert_eq!(cells(3)[7..], ["3.000", "1.00", "7.000 + 30.00"]);
        let slower = ["theirs", "50.00", "50.00 – 50.00", "10.00", "10.00 – 10.00"];
        assert_eq!(cells(5)[2..7], slower);
        assert_eq!(cells(7)[1], "p99, ms");
        assert_eq!(cells(7)[7..], ["", "", ""], "said once");
        let json = json(&rows);
        assert_eq!(json[1]["figures"][0]["ratio"]["median"], 1.75);
        assert_eq!(json[0]["figures"][0]["runs"][2], Value::Null);
        assert_eq!(json[3]["figures"][1]["median"], 50.0);
    }
}
