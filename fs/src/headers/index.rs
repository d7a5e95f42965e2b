//! Which headers are kept, and which goes next. Pure: it is told what happens to their files.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use isotope_proto::id::ImageId;

/// A header that is used again and again is noted as used on the disk no more often than this.
const TOUCH_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Index {
    kept: HashMap<ImageId, Kept>,
    /// On their way from a host, or to the disk.
    coming: HashSet<ImageId>,
    /// Counts uses: whichever has the smallest number goes first.
    uses: u64,
    most: usize,
}

#[derive(Debug, Default)]
struct Kept {
    used: u64,
    touched: Option<Instant>,
    /// It was compared with its image's hash; not known of what an earlier process kept.
    hashed: bool,
}

impl Index {
    /// Of what earlier processes kept, the longest unused first.
    pub(super) fn new(most: usize, found: impl IntoIterator<Item = ImageId>) -> Self {
        let mut index = Self { kept: HashMap::new(), coming: HashSet::new(), uses: 0, most };
        for image in found {
            index.add(image, false);
        }
        index
    }

    pub(super) fn has(&self, image: ImageId) -> bool {
        self.kept.contains_key(&image)
    }

    /// Whether an image's header is to be had from somewhere: then it is on its way, until
    /// [`Self::arrived`]. What was kept before its hash was known is wanted again.
    pub(super) fn wants(&mut self, image: ImageId, hashed: bool) -> bool {
        let had = self.kept.get(&image).is_some_and(|kept| kept.hashed || !hashed);
        !had && self.coming.insert(image)
    }

    #[cfg(test)]
    pub(super) fn is_coming(&self, image: ImageId) -> bool {
        self.coming.contains(&image)
    }

    pub(super) fn arrived(&mut self, image: ImageId) {
        self.coming.remove(&image);
    }

    /// Returns whether its use is to be noted on the disk.
    pub(super) fn used(&mut self, image: ImageId, now: Instant) -> bool {
        let Some(kept) = self.kept.get_mut(&image) else { return false };
        self.uses += 1;
        kept.used = self.uses;
        let due = kept.touched.is_none_or(|at| now.saturating_duration_since(at) >= TOUCH_EVERY);
        if due {
            kept.touched = Some(now);
        }
        due
    }

    /// What has to go, so that there is room for one: again, until there is nothing.
    pub(super) fn in_the_way_of(&mut self, image: ImageId) -> Option<ImageId> {
        if self.has(image) || self.kept.len() < self.most {
            return None;
        }
        let oldest = self.kept.iter().min_by_key(|(_, kept)| kept.used)?;
        let oldest = *oldest.0;
        self.remove(oldest);
        Some(oldest)
    }

    pub(super) fn add(&mut self, image: ImageId, hashed: bool) {
        self.uses += 1;
        self.kept.insert(image, Kept { used: self.uses, touched: None, hashed });
    }

    pub(super) fn remove(&mut self, image: ImageId) {
        self.kept.remove(&image);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(n: u8) -> ImageId {
        ImageId::from_bytes([n; 16])
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let mut index = Index::new(3, [image(1), image(2), image(3)]);
        index.used(image(1), Instant::now());
        assert_eq!(index.in_the_way_of(image(3)), None, "it is there");
        assert_eq!(index.in_the_way_of(image(4)), Some(image(2)));
        assert_eq!(index.in_the_way_of(image(4)), None);
        index.add(image(4), true);
        assert_eq!(index.in_the_way_of(image(5)), Some(image(3)));
        index.add(image(5), true);
        assert!(index.has(image(1)) && index.has(image(4)) && index.has(image(5)));
    }

    #[test]
    fn more_than_may_be_go_one_by_one() {
        let mut index = Index::new(2, (1..=5).map(image));
        let mut gone = Vec::new();
        while let Some(it) = index.in_the_way_of(image(9)) {
            gone.push(it);
        }
        assert_eq!(gone, (1..=4).map(image).collect::<Vec<_>>());
    }

    #[test]
    fn a_header_is_asked_for_once_and_again_when_it_can_be_checked() {
        let mut index = Index::new(9, [image(1)]);
        assert!(!index.wants(image(1), false));
        assert!(index.wants(image(2), false));
        assert!(!index.wants(image(2), true), "it is on its way");
        index.add(image(2), false);
        index.arrived(image(2));
        assert!(!index.wants(image(2), false));
        assert!(index.wants(image(2), true), "its hash has become known");
        index.add(image(2), true);
        index.arrived(image(2));
        assert!(!index.wants(image(2), true));
        assert!(index.wants(image(3), false));
        index.arrived(image(3));
        assert!(index.wants(image(3), false), "it never came");
    }

    #[test]
    fn a_use_is_noted_now_and_then() {
        let mut index = Index::new(9, [image(1)]);
        let now = Instant::now();
        assert!(!index.used(image(2), now), "it is not there");
        assert!(index.used(image(1), now));
        assert!(!index.used(image(1), now));
        assert!(index.used(image(1), now + TOUCH_EVERY));
    }
}
