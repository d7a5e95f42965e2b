//! The product from outside: the real binary, real mounts, real ISOs.

mod bad_input;
mod boot;
mod commands;
mod faults;
mod harness;
mod hosts;
mod model;
mod parts;
mod semantics;
