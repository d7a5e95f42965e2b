//! What the events of a feed mean, one after the other: a list becomes a tree, the rest is handed
//! on. Pure, and the same for what comes from the catalogue and for what was recorded of it.

use isotope_proto::change::{Change, Record};
use isotope_proto::cluster::Live;
use isotope_proto::id::{Incarnation, Revision};
use isotope_proto::pb;
use isotope_proto::pb::watch_event::Event;
use isotope_proto::wire::Malformed;

use crate::tree::{Position, Tree};

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
    /// It cannot be understood, or not at this place.
    pub(crate) fn take(&mut self, event: Event) -> Result<Taken, Malformed> {
        Ok(match event {
            Event::Reset(reset) => {
                let incarnation = Incarnation::try_from(&*reset.incarnation)?;
                let revision = Revision(reset.revision);
                self.list = Some(Tree::new(Position { incarnation, revision }));
                Taken::Part
            }
            Event::Records(records) => {
                let tree = self.list.as_mut().ok_or(Malformed::Missing("reset"))?;
                for record in records.records {
                    tree.load(Record::try_from(record)?);
                }
                Taken::Part
            }
            Event::Listed(pb::Listed {}) => {
                let mut tree = self.list.take().ok_or(Malformed::Missing("reset"))?;
                tree.end_list();
                Taken::Listed(Box::new(tree))
            }
            Event::Change(change) => Taken::Change(Change::try_from(change)?),
            Event::Live(live) => Taken::Live(Live::try_from(live)?),
            Event::Heartbeat(pb::Heartbeat { .. }) => Taken::Heartbeat,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reset() -> Event {
        Event::Reset(pb::Reset { incarnation: vec![1; 16], revision: 3 })
    }

    #[test]
    fn a_list_is_a_tree_once_it_is_whole() {
        let mut feed = Feed::default();
        assert!(matches!(feed.take(reset()), Ok(Taken::Part)));
        let none = Event::Records(pb::Records { records: Vec::new() });
        assert!(matches!(feed.take(none), Ok(Taken::Part)));
        let Ok(Taken::Listed(tree)) = feed.take(Event::Listed(pb::Listed {})) else {
            panic!("a tree")
        };
        assert_eq!(tree.position.revision, Revision(3));
    }

    #[test]
    fn what_stands_in_the_wrong_place_is_refused() {
        for event in [
            Event::Listed(pb::Listed {}),
            Event::Records(pb::Records { records: Vec::new() }),
            Event::Reset(pb::Reset { incarnation: vec![1; 3], revision: 3 }),
            Event::Change(pb::Change::default()),
        ] {
            assert!(Feed::default().take(event).is_err());
        }
    }
}
