//! xtask as a library: builds systems, boots them in an emulator and drives them.
//!
//! Job: setup, build, image, run, test, bench, fuzz, sizes, audit. Place: on the developer's machine;
//! nothing of it is in a shipped image. The whole-system tests use [`emulator::Machine`].
//! Trust: it installs packages and runs compilers with the rights of its user.

pub mod build;
pub mod description;
pub mod emulator;
pub mod host;
pub mod setup;
pub mod tasks;
