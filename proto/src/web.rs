//! What the parts have in common as HTTP servers: the paths under which images are found, and how
//! a refusal is answered. It knows neither where bytes are nor how a request comes in.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use tonic::codegen::http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use crate::id::ImageId;
use crate::name::{EntryName, LibraryPath};
use crate::refusal::{Reason, Refusal};

/// All but the unreserved characters of RFC 3986 §2.3: right in paths and in RFC 8187's parameters.
pub const ESCAPED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Whoever meets a part that is busy, or starting, asks again after so many seconds: agents are
/// back within three of a catalogue's start.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("5");

const CONTENT: &str = "/content/";
const FILES: &str = "/files/";

/// Where an image is: `/content/ID`, and a name for people and for clients that look at how a path
/// ends.
#[must_use]
pub fn content_path(image: ImageId, name: &str) -> String {
    format!("{CONTENT}{image}/{}", utf8_percent_encode(name, ESCAPED))
}

/// The image of a path as [`content_path`] gives them, with its name if it has one.
///
/// # Errors
/// `Malformed` for what is no id; `NotFound` for another path.
pub fn content_of(path: &str) -> Result<(ImageId, Option<EntryName>), Refusal> {
    let rest = path.strip_prefix(CONTENT).ok_or_else(|| nothing_at(path))?;
    let (id, names) = rest.split_once('/').unwrap_or((rest, ""));
    let image = id.parse::<ImageId>().map_err(|error| malformed(&error))?;
    let name = names.rsplit('/').next().unwrap_or_default();
    Ok((image, decoded(name).ok()))
}

/// The library path of a path below `/files`.
///
/// # Errors
/// Those of names that no library can hold; `NotFound` for another path.
pub fn library_path_of(path: &str) -> Result<LibraryPath, Refusal> {
    // The root has no slash of its own.
    let rest =
        if FILES.strip_suffix('/') == Some(path) { Some("") } else { path.strip_prefix(FILES) };
    let rest = rest.ok_or_else(|| nothing_at(path))?;
    let names = rest.split('/').filter(|name| !name.is_empty()).map(decoded);
    let names = names.collect::<Result<Vec<_>, _>>()?;
    let path: String = names.iter().map(|name| format!("/{name}")).collect();
    Ok(if path.is_empty() { LibraryPath::default() } else { path.parse::<LibraryPath>()? })
}

/// One component: decoded alone, so that a slash in it is none between two.
fn decoded(component: &str) -> Result<EntryName, Refusal> {
    let bytes: Vec<u8> = percent_decode_str(component).collect();
    Ok(EntryName::parse_bytes(&bytes)?)
}

fn malformed(error: &dyn std::error::Error) -> Refusal {
    Refusal::new(Reason::Malformed, error.to_string())
}

/// A path under which no part has anything.
#[must_use]
pub fn nothing_at(path: &str) -> Refusal {
    let text = format!(
        "there is nothing at {path:?}; images are at /content/ID, and at the catalogue at \
         /files/FOLDER/NAME, too"
    );
    Refusal::new(Reason::NotFound, text)
}

/// Whether a request is of gRPC, which has its own words for everything.
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.starts_with(b"application/grpc"))
}

/// An answer that is one sentence of text, and is kept by nobody.
#[must_use]
pub fn told(status: StatusCode, text: &str) -> Response<String> {
    let mut response = Response::new(format!("{text}\n"));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, plain);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A refusal as an answer.
#[must_use]
pub fn refused(refusal: &Refusal) -> Response<String> {
    let mut response = told(refusal.reason.http(), &refusal.text);
    let headers = response.headers_mut();
    if matches!(refusal.reason, Reason::Unavailable | Reason::Busy) {
        headers.insert(header::RETRY_AFTER, RETRY_AFTER_S);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_found_under_its_id_whatever_follows() {
        let image = ImageId::from_bytes([0xab; 16]);
        for (rest, name) in [
            ("", None),
            ("/", None),
            ("/a.iso", Some("a.iso")),
            ("/x/y/a%20b%25.iso", Some("a b%.iso")),
            ("/%C3%A4.iso", Some("ä.iso")),
            ("/%FF.iso", None),
            ("/a%0Ab", None),
            ("/a%2Fb", None),
        ] {
            let found = content_of(&format!("/content/{image}{rest}")).expect(rest);
            assert_eq!((found.0, found.1.as_ref().map(EntryName::as_str)), (image, name), "{rest}");
        }
        for name in ["a.iso", "ä ö%.iso", "a?b#c;d.iso", "\"'\\.iso"] {
            let path = content_path(image, name);
            assert!(path.bytes().all(|it| it.is_ascii_graphic()), "{path}");
            assert_eq!(content_of(&path).expect("found").1.expect("a name").as_str(), name);
        }
        let reason = |path| content_of(path).expect_err("refused").reason;
        assert_eq!(reason("/content/no-id/a.iso"), Reason::Malformed);
        assert_eq!(reason("/other"), Reason::NotFound);
    }

    #[test]
    fn a_library_path_is_decoded_component_by_component() {
        for (path, expected) in [
            ("/files", Ok("/")),
            ("/files/", Ok("/")),
            ("/files/linux//a.iso", Ok("/linux/a.iso")),
            ("/files/a%20b/100%25.iso", Ok("/a b/100%.iso")),
            ("/files/%C3%BC.iso", Ok("/ü.iso")),
            ("/files/a+b.iso", Ok("/a+b.iso")),
            ("/files/a%2Fb", Err(Reason::InvalidName)),
            ("/files/../etc", Err(Reason::InvalidName)),
            ("/files/%2e%2e", Err(Reason::InvalidName)),
            ("/files/a%00", Err(Reason::InvalidName)),
            ("/files/%FF", Err(Reason::InvalidName)),
            ("/files/1/2/3/4/5/6/7", Err(Reason::TooDeep)),
            ("/filesystem", Err(Reason::NotFound)),
            ("/other", Err(Reason::NotFound)),
        ] {
            let found = library_path_of(path).map(|it| it.to_string());
            let expected = expected.map(str::to_owned);
            assert_eq!(found.map_err(|it| it.reason), expected, "{path}");
        }
    }

    #[test]
    fn a_refusal_says_what_it_is_and_when_to_come_back() {
        for (reason, status, retry) in [
            (Reason::NotFound, 404, None),
            (Reason::NotPermitted, 403, None),
            (Reason::Replaced, 409, None),
            (Reason::Unavailable, 503, Some("5")),
            (Reason::Busy, 503, Some("5")),
        ] {
            let response = refused(&Refusal::new(reason, "no"));
            assert_eq!((response.status().as_u16(), &**response.body()), (status, "no\n"));
            let after = response.headers().get(header::RETRY_AFTER);
            assert_eq!(after.map(HeaderValue::as_bytes), retry.map(str::as_bytes));
        }
    }
}
