//! What people and hypervisors read images with, from a host that has none of them: right to the
//! byte, and virtual machines that go on when a host of theirs is lost.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{MIB, hashed, pools};
use crate::harness::hosts::Network;
use crate::harness::programs::{limited, within};
use crate::harness::{World, eventually, text, walk};

const SECONDS: u64 = 90;
/// Without KVM a boot loader takes some seconds to show itself.
const BANNER_MAX: Duration = Duration::from_secs(120);
const CD: &str = "/usr/lib/grub-rescue/grub-rescue-cdrom.iso";

/// Reads a file in a manner of its own, and prints a hash of what it got.
const READERS: [(&str, &str); 6] = [
    ("mapped", "import mmap; m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); put(m[:])"),
    (
        "mapped backwards",
        "import mmap; m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); n = len(m)
parts = [m[max(0, i - 5000):i] for i in range(n, 0, -5000)]; put(b''.join(reversed(parts)))",
    ),
    (
        "sendfile",
        "r, w = os.pipe(); n = os.fstat(f.fileno()).st_size; at = 0
while at < n: k = os.sendfile(w, f.fileno(), at, min(n - at, 60000)); put(os.read(r, k)); at += k",
    ),
    (
        "direct",
        "import mmap; d = os.open(path, os.O_RDONLY | os.O_DIRECT); b = mmap.mmap(-1, 1 << 20)
while True:
    k = os.readv(d, [b])
    if k == 0: break
    put(b[:k])",
    ),
    (
        "sectors of a CD, seeking",
        "import random; random.seed(1); n = os.fstat(f.fileno()).st_size
places = list(range(0, n, 2048)); random.shuffle(places); got = {}
for at in places: got[at] = os.pread(f.fileno(), 2048, at)
put(b''.join(got[at] for at in sorted(got)))",
    ),
    (
        "by four threads",
        "import threading; n = os.fstat(f.fileno()).st_size; got = {}
def go(k):
    for at in range(k * 65536, n, 4 * 65536): got[at] = os.pread(f.fileno(), 65536, at)
all = [threading.Thread(target=go, args=(k,)) for k in range(4)]
[t.start() for t in all]; [t.join() for t in all]; put(b''.join(got[at] for at in sorted(got)))",
    ),
];

fn read_as(manner: &str, path: &Path) -> String {
    let script = format!(
        "import hashlib, os, sys\npath = sys.argv[1]\nh = hashlib.sha256(); put = h.update\nf = open(path, 'rb', buffering=0)\n{manner}\nprint(h.hexdigest())"
    );
    output(&["python3", "-c", &script, text(path)])
}

fn output(words: &[&str]) -> String {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    let output = limited(SECONDS, &command).output().expect("it runs");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn every_program_reads_another_hosts_image_to_the_byte() {
    let world = World::new();
    let network = Network::new(&world);
    let [catalog, a, c] = ["catalog", "a", "c"].map(|name| network.host(name));
    let pool = world.pool("isos", &[]);
    fs::copy(CD, pool.join("iso/grub.iso")).expect("the package grub-rescue-pc");
    let grub = pool.join("iso/grub.iso");
    // No multiple of anything.
    let odd = crate::harness::pattern("odd", 3 * MIB + 4321);
    crate::harness::write_image(&pool, "odd.iso", &odd);
    let disk = pool.join("iso/disk.img");
    let create = ["qemu-img", "create", "-q", "-f", "qcow2", text(&disk), "64M"];
    within(SECONDS, &create).expect_well();
    let (_catalog, url) = catalog.catalog();
    let _agent = a.agent(&url, &[&pool]);
    let (_mount, on_c) = c.mount(&url);
    eventually("the images", || walk(&on_c).iter().filter(|it| !it.ends_with('/')).count() == 3);
    let found = |name: &str| {
        let all = walk(&on_c);
        on_c.join(all.iter().find(|it| it.ends_with(name)).expect("the image"))
    };
    let [far_odd, far_grub, far_disk] = ["odd.iso", "grub.iso", "disk.img"].map(found);
    // Both before there are hashes and with them; the kernel's own copies are forgotten in between.
    for hashed_now in [false, true] {
        if hashed_now {
            c.json(&url, &["scan", "--wait", "hashed"]);
        }
        for (name, manner) in READERS {
            let drop = format!("if={}", text(&far_odd));
            within(SECONDS, &["dd", &drop, "iflag=nocache", "count=0"]).expect_well();
            assert_eq!(
                read_as(manner, &far_odd),
                read_as("put(f.read())", &pool.join("iso/odd.iso")),
                "{name}"
            );
        }
    }
    let sum = |path: &Path| output(&["sha256sum", text(path)])[..64].to_owned();
    assert_eq!(sum(&far_grub), sum(&grub));
    for copy in [&["cp", "--sparse=always"][..], &["rsync", "-a"], &["cp", "--reflink=auto"]] {
        let target = world.path("copy");
        within(SECONDS, &[copy, &[text(&far_grub), text(&target)]].concat()).expect_well();
        assert_eq!(sum(&target), sum(&grub), "{copy:?}");
        fs::remove_file(&target).expect("removed");
    }
    let contents =
        |path: &Path| output(&["xorriso", "-indev", text(path), "-find", "/", "-exec", "lsdl"]);
    assert_eq!(contents(&far_grub), contents(&grub));
    let info = |path: &Path| {
        let told = output(&["qemu-img", "info", "-U", "--output=json", text(path)]);
        let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
        (told["format"].clone(), told["virtual-size"].clone())
    };
    assert_eq!(info(&far_disk), info(&disk));
    assert_eq!(info(&far_grub), info(&grub));
}

#[derive(Debug, Clone, Copy)]
enum Firmware {
    Bios,
    Uefi,
}

impl Firmware {
    fn args(self) -> &'static [&'static str] {
        match self {
            Self::Bios => &[],
            // Of the package ovmf.
            Self::Uefi => &["-bios", "/usr/share/ovmf/OVMF.fd"],
        }
    }
}

/// A virtual machine with an ISO in its drive, and its serial console.
struct Machine {
    qemu: Child,
    console: std::path::PathBuf,
}

impl Machine {
    fn boot(world: &World, name: &str, iso: &Path, firmware: Firmware) -> Self {
        let console = world.path(name);
        // What it reads it reads from us, and not from a copy that the kernel has made before.
        let drive = format!("file={},media=cdrom,readonly=on,format=raw,cache=none", text(iso));
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-m", "256", "-nographic", "-net", "none", "-boot", "d", "-no-reboot"])
            .args(["-drive", &drive, "-monitor", "none", "-serial"])
            .arg(format!("file:{}", text(&console)))
            .args(firmware.args())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(world.path(&format!("{name}.log"))).expect("a log"))
            .spawn()
            .expect("qemu-system-x86 is installed");
        Self { qemu, console }
    }

    fn shows(&mut self, text: &str) -> bool {
        let shown = fs::read(&self.console).unwrap_or_default();
        assert!(matches!(self.qemu.try_wait(), Ok(None)), "it ended");
        String::from_utf8_lossy(&shown).contains(text)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

#[test]
fn machines_boot_one_image_and_survive_the_loss_of_one_of_its_hosts() {
    let world = World::new();
    let network = Network::new(&world);
    let [catalog, a, b, c] = ["catalog", "a", "b", "c"].map(|name| network.host(name));
    let pools = pools(&world);
    for pool in &pools {
        fs::copy(CD, pool.join("iso/grub.iso")).expect("the package grub-rescue-pc");
        // It boots both ways.
        fs::copy("/usr/lib/ipxe/ipxe.iso", pool.join("iso/ipxe.iso")).expect("the package ipxe");
    }
    let (_catalog, url) = catalog.catalog();
    let mut agents = [a.agent(&url, &[&pools[0]]), b.agent(&url, &[&pools[1]])].map(Some);
    let (_mount, on_c) = c.mount(&url);
    hashed(&c, &url, 2);
    let [grub, ipxe] = ["grub.iso", "ipxe.iso"].map(|name| on_c.join("other").join(name));
    eventually("the images", || grub.exists() && ipxe.exists());
    for lost in [0, 1] {
        let boot = |name: &str, iso, firmware| {
            Machine::boot(&world, &format!("{name}-{lost}"), iso, firmware)
        };
        let mut machines = [
            (boot("one", &grub, Firmware::Bios), "GRUB"),
            (boot("two", &grub, Firmware::Bios), "GRUB"),
            (boot("three", &ipxe, Firmware::Uefi), "iPXE initialising devices"),
        ];
        // While the firmware still looks for something to boot.
        std::thread::sleep(Duration::from_millis(700));
        agents[lost].take().expect("it runs").kill();
        let deadline = Instant::now() + BANNER_MAX;
        while !machines.iter_mut().all(|(it, banner)| it.shows(banner)) {
            assert!(Instant::now() < deadline, "no banner with host {lost} lost");
            std::thread::sleep(Duration::from_millis(100));
        }
        agents[lost] = Some([&a, &b][lost].agent(&url, &[&pools[lost]]));
        eventually("both hosts", || c.json(&url, &["scan"])["volumes_scanned"] == 2);
    }
}
