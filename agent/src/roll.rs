//! The roll call with which a volume's introduction to a catalogue begins: what the catalogue has of
//! the volume, page by page, compared with what is there. What went unnoticed, while the index was
//! lost or was another catalogue's, is told as deleted or renamed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use isotope_proto::cluster::VolumeState;
use isotope_proto::id::ImageId;
use isotope_proto::image::{ImageFormat, Os, Stamp};
use isotope_proto::name::VolumePath;
use isotope_proto::pb;
use isotope_proto::refusal::Refusal;
use isotope_proto::report::{FileChange, FileEvent, FoundFile};
use tracing::info;

use crate::clock;
use crate::reconcile::Difference;
use crate::scan::LOOK_AGAIN_AFTER;
use crate::tell::{BATCH_MAX, Link, report};
use crate::volume::{Volume, open_file};

/// For one page.
const PAGE_DEADLINE: Duration = Duration::from_secs(30);
/// Of what the catalogue has, one file in so many may be gone without a second look.
const SUSPECT_SHARE: usize = 10;

/// A file as the catalogue has it.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    pub(crate) image: ImageId,
    pub(crate) path: VolumePath,
    pub(crate) stamp: Stamp,
}

/// What the catalogue has, compared with what is there. Pure.
pub(crate) struct Roll<'t> {
    there: &'t BTreeMap<VolumePath, Stamp>,
    /// Where the files lie that the catalogue has not, or has elsewhere.
    unlisted: HashMap<Stamp, &'t VolumePath>,
    gone: Vec<Listed>,
    /// Of these another file is at the path.
    displaced: Vec<Listed>,
    heard: usize,
    before: Option<Listed>,
}

impl<'t> Roll<'t> {
    pub(crate) fn new(there: &'t BTreeMap<VolumePath, Stamp>) -> Self {
        let unlisted = there.iter().map(|(path, stamp)| (*stamp, path)).collect();
        Self { there, unlisted, gone: Vec::new(), displaced: Vec::new(), heard: 0, before: None }
    }

    /// One file of the catalogue's; those at one path follow one another.
    pub(crate) fn hear(&mut self, file: Listed) {
        self.heard += 1;
        let stamp = self.there.get(&file.path);
        if stamp == Some(&file.stamp) {
            self.unlisted.remove(&file.stamp);
        }
        if let Some(other) = self.before.replace(file.clone()).filter(|it| it.path == file.path) {
            // At most one of them is the file that is there.
            self.gone.extend([other, file].into_iter().filter(|it| Some(&it.stamp) != stamp));
        } else if stamp.is_none() {
            self.gone.push(file);
        } else if stamp != Some(&file.stamp) {
            self.displaced.push(file);
        }
    }

    /// What is gone, and what was renamed, to where: an agent that died after it had told of a
    /// file's new path, and before it had written that down, does not tell that it is back. What
    /// such a file has taken the place of is gone; what else has changed the agent itself tells.
    pub(crate) fn end(mut self) -> (Vec<Listed>, Vec<(Listed, VolumePath)>) {
        let mut renamed = Vec::new();
        let mut is_elsewhere = |file: &Listed| match self.unlisted.remove(&file.stamp) {
            Some(path) => {
                renamed.push((file.clone(), path.clone()));
                true
            }
            None => false,
        };
        self.gone.retain(|file| !is_elsewhere(file));
        self.displaced.retain(|file| !is_elsewhere(file));
        let taken: HashSet<&VolumePath> = renamed.iter().map(|(_, to)| to).collect();
        self.gone.extend(self.displaced.into_iter().filter(|file| taken.contains(&file.path)));
        self.gone.sort_by_key(|file| file.image);
        self.gone.dedup_by_key(|file| file.image);
        (self.gone, renamed)
    }
}

/// Tells the catalogue which of the files that it has are not among those that are there; returns
/// how many, without those that `differences` will tell.
pub(crate) async fn call(
    volume: &Arc<Volume>,
    link: &mut Link,
    there: &BTreeMap<VolumePath, Stamp>,
    differences: &[Difference],
) -> Result<u64, String> {
    let mut roll = Roll::new(there);
    loop {
        let page = page(volume, link, roll.before.as_ref()).await?;
        if page.is_empty() {
            break;
        }
        page.into_iter().for_each(|file| roll.hear(file));
    }
    let heard = roll.heard;
    let (mut gone, renamed) = roll.end();
    let noticed = differences.iter().filter(|it| it.event == FileEvent::Deleted);
    let noticed: HashSet<ImageId> = noticed.filter_map(|it| it.image).collect();
    gone.retain(|file| !noticed.contains(&file.image));
    if gone.len() * SUSPECT_SHARE > heard {
        info!(volume = %volume.id, suspect = gone.len(), "many images seem gone; looking again");
        tokio::time::sleep(LOOK_AGAIN_AFTER).await;
        gone = still_gone(volume, gone).await?;
    }
    for batch in gone.chunks(BATCH_MAX) {
        let events = batch.iter().map(|file| deleted(file).into()).collect();
        report(volume, link, events).await?;
    }
    for batch in renamed.chunks(BATCH_MAX) {
        let moved = |(file, to): &(Listed, VolumePath)| {
            change(FileEvent::Moved, &Listed { path: to.clone(), ..file.clone() }).into()
        };
        report(volume, link, batch.iter().map(moved).collect()).await?;
    }
    Ok(u64::try_from(gone.len()).unwrap_or(u64::MAX))
}

async fn page(
    volume: &Volume,
    link: &mut Link,
    after: Option<&Listed>,
) -> Result<Vec<Listed>, String> {
    let mut request = tonic::Request::new(pb::ListFilesRequest {
        node_id: link.node.into(),
        volume_id: volume.id.into(),
        lease_id: link.lease.into(),
        after_path: after.map(|it| it.path.to_string()).unwrap_or_default(),
        after_image_id: after.map(|it| it.image.into()).unwrap_or_default(),
        facts: false,
    });
    request.set_timeout(PAGE_DEADLINE);
    let reply = link.client.list_files(request).await;
    let files = reply.map_err(|status| Refusal::from(status).to_string())?.into_inner().files;
    let file = |file: pb::ListedFile| {
        Some(Listed {
            image: ImageId::try_from(&*file.image_id).ok()?,
            path: VolumePath::parse(&file.path).ok()?,
            stamp: file.stamp?.into(),
        })
    };
    let listed: Option<Vec<_>> = files.into_iter().map(file).collect();
    listed.ok_or_else(|| "the catalogue's list cannot be understood".to_owned())
}

/// Those that a second look does not find either.
async fn still_gone(volume: &Arc<Volume>, gone: Vec<Listed>) -> Result<Vec<Listed>, String> {
    let volume = Arc::clone(volume);
    let looked = tokio::task::spawn_blocking(move || {
        if let VolumeState::Offline(reason) = volume.look().state {
            return Err(format!("the volume is offline: {reason}"));
        }
        let root = volume.root()?;
        let is_gone = |file: &Listed| match open_file(&root, file.path.as_str()) {
            Ok((_, stamp)) => stamp != file.stamp,
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        };
        Ok(gone.into_iter().filter(is_gone).collect())
    });
    looked.await.map_err(|error| error.to_string())?
}

fn deleted(file: &Listed) -> FileChange {
    info!(path = %file.path, image = %file.image, "a file went unnoticed; it leaves the library");
    change(FileEvent::Deleted, file)
}

fn change(event: FileEvent, file: &Listed) -> FileChange {
    FileChange {
        event,
        file: FoundFile {
            image: file.image,
            path: file.path.clone(),
            stamp: file.stamp,
            format: ImageFormat::Img,
            os: Os::unknown(),
            facts: None,
            folder: None,
        },
        previous: None,
        found: clock::now(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(n: u8, path: &str) -> Listed {
        let stamp = Stamp { inode: n.into(), size_bytes: 1, mtime_ns: 1 };
        let path = VolumePath::parse(path).expect("a path");
        Listed { image: ImageId::from_bytes([n; 16]), path, stamp }
    }

    /// The images that are gone, and where others were renamed to.
    fn called(there: &[Listed], listed: &[Listed]) -> (Vec<ImageId>, Vec<(ImageId, String)>) {
        let there = there.iter().map(|it| (it.path.clone(), it.stamp)).collect();
        let mut roll = Roll::new(&there);
        listed.iter().for_each(|it| roll.hear(it.clone()));
        let (gone, renamed) = roll.end();
        let renamed = renamed.into_iter().map(|(file, to)| (file.image, to.to_string()));
        (gone.into_iter().map(|file| file.image).collect(), renamed.collect())
    }

    #[test]
    fn what_was_renamed_back_is_not_gone() {
        let (gone, renamed) = called(&[file(1, "a.iso")], &[file(1, "b.iso")]);
        assert_eq!(gone, []);
        assert_eq!(renamed, [(file(1, "b.iso").image, "a.iso".to_owned())]);
    }

    #[test]
    fn what_a_file_took_the_place_of_when_it_was_renamed_back_is_gone() {
        let (gone, renamed) = called(&[file(1, "a.iso")], &[file(2, "a.iso"), file(1, "b.iso")]);
        assert_eq!(gone, [file(2, "a.iso").image]);
        assert_eq!(renamed, [(file(1, "a.iso").image, "a.iso".to_owned())]);
    }

    #[test]
    fn what_made_way_for_a_new_file_before_its_move_was_told_is_renamed() {
        let there = [file(1, "a.iso"), file(2, "b.iso")];
        let (gone, renamed) = called(&there, &[file(1, "b.iso")]);
        assert_eq!(gone, []);
        assert_eq!(renamed, [(file(1, "b.iso").image, "a.iso".to_owned())]);
    }

    #[test]
    fn what_was_replaced_is_told_by_others() {
        assert_eq!(called(&[file(1, "a.iso")], &[file(2, "a.iso")]), (vec![], vec![]));
    }
}
