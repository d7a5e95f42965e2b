//! Signed URLs: whoever has one may read one image until a time, and nothing else. A signature is
//! BLAKE3 in its keyed mode over a context, the image and the time. It knows neither who keeps the
//! key nor what the time is.

use std::fmt;
use std::time::Duration;

use crate::id::ImageId;
use crate::refusal::{Reason, Refusal};
use crate::time::Timestamp;

/// Longest life of a URL: nobody can take one back.
pub const TTL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Keeps our signatures apart from whatever else a key may come to sign.
const CONTEXT: &[u8] = b"isotope: read an image by URL, 1";

/// What URLs are signed with. Whoever has it can sign any.
#[derive(Clone, PartialEq, Eq)]
pub struct UrlKey([u8; Self::BYTES]);

impl UrlKey {
    pub const BYTES: usize = 32;

    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    fn signature(&self, image: ImageId, expires: u64) -> blake3::Hash {
        let mut message = CONTEXT.to_vec();
        message.extend_from_slice(image.as_bytes());
        message.extend_from_slice(&expires.to_be_bytes());
        blake3::keyed_hash(&self.0, &message)
    }

    /// The query of a URL under which an image may be read until `expires`, in seconds since the
    /// epoch.
    #[must_use]
    pub fn query(&self, image: ImageId, expires: u64) -> String {
        format!("expires={expires}&signature={}", self.signature(image, expires))
    }
}

impl fmt::Debug for UrlKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UrlKey(..)")
    }
}

/// On what a request for an image rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// On nothing: as yet everybody may read.
    Everybody,
    /// On a signature that holds until then, in seconds since the epoch.
    Signed { expires: u64 },
}

/// Who may read an image over HTTP, by the query of the request: the only place that decides it.
/// `key` is `None` where nobody has told it yet.
///
/// # Errors
/// `NotPermitted` for a signature that is wrong or has expired, and `Unavailable` where that cannot
/// be told without a key.
pub fn may_read(
    key: Option<&UrlKey>,
    image: ImageId,
    query: Option<&str>,
    now: Timestamp,
) -> Result<Leave, Refusal> {
    let value = |name: &str| {
        let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    let (expires, signature) = match (value("expires"), value("signature")) {
        (None, None) => return Ok(Leave::Everybody),
        (expires, signature) => (expires.unwrap_or_default(), signature.unwrap_or_default()),
    };
    let key = key.ok_or_else(|| {
        let text = "signed URLs cannot be checked here before the catalogue has been reached; \
                    try again";
        Refusal::new(Reason::Unavailable, text)
    })?;
    let wrong = || {
        let text = "the URL's signature is wrong; ask for a new URL: isotope url IMAGE";
        Refusal::new(Reason::NotPermitted, text)
    };
    let expires = expires.parse::<u64>().map_err(|_| wrong())?;
    let signature = blake3::Hash::from_hex(signature).map_err(|_| wrong())?;
    // In constant time: blake3's hashes are compared in no other way.
    if signature != key.signature(image, expires) {
        return Err(wrong());
    }
    if expires <= now.since_epoch().0 {
        let text = "the URL has expired; ask for a new one: isotope url IMAGE";
        return Err(Refusal::new(Reason::NotPermitted, text));
    }
    Ok(Leave::Signed { expires })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: UrlKey = UrlKey::from_bytes([7; 32]);
    const IMAGE: ImageId = ImageId::from_bytes([1; 16]);

    fn read(key: Option<&UrlKey>, query: &str, now_s: i64) -> Result<Leave, (Reason, String)> {
        let query = Some(query).filter(|it| !it.is_empty());
        may_read(key, IMAGE, query, Timestamp::from_parts(now_s, 0))
            .map_err(|refusal| (refusal.reason, refusal.text))
    }

    #[test]
    fn a_signature_lets_its_image_be_read_until_its_time() {
        let query = KEY.query(IMAGE, 1000);
        assert_eq!(read(Some(&KEY), &query, 999), Ok(Leave::Signed { expires: 1000 }));
        let late = read(Some(&KEY), &query, 1000).expect_err("refused");
        assert_eq!(late.0, Reason::NotPermitted);
        assert!(late.1.contains("has expired"), "{}", late.1);
        let more = format!("x=1&{query}&y");
        assert!(read(Some(&KEY), &more, 999).is_ok());
    }

    #[test]
    fn whatever_is_changed_makes_it_wrong() {
        let good = KEY.query(IMAGE, 1000);
        let other_image = KEY.query(ImageId::from_bytes([2; 16]), 1000);
        let other_key = UrlKey::from_bytes([8; 32]).query(IMAGE, 1000);
        let longer = good.replace("1000", "1001");
        let (expiry, signature) = good.split_once('&').expect("two");
        let odd = [
            &*other_image,
            &other_key,
            &longer,
            expiry,
            signature,
            "expires=&signature=",
            "expires=-1&signature=00",
            "expires=99999999999999999999&signature=00",
            &good[..good.len() - 1],
            &format!("{good}0"),
        ]
        .map(str::to_owned);
        for query in odd {
            let (reason, text) = read(Some(&KEY), &query, 999).expect_err(&query);
            assert_eq!(reason, Reason::NotPermitted, "{query}");
            assert!(text.contains("is wrong"), "{query}: {text}");
        }
    }

    #[test]
    fn without_a_signature_everybody_may_read_and_without_a_key_none_is_believed() {
        for query in ["", "x=1", "expired=1"] {
            assert_eq!(read(None, query, 0), Ok(Leave::Everybody), "{query}");
        }
        let (reason, _) = read(None, &KEY.query(IMAGE, 1000), 0).expect_err("refused");
        assert_eq!(reason, Reason::Unavailable);
    }

    #[test]
    fn a_key_is_not_shown() {
        assert_eq!(format!("{KEY:?}"), "UrlKey(..)");
    }
}
