//! What a folder may hold after some steps of which not all were answered. Pure: it is told steps
//! and answers, and compares.

use std::collections::BTreeMap;

/// Names, each with the seed of its bytes.
pub(super) type Contents = BTreeMap<String, String>;

/// One thing that somebody does with a file.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// Replaces what has the name.
    Store {
        name: String,
        seed: String,
    },
    Delete {
        name: String,
    },
    /// Replaces what has the new name.
    Move {
        from: String,
        to: String,
    },
    /// From the trash, under the name it had.
    Restore {
        name: String,
        seed: String,
    },
}

/// What its maker was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Done,
    Refused,
    /// Whoever knew has died: it was made wholly or not at all.
    Nothing,
}

impl Step {
    /// What is there after it; nothing if it cannot be made.
    fn after(&self, before: &Contents) -> Option<Contents> {
        let mut after = before.clone();
        match self {
            Self::Store { name, seed } => {
                after.insert(name.clone(), seed.clone());
            }
            Self::Restore { name, seed } => {
                if after.insert(name.clone(), seed.clone()).is_some() {
                    return None;
                }
            }
            Self::Delete { name } => {
                after.remove(name)?;
            }
            Self::Move { from, to } => {
                let seed = after.remove(from)?;
                after.insert(to.clone(), seed);
            }
        }
        Some(after)
    }
}

/// Everything that may be so.
#[derive(Debug)]
pub(super) struct Ledger {
    possible: Vec<Contents>,
    pub(super) done: usize,
    pub(super) unanswered: usize,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { possible: vec![Contents::new()], done: 0, unanswered: 0 }
    }
}

impl Ledger {
    pub(super) fn note(&mut self, step: &Step, told: Told) {
        let made = self.possible.iter().filter_map(|before| step.after(before));
        let made: Vec<_> = made.collect();
        match told {
            Told::Done => {
                self.done += 1;
                assert!(!made.is_empty(), "{step:?} was done, which cannot be: {self:?}");
                self.possible = made;
            }
            Told::Refused => {}
            Told::Nothing => {
                self.unanswered += 1;
                self.possible.extend(made);
            }
        }
        self.possible.sort_unstable();
        self.possible.dedup();
    }

    /// Settles what was not answered.
    #[track_caller]
    pub(super) fn found(&mut self, found: Contents) {
        assert!(self.possible.contains(&found), "found {found:#?}, which is none of {self:#?}");
        self.possible = vec![found];
    }
}

#[test]
fn an_unanswered_step_was_made_or_not() {
    let step = |name: &str, seed: &str| Step::Store { name: name.into(), seed: seed.into() };
    let contents = |all: &[(&str, &str)]| {
        all.iter()
            .map(|(name, seed)| ((*name).to_owned(), (*seed).to_owned()))
            .collect::<Contents>()
    };
    let mut ledger = Ledger::default();
    ledger.note(&step("a", "1"), Told::Done);
    ledger.note(&step("b", "2"), Told::Refused);
    ledger.note(&Step::Move { from: "a".into(), to: "c".into() }, Told::Nothing);
    assert_eq!(ledger.possible, [contents(&[("a", "1")]), contents(&[("c", "1")])]);
    // Done, so the move was not.
    ledger.note(&Step::Delete { name: "a".into() }, Told::Done);
    ledger.found(contents(&[]));
    ledger.note(&step("a", "3"), Told::Nothing);
    let found = std::panic::catch_unwind(move || ledger.found(contents(&[("a", "4")])));
    assert!(found.is_err(), "other bytes than were stored");
}
