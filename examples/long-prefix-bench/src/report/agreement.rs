//! Whether the lab and a run over HTTP say the same of the same cells.

use std::fmt::Write as _;

use super::columns::{self, Table};
use super::compare::{CompareError, pairs};
use super::end_to_end::how;
use crate::metrics::Metrics;
use crate::recording::{Choices, Replay};
use crate::result::{Cell, Report, Run};
use crate::stats::mean;

/// Hit rates may differ by this share,
const MOST_HITS_APART: f64 = 0.10;

/// and times to first token, in the median, by this one.
const MOST_TTFT_APART: f64 = 0.15;

/// Columns that both tables begin with.
const FIGURES: [(&str, usize); 6] =
    [("hits %, lab", 12), ("HTTP", 7), ("apart", 8), ("TTFT p50 s, lab", 16), ("HTTP", 7), ("apart", 8)];

const CHOICES: (&str, usize) = ("choices", 9);

/// How much of a run the lab has repeated.
const REPEATED: [(&str, usize); 4] =
    [("elsewhere", 11), ("held", 5), ("same hits %", 11), ("later ms p50, p90", 18)];

const VERDICT: (&str, usize) = ("bounds", 8);

const HEADING: &str = "HTTP beside the lab on the same arrivals";

/// Figures of the lab and of a run over HTTP, in the mean over the seeds that both have.
struct Apart {
    hits: Beside,
    ttft: Beside,
}

/// A run over HTTP that the lab has repeated, seed by seed.
struct Repeated<'a> {
    run: &'a Run,
    choices: Choices,
    apart: Apart,
    replays: Vec<&'a Replay>,
}

struct Beside {
    lab: f64,
    http: f64,
}

/// A table of every contestant over HTTP that the lab has repeated on the arrivals of the run, with how far apart hit rate and median time
/// to first token are, and how many are within the bounds. Empty of a result of the lab. Runs that are void or ended early are left out.
pub fn replays(report: &Report) -> String {
    let rows = report.cells.iter().flat_map(repeated);
    with_tally(columns::texts(HEADING, &tables(report)), rows.map(|of| of.apart))
}

/// A table of every contestant that both results have, each at the times that were drawn and in its own order, with the same differences: what
/// moves when requests change places is in it too. Runs that are void or ended early are left out.
///
/// # Errors
/// The results are not of the same traffic, engines and capacities.
pub fn nominal(lab: &Report, http: &Report) -> Result<String, CompareError> {
    let (mut all, mut tables) = (Vec::new(), Vec::new());
    for (one, other) in pairs(lab, http)? {
        let mut table = Table::new(&one.id, FIGURES.into_iter().chain([VERDICT]));
        for entry in http.contestants.iter().filter(|entry| !entry.is_reference) {
            let runs = one.run(&entry.name).zip(other.run(&entry.name).filter(|run| run.is_sound()));
            let Some((lab, http)) = runs else { continue };
            let apart = Apart::of(lab.seeds.iter().zip(&http.seeds));
            table.row(&entry.name, [apart.figures(), vec![apart.verdict()]].concat());
            all.push(apart);
        }
        tables.push(table);
    }
    let heading =
        format!("At the times that were drawn, each in its own order: {}, beside {}", how(lab), how(http));
    Ok(with_tally(columns::texts(&heading, &tables), all.into_iter()))
}

/// For the page.
pub(super) fn section(body: &mut String, report: &Report) {
    let about = format!(
        "The lab is given the requests of each run over HTTP at the times at which they were sent. By their own choices: its router decides where \
         they go. As recorded: they go where they went, and its rule is asked all the same. Elsewhere: requests that this would have sent \
         elsewhere. Held: turns whose answer before was later here than there, and that waited for it. Same hits: requests of which both \
         found the same cached tokens. Later: by how much first tokens came later over HTTP. Hit rates should be within {:.0} %, median \
         TTFT within {:.0} %.",
        100.0 * MOST_HITS_APART,
        100.0 * MOST_TTFT_APART
    );
    columns::section(body, HEADING, &about, &tables(report));
}

fn tables(report: &Report) -> Vec<Table> {
    let table = |cell: &Cell| {
        let columns = [CHOICES].into_iter().chain(FIGURES).chain(REPEATED).chain([VERDICT]);
        let mut table = Table::new(&cell.id, columns);
        for of in repeated(cell) {
            let figures = [vec![of.choices()], of.apart.figures(), of.detail(), vec![of.apart.verdict()]];
            table.row(&of.run.contestant, figures.concat());
        }
        table
    };
    report.cells.iter().map(table).collect()
}

/// Everybody in a cell whose run is sound, by each of the choices that the lab has repeated it with.
fn repeated(cell: &Cell) -> impl Iterator<Item = Repeated<'_>> {
    let sound = cell.runs.iter().filter(|run| run.is_sound());
    sound.flat_map(|run| [Choices::Own, Choices::Recorded].map(|choices| (run, choices))).filter_map(
        |(run, choices)| {
            let of = |seed: u64| {
                let recording = run.recordings.iter().find(|of| of.seed == seed)?;
                recording.replays.iter().find(|of| of.choices == choices)
            };
            let seeds = cell.seeds.iter().zip(&run.seeds);
            let both: Vec<_> = seeds.filter_map(|(seed, http)| Some((of(seed.seed)?, http))).collect();
            let apart = || Apart::of(both.iter().map(|(replay, http)| (&replay.metrics, *http)));
            let replays = || both.iter().map(|(replay, _)| *replay).collect();
            (!both.is_empty()).then(|| Repeated { run, choices, apart: apart(), replays: replays() })
        },
    )
}

impl Repeated<'_> {
    fn choices(&self) -> String {
        match self.choices {
            Choices::Own => "own".to_owned(),
            Choices::Recorded => "recorded".to_owned(),
        }
    }

    /// How much of the run the lab has repeated.
    fn detail(&self) -> Vec<String> {
        let sum = |of: fn(&Replay) -> usize| self.replays.iter().map(|replay| of(replay)).sum::<usize>();
        let later =
            |of: fn(&Replay) -> f64| 1e3 * mean(&self.replays.iter().map(|one| of(one)).collect::<Vec<_>>());
        let elsewhere: Option<usize> = self.replays.iter().map(|replay| replay.elsewhere).sum();
        vec![
            elsewhere.map_or_else(|| "–".to_owned(), |count| format!("{count} of {}", sum(|of| of.known))),
            sum(|of| of.held).to_string(),
            format!("{:.1}", 100.0 * sum(|of| of.alike) as f64 / sum(|of| of.requests).max(1) as f64),
            format!("{:.1}, {:.1}", later(|of| of.later_s.p50), later(|of| of.later_s.p90)),
        ]
    }
}

/// Tables, if there are any, and how many of their rows are within the bounds.
fn with_tally(mut text: String, rows: impl Iterator<Item = Apart>) -> String {
    if text.is_empty() {
        return text;
    }
    let (mut compared, mut within) = (0, 0);
    for apart in rows {
        compared += 1;
        within += usize::from(apart.is_within());
    }
    text.truncate(text.trim_end().len());
    let _ = writeln!(
        text,
        "\n{within} of {compared} within {:.0} % of the lab's hit rate and {:.0} % of its median TTFT\n",
        100.0 * MOST_HITS_APART,
        100.0 * MOST_TTFT_APART
    );
    text
}

impl Apart {
    /// Of pairs of both, one for each seed.
    fn of<'a>(seeds: impl Iterator<Item = (&'a Metrics, &'a Metrics)> + Clone) -> Self {
        let beside = |figure: fn(&Metrics) -> f64| {
            let (lab, http): (Vec<_>, Vec<_>) = seeds.clone().map(|(a, b)| (figure(a), figure(b))).unzip();
            Beside { lab: mean(&lab), http: mean(&http) }
        };
        Self { hits: beside(|of| of.hit_rate), ttft: beside(|of| of.ttft_s.p50) }
    }

    fn is_within(&self) -> bool {
        self.hits.apart().abs() <= MOST_HITS_APART && self.ttft.apart().abs() <= MOST_TTFT_APART
    }

    fn verdict(&self) -> String {
        if self.is_within() { "within" } else { "APART" }.to_owned()
    }

    fn figures(&self) -> Vec<String> {
        let Self { hits, ttft } = self;
        vec![
            format!("{:.1}", 100.0 * hits.lab),
            format!("{:.1}", 100.0 * hits.http),
            format!("{:+.1} %", 100.0 * hits.apart()),
            format!("{:.3}", ttft.lab),
            format!("{:.3}", ttft.http),
            format!("{:+.1} %", 100.0 * ttft.apart()),
        ]
    }
}

impl Beside {
    /// Relative to the lab; nothing from nothing is no difference.
    fn apart(&self) -> f64 {
        if self.lab == self.http { 0.0 } else { self.http / self.lab - 1.0 }
    }
}
