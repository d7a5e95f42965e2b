//! Error → what is printed, and the exit code: the only such table.

use std::process::ExitCode;

use isotope_agent::AgentError;
use isotope_catalog::{CatalogError, OpenError, RestoreError};
use isotope_fs::{MountError, MountPointError};
use isotope_proto::id::InvalidId;
use isotope_proto::name::InvalidName;
use isotope_proto::refusal::{Reason, Refusal};

use crate::config::ConfigError;
use crate::output;

const FAILURE: u8 = 1;
const USAGE: u8 = 2;
const NOT_FOUND: u8 = 3;
const CONFLICT: u8 = 4;
const NOT_PERMITTED: u8 = 5;
const UNAVAILABLE: u8 = 6;
const INTEGRITY: u8 = 7;
/// As a shell reports a program that was interrupted.
pub(crate) const INTERRUPTED: u8 = 130;

/// mount(8)'s exit codes, which its helpers share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MountCode {
    Done = 0,
    /// Arguments or options that make no sense, or permissions that are missing.
    Usage = 1,
    /// Out of processes or memory.
    System = 2,
    /// A fault of ours.
    Bug = 4,
    Interrupted = 8,
    /// Everything else: nothing is mounted.
    Failed = 32,
}

/// What mount(8) is told where `isotope mount` ended with `code`, or without one: by a signal.
pub(crate) fn mount_code(code: Option<i32>) -> MountCode {
    match code.map(u8::try_from) {
        Some(Ok(USAGE | NOT_PERMITTED)) => MountCode::Usage,
        Some(Ok(INTERRUPTED)) => MountCode::Interrupted,
        // A panic.
        Some(Ok(101)) | None => MountCode::Bug,
        Some(_) => MountCode::Failed,
    }
}

/// Arguments that are well-formed and make no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Files whose bytes are no longer those that were catalogued.
#[derive(Debug, thiserror::Error)]
#[error("{0} of the files have rotted; they are served no more")]
pub(crate) struct Rotten(pub(crate) u64);

/// Ended by a signal.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

/// Prints an error and says how the process ends.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    output::error(&format!("{error:#}"));
    ExitCode::from(code(error))
}

pub(crate) fn code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(code_of).unwrap_or(FAILURE)
}

fn code_of(error: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if error.is::<Rotten>() {
        return Some(INTEGRITY);
    }
    if let Some(refusal) = error.downcast_ref::<Refusal>() {
        return Some(refusal_code(refusal.reason));
    }
    if let Some(error) = error.downcast_ref::<CatalogError>() {
        return Some(match error {
            CatalogError::Bind { .. } => CONFLICT,
            CatalogError::Open(error) => open_code(error),
            CatalogError::Serve(_) => FAILURE,
        });
    }
    if let Some(error) = error.downcast_ref::<RestoreError>() {
        return Some(match error {
            RestoreError::Missing(_) => NOT_FOUND,
            RestoreError::NotABackup(_) | RestoreError::Damaged { .. } => INTEGRITY,
            RestoreError::Open(error) => open_code(error),
            RestoreError::Place { .. } => FAILURE,
        });
    }
    if let Some(error) = error.downcast_ref::<AgentError>() {
        return Some(match error {
            AgentError::Bind { .. } | AgentError::Twice { .. } => CONFLICT,
            AgentError::Volume(isotope_agent::VolumeError::Missing(_)) => NOT_FOUND,
            AgentError::Identity(_) | AgentError::Volume(_) | AgentError::Serve(_) => FAILURE,
        });
    }
    if let Some(error) = error.downcast_ref::<MountError>() {
        return Some(match error {
            MountError::MountPoint(error) => mount_point_code(error),
            MountError::NoView(_) => NOT_FOUND,
            MountError::CatalogAway { .. } => UNAVAILABLE,
            MountError::OthersRefused => NOT_PERMITTED,
            MountError::Mount { .. } | MountError::Session { .. } | MountError::Follower => FAILURE,
        });
    }
    if error.is::<Interrupted>() {
        return Some(INTERRUPTED);
    }
    let usage = error.is::<Usage>()
        || error.is::<ConfigError>()
        || error.is::<InvalidName>()
        || error.is::<InvalidId>();
    usage.then_some(USAGE)
}

fn mount_point_code(error: &MountPointError) -> u8 {
    match error {
        MountPointError::Missing(_) => NOT_FOUND,
        MountPointError::NotEmpty(_)
        | MountPointError::Mounted(_)
        | MountPointError::InUse { .. } => CONFLICT,
        MountPointError::NotADirectory(_)
        | MountPointError::Stale { .. }
        | MountPointError::Io { .. }
        | MountPointError::NoFuse
        | MountPointError::FuseDenied(_)
        | MountPointError::NoFusermount => FAILURE,
    }
}

fn open_code(error: &OpenError) -> u8 {
    match error {
        OpenError::InUse(_) => CONFLICT,
        OpenError::Damaged { .. } => INTEGRITY,
        OpenError::State { .. }
        | OpenError::NotOurs(_)
        | OpenError::Newer { .. }
        | OpenError::Migrate { .. }
        | OpenError::Sqlite { .. }
        | OpenError::Random(_) => FAILURE,
    }
}

fn refusal_code(reason: Reason) -> u8 {
    match reason {
        Reason::NotFound => NOT_FOUND,
        Reason::Exists
        | Reason::NotEmpty
        | Reason::TooManyLinks
        | Reason::NotAFolder
        | Reason::IsAFolder
        | Reason::InUse => CONFLICT,
        Reason::IntoItself
        | Reason::TooDeep
        | Reason::NameTooLong
        | Reason::InvalidName
        | Reason::Malformed
        | Reason::OutOfRange => USAGE,
        Reason::NotPermitted | Reason::ReadOnly => NOT_PERMITTED,
        Reason::Replaced | Reason::WrongBytes => INTEGRITY,
        Reason::Busy | Reason::Unavailable | Reason::TimedOut => UNAVAILABLE,
        Reason::Storage | Reason::NoSpace | Reason::QuotaExceeded | Reason::TooLarge => FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn mount_is_told_in_its_own_codes() {
        for (code, expected) in [
            (Some(1), MountCode::Failed),
            (Some(2), MountCode::Usage),
            (Some(3), MountCode::Failed),
            (Some(5), MountCode::Usage),
            (Some(6), MountCode::Failed),
            (Some(0), MountCode::Failed),
            (Some(130), MountCode::Interrupted),
            (Some(101), MountCode::Bug),
            (None, MountCode::Bug),
        ] {
            assert_eq!(mount_code(code), expected, "{code:?}");
        }
    }

    #[test]
    fn codes_are_found_beneath_any_context() {
        let refused = |reason| anyhow::Error::new(Refusal::new(reason, "x")).context("moving");
        for (reason, expected) in [
            (Reason::NotFound, 3),
            (Reason::Exists, 4),
            (Reason::NotPermitted, 5),
            (Reason::Unavailable, 6),
            (Reason::Replaced, 7),
        ] {
            assert_eq!(code(&refused(reason)), expected);
        }
        let error = "no".parse::<isotope_proto::name::LibraryPath>().context("a path");
        assert_eq!(code(&error.expect_err("refused")), 2);
        assert_eq!(code(&anyhow::anyhow!("anything else")), 1);
    }
}
