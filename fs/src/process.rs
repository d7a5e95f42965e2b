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

/// Whether a task is on its way out with a signal or a failure. How it ends stands in its `stat`,
/// which cannot be read while it executes another program, and then it may be waiting for us: it
/// closes what that program is not to have. One that is on its way out executes none.
pub(crate) fn dies_badly(task: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{task}/status"));
    status.is_ok_and(|status| is_ending(&status))
        && fs::read_to_string(format!("/proc/{task}/stat")).is_ok_and(|it| says_bad_death(&it))
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
    match fs::read_to_string(format!("/proc/{process}/status")) {
        Ok(status) if is_ending(&status) => State::Ending,
        Ok(_) => State::Lives,
        Err(_) => State::Gone,
    }
}

/// A task that ends gives its memory back before it closes its files (`do_exit` of the kernel's
/// `kernel/exit.c`); only kernel threads have none besides. One that crashed first waits for its
/// other threads, to dump its core, also where none is wanted.
fn is_ending(status: &str) -> bool {
    !status.contains("\nVmSize:") || status.contains("\nCoreDumping:\t1")
}

/// Whether a process of that name is on its way out.
pub(crate) fn is_one_ending(name: &str) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    let status = |process: fs::DirEntry| fs::read_to_string(process.path().join("status")).ok();
    let named = format!("Name:\t{name}\n");
    let mut all = processes.flatten().filter_map(status);
    all.any(|status| status.starts_with(&named) && is_ending(&status))
}

fn says_bad_death(stat: &str) -> bool {
    // The name may hold spaces and parentheses of its own.
    let Some((_, fields)) = stat.rsplit_once(')') else { return false };
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|it| it.parse::<u64>().ok()).unwrap_or(0);
    number(FLAGS) & PF_EXITING != 0 && number(EXIT_CODE) != 0
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
