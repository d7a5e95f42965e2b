//! The real libvirt, from Debian's `libvirt-daemon` and `libvirt-clients`: its daemon in the foreground
//! in a mount namespace, where its fixed directories are empty ones of its own; and virsh.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use super::libvirt::drop_pages;
use crate::harness::programs::limited;
use crate::harness::{Part, World, errno, eventually, holds, pattern, text, write_image};

/// Everything that it writes to is its own; the user that its machines run as is there.
const DAEMON: &str = r#"set -e
for dir in /run /var/lib /var/cache /var/log; do mount -t tmpfs tmpfs "$dir"; done
mount --bind "$1" /etc/libvirt
cp /etc/passwd /etc/group /etc/libvirt
if ! getent passwd libvirt-qemu >/dev/null; then
    echo 'libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin' >>/etc/libvirt/passwd
    echo 'libvirt-qemu:x:64055:' >>/etc/libvirt/group
fi
mount --bind /etc/libvirt/passwd /etc/passwd
mount --bind /etc/libvirt/group /etc/group
exec /usr/sbin/libvirtd --config /etc/libvirt/libvirtd.conf
"#;
/// It takes a part of a second to start, and a pool of a few images no longer.
const CALL_MAX_SECONDS: u64 = 60;

/// A running libvirtd.
struct Libvirt {
    uri: String,
    _daemon: Part,
}

impl Libvirt {
    fn start(world: &World) -> Self {
        let etc = world.make_dir("libvirt");
        let socket = world.path("libvirt-sock");
        let settings = [
            format!("unix_sock_dir = \"{}\"", world.dir.path().display()),
            "auth_unix_rw = \"none\"".to_owned(),
            "auth_unix_ro = \"none\"".to_owned(),
            "log_outputs = \"3:stderr\"".to_owned(),
        ];
        fs::write(etc.join("libvirtd.conf"), settings.join("\n")).expect("written");
        fs::write(etc.join("qemu.conf"), "security_driver = \"none\"\n").expect("written");
        let mut daemon = Command::new("unshare");
        daemon.args(["--mount", "--propagation", "private", "sh", "-c", DAEMON, "sh", text(&etc)]);
        let daemon = world.spawn("libvirtd.log", daemon);
        let uri = format!("qemu+unix:///system?socket={}", text(&socket));
        let libvirt = Self { uri, _daemon: daemon };
        eventually("libvirt-daemon and libvirt-clients are installed, and it answers", || {
            socket.exists() && libvirt.output(&["pool-list"]).status.success()
        });
        libvirt
    }

    fn output(&self, words: &[&str]) -> Output {
        let mut virsh = Command::new("virsh");
        virsh.args(["--connect", &self.uri]).args(words);
        limited(CALL_MAX_SECONDS, &virsh).output().expect("virsh runs")
    }

    #[track_caller]
    fn does(&self, words: &[&str]) -> String {
        let output = self.output(words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {said}");
        String::from_utf8(output.stdout).expect("text")
    }

    #[track_caller]
    fn refuses(&self, words: &[&str], why: &str) {
        let output = self.output(words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(why), "{words:?}: {output:?}");
    }

    /// The names of a pool's volumes.
    #[track_caller]
    fn volumes(&self, pool: &str) -> Vec<String> {
        let list = self.does(&["vol-list", pool]);
        let names = list.lines().skip(2).filter_map(|line| line.split_whitespace().next());
        names.map(str::to_owned).collect()
    }
}

#[test]
fn libvirt_shows_the_library_as_a_pool() {
    let world = World::new();
    // Its helpers run as others.
    fs::set_permissions(world.dir.path(), PermissionsExt::from_mode(0o755)).expect("set");
    let pool = world.pool("isos", &["debian 12.iso", "x/a.iso", "disk.ova"]);
    write_image(&pool, "empty.iso", b"");
    let (up, _, mount) = world.up(&[&pool]);
    let libvirt = Libvirt::start(&world);
    let connect = ["connect", "libvirt", text(&mount), "--connect", &libvirt.uri, "--apply"];
    // Again, it changes nothing.
    for _ in 0..2 {
        let applied = world.run(&connect);
        assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    }
    let info = libvirt.does(&["pool-info", "isotope"]);
    for line in ["running", "Persistent:     yes", "Autostart:      yes"] {
        assert!(info.contains(line), "{line}: {info}");
    }
    assert_eq!(libvirt.volumes("isotope"), ["a.iso", "debian_12.iso", "disk.ova", "empty.iso"]);
    let xml = libvirt.does(&["vol-dumpxml", "debian_12.iso", "--pool", "isotope"]);
    let path = format!("<path>{}/.views/flat/debian_12.iso</path>", mount.display());
    for part in ["<capacity unit='bytes'>300000</capacity>", "<format type='raw'/>", &path] {
        assert!(xml.contains(part), "{part}: {xml}");
    }
    let copy = world.path("copy");
    libvirt.does(&["vol-download", "a.iso", text(&copy), "--pool", "isotope"]);
    holds(&copy, &pattern("x/a.iso", 300_000));

    // What comes and goes is there after a refresh.
    fs::write(mount.join("new.iso"), pattern("new", 50_000)).expect("stored");
    fs::remove_file(mount.join("x/a.iso")).expect("removed");
    libvirt.does(&["pool-refresh", "isotope"]);
    assert_eq!(libvirt.volumes("isotope"), ["debian_12.iso", "disk.ova", "empty.iso", "new.iso"]);

    nothing_is_changed_by_libvirt(&libvirt, &world, &mount);

    // Without a mount there is no pool, and no directory is made for one.
    libvirt.does(&["pool-destroy", "isotope"]);
    assert_eq!(up.stop(), 0);
    // The daemon's namespace may still have the mount, with nobody behind it.
    libvirt.refuses(&["pool-start", "isotope"], "cannot open directory");
    assert_eq!(fs::read_dir(&mount).expect("a listing").count(), 0);
}

#[test]
fn a_pool_stays_while_all_hosts_are_away() {
    let world = World::new();
    fs::set_permissions(world.dir.path(), PermissionsExt::from_mode(0o755)).expect("set");
    let pools = ["one", "two"].map(|name| world.pool(name, &[&format!("{name}.iso")]));
    let (catalog, url) = world.catalog();
    let agents = ["a", "b"].iter().zip(&pools).map(|(name, pool)| world.agent(name, &url, &[pool]));
    let agents: Vec<_> = agents.collect();
    let (part, mount) = world.mount("mnt", &url);
    let flat = mount.join(".views/flat");
    eventually("both images", || fs::read_dir(&flat).expect("a listing").count() == 2);
    let connected = |libvirt: &Libvirt| {
        let words = ["connect", "libvirt", text(&mount), "--connect", &libvirt.uri, "--apply"];
        world.run(&words).status.success()
    };
    let libvirt = Libvirt::start(&world);
    assert!(connected(&libvirt));
    let stays = |manner: &str| {
        drop_pages(&world, &flat);
        libvirt.does(&["pool-refresh", "isotope"]);
        assert_eq!(libvirt.volumes("isotope"), ["one.iso", "two.iso"], "{manner}");
    };
    // It has read what it wants to know of each image.
    stays("with all hosts");
    agents.into_iter().for_each(Part::kill);
    stays("without a host");
    // libvirtd keeps a namespace of its own, in which a mount that ends would go on; so it ends first.
    libvirt.does(&["pool-destroy", "isotope"]);
    drop(libvirt);
    assert_eq!(part.stop(), 0);
    let (part, _) = world.mount("mnt", &url);
    let libvirt = Libvirt::start(&world);
    assert!(connected(&libvirt));
    assert_eq!(libvirt.volumes("isotope"), ["one.iso", "two.iso"], "a new mount");
    drop(libvirt);
    assert_eq!(part.stop(), 0);
    catalog.kill();
    let (_part, _) = world.mount("mnt", &url);
    let libvirt = Libvirt::start(&world);
    assert!(connected(&libvirt));
    assert_eq!(libvirt.volumes("isotope"), ["one.iso", "two.iso"], "without the catalogue");
}

#[test]
fn an_image_never_seen_fails_its_pool_until_its_host_is_back() {
    let world = World::new();
    fs::set_permissions(world.dir.path(), PermissionsExt::from_mode(0o755)).expect("set");
    let (near, far) = (world.pool("near", &["near.iso"]), world.pool("far", &["far.iso"]));
    let (_catalog, url) = world.catalog();
    let _near = world.agent("near", &url, &[&near]);
    let away = world.agent("far", &url, &[&far]);
    let (_part, mount) = world.mount("mnt", &url);
    let flat = mount.join(".views/flat");
    eventually("both images", || fs::read_dir(&flat).expect("a listing").count() == 2);
    away.kill();
    let libvirt = Libvirt::start(&world);
    let connect = ["connect", "libvirt", text(&mount), "--connect", &libvirt.uri, "--apply"];
    assert!(!world.run(&connect).status.success());
    libvirt.refuses(&["pool-start", "isotope"], "Input/output error");
    let _far = world.agent("far", &url, &[&far]);
    eventually("it can be started", || world.run(&connect).status.success());
    assert_eq!(libvirt.volumes("isotope"), ["far.iso", "near.iso"]);
    let copy = world.path("copy");
    libvirt.does(&["vol-download", "near.iso", text(&copy), "--pool", "isotope"]);
    holds(&copy, &pattern("near.iso", 300_000));
}

/// A view takes no volumes and loses none; each attempt says why.
fn nothing_is_changed_by_libvirt(libvirt: &Libvirt, world: &World, mount: &Path) {
    let before = libvirt.volumes("isotope");
    let file = world.path("upload");
    fs::write(&file, pattern("upload", 50_000)).expect("written");
    let not_permitted = "Operation not permitted";
    for words in [
        &["vol-create-as", "isotope", "made.iso", "1M"][..],
        &["vol-create-as", "isotope", "made.img", "1M", "--format", "qcow2"],
        &["vol-delete", "new.iso", "--pool", "isotope"],
        &["vol-wipe", "new.iso", "--pool", "isotope"],
    ] {
        libvirt.refuses(words, not_permitted);
    }
    // libvirt 9 loses the error of a last write, and says that it has uploaded; its log has it.
    libvirt.output(&["vol-upload", "new.iso", text(&file), "--pool", "isotope"]);
    eventually("its write was refused", || {
        let log = world.log("libvirtd.log");
        log.lines().any(|it| it.contains("new.iso") && it.contains(not_permitted))
    });
    libvirt.does(&["pool-refresh", "isotope"]);
    assert_eq!(libvirt.volumes("isotope"), before);
    holds(mount.join("new.iso"), &pattern("new", 50_000));
    assert_eq!(errno(fs::remove_dir(mount.join(".views/flat"))), libc::EPERM);
}
