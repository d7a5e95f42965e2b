//! What the kernel has to forget of a tree: after a change, or where a list taken later differs.

use isotope_proto::id::Ino;
use isotope_proto::name::EntryName;
use isotope_proto::tree::Entry;

use super::Tree;
use super::node::Inode;

/// Something the kernel may have cached and must forget.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stale {
    /// A name, known to be there or known to be absent.
    Name { folder: Ino, name: EntryName },
    /// A folder's attributes and its listing.
    Listing(Ino),
    /// An image's attributes; its pages stay right, for an inode is one content.
    Attributes(Ino),
}

#[derive(Default)]
pub(super) struct Effects {
    pub(super) stale: Vec<Stale>,
    /// Inodes that left the tree; somebody may have them open still.
    pub(super) gone: Vec<(Ino, Inode)>,
    /// Nobody is going to be told: a list has millions.
    pub(super) unwanted: bool,
}

impl Effects {
    pub(super) fn push(&mut self, stale: Stale) {
        if !self.unwanted {
            self.stale.push(stale);
        }
    }

    pub(super) fn name(&mut self, entry: &Entry) {
        self.push(Stale::Name { folder: entry.parent, name: entry.name.clone() });
        self.push(Stale::Listing(entry.parent));
    }
}

impl Tree {
    /// What the kernel may have cached from `self` that is not so in `new`, a list taken later;
    /// and the inodes that are gone. Of another incarnation nothing is kept.
    pub fn outdated_by(&self, new: &Self) -> (Vec<Stale>, Vec<(Ino, Inode)>) {
        let same_life = self.position.incarnation == new.position.incarnation;
        let mut effects = Effects::default();
        for (ino, inode) in self.inodes.iter() {
            // The root is the same in every life, and so is what the kernel keeps under it.
            let successor = new.inodes.get(ino).filter(|_| same_life || ino == Ino::ROOT);
            if same_life && successor == Some(inode) {
                continue;
            }
            effects.stale.push(match inode {
                Inode::Folder(_) => Stale::Listing(ino),
                Inode::Image(_) => Stale::Attributes(ino),
            });
            if successor.is_none() {
                effects.gone.push((ino, inode.clone()));
            }
            let Inode::Folder(before) = inode else { continue };
            let after = match successor {
                Some(Inode::Folder(after)) => Some(after),
                Some(Inode::Image(_)) | None => None,
            };
            let lost = before.names().filter(|(name, ino)| {
                !same_life || after.and_then(|after| after.child(name.as_str())) != Some(*ino)
            });
            // Names that are new may be cached as absent.
            let gained = after.into_iter().flat_map(|after| after.names());
            let gained = gained.filter(|(name, _)| before.child(name.as_str()).is_none());
            for (name, _) in lost.chain(gained) {
                effects.stale.push(Stale::Name { folder: ino, name: name.clone() });
            }
        }
        (effects.stale, effects.gone)
    }
}
