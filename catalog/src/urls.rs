//! Where an image can be fetched over HTTP: which connected agent is named, and the URL at it. It
//! knows neither how a request comes in nor a byte of an image.

use std::collections::{BTreeMap, BTreeSet};

use isotope_proto::cluster::Node as Host;
use isotope_proto::id::{ImageId, NodeId, VolumeId};
use isotope_proto::image::Image;
use isotope_proto::name::LibraryPath;
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::web;

use crate::Core;
use crate::library::{self, Node};
use crate::store::Rows;

/// How an image is named.
pub(crate) enum Wanted {
    /// By an id that it has, or had.
    Image(ImageId),
    Path(LibraryPath),
}

/// An image, and who has it now.
pub(crate) struct Found {
    pub(crate) image: ImageId,
    /// In the library.
    pub(crate) name: String,
    /// The best agent for it, and the id under which that agent knows its bytes.
    holder: Option<(ImageId, Host)>,
}

impl Found {
    /// The URL at an agent, without its query, and the id in it.
    ///
    /// # Errors
    /// `Unavailable` where no agent that has the image is connected.
    pub(crate) fn at_agent(&self, name: &str) -> Result<(ImageId, String), Refusal> {
        let (image, host) = self.holder.as_ref().ok_or_else(|| {
            let text = format!(
                "no connected host has a sound copy of {}; isotope info {} says where it should be",
                self.name, self.image
            );
            Refusal::new(Reason::Unavailable, text)
        })?;
        Ok((*image, format!("http://{}{}", host.address, web::content_path(*image, name))))
    }
}

/// Finds an image and who has it.
///
/// # Errors
/// `NotFound`, `NotAFolder` and `IsAFolder` as the name leads to nothing or to no image.
pub(crate) async fn find(core: &Core, wanted: Wanted) -> Result<Found, Refusal> {
    let offers = core.nodes.offers();
    let found = core.store.read(move |rows| {
        let (image, name) = look_up(rows, wanted)?;
        let holder = match holder(&image, &rows.twins(&image)?, &offers) {
            Some((image, node)) => rows.node(node)?.map(|host| (image, host)),
            None => None,
        };
        Ok(Found { image: image.id, name, holder })
    });
    found.await
}

fn look_up(rows: &Rows<'_>, wanted: Wanted) -> Result<(Image, String), Refusal> {
    let path = match wanted {
        Wanted::Path(path) => path,
        Wanted::Image(id) => {
            let none = || Refusal::new(Reason::NotFound, format!("no image has the id {id}"));
            let image = rows.image_or_alias(id)?.ok_or_else(none)?;
            let path = library::path_of(rows, image.ino)?;
            let name = path.names().last().map_or(image.filename.clone(), ToString::to_string);
            return Ok((image, name));
        }
    };
    match library::find(rows, &path)? {
        (Some(entry), Node::Image(image)) => Ok((*image, entry.name.to_string())),
        _ => {
            let text = format!("{path} is a folder; name an image in it (isotope ls {path})");
            Err(Refusal::new(Reason::IsAFolder, text))
        }
    }
}

/// Which node is asked, of those that see a sound file of the image, or else of another with its
/// bytes, and by which id. Always the same for an image while the same are connected, so that one
/// host's memory has it, and another for another.
fn holder(
    image: &Image,
    twins: &[Image],
    offers: &BTreeMap<VolumeId, BTreeSet<NodeId>>,
) -> Option<(ImageId, NodeId)> {
    // Whatever is recorded, other sizes are other bytes.
    let twins = twins.iter().filter(|twin| twin.size_bytes == image.size_bytes);
    std::iter::once(image).chain(twins).find_map(|image| {
        let sound = image.replicas.iter().filter(|replica| !replica.is_rotten());
        let nodes = sound.filter_map(|replica| offers.get(&replica.volume)).flatten();
        let node = nodes.min_by_key(|node| distance(image.id, **node))?;
        Some((image.id, *node))
    })
}

/// Of the random ends of both ids.
fn distance(image: ImageId, node: NodeId) -> u64 {
    let end = |bytes: &[u8; 16]| bytes[8..].iter().fold(0, |end, byte| end << 8 | u64::from(*byte));
    end(image.as_bytes()) ^ end(node.as_bytes())
}

#[cfg(test)]
mod tests {
    use isotope_proto::id::{ContentId, Ino};
    use isotope_proto::image::{Checked, ImageFormat, Os, Replica, Stamp};
    use isotope_proto::name::VolumePath;
    use isotope_proto::time::Timestamp;

    use super::*;

    fn volume(n: u8) -> VolumeId {
        VolumeId::from_bytes([n; 16])
    }

    fn node(n: u8) -> NodeId {
        NodeId::from_bytes([n; 16])
    }

    /// On some volumes; on those that are negative it has rotted.
    fn image(n: u8, size_bytes: u64, volumes: &[i8]) -> Image {
        let replica = |n: &i8| Replica {
            volume: volume(n.unsigned_abs()),
            path: VolumePath::parse("iso/a.iso").expect("a path"),
            stamp: Stamp { inode: 1, size_bytes, mtime_ns: 1 },
            checked: Some(Checked { read: Timestamp(1), rotten: *n < 0, published: None }),
        };
        Image {
            id: ImageId::from_bytes([n; 16]),
            ino: Ino(n.into()),
            content: ContentId::from_bytes([1; 16]),
            hashes: None,
            filename: "a.iso".to_owned(),
            size_bytes,
            format: ImageFormat::Iso,
            os: Os::unknown(),
            flat_names: Vec::new(),
            facts: None,
            mode: 0o644,
            created: Timestamp(1),
            modified: Timestamp(1),
            changed: Timestamp(1),
            replicas: volumes.iter().map(replica).collect(),
        }
    }

    #[test]
    fn a_sound_file_of_the_image_comes_before_its_twins() {
        let offers: BTreeMap<_, _> =
            [(volume(1), [node(1)].into()), (volume(2), [node(2), node(3)].into())].into();
        let twin = image(8, 10, &[1]);
        for (volumes, twins, expected) in [
            (&[1][..], &[][..], Some((9, 1))),
            (&[2, 1], &[], Some((9, 1))),
            (&[2], &[], Some((9, 3))),
            (&[-1], &[], None),
            (&[-1, 2], &[], Some((9, 3))),
            (&[7], &[], None),
            (&[], &[], None),
            (&[7], std::slice::from_ref(&twin), Some((8, 1))),
            (&[2], std::slice::from_ref(&twin), Some((9, 3))),
            (&[7], &[image(8, 11, &[1])], None),
            (&[7], &[image(8, 10, &[7]), image(5, 10, &[2])], Some((5, 3))),
        ] {
            let found = holder(&image(9, 10, volumes), twins, &offers);
            let expected = expected.map(|(n, of)| (ImageId::from_bytes([n; 16]), node(of)));
            assert_eq!(found, expected, "{volumes:?}");
        }
    }

    #[test]
    fn images_are_spread_over_the_hosts_that_have_them() {
        let offers: BTreeMap<_, _> = [(volume(1), [node(1), node(0x80)].into())].into();
        let asked = |n| holder(&image(n, 10, &[1]), &[], &offers).map(|(_, node)| node);
        assert_eq!((asked(3), asked(0x83)), (Some(node(1)), Some(node(0x80))));
    }
}
