//! What a process and all below it cost, as the kernel counts it.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

#[cfg(target_os = "linux")]
use nix::time::{clock_getcpuclockid, clock_gettime};
#[cfg(target_os = "linux")]
use nix::unistd::Pid;

/// Memory of a contestant, in MB.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) resident: f64,
    pub(crate) peak: f64,
}

/// Seconds of CPU, user and system, that processes have used.
pub(crate) fn cpu_seconds(processes: &[u32]) -> f64 {
    processes.iter().filter_map(|process| cpu_time(*process)).sum::<Duration>().as_secs_f64()
}

/// Of one process, and its threads that have ended. `/proc` has it in hundredths of a second, which is too coarse for a round.
#[cfg(target_os = "linux")]
fn cpu_time(process: u32) -> Option<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(process.try_into().ok()?)).ok()?;
    Some(clock_gettime(clock).ok()?.into())
}

/// Without a `/proc` there is nothing to measure.
#[cfg(not(target_os = "linux"))]
fn cpu_time(_: u32) -> Option<Duration> {
    None
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
pub(crate) fn family(root: u32) -> Vec<u32> {
    let names = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.file_name());
    let processes = names.filter_map(|name| name.to_str()?.parse::<u32>().ok());
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for process in processes {
        if let Some(parent) = parent(process) {
            children.entry(parent).or_default().push(process);
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

fn parent(process: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name before it may hold anything, so that fields count from its end: after it come the state and the parent (proc(5)).
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}
