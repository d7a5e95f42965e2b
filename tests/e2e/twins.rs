//! Images with the same bytes under different names, in pools of different hosts.

use std::fs;
use std::os::unix::fs::FileExt;

use crate::harness::{World, eventually, holds, pattern, same_bytes, text, write_image};

#[test]
fn an_image_whose_host_has_gone_is_read_from_another_with_its_bytes() {
    let world = World::new();
    let bytes = pattern("the same", 3_000_000);
    let (one, two) = (world.pool("one", &[]), world.pool("two", &["unlike.iso"]));
    write_image(&one, "mine.iso", &bytes);
    write_image(&two, "yours.iso", &bytes);
    let (catalog, url) = world.catalog();
    let first = world.agent("first", &url, &[&one]);
    let _second = world.agent("second", &url, &[&two]);
    let names = ["other/mine.iso", "other/unlike.iso", "other/yours.iso"];
    let known = || names.iter().all(|it| !world.json(&url, &["info", &format!("/{it}")]).is_null());
    eventually("all images", known);

    // As the catalogue has it once both were hashed.
    assert_eq!(catalog.stop(), 0);
    let db = rusqlite::Connection::open(world.path("catalog/catalog.db")).expect("opened");
    let same = "UPDATE image SET content = (SELECT content FROM image WHERE filename = 'mine.iso')
                WHERE filename = 'yours.iso'";
    assert_eq!(db.execute(same, []).expect("changed"), 1);
    drop(db);
    let (_catalog, _) = world.catalog_on(url.trim_start_matches("http://"));

    let (_mount, mnt) = world.mount("mnt", &url);
    let open = fs::File::open(mnt.join("other/mine.iso")).expect("opened");
    let mut piece = vec![0; 1_000];
    open.read_exact_at(&mut piece, 0).expect("read");
    first.kill();
    // Whoever has it open reads on, whoever opens it reads it whole.
    open.read_exact_at(&mut piece, 2_500_000).expect("read on");
    same_bytes(&piece, &bytes[2_500_000..2_501_000]);
    holds(mnt.join("other/mine.iso"), &bytes);
    let target = world.path("fetched");
    let got = world.run(&["--server", &url, "get", "/other/mine.iso", text(&target)]);
    assert!(got.status.success(), "{got:?}");
    holds(&target, &bytes);
}
