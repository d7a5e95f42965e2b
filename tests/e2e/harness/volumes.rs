//! Small volumes: file systems in files, which can be full, read-only, or fail.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::programs::done;
use super::{World, text};

const MIB: u64 = 1 << 20;

/// How a file system may be used.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Access {
    ReadOnly,
    ReadWrite,
}

impl World {
    /// A pool on an ext4 file system of its own. Its loop device goes when it is unmounted.
    pub(crate) fn small_pool(&self, name: &str, size_mib: u64) -> PathBuf {
        let image = self.path(&format!("{name}.ext4"));
        let file = File::create_new(&image).expect("a volume's name is used once");
        file.set_len(size_mib * MIB).expect("room for a volume");
        done(Command::new("mkfs.ext4").args(["-q", "-F", text(&image)]));
        let path = self.make_dir(name);
        self.unmount_in_the_end(&path);
        done(Command::new("mount").args(["-o", "loop", text(&image), text(&path)]));
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
