//! Checksums that vendors publish beside their images (`SHA256SUMS` and the like), compared with
//! what was read. It opens small text files and no image.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::OwnedFd;

use isotope_proto::digest::Sha256;
use isotope_proto::id::ImageId;
use isotope_proto::image::Published;
use rustix::fs::OFlags;

use crate::identify::sums;
use crate::volume::{Volume, open_beneath, open_file};
use crate::walk::names;

/// Files of checksums that are read in one directory; beside large collections there may be one
/// an image.
const FILES_MAX: usize = 4096;
/// How such files are called, whatever their case, or how their names end.
const ENDINGS: [&str; 6] =
    ["sha256sums", "sha256sum", "sha256sums.txt", "sha256sum.txt", "checksum", ".sha256"];

/// Compares the hashed images of a volume with the checksums beside them; true if it found news,
/// which stands in the index.
pub(crate) fn compare(volume: &Volume) -> bool {
    let Ok(root) = volume.root() else { return false };
    let mut dirs: BTreeMap<String, Vec<(String, ImageId, Sha256)>> = BTreeMap::new();
    {
        let index = volume.index();
        for (path, known) in index.files() {
            let Some(hashed) = index.hashed(known.image) else { continue };
            let Some((dir, name)) = path.as_str().rsplit_once('/') else { continue };
            let image = (name.to_owned(), known.image, hashed.hashes.sha256);
            dirs.entry(dir.to_owned()).or_default().push(image);
        }
    }
    let mut news = false;
    for (dir, images) in dirs {
        let said = sums_in(&root, &dir);
        for (name, image, sha256) in images {
            let published = said
                .get(&name)
                .map(|(file, digest)| Published { file: file.clone(), agrees: *digest == sha256 });
            news |= note(volume, image, published);
        }
    }
    news
}

/// What the files of checksums in a directory say of each name.
fn sums_in(root: &OwnedFd, dir: &str) -> BTreeMap<String, (String, Sha256)> {
    let mut said = BTreeMap::new();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let Ok(opened) = open_beneath(root, dir, flags) else { return said };
    let listed = names(&opened).unwrap_or_default();
    let files = listed.into_iter().filter_map(|name| String::from_utf8(name).ok());
    for file in files.filter(|name| is_sums(name)).take(FILES_MAX) {
        let Some(text) = read(root, &format!("{dir}/{file}")) else { continue };
        // `image.iso.sha256` may hold nothing but digits.
        if let Some(about) = file.strip_suffix(".sha256")
            && let Some(digest) = sums::of_file(&text, about)
        {
            said.insert(about.to_owned(), (file.clone(), digest));
        }
        for (name, digest) in sums::parse(&text) {
            said.entry(name.to_owned()).or_insert_with(|| (file.clone(), digest));
        }
    }
    said
}

fn is_sums(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ENDINGS.iter().any(|ending| name.ends_with(ending))
}

fn read(root: &OwnedFd, path: &str) -> Option<String> {
    let (file, _) = open_file(root, path).ok()?;
    let mut bytes = Vec::new();
    let most = u64::try_from(sums::BYTES_MAX).unwrap_or(u64::MAX);
    file.take(most).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn note(volume: &Volume, image: ImageId, published: Option<Published>) -> bool {
    let mut index = volume.index_mut();
    let Some(hashed) = index.hashed(image).filter(|it| it.published != published).cloned() else {
        return false;
    };
    index.set_hashed(image, crate::index::Hashed { published, told: false, ..hashed });
    true
}

#[cfg(test)]
mod tests {
    use std::fs;

    use isotope_proto::digest::Blake3;
    use isotope_proto::image::Hashes;
    use isotope_proto::name::VolumePath;
    use isotope_proto::time::Timestamp;

    use super::*;
    use crate::index::{Hashed, Known, Verdict};

    #[test]
    fn sums_beside_an_image_are_compared_and_compared_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("iso/sub")).expect("made");
        let volume = Volume::open(dir.path(), "isos", None, Timestamp(1)).expect("a volume");
        let digest = |n: u8| Sha256::from_bytes([n; 32]);
        for (n, path) in [(1, "iso/a.iso"), (2, "iso/b.iso"), (3, "iso/sub/c.iso")] {
            fs::write(at(path), "bytes").expect("written");
            let (_, stamp) = open_file(&volume.root().expect("open"), path).expect("opened");
            let image = ImageId::from_bytes([n; 16]);
            let mut index = volume.index_mut();
            index.insert(VolumePath::parse(path).expect("a path"), Known { image, stamp });
            let hashed = Hashed {
                stamp,
                ctime_ns: 0,
                hashes: Hashes { sha256: digest(n), blake3: Blake3::from_bytes([n; 32]) },
                read_ns: 0,
                verdict: Verdict::Sound,
                published: None,
                told: true,
            };
            index.set_hashed(image, hashed);
        }
        let said = |n: u8| {
            let published =
                volume.index().hashed(ImageId::from_bytes([n; 16]))?.published.clone()?;
            Some((published.file, published.agrees))
        };
        assert!(!compare(&volume), "there are none");
        let text = format!("{}  a.iso\n{}  b.iso\n", digest(1), digest(9));
        fs::write(at("iso/SHA256SUMS"), text).expect("written");
        fs::write(at("iso/sub/c.iso.sha256"), digest(3).to_string()).expect("written");
        assert!(compare(&volume));
        assert_eq!(said(1), Some(("SHA256SUMS".to_owned(), true)));
        assert_eq!(said(2), Some(("SHA256SUMS".to_owned(), false)));
        assert_eq!(said(3), Some(("c.iso.sha256".to_owned(), true)));
        assert_eq!(volume.index().untold(9).len(), 3);
        assert!(!compare(&volume), "no news");
        fs::remove_file(at("iso/SHA256SUMS")).expect("removed");
        assert!(compare(&volume));
        assert_eq!((said(1), said(2)), (None, None));
    }
}
