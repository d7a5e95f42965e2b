//! Proxmox VE, replayed (`proxmox.pl` has the calls): a storage of type `dir` on the view that is made
//! for it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::harness::programs::limited;
use crate::harness::{World, eventually, holds, pattern, text, write_image};

/// A storage on the view of a mount.
struct Storage {
    script: PathBuf,
    mount: PathBuf,
    path: PathBuf,
}

impl Storage {
    fn new(world: &World, mount: &Path) -> Self {
        let script = world.path("proxmox.pl");
        fs::write(&script, include_str!("proxmox.pl")).expect("written");
        Self { script, mount: mount.to_owned(), path: mount.join(".views/proxmox") }
    }

    fn output(&self, words: &[&str]) -> Output {
        let mut perl = Command::new("perl");
        perl.args([text(&self.script), text(&self.mount), text(&self.path)]).args(words);
        limited(60, &perl).output().expect("perl runs")
    }

    /// What it prints.
    #[track_caller]
    fn does(&self, words: &[&str]) -> String {
        let output = self.output(words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{words:?}: {said}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// What it says as it fails.
    #[track_caller]
    fn refuses(&self, words: &[&str], said: &str) {
        let output = self.output(words);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code().is_some_and(|it| it != 0) && text.contains(said), "{text}");
    }

    /// Volume ids and sizes.
    #[track_caller]
    fn list(&self, kind: &str) -> BTreeMap<String, u64> {
        let shown = self.does(&["list", kind]);
        let lines = shown.lines().map(|it| it.rsplit_once(' ').expect("an id and a size"));
        lines.map(|(id, size)| (id.to_owned(), size.parse().expect("a number"))).collect()
    }
}

fn volumes<const N: usize>(volumes: [(&str, u64); N]) -> BTreeMap<String, u64> {
    volumes.map(|(id, size)| (id.to_owned(), size)).into()
}

#[test]
fn proxmox_activates_and_lists_a_storage() {
    let world = World::new();
    let names = ["debian 12, first.iso", "Weiß (x64).ISO", "x/a~1.img", "b@home.ova"];
    let pool = world.pool("isos", &names);
    write_image(&pool, "same/debian 12, first.iso", &pattern("same", 5000));
    let (up, _, mount) = world.up(&[&pool]);
    let storage = Storage::new(&world, &mount);
    let before = mount.metadata().expect("there").ino();
    // Each of its daemons does so every ten seconds.
    for _ in 0..3 {
        assert_eq!(storage.does(&["activate"]), "");
    }
    let room = storage.does(&["status"]);
    let [block, blocks, available]: [u64; 3] = room
        .split_whitespace()
        .map(|it| it.parse().expect("a number"))
        .collect::<Vec<_>>()
        .try_into()
        .expect("three numbers");
    assert!(block * blocks > 1 << 20 && available <= blocks, "{room}");
    let isos = storage.list("iso");
    let first = isos.iter().filter(|(id, _)| id.starts_with("isotope:iso/debian_12__first"));
    let mut sizes: Vec<u64> = first.map(|(_, size)| *size).collect();
    sizes.sort_unstable();
    assert_eq!((isos.len(), &sizes[..]), (4, &[5000, 300_000][..]), "{isos:?}");
    assert_eq!(isos.get("isotope:iso/Wei___x64_.ISO"), Some(&300_000), "{isos:?}");
    assert_eq!(isos.get("isotope:iso/a_1.img"), Some(&300_000), "{isos:?}");
    assert_eq!(storage.list("import"), volumes([("isotope:import/b_home.ova", 300_000)]));
    for kind in ["iso", "import"] {
        for (volume, size) in storage.list(kind) {
            let info = storage.does(&["info", &volume]);
            let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
            // qemu-img counts in sectors.
            assert_eq!(info["virtual-size"], size.next_multiple_of(512), "{info}");
        }
    }
    // A machine's disk cannot be made there, and nothing is left of the attempt.
    storage.refuses(&["allocate", "100"], "Operation not permitted");
    assert_eq!(fs::read_dir(storage.path.join("images")).expect("a listing").count(), 0);
    assert_eq!(mount.metadata().expect("there").ino(), before);

    assert_eq!(up.stop(), 0);
    assert_eq!(storage.does(&["status"]), "offline\n");
    storage.refuses(&["activate"], "is expected to be a mount point but is not mounted");
    assert_eq!(fs::read_dir(&mount).expect("a listing").count(), 0, "nothing was made beneath");
}

#[test]
fn proxmox_stores_and_removes_images() {
    let world = World::new();
    let pool = world.pool("isos", &["old.iso"]);
    let (_up, _, mount) = world.up(&[&pool]);
    let storage = Storage::new(&world, &mount);
    let bytes = pattern("new", 300_000);
    let upload = world.path("pveupload-1a");
    fs::write(&upload, &bytes).expect("written");
    storage.does(&["upload", "iso", text(&upload), "C:\\my isos\\new image.iso"]);
    let expected = [("isotope:iso/new_image.iso", 300_000), ("isotope:iso/old.iso", 300_000)];
    assert_eq!(storage.list("iso"), volumes(expected));
    holds(mount.join("incoming/new_image.iso"), &bytes);
    storage.does(&["upload", "import", text(&upload), "appliance.ova"]);
    assert_eq!(storage.list("import"), volumes([("isotope:import/appliance.ova", 300_000)]));

    // It overwrites, here an image that is elsewhere in the library.
    let longer = pattern("longer", 400_000);
    fs::write(&upload, &longer).expect("written");
    storage.does(&["upload", "iso", text(&upload), "old.iso"]);
    eventually("the new one", || storage.list("iso").get("isotope:iso/old.iso") == Some(&400_000));
    holds(mount.join("other/old.iso"), &longer);

    let url = format!("file://{}", text(&upload));
    let sum = Command::new("sha256sum").arg(&upload).output().expect("sha256sum runs");
    let sum = String::from_utf8(sum.stdout).expect("text")[..64].to_owned();
    storage.does(&["download", "iso", &url, "fetched.iso", &sum]);
    holds(storage.path.join("template/iso/fetched.iso"), &longer);
    storage.refuses(&["download", "iso", &url, "fetched.iso", &sum], "refusing to override");
    let wrong = "0".repeat(64);
    storage.refuses(&["download", "iso", &url, "wrong.iso", &wrong], "checksum mismatch");
    storage.refuses(&["download", "iso", "file:///none", "none.iso", &sum], "curl failed");
    storage.refuses(&["upload", "iso", text(&upload), "page.html"], "wrong file extension");
    storage.refuses(&["upload", "iso", "/none", "none.iso"], "import failed");
    let incoming = || {
        let entries = fs::read_dir(mount.join("incoming")).expect("a listing");
        let mut names: Vec<_> = entries.map(|it| it.expect("an entry").file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(incoming(), ["appliance.ova", "fetched.iso", "new_image.iso"], "nothing half");

    for volume in storage.list("iso").keys() {
        storage.does(&["remove", volume]);
    }
    assert_eq!(storage.list("iso"), volumes([]));
    storage.refuses(&["remove", "isotope:iso/old.iso"], "does not exist");
    // It tried to remove the directory, too.
    storage.does(&["activate"]);
    storage.does(&["upload", "iso", text(&upload), "again.iso"]);
    assert_eq!(storage.list("iso"), volumes([("isotope:iso/again.iso", 400_000)]));
}

#[test]
fn an_upload_that_finds_no_room_says_so_and_leaves_nothing() {
    let world = World::new();
    let volume = world.small_pool("small", 8);
    let (_up, _, mount) = world.up(&[&volume]);
    let storage = Storage::new(&world, &mount);
    let upload = world.path("upload");
    fs::write(&upload, pattern("big", 12 << 20)).expect("written");
    storage.refuses(&["upload", "iso", text(&upload), "big.iso"], "No space left on device");
    assert_eq!(storage.list("iso"), volumes([]));
    fs::write(&upload, pattern("small", 1 << 20)).expect("written");
    // What was written of the other one is freed a moment later.
    let words = ["upload", "iso", text(&upload), "small.iso"];
    eventually("room for a small one", || storage.output(&words).status.success());
    assert_eq!(storage.list("iso"), volumes([("isotope:iso/small.iso", 1 << 20)]));
}
