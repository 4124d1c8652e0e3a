//! Asking the kernel, with nothing checked before it does.

use alloc::vec::Vec;

use ipc_schema::abi::{Status, Syscall, Tag};
use runtime::sys::{self, Registers};
use runtime::{time, utcb};

/// What every call that may block is given, in microseconds: far more than a right kernel needs, far less than a person's patience.
pub const PATIENCE: u64 = 20_000;

/// A system call in full.
#[derive(Clone, Debug)]
pub struct Call {
    /// Which.
    pub number: Syscall,
    /// rdi.
    pub slot: u64,
    /// rsi.
    pub tag: Tag,
    /// r8, r9, r10, r12.
    pub words: [u64; 4],
    /// Put into the UTCB first.
    pub payload: Vec<u8>,
    /// Whether the deadline is past already (else it is [`PATIENCE`] away).
    pub at_once: bool,
}

impl Call {
    /// An operation on an object.
    #[must_use]
    pub const fn operation(slot: u64, label: u64, words: [u64; 4]) -> Self {
        Self {
            number: Syscall::Call,
            slot,
            tag: Tag::new(label),
            words,
            payload: Vec::new(),
            at_once: false,
        }
    }

    /// A system call with a deadline that is past.
    #[must_use]
    pub const fn system(number: Syscall, slot: u64) -> Self {
        Self {
            number,
            slot,
            tag: Tag(0),
            words: [0; 4],
            payload: Vec::new(),
            at_once: true,
        }
    }

    /// The same with a payload, announced in the tag.
    #[must_use]
    pub fn with_payload(mut self, payload: Vec<u8>) -> Self {
        self.tag = self.tag.with_payload(payload.len());
        self.payload = payload;
        self
    }

    /// Makes it.
    #[must_use]
    pub fn make(&self) -> (Status, Registers) {
        if !self.payload.is_empty() {
            // A payload that is longer than the page's is cut, its length in the tag is not.
            let fits = self.payload.len().min(ipc_schema::abi::Utcb::PAYLOAD);
            let _ = utcb::write(self.payload.get(..fits).unwrap_or_default());
        }
        let deadline = if self.at_once {
            runtime::now()
        } else {
            time::after(PATIENCE)
        };
        raw(self.number, self.slot, self.tag, self.words, deadline)
    }
}

/// A system call with all its registers.
#[must_use]
pub fn raw(
    number: Syscall,
    slot: u64,
    tag: Tag,
    words: [u64; 4],
    deadline: u64,
) -> (Status, Registers) {
    // SAFETY: this server maps and unmaps in its own Space at `window`s only, where no Rust reference ever points (`Page` copies
    // words); it never destroys its own Space, Thread or Pool, nor starts a thread in its own Space. A kernel that takes a wrong call
    // for a right one may break that: then this server faults, and the run of it has failed.
    let r = unsafe { sys::syscall(number, slot, tag.0, words, deadline) };
    (Status::from_raw(r.status), r)
}

/// An operation on an object; the words of the answer.
pub fn ask(slot: u64, label: u64, words: [u64; 4]) -> Result<[u64; 4], Status> {
    match raw(
        Syscall::Call,
        slot,
        Tag::new(label),
        words,
        time::after(PATIENCE),
    ) {
        (Status::Ok, r) => Ok(r.words),
        (status, _) => Err(status),
    }
}

/// A page that this server shares with others: words, copied one by one.
#[derive(Clone, Copy, Debug)]
pub struct Page(u64);

impl Page {
    /// The page at an address where this server has mapped, readable and writable, a page of `kit`'s RAM.
    #[must_use]
    pub(crate) const fn at(address: u64) -> Self {
        Self(address)
    }

    fn word(self, i: usize) -> *mut u64 {
        core::ptr::with_exposed_provenance_mut::<u64>(self.0 as usize).wrapping_add(i % 512)
    }

    /// A word.
    #[must_use]
    pub fn get(self, i: usize) -> u64 {
        if cfg!(not(target_os = "none")) {
            return 0;
        }
        // SAFETY: `at`'s contract: the page is mapped; the index stays inside.
        unsafe { self.word(i).read_volatile() }
    }

    /// Sets a word.
    pub fn set(self, i: usize, value: u64) {
        if cfg!(not(target_os = "none")) {
            return;
        }
        // SAFETY: as in `get`, and no reference points there.
        unsafe { self.word(i).write_volatile(value) };
    }
}
