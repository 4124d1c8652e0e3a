//! The disks: what is where, for RAM-backed disks that are copied from an image as they are written.
//!
//! Job: answers device models' requests ([`ipc_schema::disk`]) out of each disk's map ([`map`], [`disk`]), for all disks of the system
//! ([`server`]). Place: between device models, which hold the contents and make the one copy, and later drivers. Trust: clients are
//! hostile: a request is decoded in full before anything is changed, and reaches its client's disk only. The map is in memory that
//! outlives the process; a successor believes of it only what its checksums say.
//!
//! The contents themselves are mapped in the device models and not here: what dies or goes mad here takes no byte of a disk along.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod disk;
pub mod map;
pub mod server;
