//! Records, deltas and changes; also their stored form, which is the wire form.

use prost::Message as _;

use super::{Malformed, each, required, time_in, time_out};
use crate::change::{Change, Delta, Edit, Record};
use crate::id::{Incarnation, Revision};
use crate::pb;
use pb::record::Record as R;

impl From<Record> for pb::Record {
    fn from(record: Record) -> Self {
        let record = match record {
            Record::Folder(folder) => R::Folder(folder.into()),
            Record::Image(image) => R::Image(image.into()),
            Record::Entry(entry) => R::Entry(entry.into()),
            Record::Node(node) => R::Node(node.into()),
            Record::Pool(pool) => R::Pool(pool.into()),
            Record::Volume(volume) => R::Volume(volume.into()),
        };
        Self { record: Some(record) }
    }
}

impl TryFrom<pb::Record> for Record {
    type Error = Malformed;
    fn try_from(record: pb::Record) -> Result<Self, Malformed> {
        Ok(match required("record", record.record)? {
            R::Folder(folder) => Self::Folder(folder.try_into()?),
            R::Image(image) => Self::Image(image.try_into()?),
            R::Entry(entry) => Self::Entry(entry.try_into()?),
            R::Node(node) => Self::Node(node.try_into()?),
            R::Pool(pool) => Self::Pool(pool.try_into()?),
            R::Volume(volume) => Self::Volume(volume.try_into()?),
        })
    }
}

fn edit_out<T>(edit: Edit<T>, record: fn(T) -> Record) -> pb::Delta {
    let (before, after) = match edit {
        Edit::Made(after) => (None, Some(after)),
        Edit::Changed { before, after } => (Some(before), Some(after)),
        Edit::Removed(before) => (Some(before), None),
    };
    pb::Delta {
        before: before.map(|it| record(it).into()),
        after: after.map(|it| record(it).into()),
    }
}

impl From<Delta> for pb::Delta {
    fn from(delta: Delta) -> Self {
        match delta {
            Delta::Folder(edit) => edit_out(edit, Record::Folder),
            Delta::Image(edit) => edit_out(edit, Record::Image),
            Delta::Entry(edit) => edit_out(edit, Record::Entry),
            Delta::Node(edit) => edit_out(edit, Record::Node),
            Delta::Pool(edit) => edit_out(edit, Record::Pool),
            Delta::Volume(edit) => edit_out(edit, Record::Volume),
        }
    }
}

impl TryFrom<pb::Delta> for Delta {
    type Error = Malformed;
    fn try_from(delta: pb::Delta) -> Result<Self, Malformed> {
        let before = delta.before.map(Record::try_from).transpose()?;
        let after = delta.after.map(Record::try_from).transpose()?;
        Ok(match (before, after) {
            (None, None) => return Err(Malformed::Missing("delta")),
            (None, Some(after)) => one_sided(after, Side::After),
            (Some(before), None) => one_sided(before, Side::Before),
            (Some(before), Some(after)) => match (before, after) {
                (Record::Folder(b), Record::Folder(a)) => Self::Folder(changed(b, a)),
                (Record::Image(b), Record::Image(a)) => Self::Image(changed(b, a)),
                (Record::Entry(b), Record::Entry(a)) => Self::Entry(changed(b, a)),
                (Record::Node(b), Record::Node(a)) => Self::Node(changed(b, a)),
                (Record::Pool(b), Record::Pool(a)) => Self::Pool(changed(b, a)),
                (Record::Volume(b), Record::Volume(a)) => Self::Volume(changed(b, a)),
                _ => return Err(Malformed::MixedDelta),
            },
        })
    }
}

fn changed<T>(before: T, after: T) -> Edit<T> {
    Edit::Changed { before, after }
}

#[derive(Clone, Copy)]
enum Side {
    Before,
    After,
}

impl Side {
    fn edit<T>(self, record: T) -> Edit<T> {
        match self {
            Self::Before => Edit::Removed(record),
            Self::After => Edit::Made(record),
        }
    }
}

fn one_sided(record: Record, side: Side) -> Delta {
    match record {
        Record::Folder(it) => Delta::Folder(side.edit(it)),
        Record::Image(it) => Delta::Image(side.edit(it)),
        Record::Entry(it) => Delta::Entry(side.edit(it)),
        Record::Node(it) => Delta::Node(side.edit(it)),
        Record::Pool(it) => Delta::Pool(side.edit(it)),
        Record::Volume(it) => Delta::Volume(side.edit(it)),
    }
}

impl From<Change> for pb::Change {
    fn from(change: Change) -> Self {
        Self {
            incarnation: change.incarnation.into(),
            revision: change.revision.0,
            time: time_out(change.time),
            deltas: change.deltas.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::Change> for Change {
    type Error = Malformed;
    fn try_from(change: pb::Change) -> Result<Self, Malformed> {
        Ok(Self {
            incarnation: Incarnation::try_from(&*change.incarnation)?,
            revision: Revision(change.revision),
            time: time_in("change.time", change.time)?,
            deltas: each(change.deltas)?,
        })
    }
}

/// A change as bytes, for the store's log.
#[must_use]
pub fn encode_change(change: &Change) -> Vec<u8> {
    pb::Change::from(change.clone()).encode_to_vec()
}

/// The inverse of [`encode_change`].
pub fn decode_change(bytes: &[u8]) -> Result<Change, Malformed> {
    let change =
        pb::Change::decode(bytes).map_err(|error| Malformed::Undecodable(error.to_string()))?;
    Change::try_from(change)
}
