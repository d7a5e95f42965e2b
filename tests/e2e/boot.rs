//! QEMU boots ISOs from the mounted path, and over HTTP, and their banners are seen.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{World, eventually, text};
use crate::local;

/// Without KVM a boot loader takes some seconds to show itself.
const BANNER_MAX: Duration = Duration::from_secs(90);

/// Boots an ISO until its banner shows.
fn boots(world: &World, iso: &Path, banner: &str) {
    let drive = format!("file={},media=cdrom,readonly=on,format=raw", text(iso));
    machine_shows(world, &["-net", "none", "-boot", "d", "-drive", &drive], banner);
}

/// Runs a machine until a banner shows on its serial console.
fn machine_shows(world: &World, words: &[&str], banner: &str) {
    let console = world.path("console");
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-m", "256", "-nographic", "-no-reboot", "-monitor", "none"])
        .args(words)
        .arg("-serial")
        .arg(format!("file:{}", text(&console)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(world.path("qemu.log")).expect("a log"))
        .spawn()
        .expect("qemu-system-x86 is installed");
    let deadline = Instant::now() + BANNER_MAX;
    let seen = loop {
        let shown = fs::read(&console).unwrap_or_default();
        if String::from_utf8_lossy(&shown).contains(banner) {
            break Ok(());
        }
        if Instant::now() > deadline || qemu.try_wait().expect("a child").is_some() {
            let log = fs::read_to_string(world.path("qemu.log")).unwrap_or_default();
            break Err(format!("{}\n{log}", String::from_utf8_lossy(&shown)));
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    qemu.kill().expect("killed");
    qemu.wait().expect("gone");
    assert_eq!(seen, Ok(()), "no {banner:?} on the console");
}

#[test]
fn qemu_boots_real_isos_from_the_mount() {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    for iso in ["/usr/lib/ipxe/ipxe.iso", "/usr/lib/grub-rescue/grub-rescue-cdrom.iso"] {
        let name = Path::new(iso).file_name().expect("a name");
        fs::copy(iso, pool.join("iso").join(name)).expect("the packages ipxe and grub-rescue-pc");
    }
    let (_up, _, path) = world.up(&[&pool]);
    fs::create_dir(path.join("boot")).expect("made");
    fs::rename(path.join("other/ipxe.iso"), path.join("boot/net.iso")).expect("moved");
    boots(&world, &path.join("boot/net.iso"), "iPXE initialising devices");
    boots(&world, &path.join(".views/flat/grub-rescue-cdrom.iso"), "GRUB");
    // The kernel read them: the mount saw no byte.
    let reads = local::reads(&path);
    assert!(reads["opens_passed_through"].as_u64() >= Some(2), "{reads}");
    assert_eq!(reads["bytes_from_hosts"], 0, "{reads}");
}

#[test]
fn ipxe_boots_an_iso_over_http() {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    let iso = "/usr/lib/grub-rescue/grub-rescue-cdrom.iso";
    fs::copy(iso, pool.join("iso/grub.iso")).expect("the package grub-rescue-pc");
    let (_catalog, url) = world.catalog();
    let _agent = world.agent("host", &url, &[&pool]);
    eventually("the image", || world.json(&url, &["info", "/other/grub.iso"]).is_object());
    // At the agent: iPXE follows no redirect of a disk.
    let signed = world.json(&url, &["url", "--agent", "/other/grub.iso"]);
    let signed = signed["url"].as_str().expect("a URL");
    // By that address QEMU's own network reaches this host's loopback.
    let signed = signed.replace("127.0.0.1", "10.0.2.2");
    let scripts = world.make_dir("tftp");
    fs::write(scripts.join("boot.ipxe"), format!("#!ipxe\nsanboot {signed}\n")).expect("written");
    let network = format!("user,id=net,tftp={},bootfile=boot.ipxe", text(&scripts));
    let words = ["-boot", "n", "-netdev", &network, "-device", "e1000,netdev=net"];
    machine_shows(&world, &words, "GNU GRUB");
}
