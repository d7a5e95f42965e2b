//! Telling the catalogue what differs, batch by batch, and taking what it made of each into the
//! index. The index is what the catalogue confirmed, and nothing else: so what it has yet to be told
//! is the difference between the index and the disk, which outlives every restart of either side,
//! and what was told and not confirmed is told again.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use isotope_proto::id::{ImageId, Incarnation, LeaseId, NodeId};
use isotope_proto::image::Checked;
use isotope_proto::name::{EntryName, FOLDER_DEPTH_MAX, FolderPath, VolumePath};
use isotope_proto::pb;
use isotope_proto::pb::agent_service_client::AgentServiceClient;
use isotope_proto::refusal::Refusal;
use isotope_proto::report::{
    FileChange, FileEvent, FormerFile, FoundFile, HASHED_FILES_MAX, HashedFile, ScanCounts,
};
use isotope_proto::time::Timestamp;
use tonic::transport::Channel;

use crate::clock;
use crate::identify::{Databases, Identity, by_name, identify};
use crate::index::{Hashed, Index, Known, Verdict};
use crate::layout::Layout;
use crate::plan::{Ending, Plan};
use crate::reconcile::Difference;
use crate::roll;
use crate::scan::unless_silent;
use crate::volume::{Volume, open_file};

/// Files in one report. Each is opened and read a little first; on a slow disk that takes a second
/// or so, after which they show. It is below `FILE_CHANGES_MAX`, which bounds a message.
pub(crate) const BATCH_MAX: usize = 100;
/// The catalogue gets so long for one report; it may be syncing a slow disk.
const REPORT_DEADLINE: Duration = Duration::from_secs(30);

/// The catalogue that this agent is connected to now, as the keeper of a volume.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) client: AgentServiceClient<Channel>,
    pub(crate) incarnation: Incarnation,
    pub(crate) node: NodeId,
    pub(crate) lease: LeaseId,
}

/// Tells everything that a plan says. `progress` hears what was told so far.
pub(crate) async fn tell(
    volume: &Arc<Volume>,
    link: &mut Link,
    plan: Plan,
    counts: &mut ScanCounts,
    progress: &(impl Fn(ScanCounts) + Sync),
) -> Result<(), String> {
    if plan.introduces && !plan.differences.is_empty() {
        volume.index_mut().begin_introduction();
    }
    // First of all, so that what is told then meets no file where it is not any more: a new file at
    // the path would be taken for that image's other bytes.
    if let Some(Ending::Everything(there)) = &plan.ending {
        counts.deleted += roll::call(volume, link, there, &plan.differences).await?;
    }
    let mut batches = plan.differences.chunks(BATCH_MAX);
    let mut next = batches.next();
    let mut described = describe(volume, next.unwrap_or_default()).await?;
    while let Some(batch) = next {
        next = batches.next();
        let proposed: Vec<ImageId> = described.iter().map(|change| change.file.image).collect();
        let events = described.into_iter().map(Into::into).collect();
        // The disk reads on while the catalogue writes.
        let (ids, coming) =
            tokio::join!(report(volume, link, events), describe(volume, next.unwrap_or_default()));
        let ids = ids?;
        confirm(&mut volume.index_mut(), batch, &ids)?;
        described = coming?;
        count(counts, batch, proposed.iter().zip(&ids).map(|(proposed, id)| proposed == id));
        progress(*counts);
    }
    if !matches!(plan.ending, Some(Ending::Everything(_))) {
        return Ok(());
    }
    let mut index = volume.index_mut();
    index.end_introduction(link.incarnation);
    if plan.introduces {
        // What another catalogue confirmed, this one has not heard.
        index.tell_hashes_anew();
    }
    Ok(())
}

/// Tells what was learnt of files by reading them whole and was not confirmed yet.
pub(crate) async fn tell_hashes(volume: &Volume, link: &mut Link) -> Result<(), String> {
    loop {
        let untold = volume.index().untold(HASHED_FILES_MAX);
        if untold.is_empty() {
            return Ok(());
        }
        let file = |(image, hashed): &(ImageId, Hashed)| {
            let checked = Checked {
                read: Timestamp(hashed.read_ns),
                rotten: hashed.verdict == Verdict::Rotten,
                published: hashed.published.clone(),
            };
            let (stamp, hashes) = (hashed.stamp, hashed.hashes);
            HashedFile { image: *image, stamp, hashes, checked }.into()
        };
        let mut request = tonic::Request::new(pb::NotifyHashesRequest {
            node_id: link.node.into(),
            volume_id: volume.id.into(),
            lease_id: link.lease.into(),
            files: untold.iter().map(file).collect(),
        });
        request.set_timeout(REPORT_DEADLINE);
        let reply = link.client.notify_hashes(request).await;
        let reply = reply.map_err(|status| Refusal::from(status).to_string())?.into_inner();
        let mut index = volume.index_mut();
        for (image, hashed) in &untold {
            index.confirm_hashed(*image, hashed);
        }
        for pb::MergedImage { image_id, became_id } in reply.merged {
            let ids = (ImageId::try_from(&*image_id), ImageId::try_from(&*became_id));
            if let (Ok(image), Ok(became)) = ids {
                index.merge(image, became);
            }
        }
    }
}

/// Reads what the files of a batch are, where blocking is allowed.
async fn describe(volume: &Arc<Volume>, batch: &[Difference]) -> Result<Vec<FileChange>, String> {
    let (at, batch) = (Arc::clone(volume), batch.to_vec());
    let describing = tokio::task::spawn_blocking(move || {
        let (root, layout) = (at.root()?, at.layout());
        let told = |it| told(&layout, it, look_into(&root, it));
        Ok(batch.iter().map(told).collect())
    });
    unless_silent(volume, describing).await
}

/// What a file is by its bytes, if it is still the file that was seen.
fn look_into(root: &OwnedFd, difference: &Difference) -> Option<Identity> {
    if difference.event == FileEvent::Deleted {
        return None;
    }
    let (file, stamp) = open_file(root, difference.path.as_str()).ok()?;
    let name = difference.path.file_name();
    let databases = Databases::of_this_machine();
    (stamp == difference.stamp).then(|| identify(&file, stamp.size_bytes, name, &databases))
}

/// `is_new` says of each file whether the catalogue took the id that was proposed for it: if not, it
/// has known the file, and this agent had not written that down before it was killed.
fn count(counts: &mut ScanCounts, batch: &[Difference], is_new: impl Iterator<Item = bool>) {
    for (difference, is_new) in batch.iter().zip(is_new) {
        match difference.event {
            // Introduced anew, not found: it was known all along.
            FileEvent::Created if difference.image.is_some() || !is_new => {}
            FileEvent::Created => counts.created += 1,
            FileEvent::Updated | FileEvent::Moved => counts.updated += 1,
            FileEvent::Deleted => counts.deleted += 1,
        }
    }
}

/// Reports to the catalogue; returns the image of each event's file.
pub(crate) async fn report(
    volume: &Volume,
    link: &mut Link,
    events: Vec<pb::ImageEvent>,
) -> Result<Vec<ImageId>, String> {
    let mut request = tonic::Request::new(pb::NotifyImageChangesRequest {
        node_id: link.node.into(),
        volume_id: volume.id.into(),
        events,
        lease_id: link.lease.into(),
    });
    request.set_timeout(REPORT_DEADLINE);
    let reply = link
        .client
        .notify_image_changes(request)
        .await
        .map_err(|status| format!("the catalogue refused the report: {}", Refusal::from(status)))?
        .into_inner();
    let ids = reply.image_ids.iter().map(|id| ImageId::try_from(&**id));
    ids.collect::<Result<_, _>>().map_err(|error| format!("the catalogue's answer: {error}"))
}

/// Takes a batch that the catalogue confirmed into the index.
fn confirm(index: &mut Index, batch: &[Difference], ids: &[ImageId]) -> Result<(), String> {
    if batch.len() != ids.len() {
        let (asked, got) = (batch.len(), ids.len());
        return Err(format!("the catalogue answered for {got} files when told of {asked}"));
    }
    for (difference, image) in batch.iter().zip(ids) {
        if let Some((from, known)) = &difference.before
            && *from != difference.path
        {
            // Another file may have taken the place, in this very batch.
            index.remove_from(from, known.image);
        }
        if difference.event == FileEvent::Deleted {
            index.remove(&difference.path);
        } else {
            let known = Known { image: *image, stamp: difference.stamp };
            index.insert(difference.path.clone(), known);
        }
    }
    Ok(())
}

/// A difference in the words of a report.
fn told(layout: &Layout, difference: &Difference, identity: Option<Identity>) -> FileChange {
    let facts = identity.as_ref().map(|it| Box::new(it.facts.clone()));
    let identity = identity.unwrap_or_else(|| by_name(difference.path.file_name()));
    let file = FoundFile {
        image: difference.image.unwrap_or_else(|| ImageId::mint(clock::now())),
        path: difference.path.clone(),
        stamp: difference.stamp,
        format: identity.format,
        os: identity.os,
        facts,
        folder: folder_hint(layout, &difference.path),
    };
    let former = |(path, known): &(VolumePath, Known)| FormerFile {
        image: known.image,
        path: path.clone(),
        stamp: known.stamp,
    };
    FileChange {
        event: difference.event,
        file,
        previous: difference.before.as_ref().map(former),
        found: clock::now(),
    }
}

/// The folder that a file's sub-directory asks for; below the fifth level the rest joins it.
fn folder_hint(layout: &Layout, path: &VolumePath) -> Option<FolderPath> {
    let below = path.as_str().strip_prefix(layout.image_dir())?.strip_prefix('/')?;
    let (dirs, _) = below.rsplit_once('/')?;
    let names = dirs.split('/').take(FOLDER_DEPTH_MAX).map(EntryName::parse);
    FolderPath::from_names(names.collect::<Result<_, _>>().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use isotope_proto::image::{ImageFormat, Stamp};

    use super::*;
    use crate::plan::plan;
    use crate::walk::Seen;

    #[test]
    fn sub_directories_become_folders() {
        for (path, folder) in [
            ("iso/a.iso", None),
            ("iso/linux/a.iso", Some("/linux")),
            ("iso/1/2/3/4/5/a.iso", Some("/1/2/3/4/5")),
            ("iso/1/2/3/4/5/6/7/a.iso", Some("/1/2/3/4/5")),
        ] {
            let path = VolumePath::parse(path).expect("a path");
            assert_eq!(
                folder_hint(&Layout::default(), &path).map(|it| it.to_string()).as_deref(),
                folder,
                "{path}"
            );
        }
    }

    fn difference(event: FileEvent, path: &str, n: u8) -> Difference {
        Difference {
            event,
            path: VolumePath::parse(path).expect("a path"),
            stamp: Stamp { inode: n.into(), size_bytes: 1, mtime_ns: 1 },
            image: None,
            before: None,
        }
    }

    #[test]
    fn every_difference_is_told_and_confirmed_under_its_own_id() {
        // An upload's name need not be an image's; left out, it would shift the ids behind it.
        let batch = [
            difference(FileEvent::Created, "iso/noext", 1),
            difference(FileEvent::Created, "iso/a.iso", 2),
        ];
        let told: Vec<_> = batch.iter().map(|it| told(&Layout::default(), it, None)).collect();
        assert_eq!(told.len(), 2);
        assert_eq!(told[0].file.format, ImageFormat::Img);
        let ids: Vec<_> = told.iter().map(|change| change.file.image).collect();
        let mut index = Index::default();
        confirm(&mut index, &batch, &ids).expect("confirmed");
        let at = |id| index.locate(id).map(|(path, _)| path.as_str());
        assert_eq!(
            ids.iter().map(|id| at(*id)).collect::<Vec<_>>(),
            [Some("iso/noext"), Some("iso/a.iso")]
        );
        assert!(confirm(&mut index, &batch, &ids[1..]).is_err(), "one answer for two");
    }

    #[test]
    fn what_is_only_told_again_is_no_discovery() {
        let new = difference(FileEvent::Created, "iso/new.iso", 1);
        let known = Difference { image: Some(ImageId::from_bytes([7; 16])), ..new.clone() };
        let mut counts = ScanCounts::default();
        let batch = [new.clone(), known, new];
        count(&mut counts, &batch, [true, true, false].into_iter());
        assert_eq!(counts.created, 1);
    }

    #[test]
    fn an_interrupted_introduction_keeps_ids_and_bytes() {
        let (old, new) = (Incarnation::from_bytes([1; 16]), Incarnation::from_bytes([2; 16]));
        let mut index = Index::default();
        let files = ["iso/a.iso", "iso/b.iso"].map(|it| difference(FileEvent::Created, it, 1));
        let files = [
            files[0].clone(),
            Difference { stamp: Stamp { inode: 2, ..files[1].stamp }, ..files[1].clone() },
        ];
        let ids = [ImageId::from_bytes([7; 16]), ImageId::from_bytes([8; 16])];
        confirm(&mut index, &files, &ids).expect("confirmed");
        index.end_introduction(old);
        let seen = Seen {
            files: files.iter().map(|it| (it.path.clone(), it.stamp)).collect(),
            ..Seen::default()
        };
        // One of two files was confirmed when the connection broke.
        let made = plan(&index, &seen, &Layout::default(), new);
        index.begin_introduction();
        confirm(&mut index, &made.differences[..1], &ids[..1]).expect("confirmed");
        assert!(ids.iter().all(|id| index.locate(*id).is_some()), "both are served");
        for catalog in [old, new] {
            let again = plan(&index, &seen, &Layout::default(), catalog);
            let proposed: Vec<_> = again.differences.iter().filter_map(|it| it.image).collect();
            assert_eq!(proposed, ids, "told anew, under the same ids");
            assert!(again.ending.is_some());
        }
    }
}
