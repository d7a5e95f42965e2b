//! What an answer says of an image beside its bytes (RFC 9110 §8, RFC 9530, RFC 6266). It knows no
//! request.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use isotope_proto::id::ImageId;
use isotope_proto::image::{Hashes, ImageFormat, Stamp};
use isotope_proto::time::Timestamp;
use isotope_proto::web::ESCAPED;
use percent_encoding::utf8_percent_encode;

/// RFC 9530 §3.
const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");
/// A cache asks each time, which costs no bytes; and nobody on the way makes others of them.
const CACHE: HeaderValue = HeaderValue::from_static("private, no-cache, no-transform");

/// An image as one file of it is served.
#[derive(Debug, Clone)]
pub(crate) struct Representation {
    image: ImageId,
    pub(crate) size_bytes: u64,
    modified_s: u64,
    hashes: Option<Hashes>,
    /// What the file is called on its volume.
    file_name: String,
    /// What it is to be called where it is stored.
    name: String,
}

impl Representation {
    /// `name` is what the client called it; the file's own where it did not. `now` is for a file
    /// of tomorrow: no answer may say so (RFC 9110 §8.8.2.1).
    pub(crate) fn new(
        (image, hashes): (ImageId, Option<Hashes>),
        stamp: Stamp,
        file_name: &str,
        name: Option<&str>,
        now: Timestamp,
    ) -> Self {
        let modified = Timestamp(stamp.mtime_ns).min(now);
        Self {
            image,
            size_bytes: stamp.size_bytes,
            modified_s: modified.since_epoch().0,
            hashes,
            file_name: file_name.to_owned(),
            name: name.unwrap_or(file_name).to_owned(),
        }
    }

    pub(crate) fn modified(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.modified_s)
    }

    /// Both are of these bytes and no others: an id is never given to others, and a hash is known
    /// sooner on one host than on another.
    fn tags(&self) -> impl Iterator<Item = String> {
        let hash = self.hashes.map(|hashes| format!("\"b3-{}\"", hashes.blake3));
        hash.into_iter().chain([format!("\"id-{}\"", self.image)])
    }

    /// Whether a strong entity tag, with its quotes, is this one's.
    pub(crate) fn has_tag(&self, tag: &str) -> bool {
        self.tags().any(|own| own == tag)
    }

    /// All but what depends on the range: whatever of it is sent, this is so.
    pub(crate) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let mut say = |name: HeaderName, text: &str| {
            // Each text is of visible ASCII: digits, ids, dates, and names that are escaped.
            if let Ok(value) = HeaderValue::from_str(text) {
                headers.insert(name, value);
            }
        };
        say(header::ETAG, &self.tags().next().unwrap_or_default());
        say(header::LAST_MODIFIED, &httpdate::fmt_http_date(self.modified()));
        if let Some(hashes) = self.hashes {
            let digest = STANDARD.encode(hashes.sha256.as_bytes());
            say(REPR_DIGEST, &format!("sha-256=:{digest}:"));
        }
        say(header::CONTENT_DISPOSITION, &disposition(&self.name));
        let media_type = match ImageFormat::of_name(&self.file_name) {
            Some(ImageFormat::Iso) => "application/x-iso9660-image",
            _ => "application/octet-stream",
        };
        say(header::CONTENT_TYPE, media_type);
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::CACHE_CONTROL, CACHE);
        headers
    }
}

/// RFC 6266 §4: the name in plain ASCII for old clients, and as it is (RFC 8187) for the others.
fn disposition(name: &str) -> String {
    // Old clients undo escapes, each in its own way: none may look like one.
    let plain = |c: char| match c {
        '"' | '\\' | '%' | '/' => '_',
        ' '..='~' => c,
        _ => '_',
    };
    let plain: String = name.chars().map(plain).collect();
    let exact = utf8_percent_encode(name, ESCAPED);
    format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{exact}")
}

#[cfg(test)]
pub(crate) mod tests {
    use isotope_proto::digest::{Blake3, Sha256};

    use super::*;

    pub(crate) const ID_TAG: &str = "\"id-07070707-0707-0707-0707-070707070707\"";
    pub(crate) const HASH_TAG: &str =
        "\"b3-0202020202020202020202020202020202020202020202020202020202020202\"";
    pub(crate) const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const IMAGE: ImageId = ImageId::from_bytes([7; 16]);

    fn stamp(mtime_ns: i64) -> Stamp {
        Stamp { inode: 1, size_bytes: 10, mtime_ns }
    }

    /// Ten bytes of 1994.
    pub(crate) fn hashed() -> Representation {
        let hashes =
            Hashes { sha256: Sha256::from_bytes([1; 32]), blake3: Blake3::from_bytes([2; 32]) };
        let (stamp, now) = (stamp(784_111_777_900_000_000), Timestamp(i64::MAX));
        Representation::new((IMAGE, Some(hashes)), stamp, "a.iso", Some("b.iso"), now)
    }

    #[test]
    fn an_image_is_described() {
        let headers = hashed().headers();
        for (name, expected) in [
            ("etag", HASH_TAG),
            ("last-modified", MODIFIED),
            ("repr-digest", "sha-256=:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=:"),
            ("content-type", "application/x-iso9660-image"),
            ("content-disposition", "attachment; filename=\"b.iso\"; filename*=UTF-8''b.iso"),
            ("accept-ranges", "bytes"),
            ("x-content-type-options", "nosniff"),
            ("cache-control", "private, no-cache, no-transform"),
        ] {
            let told = headers.get(name).and_then(|value| value.to_str().ok());
            assert_eq!(told, Some(expected), "{name}");
        }
    }

    #[test]
    fn what_is_not_known_yet_is_not_told() {
        let now = Timestamp(5_000_000_000);
        let future = Representation::new((IMAGE, None), stamp(i64::MAX), "x.img", None, now);
        let headers = future.headers();
        assert_eq!(headers["etag"], ID_TAG);
        assert!(!headers.contains_key("repr-digest"));
        assert_eq!(headers["content-type"], "application/octet-stream");
        assert_eq!(headers["last-modified"], "Thu, 01 Jan 1970 00:00:05 GMT");
        let past = Representation::new((IMAGE, None), stamp(-1), "x.img", None, now);
        assert_eq!(past.headers()["last-modified"], "Thu, 01 Jan 1970 00:00:00 GMT");
    }

    #[test]
    fn names_break_no_header() {
        for (name, plain, exact) in [
            ("a b.iso", "a b.iso", "a%20b.iso"),
            ("ä.iso", "_.iso", "%C3%A4.iso"),
            ("\"\\%.iso", "___.iso", "%22%5C%25.iso"),
            ("a\r\nSet-Cookie: x", "a__Set-Cookie: x", "a%0D%0ASet-Cookie%3A%20x"),
            ("a;b'c*", "a;b'c*", "a%3Bb%27c%2A"),
        ] {
            let expected = format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{exact}");
            assert_eq!(disposition(name), expected);
        }
    }
}
