//! What is answered to whom: wholes, parts, conditions, names, and what is not there.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use super::{Served, curl, escaped, get, hashed, id};
use crate::harness::{World, eventually, holds, pattern, same_bytes, text, write_image};
use crate::hashing::rot;

/// By coreutils.
fn base64_of_hex(world: &World, hex: &str) -> String {
    let digits = world.path("digest");
    fs::write(&digits, hex.to_uppercase()).expect("written");
    let program = "basenc --base16 -d \"$1\" | basenc --base64 -w0";
    let output = Command::new("sh").args(["-c", program, "sh", text(&digits)]).output();
    String::from_utf8(output.expect("coreutils").stdout).expect("text")
}

#[test]
fn an_image_is_read_whole_from_its_agent_and_by_way_of_the_catalogue() {
    let bytes = pattern("whole", 3_000_000);
    let it = Served::with(&[("a.iso", &bytes), ("disk.img", b"disk"), ("empty.iso", b"")]);
    let (url, id) = (&it.url, it.id("/other/a.iso"));
    let agent = it.content("/other/a.iso");
    for (words, from) in [
        (&[][..], agent.clone()),
        (&[], format!("{agent}/whatever/it.iso")),
        (&["--http2-prior-knowledge"], agent.clone()),
        (&["-L"], format!("{url}/content/{id}")),
        (&["-L"], format!("{url}/content/{id}/x.iso")),
        (&["-L"], format!("{url}/files/other/a.iso")),
        (&["-L", "--http2-prior-knowledge"], format!("{url}/files/other/a.iso")),
    ] {
        let reply = it.get(&[words, &[from.as_str()]].concat());
        assert_eq!(reply.status, 200, "{from}");
        same_bytes(&reply.body, &bytes);
    }

    let whole = it.get(&[&agent]);
    let info = it.world.json(url, &["info", "/other/a.iso"]);
    let hash = |name: &str| info[name].as_str().expect("hashed").to_owned();
    let digest = format!("sha-256=:{}:", base64_of_hex(&it.world, &hash("sha256")));
    for (name, expected) in [
        ("content-length", "3000000"),
        ("etag", &*format!("\"b3-{}\"", hash("blake3"))),
        ("repr-digest", &digest),
        ("content-type", "application/x-iso9660-image"),
        ("content-disposition", "attachment; filename=\"a.iso\"; filename*=UTF-8''a.iso"),
        ("accept-ranges", "bytes"),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(whole.header(name), Some(expected), "{name}");
    }
    assert!(whole.header("last-modified").is_some_and(|it| it.ends_with(" GMT")));
    let head = it.get(&["-I", &agent]);
    let but_date = |headers: &[(String, String)]| {
        headers.iter().filter(|(name, _)| name != "date").cloned().collect::<Vec<_>>()
    };
    assert_eq!((head.status, but_date(&head.headers)), (200, but_date(&whole.headers)));

    let disk = it.get(&[&it.content("/other/disk.img")]);
    assert_eq!(disk.header("content-type"), Some("application/octet-stream"));
    let empty = it.get(&[&it.content("/other/empty.iso")]);
    assert_eq!((empty.status, empty.body.len()), (200, 0));
}

#[test]
fn a_part_of_an_image_is_read() {
    let bytes = pattern("part", 1_000_000);
    let it = Served::with(&[("a.iso", &bytes)]);
    let agent = it.content("/other/a.iso");
    for (range, start, end) in [
        ("0-0", 0, 1),
        ("0-2047", 0, 2048),
        ("262143-262144", 262_143, 262_145),
        ("999999-", 999_999, 1_000_000),
        ("-1000", 999_000, 1_000_000),
        ("500000-9999999", 500_000, 1_000_000),
    ] {
        let reply = it.get(&["-r", range, &agent]);
        assert_eq!(reply.status, 206, "{range}");
        let told = format!("bytes {start}-{}/1000000", end - 1);
        assert_eq!(reply.header("content-range"), Some(&*told));
        assert_eq!(reply.header("content-length"), Some(&*(end - start).to_string()));
        same_bytes(&reply.body, &bytes[start..end]);
    }
    let past = it.get(&["-r", "1000000-", &agent]);
    past.refuses(416, "1000000 bytes");
    assert_eq!(past.header("content-range"), Some("bytes */1000000"));
    let several = it.get(&["-r", "0-1,5-6", &agent]);
    assert_eq!((several.status, several.body.len()), (200, 1_000_000));
    let head = it.get(&["-I", "-r", "0-9", &agent]);
    assert_eq!((head.status, head.header("content-length")), (200, Some("1000000")));

    // By way of the catalogue it is the same.
    let from = format!("{}/files/other/a.iso", it.url);
    let reply = it.get(&["-L", "-r", "7-9", &from]);
    assert_eq!(reply.status, 206);
    same_bytes(&reply.body, &bytes[7..10]);
}

#[test]
fn conditions_are_kept() {
    let bytes = pattern("conditions", 100_000);
    let it = Served::with(&[("a.iso", &bytes)]);
    let agent = it.content("/other/a.iso");
    let first = it.get(&["-I", &agent]);
    let (tag, date) = (first.header("etag").expect("told"), first.header("last-modified"));
    let by_id = format!("\"id-{}\"", it.id("/other/a.iso"));
    let since = format!("If-Modified-Since: {}", date.expect("told"));
    for (lines, status, len) in [
        (&[format!("If-None-Match: {tag}")][..], 304, 0),
        (&["If-None-Match: \"x\"".to_owned()], 200, 100_000),
        (&[since], 304, 0),
        (&[format!("If-Match: {tag}")], 200, 100_000),
        (&["If-Match: \"x\"".to_owned()], 412, 0),
        (&["Range: bytes=5-9".to_owned(), format!("If-Range: {tag}")], 206, 5),
        (&["Range: bytes=5-9".to_owned(), format!("If-Range: {by_id}")], 206, 5),
        (&["Range: bytes=5-9".to_owned(), "If-Range: \"x\"".to_owned()], 200, 100_000),
    ] {
        let mut words: Vec<&str> = lines.iter().flat_map(|line| ["-H", line]).collect();
        words.push(&agent);
        let reply = it.get(&words);
        assert_eq!(reply.status, status, "{lines:?}");
        match status {
            412 => reply.refuses(412, "fetch it anew"),
            304 => assert_eq!((reply.body.len(), reply.header("etag")), (0, Some(tag))),
            _ => assert_eq!(reply.body.len(), len, "{lines:?}"),
        }
    }
}

#[test]
fn a_download_that_was_cut_off_goes_on_where_it_ended() {
    let bytes = pattern("resumed", 5_000_000);
    let it = Served::with(&[("a.iso", &bytes)]);
    let file = it.world.path("part.iso");
    for from in [it.content("/other/a.iso"), format!("{}/files/other/a.iso", it.url)] {
        fs::write(&file, &bytes[..1_234_567]).expect("written");
        let mut went_on = curl(&["-L", "-C", "-", "-o", text(&file), "-w", "%{http_code}", &from]);
        let went_on = went_on.output().expect("curl is installed");
        assert!(went_on.status.success(), "{went_on:?}");
        assert_eq!(String::from_utf8_lossy(&went_on.stdout), "206");
        holds(&file, &bytes);
    }
}

#[test]
fn odd_names_lead_to_their_images_and_what_is_not_there_is_said() {
    let names = ["ä ö 100%.iso", "a+b&c?d#e;f.iso", "\"quoted' \\.iso", "%41.iso"];
    let bytes: Vec<_> = names.iter().map(|name| pattern(name, 10_000)).collect();
    let images: Vec<_> = names.iter().copied().zip(bytes.iter().map(Vec::as_slice)).collect();
    let it = Served::with(&images);
    let url = &it.url;
    let run = |args: &[&str]| {
        let done = it.world.run(&[&["--server", url], args].concat());
        assert!(done.status.success(), "{args:?}: {done:?}");
    };
    run(&["mkdir", "/Ordner für 50%"]);
    for (name, bytes) in &images {
        let path = format!("/Ordner für 50%/{name}");
        run(&["mv", &format!("/other/{name}"), &path]);
        let reply = it.get(&["-L", &format!("{url}/files{}", escaped(&path))]);
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        same_bytes(&reply.body, bytes);
        let told = reply.header("content-disposition").expect("a name");
        assert!(told.ends_with(&format!("filename*=UTF-8''{}", escaped(name))), "{told}");
    }

    let folder = format!("{url}/files{}", escaped("/Ordner für 50%"));
    it.get(&[&folder]).refuses(404, "is a folder");
    it.get(&[&format!("{url}/files")]).refuses(404, "is a folder");
    it.get(&[&format!("{url}/files/linux/no.iso")]).refuses(404, "no such file");
    it.get(&[&format!("{folder}/%2541.iso/x")]).refuses(404, "no folder");
    it.get(&[&format!("{url}/files/linux%2Fno.iso")]).refuses(400, "slash");
    it.get(&["--path-as-is", &format!("{url}/files/../x")]).refuses(400, "cannot be used");
    it.get(&[&format!("{url}/files/%FF")]).refuses(400, "UTF-8");
    let unknown = "00000000-0000-7000-8000-000000000000";
    for base in [url, &it.agent] {
        it.get(&[&format!("{base}/content/{unknown}")]).refuses(404, unknown);
        it.get(&[&format!("{base}/content/no-id")]).refuses(400, "not an id");
        it.get(&[base]).refuses(404, "images are at /content/ID");
        let posted = it.get(&["-X", "POST", &format!("{base}/content/{unknown}")]);
        assert_eq!((posted.status, posted.header("allow")), (405, Some("GET,HEAD")));
    }
}

#[test]
fn a_file_that_changes_while_it_is_sent_breaks_the_connection() {
    let before = pattern("before", 40 << 20);
    let it = Served::with(&[("a.iso", &before)]);
    let (agent, file) = (it.content("/other/a.iso"), it.world.path("isos/iso/a.iso"));
    let taken = it.world.path("taken");
    let slow = curl(&["--limit-rate", "4M", "-o", text(&taken), &agent])
        .stderr(Stdio::piped())
        .spawn()
        .expect("curl is installed");
    eventually("it has begun", || fs::metadata(&taken).is_ok_and(|it| it.len() > 0));
    let mut writer = fs::File::options().append(true).open(&file).expect("opened");
    writer.write_all(b"more").expect("changed");
    drop(writer);
    let ended = slow.wait_with_output().expect("a child");
    // "transfer closed with outstanding read data remaining".
    assert_eq!(ended.status.code(), Some(18), "{ended:?}");
    let got = fs::read(&taken).expect("some of it");
    assert!(got.len() < before.len(), "it is not whole");
    same_bytes(&got, &before[..got.len()]);
    // It is another image from now on.
    let refused = it.get(&[&agent]).status;
    assert!([404, 409, 503].contains(&refused), "{refused}");
}

#[test]
fn many_clients_that_take_nothing_are_bounded_and_make_room_when_they_go() {
    // More than a connection holds on its way.
    let bytes = vec![7; 24 << 20];
    let it = Served::with(&[("a.iso", &bytes)]);
    let (agent, small) = (it.content("/other/a.iso"), ["-r", "0-9"]);
    let (address, path) =
        agent.strip_prefix("http://").and_then(|it| it.split_once('/')).expect("a URL");
    let greedy = || {
        let mut stream = TcpStream::connect(address).expect("connected");
        write!(stream, "GET /{path} HTTP/1.1\r\nHost: {address}\r\n\r\n").expect("sent");
        let mut begun = [0; 16];
        stream.read_exact(&mut begun).expect("an answer");
        (stream, String::from_utf8_lossy(&begun).contains(" 200 "))
    };
    let mut clients = Vec::new();
    let full = (0..200).any(|_| {
        let (stream, served) = greedy();
        clients.push(stream);
        !served
    });
    assert!(full && clients.len() > 32, "{} are served at once", clients.len());
    let refused = it.get(&[&small[..], &[&agent]].concat());
    refused.refuses(503, "try again later");
    drop(clients);
    eventually("there is room", || it.get(&[&small[..], &[&agent]].concat()).status == 206);
}

#[test]
fn a_rotten_file_is_sent_to_nobody() {
    let bytes = pattern("rotten", 300_000);
    let it = Served::with(&[("a.iso", &bytes)]);
    let agent = it.content("/other/a.iso");
    assert_eq!(it.get(&[&agent]).status, 200);
    rot(&it.world.path("isos/iso/a.iso"), 200_000);
    let verified = it.world.run(&["--server", &it.url, "verify", "/other/a.iso"]);
    assert_eq!(verified.status.code(), Some(7), "{verified:?}");
    it.get(&[&agent]).refuses(409, "rotted");
    eventually("the catalogue knows", || {
        it.get(&["-L", &format!("{}/files/other/a.iso", it.url)]).status == 503
    });
}

#[test]
fn a_host_that_is_away_is_passed_over() {
    let world = World::new();
    let bytes = pattern("the same", 300_000);
    let (one, two) = (world.pool("one", &[]), world.pool("two", &[]));
    write_image(&one, "mine.iso", &bytes);
    write_image(&two, "yours.iso", &bytes);
    let (_catalog, url) = world.catalog();
    let first = world.agent("first", &url, &[&one]);
    let second = world.agent("second", &url, &[&two]);
    hashed(&world, &url, 2);
    let by_path = format!("{url}/files/other/mine.iso");
    let by_id = format!("{url}/content/{}/mine.iso", id(&world, &url, "/other/mine.iso"));
    let signed = world.run(&["--server", &url, "url", "/other/mine.iso"]);
    let signed = String::from_utf8_lossy(&signed.stdout).trim().to_owned();
    let theirs = super::address(&world, &url, "second");
    let all = [&by_path, &by_id, &signed];
    for from in all {
        let reply = get(&world, &["-I", from]);
        assert!(reply.header("location").is_some_and(|it| !it.starts_with(&theirs)), "{reply:?}");
        same_bytes(&get(&world, &["-L", from]).body, &bytes);
    }
    first.kill();
    // Its twin is at the other host, under an id of its own.
    eventually("the other host is named", || {
        get(&world, &["-I", &by_path]).header("location").is_some_and(|it| it.starts_with(&theirs))
    });
    for from in all {
        let reply = get(&world, &["-L", from]);
        assert_eq!(reply.status, 200, "{from}: {}", reply.text());
        same_bytes(&reply.body, &bytes);
    }
    let wrong = signed.replace("signature=", "signature=0");
    get(&world, &["-L", &wrong]).refuses(403, "signature is wrong");
    second.kill();
    eventually("nobody has it", || get(&world, &["-L", &by_path]).status == 503);
    let none = get(&world, &[&by_path]);
    none.refuses(503, "no connected host has a sound copy of mine.iso");
    assert_eq!(none.header("retry-after"), Some("5"));
}
