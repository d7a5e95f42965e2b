//! The product from outside: the real binary, real mounts, real ISOs.

mod backups;
mod bad_input;
mod boot;
mod children;
mod commands;
mod discovery;
mod facts;
mod faults;
mod flushing;
mod harness;
mod hashing;
mod hosts;
mod hypervisors;
mod instant;
mod library;
mod model;
mod mounting;
mod parts;
mod placement;
mod random_writes;
mod recovery;
mod replacing;
mod semantics;
mod tools;
mod twins;
