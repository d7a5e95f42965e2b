//! Programs that touch a mount, each within a time limit of its own: where a peer may be dead no
//! test waits for a mount by itself. Some are fed, or read from, by and by, so that a test knows
//! in the middle of what it interferes.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::text;

/// How a program ended, what it said on stderr, and how long it took.
#[derive(Debug)]
pub(crate) struct Ended {
    status: ExitStatus,
    said: String,
    pub(crate) took: Duration,
}

impl Ended {
    pub(crate) fn well(&self) -> bool {
        self.status.success()
    }

    pub(crate) fn said(&self) -> &str {
        &self.said
    }

    #[track_caller]
    pub(crate) fn expect_well(&self) {
        assert!(self.well(), "{self:?}");
    }

    /// It failed by itself, in its time, and said one of these.
    #[track_caller]
    pub(crate) fn expect_failure(&self, texts: &[&str]) {
        let by_itself = self.status.code().is_some_and(|code| code != 0 && code != TIMED_OUT);
        assert!(by_itself && texts.iter().any(|it| self.said.contains(it)), "{self:?}");
    }
}

/// The exit code of a program that timeout(1) had to kill.
const TIMED_OUT: i32 = 137;

/// The same command, killed when the time is over; its words are the C locale's.
pub(crate) fn limited(seconds: u64, command: &Command) -> Command {
    let mut limited = Command::new("timeout");
    limited.args(["--signal=KILL", &seconds.to_string()]);
    limited.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited.env("LC_ALL", "C").stdin(Stdio::null());
    limited
}

/// Runs a program to its end, for so long at most.
pub(crate) fn within(seconds: u64, words: &[&str]) -> Ended {
    let (program, args) = words.split_first().expect("a program");
    let began = Instant::now();
    let output = limited(seconds, Command::new(program).args(args)).output();
    let output = output.expect("the program runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ended { status: output.status, said, took: began.elapsed() }
}

/// Runs a program of the harness, which must succeed: where hosts or volumes cannot be made, no
/// test has passed.
#[track_caller]
pub(super) fn done(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

/// A program with pipes at both its ends; killed when dropped.
struct Piped {
    child: Child,
    said: Option<JoinHandle<String>>,
    began: Instant,
}

impl Piped {
    fn start(seconds: u64, words: &[&str]) -> Self {
        let (program, args) = words.split_first().expect("a program");
        let mut child = limited(seconds, Command::new(program).args(args))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // timeout(1) kills its own group.
            .process_group(0)
            .spawn()
            .expect("the program starts");
        let mut stderr = child.stderr.take().expect("piped");
        let said = std::thread::spawn(move || {
            let mut said = Vec::new();
            // Killed in the middle of a word it has said that much.
            let _ = stderr.read_to_end(&mut said);
            String::from_utf8_lossy(&said).into_owned()
        });
        Self { child, said: Some(said), began: Instant::now() }
    }

    fn end(&mut self) -> Ended {
        let status = self.child.wait().expect("a child");
        let took = self.began.elapsed();
        let said = self.said.take().expect("ends once").join().expect("text");
        Ended { status, said, took }
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        if self.said.is_some() {
            let pid = Pid::from_child(&self.child);
            // It may have ended by itself.
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// A `cp` that gets its bytes by and by.
pub(crate) struct Copy {
    program: Piped,
    input: ChildStdin,
}

impl Copy {
    pub(crate) fn begin(target: &Path, seconds: u64) -> Self {
        let mut program = Piped::start(seconds, &["cp", "--", "/dev/stdin", text(target)]);
        let input = program.child.stdin.take().expect("piped");
        Self { program, input }
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.input.write_all(bytes).expect("cp takes its bytes");
    }

    /// The last bytes, and how it ended.
    pub(crate) fn end(self, rest: &[u8]) -> Ended {
        let Self { mut program, mut input } = self;
        // A cp that has failed takes no more.
        let _ = input.write_all(rest);
        drop(input);
        program.end()
    }
}

/// A reader that pauses after its first bytes until it is told to go on.
pub(crate) struct Reader {
    program: Piped,
    output: ChildStdout,
    bytes: Vec<u8>,
}

/// What it reads at once, at first.
const PIECE_BYTES: usize = 1 << 16;
const READER: &str = r#"exec 3<"$1" && dd bs=65536 count="$2" iflag=fullblock status=none <&3 &&
    read -r word && cat <&3"#;

impl Reader {
    /// Reads that many pieces of 64 KiB.
    pub(crate) fn begin(path: &Path, pieces: usize, seconds: u64) -> Self {
        let count = pieces.to_string();
        let mut program = Piped::start(seconds, &["sh", "-c", READER, "sh", text(path), &count]);
        let mut output = program.child.stdout.take().expect("piped");
        let mut bytes = vec![0; pieces * PIECE_BYTES];
        output.read_exact(&mut bytes).expect("the first bytes");
        Self { program, output, bytes }
    }

    /// All that it read in the end, and how it ended.
    pub(crate) fn go_on(self) -> (Vec<u8>, Ended) {
        let Self { mut program, mut output, mut bytes } = self;
        let mut input = program.child.stdin.take().expect("piped");
        input.write_all(b"on\n").expect("it waits for that");
        output.read_to_end(&mut bytes).expect("its bytes");
        (bytes, program.end())
    }
}
