//! How a machine ended.

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Powered off.
    PowerOff,
    /// A guest wrote this code to its debug-exit port (0 to 111).
    Guest(u8),
    /// The kernel or a server gave up with this value (1 to 15).
    Failure(u8),
    /// A triple fault of the machine itself: a kernel bug.
    TripleFault,
    /// The emulator itself failed.
    Emulator,
}

impl Exit {
    /// The exit code of a command that ran this machine.
    pub fn code(self) -> u8 {
        match self {
            Self::PowerOff => 0,
            Self::Guest(code) => code,
            Self::Failure(value) => 120 + value.min(3),
            Self::TripleFault => 124,
            Self::Emulator => 125,
        }
    }
}
