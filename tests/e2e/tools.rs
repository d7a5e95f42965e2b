//! Programs that people store images with, each as it is used, and what it has stored.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};

use crate::harness::{World, eventually, holds, pattern, text, walk};
use crate::library::{EMPTY, Library};

/// No multiple of anything.
const SOURCE_BYTES: usize = 3_000_001;
const MIB: usize = 1 << 20;

/// A library, and `$D/source` to be stored in it.
fn library() -> (Library, Vec<u8>) {
    let library = Library::new();
    let bytes = pattern("source", SOURCE_BYTES);
    fs::write(library.world.path("source"), &bytes).expect("written");
    (library, bytes)
}

/// Runs scripts, each of which stores `$D/source` under a name; nothing else is stored.
fn each_stores_the_source(library: &Library, bytes: &[u8], scripts: &[(&str, &str)]) {
    for (script, name) in scripts {
        library.shell(script);
        holds(library.mount.join(name), bytes);
    }
    for (_, name) in scripts {
        library.stores(name, bytes);
    }
    let mut expected: Vec<_> = EMPTY.into_iter().chain(scripts.iter().map(|it| it.1)).collect();
    expected.sort_unstable();
    assert_eq!(walk(&library.mount), expected);
    assert_eq!(library.world.json(&library.url, &["scan"])["discovered"], 0);
}

#[test]
fn copies_and_streams_are_stored() {
    let (library, bytes) = library();
    fs::create_dir(library.world.path("elsewhere")).expect("made");
    let scripts = [
        ("cp -a $D/source $M/archived.iso", "archived.iso"),
        ("cp --sparse=always $D/source $M/sparse.iso", "sparse.iso"),
        ("cp $D/source $M/b.iso; cp -f $D/source $M/b.iso", "b.iso"),
        ("echo x > $M/c.iso; cp --remove-destination $D/source $M/c.iso", "c.iso"),
        ("install -D -m 640 $D/source $M/linux/installed.iso", "linux/installed.iso"),
        ("tee $M/tee1.iso $M/tee2.iso < $D/source >/dev/null", "tee1.iso"),
        ("cmp $M/tee1.iso $M/tee2.iso", "tee2.iso"),
        // Another file system, as far as the mount is concerned.
        ("cp $D/source $D/elsewhere/moved.iso && mv $D/elsewhere/moved.iso $M", "moved.iso"),
        ("dd if=$D/source of=$M/direct.iso bs=1M oflag=direct status=none", "direct.iso"),
        ("dd if=$D/source of=$M/dsync.iso bs=1M oflag=dsync status=none", "dsync.iso"),
        ("dd if=$D/source of=$M/fsync.iso bs=100k conv=fsync,notrunc status=none", "fsync.iso"),
        ("dd if=$D/source of=$M/tiny.iso bs=777 count=99999 status=none", "tiny.iso"),
        ("cat $D/source >> $M/appended.iso", "appended.iso"),
        ("(head -c 99999; cat) < $D/source >> $M/parts.iso", "parts.iso"),
        ("split -b 1000000 $D/source $D/part. && cat $D/part.* > $M/joined.iso", "joined.iso"),
    ];
    each_stores_the_source(&library, &bytes, &scripts);
    assert!(!library.world.path("elsewhere/moved.iso").exists());
    let stat = |path| fs::metadata(path).expect("there");
    let (from, to) = (stat(library.world.path("source")), stat(library.mount.join("archived.iso")));
    assert_eq!((from.mtime(), from.mtime_nsec()), (to.mtime(), to.mtime_nsec()));
    assert_eq!(stat(library.mount.join("linux/installed.iso")).mode() & 0o7777, 0o640);
}

#[test]
fn what_cannot_be_done_to_a_finished_image_leaves_it_whole() {
    let (library, bytes) = library();
    library.shell("cp $D/source $M/a.iso");
    for script in [
        "echo more >> $M/a.iso",
        "dd if=/dev/zero of=$M/a.iso conv=notrunc bs=1M count=1 status=none",
        "dd if=/dev/zero of=$M/a.iso bs=1M seek=1 count=1 status=none",
        "truncate -s 5M $M/a.iso",
        "truncate -s 5 $M/a.iso",
        "fallocate -l 5M $M/a.iso",
        "fallocate --punch-hole -o 0 -l 4096 $M/a.iso",
        "cp $D/source $D/longer; echo >> $D/longer; rsync --append $D/longer $M/a.iso",
        "tac $D/source > $D/other; rsync --ignore-times --inplace $D/other $M/a.iso",
        "rsync --ignore-times --inplace --whole-file $D/other $M/a.iso",
        "shred -n 1 $M/a.iso",
    ] {
        assert!(!library.bash(script).status.success(), "{script}");
        holds(library.mount.join("a.iso"), &bytes);
    }
    library.stores("a.iso", &bytes);
}

#[test]
fn rsync_stores_and_replaces() {
    let (library, bytes) = library();
    let scripts = [
        ("rsync $D/source $M/plain.iso", "plain.iso"),
        ("rsync --archive $D/source $M/archived.iso", "archived.iso"),
        // A new file may be written in its place; only a finished one may not.
        ("rsync --inplace $D/source $M/inplace.iso", "inplace.iso"),
        ("rsync --sparse $D/source $M/sparse.iso", "sparse.iso"),
        ("rsync --fsync $D/source $M/fsync.iso", "fsync.iso"),
        ("rsync --append-verify $D/source $M/append.iso", "append.iso"),
        (
            "rsync --delay-updates $D/source $M/delayed.iso && rmdir $M/.~tmp~ || test ! -e $M/.~tmp~",
            "delayed.iso",
        ),
        ("echo x > $M/over.iso; rsync $D/source $M/over.iso", "over.iso"),
        (
            "head -c 2999999 $D/source > $M/near.iso; rsync --no-whole-file $D/source $M/near.iso",
            "near.iso",
        ),
    ];
    each_stores_the_source(&library, &bytes, &scripts);
    // Mode and time are kept, so that a second run finds nothing to do.
    library.shell("test -z \"$(rsync --archive --itemize-changes $D/source $M/archived.iso)\"");
    library.shell(
        "mkdir -p $D/tree/a/b && for n in 1 2 3; do head -c $n $D/source > $D/tree/a/b/$n.iso; done
         rsync --archive $D/tree/ $M/tree && diff -r $D/tree $M/tree
         rm $D/tree/a/b/2.iso && rsync --archive --delete $D/tree/ $M/tree && diff -r $D/tree $M/tree",
    );
}

#[test]
fn an_rsync_that_is_killed_leaves_nothing() {
    let (library, _) = library();
    // So slow that it cannot be done by then.
    let script = "timeout -s TERM 1 rsync --bwlimit=100 $D/source $M/file.iso";
    assert!(!library.bash(script).status.success());
    library.stores_nothing();
}

/// Python's web server in the test's directory; killed when dropped.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(world: &World) -> Self {
        let mut child = Command::new("timeout")
            .args(["100", "python3", "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"])
            .args(["--directory", text(world.dir.path())])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3 runs");
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        output.read_line(&mut line).expect("a line");
        let port = line.split_whitespace().skip_while(|it| *it != "port").nth(1).expect("a port");
        let url = format!("http://127.0.0.1:{port}");
        Self { child, url }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // `timeout` passes a SIGTERM on.
        if let Ok(None) = self.child.try_wait() {
            let pid = rustix::process::Pid::from_child(&self.child);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let _ = self.child.wait();
        }
    }
}

#[test]
fn downloads_are_stored() {
    let (library, bytes) = library();
    let server = Server::start(&library.world);
    let from = |script: &str| script.replace("URL", &format!("{}/source", server.url));
    let scripts = [
        ("curl -sS -o $M/file.iso file://$D/source".to_owned(), "file.iso"),
        (from("curl -sS -o $M/http.iso URL"), "http.iso"),
        (from("curl -sS -R --create-dirs -o $M/linux/dated.iso URL"), "linux/dated.iso"),
        (from("cd $M && curl -sS -O URL"), "source"),
        (from("curl -sS URL > $M/redirected.iso"), "redirected.iso"),
        (from("curl -sS -o $M/.n.part URL && mv $M/.n.part $M/named.iso"), "named.iso"),
        (from("echo old > $M/over.iso; curl -sS -o $M/over.iso URL"), "over.iso"),
    ];
    let scripts: Vec<_> = scripts.iter().map(|(script, name)| (script.as_str(), *name)).collect();
    each_stores_the_source(&library, &bytes, &scripts);
    // One that is killed is not there; it would be short.
    let script = format!(
        "truncate -s 50M $D/big; timeout -s KILL 1 curl -sS --limit-rate 100k -o $M/slow.iso {}/big",
        server.url
    );
    assert!(!library.bash(&script).status.success());
    eventually("nothing of it", || !library.mount.join("slow.iso").exists());
}

#[test]
fn a_temporary_name_becomes_the_final_one() {
    let (library, bytes) = library();
    let file = library.file();
    // As browsers and file managers do: new, then over what is there.
    for temporary in [".goutputstream-0UP3Y3", "file.iso.part", ".file.iso.kate-swp"] {
        let script = format!(
            "
source = os.path.join(os.path.dirname(os.path.dirname(FILE)), 'source')
part = os.path.join(os.path.dirname(FILE), '{temporary}')
fd = os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
wrote(fd, open(source, 'rb').read())
os.fsync(fd)
os.fchmod(fd, 0o644)
os.close(fd)
os.rename(part, FILE)
folder = os.open(os.path.dirname(FILE), os.O_RDONLY)
os.fsync(folder)"
        );
        assert_eq!(library.program(&script).ends(), 0);
        library.stores("file.iso", &bytes);
        assert_eq!(walk(&library.mount).len(), EMPTY.len() + 1);
        assert_eq!(fs::metadata(&file).expect("there").mode() & 0o7777, 0o644);
    }
}

#[test]
fn holes_stay_holes() {
    let (library, bytes) = library();
    let mut expected = vec![0; 20 * MIB];
    expected[..MIB].copy_from_slice(&bytes[..MIB]);
    expected[19 * MIB..].copy_from_slice(&bytes[..MIB]);
    fs::write(library.world.path("full"), &expected).expect("written");
    for (script, name) in [
        ("cp --sparse=always $D/full $M/cp.img", "cp.img"),
        ("dd if=$D/full of=$M/dd.img bs=64k conv=sparse status=none", "dd.img"),
        ("rsync --sparse $D/full $M/rsync.img", "rsync.img"),
        (
            "python3 -c 'import os, sys
f = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
head = open(sys.argv[2], \"rb\").read(1 << 20)
os.pwrite(f, head, 19 << 20)
os.pwrite(f, head, 0)' $M/seek.img $D/full",
            "seek.img",
        ),
    ] {
        library.shell(script);
        library.stores(name, &expected);
        // rsync's lies there under its temporary name.
        if let Ok(on_disk) = fs::metadata(library.pool.join("iso").join(name)) {
            assert!(on_disk.blocks() * 512 < 4 << 20, "{name}: {} blocks", on_disk.blocks());
        }
    }
    // A size that was set, or space that was asked for, reads as zeros.
    library.shell("truncate -s 3000001 $M/set.img && fallocate -l 3000001 $M/asked.img");
    for name in ["set.img", "asked.img"] {
        library.stores(name, &vec![0; 3_000_001]);
    }
}

#[test]
fn isos_that_are_made_in_place_are_whole() {
    let (library, _) = library();
    library.shell(
        "mkdir -p $D/tree/boot && cp $D/source $D/tree/boot/kernel && echo hello > $D/tree/readme
         xorriso -as mkisofs -quiet -V MADE -o $M/made.iso $D/tree 2>$D/log
         xorriso -as mkisofs -quiet -V MADE $D/tree 2>$D/log > $M/piped.iso
         for iso in made piped; do
             xorriso -osirrox on -indev $M/$iso.iso -extract / $D/$iso 2>$D/log
             diff -r $D/tree $D/$iso
         done",
    );
    for name in ["made.iso", "piped.iso"] {
        library.stores(name, &fs::read(library.mount.join(name)).expect("read"));
    }
}

#[test]
fn odd_sizes_are_stored_exactly() {
    let library = Library::new();
    let odd = [0, 1, 511, 512, 513, 4095, 4096, 4097, 65_535, 65_537];
    let around = |size: usize| [size - 1, size, size + 1];
    let sizes: Vec<usize> =
        odd.into_iter().chain(around(128 << 10)).chain(around(MIB)).chain([3 * MIB + 7]).collect();
    for size in &sizes {
        fs::write(library.world.path(&format!("{size}")), pattern("odd", *size)).expect("written");
    }
    library.shell(
        "mkdir $M/cp $M/dd && cd $D && for size in [0-9]*; do
             cp $size $M/cp/c$size.iso && dd if=$size of=$M/dd/d$size.iso bs=4096 status=none
         done",
    );
    for size in sizes {
        for name in [format!("cp/c{size}.iso"), format!("dd/d{size}.iso")] {
            library.stores(&name, &pattern("odd", size));
        }
    }
}

#[test]
fn small_files_by_the_thousand() {
    const FILES: usize = 501;
    let library = Library::new();
    let tree = library.world.make_dir("tree");
    for n in 0..FILES {
        let folder = tree.join(format!("{}", n % 3));
        fs::create_dir_all(&folder).expect("made");
        fs::write(folder.join(format!("{n}.iso")), pattern("small", n * 7)).expect("written");
    }
    // Four at a time, and two of each name.
    library.shell(
        "mkdir $M/tar $M/cp
         for folder in 0 1 2; do
             tar -C $D/tree -cf - $folder | tar -C $M/tar -xf - &
         done
         cp -r $D/tree/. $M/cp &
         for job in 1 2 3 4; do wait -n || exit 1; done",
    );
    for folder in ["tar", "cp"] {
        library.shell(&format!("diff -r $D/tree $M/{folder}"));
        let there = library.second.join(folder);
        eventually("all of them elsewhere", || walk(&there).len() == FILES + 3);
        library.shell(&format!("diff -r $D/tree $N/{folder}"));
    }
    assert_eq!(library.images(), 2 * FILES as u64);
    let in_pool = library.pool.join("iso");
    eventually("all of them in the pool", || walk(&in_pool).len() == 2 * FILES);
    assert_eq!(library.world.json(&library.url, &["scan"])["discovered"], 0);
}

/// What QEMU makes reads as its source does, and nothing of it is seen elsewhere before it is done.
#[test]
fn qemu_img_stores_what_it_converts() {
    let (library, _) = library();
    library.shell("cp $D/source $D/raw && truncate -s 24M $D/raw");
    for (options, format, name) in [
        ("-O raw", "raw", "a.img"),
        ("-O raw -t none -m 8 -W", "raw", "b.img"),
        ("-O qcow2", "qcow2", "a.qcow2"),
        ("-O qcow2 -c", "qcow2", "b.qcow2"),
        ("-O raw", "raw", "a.img"),
    ] {
        library.shell(&format!(
            "qemu-img convert -f raw {options} $D/raw $M/{name}
             qemu-img compare -f raw -F {format} $D/raw $M/{name}"
        ));
        library.stores(name, &fs::read(library.mount.join(name)).expect("read"));
    }
    library.shell("qemu-img create -q -f qcow2 $M/new.qcow2 10M && qemu-img check -q $M/new.qcow2");
}

#[test]
fn xorriso_makes_an_iso_with_its_own_commands() {
    let (library, _) = library();
    library.shell(
        "mkdir $D/tree && cp $D/source $D/tree && xorriso -outdev $M/made.iso -map $D/tree / -commit 2>$D/log
         xorriso -osirrox on -indev $M/made.iso -extract / $D/out 2>$D/log && diff -r $D/tree $D/out",
    );
}

/// Runs scripts that overwrite a longer `$M/a.iso`; each has stored all of `$D/source`.
fn each_overwrites(scripts: &[&str]) {
    let (library, bytes) = library();
    library.shell("chmod 640 $D/source && touch -d 2020-02-02 $D/source");
    for script in scripts {
        library.shell("(cat $D/source $D/source) > $M/new.iso && mv $M/new.iso $M/a.iso");
        library.shell(script);
        library.stores("a.iso", &bytes);
    }
}

#[test]
fn what_appends_to_an_emptied_image_begins_at_its_beginning() {
    each_overwrites(&[
        "dd if=$D/source of=$M/a.iso oflag=append status=none 2>/dev/null",
        "python3 -c 'import os, sys
f = os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC)
os.lseek(f, 0, os.SEEK_END)
with open(f, \"wb\") as target:
    target.write(open(sys.argv[2], \"rb\").read())' $M/a.iso $D/source",
    ]);
}

#[test]
fn what_is_written_over_an_image_may_be_truncated() {
    each_overwrites(&["python3 -c 'import os, sys
f = open(sys.argv[1], \"wb\")
f.write(open(sys.argv[2], \"rb\").read() + b\"more\")
f.truncate(3_000_001)' $M/a.iso $D/source"]);
    let (library, bytes) = library();
    let holes: Vec<u8> = bytes[..1_000_000].iter().copied().chain(vec![0; 2_000_001]).collect();
    fs::write(library.world.path("holes"), &holes).expect("written");
    for script in [
        "cp --sparse=always $D/holes $M/a.iso",
        "dd if=$D/holes of=$M/a.iso bs=4k conv=sparse status=none",
    ] {
        library.shell("(cat $D/source $D/source) > $M/new.iso && mv $M/new.iso $M/a.iso");
        library.shell(script);
        library.stores("a.iso", &holes);
    }
}

#[test]
fn mode_and_time_of_what_is_written_over_an_image_are_the_new_ones() {
    let kept = "test \"$(stat -c '%a %Y' $D/source)\" = \"$(stat -c '%a %Y' $M/a.iso)\"";
    each_overwrites(&[
        &format!("cp -p $D/source $M/a.iso && {kept}"),
        &format!(
            "cp -p $D/source $D/a.iso && tar -C $D -cf - a.iso | tar -C $M --overwrite -xf - && {kept}"
        ),
    ]);
}
