//! Headers on a real directory, within bounds of the test's own.

use std::os::unix::fs::PermissionsExt;
use std::time::SystemTime;

use super::*;

const SIZE: u64 = 1 << 30;

fn image(n: u8) -> ImageId {
    ImageId::from_bytes([n; 16])
}

fn content() -> Content {
    Content { size_bytes: SIZE, blake3: None }
}

fn header(n: u8) -> Bytes {
    vec![n; usize::try_from(HEADER_BYTES).expect("small")].into()
}

/// Waits until what was handed over is done with.
fn settled(headers: &Headers) {
    let (shared, _) = headers.open.as_ref().expect("open");
    let deadline = Instant::now() + Duration::from_secs(20);
    let coming = || (1..=20).any(|n| shared.index().is_coming(image(n)));
    while coming() {
        assert!(Instant::now() < deadline, "it is written");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn keep(headers: &Headers, n: u8) {
    let claim = headers.claim(image(n), content()).expect("not there yet");
    headers.keep(claim, move || Some(header(n)));
    settled(headers);
}

async fn read(headers: &Headers, n: u8) -> Option<Bytes> {
    headers.read(image(n), content()).await
}

#[tokio::test]
async fn what_is_kept_is_read_again_by_the_next_process_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let headers = Headers::open(&dir.path().join("headers")).expect("opened");
    assert_eq!(read(&headers, 1).await, None);
    keep(&headers, 1);
    assert!(headers.has(image(1)) && headers.claim(image(1), content()).is_none());
    assert_eq!(read(&headers, 1).await, Some(header(1)));
    drop(headers);
    fs::write(dir.path().join("headers/x.new"), b"half").expect("written");
    let headers = Headers::open(&dir.path().join("headers")).expect("opened");
    assert_eq!(read(&headers, 1).await, Some(header(1)));
    assert!(!dir.path().join("headers/x.new").exists());
    let mode = fs::metadata(dir.path().join("headers")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "images may be for some eyes only");
}

#[tokio::test]
async fn no_more_are_kept_than_may_be_and_those_in_use_stay() {
    let dir = tempfile::tempdir().expect("a directory");
    let headers = Headers::open_with(dir.path(), 3).expect("opened");
    for n in 1..=3 {
        keep(&headers, n);
    }
    assert!(read(&headers, 1).await.is_some());
    keep(&headers, 4);
    let left = |headers: &Headers| (1..=5).filter(|n| headers.has(image(*n))).collect::<Vec<_>>();
    assert_eq!(left(&headers), [1, 3, 4]);
    assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 3);
    drop(headers);
    // The order of use is that of the files' times.
    let day = Duration::from_secs(24 * 3600);
    let old = File::options().write(true).open(dir.path().join(image(4).to_string()));
    old.expect("there").set_modified(SystemTime::UNIX_EPOCH + day).expect("set");
    let headers = Headers::open_with(dir.path(), 3).expect("opened");
    keep(&headers, 5);
    assert_eq!(left(&headers), [1, 3, 5]);
}

#[tokio::test]
async fn a_damaged_file_is_a_miss_and_goes() {
    let dir = tempfile::tempdir().expect("a directory");
    let headers = Headers::open(dir.path()).expect("opened");
    let damages: [fn(&mut Vec<u8>); 4] =
        [|it| it.truncate(1000), |it| it[2000] ^= 1, Vec::clear, |it| it.push(0)];
    for damage in damages {
        keep(&headers, 1);
        let path = dir.path().join(image(1).to_string());
        let mut bytes = fs::read(&path).expect("there");
        damage(&mut bytes);
        fs::write(&path, bytes).expect("written");
        assert_eq!(read(&headers, 1).await, None);
        assert!(!path.exists() && !headers.has(image(1)));
    }
    keep(&headers, 1);
    let other = Content { size_bytes: SIZE + 1, blake3: None };
    assert_eq!(headers.read(image(1), other).await, None);
    assert!(!headers.has(image(1)));
    // Nor is it missed where somebody has removed it.
    keep(&headers, 1);
    fs::remove_file(dir.path().join(image(1).to_string())).expect("removed");
    assert_eq!(read(&headers, 1).await, None);
    keep(&headers, 1);
}

#[tokio::test]
async fn what_cannot_be_brought_or_written_is_wanted_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let headers = Headers::open(dir.path()).expect("opened");
    let claim = headers.claim(image(1), content()).expect("not there yet");
    assert!(headers.claim(image(1), content()).is_none(), "it is on its way");
    headers.keep(claim, || None);
    settled(&headers);
    drop(headers.claim(image(1), content()).expect("it did not come"));
    // In the way of what is to be written.
    let unfinished = dir.path().join(image(1).to_string()).with_extension(UNFINISHED);
    fs::create_dir(&unfinished).expect("made");
    keep(&headers, 1);
    assert!(!headers.has(image(1)));
    fs::remove_dir(&unfinished).expect("removed");
    keep(&headers, 1);
    assert_eq!(read(&headers, 1).await, Some(header(1)));
}

#[tokio::test]
async fn without_a_directory_nothing_is_kept() {
    let headers = Headers::of(None).await;
    assert!(headers.claim(image(1), content()).is_none() && read(&headers, 1).await.is_none());
    let file = tempfile::NamedTempFile::new().expect("a file");
    let headers = Headers::of(Some(file.path().join("headers"))).await;
    assert!(!headers.has(image(1)) && headers.claim(image(1), content()).is_none());
}
