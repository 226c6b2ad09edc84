//! The benchmark from its grid to its documents, with the smallest suite.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use long_prefix_bench::grid::{Capacity, Plan, Suite, Workload};
use long_prefix_bench::lab::Fault;
use long_prefix_bench::recording::{Choices, Recording, Replay};
use long_prefix_bench::report::{
    CompareError, TRACKS, capacities, cells, compare, faults, gains, ladders, nominal, others, page,
    published, regrets, replays, standings, targets,
};
use long_prefix_bench::result::{Cell, Report, ResultError};
use long_prefix_bench::rows::rows;
use long_prefix_bench::runner::Job;
use long_prefix_bench::workload::Pattern;
use router_core::policy::CacheAwareSettings;

fn run(threads: usize, most_cells: usize) -> Report {
    let mut plans = Suite::Smoke.cells(None);
    plans.truncate(most_cells);
    let job = Job {
        suite: "smoke",
        cells: &plans,
        traces: None,
        seeds: 2,
        threads,
        cache_aware: CacheAwareSettings::default(),
    };
    let done = AtomicUsize::new(0);
    let count = || {
        done.fetch_add(1, Ordering::Relaxed);
    };
    let report = job.run(&count).expect("generated cells run");
    assert_eq!(done.into_inner(), job.runs(), "progress comes to an end");
    report
}

/// Run once for all tests.
fn smoke() -> &'static Report {
    static SMOKE: OnceLock<Report> = OnceLock::new();
    SMOKE.get_or_init(|| run(2, usize::MAX))
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let of = |threads| serde_json::to_string(&run(threads, 2)).unwrap();
    assert!(of(1) == of(3), "the documents differ");
}

#[test]
fn cells_that_come_to_the_same_count_once() {
    let mut plans = Suite::Smoke.cells(None);
    plans.truncate(1);
    // Both ask for less than an engine's least size.
    plans.push(Plan { capacity: Capacity::Kappa(0.01), ..plans[0] });
    let job = Job {
        suite: "smoke",
        cells: &plans,
        traces: None,
        seeds: 1,
        threads: 1,
        cache_aware: CacheAwareSettings::default(),
    };
    let report = job.run(&|| ()).unwrap();
    assert_eq!(report.cells.len(), 1);
    assert_eq!(report.cells[0].id, plans[0].id());
}

#[test]
fn a_result_comes_back_as_it_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deep/result.json");
    smoke().write(&path).unwrap();
    assert!(&Report::read(&path).unwrap() == smoke(), "every figure comes back");

    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("long-prefix-bench/2", "long-prefix-bench/0")).unwrap();
    assert!(matches!(Report::read(&path), Err(ResultError::Schema { found, .. }) if found.ends_with("/0")));
    let mut short = smoke().clone();
    short.cells[1].runs[2].seeds.pop();
    short.write(&path).unwrap();
    let refused = Report::read(&path).unwrap_err().to_string();
    assert!(refused.contains(&short.cells[1].id) && refused.contains("threshold"), "{refused}");
    std::fs::write(&path, "[]").unwrap();
    assert!(matches!(Report::read(&path), Err(ResultError::Json { .. })));
    let missing = Report::read(&directory.path().join("missing.json")).unwrap_err();
    assert!(missing.to_string().contains("missing.json"), "{missing}");
}

#[test]
fn references_bound_what_routers_do() {
    for cell in &smoke().cells {
        for seed in &cell.seeds {
            assert!(
                seed.lru_hit_rate <= seed.belady_hit_rate && seed.belady_hit_rate <= seed.infinite_hit_rate
            );
        }
        let of = |name: &str| cell.run(name).unwrap();
        let hits = |name: &str| of(name).mean(|metrics| metrics.hit_rate);
        let infinite = hits("infinite cache");
        for run in &cell.runs {
            // Requests that come together find nothing of each other, so that order within a moment moves a little.
            assert!(hits(&run.contestant) <= infinite + 0.03, "{}, {}", cell.id, run.contestant);
        }
        assert!(hits("pooled cache") + 0.03 >= hits("round_robin"), "{}", cell.id);
        assert_eq!(cell.efficiency("round_robin").unwrap_or(0.0), 0.0);
    }
}

#[test]
fn somebody_is_best_in_every_cell() {
    for (track, of) in TRACKS {
        let all = regrets(smoke(), of);
        for row in &all {
            assert!(row.mean >= 1.0 && row.worst >= row.mean, "{track}: {row:?}");
            assert!(row.within_tenth <= row.within_twice);
        }
        let blind = all.iter().find(|row| row.contestant == "round_robin");
        if let Some(ratio) = blind.and_then(|row| row.beside_round_robin) {
            assert_eq!((ratio.ratio, ratio.low, ratio.high), (1.0, 1.0, 1.0));
        }
    }
    let text = format!("{}{}", cells(smoke()), standings(smoke()));
    for entry in &smoke().contestants {
        assert!(text.contains(&entry.name));
    }
    assert_eq!(rows(smoke()).unwrap().len(), 2, "two rows of the generated track");
}

#[test]
fn a_result_is_equal_to_itself_and_others_are_refused() {
    let same = compare(smoke(), smoke()).unwrap();
    assert!(same.contains("1.000 (1.000 to 1.000) "));
    assert!(!same.contains(")*"), "nothing differs");

    let changed = |change: fn(&mut Report)| {
        let mut other = smoke().clone();
        change(&mut other);
        compare(smoke(), &other)
    };
    let mut turned = smoke().clone();
    turned.cells[0].seeds.reverse();
    turned.cells[0].runs.iter_mut().for_each(|run| run.seeds.reverse());
    assert_eq!(compare(smoke(), &turned).unwrap(), same, "seeds are known by their numbers");
    let slower = changed(|other| {
        other.cells[0].runs[0].seeds.iter_mut().for_each(|metrics| metrics.ttft_s.mean *= 2.0);
    });
    assert!(slower.unwrap().contains("2.000 (2.000 to 2.000)*"));
    assert_eq!(changed(|other| other.engine.chunk_tokens = 2_048), Err(CompareError::Engine));
    let traffic = changed(|other| other.cells[1].seeds[0].hash = "0".to_owned());
    assert!(matches!(traffic, Err(CompareError::Traffic { seed: 1, .. })));
    let capacity = changed(|other| other.cells[0].seeds[1].capacity_tokens += 64);
    assert!(matches!(capacity, Err(CompareError::Capacity { .. })));
    assert_eq!(changed(|other| other.cells.clear()), Err(CompareError::NothingInCommon));
}

#[test]
fn agreement_has_bounds() {
    let routers = smoke().contestants.iter().filter(|entry| !entry.is_reference).count();
    let of = routers * smoke().cells.len();
    let beside = |change: fn(&mut Report)| {
        let mut other = smoke().clone();
        change(&mut other);
        nominal(smoke(), &other).unwrap()
    };
    assert!(beside(|_| ()).contains(&format!("{of} of {of} within 10 %")));
    let hits = beside(|other| other.cells[0].runs[0].seeds.iter_mut().for_each(|of| of.hit_rate *= 0.89));
    assert!(hits.contains(&format!("{} of {of} within", of - 1)) && hits.contains("-11.0 %"), "{hits}");
    let ttft = beside(|other| other.cells[1].runs[1].seeds.iter_mut().for_each(|of| of.ttft_s.p50 *= 1.16));
    assert!(ttft.contains(&format!("{} of {of} within", of - 1)) && ttft.contains("APART"), "{ttft}");
    let within = beside(|other| other.cells[1].runs[1].seeds.iter_mut().for_each(|of| of.ttft_s.p50 *= 1.14));
    assert!(within.contains(&format!("{of} of {of} within")));
}

/// The smoke suite as if it had been run over HTTP, and repeated with the same figures.
fn repeated() -> Report {
    let mut report = smoke().clone();
    for cell in &mut report.cells {
        for run in cell.runs.iter_mut().filter(|run| run.contestant != "random") {
            let replay = |metrics: &_| Replay {
                choices: Choices::Recorded,
                requests: 50,
                known: 40,
                elsewhere: Some(3),
                held: 0,
                alike: 45,
                later_s: Default::default(),
                metrics: Clone::clone(metrics),
            };
            let recording =
                |(seed, metrics)| Recording { seed, arrivals: Vec::new(), replays: vec![replay(metrics)] };
            run.recordings = (1..).zip(&run.seeds).map(recording).collect();
        }
    }
    report.contestants.iter_mut().for_each(|entry| entry.is_reference = false);
    report
}

#[test]
fn what_the_lab_has_repeated_is_judged() {
    assert_eq!(replays(smoke()), "", "nothing was recorded");
    let beside = |change: fn(&mut Report)| {
        let mut report = repeated();
        change(&mut report);
        (replays(&report), page(&report))
    };
    let rows = (smoke().contestants.len() - 1) * smoke().cells.len();
    let (same, page) = beside(|_| ());
    assert!(same.ends_with(&format!(
        "{rows} of {rows} within 10 % of the lab's hit rate and 15 % of its median TTFT\n\n"
    )));
    assert!(same.contains("6 of 80") && same.contains("90.0") && !same.contains("APART"), "{same}");
    assert!(page.contains("HTTP beside the lab on the same arrivals") && page.contains("<td>6 of 80</td>"));
    is_one_file(&page);
    let (slow, page) = beside(|report| {
        let of = report.cells[0].runs[0].recordings.iter_mut().flat_map(|of| &mut of.replays);
        of.for_each(|replay| replay.metrics.ttft_s.p50 /= 1.2);
    });
    assert!(slow.contains(&format!("{} of {rows} within", rows - 1)) && slow.contains("+20.0 %"), "{slow}");
    assert!(slow.contains("APART") && page.contains("<td>APART</td>"));
}

#[test]
fn the_page_is_one_file() {
    let page = page(smoke());
    is_one_file(&page);
    for cell in &smoke().cells {
        assert!(page.contains(&cell.id));
    }
}

#[test]
fn published_set_ups_stand_beside_ours() {
    assert_eq!(published(smoke()), "", "none is repeated");
    let mut report = smoke().clone();
    let cell = &mut report.cells[0];
    (cell.id, cell.workload) = ("P2 users, 10/s, N 8".to_owned(), "P2 users".to_owned());
    let hits = format!("{:.1}", 100.0 * cell.run("cache_aware").unwrap().mean(|of| of.hit_rate));
    let text = published(&report);
    let precise = text.lines().find(|line| line.contains("precise")).unwrap();
    assert!(precise.contains("0.335") && precise.contains(&hits), "{precise}");
    let page = page(&report);
    assert!(page.contains("<td>precise</td>") && page.contains(&format!("<td>{hits}</td>")));
    is_one_file(&page);
}

fn is_one_file(page: &str) {
    assert!(page.starts_with("<!doctype html>"));
    for outside in ["http:", "https:", "<script", "<link", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    for element in ["svg", "table", "details", "div", "g", "text", "tr", "h3"] {
        let opened =
            page.matches(&format!("<{element} ")).count() + page.matches(&format!("<{element}>")).count();
        assert_eq!(opened, page.matches(&format!("</{element}>")).count(), "{element}");
    }
    assert!(!page.contains("NaN") && !page.contains("inf<"));
}

#[test]
fn disturbed_cells_stand_beside_the_same_undisturbed() {
    let mut plans = Suite::Smoke.cells(None);
    plans.truncate(1);
    plans.push(Plan { fault: Some(Fault::Update), ..plans[0] });
    plans.push(Plan { routers: 2, ..plans[0] });
    let job = Job {
        suite: "smoke",
        cells: &plans,
        traces: None,
        seeds: 2,
        threads: 2,
        cache_aware: CacheAwareSettings::default(),
    };
    let report = job.run(&|| ()).unwrap();
    assert_eq!(report.cells.len(), 3, "they differ in more than traffic and caches");
    assert!(report.cells[1..].iter().all(|cell| cell.undisturbed == report.cells[0].id));
    let text = faults(&report);
    assert!(text.contains("F2 weight update\n") && text.contains("2 routers\n"), "{text}");
    assert!(text.contains("hits back, updated, s") && text.contains("alike %"), "{text}");
    assert!(report.cells.iter().all(|cell| gains(&report).contains(&cell.id)));
    let (track, of) = TRACKS[2];
    assert_eq!(report.cells.iter().filter(|cell| of(cell)).count(), 2, "{track}");
}

#[test]
fn faults_have_an_aftermath_where_the_same_without_is_there() {
    let mut plans = Suite::Smoke.cells(None);
    plans.drain(..1);
    plans.truncate(1);
    let plain = plans[0];
    let two = Plan { routers: 2, ..plain };
    plans.extend([
        Plan { fault: Some(Fault::Takeover), ..two },
        two,
        Plan { fault: Some(Fault::Scale), ..plain },
        Plan { fault: Some(Fault::Kill), routers: 4, ..plain },
    ]);
    let job = Job {
        suite: "smoke",
        cells: &plans,
        traces: None,
        seeds: 2,
        threads: 2,
        cache_aware: CacheAwareSettings::default(),
    };
    let report = job.run(&|| ()).unwrap();
    let [_, takeover, beside, scale, alone] = report.cells.as_slice() else { panic!("five cells") };
    assert_eq!(takeover.undisturbed, beside.id, "as many routers");
    for run in &takeover.runs {
        let after: Vec<&str> = run.aftermaths[1].recoveries.iter().map(|each| each.after.as_str()).collect();
        assert_eq!((run.aftermaths.len(), after), (2, vec!["lost", "replaced", "lost", "replaced"]));
        assert!(run.aftermaths[0].moved.is_none(), "the fleet stays as it is");
        assert!(run.seeds.iter().all(|of| of.agreement.is_some()), "{}", run.contestant);
    }
    for run in &scale.runs {
        assert!(run.aftermaths[0].moved.is_some_and(|moved| moved.requests > 0), "{}", run.contestant);
        assert_eq!(run.seeds[0].agreement, None);
    }
    assert!(alone.runs.iter().all(|run| run.aftermaths.is_empty()), "there is nothing to compare with");
    let text = faults(&report);
    for column in
        ["hits back, lost, s", "hits back, replaced, s", "hits back, out, s", "hits back, in, s", "moved %"]
    {
        assert!(text.contains(column) && page(&report).contains(column), "{column}: {text}");
    }
    is_one_file(&page(&report));
    let again = Job { cells: &[plans[0], plans[3]], seeds: 1, threads: 1, ..job }.run(&|| ()).unwrap();
    for (run, before) in again.cells[1].runs.iter().zip(&scale.runs) {
        assert_eq!(run.aftermaths[0], before.aftermaths[0], "{}", run.contestant);
    }
    assert!(compare(&report, &report).is_ok());
}

#[test]
fn capacity_is_where_objectives_begin_to_be_missed() {
    let mut report = smoke().clone();
    let cell = report.cells[0].clone();
    let at = |rho: f64, met: f64| {
        let mut cell = cell.clone();
        (cell.id, cell.rho) = (cell.id.replace("ρ 0.5", &format!("ρ {rho}")), rho);
        cell.undisturbed.clone_from(&cell.id);
        for metrics in cell.runs.iter_mut().flat_map(|run| &mut run.seeds) {
            (metrics.offered_per_s, metrics.slo_share) = (10.0 * rho, met);
        }
        cell
    };
    report.cells = vec![at(0.8, 0.85), at(0.4, 1.0), at(0.6, 0.95)];
    let all = ladders(&report);
    let [ladder] = all.as_slice() else { panic!("one ladder: {all:?}") };
    assert_eq!(ladder.capacity_per_s("round_robin"), Some(6.0));
    let text = capacities(&report);
    let blind = text.lines().find(|line| line.contains("round_robin ")).unwrap();
    assert_eq!(blind.split_whitespace().collect::<Vec<_>>(), ["round_robin", "6.00", "1.00"]);
    assert!(page(&report).contains("<td>6.00</td>"));
    report.cells[2] = at(0.6, 0.90);
    let between = ladders(&report)[0].capacity_per_s("round_robin").unwrap();
    assert!((between - 5.0).abs() < 1e-9, "half way between 0.4 and 0.6: {between}");
    report.cells[1] = at(0.4, 0.5);
    assert_eq!(ladders(&report)[0].capacity_per_s("round_robin"), None);
}

#[test]
fn targets_are_judged_by_their_bounds() {
    let all = targets(smoke());
    let worst = all.iter().find(|target| target.what.starts_with("TTFT ÷ round robin")).unwrap();
    assert!(!worst.is_floor && worst.is_met() == (worst.figure <= 1.03), "{worst:?}");
    let mut slow = smoke().clone();
    let ours = slow.cells[0].runs.iter_mut().find(|run| run.contestant == "cache_aware").unwrap();
    ours.seeds.iter_mut().for_each(|metrics| metrics.ttft_s.mean *= 1e3);
    let all = targets(&slow);
    let worst = all.iter().find(|target| target.what.starts_with("TTFT ÷ round robin")).unwrap();
    assert!(!worst.is_met() && worst.what.contains(&slow.cells[0].workload), "{worst:?}");
}

#[test]
fn a_tenant_that_poisons_a_bounded_index_costs_the_others_hits() {
    let poisoned = Plan {
        workload: Workload::Generated(Pattern::Poisoned),
        capacity: Capacity::Tokens(1 << 19),
        ..Suite::Smoke.cells(None)[0]
    };
    let bounded = Plan { most_blocks: Some(128), ..poisoned };
    let plans = [poisoned, poisoned.quiet(), bounded];
    let job = Job {
        suite: "smoke",
        cells: &plans,
        traces: None,
        seeds: 1,
        threads: 2,
        cache_aware: CacheAwareSettings::default(),
    };
    let report = job.run(&|| ()).unwrap();
    let [free, alone, bounded] = report.cells.as_slice() else { panic!("the bound makes a cell of its own") };
    let of = |cell: &Cell| cell.run("cache_aware").unwrap().seeds[0].others;
    assert!(of(alone).is_none() && alone.seeds[0].requests < free.seeds[0].requests);
    assert_eq!(alone.seeds[0].span_s, free.seeds[0].span_s, "the others come at the same times");
    let (free_hits, bounded_hits) = (of(free).unwrap().hit_rate, of(bounded).unwrap().hit_rate);
    assert!(bounded_hits < free_hits - 0.1, "{bounded_hits}, {free_hits}");
    let text = others(&report);
    assert!(text.contains(&format!("\n{}\n", free.id)), "{text}");
    let figures = text.lines().find(|line| line.contains("round_robin")).unwrap().split("  ").map(str::trim);
    let page = page(&report);
    for figure in figures.filter(|figure| figure.contains('→')) {
        assert!(page.contains(&format!("<td>{figure}</td>")), "{figure}");
    }
    is_one_file(&page);
    assert!(!text.contains(&bounded.id), "its like without the poisoner was not run");
}
