//! Why a system cannot be planned.

use alloc::string::String;
use core::fmt;

use super::MAX_SERVERS;

/// Why a system cannot be planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// Two servers of one instance name.
    Name(String),
    /// A file that the boot archive does not have.
    NoFile(String),
    /// A configuration does not fit its encoding.
    Config(String),
    /// A disk's image is larger than the disk.
    Disk(String),
    /// More servers than there are numbers for.
    TooMany(usize),
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "two servers are called `{name}`"),
            Self::NoFile(file) => write!(f, "the boot archive has no `{file}`"),
            Self::Config(name) => write!(f, "the configuration of `{name}` cannot be encoded"),
            Self::Disk(name) => write!(f, "disk `{name}` is smaller than its image"),
            Self::TooMany(n) => write!(f, "{n} servers, at most {MAX_SERVERS}"),
        }
    }
}

impl core::error::Error for PlanError {}
