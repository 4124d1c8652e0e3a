//! alu.
