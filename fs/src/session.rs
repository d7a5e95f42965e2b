//! The life of one kernel mount: mounted, served by its threads, unmounted.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fuser::{Config, MountOption, Session, SessionACL};
use tokio::sync::oneshot;
use tracing::{debug, warn};

use crate::READ_REQUEST_BYTES;
use crate::adapter::Adapter;
use crate::mountpoint;
use crate::notify::Notifications;

/// Threads that take requests from the kernel: none of them ever waits.
const THREADS: usize = 2;
/// An unmounted session ends at once unless somebody has files open in it.
const JOIN_MAX: Duration = Duration::from_secs(2);

pub(crate) struct Mounted {
    path: PathBuf,
    notifications: Notifications,
    ended: oneshot::Receiver<io::Result<()>>,
}

pub(crate) fn mount(
    path: &Path,
    source: &str,
    adapter: Adapter,
    notifications: Notifications,
) -> io::Result<Mounted> {
    let mut options = Config::default();
    options.mount_options = vec![
        MountOption::FSName(source.to_owned()),
        // Not fuser's `Subtype`, which is not told to the kernel when root mounts.
        MountOption::CUSTOM("subtype=isotope".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoAtime,
        MountOption::NoDev,
        MountOption::NoSuid,
    ];
    options.n_threads = Some(THREADS);
    // QEMU runs as a user of its own; only root may let others in without asking fuse.conf.
    if rustix::process::geteuid().is_root() {
        options.acl = SessionACL::All;
    }
    let session = Session::new(adapter, path, &options)?;
    let notifier = session.notifier();
    // Before the first request: what changes from then on must reach the kernel.
    notifications.start(&notifier);
    let session = session.spawn().inspect_err(|_| notifications.close())?;
    widen_read_ahead(path);
    let (end, ended) = oneshot::channel();
    std::thread::spawn(move || {
        // The mount may have stopped waiting.
        let _ = end.send(session.join());
    });
    Ok(Mounted { path: path.to_owned(), notifications, ended })
}

/// The kernel asks for as much at once as the device's read-ahead allows; its default is 128 KiB.
fn widen_read_ahead(path: &Path) {
    let Some(device) = mountpoint::device(path) else { return };
    let setting = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = std::fs::write(&setting, (READ_REQUEST_BYTES >> 10).to_string()) {
        debug!(setting, %error, "read-ahead stays at the kernel's default");
    }
}

impl Mounted {
    /// Ends when somebody unmounts it from outside.
    pub(crate) async fn ended(&mut self) -> io::Result<()> {
        (&mut self.ended).await.unwrap_or(Ok(()))
    }

    /// Unmounts. Files that are open in it stay open until this process ends.
    pub(crate) async fn unmount(mut self) {
        if let Err(error) = mountpoint::detach(&self.path) {
            warn!(mountpoint = %self.path.display(), %error, "cannot unmount");
        }
        if tokio::time::timeout(JOIN_MAX, &mut self.ended).await.is_err() {
            warn!(mountpoint = %self.path.display(), "files were open in the mount; they are cut off");
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.notifications.close();
    }
}
