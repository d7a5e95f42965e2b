//! What images are taken for, kept up to date with the databases of systems: when those change, what
//! was read of each image before is matched anew; the image itself is not read. Images of which
//! nothing was read yet are looked into.

use std::sync::Arc;
use std::time::Duration;

use isotope_proto::id::ImageId;
use isotope_proto::image::Stamp;
use isotope_proto::name::VolumePath;
use isotope_proto::pb;
use isotope_proto::refusal::Refusal;
use isotope_proto::report::Description;
use tracing::info;

use crate::identify::{Databases, Identity, identify, rematch};
use crate::tell::Link;
use crate::volume::{Volume, open_file};

/// For one page or one report.
const DEADLINE: Duration = Duration::from_secs(30);

/// Brings what the catalogue knows of a volume's images up to date, if that was not done with the
/// databases of now; true if there was something to do.
pub(crate) async fn refresh(volume: &Arc<Volume>, link: &mut Link) -> Result<bool, String> {
    let version = Databases::of_this_machine().version().to_owned();
    if volume.index().matched_with() == Some(&*version) {
        return Ok(false);
    }
    let (mut after_path, mut after_image_id, mut refreshed) = (String::new(), Vec::new(), 0);
    loop {
        let mut request = tonic::Request::new(pb::ListFilesRequest {
            node_id: link.node.into(),
            volume_id: volume.id.into(),
            lease_id: link.lease.into(),
            after_path: after_path.clone(),
            after_image_id: after_image_id.clone(),
            facts: true,
        });
        request.set_timeout(DEADLINE);
        let reply = link.client.list_files(request).await;
        let files = reply.map_err(|status| Refusal::from(status).to_string())?.into_inner().files;
        let Some(last) = files.last() else { break };
        after_path.clone_from(&last.path);
        after_image_id.clone_from(&last.image_id);
        let at = Arc::clone(volume);
        let matched = tokio::task::spawn_blocking(move || {
            let databases = Databases::of_this_machine();
            files.into_iter().filter_map(|file| match_one(&at, file, &databases)).collect()
        });
        let descriptions: Vec<Description> = matched.await.map_err(|error| error.to_string())?;
        refreshed += descriptions.len();
        describe(volume, link, descriptions).await?;
    }
    if refreshed > 0 {
        info!(volume = %volume.id, images = refreshed, "the databases of systems have changed; images were matched anew");
    }
    volume.index_mut().set_matched_with(version);
    Ok(true)
}

async fn describe(
    volume: &Volume,
    link: &mut Link,
    descriptions: Vec<Description>,
) -> Result<(), String> {
    if descriptions.is_empty() {
        return Ok(());
    }
    let mut request = tonic::Request::new(pb::DescribeRequest {
        node_id: link.node.into(),
        volume_id: volume.id.into(),
        lease_id: link.lease.into(),
        descriptions: descriptions.into_iter().map(Into::into).collect(),
    });
    request.set_timeout(DEADLINE);
    let told = link.client.describe(request).await;
    told.map(drop).map_err(|status| Refusal::from(status).to_string())
}

/// What a file is taken for now; `None` if that is up to date, or not to be found out.
fn match_one(volume: &Volume, file: pb::ListedFile, databases: &Databases) -> Option<Description> {
    let image = ImageId::try_from(&*file.image_id).ok()?;
    let path = VolumePath::parse(&file.path).ok()?;
    let name = path.file_name();
    let stamp = Stamp::from(file.stamp?);
    match file.facts {
        Some(facts) if facts.database == databases.version() => None,
        Some(facts) => {
            let (os, facts) = rematch(facts.into(), name, databases);
            Some(Description { image, format: None, os, facts: Box::new(facts) })
        }
        None => {
            let (opened, found) = open_file(&*volume.root().ok()?, path.as_str()).ok()?;
            let identity = || identify(&opened, found.size_bytes, name, databases);
            let Identity { format, os, facts } = (found == stamp).then(identity)?;
            Some(Description { image, format: Some(format), os, facts: Box::new(facts) })
        }
    }
}
