//! One lookout a volume: it looks at the directory again and again, and publishes what it finds. A
//! directory that does not answer, as on a network that has gone, holds up nobody else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use isotope_proto::id::VolumeId;
use isotope_proto::report::OfferedVolume;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::volume::Volume;

/// How often the directories are looked at: a mounted or unmounted disk shows within it.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A directory that has not answered by then is taken for gone, until it does. A disk that wakes
/// up is a little slower; its images are read from elsewhere meanwhile.
const ANSWER_MAX: Duration = Duration::from_secs(2);

pub(crate) type Offers = BTreeMap<VolumeId, OfferedVolume>;

/// The lookouts of all volumes. They end when nobody listens any more.
pub(crate) struct Lookouts {
    publish: Arc<watch::Sender<Offers>>,
}

impl Lookouts {
    /// None yet; what they will find each volume to be.
    pub(crate) fn begin() -> (Self, watch::Receiver<Offers>) {
        let (publish, offers) = watch::channel(Offers::new());
        (Self { publish: Arc::new(publish) }, offers)
    }

    pub(crate) fn add(&self, volume: Arc<Volume>) {
        let lookout = Lookout {
            volume,
            publish: Arc::clone(&self.publish),
            look_every: LOOK_EVERY,
            answer_max: ANSWER_MAX,
        };
        tokio::spawn(lookout.run(Volume::look));
    }

    /// Forgets volumes that are no longer this agent's.
    pub(crate) fn retain(&self, is_there: impl Fn(&VolumeId) -> bool) {
        self.publish.send_if_modified(|offers| {
            let before = offers.len();
            offers.retain(|id, _| is_there(id));
            offers.len() != before
        });
    }
}

struct Lookout {
    volume: Arc<Volume>,
    publish: Arc<watch::Sender<Offers>>,
    look_every: Duration,
    answer_max: Duration,
}

impl Lookout {
    async fn run(self, look: fn(&Volume) -> OfferedVolume) {
        while !self.publish.is_closed() && !self.volume.left.is_cancelled() {
            let volume = Arc::clone(&self.volume);
            let mut looking = tokio::task::spawn_blocking(move || look(&volume));
            let found = match timeout(self.answer_max, &mut looking).await {
                Ok(found) => found,
                Err(_) => {
                    self.tell(self.volume.fall_silent());
                    // One thread waits, not one for each look.
                    looking.await
                }
            };
            self.tell(match found {
                Ok(offered) => {
                    self.volume.speak();
                    offered
                }
                Err(error) => self.volume.offline(format!("looking at it failed: {error}")),
            });
            tokio::time::sleep(self.look_every).await;
        }
    }

    fn tell(&self, offered: OfferedVolume) {
        if self.volume.left.is_cancelled() {
            return;
        }
        self.publish.send_if_modified(|offers| {
            let before = offers.insert(offered.id, offered.clone());
            before.as_ref() != Some(&offered)
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use isotope_proto::cluster::VolumeState;
    use isotope_proto::time::Timestamp;

    use super::*;

    static DISK_ANSWERS: AtomicBool = AtomicBool::new(false);

    fn look_at_disk(volume: &Volume) -> OfferedVolume {
        while !DISK_ANSWERS.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        volume.look()
    }

    #[tokio::test]
    async fn a_directory_that_does_not_answer_is_offline_and_holds_up_nobody() {
        let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
        let volumes = dirs.each_ref().map(|dir| {
            Arc::new(Volume::open(dir.path(), "isos", None, Timestamp(1)).expect("a volume"))
        });
        let (publish, mut offers) = watch::channel(Offers::new());
        let publish = Arc::new(publish);
        let looks: [fn(&Volume) -> OfferedVolume; 2] = [look_at_disk, Volume::look];
        for (volume, look) in volumes.iter().zip(looks) {
            let lookout = Lookout {
                volume: Arc::clone(volume),
                publish: Arc::clone(&publish),
                look_every: Duration::from_millis(20),
                answer_max: Duration::from_millis(50),
            };
            tokio::spawn(lookout.run(look));
        }
        let [hung, fine] = &volumes;
        let online = |offers: &Offers, volume: &Volume| {
            offers.get(&volume.id).map(|it| matches!(it.state, VolumeState::Online(_)))
        };
        let state = |hung_is, offers: &Offers| {
            online(offers, hung) == Some(hung_is) && online(offers, fine) == Some(true)
        };
        let wait = Duration::from_secs(10);
        let seen = timeout(wait, offers.wait_for(|it| state(false, it))).await.expect("in time");
        drop(seen.expect("published"));
        assert!(hung.root().is_err_and(|reason| reason.contains("does not answer")));
        assert!(fine.root().is_ok());
        DISK_ANSWERS.store(true, Ordering::Relaxed);
        let seen = timeout(wait, offers.wait_for(|it| state(true, it))).await.expect("in time");
        drop(seen.expect("published"));
        assert!(hung.root().is_ok());
    }
}
