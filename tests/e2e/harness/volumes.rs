//! Small volumes: file systems in files, which can be full, read-only, or fail.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::programs::done;
use super::{World, text};

const MIB: u64 = 1 << 20;
/// The smallest that mkfs.btrfs makes is some less.
const BTRFS_MIB: u64 = 256;

/// How a file system may be used.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Access {
    ReadOnly,
    ReadWrite,
}

impl World {
    /// A pool on an ext4 file system of its own. Its loop device goes when it is unmounted.
    pub(crate) fn small_pool(&self, name: &str, size_mib: u64) -> PathBuf {
        self.pool_made_by(name, size_mib, &["mkfs.ext4", "-q", "-F"], "loop")
    }

    /// A pool that may hold that much. Of the file systems with quotas, btrfs is the one whose
    /// quotas hold for root, too.
    pub(crate) fn pool_with_quota(&self, name: &str, quota_mib: u64) -> PathBuf {
        let path = self.pool_made_by(name, BTRFS_MIB, &["mkfs.btrfs", "-q"], "loop,commit=1");
        done(Command::new("btrfs").args(["quota", "enable", text(&path)]));
        let limit = format!("{quota_mib}M");
        done(Command::new("btrfs").args(["qgroup", "limit", &limit, text(&path)]));
        path
    }

    fn pool_made_by(&self, name: &str, size_mib: u64, mkfs: &[&str], options: &str) -> PathBuf {
        let image = self.path(&format!("{name}.volume"));
        let file = File::create_new(&image).expect("a volume's name is used once");
        file.set_len(size_mib * MIB).expect("room for a volume");
        done(Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image));
        let path = self.make_dir(name);
        self.unmount_in_the_end(&path);
        done(Command::new("mount").args(["-o", options, text(&image), text(&path)]));
        fs::create_dir(path.join("iso")).expect("a directory");
        path
    }
}

pub(crate) fn remount(path: &Path, access: Access) {
    let option = match access {
        Access::ReadOnly => "remount,ro",
        Access::ReadWrite => "remount,rw",
    };
    done(Command::new("mount").args(["-o", option, text(path)]));
}

/// The file system finds an error in itself and takes no more writes, whoever has files open.
pub(crate) fn fail(path: &Path) {
    let options = ["-o", "remount,errors=remount-ro", text(path)];
    done(Command::new("mount").args(options));
    let found = Command::new("findmnt").args(["-no", "SOURCE", text(path)]).output();
    let device = String::from_utf8(found.expect("findmnt runs").stdout).expect("text");
    let name = Path::new(device.trim()).file_name().unwrap_or(OsStr::new("no device"));
    let trigger = Path::new("/sys/fs/ext4").join(name).join("trigger_fs_error");
    fs::write(&trigger, "1").unwrap_or_else(|error| panic!("{}: {error}", trigger.display()));
}
