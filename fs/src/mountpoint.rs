//! The mount point: what may be mounted on, what is in the way, and how a mount ends.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{IFlags, Mode, OFlags, ioctl_getflags, ioctl_setflags};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::process;

/// As the kernel shows our mounts in `/proc/self/mountinfo`.
pub(crate) const FILE_SYSTEM_TYPE: &str = "fuse.isotope";
/// Our own name as the kernel shows it.
const PROGRAM: &str = "isotope";
/// A dead mount may hang whoever asks; it is asked from a thread, for so long.
const PROBE_MAX: Duration = Duration::from_secs(2);

/// Why a directory cannot be mounted on.
#[derive(Debug, thiserror::Error)]
pub enum MountPointError {
    #[error("the mount point {0} does not exist; make it with mkdir -p")]
    Missing(PathBuf),
    #[error("the mount point {0} is not a directory")]
    NotADirectory(PathBuf),
    #[error("the mount point {0} is not empty; its files would be hidden")]
    NotEmpty(PathBuf),
    #[error("{0} has an isotope mount on it already; unmount it first (umount {0})")]
    Mounted(PathBuf),
    #[error("{path} has a file system of type {kind} on it; choose another mount point")]
    InUse { path: PathBuf, kind: String },
    #[error("cannot remove the stale mount on {path}: {error}; try umount -f {path}")]
    Stale { path: PathBuf, error: io::Error },
    #[error("cannot use the mount point {path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error(
        "/dev/fuse is missing; load the module (modprobe fuse), or allow the device in this container"
    )]
    NoFuse,
    #[error("cannot open /dev/fuse: {0}; allow the device in this container")]
    FuseDenied(io::Error),
    #[error("fusermount3 is missing; install the package fuse3, or mount as root")]
    NoFusermount,
}

/// Checks that a directory can be mounted on; clears what a killed mount left there.
pub(crate) fn prepare(path: &Path) -> Result<(), MountPointError> {
    if !Path::new("/dev/fuse").exists() {
        return Err(MountPointError::NoFuse);
    }
    if !rustix::process::geteuid().is_root() && !in_path("fusermount3") {
        return Err(MountPointError::NoFusermount);
    }
    if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
        return Err(MountPointError::FuseDenied(error));
    }
    if let Some(kind) = mounted_kind(path) {
        if kind != FILE_SYSTEM_TYPE {
            return Err(MountPointError::InUse { path: path.to_owned(), kind });
        }
        let removed = match daemon(path) {
            Daemon::Lives => return Err(MountPointError::Mounted(path.to_owned())),
            Daemon::Gone => detach(path),
            Daemon::CannotDie => cut_off(path),
        };
        removed.map_err(|error| MountPointError::Stale { path: path.to_owned(), error })?;
        tracing::info!(mountpoint = %path.display(), "a stale mount was removed");
    }
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => MountPointError::Missing(path.to_owned()),
        io::ErrorKind::NotADirectory => MountPointError::NotADirectory(path.to_owned()),
        _ => MountPointError::Io { path: path.to_owned(), error },
    };
    if std::fs::read_dir(path).map_err(failed)?.next().is_some() {
        return Err(MountPointError::NotEmpty(path.to_owned()));
    }
    Ok(())
}

/// Makes a directory refuse writes, so that nothing comes to lie in it while it is not mounted: a
/// `cp` then fails instead of filling the host's own disk. It stays so until `chattr -i`. Only root
/// can, and not on every file system; else it is left as it is.
pub(crate) fn refuse_writes(path: &Path) {
    let made = || -> rustix::io::Result<bool> {
        let dir = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let flags = ioctl_getflags(&dir)?;
        if flags.contains(IFlags::IMMUTABLE) {
            return Ok(false);
        }
        ioctl_setflags(&dir, flags | IFlags::IMMUTABLE)?;
        Ok(true)
    };
    let mountpoint = path.display();
    match made() {
        Ok(true) => tracing::info!(
            %mountpoint,
            "the directory beneath the mount is immutable now: nothing is written there while it \
             is not mounted (chattr -i lifts that, the option noimmutable leaves it alone)"
        ),
        Ok(false) => {}
        Err(error) => tracing::debug!(%mountpoint, %error, "cannot be made immutable"),
    }
}

fn in_path(program: &str) -> bool {
    // mount(8) hands on no environment when a user runs it; exec(3) then looks here.
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    std::env::split_paths(&path).any(|dir| dir.join(program).exists())
}

/// One line of `/proc/self/mountinfo` (proc(5)): device `major:minor`, mount point, type.
struct MountLine {
    device: String,
    path: PathBuf,
    kind: String,
}

fn parse_line(line: &str) -> Option<MountLine> {
    let (left, right) = line.split_once(" - ")?;
    let mut fields = left.split(' ');
    let device = fields.nth(2)?.to_owned();
    let path = PathBuf::from(unescape(fields.nth(1)?));
    Some(MountLine { device, path, kind: right.split(' ').next()?.to_owned() })
}

/// Spaces and the like stand there as `\040`.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let code = tail.get(..3).and_then(|it| std::str::from_utf8(it).ok());
        let code = code.filter(|_| byte == b'\\').and_then(|it| u8::from_str_radix(it, 8).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = &tail[3..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn mounts() -> Vec<MountLine> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(parse_line).collect()
}

/// The mount points of Isotope on this host, with nobody asked but the kernel's table.
#[must_use]
pub fn our_mounts() -> Vec<PathBuf> {
    mounts().into_iter().filter(|it| it.kind == FILE_SYSTEM_TYPE).map(|it| it.path).collect()
}

/// Links followed before a path is taken for a loop; Linux follows as many.
const LINKS_MAX: usize = 40;

/// A path as the kernel's table of mounts shows it, links resolved, without touching what may be
/// mounted there: a dead mount could hang whoever asks.
#[must_use]
pub fn resolved(path: &Path) -> PathBuf {
    let mut path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for _ in 0..LINKS_MAX {
        if let (Some(Ok(parent)), Some(name)) =
            (path.parent().map(Path::canonicalize), path.file_name())
        {
            path = parent.join(name);
        }
        match (std::fs::read_link(&path), path.parent()) {
            (Ok(target), Some(parent)) => path = parent.join(target),
            _ => break,
        }
    }
    path
}

/// The type of what is mounted on top there.
fn mounted_kind(path: &Path) -> Option<String> {
    let path = resolved(path);
    mounts().into_iter().rfind(|it| it.path == path).map(|it| it.kind)
}

/// The device number of our mount, as it names things in sysfs.
pub(crate) fn device(path: &Path) -> Option<String> {
    let path = resolved(path);
    mounts().into_iter().rfind(|it| it.path == path).map(|it| it.device)
}

/// What became of a mount's daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Daemon {
    /// One that hangs is taken for alive: it is not ours to remove.
    Lives,
    Gone,
    /// Killed while one of its threads waited in the kernel for a reader that waits for the daemon:
    /// neither ends before the mount is cut off.
    CannotDie,
}

fn daemon(path: &Path) -> Daemon {
    let (told, answer) = mpsc::channel();
    let path = path.to_owned();
    std::thread::spawn(move || {
        // Not stat(2): the kernel would answer it from what a dead daemon once said.
        // Asked while the daemon dies, it is the question that is aborted.
        let asked = rustix::fs::statfs(&path);
        let gone = matches!(asked, Err(Errno::NOTCONN | Errno::CONNABORTED));
        // Nobody waits for an answer that comes too late.
        let _ = told.send(gone);
    });
    match answer.recv_timeout(PROBE_MAX) {
        Ok(true) => Daemon::Gone,
        Ok(false) => Daemon::Lives,
        Err(_) if process::is_one_ending(PROGRAM) => Daemon::CannotDie,
        Err(_) => Daemon::Lives,
    }
}

/// Ends what waits for a mount's daemon, through the kernel's control file system where there is
/// one (`Documentation/filesystems/fuse.rst`); its owner may do so without being root.
pub(crate) fn abort(path: &Path) -> io::Result<()> {
    let device = device(path).ok_or(io::ErrorKind::NotFound)?;
    let (_, connection) = device.split_once(':').ok_or(io::ErrorKind::InvalidData)?;
    std::fs::write(format!("/sys/fs/fuse/connections/{connection}/abort"), "1")
}

/// Takes a mount out of the tree and ends what waits for its daemon.
pub(crate) fn cut_off(path: &Path) -> io::Result<()> {
    let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    unmount(path, flags).map_err(io::Error::from)
}

/// Takes a mount out of the tree; readers that still hold files in it keep them until it ends.
pub(crate) fn detach(path: &Path) -> io::Result<()> {
    match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => {
            let status =
                Command::new("fusermount3").args(["-u", "-z", "-q", "--"]).arg(path).status()?;
            if status.success() { Ok(()) } else { Err(io::Error::other("fusermount3 -u failed")) }
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo_are_understood() {
        let line = r"36 35 0:48 / /mnt/my\040isos rw,nosuid shared:1 - fuse.isotope isotope:x rw";
        let parsed = parse_line(line).expect("a line");
        assert_eq!(parsed.device, "0:48");
        assert_eq!(parsed.path, Path::new("/mnt/my isos"));
        assert_eq!(parsed.kind, "fuse.isotope");
        assert!(parse_line("nonsense").is_none());
        assert_eq!(unescape(r"a\134b\"), r"a\b\");
    }

    #[test]
    fn links_are_resolved_to_what_the_kernel_shows() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().canonicalize().expect("resolved");
        std::fs::create_dir(root.join("real")).expect("made");
        std::os::unix::fs::symlink("real", root.join("link")).expect("linked");
        std::os::unix::fs::symlink(root.join("link"), root.join("again")).expect("linked");
        std::os::unix::fs::symlink("loop", root.join("loop")).expect("linked");
        for (path, expected) in
            [("real", "real"), ("link", "real"), ("again", "real"), ("no", "no")]
        {
            assert_eq!(resolved(&root.join(path)), root.join(expected), "{path}");
        }
        // A loop is left as it is, and costs a bounded number of looks.
        assert!(resolved(&root.join("loop")).starts_with(&root));
    }

    #[test]
    fn only_an_empty_directory_will_do() {
        let dir = tempfile::tempdir().expect("a directory");
        let check = |path: &Path| prepare(path).map_err(|error| error.to_string());
        if Path::new("/dev/fuse").exists() && rustix::process::geteuid().is_root() {
            assert_eq!(check(dir.path()), Ok(()));
        }
        std::fs::write(dir.path().join("file"), "").expect("written");
        assert!(check(dir.path()).is_err_and(|it| it.contains("is not empty")));
        assert!(check(&dir.path().join("file")).is_err_and(|it| it.contains("is not a directory")));
        assert!(check(&dir.path().join("no")).is_err_and(|it| it.contains("does not exist")));
        assert!(check(Path::new("/proc")).is_err_and(|it| it.contains("type proc")));
    }
}
