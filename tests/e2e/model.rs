//! The reference model: random operations against it and the product, compared whole after each.

mod core;
mod mounted;
mod reference;
