//! QEMU boots ISOs from the mounted path, and their banners are seen.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{World, text};
use crate::local;

/// Without KVM a boot loader takes some seconds to show itself.
const BANNER_MAX: Duration = Duration::from_secs(90);

/// Boots an ISO until its banner shows on the serial console.
fn boots(world: &World, iso: &Path, banner: &str) {
    let console = world.path("console");
    let drive = format!("file={},media=cdrom,readonly=on,format=raw", text(iso));
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-m", "256", "-nographic", "-net", "none", "-boot", "d", "-no-reboot"])
        .args(["-drive", &drive, "-monitor", "none", "-serial"])
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
