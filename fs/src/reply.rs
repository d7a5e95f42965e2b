//! Answers to the kernel: results as replies, errors as errnos.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use bytes::Bytes;
use fuser::{Errno, Generation, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyXattr};
use isotope_proto::name::EntryName;
use tracing::debug;

use crate::attr::FileAttr;
use crate::errno;
use crate::error::FsError;
use crate::files::Answer;

/// The value of a result; a request whose result is an error is answered with that, and is over.
macro_rules! or_reply {
    ($reply:expr, $result:expr) => {
        match $result {
            Ok(value) => value,
            Err(error) => return $reply.error(crate::errno::of(&error)),
        }
    };
}
pub(crate) use or_reply;

/// A name as the kernel has it.
pub(crate) fn parse(name: &OsStr) -> Result<EntryName, FsError> {
    Ok(EntryName::parse_bytes(name.as_bytes())?)
}

pub(crate) fn entry(reply: ReplyEntry, it: &Answer) {
    reply.entry(&it.lifetime, &it.attr, Generation(it.generation));
}

/// Attributes, and how long they may be believed.
pub(crate) fn attr(reply: ReplyAttr, result: Result<(FileAttr, Duration), FsError>) {
    let (attr, lifetime) = or_reply!(reply, result);
    reply.attr(&lifetime, &attr);
}

pub(crate) fn empty(reply: ReplyEmpty, result: Result<(), FsError>) {
    or_reply!(reply, result);
    reply.ok();
}

/// How much there is where nothing is asked for, else all of it.
pub(crate) fn attribute(reply: ReplyXattr, size: u32, value: Result<Vec<u8>, FsError>) {
    let value = or_reply!(reply, value);
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(&value),
        Ok(_) | Err(_) => reply.error(Errno::ERANGE),
    }
}

pub(crate) fn data(reply: ReplyData, read: Result<Bytes, FsError>) {
    match read {
        Ok(bytes) => reply.data(&bytes),
        Err(error) => {
            debug!(%error, "read failed");
            reply.error(errno::of(&error));
        }
    }
}
