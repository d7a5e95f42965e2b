//! Whatever happens to a disk, and whatever is lost on the way, looks end at the truth: files come
//! and go, hints are lost, reports are cut off half-way, the agent dies before or after its index is
//! written, and the catalogue is another. After one more undisturbed look the catalogue has what
//! the disk has, and a file that was only renamed is still the image that it was.

use std::collections::BTreeMap;

use isotope_proto::id::{ImageId, Incarnation};
use isotope_proto::image::Stamp;
use isotope_proto::name::VolumePath;
use isotope_proto::report::FileEvent;
use proptest::prelude::*;

use super::{Ending, plan};
use crate::index::{Index, Known};
use crate::index_log::Line;
use crate::layout::Layout;
use crate::reconcile::Difference;
use crate::roll::{Listed, Roll};
use crate::walk::{ImageDir, Seen};

/// Few places, so that files get in one another's way.
const PLACES: u8 = 5;
/// Differences in one report.
const BATCH: usize = 2;

#[derive(Debug, Clone)]
enum Op {
    Put(u8),
    /// Other bytes in the same inode.
    Rewrite(u8),
    Remove(u8),
    /// Replaces what is there.
    Rename(u8, u8),
    /// A look of which so many reports arrive; then the index may be written, or the agent die.
    Look {
        reports: u8,
        end: End,
    },
    /// The catalogue begins anew with nothing.
    NewCatalog,
    /// The sidecar's index is lost.
    LoseIndex,
}

#[derive(Debug, Clone, Copy)]
enum End {
    Saved,
    /// In memory only, so far.
    Unsaved,
    /// Killed before it was written.
    Killed,
}

#[derive(Default)]
struct World {
    disk: BTreeMap<VolumePath, Stamp>,
    next: u64,
    index: Index,
    written: Vec<Line>,
    catalog: BTreeMap<ImageId, (VolumePath, Stamp)>,
    incarnation: u8,
    next_image: u64,
}

fn place(n: u8) -> VolumePath {
    VolumePath::parse(&format!("iso/{}.iso", n % PLACES)).expect("a path")
}

fn listed((image, (path, stamp)): (&ImageId, &(VolumePath, Stamp))) -> Listed {
    Listed { image: *image, path: path.clone(), stamp: *stamp }
}

impl World {
    fn catalog_id(&self) -> Incarnation {
        Incarnation::from_bytes([self.incarnation; 16])
    }

    fn stamp(&mut self) -> Stamp {
        self.next += 1;
        let mtime_ns = i64::try_from(self.next).expect("few");
        Stamp { inode: self.next, size_bytes: 1, mtime_ns }
    }

    fn seen(&self) -> Seen {
        let image_dir = ImageDir::Within;
        Seen { files: self.disk.clone(), image_dir, ..Seen::default() }
    }

    /// A look, of which some reports arrive. True if all did.
    fn look(&mut self, reports: usize) -> bool {
        let made = plan(&self.index, &self.seen(), &Layout::default(), self.catalog_id());
        if made.introduces && !made.differences.is_empty() {
            self.index.begin_introduction();
        }
        if let Some(Ending::Everything(there)) = &made.ending {
            self.call_the_roll(there);
        }
        let batches: Vec<Vec<Difference>> =
            made.differences.chunks(BATCH).map(<[_]>::to_vec).collect();
        for (n, batch) in batches.iter().enumerate() {
            if n == reports {
                return false;
            }
            let ids: Vec<ImageId> = batch.iter().map(|it| self.apply(it)).collect();
            for (difference, image) in batch.iter().zip(ids) {
                self.confirm(difference, image);
            }
        }
        if let Some(Ending::Everything(_)) = made.ending {
            self.index.end_introduction(self.catalog_id());
        }
        true
    }

    fn call_the_roll(&mut self, there: &BTreeMap<VolumePath, Stamp>) {
        let mut listed: Vec<Listed> = self.catalog.iter().map(listed).collect();
        listed.sort_by(|a, b| a.path.cmp(&b.path));
        let mut roll = Roll::new(there);
        listed.into_iter().for_each(|file| roll.hear(file));
        let (gone, renamed) = roll.end();
        gone.iter().for_each(|file| drop(self.catalog.remove(&file.image)));
        for (file, to) in renamed {
            self.catalog.insert(file.image, (to, file.stamp));
        }
    }

    /// As the catalogue takes one event, idempotently: a file is known by its stamp, and what else
    /// was at its path was replaced by it.
    fn apply(&mut self, difference: &Difference) -> ImageId {
        let (path, stamp) = (difference.path.clone(), difference.stamp);
        if difference.event == FileEvent::Deleted {
            let image = difference.image.expect("a deleted file was known");
            if self.catalog.get(&image).is_some_and(|(at, _)| *at == path) {
                self.catalog.remove(&image);
            }
            return image;
        }
        let of_stamp = self.catalog.iter().find(|(_, (_, known))| *known == stamp);
        if let Some(image) = of_stamp.map(|(image, _)| *image) {
            self.catalog.insert(image, (path, stamp));
            return image;
        }
        self.catalog.retain(|_, (at, _)| *at != path);
        let proposed = difference.image.filter(|it| !self.catalog.contains_key(it));
        let image = proposed.unwrap_or_else(|| {
            self.next_image += 1;
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&self.next_image.to_be_bytes());
            ImageId::from_bytes(bytes)
        });
        self.catalog.insert(image, (path, stamp));
        image
    }

    fn confirm(&mut self, difference: &Difference, image: ImageId) {
        if let Some((from, known)) = &difference.before
            && *from != difference.path
        {
            self.index.remove_from(from, known.image);
        }
        if difference.event == FileEvent::Deleted {
            self.index.remove(&difference.path);
        } else {
            let known = Known { image, stamp: difference.stamp };
            self.index.insert(difference.path.clone(), known);
        }
    }

    fn save(&mut self) {
        self.written.extend(self.index.take_pending());
    }

    fn start_anew(&mut self) {
        let lines = self.written.clone().into_iter().map(Ok);
        self.index = Index::from_lines(lines).expect("what was written is read");
    }

    fn act(&mut self, op: &Op) {
        match *op {
            Op::Put(at) => {
                let stamp = self.stamp();
                self.disk.insert(place(at), stamp);
            }
            Op::Rewrite(at) => {
                let mtime_ns = self.stamp().mtime_ns;
                if let Some(stamp) = self.disk.get_mut(&place(at)) {
                    stamp.mtime_ns = mtime_ns;
                }
            }
            Op::Remove(at) => drop(self.disk.remove(&place(at))),
            Op::Rename(from, to) => {
                if let Some(stamp) = self.disk.remove(&place(from)) {
                    self.disk.insert(place(to), stamp);
                }
            }
            Op::Look { reports, end } => {
                self.look(reports.into());
                match end {
                    End::Saved => self.save(),
                    End::Unsaved => {}
                    End::Killed => self.start_anew(),
                }
            }
            Op::NewCatalog => {
                self.catalog.clear();
                self.incarnation += 1;
            }
            Op::LoseIndex => {
                self.written.clear();
                self.start_anew();
            }
        }
    }
}

fn op() -> impl Strategy<Value = Op> {
    let at = 0..PLACES;
    let end = prop_oneof![Just(End::Saved), Just(End::Unsaved), Just(End::Killed)];
    prop_oneof![
        4 => at.clone().prop_map(Op::Put),
        2 => at.clone().prop_map(Op::Rewrite),
        2 => at.clone().prop_map(Op::Remove),
        4 => (at.clone(), at).prop_map(|(from, to)| Op::Rename(from, to)),
        6 => (0..4_u8, end).prop_map(|(reports, end)| Op::Look { reports, end }),
        1 => Just(Op::NewCatalog),
        1 => Just(Op::LoseIndex),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn looks_end_at_the_truth(ops in prop::collection::vec(op(), 1..40)) {
        // Another incarnation than an index of nobody has.
        let mut world = World { incarnation: 1, ..World::default() };
        for op in &ops {
            world.act(op);
        }
        // An empty volume says nothing of what a catalogue may have of it.
        world.act(&Op::Put(0));
        prop_assert!(world.look(usize::MAX));
        let known: BTreeMap<_, _> = world.catalog.values().cloned().collect();
        prop_assert_eq!(&known, &world.disk);
        prop_assert_eq!(known.len(), world.catalog.len(), "no two images at one path");
        for (path, known) in world.index.files() {
            let told = (path.clone(), known.stamp);
            prop_assert_eq!(world.catalog.get(&known.image), Some(&told));
        }
        // All files move on by one place, in whichever order they are met.
        let before = world.catalog.clone();
        let moved = world.disk.clone().into_iter().enumerate();
        let paths: Vec<VolumePath> = world.disk.keys().cloned().collect();
        world.disk = moved.map(|(n, (_, stamp))| (paths[(n + 1) % paths.len()].clone(), stamp)).collect();
        prop_assert!(world.look(usize::MAX));
        let known: BTreeMap<_, _> = world.catalog.values().cloned().collect();
        prop_assert_eq!(&known, &world.disk);
        let stamp = |(image, (_, stamp)): (&ImageId, &(VolumePath, Stamp))| (*image, *stamp);
        let stays: Vec<_> = before.iter().map(stamp).collect();
        let after: Vec<_> = world.catalog.iter().map(stamp).collect();
        prop_assert_eq!(stays, after, "a renamed file is the image that it was");
        // And an undisturbed look has nothing more to tell.
        let calm = plan(&world.index, &world.seen(), &Layout::default(), world.catalog_id());
        prop_assert!(calm.differences.is_empty());
    }
}
