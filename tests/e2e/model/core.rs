//! The tree's core without a mount: operations go to a catalogue; what its feed makes of the
//! mount's tree, and what a fresh list makes of it, must be what the model says.

use std::net::{Ipv4Addr, SocketAddr};

use isotope_catalog::{Catalog, Config};
use isotope_fs::tree::{Applied, Inode, Position, Tree};
use isotope_proto::change::Record;
use isotope_proto::id::{Incarnation, Ino, NodeId, Revision};
use isotope_proto::pb::agent_service_client::AgentServiceClient;
use isotope_proto::pb::feed_service_client::FeedServiceClient;
use isotope_proto::pb::watch_event::Event;
use isotope_proto::pb::{self, agent_message, catalog_message};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::api::{Api, PATIENCE};
use super::reference::{Errnos, Model, Node, Path, Step, step};

struct Core {
    api: Api,
    feed: FeedServiceClient<Channel>,
    events: tonic::Streaming<pb::WatchEvent>,
    tree: Tree,
    stop: CancellationToken,
    _state: tempfile::TempDir,
}

impl Drop for Core {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Core {
    /// A new catalogue with three images, as an agent would report them.
    async fn start() -> Self {
        let state = tempfile::tempdir().expect("a directory");
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let scan_every = std::time::Duration::from_secs(300);
        let config = Config { listen, state: state.path().to_owned(), scan_every };
        let catalog = Catalog::build(config).await.expect("a catalogue");
        let url = format!("http://{}", catalog.address());
        let stop = CancellationToken::new();
        tokio::spawn(catalog.serve(stop.clone()));
        let channel = tonic::transport::Endpoint::from_shared(url).expect("a URL").connect_lazy();
        report_images(channel.clone()).await;
        let mut feed = FeedServiceClient::new(channel.clone());
        let (tree, events) = list(&mut feed).await;
        let api = Api::new(channel);
        Self { api, feed, events, tree, stop, _state: state }
    }

    /// Lets the feed bring the tree to a revision.
    async fn follow_to(&mut self, revision: Revision) {
        // One deadline for all events: heartbeats come whatever else does not.
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.tree.position.revision < revision {
            let event = tokio::time::timeout_at(deadline, self.events.message());
            let event = event.await.expect("in time").expect("a stream").expect("an event");
            if let Some(Event::Change(change)) = event.event {
                let applied = self.tree.apply(&change.try_into().expect("a change"));
                assert!(matches!(applied, Applied::Now { .. }), "{applied:?}");
            }
        }
    }
}

async fn list(feed: &mut FeedServiceClient<Channel>) -> (Tree, tonic::Streaming<pb::WatchEvent>) {
    let mut events = feed.watch(pb::WatchRequest::default()).await.expect("a feed").into_inner();
    let mut tree = None;
    loop {
        let event = tokio::time::timeout(PATIENCE, events.message());
        let event = event.await.expect("in time").expect("a stream").expect("an event");
        match event.event.expect("something") {
            Event::Reset(reset) => {
                let incarnation = Incarnation::try_from(&*reset.incarnation).expect("an id");
                let revision = Revision(reset.revision);
                tree = Some(Tree::new(Position { incarnation, revision }));
            }
            Event::Records(records) => {
                for record in records.records {
                    let record = Record::try_from(record).expect("a record");
                    tree.as_mut().expect("after the reset").load(record);
                }
            }
            Event::Listed(_) => return (tree.expect("after the reset"), events),
            _ => {}
        }
    }
}

async fn report_images(channel: Channel) {
    let mut agents = AgentServiceClient::new(channel);
    let node = NodeId::from_bytes([1; 16]);
    let volume = pb::OfferedVolume {
        volume_id: vec![2; 16],
        pool_name: "isos".to_owned(),
        path: "/isos".to_owned(),
        offline_reason: None,
        space: Some(pb::Space::default()),
    };
    let hello = pb::Hello {
        node_id: node.into(),
        node_name: "host".to_owned(),
        address: "host:1".to_owned(),
        boot_id: vec![3; 16],
        version: String::new(),
        volumes: vec![volume],
    };
    let hello = pb::AgentMessage { message: Some(agent_message::Message::Hello(hello)) };
    let session = agents.session(tokio_stream::once(hello).chain(tokio_stream::pending())).await;
    let mut session = session.expect("a session").into_inner();
    let lease_id = loop {
        let heard = session.message().await.expect("an answer").expect("a message");
        if let Some(catalog_message::Message::Keep(keep)) = heard.message {
            break keep.lease_id;
        }
    };
    let image = |n: u8| pb::ImageEvent {
        r#type: pb::ImageEventType::Created.into(),
        image: Some(pb::FoundImage {
            image_id: vec![10 + n; 16],
            path: format!("iso/{n}.iso"),
            stamp: Some(pb::Stamp { inode: n.into(), size_bytes: 1, mtime_ns: 1 }),
            format: pb::ImageFormat::Iso.into(),
            os: Some(pb::Os::default()),
            folder_hint: (n < 2).then(|| "/a".to_owned()),
            facts: None,
        }),
        time: Some(Default::default()),
        previous: None,
    };
    let report = pb::NotifyImageChangesRequest {
        node_id: node.into(),
        volume_id: vec![2; 16],
        events: (0..3).map(image).collect(),
        lease_id,
    };
    let first = agents.notify_image_changes(report.clone()).await.expect("taken").into_inner();
    // At least once: the second telling changes nothing.
    let again = agents.notify_image_changes(report).await.expect("taken").into_inner();
    assert_eq!(first, again);
}

/// A tree in the model's words; checks what must hold of any tree on the way.
fn model_of(tree: &Tree) -> Model {
    fn below(tree: &Tree, ino: Ino, prefix: &Path, model: &mut Model, links: &mut Vec<(Ino, u32)>) {
        let folder = tree.folder(ino).expect("a folder");
        let mut subfolders = 0;
        for (name, child) in folder.names() {
            assert_eq!(folder.child(name.as_str()), Some(child), "both indexes agree");
            let mut path = prefix.clone();
            path.push(name.to_string());
            let node = match tree.get(child).expect("no dangling entry") {
                Inode::Folder(it) => {
                    assert_eq!(it.parent, ino);
                    subfolders += 1;
                    below(tree, child, &path, model, links);
                    Node::Folder
                }
                Inode::Image(image) => {
                    links.push((child, image.links));
                    Node::Image(child.0)
                }
            };
            assert_eq!(model.0.insert(path, node), None, "a name once");
        }
        assert_eq!(folder.subfolders, subfolders);
    }
    let mut model = Model::default();
    let mut links = Vec::new();
    below(tree, Ino::ROOT, &Path::new(), &mut model, &mut links);
    for (ino, links) in &links {
        assert_eq!(model.links(ino.0), *links as usize, "each name counts");
    }
    links.sort_unstable();
    links.dedup();
    let folders = model.0.values().filter(|node| **node == Node::Folder).count();
    assert_eq!((folders + links.len()) as u64 + 1, tree.inode_count(), "no orphan");
    model
}

async fn run(steps: Vec<Step>) {
    let mut core = Core::start().await;
    let mut model = model_of(&core.tree);
    assert_eq!(model.0.len(), 7, "three folders, /a and three images");
    for step in steps {
        let op = step.op(&model);
        let expected: Result<(), Errnos> = model.apply(&op);
        match (core.api.change(&op).await, expected) {
            (Ok(change), Ok(())) => core.follow_to(change.revision).await,
            (Err(errno), Err(allowed)) if allowed.contains(&errno) => {}
            // A path that no folder can have is refused before anything is looked up.
            (Err(libc::ENAMETOOLONG), Err(_)) if op.is_beyond_all_folders() => {}
            (found, expected) => panic!("{op:?}: expected {expected:?}, found {found:?}"),
        }
        assert_eq!(model_of(&core.tree), model, "after {op:?}");
    }
    let (listed, _) = list(&mut core.feed.clone()).await;
    assert_eq!(model_of(&listed), model, "a fresh list");
    assert_eq!(core.tree.outdated_by(&listed), (Vec::new(), Vec::new()), "nothing differs");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 40,
        max_shrink_iters: 100,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/e2e/model/core.seeds",
        ))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_core_agrees_with_the_model(steps in proptest::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(run(steps));
    }
}
