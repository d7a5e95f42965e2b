//! Views: folders that a mount makes of the library, for programs that want it otherwise. They are
//! made from the tree at each look, and nothing of them is stored or cached; which names their images
//! have is the catalogue's. Pure: it is told a tree and answers what a view shows.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use isotope_proto::digest::Sha256;
use isotope_proto::id::{ContentId, ImageId, Ino, PoolId, VolumeId};
use isotope_proto::image::Os;
use isotope_proto::name::{EntryName, VIEWS};

use crate::tree::{ImageNode, Tree};

/// Inode numbers of views have this bit; those of the library are counted up from 1.
const VIEW_BIT: u64 = 1 << 62;
/// Of a hash, what makes the rest of the number.
const HASH_BITS: u64 = VIEW_BIT - 1;

/// What Proxmox VE looks for in a storage of type `dir`, by content type, and may make there.
const PROXMOX_DIRS: [&str; 8] = [
    "template/iso",
    "import",
    "template/cache",
    "dump",
    "images",
    "private",
    "snippets",
    "rootdir",
];
/// What it lists as content of type `iso`.
const PROXMOX_ISO: [&str; 2] = ["iso", "img"];
/// What it lists as content of type `import`.
const PROXMOX_IMPORT: [&str; 5] = ["ova", "ovf", "qcow2", "raw", "vmdk"];
/// Digits of a SHA-256 that name a group of duplicates.
const GROUP_DIGITS: usize = 16;

/// Each kind of view, what is below it, and what it is good for.
pub const KINDS: [(&str, &str, &str); 7] = [
    (
        "flat",
        "NAME",
        "every image in one folder, under a name that it keeps through moves and renames",
    ),
    (
        "proxmox",
        "template/iso/NAME, import/NAME",
        "a directory storage of Proxmox VE; uploads go to /incoming",
    ),
    ("by-id", "ID.EXT", "every image by its id"),
    ("by-os", "FAMILY/DISTRIBUTION/VERSION/NAME", "images by operating system"),
    ("by-node", "NODE/NAME", "images that have a file on a volume the node sees"),
    ("by-pool", "POOL/NAME", "images that have a file in the pool"),
    ("duplicates", "SHA-256/NAME", "images with equal bytes, a folder each time"),
];

/// A folder of a view, by its path below `/.views`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct View(Vec<String>);

/// What a name in a view leads to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    View(View),
    Image(Ino),
}

/// Which images a folder of a view shows.
enum Shows<'t> {
    All,
    /// Whose flat names end so.
    EndingIn(&'static [&'static str]),
    /// Of these operating systems.
    Systems(Vec<&'t Arc<Os>>),
    /// With a file on one of these.
    On(HashSet<VolumeId>),
    /// With these bytes.
    Content(ContentId),
}

/// Whether a number is a view's.
pub(crate) fn is_view(ino: Ino) -> bool {
    ino.0 & VIEW_BIT != 0
}

/// A text as the name of a folder.
fn folder_name(text: &str) -> String {
    let safe: String =
        text.chars().map(|c| if c == '/' || c.is_control() { '_' } else { c }).collect();
    match EntryName::parse(&safe) {
        Ok(_) => safe,
        Err(_) if safe.is_empty() => "unknown".to_owned(),
        Err(_) => safe.chars().map(|c| if c == '.' { '_' } else { c }).take(60).collect(),
    }
}

fn has_extension(name: &str, among: &[&str]) -> bool {
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    among.iter().any(|it| it.eq_ignore_ascii_case(extension))
}

impl View {
    /// The folder of all views.
    pub(crate) fn all() -> Self {
        Self(Vec::new())
    }

    /// A view by its name, to be mounted alone.
    pub(crate) fn named(name: &str) -> Option<Self> {
        KINDS.iter().any(|(kind, ..)| *kind == name).then(|| Self(vec![name.to_owned()]))
    }

    /// Its inode number: the FNV-1a hash of its path (draft-eastlake-fnv), the same on every mount.
    pub(crate) fn ino(&self) -> Ino {
        let path = self.0.join("/");
        let hash = path.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Ino(VIEW_BIT | (hash & HASH_BITS))
    }

    /// The folder above; none above that of all views.
    pub(crate) fn parent(&self) -> Option<Self> {
        let (_, above) = self.0.split_last()?;
        Some(Self(above.to_vec()))
    }

    /// Whether what is stored in it goes into the library.
    pub(crate) fn takes_uploads(&self) -> bool {
        matches!(self.path()[..], ["proxmox", "template", "iso"] | ["proxmox", "import"])
    }

    fn path(&self) -> Vec<&str> {
        self.0.iter().map(String::as_str).collect()
    }

    fn below(&self, name: &str) -> Self {
        Self(self.0.iter().cloned().chain([name.to_owned()]).collect())
    }

    /// The names of the folders in it; none where it holds images.
    fn folders(&self, tree: &Tree) -> Option<BTreeSet<String>> {
        Some(match self.path()[..] {
            [] => KINDS.iter().map(|(kind, ..)| (*kind).to_owned()).collect(),
            ["by-os"] => self.systems(tree).map(|os| os.family.to_string()).collect(),
            ["by-os", _] => self.systems(tree).map(|os| folder_name(&os.distribution)).collect(),
            ["by-os", _, _] => self.systems(tree).map(|os| folder_name(&os.version)).collect(),
            ["by-node"] => tree.nodes().map(|node| folder_name(&node.name)).collect(),
            ["by-pool"] => tree.pools().map(|pool| folder_name(&pool.name)).collect(),
            ["duplicates"] => groups(tree).map(|(sha256, _)| group_name(sha256)).collect(),
            ["proxmox"] => PROXMOX_DIRS.iter().filter_map(|dir| part(dir, 0)).collect(),
            ["proxmox", top] => {
                let below = PROXMOX_DIRS.iter().filter(|dir| part(dir, 0).as_deref() == Some(top));
                let below: BTreeSet<String> = below.filter_map(|dir| part(dir, 1)).collect();
                return (!below.is_empty()).then_some(below);
            }
            _ => return None,
        })
    }

    /// The operating systems in a folder of them.
    fn systems<'t>(&self, tree: &'t Tree) -> impl Iterator<Item = &'t Arc<Os>> {
        let path: Vec<String> = self.0.iter().skip(1).cloned().collect();
        tree.systems().filter(move |os| {
            let own =
                [os.family.to_string(), folder_name(&os.distribution), folder_name(&os.version)];
            // Some are those of images alone that have no name here, or that are gone.
            let mut images = tree.images_after(0);
            own.starts_with(&path)
                && images.any(|(.., it)| it.flat_name.is_some() && Arc::ptr_eq(&it.os, os))
        })
    }

    /// The images in it; none where it holds folders or nothing.
    fn shows<'t>(&self, tree: &'t Tree) -> Option<Shows<'t>> {
        let on = |volumes: Vec<VolumeId>| Shows::On(volumes.into_iter().collect());
        let volumes = tree.volumes();
        Some(match self.path()[..] {
            ["flat"] | ["by-id"] => Shows::All,
            ["proxmox", "template", "iso"] => Shows::EndingIn(&PROXMOX_ISO),
            ["proxmox", "import"] => Shows::EndingIn(&PROXMOX_IMPORT),
            ["by-os", _, _, _] => Shows::Systems(self.systems(tree).collect()),
            ["by-node", node] => {
                let sees =
                    |it: &VolumeId| tree.holders(*it).any(|it| folder_name(&it.name) == node);
                on(volumes.map(|it| it.id).filter(sees).collect())
            }
            ["by-pool", pool] => {
                let pools = tree.pools().filter(|it| folder_name(&it.name) == pool);
                let pools: Vec<PoolId> = pools.map(|it| it.id).collect();
                on(volumes.filter(|it| pools.contains(&it.pool)).map(|it| it.id).collect())
            }
            ["duplicates", group] => Shows::Content(group_called(tree, group)?),
            _ => return None,
        })
    }

    /// The name of an image in it.
    fn name_of(&self, image: &ImageNode) -> Option<String> {
        match self.path()[..] {
            ["by-id"] => Some(format!("{}.{}", image.id, image.format)),
            _ => image.flat_name.as_ref().map(ToString::to_string),
        }
    }

    /// What a name in it leads to.
    pub(crate) fn child(&self, tree: &Tree, name: &str) -> Option<Seen> {
        if self.path()[..] == ["duplicates"] {
            return group_called(tree, name).map(|_| Seen::View(self.below(name)));
        }
        if let Some(folders) = self.folders(tree) {
            return folders.contains(name).then(|| Seen::View(self.below(name)));
        }
        let shows = self.shows(tree)?;
        let ino = match self.path()[..] {
            // However it ends: what a file is taken for may change.
            ["by-id"] => {
                let id = name.split_once('.').map_or(name, |(id, _)| id);
                tree.by_id(id.parse::<ImageId>().ok()?)?
            }
            _ => tree.by_flat_name(name)?,
        };
        shows.image(tree.image(ino)?).then_some(Seen::Image(ino))
    }

    /// What is in it, behind a position: each with its name and the position to go on from; `add`
    /// says when it is full. What stays in it is met exactly once, whatever else comes and goes.
    pub(crate) fn list(
        &self,
        tree: &Tree,
        after: u64,
        mut add: impl FnMut(u64, &str, Seen) -> bool,
    ) {
        if let Some(folders) = self.folders(tree) {
            // Their numbers do for positions, for they stay.
            let views = folders.into_iter().map(|name| (self.below(&name), name));
            let ordered: BTreeMap<u64, _> = views.map(|it| (it.0.ino().0, it)).collect();
            for (at, (view, name)) in ordered {
                if at > after && add(at, &name, Seen::View(view)) {
                    return;
                }
            }
            return;
        }
        let Some(shows) = self.shows(tree) else { return };
        let point = usize::try_from(after).unwrap_or(usize::MAX);
        for (next, ino, image) in tree.images_after(point) {
            if shows.image(image)
                && let Some(name) = self.name_of(image)
                && add(u64::try_from(next).unwrap_or(u64::MAX), &name, Seen::Image(ino))
            {
                return;
            }
        }
    }
}

impl Shows<'_> {
    fn image(&self, image: &ImageNode) -> bool {
        match self {
            Self::All => true,
            Self::EndingIn(extensions) => {
                image.flat_name.as_ref().is_some_and(|it| has_extension(it.as_str(), extensions))
            }
            Self::Systems(systems) => systems.iter().any(|os| Arc::ptr_eq(os, &image.os)),
            Self::On(volumes) => image.volumes.iter().any(|it| volumes.contains(it)),
            Self::Content(content) => image.content == *content,
        }
    }
}

/// One part of a path.
fn part(path: &str, n: usize) -> Option<String> {
    path.split('/').nth(n).map(str::to_owned)
}

/// The contents that several images have.
fn groups(tree: &Tree) -> impl Iterator<Item = (Sha256, ContentId)> {
    tree.shared_contents().filter_map(|images| {
        let image = tree.image(*images.first()?)?;
        Some((image.hashes?.sha256, image.content))
    })
}

/// The name of a group's folder.
fn group_name(sha256: Sha256) -> String {
    let mut digits = sha256.to_string();
    digits.truncate(GROUP_DIGITS);
    digits
}

/// The group whose folder is called so. There may be many: bytes are compared, not texts.
fn group_called(tree: &Tree, name: &str) -> Option<ContentId> {
    let begins = u64::from_str_radix(name, 16).ok().filter(|_| name.len() == GROUP_DIGITS)?;
    let mut found =
        groups(tree).filter(|(sha256, _)| sha256.as_bytes().starts_with(&begins.to_be_bytes()));
    found.find(|(sha256, _)| group_name(*sha256) == name).map(|(_, content)| content)
}

/// Whether it is the name, in the root of the library, under which the views are found.
pub(crate) fn is_entrance(parent: Ino, name: &str) -> bool {
    parent == Ino::ROOT && name == VIEWS
}

#[cfg(test)]
mod tests {
    use isotope_proto::change::Record;
    use isotope_proto::cluster::{Node, Pool, Sight, Volume};
    use isotope_proto::digest::Blake3;
    use isotope_proto::id::{Incarnation, NodeId, Revision};
    use isotope_proto::image::{Hashes, Image, ImageFormat, OsFamily, Replica, Stamp};
    use isotope_proto::name::VolumePath;
    use isotope_proto::time::Timestamp;

    use super::*;
    use crate::tree::Position;

    fn image(n: u8, names: &[&str], bytes: u8, volume: u8) -> Record {
        let path = VolumePath::parse("iso/x.iso").expect("a path");
        let stamp = Stamp { inode: n.into(), size_bytes: 1, mtime_ns: 1 };
        let volume = VolumeId::from_bytes([volume; 16]);
        let (sha256, blake3) = (Sha256::from_bytes([bytes; 32]), Blake3::from_bytes([bytes; 32]));
        Record::Image(Image {
            id: ImageId::from_bytes([n; 16]),
            ino: Ino(n.into()),
            content: ContentId::from_bytes([bytes; 16]),
            hashes: Some(Hashes { sha256, blake3 }),
            filename: "x.iso".to_owned(),
            size_bytes: 1,
            format: ImageFormat::Iso,
            os: Os {
                family: OsFamily::Linux,
                distribution: if n.is_multiple_of(2) { "Debian" } else { "a/b" }.to_owned(),
                version: String::new(),
                arch: String::new(),
            },
            flat_names: names.iter().map(|it| EntryName::parse(it).expect("a name")).collect(),
            facts: None,
            mode: 0o644,
            created: Timestamp(0),
            modified: Timestamp(0),
            changed: Timestamp(0),
            replicas: vec![Replica { volume, path, stamp, checked: None }],
        })
    }

    /// Four images, two of equal bytes, on the volumes of two nodes; and one that has no flat name.
    fn tree() -> Tree {
        let incarnation = Incarnation::from_bytes([1; 16]);
        let mut tree = Tree::new(Position { incarnation, revision: Revision(1) });
        for n in [1_u8, 2] {
            let (node, pool) = (NodeId::from_bytes([n; 16]), PoolId::from_bytes([n; 16]));
            let name = format!("host-{n}");
            let (address, host) = (String::new(), String::new());
            tree.load(Record::Node(Node { id: node, name: name.clone(), address, host }));
            tree.load(Record::Pool(Pool { id: pool, name: format!("pool/{n}"), assigned: vec![] }));
            let sights = vec![Sight { node, path: String::new() }];
            tree.load(Record::Volume(Volume { id: VolumeId::from_bytes([n; 16]), pool, sights }));
        }
        tree.load(image(10, &["a.iso", "former.iso"], 1, 1));
        tree.load(image(11, &["b.ISO"], 1, 2));
        tree.load(image(12, &["c.ova"], 3, 1));
        tree.load(image(13, &[], 4, 1));
        tree.end_list();
        tree
    }

    fn at(path: &str) -> View {
        View(path.split('/').filter(|it| !it.is_empty()).map(str::to_owned).collect())
    }

    fn listed(tree: &Tree, path: &str) -> Vec<String> {
        let mut names = Vec::new();
        at(path).list(tree, 0, |_, name, seen| {
            assert_eq!(at(path).child(tree, name), Some(seen), "{path}/{name} is found");
            names.push(name.to_owned());
            false
        });
        names.sort_unstable();
        names
    }

    #[test]
    fn each_view_shows_its_images_and_finds_what_it_shows() {
        let tree = tree();
        let check =
            |path: &str, expected: &[&str]| assert_eq!(listed(&tree, path), expected, "{path}");
        check("", &["by-id", "by-node", "by-os", "by-pool", "duplicates", "flat", "proxmox"]);
        check("flat", &["a.iso", "b.ISO", "c.ova"]);
        check("proxmox/template/iso", &["a.iso", "b.ISO"]);
        check("proxmox/import", &["c.ova"]);
        check("proxmox/template", &["cache", "iso"]);
        check("proxmox/dump", &[]);
        check("by-node", &["host-1", "host-2"]);
        check("by-node/host-1", &["a.iso", "c.ova"]);
        check("by-pool", &["pool_1", "pool_2"]);
        check("by-pool/pool_2", &["b.ISO"]);
        check("by-os/linux", &["Debian", "a_b"]);
        check("by-os/linux/Debian", &["unknown"]);
        check("by-os/linux/Debian/unknown", &["a.iso", "c.ova"]);
        check("duplicates", &["0101010101010101"]);
        check("duplicates/0101010101010101", &["a.iso", "b.ISO"]);
        assert_eq!(listed(&tree, "by-id").len(), 4);
    }

    #[test]
    fn former_names_lead_to_an_image_and_names_of_others_do_not() {
        let tree = tree();
        let seen = |path: &str, name: &str| at(path).child(&tree, name);
        assert_eq!(seen("flat", "former.iso"), Some(Seen::Image(Ino(10))));
        assert_eq!(seen("proxmox/import", "former.iso"), None);
        assert_eq!(seen("by-node/host-2", "a.iso"), None);
        assert_eq!(seen("flat", "A.iso"), None);
        assert_eq!(seen("", "other"), None);
        let id = ImageId::from_bytes([13; 16]);
        assert_eq!(seen("by-id", &format!("{id}.img")), Some(Seen::Image(Ino(13))));
        assert_eq!(seen("by-id", "13.img"), None);
    }

    #[test]
    fn a_listing_goes_on_where_it_was_full() {
        let tree = tree();
        for path in ["flat", "", "by-os/linux", "by-id"] {
            let (mut found, mut after) = (Vec::new(), 0);
            loop {
                let before = found.len();
                // The second does not fit any more.
                at(path).list(&tree, after, |at, name, _| {
                    let full = found.len() > before;
                    if !full {
                        (after, _) = (at, found.push(name.to_owned()));
                    }
                    full
                });
                if found.len() == before {
                    break;
                }
            }
            found.sort_unstable();
            assert_eq!(found, listed(&tree, path), "{path}");
        }
    }

    #[test]
    fn numbers_are_those_of_no_image_and_differ() {
        let tree = tree();
        let mut numbers: Vec<Ino> = listed(&tree, "").iter().map(|it| at(it).ino()).collect();
        assert!(numbers.iter().all(|it| is_view(*it)) && !is_view(Ino(u64::MAX >> 3)));
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), KINDS.len());
        assert_eq!((at("flat").parent(), at("").parent()), (Some(View::all()), None));
    }
}
