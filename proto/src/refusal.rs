//! Why a request was refused, and how that travels: the only table between refusals and the
//! statuses of gRPC and HTTP. The reason travels by name, so that the far side has the situation back exactly;
//! the text says what was being done to what.

use tonic::codegen::http::StatusCode;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::name::InvalidName;

/// Marks our reasons among others' in `google.rpc.ErrorInfo`.
const DOMAIN: &str = "isotope";

macro_rules! refusals {
    ($($(#[$doc:meta])* $reason:ident, $wire:literal, $code:ident, $http:ident;)*) => {
        /// The situation in which a request is refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $reason,)* }

        impl Reason {
            /// Every situation there is.
            pub const ALL: &[Self] = &[$(Self::$reason,)*];

            /// The name under which it travels.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$reason => $wire,)* }
            }

            fn code(self) -> Code {
                match self { $(Self::$reason => Code::$code,)* }
            }

            /// Its status in HTTP (RFC 9110 §15).
            #[must_use]
            pub fn http(self) -> StatusCode {
                match self { $(Self::$reason => StatusCode::$http,)* }
            }
        }
    };
}

refusals! {
    /// The name, path or id leads to nothing.
    NotFound, "NOT_FOUND", NotFound, NOT_FOUND;
    /// The target's name is taken.
    Exists, "EXISTS", AlreadyExists, CONFLICT;
    /// A folder was needed, an image is there.
    NotAFolder, "NOT_A_FOLDER", FailedPrecondition, NOT_FOUND;
    /// An image was needed, a folder is there.
    IsAFolder, "IS_A_FOLDER", FailedPrecondition, NOT_FOUND;
    NotEmpty, "NOT_EMPTY", FailedPrecondition, CONFLICT;
    /// An image has as many names as it can have.
    TooManyLinks, "TOO_MANY_LINKS", FailedPrecondition, CONFLICT;
    /// A folder would come to lie in itself.
    IntoItself, "INTO_ITSELF", InvalidArgument, BAD_REQUEST;
    /// A folder would lie below the deepest level.
    TooDeep, "TOO_DEEP", InvalidArgument, BAD_REQUEST;
    NameTooLong, "NAME_TOO_LONG", InvalidArgument, BAD_REQUEST;
    /// A name or path that no file system can hold.
    InvalidName, "INVALID_NAME", InvalidArgument, BAD_REQUEST;
    /// A message that says nothing sensible.
    Malformed, "MALFORMED", InvalidArgument, BAD_REQUEST;
    /// Not done by this release, or not to this object.
    NotPermitted, "NOT_PERMITTED", PermissionDenied, FORBIDDEN;
    /// The file is no longer the one that was catalogued.
    Replaced, "REPLACED", FailedPrecondition, CONFLICT;
    /// Its bytes are not those of the image.
    WrongBytes, "WRONG_BYTES", DataLoss, CONFLICT;
    /// The range lies past the end.
    OutOfRange, "OUT_OF_RANGE", OutOfRange, RANGE_NOT_SATISFIABLE;
    /// No room on the volume, or on any.
    NoSpace, "NO_SPACE", ResourceExhausted, INSUFFICIENT_STORAGE;
    /// The volume cannot be written to.
    ReadOnly, "READ_ONLY", FailedPrecondition, FORBIDDEN;
    QuotaExceeded, "QUOTA_EXCEEDED", ResourceExhausted, INSUFFICIENT_STORAGE;
    /// Larger than the volume's file system can hold in one file.
    TooLarge, "TOO_LARGE", OutOfRange, PAYLOAD_TOO_LARGE;
    /// Somebody else is writing it, or has it open.
    InUse, "IN_USE", FailedPrecondition, CONFLICT;
    /// A limit is reached; later it may work.
    Busy, "BUSY", ResourceExhausted, SERVICE_UNAVAILABLE;
    /// The part that would do it cannot be reached or is stopping.
    Unavailable, "UNAVAILABLE", Unavailable, SERVICE_UNAVAILABLE;
    /// It took longer than its deadline.
    TimedOut, "TIMED_OUT", DeadlineExceeded, GATEWAY_TIMEOUT;
    /// The disk or the database failed.
    Storage, "STORAGE", Internal, INTERNAL_SERVER_ERROR;
}

/// A refused request: the situation, and the sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    pub reason: Reason,
    pub text: String,
}

impl Refusal {
    #[must_use]
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self { reason, text: text.into() }
    }
}

impl From<InvalidName> for Refusal {
    fn from(error: InvalidName) -> Self {
        let reason = match error {
            InvalidName::TooLong(_) => Reason::NameTooLong,
            InvalidName::TooDeep(_) => Reason::TooDeep,
            InvalidName::Empty
            | InvalidName::Reserved(_)
            | InvalidName::Slash(_)
            | InvalidName::Control(_)
            | InvalidName::NotUtf8
            | InvalidName::NotAbsolute(_) => Reason::InvalidName,
        };
        Self::new(reason, error.to_string())
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let details = ErrorDetails::with_error_info(refusal.reason.as_str(), DOMAIN, []);
        Self::with_error_details(refusal.reason.code(), refusal.text, details)
    }
}

/// Also makes sense of statuses that tonic itself or a proxy produced.
impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let named = status.get_details_error_info().filter(|info| info.domain == DOMAIN);
        let reason = named
            .and_then(|info| Reason::ALL.iter().copied().find(|r| r.as_str() == info.reason))
            .unwrap_or(match status.code() {
                Code::NotFound => Reason::NotFound,
                Code::AlreadyExists => Reason::Exists,
                Code::InvalidArgument => Reason::Malformed,
                Code::PermissionDenied | Code::Unauthenticated => Reason::NotPermitted,
                Code::DeadlineExceeded => Reason::TimedOut,
                Code::ResourceExhausted => Reason::Busy,
                Code::OutOfRange => Reason::OutOfRange,
                Code::Unavailable | Code::Cancelled | Code::Unimplemented | Code::Unknown => {
                    Reason::Unavailable
                }
                Code::Ok | Code::FailedPrecondition | Code::Aborted | Code::Internal => {
                    Reason::Storage
                }
                Code::DataLoss => Reason::WrongBytes,
            });
        let text = match status.message() {
            // tonic's own words, of a deadline that has passed here.
            "Timeout expired" => {
                "no answer in time; what was asked is stopped or overloaded, or the network is down"
            }
            text => text,
        };
        Self::new(reason, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_survives_the_wire() {
        for &reason in Reason::ALL {
            let refusal = Refusal::new(reason, "moving /a to /b");
            assert_eq!(Refusal::from(Status::from(refusal.clone())), refusal);
        }
    }

    #[test]
    fn a_lost_connection_is_unavailable() {
        assert_eq!(Refusal::from(Status::unavailable("")).reason, Reason::Unavailable);
        assert_eq!(Refusal::from(Status::unknown("")).reason, Reason::Unavailable);
    }
}
