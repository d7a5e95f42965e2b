//! Pool files that something changes while the catalogue does not look.

use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use super::{LEN, all_closed, count, opens, passes_through, reads};
use crate::harness::{World, eventually, holds, pattern, write_image};

#[test]
fn a_file_that_was_touched_is_passed_through_again_when_it_was_read() {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    write_image(&pool, "a.iso", &pattern("a", LEN));
    let (_up, url, mount) = world.up(&[&pool]);
    let image = mount.join("other/a.iso");
    let hashed = || rustix::fs::getxattr(&image, "user.isotope.sha256", &mut [0; 128]).is_ok();
    eventually("it is hashed", hashed);
    passes_through(&mount, &image);
    let open = File::open(&image).expect("opened");
    // Its ctime alone moves.
    let file = pool.join("iso/a.iso");
    fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("touched");
    let mut some = [0; 16];
    open.read_exact_at(&mut some, 0).expect("who has it open reads on");
    let passed = count(&mount, "/opens_passed_through");
    drop(File::open(&image).expect("and so does who joins"));
    assert_eq!(count(&mount, "/opens_passed_through"), passed + 1, "{}", reads(&mount));
    drop(open);
    all_closed(&mount);
    // From the next first open on it is read through the mount; the agent is quick to hash it again.
    eventually("one who comes before that", || {
        all_closed(&mount);
        fs::set_permissions(&file, Permissions::from_mode(0o644)).expect("touched");
        holds(&image, &pattern("a", LEN));
        count(&mount, "/opens_ordinary/touched") > 0
    });
    all_closed(&mount);
    assert!(count(&mount, "/bytes_from_hosts") >= LEN as u64, "{}", reads(&mount));
    world.json(&url, &["scan", "--wait", "hashed"]);
    passes_through(&mount, &image);
}

/// What one who opens the image now finds: its inode, and its bytes unless an error came.
fn found(image: &Path) -> Option<(u64, Vec<u8>)> {
    let mut file = File::open(image).ok()?;
    let ino = file.metadata().ok()?.ino();
    let mut all = Vec::new();
    file.read_to_end(&mut all).ok()?;
    Some((ino, all))
}

/// Changes a pool's file while somebody reads the image, or nobody does. Whoever opens it afterwards
/// finds the old bytes under the old inode, or the new ones under another, or hears of an error.
fn never_mixed(readers: usize, change: impl Fn(&Path)) {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    write_image(&pool, "a.iso", &pattern("a", LEN));
    let (_up, _, mount) = world.up(&[&pool]);
    let image = mount.join("other/a.iso");
    passes_through(&mount, &image);
    let open: Vec<_> = (0..readers).map(|_| File::open(&image).expect("opened")).collect();
    let before = fs::metadata(&image).expect("there").ino();
    let file = pool.join("iso/a.iso");
    change(&file);
    let new = fs::read(&file).expect("the new bytes");
    eventually("the new image", || match found(&image) {
        Some((ino, bytes)) if ino == before => {
            assert!(bytes == pattern("a", LEN), "new bytes under the old inode");
            false
        }
        Some((_, bytes)) => {
            assert!(bytes == new, "other bytes under the new inode");
            true
        }
        None => false,
    });
    drop(open);
}

fn replace(file: &Path) {
    let new = file.with_extension("part");
    fs::write(&new, pattern("new", LEN)).expect("written");
    fs::rename(&new, file).expect("renamed");
}

fn overwrite(file: &Path) {
    fs::write(file, pattern("new", LEN)).expect("written");
}

fn truncate(file: &Path) {
    File::options().write(true).open(file).expect("opened").set_len(100_000).expect("cut");
}

#[test]
fn a_file_replaced_by_a_rename_is_never_shown_under_the_old_inode() {
    never_mixed(0, replace);
    never_mixed(2, replace);
}

#[test]
fn a_file_changed_in_place_is_never_opened_under_the_old_inode() {
    never_mixed(0, overwrite);
    never_mixed(2, overwrite);
}

#[test]
fn a_file_cut_short_is_never_opened_under_the_old_inode() {
    never_mixed(0, truncate);
    never_mixed(2, truncate);
}

#[test]
fn a_file_that_is_gone_is_read_by_who_has_it_open() {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    write_image(&pool, "a.iso", &pattern("a", LEN));
    let (_up, _, mount) = world.up(&[&pool]);
    let image = mount.join("other/a.iso");
    passes_through(&mount, &image);
    let open = File::open(&image).expect("opened");
    fs::remove_file(pool.join("iso/a.iso")).expect("removed");
    eventually("it has left the library", || !image.exists());
    let mut all = vec![0; LEN];
    open.read_exact_at(&mut all, 0).expect("read on");
    assert!(all == pattern("a", LEN));
    assert!(opens(&mount).0 >= 2);
}
