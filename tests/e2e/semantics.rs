//! `docs/SEMANTICS.md`, heading by heading: each promise there has its test of the same name here.

mod attributes;
mod deleting;
mod failing;
mod links;
mod local;
mod mounting;
mod names;
mod showing;
mod storing;
mod views;
