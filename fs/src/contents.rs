//! Which images are known to have the same bytes, so that each can be read from the files of all.
//! Pure, and small where nothing is shared: of a content that one image has, four bytes are kept.

use std::collections::{HashMap, HashSet};

use isotope_proto::id::{ContentId, Ino};

/// The contents of a tree's images.
#[derive(Debug, Clone, Default)]
pub(crate) struct Contents {
    /// Of each content there is, or was since the list: what [`tag`] makes of it.
    tags: HashSet<u32>,
    /// The images of each content that more than one has had.
    shared: HashMap<ContentId, Vec<Ino>>,
    /// Their tags had been met before: shared, or, once in some thousands, not.
    unsettled: HashSet<ContentId>,
}

/// All of it follows from the images, of which a tree is made: equal ones have equal contents.
impl PartialEq for Contents {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Contents {}

impl Contents {
    pub(crate) fn reserve(&mut self, images: usize) {
        self.tags.reserve(images);
    }

    /// An image has this content from now on.
    pub(crate) fn add(&mut self, content: ContentId, ino: Ino) {
        if let Some(images) = self.shared.get_mut(&content) {
            if !images.contains(&ino) {
                images.push(ino);
            }
        } else if !self.tags.insert(tag(content)) {
            self.unsettled.insert(content);
        }
    }

    /// An image has this content no more. Whoever has it open may read the others still.
    pub(crate) fn remove(&mut self, content: ContentId, ino: Ino) {
        if let Some(images) = self.shared.get_mut(&content) {
            images.retain(|it| *it != ino);
            if images.is_empty() {
                self.shared.remove(&content);
            }
        }
    }

    /// The images of each content that several have.
    pub(crate) fn shared(&self) -> impl Iterator<Item = &[Ino]> {
        self.shared.values().map(Vec::as_slice).filter(|images| images.len() > 1)
    }

    /// Looks through all images, if there is a content of which only they can tell whether it is
    /// shared: once for a whole list, and then when an image comes to share another's.
    pub(crate) fn settle(&mut self, images: impl Iterator<Item = (ContentId, Ino)>) {
        if self.unsettled.is_empty() {
            return;
        }
        let mut found: HashMap<ContentId, Vec<Ino>> = HashMap::new();
        for (content, ino) in images.filter(|(content, _)| self.unsettled.contains(content)) {
            found.entry(content).or_default().push(ino);
        }
        found.retain(|_, images| images.len() > 1);
        self.shared.extend(found);
        self.unsettled.clear();
    }

    /// The images that have a content which is shared, or was.
    pub(crate) fn images(&self, content: ContentId) -> &[Ino] {
        self.shared.get(&content).map(Vec::as_slice).unwrap_or_default()
    }
}

/// The end of an id, which is random (RFC 9562 §5.7).
fn tag(content: ContentId) -> u32 {
    u32::from_le_bytes(*content.as_bytes().last_chunk().expect("an id has 16 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(n: u8, tag: u8) -> ContentId {
        let mut id = [n; 16];
        id[12..].fill(tag);
        ContentId::from_bytes(id)
    }

    /// The images of a content, after some were given theirs.
    fn check(all: &[(u8, u8, u64)], asked: (u8, u8), expected: &[u64]) {
        let mut contents = Contents::default();
        let images: Vec<_> = all.iter().map(|it| (content(it.0, it.1), Ino(it.2))).collect();
        for (content, ino) in &images {
            contents.add(*content, *ino);
            // Told again, nothing changes.
            contents.add(*content, *ino);
        }
        contents.settle(images.iter().copied());
        let mut found = contents.images(content(asked.0, asked.1)).to_vec();
        found.sort_unstable();
        let found: Vec<u64> = found.into_iter().map(|ino| ino.0).collect();
        assert_eq!(found, expected, "{all:?}");
    }

    #[test]
    fn only_what_is_shared_is_listed() {
        check(&[], (1, 1), &[]);
        check(&[(1, 1, 10), (2, 2, 20)], (1, 1), &[]);
        check(&[(1, 1, 10), (2, 2, 20), (1, 1, 11)], (1, 1), &[10, 11]);
        check(&[(1, 1, 10), (2, 2, 20), (1, 1, 11)], (2, 2), &[]);
        // The same tag is not the same content.
        check(&[(1, 1, 10), (2, 1, 20)], (1, 1), &[]);
        check(&[(1, 1, 10), (2, 1, 20), (2, 1, 21)], (2, 1), &[20, 21]);
        check(&[(1, 1, 10), (2, 1, 20), (2, 1, 21)], (1, 1), &[]);
    }

    #[test]
    fn images_come_and_go() {
        let mut contents = Contents::default();
        let same = content(1, 1);
        contents.add(same, Ino(10));
        contents.add(same, Ino(11));
        contents.settle([(same, Ino(10)), (same, Ino(11))].into_iter());
        contents.add(same, Ino(12));
        assert_eq!(contents.images(same), [Ino(10), Ino(11), Ino(12)]);
        contents.remove(same, Ino(10));
        contents.remove(same, Ino(11));
        assert_eq!(contents.images(same), [Ino(12)], "for whoever has the others open");
        contents.remove(same, Ino(12));
        assert!(contents.images(same).is_empty());
    }
}
