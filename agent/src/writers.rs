//! Whether somebody has a file open for writing. Such a file is not taken up: it may be half of
//! one, or a virtual machine's disk.
//!
//! A read lease (fcntl(2), F_SETLEASE) is refused with EAGAIN while anybody has the file open for
//! writing, on this host; it is given back at once. Where there are no leases, as on NFS, nothing
//! is known, and the caller has to go by the file's stamp.

use std::fs::File;
use std::os::fd::AsRawFd;

/// fcntl(2); of Linux's `asm-generic/fcntl.h`, which libc leaves out.
const F_SETSIG: libc::c_int = 10;

/// What is known of a file's writers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writers {
    None,
    Some,
    Unknown,
}

/// Of a file that was opened for reading only.
pub(crate) fn of(file: &File) -> Writers {
    // Somebody opens it for writing while we have the lease: the kernel tells us by a signal,
    // SIGIO unless another is set, which would end the process. SIGURG is ignored by default.
    if set(file, F_SETSIG, libc::SIGURG).is_err() {
        return Writers::Unknown;
    }
    match set(file, libc::F_SETLEASE, libc::F_RDLCK) {
        Ok(()) => {
            // A lease ends with its file at the latest.
            let _ = set(file, libc::F_SETLEASE, libc::F_UNLCK);
            Writers::None
        }
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Writers::Some,
        Err(_) => Writers::Unknown,
    }
}

#[allow(unsafe_code)]
fn set(file: &File, command: libc::c_int, argument: libc::c_int) -> std::io::Result<()> {
    // SAFETY: both commands take an integer and touch no memory of ours.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, argument) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_open_for_writing_is_known() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.iso");
        let writer = File::create(&path).expect("made");
        let reader = File::open(&path).expect("opened");
        assert_eq!(of(&reader), Writers::Some);
        drop(writer);
        assert_eq!(of(&reader), Writers::None);
        let _other_reader = File::open(&path).expect("opened");
        assert_eq!(of(&reader), Writers::None);
        // The lease is given back: nobody who writes has to wait.
        let began = std::time::Instant::now();
        let writer = File::options().append(true).open(&path).expect("opened");
        assert!(began.elapsed() < std::time::Duration::from_secs(5));
        assert_eq!(of(&reader), Writers::Some);
        drop(writer);
    }
}
