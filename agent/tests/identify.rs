//! Identification of real images: some that Debian ships, and some made here by the tools that
//! everybody makes them with.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use isotope_agent::identify::{Identity, identify_source};
use isotope_proto::facts::{Boot, Extensions, PartitionTable};
use isotope_proto::image::ImageFormat;

fn identify(path: &Path) -> Identity {
    let name = path.file_name().expect("a name").to_str().expect("text");
    identify_as(path, name)
}

fn identify_as(path: &Path, name: &str) -> Identity {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let size = file.metadata().expect("a size").len();
    identify_source(&file, size, name)
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect("the program is there");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}

/// Makes an ISO of some files by xorriso's `mkisofs` emulation.
fn make_iso(dir: &Path, files: &[(&str, &str)], arguments: &[&str]) -> PathBuf {
    let tree = dir.join("tree");
    for (path, text) in files {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, text).expect("written");
    }
    fs::create_dir_all(&tree).expect("made");
    let iso = dir.join("made.iso");
    let (tree, at) = (tree.to_str().expect("text"), iso.to_str().expect("text"));
    let fixed = ["-as", "mkisofs", "-quiet", "-o", at];
    run("xorriso", &[&fixed[..], arguments, &[tree]].concat());
    iso
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
