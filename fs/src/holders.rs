//! Who has a file open for writing: one program at a time, for two would mix.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::FsError;

/// The thread group of programs in a pid namespace that the mount cannot see: any of them.
pub(crate) const UNSEEN: u32 = 0;

#[derive(Debug, Default)]
pub(crate) struct Holders {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Thread groups, each as often as it opened the file.
    groups: Vec<u32>,
    /// The file is about to be published as it is.
    closed: bool,
}

impl State {
    fn has_another(&self, group: u32) -> bool {
        self.groups.iter().any(|it| *it != group || *it == UNSEEN)
    }
}

impl Holders {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread group opens the file.
    ///
    /// # Errors
    /// `InUse` while another has it open, or when it is closed for good.
    pub(crate) fn add(&self, group: u32) -> Result<(), FsError> {
        let mut state = self.lock();
        if state.closed || state.has_another(group) {
            return Err(FsError::InUse);
        }
        state.groups.push(group);
        Ok(())
    }

    /// It closes the file. True if that was the last time.
    pub(crate) fn remove(&self, group: u32) -> bool {
        let mut state = self.lock();
        if let Some(at) = state.groups.iter().position(|it| *it == group) {
            state.groups.swap_remove(at);
        }
        state.groups.is_empty()
    }

    pub(crate) fn has(&self, group: u32) -> bool {
        self.lock().groups.contains(&group)
    }

    pub(crate) fn has_another(&self, group: u32) -> bool {
        self.lock().has_another(group)
    }

    /// If nobody has the file open, nobody may open it any more.
    pub(crate) fn close_if_idle(&self) -> bool {
        let mut state = self.lock();
        state.closed |= state.groups.is_empty();
        state.closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_program_at_a_time_as_often_as_it_likes() {
        let holders = Holders::default();
        assert_eq!(holders.add(7), Ok(()));
        assert_eq!(holders.add(7), Ok(()));
        assert_eq!(holders.add(8), Err(FsError::InUse));
        assert!(holders.has(7) && !holders.has(8) && holders.has_another(8));
        assert!(!holders.close_if_idle());
        assert!(!holders.remove(7));
        assert!(holders.remove(7));
        assert_eq!(holders.add(8), Ok(()));
        assert!(holders.remove(8));
        assert!(holders.close_if_idle());
        assert_eq!(holders.add(8), Err(FsError::InUse), "it is being published");
    }

    #[test]
    fn programs_that_cannot_be_seen_cannot_be_told_apart() {
        let holders = Holders::default();
        assert_eq!(holders.add(UNSEEN), Ok(()));
        assert_eq!(holders.add(UNSEEN), Err(FsError::InUse));
    }
}
