//! What the feed carries. Deltas are whole records, before and after: a mirror applies them without
//! knowing the rules, and the log can show and undo them.

use crate::cluster::{Node, Pool, Volume};
use crate::id::{Incarnation, Revision};
use crate::image::Image;
use crate::time::Timestamp;
use crate::tree::{Entry, Folder};

/// One record of the library, as lists carry it.
// Images are the many, and as large.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    Folder(Folder),
    Image(Image),
    Entry(Entry),
    Node(Node),
    Pool(Pool),
    Volume(Volume),
}

/// What happened to one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit<T> {
    Made(T),
    Changed { before: T, after: T },
    Removed(T),
}

impl<T> Edit<T> {
    #[must_use]
    pub fn before(&self) -> Option<&T> {
        match self {
            Self::Made(_) => None,
            Self::Changed { before, .. } | Self::Removed(before) => Some(before),
        }
    }

    #[must_use]
    pub fn after(&self) -> Option<&T> {
        match self {
            Self::Made(after) | Self::Changed { after, .. } => Some(after),
            Self::Removed(_) => None,
        }
    }

    /// The record itself, as it is or last was.
    #[must_use]
    pub fn subject(&self) -> &T {
        match self {
            Self::Made(record) | Self::Removed(record) => record,
            Self::Changed { after, .. } => after,
        }
    }
}

/// An edit, and of what.
// Most deltas are images, which are the large ones: boxing them would cost more than it saves.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    Folder(Edit<Folder>),
    Image(Edit<Image>),
    Entry(Edit<Entry>),
    Node(Edit<Node>),
    Pool(Edit<Pool>),
    Volume(Edit<Volume>),
}

/// Everything that one transaction changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub incarnation: Incarnation,
    pub revision: Revision,
    pub time: Timestamp,
    pub deltas: Vec<Delta>,
}
