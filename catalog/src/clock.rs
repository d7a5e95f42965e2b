//! The catalogue's one reading of the wall clock. Times describe; they order nothing.

use std::time::SystemTime;

use isotope_proto::time::Timestamp;

pub(crate) fn now() -> Timestamp {
    SystemTime::now().into()
}
