//! Processes of Isotope in a temporary directory: started, watched, killed, and in the end gone,
//! mounts and all, whatever the test did. A watchdog frees a test that hangs on a mount.

pub(crate) mod background;
pub(crate) mod hosts;
pub(crate) mod programs;
pub(crate) mod storing;
pub(crate) mod volumes;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

/// A part that is not ready by then never will be: start-up takes tens of milliseconds.
const READY: Duration = Duration::from_secs(20);
/// What is promised within a second is given this long, for the machine may be busy.
pub(crate) const SOON: Duration = Duration::from_secs(10);
/// No test takes so long unless it hangs.
const TEST_MAX: Duration = Duration::from_secs(150);

/// One test's directory, and everything it started.
pub(crate) struct World {
    pub(crate) dir: TempDir,
    mounts: Arc<Mutex<Vec<PathBuf>>>,
    failpoints: Mutex<Option<String>>,
    _alive: mpsc::Sender<()>,
}

/// A running part. Killed when dropped.
pub(crate) struct Part {
    child: Child,
    lines: Receiver<String>,
    log: PathBuf,
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = TempDir::with_prefix("isotope-e2e-").expect("a temporary directory");
        fs::write(dir.path().join("isotope.toml"), "").expect("an empty configuration");
        let mounts = Arc::new(Mutex::new(Vec::new()));
        let (alive, ended) = mpsc::channel::<()>();
        let watched = Arc::clone(&mounts);
        std::thread::spawn(move || {
            if ended.recv_timeout(TEST_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
                // The test fails by itself once its calls return.
                free(&watched.lock().expect("the mounts"));
            }
        });
        Self { dir, mounts, failpoints: Mutex::default(), _alive: alive }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new directory.
    pub(crate) fn make_dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).expect("a directory");
        path
    }

    /// A pool with images of the given names below its `iso/`, each holding bytes of its own.
    pub(crate) fn pool(&self, name: &str, images: &[&str]) -> PathBuf {
        let pool = self.make_dir(name);
        fs::create_dir_all(pool.join("iso")).expect("a directory");
        for image in images {
            write_image(&pool, image, &pattern(image, 300_000));
        }
        pool
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_isotope"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ISOTOPE_") {
                command.env_remove(name);
            }
        }
        // A test's directory must go with the test.
        command.env("ISOTOPE_MOUNT_OPTIONS", "noimmutable");
        command.args(args).env("ISOTOPE_CONFIG", self.path("isotope.toml")).stdin(Stdio::null());
        // What nobody gave another directory must not be in the machine's own.
        command.env("ISOTOPE_STATE", self.path("state"));
        command
    }

    /// Runs a command of Isotope to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the binary runs")
    }

    /// What parts started from now on do at their crash points (`isotope_proto::crash_point`).
    pub(crate) fn fail_next(&self, points: Option<&str>) {
        *self.failpoints.lock().expect("the points") = points.map(str::to_owned);
    }

    pub(crate) fn start(&self, log: &str, args: &[&str]) -> Part {
        self.spawn(log, self.command(args))
    }

    /// A part started by a command of the test's own making.
    pub(crate) fn spawn(&self, log: &str, mut command: Command) -> Part {
        let log = self.path(log);
        let failpoints = self.failpoints.lock().expect("the points").clone();
        let mut child = command
            .envs(failpoints.map(|points| ("FAILPOINTS", points)))
            .stdout(Stdio::piped())
            .stderr(File::options().create(true).append(true).open(&log).expect("a log"))
            .process_group(0)
            .spawn()
            .expect("the binary starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // Nobody listens any more once the part was dropped.
                let _ = send.send(line);
            }
        });
        Part { child, lines, log }
    }

    pub(crate) fn mount_point(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        // What a killed mount left there must not be touched.
        if !self.mounts.lock().expect("the mounts").contains(&path) {
            fs::create_dir_all(&path).expect("a directory");
            self.unmount_in_the_end(&path);
        }
        path
    }

    /// Whatever is mounted there goes with the test: a mount of ours, a volume, a network.
    pub(crate) fn unmount_in_the_end(&self, path: &Path) {
        self.mounts.lock().expect("the mounts").push(path.to_owned());
    }

    /// A catalogue on `listen` (port 0: any), and its URL.
    pub(crate) fn catalog_on(&self, listen: &str) -> (Part, String) {
        let state = self.path("catalog");
        let args = ["serve", "catalog", "--listen", listen, "--state", text(&state)];
        let part = self.start("catalog.log", &args);
        let url = part.wait_for("catalogue");
        (part, url)
    }

    pub(crate) fn catalog(&self) -> (Part, String) {
        self.catalog_on("127.0.0.1:0")
    }

    /// An agent named `name`, with a state directory of its own.
    pub(crate) fn agent(&self, name: &str, url: &str, pools: &[&Path]) -> Part {
        let state = self.path(&format!("agent-{name}"));
        let mut args = vec!["serve", "agent", "--catalog", url, "--listen", "127.0.0.1:0"];
        args.extend(["--name", name, "--state", text(&state)]);
        for pool in pools {
            args.extend(["--pool", text(pool)]);
        }
        let part = self.start(&format!("agent-{name}.log"), &args);
        part.wait_for("agent");
        part
    }

    /// A mount on a directory called `name`, once it is mounted.
    pub(crate) fn mount(&self, name: &str, url: &str) -> (Part, PathBuf) {
        let path = self.mount_point(name);
        let part = self.start(&format!("{name}.log"), &["mount", text(&path), "--catalog", url]);
        part.wait_for("mounted");
        (part, path)
    }

    /// Everything in one process: the part, the catalogue's URL and the mount.
    pub(crate) fn up(&self, pools: &[&Path]) -> (Part, String, PathBuf) {
        let mount = self.mount_point("mnt");
        let part = self.start_up(pools, &mount);
        let url = part.wait_for("catalogue");
        part.wait_for("mounted");
        let ready = || self.scanned(&url, pools.len());
        eventually("the first scan", ready);
        (part, url, mount)
    }

    pub(crate) fn start_up(&self, pools: &[&Path], mount: &Path) -> Part {
        let state = self.path("state");
        let mut args = vec!["up", "--listen", "127.0.0.1:0", "--agent-listen", "127.0.0.1:0"];
        args.extend(["--state", text(&state), "--mount", text(mount)]);
        for pool in pools {
            args.extend(["--pool", text(pool)]);
        }
        self.start("up.log", &args)
    }

    /// Whether that many volumes are online and have been scanned to their end.
    fn scanned(&self, url: &str, volumes: usize) -> bool {
        let scan = self.json(url, &["scan"]);
        scan["volumes_scanned"].as_u64() == Some(volumes as u64)
    }

    /// The JSON that a command prints; null if it failed.
    pub(crate) fn json(&self, url: &str, args: &[&str]) -> serde_json::Value {
        let mut all = vec!["--server", url, "--json"];
        all.extend(args);
        serde_json::from_slice(&self.run(&all).stdout).unwrap_or_default()
    }

    pub(crate) fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        free(&self.mounts.lock().expect("the mounts"));
    }
}

fn free(mounts: &[PathBuf]) {
    // The latest first: one may lie in another.
    for mount in mounts.iter().rev() {
        // Most are gone already.
        let _ = rustix::mount::unmount(mount, UnmountFlags::FORCE | UnmountFlags::DETACH);
    }
}

impl Part {
    /// The rest of the line that begins with a word, once it is printed.
    pub(crate) fn wait_for(&self, word: &str) -> String {
        let deadline = Instant::now() + READY;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    if let Some(rest) = line.strip_prefix(word) {
                        return rest.trim().to_owned();
                    }
                }
                Err(_) => {
                    panic!("no {word:?}:\n{}", fs::read_to_string(&self.log).unwrap_or_default())
                }
            }
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).expect("the part lives");
    }

    pub(crate) fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Whether one of its threads waits where no signal reaches it.
    pub(crate) fn waits_in_the_kernel(&self) -> bool {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("tasks");
        let stat = |task: fs::DirEntry| fs::read_to_string(task.path().join("stat")).ok();
        tasks.flatten().filter_map(stat).any(|stat| stat.contains(") D "))
    }

    /// Stops it, and returns once none of its threads runs: a signal takes its time.
    pub(crate) fn halt(&self) {
        self.signal(Signal::STOP);
        let stats = || {
            let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("tasks");
            tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("stat")).ok())
        };
        eventually("all its threads stopped", || stats().all(|stat| stat.contains(") T ")));
    }

    /// kill -9, and gone.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("gone");
    }

    /// SIGTERM; its exit code, 128 + signal if a signal ended it.
    pub(crate) fn stop(mut self) -> i32 {
        self.signal(Signal::TERM);
        self.wait()
    }

    pub(crate) fn wait(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let deadline = Instant::now() + READY;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            }
            assert!(Instant::now() < deadline, "the part does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // It may have ended long ago. A stopped process takes a SIGKILL, too.
        let _ = rustix::process::kill_process_group(self.pid(), Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(4);
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

pub(crate) fn write_image(pool: &Path, image: &str, bytes: &[u8]) {
    let path = pool.join("iso").join(image);
    fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
    fs::write(path, bytes).expect("an image");
}

/// Bytes that are another file's in no place: a byte sequence grown from the name.
pub(crate) fn pattern(seed: &str, len: usize) -> Vec<u8> {
    let mut state = seed.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // xorshift64: any full-period generator will do.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A file holds just these bytes; says how it differs, and not with all of them.
#[track_caller]
pub(crate) fn holds(path: impl AsRef<Path>, expected: &[u8]) {
    let path = path.as_ref();
    let found = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    same_bytes(&found, expected);
}

#[track_caller]
pub(crate) fn same_bytes(found: &[u8], expected: &[u8]) {
    let differs = found.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!((found.len(), differs), (expected.len(), None), "length, first difference");
}

/// Waits until something is so; says what was expected when it never is.
#[track_caller]
pub(crate) fn eventually(what: &str, is_so: impl FnMut() -> bool) {
    eventually_in(SOON, what, is_so);
}

/// The same for what may take longer.
#[track_caller]
pub(crate) fn eventually_in(limit: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !is_so() {
        assert!(Instant::now() < deadline, "expected {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Every path below a directory, sorted, folders with a slash.
pub(crate) fn walk(root: &Path) -> Vec<String> {
    fn below(dir: &Path, prefix: &str, all: &mut Vec<String>) {
        for entry in fs::read_dir(dir).expect("a listing") {
            let entry = entry.expect("an entry");
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.file_type().expect("a type").is_dir() {
                all.push(format!("{name}/"));
                below(&entry.path(), &format!("{name}/"), all);
            } else {
                all.push(name);
            }
        }
    }
    let mut all = Vec::new();
    below(root, "", &mut all);
    all.sort();
    all
}

/// The errno of a failed call.
#[track_caller]
pub(crate) fn errno<T>(result: std::io::Result<T>) -> i32 {
    match result {
        Ok(_) => panic!("expected a failure"),
        Err(error) => error.raw_os_error().expect("an errno"),
    }
}
