//! Beside each mount a small process waits for the mount's death. A mount that is killed while one
//! of its threads waits in the kernel, for a folder's lock that a request to the mount itself
//! holds, cannot die: the thread waits for the request, the request for the mount, and with them
//! everybody who looks at the mount point. Cutting the connection ends both. It knows nothing of
//! the library.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
use tracing::warn;

use crate::{mountpoint, process};

/// How often the mount's process is looked at. Nothing tells of its death in time: whoever waits for
/// it, or for one of its threads, waits for those that cannot end, too.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A process that dies has ended by then, unless it cannot.
const DYING_MAX: Duration = Duration::from_secs(1);

/// Starts the guard of a mount of this process: `command`, our process id, the mount point.
pub(crate) fn start(command: &[PathBuf], mountpoint: &Path) -> io::Result<Option<Guard>> {
    use std::os::unix::process::CommandExt;
    let Some((program, args)) = command.split_first() else { return Ok(None) };
    let child = Command::new(program)
        .args(args)
        .arg(std::process::id().to_string())
        .arg(mountpoint)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // Ctrl-C is not for it.
        .process_group(0)
        .spawn()?;
    Ok(Some(Guard { child }))
}

/// A guard that is running; ends when dropped.
pub(crate) struct Guard {
    child: Child,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // It may have been killed before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The guard's whole life: returns when the process that started it, `parent`, has ended, by itself
/// or because its mount was cut off.
///
/// # Errors
/// When signals cannot be handled.
pub async fn guard(parent: u32, mountpoint: &Path) -> io::Result<()> {
    // Whoever ends all processes of a service means the mount; we end with it.
    let _ignored = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    while process::state(parent) == process::State::Lives {
        sleep(LOOK_EVERY).await;
    }
    sleep(DYING_MAX).await;
    if process::state(parent) == process::State::Ending {
        cut_off(parent, mountpoint);
    }
    Ok(())
}

fn cut_off(pid: u32, mountpoint: &Path) {
    let path = mountpoint.display();
    match mountpoint::abort(mountpoint).or_else(|_| mountpoint::cut_off(mountpoint)) {
        Ok(()) => warn!(%path, pid, "the mount was killed and could not die; it was cut off"),
        Err(error) => warn!(%path, pid, %error, "the mount was killed and cannot die; umount -f"),
    };
}
