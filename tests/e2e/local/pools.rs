//! Pools on file systems of several kinds: those that the kernel takes files of, and one that it
//! does not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{LEN, count, opens, passes_through, reads};
use crate::harness::{World, eventually, holds, pattern, text, write_image};

fn mounts(kind: &str, options: &str, path: &Path) {
    let output = Command::new("mount").args(["-t", kind, kind, "-o", options, text(path)]).output();
    let output = output.expect("mount runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

impl World {
    /// A tmpfs, on which others may be stacked.
    fn tmpfs(&self, name: &str) -> PathBuf {
        let path = self.make_dir(name);
        self.unmount_in_the_end(&path);
        mounts("tmpfs", "size=64m", &path);
        path
    }

    /// An overlayfs above a directory, its own layer in a directory of `upper`.
    fn overlay(&self, name: &str, lower: &Path, upper: &Path) -> PathBuf {
        let path = self.make_dir(name);
        let [data, work] = ["data", "work"].map(|it| upper.join(format!("{name}-{it}")));
        for dir in [&data, &work] {
            fs::create_dir(dir).expect("made");
        }
        self.unmount_in_the_end(&path);
        let (lower, data, work) = (lower.display(), data.display(), work.display());
        mounts("overlay", &format!("lowerdir={lower},upperdir={data},workdir={work}"), &path);
        path
    }
}

fn passes_through_from(world: &World, pool: &Path) {
    let (_up, _, mount) = world.up(&[pool]);
    let image = mount.join("other/a.iso");
    passes_through(&mount, &image);
    holds(&image, &pattern("a", LEN));
    assert_eq!(count(&mount, "/bytes_from_hosts"), 0, "{}", reads(&mount));
    fs::remove_file(&image).expect("removed");
    eventually("its file is gone", || !pool.join("iso/a.iso").exists());
}

#[test]
fn a_pool_on_tmpfs_passes_through() {
    let world = World::new();
    let pool = world.tmpfs("isos");
    write_image(&pool, "a.iso", &pattern("a", LEN));
    passes_through_from(&world, &pool);
}

#[test]
fn a_pool_on_overlayfs_passes_through() {
    let world = World::new();
    let lower = world.tmpfs("lower");
    write_image(&lower, "a.iso", &pattern("a", LEN));
    let pool = world.overlay("isos", &lower, &world.tmpfs("upper"));
    passes_through_from(&world, &pool);
}

#[test]
fn a_pool_that_is_stacked_too_high_is_read_through_the_mount() {
    let world = World::new();
    let lower = world.tmpfs("lower");
    write_image(&lower, "a.iso", &pattern("a", LEN));
    let upper = world.tmpfs("upper");
    let middle = world.overlay("middle", &lower, &upper);
    let pool = world.overlay("isos", &middle, &upper);
    let (_up, _, mount) = world.up(&[&pool]);
    let image = mount.join("other/a.iso");
    eventually("the kernel is asked", || {
        holds(&image, &pattern("a", LEN));
        count(&mount, "/opens_ordinary/refused_by_kernel") > 0
    });
    assert_eq!(opens(&mount).0, 0, "{}", reads(&mount));
}
