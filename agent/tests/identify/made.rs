//! Images made by the tools that everybody makes them with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect("the program is there");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}

/// Makes an ISO of some files by xorriso's `mkisofs` emulation.
pub(crate) fn make_iso(dir: &Path, files: &[(&str, &str)], arguments: &[&str]) -> PathBuf {
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

/// Files of a [`bridge`], which are there in UDF alone.
pub(crate) const BRIDGE_FILES: [(&str, &str); 2] =
    [(".treeinfo", "[general]\nname = Fedora 40\narch = x86_64\n"), ("sources/install.wim", "x")];

/// A disc in both formats, its files hidden from ISO 9660 as on media of Windows.
pub(crate) fn bridge(dir: &Path) -> PathBuf {
    let tree = dir.join("tree");
    fs::create_dir_all(tree.join("sources")).expect("made");
    for (path, text) in BRIDGE_FILES {
        fs::write(tree.join(path), text).expect("written");
    }
    let iso = dir.join("bridge.iso");
    let [tree, at] = [&tree, &iso].map(|it| it.to_str().expect("text"));
    let hidden = ["-hide", "install.wim", "-hide", "sources", "-hide", ".treeinfo"];
    let fixed = ["-quiet", "-udf", "-allow-leading-dots", "-V", "BRIDGE", "-o", at, tree];
    run("genisoimage", &[&hidden[..], &fixed].concat());
    iso
}

/// The members of an OVA.
pub(crate) fn write_machine(dir: &Path) {
    let ovf = "<Envelope><References><File id='f' href='web.vmdk'/></References>
        <DiskSection><Disk fileRef='f' capacity='8' capacityAllocationUnits='byte * 2^30'/>
        </DiskSection><VirtualSystem id='web'><OperatingSystemSection>
        <Description>Debian GNU/Linux 11 (64-bit)</Description></OperatingSystemSection>
        </VirtualSystem></Envelope>";
    fs::write(dir.join("web.ovf"), ovf).expect("written");
    fs::write(dir.join("web.vmdk"), vec![1; 1 << 20]).expect("written");
}
