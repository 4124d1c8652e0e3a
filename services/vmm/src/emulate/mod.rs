//! emulate.
