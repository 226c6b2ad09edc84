//! What claims cost where nothing reports: a router that only predicts claims whole prompts, from their first block on.
//!
//! Ours keeps no map of blocks then, so that this is another instance of it. It forgets nothing block by block, and grows
//! by what the rounds store; the others remove it again.

use crate::cells::{Contest, Effort};
use crate::contest::{Contestant, Operation, load};
use crate::rows::{Plan, Series};
use crate::updates::{BATCH, apply, per, removal};
use crate::work::{Held, Work};

/// Rows of this part without the cell's name.
pub(crate) const ROWS: [&str; 2] = ["predict new prompt", "predict known prompt"];

/// Measures the rows of one cell.
pub(crate) fn run(
    plan: &Plan,
    contest: &Contest,
    work: &mut Work,
    all: &mut [Box<dyn Contestant>],
    effort: Effort,
) {
    let rows = ROWS.map(|row| format!("{row}, {}", work.cell.name()));
    if !rows.iter().any(|row| plan.wants(row)) {
        return;
    }
    let mut ours = (contest.enter)(work).swap_remove(0);
    load(ours.as_mut(), work);
    let others = all.iter_mut().skip(1).filter(|contestant| contestant.updates());
    let mut contestants: Vec<_> = std::iter::once(&mut ours).chain(others).collect();
    let mut table = rows.each_ref().map(|_| {
        let series = |each: &&mut Box<dyn Contestant>| Series { name: each.name(), rounds: Vec::new() };
        contestants.iter().map(series).collect::<Vec<_>>()
    });
    for number in 0..=effort.rounds {
        let fresh: Vec<_> = (0..BATCH).map(|_| work.fresh(0)).collect();
        let known = work.known_elsewhere(BATCH);
        for (at, contestant) in contestants.iter_mut().enumerate() {
            for (row, prompts) in table.iter_mut().zip([&fresh, &known]) {
                let figure = predicted(contestant.as_mut(), prompts);
                // The first round warms up.
                if number > 0 {
                    row[at].rounds.push(figure);
                }
            }
        }
    }
    for (row, series) in rows.iter().zip(&table) {
        plan.versus(row, "ns", series, None);
    }
}

/// Time per prompt.
fn predicted(contestant: &mut dyn Contestant, prompts: &[Held]) -> f64 {
    let claimed = apply(contestant, prompts.iter().map(Operation::whole));
    apply(contestant, prompts.iter().map(|held| removal(held, held.prompt.shared)));
    per(claimed.prompts)
}
