//! What a library of a million images costs a mount: memory, time to take in the list, and a look.
//! `cargo bench -p isotope-fs --bench tree [IMAGES]`

#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::time::Instant;

use isotope_fs::tree::{Position, Tree};
use isotope_proto::change::Record;
use isotope_proto::digest::{Blake3, Sha256};
use isotope_proto::id::{ContentId, EntryId, ImageId, Incarnation, Ino, Revision, VolumeId};
use isotope_proto::image::{Hashes, Image, ImageFormat, Os, OsFamily, Replica, Stamp};
use isotope_proto::name::{EntryName, VolumePath};
use isotope_proto::time::Timestamp;
use isotope_proto::tree::{Entry, Folder};

const IN_A_FOLDER: u64 = 1000;

/// Bytes of memory that this process has.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = statm.split(' ').nth(1).and_then(|it| it.parse().ok()).expect("a number");
    pages * 4096
}

fn id(n: u64) -> [u8; 16] {
    // Spread as random ones are.
    (u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)).to_le_bytes()
}

fn folder(ino: u64) -> Record {
    let time = Timestamp(0);
    Record::Folder(Folder {
        ino: Ino(ino),
        mode: 0o775,
        created: time,
        modified: time,
        changed: time,
        default_pool: None,
    })
}

fn entry(id: u64, parent: u64, name: &str, ino: u64) -> Record {
    let name = EntryName::parse(name).expect("a name");
    Record::Entry(Entry { id: EntryId(id), parent: Ino(parent), name, ino: Ino(ino) })
}

fn name(n: u64) -> String {
    format!("distribution-{n}-amd64.iso")
}

fn image(n: u64) -> Record {
    let mut hash = [0; 32];
    hash[..16].copy_from_slice(&id(n));
    let os = Os {
        family: OsFamily::Linux,
        distribution: format!("distribution {}", n % 40),
        version: (n % 20).to_string(),
        arch: "x86_64".to_owned(),
    };
    let replica = Replica {
        volume: VolumeId::from_bytes(id(n % 100)),
        path: VolumePath::parse(&format!("iso/{}", name(n))).expect("a path"),
        stamp: Stamp { inode: n, size_bytes: n, mtime_ns: 0 },
        checked: None,
    };
    Record::Image(Image {
        id: ImageId::from_bytes(id(n)),
        ino: Ino(n),
        content: ContentId::from_bytes(id(n)),
        hashes: Some(Hashes { sha256: Sha256::from_bytes(hash), blake3: Blake3::from_bytes(hash) }),
        filename: name(n),
        size_bytes: n,
        format: ImageFormat::Iso,
        os,
        flat_names: vec![EntryName::parse(&name(n)).expect("a name")],
        facts: None,
        mode: 0o664,
        created: Timestamp(0),
        modified: Timestamp(0),
        changed: Timestamp(0),
        replicas: vec![replica],
    })
}

fn main() {
    let asked = std::env::args().skip(1).find_map(|it| it.parse().ok());
    let images: u64 = asked.unwrap_or(1_000_000);
    let begun = resident();
    let position =
        Position { incarnation: Incarnation::from_bytes([1; 16]), revision: Revision(1) };
    let mut tree = Tree::new(position);
    let folders = images.div_ceil(IN_A_FOLDER);
    let first = folders + 2;
    let clock = Instant::now();
    tree.expect(images + folders + 1);
    tree.load(folder(1));
    for n in 0..folders {
        tree.load(folder(n + 2));
    }
    for n in 0..images {
        tree.load(image(first + n));
    }
    for n in 0..folders {
        tree.load(entry(n + 1, 1, &format!("folder-{n}"), n + 2));
    }
    for n in 0..images {
        tree.load(entry(first + n, n % folders + 2, &name(first + n), first + n));
    }
    tree.end_list();
    let loaded = clock.elapsed();
    let held = resident() - begun;
    println!("{images} images in {folders} folders");
    println!("list taken in      {:.2} s", loaded.as_secs_f64());
    println!("memory             {} MiB, {} bytes an image", held >> 20, held / images);

    let clock = Instant::now();
    for n in 0..images {
        let parent = tree.folder(Ino(n % folders + 2)).expect("a folder");
        black_box(parent.child(&name(first + n)).and_then(|ino| tree.get(ino)).expect("there"));
    }
    println!("looking one up     {} ns", clock.elapsed().as_nanos() / u128::from(images));
    let clock = Instant::now();
    for n in 0..images {
        black_box(tree.by_flat_name(&name(first + n)).expect("there"));
    }
    println!("by flat name       {} ns", clock.elapsed().as_nanos() / u128::from(images));
    let clock = Instant::now();
    black_box(tree.images_after(0).count());
    println!("going through all  {:.1} ms", clock.elapsed().as_secs_f64() * 1e3);
}
