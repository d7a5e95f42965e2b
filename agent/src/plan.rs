//! What a scan is to do about what it saw. Pure: it knows the index and the look, neither the disk
//! nor the catalogue.

use std::collections::{BTreeMap, BTreeSet};

use isotope_proto::id::Incarnation;
use isotope_proto::image::Stamp;
use isotope_proto::name::VolumePath;
use isotope_proto::report::FileEvent;

use crate::index::Index;
use crate::layout::Layout;
use crate::reconcile::{Difference, introduce, reconcile, standing};
use crate::walk::{ImageDir, Seen};

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) doubt: Option<Doubt>,
    pub(crate) differences: Vec<Difference>,
    /// Whether the catalogue is told everything, as one that does not know this volume.
    pub(crate) introduces: bool,
    /// Where it is not known what else the catalogue has of the volume: how that is found out.
    pub(crate) ending: Option<Ending>,
}

/// Of a volume's images, one in so many may be gone without a second look.
const SUSPECT_SHARE: usize = 10;

/// Why a look is not believed: images of a volume that seem gone at once may lie on a disk that is
/// not mounted, or be moved about at this moment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// So many images seem gone. A second look that sees the same is believed.
    LookAgain(BTreeSet<VolumePath>),
    /// No look is, until somebody has seen to it.
    Refused(String),
}

/// How it is found out what else the catalogue has of a volume.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With all files there are: what the catalogue has at other paths is gone, and so is all but
    /// one of what it has at one.
    Everything(BTreeMap<VolumePath, Stamp>),
    /// Not yet: something could not be seen, or nothing was; the next scan introduces anew.
    Open,
}

pub(crate) fn plan(index: &Index, seen: &Seen, layout: &Layout, catalog: Incarnation) -> Plan {
    let there = standing(index.files(), seen);
    let known_there = index.files().keys().any(|path| there.contains_key(path));
    let refused = refusal(index, seen, layout, known_there).map(Doubt::Refused);
    let doubt = |differences: &[Difference]| refused.or_else(|| suspect(index, differences));
    let introduces = !index.is_known_to(catalog);
    let differences = match introduces {
        false => reconcile(index.files(), &there),
        true => introduce(index.files(), &there),
    };
    if !introduces && index.is_compared() {
        return Plan { doubt: doubt(&differences), differences, introduces, ending: None };
    }
    let mut all = there;
    // Those of which the index lost that they are known.
    all.extend(seen.others.iter().map(|(path, other)| (path.clone(), other.stamp)));
    let ending = if all.is_empty() || !seen.unseen.is_empty() {
        Ending::Open
    } else {
        Ending::Everything(all)
    };
    Plan { doubt: doubt(&differences), differences, introduces, ending: Some(ending) }
}

/// Whether so many images seem gone that one look is not enough.
fn suspect(index: &Index, differences: &[Difference]) -> Option<Doubt> {
    let gone = differences.iter().filter(|it| it.event == FileEvent::Deleted);
    let gone: BTreeSet<VolumePath> = gone.map(|it| it.path.clone()).collect();
    let known = index.files().len();
    (gone.len() * SUSPECT_SHARE > known).then_some(Doubt::LookAgain(gone))
}

/// Why nothing is taken for deleted, however often this is seen.
fn refusal(index: &Index, seen: &Seen, layout: &Layout, known_there: bool) -> Option<String> {
    let known = index.files().len();
    if known == 0 || known_there {
        return None;
    }
    let what = match (index.image_dir(), seen.image_dir) {
        (_, ImageDir::Missing) => "is missing",
        // Device numbers change with every start of a host; whether it is a mount point does not.
        (Some(ImageDir::Apart), ImageDir::Within) => "is no longer a mounted disk",
        (Some(ImageDir::Within), ImageDir::Apart) => "is covered by another disk",
        _ => return None,
    };
    let dir = layout.image_dir();
    Some(format!(
        "{dir}/ {what} although {known} images are known in it; is a disk unmounted? Nothing is \
         taken for deleted. If it is to be so, take the pool out (isotope pool remove) and add it \
         again; where {dir}/ is missing, make an empty one"
    ))
}

#[cfg(test)]
mod truth;

#[cfg(test)]
mod tests {
    use isotope_proto::id::ImageId;
    use isotope_proto::report::FileEvent;

    use super::*;
    use crate::index::Known;
    use crate::walk::Other;

    const CATALOG: Incarnation = Incarnation::from_bytes([1; 16]);
    const OTHER: Incarnation = Incarnation::from_bytes([2; 16]);

    fn path(text: &str) -> VolumePath {
        VolumePath::parse(text).expect("a path")
    }

    fn stamp(n: u8) -> Stamp {
        Stamp { inode: n.into(), size_bytes: 1, mtime_ns: 1 }
    }

    /// An index that `CATALOG` knows.
    fn index(files: &[(&str, u8)], image_dir: ImageDir) -> Index {
        let mut index = Index::default();
        for (at, n) in files {
            let image = ImageId::from_bytes([*n; 16]);
            index.insert(path(at), Known { image, stamp: stamp(*n) });
        }
        index.images_lie(image_dir);
        index.end_introduction(CATALOG);
        index
    }

    fn seen(files: &[(&str, u8)], image_dir: ImageDir) -> Seen {
        let files = files.iter().map(|(at, n)| (path(at), stamp(*n))).collect();
        Seen { files, image_dir, ..Seen::default() }
    }

    #[test]
    fn an_unmounted_disk_deletes_nothing() {
        use ImageDir::{Apart, Missing, Within};
        type Files = &'static [(&'static str, u8)];
        let refused = |what: &str| format!("Refused(\"iso/ {what}");
        let again = || "LookAgain(".to_owned();
        let none = String::new;
        let cases: [(Files, ImageDir, Files, ImageDir, String); 9] = [
            (&[("iso/a.iso", 1)], Within, &[], Missing, refused("is missing although 1")),
            (&[], Within, &[], Missing, none()),
            (&[("iso/a.iso", 1)], Apart, &[], Within, refused("is no longer")),
            (&[("iso/a.iso", 1)], Apart, &[("iso/b.iso", 9)], Within, refused("is no longer")),
            (&[("iso/a.iso", 1)], Within, &[("iso/b.iso", 9)], Apart, refused("is covered")),
            // Its images were copied to where the disk was mounted before.
            (&[("iso/a.iso", 1)], Apart, &[("iso/a.iso", 9)], Within, none()),
            (&[("iso/a.iso", 1)], Within, &[], Within, again()),
            (&[("iso/a.iso", 1)], Apart, &[], Apart, again()),
            (&[("iso/a.iso", 1)], Within, &[("iso/b.iso", 9)], Within, again()),
        ];
        for (known, before, files, now, expected) in cases {
            for catalog in [CATALOG, OTHER] {
                let doubt =
                    plan(&index(known, before), &seen(files, now), &Layout::default(), catalog)
                        .doubt;
                let doubt = doubt.map_or(String::new(), |doubt| format!("{doubt:?}"));
                assert!(doubt.starts_with(&expected), "{known:?}, {files:?}: {doubt}");
                assert_eq!(doubt.is_empty(), expected.is_empty(), "{known:?}, {files:?}: {doubt}");
            }
        }
    }

    #[test]
    fn more_than_a_tenth_gone_at_once_is_looked_at_again() {
        let names: Vec<String> = (0..20).map(|n| format!("iso/{n}.iso")).collect();
        let files: Vec<(&str, u8)> = names.iter().map(String::as_str).zip(1..).collect();
        let index = index(&files, ImageDir::Within);
        for (gone, suspect) in [(0, false), (2, false), (3, true), (20, true)] {
            let look = seen(&files[gone..], ImageDir::Within);
            let made = plan(&index, &look, &Layout::default(), CATALOG);
            assert_eq!(made.differences.len(), gone);
            let again = matches!(&made.doubt, Some(Doubt::LookAgain(paths)) if paths.len() == gone);
            assert_eq!(again, suspect, "{gone} of 20");
        }
    }

    #[test]
    fn an_introduction_ends_with_everything_there_is() {
        let known = index(&[("iso/a.iso", 1), ("iso/gone.iso", 2)], ImageDir::Within);
        let mut look = seen(&[("iso/a.iso", 1), ("iso/b.iso", 3)], ImageDir::Within);
        let linked = Other { stamp: stamp(4), has_image_name: true };
        look.others.insert(path("iso/linked.iso"), linked);
        assert_eq!(plan(&known, &look, &Layout::default(), CATALOG).ending, None);
        let made = plan(&known, &look, &Layout::default(), OTHER);
        let everything = [("iso/a.iso", 1), ("iso/b.iso", 3), ("iso/linked.iso", 4)];
        let everything = everything.map(|(at, n)| (path(at), stamp(n)));
        assert_eq!(made.ending, Some(Ending::Everything(everything.into())));
        let told = made.differences.iter().map(|it| (it.event, it.path.as_str()));
        assert_eq!(
            told.collect::<Vec<_>>(),
            [
                (FileEvent::Deleted, "iso/gone.iso"),
                (FileEvent::Created, "iso/b.iso"),
                (FileEvent::Created, "iso/a.iso"),
            ]
        );
        // An index that was just read does not know what was told since it was written,
        let lines = known.lines().into_iter().map(Ok);
        let read = Index::from_lines(lines).expect("read");
        let again = plan(&read, &look, &Layout::default(), CATALOG);
        assert!(!again.introduces && again.ending.is_some());
        // and a lost one does not know what else the catalogue may know.
        let lost = plan(&Index::default(), &look, &Layout::default(), CATALOG);
        assert!(matches!(lost.ending, Some(Ending::Everything(paths)) if paths.len() == 3));
        // What could not be seen is not gone; nor is everything, where nothing is.
        look.unseen.insert("iso/bad".to_owned());
        assert_eq!(plan(&known, &look, &Layout::default(), OTHER).ending, Some(Ending::Open));
        let nothing = seen(&[], ImageDir::Missing);
        assert_eq!(
            plan(&Index::default(), &nothing, &Layout::default(), OTHER).ending,
            Some(Ending::Open)
        );
    }
}
