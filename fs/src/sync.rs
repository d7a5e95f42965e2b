//! The locks of what threads share in an order that is not obvious. In unit tests they are
//! shuttle's, which runs the threads in many orders, one after the other; it knows no lock's use.

#[cfg(not(test))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};

#[cfg(test)]
pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard};
