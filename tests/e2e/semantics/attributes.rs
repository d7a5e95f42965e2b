//! Extended attributes: what is told, and what is refused how.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{
    XattrFlags, getxattr, getxattr_query, listxattr, listxattr_query, removexattr, setxattr,
};
use rustix::io::Errno;

use crate::harness::programs::within;
use crate::harness::{World, eventually, holds, pattern, text};

fn get(path: &Path, name: &str) -> Result<String, Errno> {
    let mut value = vec![0; 4096];
    let len = getxattr(path, name, &mut value)?;
    Ok(String::from_utf8(value[..len].to_vec()).expect("text"))
}

#[test]
fn extended_attributes_are_read_only() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (_up, url, mount) = world.up(&[&pool]);
    let (image, folder) = (mount.join("other/a.iso"), mount.join("other"));
    let known = world.json(&url, &["info", "/other/a.iso"]);
    assert_eq!(get(&image, "user.isotope.id").map(Into::into), Ok(known["id"].clone()));
    assert_eq!(get(&image, "user.mime_type").as_deref(), Ok("application/x-iso9660-image"));
    let node = world.json(&url, &["node", "ls"])["name"].clone();
    assert_eq!(get(&image, "user.isotope.nodes").map(Into::into), Ok(node));
    let volume = world.json(&url, &["pool", "ls"])["volume_id"].clone();
    assert_eq!(get(&image, "user.isotope.volumes").map(Into::into), Ok(volume));
    eventually("it can be read", || get(&image, "user.isotope.state").as_deref() == Ok("ready"));
    let feed = get(&mount, "user.isotope.feed").expect("the root tells");
    let feed: serde_json::Value = serde_json::from_str(&feed).expect("JSON");
    assert_eq!(
        (&feed["contact"], &feed["catalog"]),
        (&"following".into(), &format!("{url}/").into())
    );

    // Not before it was read whole, and anew when that is done again.
    let verified = || get(&image, "user.isotope.verified_at");
    eventually("it is hashed", || verified().is_ok());
    assert!(get(&image, "user.isotope.sha256").is_ok());
    let first = verified().expect("there");
    let age = humantime::parse_rfc3339(&first).expect("a time").elapsed().expect("not to come");
    assert!(first.ends_with('Z') && age < Duration::from_secs(300), "{first}");
    // It tells seconds.
    std::thread::sleep(Duration::from_millis(1100));
    assert!(world.run(&["--server", &url, "verify", "/other/a.iso"]).status.success());
    eventually("a later time", || verified().is_ok_and(|it| it > first));

    // As getfattr(1) asks: first how much there is.
    let id = get(&image, "user.isotope.id").expect("there");
    assert_eq!(getxattr_query(&image, "user.isotope.id"), Ok(id.len()));
    assert_eq!(getxattr(&image, "user.isotope.id", &mut [0; 4]), Err(Errno::RANGE));
    let names = listxattr_query(&image).expect("a length");
    assert_eq!(listxattr(&image, &mut [0; 4]), Err(Errno::RANGE));
    assert!(names > 4);
    let all = Command::new("getfattr").args(["-d", "--absolute-names", text(&image)]).output();
    let all = all.expect("getfattr runs");
    assert!(all.status.success() && all.stderr.is_empty(), "{all:?}");
    let all = String::from_utf8_lossy(&all.stdout).into_owned();
    for line in [&format!("user.isotope.id=\"{id}\""), "user.isotope.state=\"ready\""] {
        assert!(all.contains(line), "{line}: {all}");
    }
    assert_eq!(listxattr_query(&folder), Ok(0));

    for (name, asked, changed) in [
        ("user.isotope.id", None, Errno::PERM),
        ("user.isotope.no", Some(Errno::NODATA), Errno::PERM),
        ("user.mime_type", None, Errno::PERM),
        ("user.comment", Some(Errno::NODATA), Errno::OPNOTSUPP),
        ("security.selinux", Some(Errno::OPNOTSUPP), Errno::OPNOTSUPP),
        ("trusted.x", Some(Errno::OPNOTSUPP), Errno::OPNOTSUPP),
        ("system.posix_acl_access", Some(Errno::OPNOTSUPP), Errno::OPNOTSUPP),
    ] {
        assert_eq!(get(&image, name).err(), asked, "{name}");
        // An ACL is parsed by the kernel before it is ours to refuse: one entry each for the three.
        let acl = [
            2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4,
            0, 255, 255, 255, 255,
        ];
        assert_eq!(setxattr(&image, name, &acl, XattrFlags::empty()), Err(changed), "{name}");
        assert_eq!(removexattr(&image, name), Err(changed), "{name}");
    }
    // Those who ask for labels and ACLs go on without a word.
    let copy = world.path("copy.iso");
    for words in [
        &["ls", "-l", "--context", text(&folder)][..],
        &["cp", "-p", text(&image), text(&copy)],
        &["cp", "-a", text(&copy), text(&mount.join("other/b.iso"))],
    ] {
        let ended = within(30, words);
        ended.expect_well();
        assert_eq!(ended.said(), "", "{words:?}");
    }
    holds(mount.join("other/b.iso"), &pattern("a.iso", 300_000));
    fs::remove_file(copy).expect("removed");
}
