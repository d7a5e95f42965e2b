//! How each inode is read, from its first open to its last release: the kernel fails an open that
//! mixes two ways on one inode. It knows neither what a way is nor who decides; whoever opens an
//! inode first decides, and those who come meanwhile wait for that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use isotope_proto::id::Ino;
use tokio::sync::{Notify, OnceCell};

/// The modes of the inodes that are open for reading.
pub(crate) struct Modes<M> {
    open: Mutex<HashMap<Ino, Weak<Slot<M>>>>,
    /// Told whenever an inode's mode has ended.
    ended: Notify,
}

/// An inode's mode: one and the same for all that have it open, and each of them holds it.
pub(crate) struct Slot<M> {
    ino: Ino,
    mode: OnceCell<M>,
    modes: Arc<Modes<M>>,
}

impl<M> Default for Modes<M> {
    fn default() -> Self {
        Self { open: Mutex::default(), ended: Notify::new() }
    }
}

impl<M> Modes<M> {
    fn lock(&self) -> MutexGuard<'_, HashMap<Ino, Weak<Slot<M>>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slot of an inode that is open, or is being opened; else a new one, to be decided.
    pub(crate) fn join(self: &Arc<Self>, ino: Ino) -> Arc<Slot<M>> {
        let mut open = self.lock();
        if let Some(slot) = open.get(&ino).and_then(Weak::upgrade) {
            return slot;
        }
        let slot = Arc::new(Slot { ino, mode: OnceCell::new(), modes: Arc::clone(self) });
        open.insert(ino, Arc::downgrade(&slot));
        slot
    }

    /// The slot of an inode, if it is open or being opened.
    pub(crate) fn of(&self, ino: Ino) -> Option<Arc<Slot<M>>> {
        self.lock().get(&ino).and_then(Weak::upgrade)
    }

    /// Told from then on, when it is awaited, of each mode that ends.
    pub(crate) fn ended(&self) -> tokio::sync::futures::Notified<'_> {
        self.ended.notified()
    }
}

impl<M> Slot<M> {
    /// What was decided, if anything was yet.
    pub(crate) fn decided(&self) -> Option<&M> {
        self.mode.get()
    }

    /// What was decided before, else what is decided now. None while somebody else is deciding.
    pub(crate) fn decide_now(&self, mode: M) -> Option<&M> {
        // What is decided already stands.
        let _ = self.mode.set(mode);
        self.mode.get()
    }

    /// What is decided: by the first who asks for it, while the others wait.
    pub(crate) async fn decide<F: Future<Output = M>>(&self, by: impl FnOnce() -> F) -> &M {
        self.mode.get_or_init(by).await
    }
}

impl<M> Drop for Slot<M> {
    fn drop(&mut self) {
        let mut open = self.modes.lock();
        // Another may have taken the place since the last holder of this one let go.
        if open.get(&self.ino).is_some_and(|it| it.strong_count() == 0) {
            open.remove(&self.ino);
        }
        drop(open);
        self.modes.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const INO: Ino = Ino(7);

    #[test]
    fn a_mode_lasts_from_the_first_open_to_the_last_release() {
        let modes = Arc::<Modes<&str>>::default();
        let first = modes.join(INO);
        assert_eq!(first.decide_now("one"), Some(&"one"));
        let second = modes.join(INO);
        assert_eq!(second.decide_now("another"), Some(&"one"), "it is open already");
        drop(first);
        assert_eq!(modes.of(INO).and_then(|it| it.decided().copied()), Some("one"));
        assert!(modes.of(Ino(8)).is_none());
        drop(second);
        assert!(modes.of(INO).is_none());
        assert!(modes.lock().is_empty(), "nothing is kept of it");
        assert_eq!(modes.join(INO).decide_now("another"), Some(&"another"));
    }

    #[tokio::test]
    async fn who_comes_while_it_is_being_decided_waits_and_joins() {
        let modes = Arc::<Modes<u32>>::default();
        let (decided, asked) = (Arc::new(Notify::new()), Arc::new(AtomicU32::new(0)));
        let open = || {
            let (slot, decided, asked) =
                (modes.join(INO), Arc::clone(&decided), Arc::clone(&asked));
            tokio::spawn(async move {
                let by = || async {
                    asked.fetch_add(1, Ordering::Relaxed);
                    decided.notified().await;
                    5
                };
                *slot.decide(by).await
            })
        };
        let first = open();
        while asked.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        let second = open();
        let third = modes.join(INO);
        assert_eq!(third.decide_now(6), None, "it is being decided");
        decided.notify_one();
        assert_eq!((first.await.expect("opened"), second.await.expect("opened")), (5, 5));
        assert_eq!(third.decided(), Some(&5));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn one_who_gives_up_leaves_the_decision_to_the_next() {
        let modes = Arc::<Modes<u32>>::default();
        let slot = modes.join(INO);
        let never = slot.decide(std::future::pending);
        assert!(tokio::time::timeout(std::time::Duration::from_millis(1), never).await.is_err());
        assert_eq!(*slot.decide(|| async { 3 }).await, 3);
    }

    #[tokio::test]
    async fn the_end_of_a_mode_is_told() {
        let modes = Arc::<Modes<u32>>::default();
        let slot = modes.join(INO);
        let mut ended = std::pin::pin!(modes.ended());
        ended.as_mut().enable();
        drop(slot);
        ended.await;
        assert!(modes.of(INO).is_none());
    }
}
