//! A library with one pool on two mounts, programs that write to it and stop half way, and what
//! must be there afterwards.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};

use rustix::process::{Pid, Signal};

use crate::harness::{Part, World, eventually, holds, walk};

/// What a library shows before anything is stored in it.
pub(crate) const EMPTY: [&str; 3] = ["linux/", "other/", "windows/"];

/// What the scripts of [`Program`] have at hand. Each ends itself: a program that hangs on a mount
/// must not outlive its test.
const PRELUDE: &str = "
import os, signal, subprocess, sys, threading
signal.alarm(60)
FILE, HEAD, TAIL = sys.argv[1], b'h' * 700_000, b't' * 300_001

def made():
    return os.open(FILE, os.O_CREAT | os.O_WRONLY, 0o644)

def wrote(fd, data):
    while data:
        data = data[os.write(fd, data):]

def stop(word):
    print(word, flush=True)
    sys.stdin.readline()

def refused(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return error.errno
    return 0
";

/// A script's beginning: the file is made, and half of it written.
pub(crate) const HALF: &str = "
fd = made()
wrote(fd, HEAD)
";

/// What the scripts mean to store: `HEAD` and then `TAIL`.
pub(crate) fn whole() -> Vec<u8> {
    let mut bytes = vec![b'h'; 700_000];
    bytes.resize(1_000_001, b't');
    bytes
}

pub(crate) struct Library {
    pub(crate) mount: PathBuf,
    pub(crate) second: PathBuf,
    pub(crate) pool: PathBuf,
    pub(crate) url: String,
    // The parts end before their directory goes.
    _parts: [Part; 2],
    pub(crate) world: World,
}

impl Library {
    pub(crate) fn new() -> Self {
        let world = World::new();
        let pool = world.pool("isos", &[]);
        let (up, url, mount) = world.up(&[&pool]);
        let (other, second) = world.mount("second", &url);
        Self { mount, second, pool, url, _parts: [up, other], world }
    }

    /// The file that a [`Program`] writes.
    pub(crate) fn file(&self) -> PathBuf {
        self.mount.join("file.iso")
    }

    /// Starts a Python script that writes [`Library::file`].
    pub(crate) fn program(&self, script: &str) -> Program {
        self.program_at(&self.file(), script)
    }

    pub(crate) fn program_at(&self, file: &Path, script: &str) -> Program {
        Program::start("python3", ["-c", &(PRELUDE.to_owned() + script)], file)
    }

    /// Runs a script of bash; `$M` and `$N` are the mounts, `$D` is the test's directory.
    pub(crate) fn bash(&self, script: &str) -> Output {
        let done = Command::new("timeout")
            .args(["--kill-after=5", "90", "bash", "-c", script])
            .env("M", &self.mount)
            .env("N", &self.second)
            .env("D", self.world.dir.path())
            .stdin(Stdio::null())
            .output();
        done.expect("bash runs")
    }

    /// Runs a script of bash that must succeed.
    #[track_caller]
    pub(crate) fn shell(&self, script: &str) {
        let done = self.bash(script);
        let told = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{script}: {}: {told}", done.status);
    }

    pub(crate) fn images(&self) -> u64 {
        self.world.json(&self.url, &["status"])["images"].as_u64().expect("a number")
    }

    /// A file is in the library with just these bytes: on both mounts, and in its pool.
    #[track_caller]
    pub(crate) fn stores(&self, name: &str, bytes: &[u8]) {
        holds(self.mount.join(name), bytes);
        let elsewhere = self.second.join(name);
        eventually("it is on the other mount", || elsewhere.exists());
        holds(elsewhere, bytes);
        // Named as it was when it was stored.
        let info = self.world.json(&self.url, &["info", &format!("/{name}")]);
        let on_disk = self.pool.join(info["replicas"][0]["path"].as_str().expect("a path"));
        eventually("it is in the pool", || on_disk.exists());
        holds(on_disk, bytes);
    }

    /// The library and its pool are empty, no space is lost, and the name can be used.
    #[track_caller]
    pub(crate) fn stores_nothing(&self) {
        let staging = self.pool.join(".isotope/staging");
        let staged = || walk(&staging).into_iter().any(|it| !it.ends_with('/'));
        eventually("it is not found", || !self.file().exists());
        eventually("nothing is staged", || !staged());
        eventually("nothing is listed", || walk(&self.mount) == EMPTY);
        assert_eq!(walk(&self.second), EMPTY);
        assert_eq!(walk(&self.pool.join("iso")), Vec::<String>::new());
        assert_eq!(self.images(), 0);
        // A change fails after two seconds, which a busy disk may need.
        eventually("the name is free", || fs::write(self.file(), b"the name is free").is_ok());
        self.stores("file.iso", b"the name is free");
        fs::remove_file(self.file()).expect("removed");
        eventually("its file has gone", || walk(&self.pool.join("iso")).is_empty());
        eventually("it has gone elsewhere", || walk(&self.second) == EMPTY);
    }
}

/// A program in a process group of its own; killed when dropped.
pub(crate) struct Program {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Program {
    pub(crate) fn start<S: AsRef<OsStr>>(
        program: &str,
        args: impl IntoIterator<Item = S>,
        file: &Path,
    ) -> Self {
        // A shell's background jobs ignore SIGINT, and so would all that the tests start from one.
        let mut child = Command::new("env")
            .args(["--default-signal=INT", program])
            .args(args)
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("the program starts");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, input, output }
    }

    /// Waits until the script has come to its `stop`.
    #[track_caller]
    pub(crate) fn says(&mut self, word: &str) {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line");
        assert_eq!(line.trim_end(), word);
    }

    pub(crate) fn goes_on(&mut self) {
        self.input.write_all(b"\n").expect("it listens");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).expect("it lives");
    }

    /// As Ctrl-C does: the program, and all it started.
    pub(crate) fn signal_all(&self, signal: Signal) {
        rustix::process::kill_process_group(Pid::from_child(&self.child), signal)
            .expect("it lives");
    }

    /// Its exit code once it has ended, or 128 + the signal that ended it.
    pub(crate) fn ends(mut self) -> i32 {
        let status = self.child.wait().expect("a child");
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal_all(Signal::KILL);
            let _ = self.child.wait();
        }
    }
}
