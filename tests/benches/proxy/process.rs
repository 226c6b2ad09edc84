//! What a process and all below it cost, as `/proc` says.

use std::collections::HashMap;
use std::fs;

/// Kernel ticks in a second, as `/proc` counts them: 100 on every architecture of Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Memory of a contestant, in MB.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) resident: f64,
    pub(crate) peak: f64,
}

struct Stat {
    parent: u32,
    ticks: u64,
}

/// Seconds of CPU, user and system, that a process and its descendants have used.
pub(crate) fn cpu_seconds(root: u32) -> f64 {
    let ticks = family(root).into_iter().filter_map(|process| Some(stat(process)?.ticks));
    ticks.sum::<u64>() as f64 / TICKS_PER_SECOND
}

/// Resident memory of a process and its descendants; what several share counts for each.
pub(crate) fn memory(root: u32) -> Memory {
    family(root).into_iter().fold(Memory::default(), |sum, process| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
            kilobytes.unwrap_or(0.0) * 1024.0 / 1e6
        };
        Memory { resident: sum.resident + field("VmRSS:"), peak: sum.peak + field("VmHWM:") }
    })
}

/// A process and its descendants.
fn family(root: u32) -> Vec<u32> {
    let names = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.file_name());
    let processes = names.filter_map(|name| name.to_str()?.parse::<u32>().ok());
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for process in processes {
        if let Some(stat) = stat(process) {
            children.entry(stat.parent).or_default().push(process);
        }
    }
    let mut family = vec![root];
    let mut at = 0;
    while let Some(process) = family.get(at) {
        family.extend(children.remove(process).unwrap_or_default());
        at += 1;
    }
    family
}

fn stat(process: u32) -> Option<Stat> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name before it may hold anything, so that fields count from its end; proc(5) numbers the next one 3.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(Stat { parent: u32::try_from(field(4)?).ok()?, ticks: field(14)? + field(15)? })
}
