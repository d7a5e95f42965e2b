//! Files that vendors put on their media, and what they say of the system on it. Knows their names
//! and forms; of disc formats only that there are directories with files in them.

use isotope_proto::facts::{Candidate, Marker, Source};
use isotope_proto::image::OsFamily;

use super::fallback::identify_by_name;
use super::iso9660::Disc;
use super::source::Reader;
use super::udf::Udf;

/// Bytes read of a marker file: the largest, `.treeinfo`, says it all in its first lines.
const TEXT_BYTES_MAX: u64 = 4096;
/// Bytes kept of what one says.
const KEPT_BYTES_MAX: usize = 160;
/// Markers kept of one image; ordinary ones have one or two.
const KEPT_MAX: usize = 4;

/// What to do with a marker file.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// It is there only on this system's media.
    Presence(&'static str),
    /// Its first line, behind the name of its system, or that alone says it.
    FirstLine(&'static str),
    /// `name`, `version` and `arch` of the sections of a Red Hat kind of medium.
    TreeInfo,
    /// A time, the system's name and its architecture, a line each.
    DiscInfo,
    /// `build=8.0.2-0.0.22380479`, beside a title that names ESXi.
    BootCfg,
    /// `PRODUCT='pve'` and `RELEASE='8.2'`.
    CdInfo,
}

/// Which files are looked for; the first ones say most.
const WANTED: &[(&str, Form)] = &[
    (".disk/info", Form::FirstLine("")),
    (".treeinfo", Form::TreeInfo),
    (".discinfo", Form::DiscInfo),
    (".cd-info", Form::CdInfo),
    (".pve-cd-id.txt", Form::Presence("proxmox ve")),
    ("boot.cfg", Form::BootCfg),
    (".alpine-release", Form::FirstLine("")),
    ("arch/version", Form::FirstLine("arch")),
    ("media.1/products", Form::FirstLine("")),
    ("sysresccd/version", Form::FirstLine("systemrescue")),
    ("clonezilla-live-version", Form::FirstLine("clonezilla")),
    ("gparted-live-version", Form::FirstLine("gparted")),
    ("nix-store.squashfs", Form::Presence("nixos")),
    ("virtio-win_license.txt", Form::Presence("virtio-win")),
    ("sources/install.wim", Form::Presence("windows")),
    ("sources/install.esd", Form::Presence("windows")),
    ("sources/install.swm", Form::Presence("windows")),
    ("sources/boot.wim", Form::Presence("windows")),
];

/// A run of bytes of a disc.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) name: String,
    pub(super) is_directory: bool,
    /// Where its file system describes it.
    pub(super) extent: Extent,
}

/// A disc with directories, in either of the two formats that discs have.
pub(super) enum Tree<'a> {
    Iso9660(&'a Disc),
    Udf(&'a Udf),
}

impl Tree<'_> {
    fn root(&self, reader: &Reader<'_>) -> Vec<Item> {
        match self {
            Self::Iso9660(disc) => disc.list(reader, disc.root()),
            Self::Udf(udf) => udf.list(reader, udf.root()),
        }
    }

    fn list(&self, reader: &Reader<'_>, item: &Item) -> Vec<Item> {
        match self {
            Self::Iso9660(disc) => disc.list(reader, item.extent),
            Self::Udf(udf) => udf.list(reader, item.extent),
        }
    }

    fn contents(&self, reader: &Reader<'_>, item: &Item) -> Vec<u8> {
        let Extent { offset, length } = item.extent;
        match self {
            Self::Iso9660(_) => reader.read(offset, length.min(TEXT_BYTES_MAX)),
            Self::Udf(udf) => udf.contents(reader, item.extent, TEXT_BYTES_MAX),
        }
    }
}

/// The markers on a disc.
pub(super) fn find(reader: &Reader<'_>, tree: &Tree<'_>) -> Vec<Marker> {
    let root = tree.root(reader);
    let mut below: Vec<(&str, Vec<Item>)> = Vec::new();
    let mut found = Vec::new();
    for &(path, form) in WANTED {
        let item = match path.split_once('/') {
            None => named(&root, path),
            Some((directory, name)) => {
                if below.iter().all(|(known, _)| *known != directory) {
                    let items = named(&root, directory).filter(|it| it.is_directory);
                    let items = items.map(|it| tree.list(reader, it));
                    below.push((directory, items.unwrap_or_default()));
                }
                let items = below.iter().find(|(known, _)| *known == directory);
                items.and_then(|(_, items)| named(items, name))
            }
        };
        let Some(item) = item.filter(|it| !it.is_directory) else { continue };
        let text = match form {
            Form::Presence(_) => Some(String::new()),
            form => said(&String::from_utf8_lossy(&tree.contents(reader, item)), form),
        };
        if let Some(mut text) = text {
            text.truncate(text.floor_char_boundary(KEPT_BYTES_MAX));
            found.push(Marker { path: path.to_owned(), text });
        }
        if found.len() == KEPT_MAX {
            break;
        }
    }
    found
}

/// Names are compared whatever their case, for plain ISO 9660 has capitals only.
fn named<'a>(items: &'a [Item], name: &str) -> Option<&'a Item> {
    items.iter().find(|it| it.name.eq_ignore_ascii_case(name))
}

/// What of a marker's text matters; none if it is not what its name lets expect.
fn said(text: &str, form: Form) -> Option<String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    match form {
        Form::Presence(_) => Some(String::new()),
        Form::FirstLine(_) => lines.next().map(ToOwned::to_owned),
        Form::DiscInfo => Some(format!("{} {}", lines.nth(1)?, lines.next().unwrap_or_default())),
        Form::TreeInfo => {
            let name = value(text, "name").filter(|it| it.contains(' '));
            let family = || Some(format!("{} {}", value(text, "family")?, value(text, "version")?));
            let name = name.map(ToOwned::to_owned).or_else(family)?;
            Some(format!("{name} {}", value(text, "arch").unwrap_or_default()).trim().to_owned())
        }
        Form::BootCfg => {
            let is_esxi = value(text, "title")?.contains("ESXi");
            let build = value(text, "build").unwrap_or_default();
            let version = build.split('-').next().unwrap_or_default();
            is_esxi.then(|| format!("ESXi {version}").trim().to_owned())
        }
        Form::CdInfo => {
            let product = match value(text, "PRODUCT")? {
                "pve" => "proxmox ve",
                "pbs" => "proxmox backup server",
                "pmg" => "proxmox mail gateway",
                _ => return None,
            };
            Some(format!("{product} {}", value(text, "RELEASE").unwrap_or_default()))
        }
    }
}

/// The first value of a key: `key = value`, quoted or not.
fn value<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        let value = value.trim().trim_matches(['\'', '"']);
        (name.trim() == key && !value.is_empty()).then_some(value)
    })
}

/// The system that a marker speaks of.
pub(super) fn candidate(marker: &Marker) -> Option<Candidate> {
    let (_, form) = WANTED.iter().find(|(path, _)| *path == marker.path)?;
    let words = match form {
        Form::Presence(words) => (*words).to_owned(),
        Form::FirstLine(system) => format!("{system} {}", marker.text),
        _ => marker.text.clone(),
    };
    let os = identify_by_name(&words);
    let known = os.family != OsFamily::Other || !os.distribution.is_empty();
    known.then(|| Candidate { name: words.trim().to_owned(), os, source: Source::MarkerFile })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_vendors_write() {
        let check = |path: &str, text: &str, expected: [&str; 3]| {
            let &(_, form) = WANTED.iter().find(|(it, _)| *it == path).expect("wanted");
            let marker = said(text, form).map(|text| Marker { path: path.to_owned(), text });
            let os = marker.and_then(|it| candidate(&it)).map(|it| it.os);
            let os = os.as_ref().map_or([""; 3], |os| [&*os.distribution, &os.version, &os.arch]);
            assert_eq!(os, expected, "{path}: {text}");
        };
        check(
            ".disk/info",
            "Debian GNU/Linux 12.5.0 \"Bookworm\" - Official amd64 NETINST 20240210-11:27\n",
            ["debian", "12.5.0", "x86_64"],
        );
        check(
            ".disk/info",
            "Ubuntu-Server 24.04 LTS \"Noble Numbat\" - Release amd64 (20240423)",
            ["ubuntu", "24.04", "x86_64"],
        );
        let treeinfo = "[general]\narch = x86_64\nfamily = Rocky Linux\nname = Rocky Linux 9.4\n";
        check(".treeinfo", treeinfo, ["rocky", "9.4", "x86_64"]);
        let treeinfo = "[general]\nfamily = CentOS\nversion = 7\narch = x86_64\n";
        check(".treeinfo", treeinfo, ["centos", "7", "x86_64"]);
        check(".discinfo", "1713200000.1\nFedora 40\nx86_64\n", ["fedora", "40", "x86_64"]);
        check(".discinfo", "1713200000.1\n", ["", "", ""]);
        check(
            "boot.cfg",
            "bootstate=0\ntitle=Loading ESXi installer\nbuild=8.0.2-0.0.22380479\n",
            ["esxi", "8.0.2", ""],
        );
        check("boot.cfg", "title=Something else\nbuild=1", ["", "", ""]);
        check(".cd-info", "PRODUCT='pve'\nRELEASE='8.2'\n", ["proxmox-ve", "8.2", ""]);
        check(".cd-info", "PRODUCT='other'\n", ["", "", ""]);
        check("arch/version", "2024.06.01\n", ["arch", "2024.06.01", ""]);
        check("sources/install.wim", "", ["windows", "", ""]);
        check(".alpine-release", "alpine-virt 3.20.0 240522", ["alpine", "3.20.0", ""]);
        check(".disk/info", "\n \n", ["", "", ""]);
    }
}
