//! How each situation looks to a process: the only such table.

use fuser::Errno;

use crate::error::FsError;

pub(crate) fn of(error: &FsError) -> Errno {
    match error {
        FsError::NotFound => Errno::ENOENT,
        FsError::Exists => Errno::EEXIST,
        FsError::NotAFolder => Errno::ENOTDIR,
        FsError::IsAFolder => Errno::EISDIR,
        FsError::NotEmpty => Errno::ENOTEMPTY,
        FsError::TooManyLinks => Errno::EMLINK,
        FsError::IntoItself | FsError::Invalid => Errno::EINVAL,
        FsError::TooLong => Errno::ENAMETOOLONG,
        FsError::NotUtf8 => Errno::EILSEQ,
        FsError::NotPermitted => Errno::EPERM, // libvirt chowns images: it tolerates EPERM, anything else stops the VM
        FsError::ReadOnly => Errno::EROFS,
        FsError::NoSpace => Errno::ENOSPC,
        FsError::QuotaExceeded => Errno::EDQUOT,
        FsError::TooLarge => Errno::EFBIG,
        FsError::InUse => Errno::EBUSY,
        FsError::OpenForReading => Errno::ETXTBSY,
        FsError::PassedThrough => Errno::EROFS, // losetup and QEMU are content to read then, after no other but EACCES
        FsError::Stale => Errno::ESTALE, // not ENOENT: Linux then looks the path up again by itself
        FsError::Replaced => Errno::ESTALE, // half of one installer followed by half of another is worse than an error
        FsError::NoAttribute => Errno::NO_XATTR,
        FsError::NotSupported => Errno::EOPNOTSUPP, // for labels and ACLs libvirt, ls and cp tolerate this alone
        FsError::BadHandle => Errno::EBADF,
        FsError::Busy => Errno::EBUSY,
        FsError::CatalogAway => Errno::EHOSTDOWN, // "Host is down" tells an administrator where to look
        FsError::TimedOut => Errno::ETIMEDOUT,
        FsError::Unreachable(_) | FsError::WrongBytes(_) | FsError::Storage(_) => Errno::EIO,
    }
}
