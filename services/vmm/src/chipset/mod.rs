//! chipset.
