//! Conversions between generated messages and domain types, and nothing else. What comes in is
//! checked here once, so that nobody behind has to.

mod change;
mod cluster;
mod facts;
mod hashes;
mod sidecar;
mod tree;
mod upload;

pub use change::{decode_change, encode_change};
pub use facts::{decode_facts, encode_facts};
pub use hashes::{decode_checked, encode_checked};
pub use sidecar::{decode_frame, encode_frame};
pub use tree::{decode_image, encode_image};
pub use upload::{publish_request, published_attributes};

use prost_types::Timestamp as PbTimestamp;

use crate::id::InvalidId;
use crate::name::InvalidName;
use crate::refusal::{Reason, Refusal};
use crate::time::Timestamp;

/// A message that says nothing sensible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{field} is {value}, which means nothing here")]
    Unknown { field: &'static str, value: i64 },
    #[error(transparent)]
    Id(#[from] InvalidId),
    #[error(transparent)]
    Name(#[from] InvalidName),
    #[error("a change's before and after are records of different kinds")]
    MixedDelta,
    #[error("not a message of this kind: {0}")]
    Undecodable(String),
}

impl From<Malformed> for Refusal {
    fn from(error: Malformed) -> Self {
        match error {
            Malformed::Name(name) => name.into(),
            other => Self::new(Reason::Malformed, format!("malformed request: {other}")),
        }
    }
}

impl From<Malformed> for tonic::Status {
    fn from(error: Malformed) -> Self {
        Refusal::from(error).into()
    }
}

fn required<T>(field: &'static str, value: Option<T>) -> Result<T, Malformed> {
    value.ok_or(Malformed::Missing(field))
}

fn each<A, B>(values: Vec<A>) -> Result<Vec<B>, Malformed>
where
    B: TryFrom<A, Error = Malformed>,
{
    values.into_iter().map(B::try_from).collect()
}

fn ids<B>(values: &[Vec<u8>]) -> Result<Vec<B>, Malformed>
where
    B: for<'a> TryFrom<&'a [u8], Error = InvalidId>,
{
    values.iter().map(|id| Ok(B::try_from(id)?)).collect()
}

fn time_in(field: &'static str, time: Option<PbTimestamp>) -> Result<Timestamp, Malformed> {
    let time = required(field, time)?;
    Ok(Timestamp::from_parts(time.seconds, u32::try_from(time.nanos).unwrap_or(0)))
}

/// A time as it travels.
#[must_use]
pub fn time_out(time: Timestamp) -> Option<PbTimestamp> {
    let (seconds, nanos) = time.parts();
    Some(PbTimestamp { seconds, nanos: i32::try_from(nanos).unwrap_or(0) })
}
