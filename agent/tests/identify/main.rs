//! Identification of real images: some that Debian ships, and some made here by the tools that
//! everybody makes them with.

mod made;
mod mutations;

use std::fs::{self, File};
use std::path::Path;

use isotope_agent::identify::{Databases, Identity, identify_source};
use isotope_proto::facts::{Boot, Extensions, PartitionTable};
use isotope_proto::image::ImageFormat;

use crate::made::{BRIDGE_FILES, bridge, make_iso, run, write_machine};

fn identify(path: &Path) -> Identity {
    let name = path.file_name().expect("a name").to_str().expect("text");
    identify_as(path, name)
}

fn identify_as(path: &Path, name: &str) -> Identity {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let size = file.metadata().expect("a size").len();
    identify_source(&file, size, name, &Databases::none())
}

fn identify_by(databases: &Databases, path: &Path) -> Identity {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let size = file.metadata().expect("a size").len();
    identify_source(&file, size, "a.iso", databases)
}

#[test]
fn debians_ipxe_boots_and_is_whole() {
    let ipxe = identify(Path::new("/usr/lib/ipxe/ipxe.iso"));
    assert_eq!(ipxe.format, ImageFormat::Iso);
    assert_eq!(ipxe.facts.volume_label, "ISOIMAGE");
    assert_eq!(ipxe.facts.volume_size_bytes, 1_730_560);
    assert!(ipxe.facts.boot.bios, "{:?}", ipxe.facts);
    assert_eq!(ipxe.facts.problem, None);
    assert_eq!(ipxe.os.distribution, "ipxe");
    let renamed = identify_as(Path::new("/usr/lib/ipxe/ipxe.iso"), "boot.iso");
    assert_eq!(renamed.os.distribution, "ipxe");
}

#[test]
fn debians_grub_rescue_is_a_hybrid() {
    let grub = identify(Path::new("/usr/lib/grub-rescue/grub-rescue-cdrom.iso"));
    assert_eq!(grub.format, ImageFormat::Iso);
    assert!(grub.facts.boot.bios, "{:?}", grub.facts);
    assert!(grub.facts.extensions.rock_ridge);
    assert_eq!(grub.facts.partitions, Some(PartitionTable::Mbr));
    assert_eq!(grub.facts.problem, None);
    assert_eq!(grub.os.distribution, "grub");
}

#[test]
fn what_a_made_iso_was_given_is_read_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let info = "Debian GNU/Linux 12.5.0 \"Bookworm\" - Official amd64 NETINST\n";
    let ids = ["-V", "Label 1", "-sysid", "SYS", "-publisher", "P & CO", "-A", "APP", "-J", "-R"];
    let iso = make_iso(dir.path(), &[(".disk/info", info)], &ids);
    let Identity { format, os, facts } = identify(&iso);
    assert_eq!(format, ImageFormat::Iso);
    assert_eq!([&*facts.volume_label, &facts.system_id], ["Label 1", "SYS"]);
    assert_eq!([&*facts.publisher_id, &facts.application_id], ["P & CO", "APP"]);
    let extensions = Extensions { joliet: true, rock_ridge: true, udf: false };
    assert_eq!((facts.extensions, facts.boot), (extensions, Boot::default()));
    assert_eq!(facts.volume_size_bytes, fs::metadata(&iso).expect("there").len());
    assert_eq!((facts.problem, facts.partitions), (None, None));
    assert_eq!([&*os.distribution, &os.version, &os.arch], ["debian", "12.5.0", "x86_64"]);
}

#[test]
fn markers_are_found_under_each_kind_of_names() {
    let files = [("Sources/Install.wim", "x"), ("readme.txt", "")];
    for arguments in [&["-J"][..], &["-R"], &["-no-pad"], &["-J", "-R", "-iso-level", "3"]] {
        let dir = tempfile::tempdir().expect("a directory");
        let iso = make_iso(dir.path(), &files, arguments);
        let found = identify(&iso);
        assert_eq!(found.os.distribution, "windows", "{arguments:?}: {found:?}");
    }
}

#[test]
fn files_of_windows_media_are_found_in_udf() {
    let dir = tempfile::tempdir().expect("a directory");
    let iso = bridge(dir.path());
    let found = identify(&iso);
    assert!(found.facts.extensions.udf);
    assert_eq!(found.facts.volume_label, "BRIDGE");
    let markers: Vec<_> = found.facts.markers.iter().map(|it| &*it.path).collect();
    assert_eq!(markers, BRIDGE_FILES.map(|(path, _)| path), "{found:?}");
    assert_eq!(found.facts.markers[0].text, "Fedora 40 x86_64");
    assert_eq!(found.facts.problem, None);
}

#[test]
fn udf_alone_is_a_disc_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("made.iso");
    for revision in ["1.02", "2.01"] {
        File::create(&path).and_then(|it| it.set_len(4 << 20)).expect("made");
        let at = path.to_str().expect("text");
        let format = ["--blocksize=2048", "--media-type=hd", "--udfrev", revision];
        run("mkudffs", &[&format[..], &["--label=TrueNAS", at]].concat());
        let found = identify_as(&path, "x.iso");
        assert_eq!(found.format, ImageFormat::Iso, "{revision}");
        assert_eq!(found.facts.volume_label, "TrueNAS", "{revision}: {found:?}");
        assert_eq!((found.os.distribution.as_str(), found.facts.problem), ("truenas", None));
    }
}

#[test]
fn an_appliance_tells_its_machine_and_that_it_is_cut_off() {
    let dir = tempfile::tempdir().expect("a directory");
    write_machine(dir.path());
    let ova = dir.path().join("web.ova");
    let [root, at] = [dir.path(), &ova].map(|it| it.to_str().expect("text"));
    for format in ["ustar", "gnu", "pax"] {
        let format = format!("--format={format}");
        run("tar", &["-C", root, &format, "-cf", at, "web.ovf", "web.vmdk"]);
        let found = identify(&ova);
        assert_eq!((found.format, found.facts.problem), (ImageFormat::Ova, None), "{format}");
        let machine = found.facts.appliance.expect("described");
        assert_eq!((&*machine.name, &*machine.os), ("web", "Debian GNU/Linux 11 (64-bit)"));
        assert_eq!(machine.disks[0].name, "web.vmdk");
        assert_eq!(machine.disks[0].capacity_bytes, 8 << 30);
        assert_eq!([&*found.os.distribution, &found.os.version], ["debian", "11"]);
    }
    let alone = dir.path().join("alone.ova");
    run("tar", &["-C", root, "-cf", alone.to_str().expect("text"), "web.ovf"]);
    let lacks = identify(&alone).facts.problem;
    assert_eq!(lacks.as_deref(), Some("it lacks web.vmdk, of which it speaks"));
    let lies = identify_as(&ova, "web.iso").facts.problem;
    assert_eq!(lies.as_deref(), Some("called .iso, but is an OVA"));
    File::options().write(true).open(&ova).and_then(|it| it.set_len(100_000)).expect("cut");
    let cut = identify(&ova).facts.problem.expect("flagged");
    assert!(cut.starts_with("truncated: ") && cut.ends_with(" 100000 are there"), "{cut}");
}

#[test]
fn the_machines_osinfo_db_is_asked_first() {
    let databases = Databases::open(&["/usr/share/osinfo".into()]);
    assert!(databases.version().starts_with("osinfo-db "), "{}", databases.version());
    let check = |label: &str, expected: [&str; 4]| {
        let dir = tempfile::tempdir().expect("a directory");
        let iso = make_iso(dir.path(), &[], &["-V", label]);
        let Identity { os, facts, .. } = identify_by(&databases, &iso);
        let first = facts.candidates.first().unwrap_or_else(|| panic!("{label}"));
        let found = [&*first.name, &os.distribution, &os.version, &os.arch];
        assert_eq!(found, expected, "{label}: {:?}", facts.candidates);
    };
    check("Debian 11.5.0 amd64 n", ["Debian 11", "debian", "11.5.0", "x86_64"]);
    check("Debian 12.5.0 amd64 n", ["Debian 12.5.0", "debian", "12.5.0", "x86_64"]);
    check("Fedora-S-dvd-x86_64-36", ["Fedora Linux 36", "fedora", "36", "x86_64"]);
}

#[test]
fn a_truncated_image_is_flagged() {
    let dir = tempfile::tempdir().expect("a directory");
    let iso = make_iso(dir.path(), &[("data", &"x".repeat(1 << 20))], &[]);
    let declared = fs::metadata(&iso).expect("there").len();
    File::options().write(true).open(&iso).and_then(|it| it.set_len(1_000_000)).expect("cut");
    let expected = format!("truncated: {declared} bytes are declared, 1000000 are there");
    assert_eq!(identify(&iso).facts.problem, Some(expected));
}

#[test]
fn a_name_that_lies_is_flagged() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = dir.path().join("disk");
    let make = |format: &str| {
        let _ = fs::remove_file(&disk);
        run("qemu-img", &["create", "-q", "-f", format, disk.to_str().expect("text"), "7M"]);
    };
    for (format, expected, size) in [
        ("qcow2", ImageFormat::Qcow2, 7 << 20),
        ("vmdk", ImageFormat::Vmdk, 7 << 20),
        ("vhdx", ImageFormat::Vhdx, 7 << 20),
        ("vdi", ImageFormat::Vdi, 7 << 20),
        ("vpc", ImageFormat::Vhd, 7_361_536),
    ] {
        make(format);
        let found = identify_as(&disk, "debian.iso");
        assert_eq!(found.format, expected);
        let flagged = found.facts.problem.as_deref().expect("flagged");
        assert_eq!(flagged, format!("called .iso, but is a {expected} disk image"));
        assert!(found.facts.virtual_size_bytes.abs_diff(size) < 1 << 20, "{format}: {found:?}");
        assert_eq!(identify_as(&disk, "debian.img").facts.problem, None);
    }
}
