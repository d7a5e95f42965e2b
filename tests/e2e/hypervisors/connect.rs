//! `isotope connect`: what it prints, and what it runs, with stand-ins for the hypervisors' tools that
//! write down how they were called.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::harness::{World, text};

/// Writes down its words, one a line, and what it reads; fails for the words that a file names, and
/// prints for others what a file holds.
const STAND_IN: &str = r#"#!/bin/sh
dir=${0%/*}
{ printf '%s' "${0##*/}"; printf ' [%s]' "$@"; echo; cat; } >>"$dir/calls"
case " $* " in *" $(cat "$dir/fails") "*) exit 1 ;; esac
cat "$dir/prints"
"#;

/// A directory with stand-ins for the tools, as PATH.
struct Tools(PathBuf);

impl Tools {
    fn new(world: &World, names: &[&str]) -> Self {
        let dir = world.make_dir(&format!("tools{}", names.len()));
        for name in names {
            let path = dir.join(name);
            fs::write(&path, STAND_IN).expect("written");
            fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("set");
        }
        let tools = Self(dir);
        tools.will("", "");
        tools
    }

    /// From now on they fail where the words are among theirs, and else print a text.
    fn will(&self, fail_at: &str, print: &str) {
        // Nothing is called so.
        let fails = if fail_at.is_empty() { "no such words" } else { fail_at };
        fs::write(self.0.join("fails"), fails).expect("written");
        fs::write(self.0.join("prints"), print).expect("written");
    }

    fn connect(&self, world: &World, words: &[&str]) -> Output {
        let path = format!("{}:/usr/bin:/bin", text(&self.0));
        let path = if self.0.ends_with("tools0") { text(&self.0).to_owned() } else { path };
        let mut command = world.command(&["connect"]);
        command.args(words).env("PATH", path).output().expect("the binary runs")
    }

    /// What was called since this was last asked.
    fn calls(&self) -> String {
        let path = self.0.join("calls");
        let calls = fs::read_to_string(&path).unwrap_or_default();
        fs::write(&path, "").expect("written");
        calls
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn expect_well(output: &Output) {
    assert!(output.status.success(), "{}", said(output));
}

#[track_caller]
fn expect_refusal(output: &Output, code: i32, why: &str) {
    assert_eq!(output.status.code(), Some(code), "{}", said(output));
    assert!(said(output).contains(why) && printed(output).is_empty(), "{}", said(output));
}

fn proxmox_call(word: &str, dir: &Path, name: &str, content: &str) -> String {
    let (add, path) = match word {
        "add" => (" [dir]", format!(" [--path] [{}/.views/proxmox]", dir.display())),
        _ => ("", String::new()),
    };
    format!(
        "pvesm [{word}]{add} [{name}]{path} [--content] [{content}] [--is_mountpoint] [{}] \
         [--create-base-path] [0] [--create-subdirs] [0] [--shared] [1]\n",
        dir.display()
    )
}

#[test]
fn connect_makes_a_storage_of_proxmox() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (_up, _, mount) = world.up(&[&pool]);
    let tools = Tools::new(&world, &["pvesm", "pvesh"]);
    let shown = tools.connect(&world, &["proxmox", text(&mount), "--name", "isos"]);
    expect_well(&shown);
    let view = format!("{}/.views/proxmox", mount.display());
    for line in [
        format!(
            "pvesm add dir isos --path {view} --content iso,import --is_mountpoint {}",
            mount.display()
        ),
        format!(
            "dir: isos\n\tpath {view}\n\tcontent iso,import\n\tis_mountpoint {}\n\tcreate-base-path 0\n\tcreate-subdirs 0\n\tshared 1\n",
            mount.display()
        ),
        "qm set VMID --ide2 isos:iso/NAME.iso,media=cdrom".to_owned(),
    ] {
        assert!(printed(&shown).contains(&line), "{line}: {}", printed(&shown));
    }
    let json = tools.connect(&world, &["proxmox", text(&mount), "--content", "iso", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    let words = json["commands"][0]["command"].as_array().expect("words");
    assert_eq!((words[3].as_str(), words[7].as_str()), (Some("isotope"), Some("iso")), "{json}");
    assert_eq!(tools.calls(), "", "nothing was run");

    let apply = ["proxmox", text(&mount), "--name", "isos", "--apply"];
    let show = "pvesh [get] [/storage/isos] [--output-format] [json]\n";
    tools.will("get", "");
    expect_well(&tools.connect(&world, &apply));
    assert_eq!(tools.calls(), show.to_owned() + &proxmox_call("add", &mount, "isos", "iso,import"));
    // There is one already: on the same directory, then on another.
    tools.will("", &format!("{{\"type\":\"dir\",\"path\":\"{view}\",\"storage\":\"isos\"}}"));
    expect_well(&tools.connect(&world, &[&apply[..], &["--content", "iso"]].concat()));
    assert_eq!(tools.calls(), show.to_owned() + &proxmox_call("set", &mount, "isos", "iso"));
    tools.will("", "{\"type\":\"dir\",\"path\":\"/var/lib/vz\",\"storage\":\"isos\"}");
    expect_refusal(&tools.connect(&world, &apply), 4, "choose another --name");
    assert_eq!(tools.calls(), show);
    // What it fails at is told.
    fs::write(tools.0.join("pvesh"), "#!/bin/sh\nexit 2\n").expect("written");
    fs::write(tools.0.join("pvesm"), "#!/bin/sh\necho no quorum >&2; exit 5\n").expect("written");
    let failed = tools.connect(&world, &apply);
    expect_refusal(&failed, 1, "no quorum");
    assert!(said(&failed).contains("pvesm add dir isos"), "{}", said(&failed));
}

#[test]
fn connect_makes_a_pool_of_libvirt() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let mount = world.mount_point("my <iso's>");
    let up = world.start_up(&[&pool], &mount);
    up.wait_for("mounted");
    let tools = Tools::new(&world, &["virsh"]);
    let path = format!("{}/my &lt;iso&apos;s&gt;/.views/flat", world.dir.path().display());
    let xml = format!(
        "<pool type='dir'>\n  <name>isotope</name>\n  <target>\n    <path>{path}</path>\n  \
         </target>\n</pool>\n"
    );
    let shown = tools.connect(&world, &["libvirt", text(&mount)]);
    expect_well(&shown);
    let define = "virsh --connect qemu:///system pool-define /dev/stdin <<'EOF'\n";
    for part in [&format!("{define}{xml}EOF\n"), "pool-autostart isotope", "<readonly/>"] {
        assert!(printed(&shown).contains(part), "{part}: {}", printed(&shown));
    }
    let json = tools.connect(&world, &["--json", "libvirt", text(&mount)]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(json["commands"][0]["stdin"], xml, "{json}");
    assert_eq!(
        (&json["configuration"], json["commands"].as_array().map(Vec::len)),
        (&xml.into(), Some(3))
    );

    let uri = "qemu+ssh://host/system";
    let call = |words: &str| format!("virsh [--connect] [{uri}] {words}\n");
    let apply = ["libvirt", text(&mount), "--connect", uri, "--apply"];
    tools.will("pool-dumpxml", "");
    expect_well(&tools.connect(&world, &apply));
    let expected = [
        call("[pool-dumpxml] [isotope]"),
        call("[pool-define] [/dev/stdin]") + json["configuration"].as_str().expect("text"),
        call("[pool-start] [isotope]"),
        call("[pool-autostart] [isotope]"),
    ];
    assert_eq!(tools.calls(), expected.concat());
    // There is one already, and it runs; then it does not; then it is another's.
    let known = format!("<pool type='dir'>\n <target>\n<path>{path}</path>\n</target></pool>");
    let [show, _, start, autostart] = expected;
    let refresh = call("[pool-refresh] [isotope]");
    tools.will("", &known);
    expect_well(&tools.connect(&world, &apply));
    assert_eq!(tools.calls(), [&*show, &refresh, &autostart].concat());
    tools.will("pool-refresh", &known);
    expect_well(&tools.connect(&world, &apply));
    assert_eq!(tools.calls(), [&*show, &refresh, &start, &autostart].concat());
    tools.will("", "<pool type='dir'><target><path>/var/lib/libvirt</path></target></pool>");
    expect_refusal(&tools.connect(&world, &apply), 4, "choose another --name");
    assert_eq!(tools.calls(), show);
    // Proxmox VE would not take such a directory.
    let refused = tools.connect(&world, &["proxmox", text(&mount)]);
    expect_refusal(&refused, 2, "letters, digits and -_.@ alone");
}

#[test]
fn connect_refuses_what_cannot_work() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (up, _, mount) = world.up(&[&pool]);
    let tools = Tools::new(&world, &["pvesm", "pvesh", "virsh"]);
    let none = Tools::new(&world, &[]);
    let elsewhere = world.make_dir("elsewhere");
    for to in ["proxmox", "libvirt"] {
        let at =
            |dir: &Path, more: &[&str]| tools.connect(&world, &[&[to, text(dir)], more].concat());
        expect_refusal(&at(&mount, &["--name", "my isos"]), 2, "cannot be its name");
        expect_refusal(&at(&mount, &["--name=--disable"]), 2, "cannot be its name");
        expect_refusal(&at(&elsewhere, &["--apply"]), 6, "not mounted on");
        // What it would be can be told beforehand.
        expect_well(&at(&elsewhere, &[]));
        let missing = none.connect(&world, &[to, text(&mount), "--apply"]);
        expect_refusal(&missing, 3, "is not on this host");
    }
    // A path below the mount is not where it is mounted.
    let below = mount.join("other");
    expect_refusal(&tools.connect(&world, &["libvirt", text(&below), "--apply"]), 6, "not mounted");
    assert_eq!(up.stop(), 0);
    let gone = tools.connect(&world, &["libvirt", text(&mount), "--apply"]);
    expect_refusal(&gone, 6, "mount it first (isotope mount)");
    assert_eq!(tools.calls(), "", "nothing was run");
}
