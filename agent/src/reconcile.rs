//! What to tell the catalogue so that it agrees with the disk. Pure: walking the disk is not its
//! business.

use std::collections::{BTreeMap, HashMap};

use isotope_proto::id::ImageId;
use isotope_proto::image::Stamp;
use isotope_proto::name::VolumePath;
use isotope_proto::report::FileEvent;

use crate::index::Known;

/// One difference between what is known and what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) event: FileEvent,
    /// Where the file is; for a deleted one, where it was.
    pub(crate) path: VolumePath,
    pub(crate) stamp: Stamp,
    /// Known, unless the file is new or has other bytes now.
    pub(crate) image: Option<ImageId>,
    /// For a moved file, where it was.
    pub(crate) from: Option<VolumePath>,
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
                from: Some(from.clone()),
            });
        } else {
            new.push((path, stamp));
        }
    }
    let mut changed = Vec::new();
    for (path, stamp) in new {
        let event =
            if gone.remove(path).is_some() { FileEvent::Updated } else { FileEvent::Created };
        let (path, stamp) = (path.clone(), *stamp);
        changed.push(Difference { event, path, stamp, image: None, from: None });
    }
    let deleted = gone.into_iter().map(|(path, known)| Difference {
        event: FileEvent::Deleted,
        path: path.clone(),
        stamp: known.stamp,
        image: Some(known.image),
        from: None,
    });
    deleted.chain(moved).chain(changed).collect()
}

/// The same for a catalogue that knows nothing of the volume: each file is told, under the id it
/// has always had.
pub(crate) fn introduce(
    known: &BTreeMap<VolumePath, Known>,
    seen: &BTreeMap<VolumePath, Stamp>,
) -> Vec<Difference> {
    let by_stamp: HashMap<Stamp, ImageId> =
        known.values().map(|known| (known.stamp, known.image)).collect();
    let told = |(path, stamp): (&VolumePath, &Stamp)| Difference {
        event: FileEvent::Created,
        path: path.clone(),
        stamp: *stamp,
        image: by_stamp.get(stamp).copied(),
        from: None,
    };
    seen.iter().map(told).collect()
}

#[cfg(test)]
mod tests {
    use FileEvent::{Created, Deleted, Moved, Updated};

    use super::*;

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
        let seen = [("a", 1), ("b", 2)];
        let seen = known(&seen).into_iter().map(|(path, known)| (path, known.stamp)).collect();
        let told = introduce(&known(&[("old", 1)]), &seen);
        let told: Vec<_> = told.iter().map(|it| (it.event, it.image.is_some())).collect();
        assert_eq!(told, [(Created, true), (Created, false)]);
    }
}
