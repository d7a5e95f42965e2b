//! When a close means it, where several programs hold the descriptor: children that end while
//! their parent writes, and children that write when their parent has closed.

use libc::EPERM;
use rustix::process::Signal;

use crate::harness::eventually;
use crate::library::{HALF, Library, whole};

/// However a child that has inherited the descriptor ends, the file stays its parent's.
fn a_child_leaves_while_its_parent_writes(child: &str) {
    let library = Library::new();
    let script = format!(
        "{HALF}
os.set_inheritable(fd, True)
child = os.fork()
if child == 0:
    {child}
os.waitpid(child, 0)
stop('half')
wrote(fd, TAIL)
os.close(fd)"
    );
    let mut program = library.program(&script);
    program.says("half");
    assert!(!library.second.join("file.iso").exists());
    program.signal(Signal::KILL);
    program.ends();
    library.stores_nothing();
    let mut program = library.program(&script);
    program.says("half");
    assert!(!library.second.join("file.iso").exists());
    program.goes_on();
    assert_eq!(program.ends(), 0);
    library.stores("file.iso", &whole());
}

#[test]
fn a_child_that_ends_well_does_not_store_its_parents_half() {
    a_child_leaves_while_its_parent_writes("os._exit(0)");
}

#[test]
fn a_child_that_closes_does_not_store_its_parents_half() {
    a_child_leaves_while_its_parent_writes("os.close(fd); os._exit(0)");
}

#[test]
fn a_child_that_fails_does_not_take_its_parents_file() {
    a_child_leaves_while_its_parent_writes("os._exit(3)");
}

#[test]
fn a_child_that_is_killed_does_not_take_its_parents_file() {
    a_child_leaves_while_its_parent_writes("os.kill(os.getpid(), signal.SIGKILL)");
}

#[test]
fn a_command_that_a_program_runs_meanwhile_changes_nothing() {
    a_child_leaves_while_its_parent_writes("os.execvp('true', ['true'])");
}

/// A child writes through the descriptor after its opener closed it, and ends; the library is as
/// it is then.
fn a_child_writes_last(ending: &str) -> Library {
    let library = Library::new();
    let script = format!(
        "
fd = made()
(ready, go) = os.pipe()
child = os.fork()
if child == 0:
    os.read(ready, 1)
    wrote(fd, HEAD)
    wrote(fd, TAIL)
    {ending}
os.close(fd)
os.write(go, b'x')
os.waitpid(child, 0)"
    );
    assert_eq!(library.program(&script).ends(), 0);
    library
}

#[test]
fn what_a_child_writes_after_its_opener_closed_is_stored_by_the_last_close() {
    for ending in ["os.close(fd); os._exit(0)", "os._exit(0)"] {
        let library = a_child_writes_last(ending);
        eventually("it is stored", || library.second.join("file.iso").exists());
        library.stores("file.iso", &whole());
    }
}

#[test]
fn what_a_child_wrote_before_it_died_is_not_stored() {
    for ending in ["os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)"] {
        a_child_writes_last(ending).stores_nothing();
    }
}

#[test]
fn a_child_cannot_add_to_what_its_opener_stored() {
    let library = Library::new();
    let script = format!(
        "{HALF}
(ready, go) = os.pipe()
child = os.fork()
if child == 0:
    os.read(ready, 1)
    os._exit(refused(os.write, fd, b'more'))
wrote(fd, TAIL)
os.close(fd)
os.write(go, b'x')
(_, status) = os.waitpid(child, 0)
print(os.WEXITSTATUS(status))"
    );
    let mut program = library.program(&script);
    program.says(&EPERM.to_string());
    assert_eq!(program.ends(), 0);
    library.stores("file.iso", &whole());
}

#[test]
fn a_child_does_not_store_what_its_killed_opener_began() {
    let library = Library::new();
    let script = format!(
        "{HALF}
child = os.fork()
if child == 0:
    signal.alarm(60)
    stop('half')
    refused(wrote, fd, TAIL)
    os.close(fd)
    os._exit(0)
os.waitpid(child, 0)"
    );
    let mut program = library.program(&script);
    program.says("half");
    program.signal(Signal::KILL);
    eventually("its opener is gone", || !library.file().exists());
    program.goes_on();
    program.ends();
    library.stores_nothing();
}

#[test]
fn a_subshell_in_the_background_stores_when_it_is_done() {
    let library = Library::new();
    library.shell("(sleep 0.3; head -c 700000 /dev/zero; sleep 0.3; echo end) > $M/file.iso &");
    let mut expected = vec![0; 700_000];
    expected.extend_from_slice(b"end\n");
    eventually("it is stored", || library.second.join("file.iso").exists());
    library.stores("file.iso", &expected);
}

/// Between `fork` and `execve` the child closes what it inherited; the mount must not look at it
/// then in a way that waits for the `execve`.
#[test]
fn a_child_that_executes_another_program_changes_nothing() {
    let library = Library::new();
    let script = format!(
        "{HALF}
os.set_inheritable(fd, False)
for _ in range(20):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os.execv('/bin/true', ['true'])
    assert os.waitpid(child, 0)[1] == 0
wrote(fd, TAIL)
os.close(fd)"
    );
    assert_eq!(library.program(&script).ends(), 0);
    library.stores("file.iso", &whole());
}
