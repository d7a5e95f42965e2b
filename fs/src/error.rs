//! What can go wrong in the mount, as situations; how each looks to a process is `errno.rs`'s.

use isotope_proto::name::InvalidName;
use isotope_proto::refusal::{Reason, Refusal};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FsError {
    #[error("no such file or folder")]
    NotFound,
    #[error("the name is taken")]
    Exists,
    #[error("not a folder")]
    NotAFolder,
    #[error("a folder")]
    IsAFolder,
    #[error("the folder is not empty")]
    NotEmpty,
    #[error("the image has too many names")]
    TooManyLinks,
    #[error("a folder cannot be moved into itself")]
    IntoItself,
    #[error("too many levels of folders, or too long a name")]
    TooLong,
    #[error("the name is not UTF-8")]
    NotUtf8,
    #[error("not a name, a flag or a range that means something here")]
    Invalid,
    #[error("not possible with images")]
    NotPermitted,
    #[error("the volume cannot be written to, or the library is shown from a snapshot")]
    ReadOnly,
    #[error("no room for it")]
    NoSpace,
    #[error("the quota is used up")]
    QuotaExceeded,
    #[error("too large for the volume's file system")]
    TooLarge,
    #[error("somebody else is writing it")]
    InUse,
    #[error("it is open for reading on this mount")]
    OpenForReading,
    #[error(
        "the kernel reads it from the pool's own file, and until it is closed it can only be read"
    )]
    PassedThrough,
    #[error("the inode is gone")]
    Stale,
    #[error("the file changed behind the catalogue's back")]
    Replaced,
    #[error("no such attribute")]
    NoAttribute,
    #[error("attributes of this kind are not kept here")]
    NotSupported,
    #[error("no such open file")]
    BadHandle,
    #[error("the catalogue is busy")]
    Busy,
    #[error("the catalogue cannot be reached")]
    CatalogAway,
    #[error("no answer in time")]
    TimedOut,
    #[error("no host with the bytes can be reached: {0}")]
    Unreachable(String),
    #[error("every copy within reach has wrong bytes: {0}")]
    WrongBytes(String),
    #[error("{0}")]
    Storage(String),
}

impl From<InvalidName> for FsError {
    fn from(error: InvalidName) -> Self {
        match error {
            InvalidName::NotUtf8 => Self::NotUtf8,
            InvalidName::TooLong(_) | InvalidName::TooDeep(_) => Self::TooLong,
            InvalidName::Empty
            | InvalidName::Reserved(_)
            | InvalidName::Slash(_)
            | InvalidName::Control(_)
            | InvalidName::NotAbsolute(_) => Self::Invalid,
        }
    }
}

/// What the catalogue refused.
impl From<Refusal> for FsError {
    fn from(refusal: Refusal) -> Self {
        match refusal.reason {
            Reason::NotFound => Self::NotFound,
            Reason::Exists => Self::Exists,
            Reason::NotAFolder => Self::NotAFolder,
            Reason::IsAFolder => Self::IsAFolder,
            Reason::NotEmpty => Self::NotEmpty,
            Reason::TooManyLinks => Self::TooManyLinks,
            Reason::IntoItself => Self::IntoItself,
            Reason::TooDeep | Reason::NameTooLong => Self::TooLong,
            Reason::InvalidName | Reason::Malformed | Reason::OutOfRange => Self::Invalid,
            Reason::NotPermitted => Self::NotPermitted,
            Reason::ReadOnly => Self::ReadOnly,
            Reason::NoSpace => Self::NoSpace,
            Reason::QuotaExceeded => Self::QuotaExceeded,
            Reason::TooLarge => Self::TooLarge,
            Reason::InUse => Self::InUse,
            Reason::Replaced => Self::Replaced,
            Reason::Busy => Self::Busy,
            Reason::Unavailable => Self::CatalogAway,
            Reason::TimedOut => Self::TimedOut,
            Reason::WrongBytes => Self::WrongBytes(refusal.text),
            Reason::Storage => Self::Storage(refusal.text),
        }
    }
}
