//! Processor time: of the processes that serve a mount, and of the reading thread. It is told by
//! the kernel, which counts work in interrupts for whoever is running then.

use std::collections::HashMap;
use std::fs;

/// Of the fields of `/proc/PID/stat` after the name, proc_pid_stat(5) counting from 1 there with
/// `state` as its third.
const PARENT: usize = 1;
const SESSION: usize = 3;
const USER_TIME: usize = 11;
const SYSTEM_TIME: usize = 12;
/// `USER_HZ`, on all that Linux runs on.
const TICKS_PER_S: f64 = 100.0;

struct Process {
    parent: u32,
    session: u32,
    ticks: u64,
}

fn all() -> HashMap<u32, Process> {
    let entries = fs::read_dir("/proc").expect("procfs").flatten();
    let processes = entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        // It may have ended meanwhile.
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        let small = |at: usize| u32::try_from(number(at)?).ok();
        let ticks = number(USER_TIME)? + number(SYSTEM_TIME)?;
        Some((pid, Process { parent: small(PARENT)?, session: small(SESSION)?, ticks }))
    });
    processes.collect()
}

/// Seconds that these have used so far, with what they started: what descends from them, or is of
/// the session that one of them leads.
pub(crate) fn seconds(roots: &[u32]) -> f64 {
    let all = all();
    let belongs = |mut pid: u32| {
        while let Some(process) = all.get(&pid) {
            if roots.contains(&pid) || roots.contains(&process.session) {
                return true;
            }
            pid = process.parent;
        }
        false
    };
    let ticks: u64 = all.iter().filter(|(pid, _)| belongs(**pid)).map(|(_, it)| it.ticks).sum();
    ticks as f64 / TICKS_PER_S
}

/// Seconds that this thread has used so far.
pub(crate) fn own_seconds() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("this kernel tells");
    let nanoseconds = text.split_ascii_whitespace().next().and_then(|it| it.parse::<u64>().ok());
    nanoseconds.expect("a number") as f64 / 1e9
}
