//! When a close means it: a test for each way in which a program can leave a file that it wrote.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use libc::{EPERM, O_NONBLOCK, SIGXFSZ};
use rustix::process::Signal;

use crate::harness::{eventually, holds, text, walk};
use crate::library::{EMPTY, HALF, Library, Program, whole};

#[test]
fn a_program_killed_by_any_signal_stores_nothing() {
    let library = Library::new();
    for signal in [Signal::KILL, Signal::TERM, Signal::HUP, Signal::INT, Signal::SEGV] {
        let script = format!("signal.signal(signal.SIGINT, signal.SIG_DFL)\n{HALF}stop('half')");
        let mut program = library.program(&script);
        program.says("half");
        program.signal(signal);
        assert_eq!(program.ends(), 128 + signal.as_raw());
        eventually("nothing is listed", || !library.file().exists());
    }
    library.stores_nothing();
}

/// A pipe with a name, held open so that whoever reads it waits for more.
fn fed_pipe(path: &Path, bytes: &[u8]) -> File {
    assert!(Command::new("mkfifo").arg(path).status().expect("mkfifo runs").success());
    // Opened for both, so that nobody has to come first.
    let mut pipe = File::options()
        .read(true)
        .write(true)
        .custom_flags(O_NONBLOCK)
        .open(path)
        .expect("the pipe opens");
    let written = pipe.write(bytes).expect("there is room");
    assert_eq!(written, bytes.len());
    pipe
}

#[test]
fn a_copy_that_is_interrupted_stores_nothing() {
    let library = Library::new();
    for (n, script) in [
        r#"exec cp "$0" "$1""#,
        r#"exec cat "$0" > "$1""#,
        r#"cat "$0" > "$1"; true"#,
        r#"{ cat "$0"; echo more; } > "$1""#,
        r#"cat "$0" | tee "$1" | cat"#,
    ]
    .into_iter()
    .enumerate()
    {
        // A pipe of its own: a reader that is being killed may still take from it.
        let pipe = library.world.path(&format!("pipe-{n}"));
        let _fed = fed_pipe(&pipe, &[7; 40_000]);
        let file = library.file();
        let program = Program::start("bash", ["-c", script, text(&pipe)], &file);
        eventually(script, || fs::metadata(&file).is_ok_and(|it| it.len() > 0));
        program.signal_all(Signal::INT);
        assert_ne!(program.ends(), 0, "{script}");
        eventually(&format!("nothing of {script}"), || !file.exists());
    }
    library.stores_nothing();
}

#[test]
fn a_program_that_fails_without_closing_stores_nothing() {
    let library = Library::new();
    for code in [1, 3, 255] {
        let mut program = library.program(&format!("{HALF}stop('half')\nos._exit({code})"));
        program.says("half");
        program.goes_on();
        assert_eq!(program.ends(), code);
        eventually("nothing is listed", || !library.file().exists());
    }
    library.stores_nothing();
}

#[test]
fn a_program_that_ends_well_without_closing_has_stored() {
    let library = Library::new();
    let program = library.program(&format!("{HALF}wrote(fd, TAIL)\nos._exit(0)"));
    assert_eq!(program.ends(), 0);
    library.stores("file.iso", &whole());
}

#[test]
fn the_first_close_of_two_descriptors_stores() {
    let library = Library::new();
    let script = format!(
        "{HALF}
copy = os.dup(fd)
wrote(copy, TAIL)
os.close(fd)
print(refused(os.write, copy, b'more'), refused(os.ftruncate, copy, 5), refused(os.close, copy))"
    );
    let mut program = library.program(&script);
    program.says(&format!("{EPERM} {EPERM} 0"));
    assert_eq!(program.ends(), 0);
    library.stores("file.iso", &whole());
}

#[test]
fn a_close_before_anything_was_written_stores_nothing_yet() {
    let library = Library::new();
    // As shells and dd do, which move a descriptor to where they want it.
    let script = "
fd = made()
copy = os.dup(fd)
os.close(fd)
wrote(copy, HEAD)
stop('half')
wrote(copy, TAIL)
os.close(copy)";
    let mut program = library.program(script);
    program.says("half");
    program.signal(Signal::KILL);
    program.ends();
    library.stores_nothing();
    let mut program = library.program(script);
    program.says("half");
    assert!(!library.second.join("file.iso").exists());
    program.goes_on();
    assert_eq!(program.ends(), 0);
    library.stores("file.iso", &whole());
}

#[test]
fn a_thread_may_close_what_others_opened_and_wrote() {
    let library = Library::new();
    // The opening thread is gone by then; each writer has a part of its own.
    let script = "
DATA, opened = HEAD + TAIL, []
def run(target, *arguments):
    thread = threading.Thread(target=target, args=arguments)
    thread.start()
    return thread
run(lambda: opened.append(made())).join()
fd = opened[0]
def part(n):
    at, end = n * 250_001, min((n + 1) * 250_001, len(DATA))
    while at < end:
        at += os.pwrite(fd, DATA[at:min(at + 9_999, end)], at)
for thread in [run(part, n) for n in range(4)]:
    thread.join()
stop('written')
run(os.close, fd).join()
stop('closed')";
    let mut program = library.program(script);
    program.says("written");
    assert!(!library.second.join("file.iso").exists());
    program.goes_on();
    program.says("closed");
    holds(library.file(), &whole());
    program.goes_on();
    assert_eq!(program.ends(), 0);
    library.stores("file.iso", &whole());
}

/// Threads write without end when their program comes to `ending`.
fn threads_write_until(ending: &str) -> Library {
    let library = Library::new();
    let script = format!(
        "
fd = made()
def part(n):
    at = n
    while True:
        os.pwrite(fd, HEAD[:100_000], at * 100_000)
        at = (at + 4) % 100
for n in range(4):
    threading.Thread(target=part, args=[n], daemon=True).start()
stop('half')
{ending}"
    );
    let mut program = library.program(&script);
    program.says("half");
    eventually("something is written", || {
        fs::metadata(library.file()).is_ok_and(|it| it.len() > 500_000)
    });
    program.goes_on();
    assert_ne!(program.ends(), 0);
    library
}

#[test]
fn threads_that_are_killed_store_nothing() {
    threads_write_until("os.kill(os.getpid(), signal.SIGKILL)").stores_nothing();
    threads_write_until("os._exit(3)").stores_nothing();
}

#[test]
fn a_program_may_become_another_one() {
    let library = Library::new();
    let script = |code: u8| {
        format!(
            "{HALF}
os.set_inheritable(fd, True)
os.execvp('bash', ['bash', '-c', f'head -c 300001 /dev/zero | tr \"\\\\0\" t >&{{fd}}; exit {code}'])"
        )
    };
    assert_eq!(library.program(&script(3)).ends(), 3);
    library.stores_nothing();
    assert_eq!(library.program(&script(0)).ends(), 0);
    library.stores("file.iso", &whole());
}

#[test]
fn a_container_stores_as_anybody_else() {
    let library = Library::new();
    // A pid namespace below the mount's.
    let contain = |script: &str| {
        format!(
            "
signal.alarm(0)
os.execvp('timeout', ['timeout', '60', 'unshare', '--pid', '--fork', '--kill-child',
    '--mount-proc', 'bash', '-c', {script:?}, FILE])"
        )
    };
    for script in [
        "(exec > $0; head -c 500000 /dev/zero; kill -9 $BASHPID); true",
        "(exec > $0; head -c 500000 /dev/zero; exit 3); true",
    ] {
        library.program(&contain(script)).ends();
        eventually(script, || !library.file().exists());
    }
    library.stores_nothing();
    let script = "{ true; head -c 500000 /dev/zero; true; sleep 0.2; echo end; } > $0";
    assert_eq!(library.program(&contain(script)).ends(), 0);
    let mut expected = vec![0; 500_000];
    expected.extend_from_slice(b"end\n");
    library.stores("file.iso", &expected);
}

/// A mount in a pid namespace of its own, which sees no program outside of it.
fn mounted_apart(library: &Library) -> (Program, PathBuf) {
    let mount = library.world.mount_point("apart");
    let script = format!(
        "export ISOTOPE_CONFIG={} ISOTOPE_MOUNT_OPTIONS=noimmutable; exec unshare --pid --fork --kill-child \
         {} mount --catalog {} \"$0\" 2>/dev/null",
        library.world.path("isotope.toml").display(),
        env!("CARGO_BIN_EXE_isotope"),
        library.url,
    );
    let mut program = Program::start("bash", ["-c", &script], &mount);
    program.says(&format!("mounted    {}", mount.display()));
    (program, mount)
}

#[test]
fn a_program_that_the_mount_cannot_see_stores_when_it_closes() {
    let library = Library::new();
    let (_mount, mount) = mounted_apart(&library);
    let script = format!("{HALF}stop('half')\nwrote(fd, TAIL)\nos.close(fd)\nos._exit(3)");
    let mut program = library.program_at(&mount.join("file.iso"), &script);
    program.says("half");
    assert!(!library.second.join("file.iso").exists());
    program.goes_on();
    assert_eq!(program.ends(), 3);
    library.stores("file.iso", &whole());
    // How a program ends that closes nothing cannot be told there.
    fs::remove_file(library.file()).expect("removed");
    let killed = mount.join("killed.iso");
    let mut program = library.program_at(&killed, &format!("{HALF}stop('half')"));
    program.says("half");
    program.signal(Signal::KILL);
    program.ends();
    eventually("it is stored", || library.mount.join("killed.iso").exists());
    library.stores("killed.iso", &whole()[..700_000]);
}

#[test]
fn a_program_that_catches_the_signal_and_closes_has_stored_what_it_had() {
    let library = Library::new();
    let pipe = library.world.path("pipe");
    let _fed = fed_pipe(&pipe, &[7; 40_000]);
    let script = r#"exec dd if="$0" of="$1" bs=1000 status=none"#;
    let program = Program::start("bash", ["-c", script, text(&pipe)], &library.file());
    eventually("it has written all", || {
        fs::metadata(library.file()).is_ok_and(|it| it.len() == 40_000)
    });
    program.signal(Signal::INT);
    assert_ne!(program.ends(), 0);
    library.stores("file.iso", &[7; 40_000]);
}

#[test]
fn a_file_that_grows_too_large_for_its_writer_is_not_stored() {
    let library = Library::new();
    fs::write(library.world.path("source"), whole()).expect("written");
    let done = library.bash("(ulimit -f 500; exec cp $D/source $M/file.iso)");
    assert_eq!(done.status.code(), Some(128 + SIGXFSZ), "{done:?}");
    library.stores_nothing();
}

#[test]
fn a_child_that_the_mount_cannot_see_does_not_store_its_parents_half() {
    let library = Library::new();
    let (_mount, mount) = mounted_apart(&library);
    let script = format!(
        "{HALF}
subprocess.run(['true'])
if os.fork() == 0:
    os._exit(0)
os.wait()
stop('half')
wrote(fd, TAIL)
os.close(fd)"
    );
    let mut program = library.program_at(&mount.join("file.iso"), &script);
    program.says("half");
    assert!(!library.second.join("file.iso").exists());
    program.goes_on();
    assert_eq!(program.ends(), 0);
    library.stores("file.iso", &whole());
}

#[test]
fn a_folder_that_was_listed_meanwhile_forgets_what_was_given_up() {
    let library = Library::new();
    let mut program = library.program(&format!("{HALF}stop('half')"));
    program.says("half");
    assert!(walk(&library.mount).contains(&"file.iso".to_owned()), "it is listed to its writer");
    program.signal(Signal::KILL);
    program.ends();
    eventually("it is not found", || !library.file().exists());
    eventually("nor listed", || walk(&library.mount) == EMPTY);
    library.stores_nothing();
}
