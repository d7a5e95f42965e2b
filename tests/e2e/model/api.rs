//! The model's operations as calls of the catalogue's API, refused with the errno that a mount would
//! show; and the tree as the API lists it.

use std::time::Duration;

use isotope_proto::change::Change;
use isotope_proto::id::RequestId;
use isotope_proto::pb::library_service_client::LibraryServiceClient;
use isotope_proto::pb::listing::Node as Listed;
use isotope_proto::pb::{self, stat_request::Target};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::time::Timestamp;
use tonic::transport::Channel;

use super::reference::{Model, Node, Op, Path};

/// Far more than any answer takes.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(crate) struct Api(LibraryServiceClient<Channel>);

fn text(path: &[String]) -> String {
    format!("/{}", path.join("/"))
}

fn at(path: &[String]) -> Option<pb::Place> {
    let (name, above) = path.split_last()?;
    let folder = pb::FolderRef { folder: Some(pb::folder_ref::Folder::Path(text(above))) };
    Some(pb::Place { folder: Some(folder), name: name.clone() })
}

fn errno_of(status: tonic::Status) -> i32 {
    match Refusal::from(status).reason {
        Reason::NotFound => libc::ENOENT,
        Reason::Exists => libc::EEXIST,
        Reason::NotAFolder => libc::ENOTDIR,
        Reason::IsAFolder => libc::EISDIR,
        Reason::NotEmpty => libc::ENOTEMPTY,
        Reason::IntoItself => libc::EINVAL,
        Reason::TooDeep | Reason::NameTooLong => libc::ENAMETOOLONG,
        Reason::NotPermitted => libc::EPERM,
        Reason::InUse => libc::EBUSY,
        other => panic!("an unexpected refusal: {other:?}"),
    }
}

impl Api {
    pub(crate) fn new(channel: Channel) -> Self {
        Self(LibraryServiceClient::new(channel))
    }

    /// The change that an operation made, or the errno of its refusal.
    pub(crate) async fn change(&self, op: &Op) -> Result<Change, i32> {
        let asked = tokio::time::timeout(PATIENCE, self.ask(op)).await;
        let change = asked.expect("an answer in time").map_err(errno_of)?;
        Ok(Change::try_from(change).expect("a change"))
    }

    async fn ask(&self, op: &Op) -> Result<pb::Change, tonic::Status> {
        let now = Timestamp::from(std::time::SystemTime::now());
        let request_id: Vec<u8> = RequestId::mint(now).into();
        match op {
            Op::MakeFolder(path) => {
                let request = pb::MakeFolderRequest { request_id, place: at(path), mode: None };
                self.twice(|mut it, r| async move { it.make_folder(r).await }, request).await
            }
            Op::RemoveFolder(path) => {
                let request = pb::RemoveFolderRequest { request_id, place: at(path) };
                self.twice(|mut it, r| async move { it.remove_folder(r).await }, request).await
            }
            Op::Rename { from, to, no_replace } => {
                let replacing = pb::RenameMode::Unspecified;
                let mode = if *no_replace { pb::RenameMode::NoReplace } else { replacing };
                let (from, to) = (at(from), at(to));
                let request = pb::RenameRequest { request_id, from, to, mode: mode.into() };
                self.twice(|mut it, r| async move { it.rename(r).await }, request).await
            }
            Op::Exchange { from, to } => {
                let (from, to) = (at(from), at(to));
                let mode = pb::RenameMode::Exchange.into();
                let request = pb::RenameRequest { request_id, from, to, mode };
                self.twice(|mut it, r| async move { it.rename(r).await }, request).await
            }
            Op::Link { from, to } => {
                let target = Some(Target::Path(text(from)));
                let found = self.0.clone().stat(pb::StatRequest { target }).await?.into_inner();
                let ino = found.entry.map(|entry| entry.ino).unwrap_or_default();
                let request = pb::LinkRequest { request_id, ino, place: at(to) };
                self.twice(|mut it, r| async move { it.link(r).await }, request).await
            }
            Op::Unlink(path) => {
                let request = pb::RemoveRequest { request_id, place: at(path) };
                self.twice(|mut it, r| async move { it.remove(r).await }, request).await
            }
            Op::Create(_) | Op::Store(_) => unreachable!("bytes are no business of this API"),
        }
    }

    /// Asks again with the same id, as after a lost answer: the change is made once.
    async fn twice<R: Clone, F>(
        &self,
        send: impl Fn(LibraryServiceClient<Channel>, R) -> F,
        request: R,
    ) -> Result<pb::Change, tonic::Status>
    where
        F: Future<Output = Result<tonic::Response<pb::Change>, tonic::Status>>,
    {
        let first = send(self.0.clone(), request.clone()).await?.into_inner();
        if !first.deltas.is_empty() {
            let again = send(self.0.clone(), request).await?.into_inner();
            assert_eq!(first, again, "one request, one change");
        }
        Ok(first)
    }

    /// The whole tree.
    pub(crate) async fn list(&self) -> Model {
        let request = pb::ListRequest { path: "/".to_owned(), depth: 0 };
        let mut listed = self.0.clone().list(request).await.expect("a list").into_inner();
        let mut model = Model::default();
        while let Some(it) = listed.message().await.expect("a listing") {
            let path: Path = it.path.split('/').skip(1).map(str::to_owned).collect();
            let node = match it.node.expect("a node") {
                Listed::Folder(_) => Node::Folder,
                Listed::Image(_) => Node::Image(it.entry.expect("an entry").ino),
            };
            if !path.concat().is_empty() {
                assert_eq!(model.0.insert(path, node), None, "listed once");
            }
        }
        model
    }
}
