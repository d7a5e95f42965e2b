//! Several programs and one name: two writers, readers of what is overwritten, renamed over or
//! removed on another mount, and what is seen while a file is written.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use libc::{EBUSY, EEXIST, ENOENT, EPERM, ETXTBSY};

use crate::harness::{World, errno, eventually, holds, pattern, same_bytes, walk};
use crate::library::{EMPTY, Library, whole};

/// More than the kernel reads ahead.
const OLD_BYTES: usize = 24 << 20;

const HALF: &str = "
fd = made()
wrote(fd, HEAD)
stop('half')
wrote(fd, TAIL)
os.close(fd)
";

fn old() -> Vec<u8> {
    pattern("old", OLD_BYTES)
}

/// A library with `file.iso`, and a reader of it on the other mount that has begun.
fn read_elsewhere() -> (Library, File) {
    let library = Library::new();
    fs::write(library.file(), old()).expect("stored");
    let there = library.second.join("file.iso");
    eventually("it is on the other mount", || there.exists());
    let reader = File::open(there).expect("opened");
    reader.read_exact_at(&mut [0; 4096], 0).expect("read");
    (library, reader)
}

/// The reader can read to the end, and asks for all of it, not for what the kernel kept.
#[track_caller]
fn reads_on(reader: &File) {
    rustix::fs::fadvise(reader, 0, None, rustix::fs::Advice::DontNeed).expect("advised");
    let mut bytes = vec![0; OLD_BYTES];
    reader.read_exact_at(&mut bytes, 0).expect("read to the end");
    same_bytes(&bytes, &old());
}

#[test]
fn of_two_writers_on_two_mounts_the_first_wins() {
    let library = Library::new();
    let mut first = library.program(HALF);
    first.says("half");
    let there = library.second.join("file.iso");
    assert_eq!(errno(File::create(&there)), EBUSY);
    assert_eq!(errno(File::create_new(&there)), EBUSY);
    assert_eq!(errno(File::create_new(library.file())), EEXIST, "it is listed here");
    first.goes_on();
    assert_eq!(first.ends(), 0);
    library.stores("file.iso", &whole());
    fs::write(&there, b"now it is free").expect("replaced");
    eventually("the new one here", || fs::read(library.file()).is_ok_and(|it| it.len() == 14));
}

#[test]
fn writers_that_race_leave_one_file_whole() {
    let library = Library::new();
    let paths = [library.file(), library.second.join("file.iso")];
    let bytes = ["one", "two"].map(|seed| pattern(seed, 400_000));
    for _ in 0..15 {
        let write = |n: usize| fs::write(&paths[n], &bytes[n]).is_ok();
        let (one, two) = thread::scope(|scope| {
            let one = scope.spawn(|| write(0));
            (write(1), one.join().expect("it ends"))
        });
        assert!(one || two, "one of them gets its way");
        for path in &paths {
            let stored = || {
                let stored = fs::read(path).unwrap_or_default();
                (one && stored == bytes[1]) || (two && stored == bytes[0])
            };
            eventually("one of them, whole", stored);
        }
    }
    eventually("one file", || walk(&library.pool.join("iso")).len() == 1);
}

#[test]
fn readers_elsewhere_of_an_overwritten_image_read_the_old_one() {
    let (library, reader) = read_elsewhere();
    let ino = reader.metadata().expect("attributes").ino();
    let mut writer =
        library.program(&HALF.replace("made()", "os.open(FILE, os.O_WRONLY | os.O_TRUNC)"));
    writer.says("half");
    // Another writer has to wait, here and there.
    assert_eq!(errno(File::create(library.file())), EBUSY);
    let there = library.second.join("file.iso");
    assert_eq!(errno(File::create(&there)), ETXTBSY, "it is being read there");
    // Everybody has the old one until it is closed, on the writer's mount, too.
    for path in [library.file(), library.second.join("file.iso")] {
        let mut head = [0; 5000];
        File::open(&path).and_then(|it| it.read_exact_at(&mut head, 9_000_000)).expect("read");
        same_bytes(&head, &old()[9_000_000..9_005_000]);
        assert_eq!(fs::metadata(path).expect("there").ino(), ino);
    }
    let here = File::open(library.file()).expect("opened");
    writer.goes_on();
    assert_eq!(writer.ends(), 0);
    eventually("the new one", || {
        fs::read(library.second.join("file.iso")).is_ok_and(|it| it == whole())
    });
    library.stores("file.iso", &whole());
    for reader in [&reader, &here] {
        reads_on(reader);
        eventually("no link to it", || reader.metadata().is_ok_and(|it| it.nlink() == 0));
        assert_eq!(reader.metadata().expect("attributes").ino(), ino);
    }
    assert_ne!(fs::metadata(library.file()).expect("there").ino(), ino);
}

#[test]
fn an_overwriter_that_is_killed_changes_nothing() {
    let (library, reader) = read_elsewhere();
    let ino = reader.metadata().expect("attributes").ino();
    let script = HALF.replace("made()", "os.open(FILE, os.O_WRONLY | os.O_TRUNC)");
    let mut writer = library.program(&script);
    writer.says("half");
    writer.signal(rustix::process::Signal::KILL);
    writer.ends();
    let staging = library.pool.join(".isotope/staging");
    eventually("its space is free", || walk(&staging).iter().all(|it| it.ends_with('/')));
    reads_on(&reader);
    library.stores("file.iso", &old());
    assert_eq!(fs::metadata(library.file()).expect("there").ino(), ino);
    assert_eq!(walk(&library.mount).len(), EMPTY.len() + 1);
    fs::write(library.file(), b"new").expect("nobody writes it any more");
    library.stores("file.iso", b"new");
}

#[test]
fn a_reader_on_the_writers_mount_keeps_it_from_truncating() {
    let library = Library::new();
    fs::write(library.file(), old()).expect("stored");
    let reader = File::open(library.file()).expect("opened");
    assert_eq!(errno(File::create(library.file())), ETXTBSY);
    reads_on(&reader);
    // A rename over it does not disturb the reader.
    fs::write(library.mount.join("new.iso"), b"new").expect("stored");
    fs::rename(library.mount.join("new.iso"), library.file()).expect("replaced");
    assert_eq!(fs::read(library.file()).expect("read"), b"new");
    reads_on(&reader);
}

#[test]
fn readers_elsewhere_of_an_image_that_is_renamed_over_read_on() {
    let (library, reader) = read_elsewhere();
    fs::write(library.mount.join(".file.iso.part"), whole()).expect("stored");
    fs::rename(library.mount.join(".file.iso.part"), library.file()).expect("replaced");
    let there = library.second.join("file.iso");
    eventually("the new one", || fs::read(&there).is_ok_and(|it| it == whole()));
    reads_on(&reader);
    eventually("no link to it", || reader.metadata().is_ok_and(|it| it.nlink() == 0));
    assert_eq!(walk(&library.second).len(), EMPTY.len() + 1);
}

#[test]
fn readers_elsewhere_of_a_removed_image_read_on_and_no_scan_brings_it_back() {
    let (library, reader) = read_elsewhere();
    fs::remove_file(library.file()).expect("removed");
    assert_eq!(errno(fs::metadata(library.file())), ENOENT);
    eventually("it is gone there", || !library.second.join("file.iso").exists());
    eventually("it has left its place", || walk(&library.pool.join("iso")).is_empty());
    assert_eq!(library.world.json(&library.url, &["scan"])["discovered"], 0);
    reads_on(&reader);
    assert_eq!(walk(&library.mount), EMPTY);
    // The name is free, for another image.
    let ino = reader.metadata().expect("attributes").ino();
    fs::write(library.file(), whole()).expect("stored");
    library.stores("file.iso", &whole());
    assert_ne!(fs::metadata(library.file()).expect("there").ino(), ino);
    reads_on(&reader);
}

#[test]
fn a_file_that_is_removed_while_it_is_written_is_not_stored() {
    let library = Library::new();
    let script = "
fd = made()
wrote(fd, HEAD)
os.unlink(FILE)
refused(os.write, fd, TAIL)
os.close(fd)";
    assert_eq!(library.program(script).ends(), 0);
    library.stores_nothing();
}

#[test]
fn a_file_is_seen_elsewhere_when_it_is_whole_and_not_before() {
    let library = Library::new();
    let closed = AtomicBool::new(false);
    let there = library.second.join("file.iso");
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            // From before it is made until it is there; what is there is whole at once.
            loop {
                let over = closed.load(Ordering::Relaxed);
                match fs::read(&there) {
                    Ok(bytes) => return bytes,
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound),
                }
                let listed = fs::read_dir(&library.second).expect("a listing").count();
                assert!(over || listed <= EMPTY.len() + 1);
            }
        });
        let mut program = library.program(
            "
fd = made()
for n in range(50):
    wrote(fd, (HEAD + TAIL)[n * 20_001:(n + 1) * 20_001])
    os.fsync(fd)
stop('written')
os.close(fd)
stop('closed')",
        );
        program.says("written");
        assert!(!there.exists());
        assert_eq!(library.images(), 0);
        program.goes_on();
        program.says("closed");
        closed.store(true, Ordering::Relaxed);
        assert_eq!(library.images(), 1, "its close has returned");
        program.goes_on();
        assert_eq!(program.ends(), 0);
        same_bytes(&watcher.join().expect("it ends"), &whole());
    });
}

#[test]
fn a_finished_image_refuses_each_way_of_changing_it() {
    let library = Library::new();
    fs::write(library.file(), whole()).expect("stored");
    for how in [
        "os.write, opened(), b'x'",
        "os.pwrite, opened(), b'x', 5_000_000",
        "os.ftruncate, opened(), 700_000",
        "os.ftruncate, opened(), 1_000_001",
        "os.ftruncate, opened(), 2_000_000",
        "os.posix_fallocate, opened(), 0, 4096",
        "os.posix_fallocate, opened(), 2_000_000, 4096",
        "os.truncate, FILE, 0",
        "os.truncate, FILE, 5",
    ] {
        let mut program = library.program(&format!(
            "def opened():\n    return os.open(FILE, os.O_RDWR)\nprint(refused({how}))\nos._exit(0)"
        ));
        program.says(&EPERM.to_string());
        assert_eq!(program.ends(), 0, "{how}");
    }
    library.stores("file.iso", &whole());
    assert_eq!(
        fs::read_dir(Path::new(&library.mount)).expect("a listing").count(),
        EMPTY.len() + 1
    );
}

#[test]
fn of_two_writers_on_one_mount_one_wins_whole() {
    let library = Library::new();
    let (first_bytes, bytes) = (whole(), pattern("second", 1_500_000));
    fs::write(library.world.path("source"), &bytes).expect("written");
    for second in [
        "cp $D/source $M/file.iso",
        "cat $D/source > $M/file.iso",
        "cat $D/source >> $M/file.iso",
        "dd if=$D/source of=$M/file.iso conv=notrunc status=none",
    ] {
        let mut first = library.program(HALF);
        first.says("half");
        let second_won = library.bash(second).status.success();
        first.goes_on();
        let first_won = first.ends() == 0;
        assert!(first_won != second_won, "{second}: first {first_won}, second {second_won}");
        library.stores("file.iso", if first_won { &first_bytes } else { &bytes });
        fs::remove_file(library.file()).expect("removed");
        eventually("its file has gone", || walk(&library.pool.join("iso")).is_empty());
    }
}

#[test]
fn a_file_whose_name_was_taken_away_is_not_stored() {
    let library = Library::new();
    let bytes = pattern("second", 1_500_000);
    fs::write(library.world.path("source"), &bytes).expect("written");
    let mut first = library.program(HALF);
    first.says("half");
    library.shell("cp --remove-destination $D/source $M/file.iso");
    first.goes_on();
    assert_eq!(first.ends(), 0, "as on any file system");
    library.stores("file.iso", &bytes);
}

#[test]
fn a_file_that_is_written_is_not_stored_by_whoever_touches_it() {
    let library = Library::new();
    for meddling in [
        "touch $M/file.iso",
        "truncate -s 100 $M/file.iso",
        "(exec 3>> $M/file.iso)",
        "(exec 3<> $M/file.iso)",
        "chmod 600 $M/file.iso",
    ] {
        let mut writer = library.program(HALF);
        writer.says("half");
        // It may be refused; it must not be the file's end.
        library.bash(meddling);
        assert!(!library.second.join("file.iso").exists(), "{meddling}");
        writer.goes_on();
        assert_eq!(writer.ends(), 0, "{meddling}");
        library.stores("file.iso", &whole());
        fs::remove_file(library.file()).expect("removed");
        eventually("its file has gone", || walk(&library.pool.join("iso")).is_empty());
    }
}

#[test]
fn an_image_that_was_emptied_can_be_written_at_once() {
    let library = Library::new();
    fs::write(library.world.path("source"), whole()).expect("written");
    fs::write(library.file(), old()).expect("stored");
    library.shell(": > $M/file.iso; : > $M/file.iso; cp $D/source $M/file.iso");
    library.stores("file.iso", &whole());
    std::thread::sleep(std::time::Duration::from_secs(7));
    library.stores("file.iso", &whole());
}

#[test]
fn an_image_that_is_removed_while_it_is_overwritten_does_not_come_back() {
    for writer in [
        "fd = os.open(FILE, os.O_WRONLY | os.O_TRUNC)
wrote(fd, HEAD)
os.unlink(FILE)
wrote(fd, TAIL)
os.close(fd)",
        "os.close(os.open(FILE, os.O_WRONLY | os.O_TRUNC))\nos.unlink(FILE)",
    ] {
        let library = Library::new();
        fs::write(library.file(), old()).expect("stored");
        assert_eq!(library.program(writer).ends(), 0);
        std::thread::sleep(std::time::Duration::from_secs(7));
        assert_eq!(walk(&library.mount), EMPTY);
        library.stores_nothing();
    }
}

#[test]
fn a_finished_image_is_not_emptied_by_ftruncate() {
    let library = Library::new();
    fs::write(library.file(), whole()).expect("stored");
    let script = "print(refused(os.ftruncate, os.open(FILE, os.O_RDWR), 0))\nos._exit(0)";
    let mut program = library.program(script);
    program.says(&EPERM.to_string());
    assert_eq!(program.ends(), 0);
    std::thread::sleep(std::time::Duration::from_secs(7));
    library.stores("file.iso", &whole());
}

#[test]
fn a_file_may_be_renamed_before_it_is_closed() {
    let library = Library::new();
    // As GLib does for all that GNOME's programs save.
    let script = "
part = FILE + '.goutputstream-0UP3Y3'
fd = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
wrote(fd, HEAD + TAIL)
os.fsync(fd)
os.rename(part, FILE)
os.close(fd)";
    assert_eq!(library.program(script).ends(), 0);
    library.stores("file.iso", &whole());
    fs::write(library.file(), b"to be replaced").expect("stored");
    assert_eq!(library.program(script).ends(), 0);
    library.stores("file.iso", &whole());
}

#[test]
fn an_empty_file_may_be_renamed_at_once() {
    let library = Library::new();
    library.shell("mv $(mktemp -p $M) $M/file.iso");
    library.stores("file.iso", b"");
}

#[test]
fn two_writers_on_one_mount_do_not_mix() {
    let library = Library::new();
    // The second truncates what the first began, if it is let; then both go on.
    let second = "
fd = None
try:
    fd = os.open(FILE, os.O_WRONLY | os.O_TRUNC)
    wrote(fd, b'2' * 400_000)
except OSError:
    pass
stop('half')
if fd is None:
    sys.exit(1)
wrote(fd, b'2' * 700_000)
os.close(fd)";
    let mut first = library.program(HALF);
    first.says("half");
    let mut second = library.program(second);
    second.says("half");
    first.goes_on();
    second.goes_on();
    let (first_won, second_won) = (first.ends() == 0, second.ends() == 0);
    assert!(first_won != second_won, "first {first_won}, second {second_won}");
    library.stores("file.iso", &if first_won { whole() } else { vec![b'2'; 1_100_000] });
}

#[test]
fn threads_that_store_under_one_name_hear_that_it_is_busy() {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    let (_up, _, mount) = world.up(&[&pool]);
    let path = mount.join("x.iso");
    let until = Instant::now() + Duration::from_secs(2);
    let stored = || {
        let mut stored = 0;
        while Instant::now() < until {
            match fs::write(&path, [1; 1000]) {
                Ok(()) => stored += 1,
                // Its name, or what it opened, was another thread's at that moment.
                Err(error) if [Some(EBUSY), Some(EPERM)].contains(&error.raw_os_error()) => {}
                Err(error) => panic!("{error}"),
            }
        }
        stored
    };
    let all: usize = std::thread::scope(|scope| {
        let threads = [scope.spawn(stored), scope.spawn(stored)];
        threads.map(|it| it.join().expect("no other error")).iter().sum()
    });
    assert!(all > 0);
    eventually("what was stored last", || fs::write(&path, [2; 500]).is_ok());
    holds(&path, &[2; 500]);
}
