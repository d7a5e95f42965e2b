//! Damaged images, tens of thousands of them and the same ones each time: whatever the bytes,
//! identification ends soon, reads little and says little.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use isotope_agent::identify::{Databases, Source, identify_source};
use isotope_proto::facts::FACTS_BYTES_MAX;
use isotope_proto::wire::encode_facts;

use crate::made::{bridge, make_iso, run, write_machine};

/// Damaged forms of each image of the corpus.
const MUTATIONS: u64 = 4_000;
/// An unoptimised build on a busy machine takes a hundredth.
const ONE_MAX: Duration = Duration::from_secs(1);
/// Read of any image at most, with the head.
const READ_BYTES_MAX: u64 = 4 << 20;

/// SplitMix64: the same numbers on each machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// Notes what is read: those are the bytes worth damaging.
struct Noting<'a> {
    bytes: &'a [u8],
    read: Cell<u64>,
    sectors: Cell<BTreeSet<usize>>,
}

impl Source for Noting<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let count = self.bytes.read_at(buffer, offset)?;
        self.read.set(self.read.get() + count as u64);
        let mut sectors = self.sectors.take();
        sectors.extend((offset as usize / 512)..((offset as usize + count).div_ceil(512)));
        self.sectors.set(sectors);
        Ok(count)
    }
}

fn corpus() -> Vec<(&'static str, Vec<u8>)> {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name);
    let text = |name: &str| at(name).to_str().expect("text").to_owned();
    let files = [
        (".disk/info", "Debian GNU/Linux 12.5.0 - Official amd64\n"),
        ("boot.cfg", "title=Loading ESXi installer\nbuild=8.0.2-0.0.1\n"),
        ("sources/boot.wim", "x"),
    ];
    let mut all = Vec::new();
    for (name, arguments) in [
        ("joliet.iso", &["-V", "CCCOMA_X64FRE_EN-US_DV9", "-J"][..]),
        ("rock.iso", &["-V", "Debian 12.5.0 amd64 n", "-J", "-R"]),
    ] {
        all.push((name, fs::read(make_iso(dir.path(), &files, arguments)).expect("read")));
    }
    all.push(("bridge.iso", fs::read(bridge(dir.path())).expect("read")));
    write_machine(dir.path());
    run("tar", &["-C", dir.path().to_str().expect("text"), "-cf", &text("a.ova"), "web.ovf"]);
    all.push(("a.ova", fs::read(at("a.ova")).expect("read")));
    for (name, format) in
        [("a.qcow2", "qcow2"), ("a.vmdk", "vmdk"), ("a.vhdx", "vhdx"), ("a.vdi", "vdi")]
    {
        run("qemu-img", &["create", "-q", "-f", format, &text(name), "1M"]);
        all.push((name, fs::read(at(name)).expect("read")));
    }
    all.push(("grub.iso", fs::read("/usr/lib/grub-rescue/grub-rescue-cdrom.iso").expect("read")));
    all
}

/// Damages up to eight bytes of what is read, in ways that numbers and lengths are wrong in.
fn damage(bytes: &mut [u8], sectors: &[usize], random: &mut Random) -> Vec<(usize, u8)> {
    let mut before = Vec::new();
    for _ in 0..=random.below(8) {
        let sector = sectors[random.below(sectors.len())] * 512;
        // Structures begin with a sector, and end long before it does.
        let within = if random.below(2) == 0 { 512 } else { 64 };
        let at = sector + random.below(within);
        let Some(byte) = bytes.get_mut(at) else { continue };
        before.push((at, *byte));
        *byte = match random.below(4) {
            0 => 0,
            1 => 0xff,
            2 => *byte ^ (1 << random.below(8)),
            _ => random.next() as u8,
        };
    }
    before
}

#[test]
fn damaged_images_are_identified_in_bounded_time_and_space() {
    let databases = Databases::none();
    let mut random = Random(20_240_601);
    let mut verdicts = BTreeSet::new();
    for (name, mut bytes) in corpus() {
        let whole = bytes.len() as u64;
        let noting = Noting { bytes: &bytes, read: Cell::default(), sectors: Cell::default() };
        let sound = identify_source(&noting, whole, name, &databases);
        // Empty parts of the head are damaged too, but no more often than the others.
        let mut sectors: Vec<usize> = noting.sectors.take().into_iter().collect();
        let used = |sector: &usize| bytes[sector * 512..].iter().take(512).any(|&byte| byte != 0);
        sectors.sort_by_key(|sector| !used(sector));
        let count = sectors.iter().filter(|sector| used(sector)).count();
        sectors.truncate(count + 4);
        for round in 0..MUTATIONS {
            let before = damage(&mut bytes, &sectors, &mut random);
            let size = match random.below(8) {
                0 => random.next() % (whole + 1),
                1 => random.next(),
                _ => whole,
            };
            let noting = Noting { bytes: &bytes, read: Cell::default(), sectors: Cell::default() };
            let begun = Instant::now();
            let found = identify_source(&noting, size, name, &databases);
            assert!(begun.elapsed() < ONE_MAX, "{name}, {round}: {:?}", begun.elapsed());
            assert!(noting.read.get() <= READ_BYTES_MAX, "{name}, {round}");
            assert!(encode_facts(&found.facts).len() <= FACTS_BYTES_MAX, "{name}, {round}");
            verdicts.insert(format!("{:?}", (found.format, found.facts.problem)));
            for (at, byte) in before.into_iter().rev() {
                bytes[at] = byte;
            }
        }
        assert_eq!(identify_source(&&bytes[..], whole, name, &databases), sound, "{name}");
    }
    // The damage reaches what is looked at.
    assert!(verdicts.len() > 100, "{verdicts:?}");
}
