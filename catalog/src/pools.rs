//! Pools, volumes and nodes as people arrange them: the rules, one transaction each. What has to be
//! done on hosts is `arranging.rs`'s business.

use isotope_proto::change::{Delta, Edit};
use isotope_proto::cluster::{Node, Pool};
use isotope_proto::id::{NodeId, PoolId, VolumeId};
use isotope_proto::name::EntryName;
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::time::Timestamp;
use isotope_proto::tree::Folder;

use crate::library::{pool_called, remove_entry};
use crate::store::{Edits, Rows};

fn refuse<T>(reason: Reason, text: String) -> Result<T, Refusal> {
    Err(Refusal::new(reason, text))
}

/// A name for a pool or a node: one that a folder of a view could have.
fn check_name(name: &str) -> Result<(), Refusal> {
    EntryName::parse(name).map(drop).map_err(|error| {
        Refusal::new(Reason::Malformed, format!("{name:?} cannot be a name: {error}"))
    })
}

pub(crate) fn make(
    edits: &mut Edits<'_>,
    name: &str,
    assigned: &[NodeId],
    now: Timestamp,
) -> Result<(), Refusal> {
    check_name(name)?;
    check_free(edits, name)?;
    let pool = Pool { id: PoolId::mint(now), name: name.to_owned(), assigned: assigned.to_vec() };
    edits.write(Delta::Pool(Edit::Made(pool)))
}

pub(crate) fn check_free(rows: &Rows<'_>, name: &str) -> Result<(), Refusal> {
    if rows.pools()?.iter().any(|pool| pool.name == name) {
        let text = format!(
            "a pool is called {name}; isotope pool attach {name} DIR adds a directory to it"
        );
        return refuse(Reason::Exists, text);
    }
    Ok(())
}

/// Sets which nodes a pool is assigned to, best first.
pub(crate) fn assign(
    edits: &mut Edits<'_>,
    name: &str,
    assigned: &[NodeId],
) -> Result<(), Refusal> {
    let before = pool_called(&edits.pools()?, name)?.clone();
    let after = Pool { assigned: assigned.to_vec(), ..before.clone() };
    edits.write(Delta::Pool(Edit::Changed { before, after }))
}

pub(crate) fn rename(edits: &mut Edits<'_>, name: &str, to: &str) -> Result<(), Refusal> {
    check_name(to)?;
    let before = pool_called(&edits.pools()?, name)?.clone();
    if before.name == to {
        return Ok(());
    }
    check_free(edits, to)?;
    let after = Pool { name: to.to_owned(), ..before.clone() };
    edits.write(Delta::Pool(Edit::Changed { before, after }))
}

/// Takes a pool out of the library: its volumes, and the images that lie nowhere else. No file is
/// touched.
pub(crate) fn remove(edits: &mut Edits<'_>, name: &str, now: Timestamp) -> Result<(), Refusal> {
    let pool = pool_called(&edits.pools()?, name)?.clone();
    let volumes: Vec<_> =
        edits.volumes()?.into_iter().filter(|volume| volume.pool == pool.id).collect();
    for volume in &volumes {
        if edits.is_written_to(volume.id)? {
            let text = format!("somebody is storing a file in {name}; try again when that is done");
            return refuse(Reason::Busy, text);
        }
        remove_files(edits, volume.id, now)?;
        edits.forget_volume(volume.id)?;
    }
    for volume in volumes {
        edits.write(Delta::Volume(Edit::Removed(volume)))?;
    }
    for before in edits.folders_by_default(pool.id)? {
        let after = Folder { default_pool: None, changed: now, ..before.clone() };
        edits.write(Delta::Folder(Edit::Changed { before, after }))?;
    }
    edits.write(Delta::Pool(Edit::Removed(pool)))
}

/// The files of a volume leave the library, and with their last one the images.
fn remove_files(edits: &mut Edits<'_>, volume: VolumeId, now: Timestamp) -> Result<(), Refusal> {
    for image in edits.images_on(volume)? {
        let Some(before) = edits.image(image)? else { continue };
        let mut after = before.clone();
        after.replicas.retain(|replica| replica.volume != volume);
        if !after.replicas.is_empty() {
            edits.write(Delta::Image(Edit::Changed { before, after }))?;
            continue;
        }
        for entry in edits.entries_to(before.ino)? {
            remove_entry(edits, entry, now)?;
        }
        edits.write(Delta::Image(Edit::Removed(before)))?;
    }
    Ok(())
}

/// A node by its name or id.
pub(crate) fn node_called<'a>(nodes: &'a [Node], name: &str) -> Result<&'a Node, Refusal> {
    let id = name.parse::<NodeId>().ok();
    let mut found = nodes.iter().filter(|node| node.name == name || Some(node.id) == id);
    match (found.next(), found.next()) {
        (Some(node), None) => Ok(node),
        (Some(_), Some(_)) => {
            refuse(Reason::Malformed, format!("several nodes are called {name}; give an id"))
        }
        (None, _) => refuse(Reason::NotFound, format!("no node is called {name}")),
    }
}

pub(crate) fn rename_node(edits: &mut Edits<'_>, id: NodeId, to: &str) -> Result<(), Refusal> {
    check_name(to)?;
    let nodes = edits.nodes()?;
    if nodes.iter().any(|node| node.name == to && node.id != id) {
        return refuse(Reason::Exists, format!("another node is called {to}"));
    }
    let Some(before) = nodes.into_iter().find(|node| node.id == id) else {
        return refuse(Reason::NotFound, format!("no node has the id {id}"));
    };
    let after = Node { name: to.to_owned(), ..before.clone() };
    edits.write(Delta::Node(Edit::Changed { before, after }))
}

/// Forgets a node. The volumes it saw stay, and so do their images.
pub(crate) fn remove_node(edits: &mut Edits<'_>, id: NodeId) -> Result<(), Refusal> {
    let Some(node) = edits.node(id)? else {
        return refuse(Reason::NotFound, format!("no node has the id {id}"));
    };
    if edits.is_written_by(id)? {
        let text = format!("a file is being stored through {}; try again later", node.name);
        return refuse(Reason::Busy, text);
    }
    for before in edits.volumes()? {
        let mut after = before.clone();
        after.sights.retain(|sight| sight.node != id);
        if after != before {
            edits.write(Delta::Volume(Edit::Changed { before, after }))?;
        }
    }
    for before in edits.pools()? {
        let mut after = before.clone();
        after.assigned.retain(|node| *node != id);
        if after != before {
            edits.write(Delta::Pool(Edit::Changed { before, after }))?;
        }
    }
    edits.write(Delta::Node(Edit::Removed(node)))
}

#[cfg(test)]
mod tests {
    use isotope_proto::id::ImageId;
    use isotope_proto::image::{ImageFormat, Os, Stamp};
    use isotope_proto::name::VolumePath;
    use isotope_proto::report::{FileChange, FileEvent, FoundFile};

    use super::*;
    use crate::store::tests::{VOLUMES, store};
    use crate::store::{Store, Verb};

    const NODE: NodeId = NodeId::from_bytes([1; 16]);

    async fn do_all(store: &Store, verbs: Vec<Verb>) -> Vec<Result<(), Reason>> {
        let mut done = Vec::new();
        for verb in verbs {
            done.push(store.commit(None, verb).await.map(drop).map_err(|it| it.reason));
        }
        done
    }

    #[tokio::test]
    async fn pools_are_made_assigned_renamed_and_never_two_of_one_name() {
        let (store, _dir) = store().await;
        let make = |name: &str| Verb::MakePool { name: name.to_owned(), assigned: vec![NODE] };
        let rename = |name: &str, to: &str| {
            let (name, to) = (name.to_owned(), to.to_owned());
            Verb::RenamePool { name, to }
        };
        let assign = |name: &str, nodes: &[NodeId]| Verb::AssignPool {
            name: name.to_owned(),
            assigned: nodes.to_vec(),
        };
        let done = do_all(
            &store,
            vec![
                make("new"),
                make("fast"),
                make("a/b"),
                rename("new", "fast"),
                rename("new", "newer"),
                assign("newer", &[]),
                assign("new", &[]),
            ],
        );
        let (ok, exists, malformed) = (Ok(()), Err(Reason::Exists), Err(Reason::Malformed));
        let expected = vec![ok, exists, malformed, exists, ok, ok, Err(Reason::NotFound)];
        assert_eq!(done.await, expected);
        let pools = store.read(|rows| rows.pools()).await.expect("read");
        let newer = pools.iter().find(|pool| pool.name == "newer").expect("renamed");
        assert!(newer.assigned.is_empty());
    }

    #[tokio::test]
    async fn a_removed_pool_takes_along_what_lies_nowhere_else() {
        let (store, _dir) = store().await;
        let file = |n: u8| FoundFile {
            image: ImageId::from_bytes([n; 16]),
            path: VolumePath::parse(&format!("iso/{n}.iso")).expect("a path"),
            stamp: Stamp { inode: n.into(), size_bytes: 1, mtime_ns: 1 },
            format: ImageFormat::Iso,
            os: Os::unknown(),
            facts: None,
            folder: None,
        };
        let found = |n: u8| FileChange {
            event: FileEvent::Created,
            file: file(n),
            previous: None,
            found: Timestamp(1),
        };
        let apply = |volume, n| Verb::ApplyFiles { volume, changes: vec![found(n)] };
        let remove = Verb::RemovePool { name: "fast".to_owned() };
        let verbs = vec![apply(VOLUMES[0], 1), apply(VOLUMES[1], 2), remove];
        assert_eq!(do_all(&store, verbs).await, [Ok(()); 3]);
        let left = store.read(|rows| Ok((rows.image_count()?, rows.volumes()?, rows.pools()?)));
        let (images, volumes, pools) = left.await.expect("read");
        assert_eq!((images, volumes.len(), pools.len()), (1, 1, 1));
        assert_eq!(volumes[0].id, VOLUMES[1]);
    }

    #[tokio::test]
    async fn a_removed_node_leaves_volumes_and_images() {
        let (store, _dir) = store().await;
        let rename = Verb::RenameNode { node: NODE, to: "other".to_owned() };
        let verbs = vec![rename, Verb::RemoveNode { node: NODE }];
        assert_eq!(do_all(&store, verbs).await, [Ok(()); 2]);
        let left = store.read(|rows| Ok((rows.nodes()?, rows.volumes()?, rows.pools()?)));
        let (nodes, volumes, pools) = left.await.expect("read");
        assert!(nodes.is_empty() && volumes.len() == 2);
        assert!(volumes.iter().all(|volume| volume.sights.is_empty()));
        assert!(pools.iter().all(|pool| pool.assigned.is_empty()));
    }
}
