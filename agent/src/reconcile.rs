//! What to tell the catalogue so that it agrees with the disk. Pure: walking the disk is not its
//! business.

use std::collections::{BTreeMap, HashMap, HashSet};

use isotope_proto::id::ImageId;
use isotope_proto::image::Stamp;
use isotope_proto::name::VolumePath;
use isotope_proto::report::FileEvent;

use crate::index::Known;
use crate::walk::Seen;

/// One difference between what is known and what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) event: FileEvent,
    /// Where the file is; for a deleted one, where it was.
    pub(crate) path: VolumePath,
    pub(crate) stamp: Stamp,
    /// Known, unless the file is new or has other bytes now.
    pub(crate) image: Option<ImageId>,
    /// What a moved file or one with other bytes was, and where.
    pub(crate) before: Option<(VolumePath, Known)>,
}

/// What counts as there: the files seen; known ones that would not be adopted, or that lie where
/// nothing could be seen; and, under its new name, a known one that was renamed and then linked.
pub(crate) fn standing(
    known: &BTreeMap<VolumePath, Known>,
    seen: &Seen,
) -> BTreeMap<VolumePath, Stamp> {
    let mut there = seen.files.clone();
    for (path, known) in known {
        let is_other = seen.others.get(path).is_some_and(|it| it.stamp == known.stamp);
        if is_other || seen.hides(path) {
            there.entry(path.clone()).or_insert(known.stamp);
        }
    }
    let mut lost: HashSet<Stamp> = known.values().map(|known| known.stamp).collect();
    for stamp in there.values() {
        lost.remove(stamp);
    }
    for (path, other) in &seen.others {
        // Renamed to what is no image's name, it was put aside: that is a deletion.
        if other.has_image_name && lost.remove(&other.stamp) {
            there.entry(path.clone()).or_insert(other.stamp);
        }
    }
    there
}

/// The differences, in an order in which they can be applied one after another: what is gone makes
/// room for what moved, and that for what is new. A file that moved is known by its stamp.
pub(crate) fn reconcile(
    known: &BTreeMap<VolumePath, Known>,
    seen: &BTreeMap<VolumePath, Stamp>,
) -> Vec<Difference> {
    let unchanged = |path: &VolumePath, stamp: &Stamp| {
        known.get(path).is_some_and(|known| known.stamp == *stamp)
    };
    let mut gone: BTreeMap<&VolumePath, &Known> =
        known.iter().filter(|(path, known)| seen.get(*path) != Some(&known.stamp)).collect();
    let by_stamp: HashMap<Stamp, &VolumePath> =
        gone.iter().map(|(path, known)| (known.stamp, *path)).collect();
    let mut moved = Vec::new();
    let mut new = Vec::new();
    for (path, stamp) in seen.iter().filter(|(path, stamp)| !unchanged(path, stamp)) {
        let from = by_stamp.get(stamp).copied();
        if let Some((from, before)) = from.and_then(|from| Some((from, gone.remove(from)?))) {
            moved.push(Difference {
                event: FileEvent::Moved,
                path: path.clone(),
                stamp: *stamp,
                image: Some(before.image),
                before: Some((from.clone(), *before)),
            });
        } else {
            new.push((path, stamp));
        }
    }
    let mut changed = Vec::new();
    for (path, stamp) in new {
        let before = gone.remove(path).map(|known| (path.clone(), *known));
        let event = if before.is_some() { FileEvent::Updated } else { FileEvent::Created };
        let (path, stamp) = (path.clone(), *stamp);
        changed.push(Difference { event, path, stamp, image: None, before });
    }
    let deleted = gone.into_iter().map(|(path, known)| Difference {
        event: FileEvent::Deleted,
        path: path.clone(),
        stamp: known.stamp,
        image: Some(known.image),
        before: None,
    });
    deleted.chain(moved).chain(changed).collect()
}

/// The same for a catalogue of which is not known what it knows: what did not change is told as
/// well, under the id it has always had.
pub(crate) fn introduce(
    known: &BTreeMap<VolumePath, Known>,
    seen: &BTreeMap<VolumePath, Stamp>,
) -> Vec<Difference> {
    let unchanged = known.iter().filter(|(path, known)| seen.get(*path) == Some(&known.stamp));
    let told = unchanged.map(|(path, known)| Difference {
        event: FileEvent::Created,
        path: path.clone(),
        stamp: known.stamp,
        image: Some(known.image),
        before: None,
    });
    let mut differences = reconcile(known, seen);
    differences.extend(told);
    differences
}

#[cfg(test)]
mod tests {
    use FileEvent::{Created, Deleted, Moved, Updated};

    use super::*;
    use crate::walk::Other;

    fn stamp(n: u8) -> Stamp {
        Stamp { inode: n.into(), size_bytes: 10, mtime_ns: 7 }
    }

    fn known(files: &[(&str, u8)]) -> BTreeMap<VolumePath, Known> {
        let known = |n: u8| Known { image: ImageId::from_bytes([n; 16]), stamp: stamp(n) };
        files
            .iter()
            .map(|&(path, n)| (VolumePath::parse(path).expect("a path"), known(n)))
            .collect()
    }

    fn check(
        before: &[(&str, u8)],
        after: &[(&str, u8)],
        expected: &[(FileEvent, &str, Option<u8>)],
    ) {
        let seen = known(after).into_iter().map(|(path, known)| (path, known.stamp)).collect();
        let found = reconcile(&known(before), &seen);
        let found: Vec<_> = found
            .iter()
            .map(|it| (it.event, it.path.as_str(), it.image.map(|image| image.as_bytes()[0])))
            .collect();
        assert_eq!(found, expected, "{before:?} → {after:?}");
    }

    #[test]
    fn differences_are_told_in_an_order_that_can_be_applied() {
        check(&[], &[], &[]);
        check(&[("a", 1)], &[("a", 1)], &[]);
        check(&[], &[("a", 1)], &[(Created, "a", None)]);
        check(&[("a", 1)], &[], &[(Deleted, "a", Some(1))]);
        check(&[("a", 1)], &[("a", 2)], &[(Updated, "a", None)]);
        check(&[("a", 1)], &[("b", 1)], &[(Moved, "b", Some(1))]);
        // Renamed over another: that one is gone.
        check(
            &[("a", 1), ("b", 2)],
            &[("b", 1)],
            &[(Deleted, "b", Some(2)), (Moved, "b", Some(1))],
        );
        // Exchanged.
        check(
            &[("a", 1), ("b", 2)],
            &[("a", 2), ("b", 1)],
            &[(Moved, "a", Some(2)), (Moved, "b", Some(1))],
        );
        // Moved away, and a new file in its place.
        check(&[("a", 1)], &[("a", 3), ("b", 1)], &[(Moved, "b", Some(1)), (Created, "a", None)]);
    }

    #[test]
    fn another_catalogue_is_told_everything_under_the_old_ids() {
        let before = known(&[("gone", 3), ("old", 1), ("same", 4)]);
        let seen = known(&[("a", 1), ("b", 2), ("same", 4)]);
        let seen = seen.into_iter().map(|(path, known)| (path, known.stamp)).collect();
        let told = introduce(&before, &seen);
        let told: Vec<_> = told
            .iter()
            .map(|it| (it.event, it.path.as_str(), it.image.map(|image| image.as_bytes()[0])))
            .collect();
        assert_eq!(
            told,
            [
                (Deleted, "gone", Some(3)),
                (Moved, "a", Some(1)),
                (Created, "b", None),
                (Created, "same", Some(4))
            ]
        );
    }

    #[test]
    fn a_hard_link_made_outside_deletes_nothing_and_adopts_nothing() {
        type Files = &'static [(&'static str, u8)];
        let cases: [(Files, Files, Files); 6] = [
            // Known and linked; its other name is nobody's.
            (&[("a.iso", 1)], &[("a.iso", 1), ("b.iso", 1)], &[("a.iso", 1)]),
            (&[], &[("a.iso", 1), ("b.iso", 1)], &[]),
            // Renamed, then linked.
            (&[("a.iso", 1)], &[("b.iso", 1), ("c.iso", 1)], &[("b.iso", 1)]),
            // Other bytes.
            (&[("a.iso", 1)], &[("a.iso", 2)], &[]),
            // An upload whose name is no image's, and a file put aside under such a name.
            (&[("noext", 1)], &[("noext", 1)], &[("noext", 1)]),
            (&[("a.iso", 1)], &[("a.iso.bak", 1)], &[]),
        ];
        for (before, others, expected) in cases {
            let stamps = |files| known(files).into_iter().map(|(path, it)| (path, it.stamp));
            let other = |(path, stamp): (VolumePath, Stamp)| {
                let has_image_name = path.file_name().ends_with(".iso");
                (path, Other { stamp, has_image_name })
            };
            let seen = Seen { others: stamps(others).map(other).collect(), ..Seen::default() };
            let there = standing(&known(before), &seen);
            assert_eq!(there, stamps(expected).collect(), "{before:?} → {others:?}");
        }
    }

    #[test]
    fn what_cannot_be_seen_stays() {
        let seen = Seen { unseen: ["bad".to_owned()].into(), ..Seen::default() };
        let before = known(&[("bad/a", 1), ("good/a", 2)]);
        let there = standing(&before, &seen);
        assert_eq!(there.keys().map(VolumePath::as_str).collect::<Vec<_>>(), ["bad/a"]);
        assert_eq!(reconcile(&before, &there).len(), 1);
    }
}
