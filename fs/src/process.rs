//! What the kernel says of processes: who closes a file, and in what state, for a close by a
//! program that is being killed is not a close that means it.

use std::fs;

use crate::holders::UNSEEN;

/// `PF_EXITING` of the kernel's `include/linux/sched.h`: set before a dying task's files close.
const PF_EXITING: u64 = 0x4;
/// Fields of `/proc/PID/stat` counted from the state, the first one after the name (proc(5)).
const FLAGS: usize = 6;
const EXIT_CODE: usize = 49;

/// The thread group of a task; the task itself where it cannot be told.
pub(crate) fn thread_group(task: u32) -> u32 {
    if task == UNSEEN {
        return UNSEEN;
    }
    let status = fs::read_to_string(format!("/proc/{task}/status")).unwrap_or_default();
    let group = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    group.and_then(|group| group.trim().parse().ok()).unwrap_or(task)
}

/// Whether a task is on its way out with a signal or a failure.
pub(crate) fn dies_badly(task: u32) -> bool {
    fs::read_to_string(format!("/proc/{task}/stat")).is_ok_and(|stat| says_bad_death(&stat))
}

/// How far a process is with its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Lives,
    /// On its way out, or ended but for what it cannot let go of.
    Ending,
    Gone,
}

pub(crate) fn state(process: u32) -> State {
    match fs::read_to_string(format!("/proc/{process}/stat")) {
        Ok(stat) if field(&stat, FLAGS) & PF_EXITING != 0 => State::Ending,
        Ok(_) => State::Lives,
        Err(_) => State::Gone,
    }
}

fn says_bad_death(stat: &str) -> bool {
    field(stat, FLAGS) & PF_EXITING != 0 && field(stat, EXIT_CODE) != 0
}

/// A number of `/proc/PID/stat`; 0 where there is none.
fn field(stat: &str, at: usize) -> u64 {
    // The name may hold spaces and parentheses of its own.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    fields.split_whitespace().nth(at).and_then(|it| it.parse().ok()).unwrap_or(0)
}

/// Whether a process of that name is on its way out.
pub(crate) fn is_one_ending(name: &str) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    let stat = |process: fs::DirEntry| fs::read_to_string(process.path().join("stat")).ok();
    processes.flatten().filter_map(stat).any(|stat| {
        let named = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')'));
        named.is_some_and(|(it, _)| it == name) && field(&stat, FLAGS) & PF_EXITING != 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_exit_with_a_code_or_signal_is_bad() {
        let stat = |flags: u64, code: u32| {
            let middle = "0 ".repeat(EXIT_CODE - FLAGS - 1);
            format!("7 (a ) b) R 1 2 3 4 5 {flags} {middle}{code}\n")
        };
        for (flags, code, bad) in [
            (0x40_0000, 0, false),
            (0x40_0004, 0, false),
            (0x40_0004, 9, true),
            (0x40_0004, 256, true),
            (0x40_0000, 9, false),
        ] {
            assert_eq!(says_bad_death(&stat(flags, code)), bad, "{flags:x} {code}");
        }
        assert!(!dies_badly(std::process::id()));
        assert_eq!(state(std::process::id()), State::Lives);
        assert!(!is_one_ending("a name that is too long for a process"));
        assert_eq!(thread_group(std::process::id()), std::process::id());
    }
}
