//! fast.
