//! The mount's one reading of the wall clock; used for ids, never for order.

use std::time::SystemTime;

use isotope_proto::time::Timestamp;

pub(crate) fn now() -> Timestamp {
    SystemTime::now().into()
}
