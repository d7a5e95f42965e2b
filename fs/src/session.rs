//! The life of one kernel mount: mounted, served by its threads, unmounted.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fuser::{Config, MountOption, Session, SessionACL};
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use crate::adapter::Adapter;
use crate::mountpoint;
use crate::notify::Notifications;
use crate::options::Others;
use crate::quick::WAITING_MAX;
use crate::{MountError, READ_REQUEST_BYTES};

/// Threads that take requests from the kernel: those that may wait for a moment, and as many as
/// there are processors to answer what memory knows.
const THREADS: usize = WAITING_MAX + 2;
/// An unmounted session ends at once unless somebody has files open in it.
const JOIN_MAX: Duration = Duration::from_secs(2);

pub(crate) struct Mounted {
    path: PathBuf,
    notifications: Notifications,
    ended: oneshot::Receiver<io::Result<()>>,
}

/// What the kernel is told of a mount.
#[derive(Debug, Clone)]
pub(crate) struct Manner {
    /// As the kernel's table shows it.
    pub(crate) source: String,
    pub(crate) read_only: bool,
    pub(crate) no_exec: bool,
    pub(crate) others: Others,
}

pub(crate) fn mount(
    path: &Path,
    manner: &Manner,
    adapter: Adapter,
    notifications: Notifications,
) -> Result<Mounted, MountError> {
    let failed = |error: io::Error| match error.kind() {
        // Of fusermount3 alone; root is refused nothing.
        io::ErrorKind::PermissionDenied if manner.others == Others::LetIn => {
            MountError::OthersRefused
        }
        _ => MountError::Mount { path: path.to_owned(), error },
    };
    let mut options = Config::default();
    options.mount_options = vec![
        MountOption::FSName(manner.source.clone()),
        // Not fuser's `Subtype`, which is not told to the kernel when root mounts.
        MountOption::CUSTOM("subtype=isotope".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoAtime,
        MountOption::NoDev,
        MountOption::NoSuid,
    ];
    options.n_threads = Some(THREADS);
    if manner.read_only {
        options.mount_options.push(MountOption::RO);
    }
    if manner.no_exec {
        options.mount_options.push(MountOption::NoExec);
    }
    options.acl = match manner.others {
        Others::LetIn => SessionACL::All,
        Others::KeptOut => SessionACL::Owner,
    };
    let session = Session::new(adapter, path, &options).map_err(failed)?;
    let notifier = session.notifier();
    // Before the first request: what changes from then on must reach the kernel.
    notifications.start(&notifier);
    let session = session.spawn().inspect_err(|_| notifications.close()).map_err(failed)?;
    if !rustix::process::geteuid().is_root() {
        info!("{}", of_a_user(manner.others));
    }
    widen_read_ahead(path);
    let (end, ended) = oneshot::channel();
    std::thread::spawn(move || {
        // The mount may have stopped waiting.
        let _ = end.send(session.join());
    });
    Ok(Mounted { path: path.to_owned(), notifications, ended })
}

/// What is different where somebody else than root mounts.
fn of_a_user(others: Others) -> &'static str {
    match others {
        Others::KeptOut => {
            "mounted for this user alone: other users, QEMU's own among them, cannot see it, and \
             reads go through this process, for passthrough in the kernel is root's"
        }
        Others::LetIn => {
            "mounted by a user, who lets others in: reads go through this process, for passthrough \
             in the kernel is root's"
        }
    }
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
