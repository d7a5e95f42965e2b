//! Parts that die while files are stored, replaced, deleted and had back: what was acknowledged is
//! there and whole, what was refused is not, what was not answered is whole or absent, and no byte
//! of space is lost.

mod cluster;
mod guard;
mod ledger;
mod points;
mod random;
