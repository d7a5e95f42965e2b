//! The agent's one reading of the wall clock.

use std::time::SystemTime;

use isotope_proto::time::Timestamp;

pub(crate) fn now() -> Timestamp {
    SystemTime::now().into()
}
