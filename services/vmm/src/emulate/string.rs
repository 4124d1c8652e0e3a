//! string.
