//! What the events of a feed mean, one after the other: a list becomes a tree, the rest is handed
//! on. Pure, and the same for what comes from the catalogue and for what was recorded of it.

use isotope_proto::change::{Change, Record};
use isotope_proto::cluster::Live;
use isotope_proto::id::{Incarnation, Revision};
use isotope_proto::pb;
use isotope_proto::pb::watch_event::Event;
use isotope_proto::wire::Malformed;

use crate::tree::{Position, Tree};

/// An event, understood.
pub(crate) enum Heard {
    /// A list begins, of so many inodes.
    Reset(Position, u64),
    Records(Vec<Record>),
    Listed,
    Change(Change),
    Live(Live),
    Heartbeat,
}

impl TryFrom<Event> for Heard {
    type Error = Malformed;
    fn try_from(event: Event) -> Result<Self, Malformed> {
        Ok(match event {
            Event::Reset(reset) => {
                let incarnation = Incarnation::try_from(&*reset.incarnation)?;
                let revision = Revision(reset.revision);
                Self::Reset(Position { incarnation, revision }, reset.inodes)
            }
            Event::Records(records) => {
                let records = records.records.into_iter().map(Record::try_from);
                Self::Records(records.collect::<Result<_, _>>()?)
            }
            Event::Listed(pb::Listed {}) => Self::Listed,
            Event::Change(change) => Self::Change(change.try_into()?),
            Event::Live(live) => Self::Live(live.try_into()?),
            Event::Heartbeat(pb::Heartbeat { .. }) => Self::Heartbeat,
        })
    }
}

/// Where a feed stands between two events.
#[derive(Default)]
pub(crate) struct Feed {
    /// The list that is being told.
    list: Option<Tree>,
}

/// What came of an event.
pub(crate) enum Taken {
    /// A part of a list.
    Part,
    /// A list is whole: everything before it is void.
    Listed(Box<Tree>),
    /// What happened next.
    Change(Change),
    Live(Live),
    /// The catalogue lives, and has told all it has.
    Heartbeat,
}

impl Feed {
    /// Takes in the next event.
    ///
    /// # Errors
    /// It means nothing at this place.
    pub(crate) fn take(&mut self, heard: Heard) -> Result<Taken, Malformed> {
        Ok(match heard {
            Heard::Reset(position, inodes) => {
                let mut tree = Tree::new(position);
                tree.expect(inodes);
                self.list = Some(tree);
                Taken::Part
            }
            Heard::Records(records) => {
                let tree = self.list.as_mut().ok_or(Malformed::Missing("reset"))?;
                records.into_iter().for_each(|record| tree.load(record));
                Taken::Part
            }
            Heard::Listed => {
                let mut tree = self.list.take().ok_or(Malformed::Missing("reset"))?;
                tree.end_list();
                Taken::Listed(Box::new(tree))
            }
            Heard::Change(change) => Taken::Change(change),
            Heard::Live(live) => Taken::Live(live),
            Heard::Heartbeat => Taken::Heartbeat,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reset() -> Event {
        Event::Reset(pb::Reset { incarnation: vec![1; 16], revision: 3, inodes: u64::MAX })
    }

    fn take(feed: &mut Feed, event: Event) -> Result<Taken, Malformed> {
        feed.take(event.try_into()?)
    }

    #[test]
    fn a_list_is_a_tree_once_it_is_whole() {
        let mut feed = Feed::default();
        assert!(matches!(take(&mut feed, reset()), Ok(Taken::Part)));
        let none = Event::Records(pb::Records { records: Vec::new() });
        assert!(matches!(take(&mut feed, none), Ok(Taken::Part)));
        let Ok(Taken::Listed(tree)) = take(&mut feed, Event::Listed(pb::Listed {})) else {
            panic!("a tree")
        };
        assert_eq!(tree.position.revision, Revision(3));
    }

    #[test]
    fn what_stands_in_the_wrong_place_is_refused() {
        for event in [
            Event::Listed(pb::Listed {}),
            Event::Records(pb::Records { records: Vec::new() }),
            Event::Reset(pb::Reset { incarnation: vec![1; 3], revision: 3, inodes: 0 }),
            Event::Change(pb::Change::default()),
        ] {
            assert!(take(&mut Feed::default(), event).is_err());
        }
    }
}
