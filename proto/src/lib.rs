//! The vocabulary of Isotope: what travels between its parts, and the validated types that each
//! part computes with. No IO and no clock here: times are values, given from outside.

pub mod change;
pub mod channel;
pub mod cluster;
pub mod crash;
pub mod digest;
pub mod facts;
pub mod id;
pub mod image;
pub mod name;
pub mod passing;
pub mod proof;
pub mod range;
pub mod refusal;
pub mod report;
pub mod sidecar;
pub mod signature;
pub mod time;
pub mod tree;
pub mod upload;
pub mod web;
pub mod wire;

/// Messages and services as generated from `isotope/v1/*.proto`.
#[allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub)]
pub mod pb {
    tonic::include_proto!("isotope.v1");
}

/// The version of this build, shown by every part and sent in handshakes.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
