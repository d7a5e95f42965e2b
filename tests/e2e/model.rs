//! The reference model: random operations against it and the product, compared whole after each.

pub(crate) mod api;
mod core;
pub(crate) mod mounted;
pub(crate) mod reference;
mod whole;
