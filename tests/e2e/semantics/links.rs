//! Images with several names, and names that change places.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use libc::{EBUSY, EEXIST, EINVAL, EMLINK, ENAMETOOLONG, ENOENT, EPERM};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::harness::{World, errno, eventually, holds, pattern, walk};

fn exchange(one: &Path, other: &Path) -> std::io::Result<()> {
    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

#[test]
fn a_link_is_one_more_name_of_an_image() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso", "b.iso"]);
    let (_up, url, first) = world.up(&[&pool]);
    let (_second, second) = world.mount("second", &url);
    let at = |name: &str| first.join(name);
    fs::create_dir(at("x")).expect("made");
    fs::hard_link(at("other/a.iso"), at("x/again.iso")).expect("linked");
    let link = ["--server", &url, "ln", "/other/a.iso", "/x"];
    assert!(world.run(&link).status.success());
    let names = ["other/a.iso", "x/again.iso", "x/a.iso"];
    for mount in [&first, &second] {
        eventually("three names", || names.iter().all(|name| mount.join(name).exists()));
        let metas = names.map(|name| fs::metadata(mount.join(name)).expect("there"));
        eventually("three links", || {
            names.iter().all(|name| fs::metadata(mount.join(name)).is_ok_and(|it| it.nlink() == 3))
        });
        assert!(metas.iter().all(|it| it.ino() == metas[0].ino() && it.size() == metas[0].size()));
        assert_eq!(fs::read(mount.join("x/a.iso")).expect("read"), pattern("a.iso", 300_000));
    }
    let paths = world.json(&url, &["info", "/x/a.iso"])["paths"].clone();
    assert_eq!(paths, serde_json::json!(["/other/a.iso", "/x/again.iso", "/x/a.iso"]));

    assert_eq!(errno(fs::hard_link(at("other/a.iso"), at("other/b.iso"))), EEXIST);
    assert_eq!(errno(fs::hard_link(at("x"), at("other/x"))), EPERM);
    assert_eq!(errno(fs::hard_link(at("other/no.iso"), at("x/no.iso"))), ENOENT);
    let mut writing = fs::File::create(at("x/new.iso")).expect("made");
    writing.write_all(b"some").expect("written");
    assert_eq!(errno(fs::hard_link(at("x/new.iso"), at("x/newer.iso"))), EBUSY);
    drop(writing);
    // The kernel leaves two names of one inode as they are.
    fs::rename(at("x/a.iso"), at("x/again.iso")).expect("no error");
    assert!(at("x/a.iso").exists() && at("x/again.iso").exists());

    // Written anew under one name it is another under all of them, as a file is.
    let bytes = pattern("anew", 200_000);
    fs::write(at("x/a.iso"), &bytes).expect("written");
    for mount in [&first, &second] {
        for name in names {
            let len = || fs::metadata(mount.join(name)).map(|it| it.len()).ok();
            eventually("the new bytes", || len() == Some(200_000));
            holds(mount.join(name), &bytes);
        }
        eventually("three links", || {
            fs::metadata(mount.join("x/a.iso")).is_ok_and(|it| it.nlink() == 3)
        });
    }

    // One name after the other goes; the bytes with the last.
    fs::remove_file(second.join("other/a.iso")).expect("removed");
    fs::rename(at("other/b.iso"), at("x/again.iso")).expect("replaced");
    assert_eq!(fs::metadata(at("x/a.iso")).expect("there").nlink(), 1);
    let pool_has = |len| {
        let entries = fs::read_dir(pool.join("iso")).expect("a listing");
        entries
            .filter(|it| it.as_ref().is_ok_and(|it| it.metadata().is_ok_and(|it| it.len() == len)))
            .count()
    };
    assert_eq!(pool_has(200_000), 1);
    fs::remove_file(at("x/a.iso")).expect("removed");
    eventually("the file to go", || pool_has(200_000) == 0);

    for n in 1..1000 {
        fs::hard_link(at("x/again.iso"), at(&format!("x/{n}.iso"))).expect("linked");
    }
    assert_eq!(errno(fs::hard_link(at("x/again.iso"), at("x/1000.iso"))), EMLINK);
}

#[test]
fn two_names_can_change_places() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso", "b.iso"]);
    let (_up, url, first) = world.up(&[&pool]);
    let (_second, second) = world.mount("second", &url);
    let at = |name: &str| first.join(name);
    let ino = |name: &str| fs::metadata(at(name)).expect("there").ino();
    let (a, b) = (ino("other/a.iso"), ino("other/b.iso"));
    exchange(&at("other/a.iso"), &at("other/b.iso")).expect("exchanged");
    assert_eq!((ino("other/a.iso"), ino("other/b.iso")), (b, a));
    assert_eq!(fs::read(at("other/a.iso")).expect("read"), pattern("b.iso", 300_000));

    fs::create_dir_all(at("1/2/3/4")).expect("made");
    fs::create_dir_all(at("x/y")).expect("made");
    let folder = ino("x");
    exchange(&at("x"), &at("1/2/3/4")).expect("folders");
    exchange(&at("1/2/3/4/y"), &at("other/a.iso")).expect("a folder and an image");
    assert_eq!((ino("1/2/3/4"), ino("1/2/3/4/y")), (folder, b));
    eventually("the second mount", || walk(&second) == walk(&first));
    assert_eq!(fs::metadata(second.join("1/2/3")).expect("there").nlink(), 3);

    assert_eq!(errno(exchange(&at("1"), &at("1/2/3"))), EINVAL);
    assert_eq!(errno(exchange(&at("1/2/3"), &at("1"))), EINVAL);
    assert_eq!(errno(exchange(&at("1"), &at("none"))), ENOENT);
    fs::create_dir_all(at("deep/er/est/of/all")).expect("made");
    assert_eq!(errno(exchange(&at("deep"), &at("1/2"))), ENAMETOOLONG);
    let mv = ["--server", &url, "mv", "--exchange", "/other/b.iso", "/1/2/3/4/y"];
    assert!(world.run(&mv).status.success());
    eventually("the exchange", || ino("other/b.iso") == b && ino("1/2/3/4/y") == a);
    let mut writing = fs::File::create(at("new.iso")).expect("made");
    writing.write_all(b"some").expect("written");
    assert_eq!(errno(exchange(&at("new.iso"), &at("other/b.iso"))), EBUSY);
    assert_eq!(errno(exchange(&at("other/b.iso"), &at("new.iso"))), EBUSY);
}
