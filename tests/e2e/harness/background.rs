//! Mounts in the background, as mount(8) makes them: started by `mount.isotope`, at home in no
//! terminal, ended when unmounted. And what users other than root do.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};

use super::programs::limited;
use super::{World, text};

/// Far more than a mount takes to come up, or to say why it does not.
const HELPER_SECONDS: u64 = 60;
/// A mount that was taken down ends within its own 2 s.
const END_MAX: Duration = Duration::from_secs(10);
/// A port that nothing listens on: the kernel gives out others.
pub(crate) const NOWHERE: &str = "127.0.0.1:9";
/// Nobody: a user without any right.
pub(crate) const USER: u32 = 65534;

/// Processes that were started for a mount point. Gone when dropped, and the mount with them.
pub(crate) struct Background(PathBuf);

impl Background {
    pub(crate) fn of(mount: &Path) -> Self {
        Self(mount.to_owned())
    }

    /// `isotope mount`, and its guard.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        let known = |proc: fs::DirEntry| {
            let pid = proc.file_name().to_str()?.parse().ok()?;
            let line = fs::read(proc.path().join("cmdline")).ok()?;
            let mut words = line.split(|it| *it == 0);
            let ours = words.next()?.ends_with(b"/isotope")
                && words.any(|word| word == self.0.as_os_str().as_encoded_bytes());
            Pid::from_raw(pid).filter(|_| ours)
        };
        fs::read_dir("/proc").expect("proc").flatten().filter_map(known).collect()
    }

    pub(crate) fn kill(&self) {
        for pid in self.processes() {
            // The guard may end by itself.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.processes().is_empty()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
        let deadline = Instant::now() + END_MAX;
        while !self.has_ended() {
            if Instant::now() > deadline {
                self.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl World {
    /// Runs `mount.isotope` to its end, which is that of its stdout and stderr, too.
    pub(crate) fn mount_helper(&self, args: &[&str]) -> Output {
        let mut words = vec!["mount.isotope"];
        words.extend(args);
        limited(HELPER_SECONDS, &self.command(&words)).output().expect("the binary runs")
    }

    /// Mounts in the background.
    #[track_caller]
    pub(crate) fn mount_in_background(
        &self,
        url: &str,
        name: &str,
        options: &str,
    ) -> (Background, PathBuf) {
        let path = self.mount_point(name);
        let background = Background::of(&path);
        let output = self.mount_helper(&[url, text(&path), "-o", options]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (background, path)
    }

    /// A command of Isotope as an ordinary user gives it.
    pub(crate) fn command_of_user(&self, args: &[&str]) -> Command {
        self.open_to_users();
        as_user(&self.command(args))
    }

    /// A directory of that user's.
    pub(crate) fn dir_of_user(&self, name: &str) -> PathBuf {
        self.open_to_users();
        let path = self.mount_point(name);
        std::os::unix::fs::chown(&path, Some(USER), Some(USER)).expect("given away");
        path
    }

    pub(crate) fn open_to_users(&self) {
        fs::set_permissions(self.dir.path(), Permissions::from_mode(0o755)).expect("ours");
    }
}

/// The same command, run by an ordinary user.
pub(crate) fn as_user(command: &Command) -> Command {
    let mut own = Command::new("setpriv");
    own.args([&format!("--reuid={USER}"), &format!("--regid={USER}"), "--clear-groups"]);
    own.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => own.env(name, value),
            None => own.env_remove(name),
        };
    }
    own.env("HOME", "/nonexistent");
    own
}

/// Runs a shell's words as an ordinary user: whether they ended well, and what they said.
pub(crate) fn user_says(words: &str) -> (bool, String) {
    let command = as_user(Command::new("sh").args(["-c", words]));
    let output = limited(HELPER_SECONDS, &command).output().expect("sh runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).trim_end().to_owned())
}

/// A mount's line in the kernel's table: its source, type and options; `None` where none is.
pub(crate) fn mounted_as(path: &Path) -> Option<(String, String, Vec<String>)> {
    let table = fs::read_to_string("/proc/self/mounts").expect("the kernel's table");
    let line = table.lines().rfind(|line| line.split(' ').nth(1) == path.to_str())?;
    let mut fields = line.split(' ').map(str::to_owned);
    let (source, _, kind, options) =
        (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    Some((source, kind, options.split(',').map(str::to_owned).collect()))
}
