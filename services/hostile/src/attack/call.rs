//! The call that an attacker makes.

/// A system call with all its registers, and what is scribbled before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// Row of the report.
    pub row: usize,
    /// rax.
    pub number: u64,
    /// rdi.
    pub slot: u64,
    /// rsi.
    pub tag: u64,
    /// r8, r9, r10, r12.
    pub words: [u64; 4],
    /// r13.
    pub deadline: u64,
    /// Words to write into the UTCB first: index and value; beyond the page: none.
    pub utcb: [(u64, u64); 4],
    /// The same for a vCPU's state page: number of the page, index, value.
    pub state: [(u64, u64, u64); 3],
    /// The slot that it fills if it succeeds, and with what kind.
    pub fills: (u64, u8),
    /// The slot that it empties if it succeeds.
    pub empties: u64,
}
