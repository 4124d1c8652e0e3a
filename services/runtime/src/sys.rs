//! The system call instruction, and nothing else: registers in, registers out.
//!
//! The kernel is entered by calling the stub page (see `ipc_schema::abi`); the linker script gives its address as
//! `VIREO_STUB`, near enough for a relative call.

use ipc_schema::abi::{NEVER, Status, Syscall, Tag};

/// What the registers hold after a system call.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    /// rax: a [`Status`].
    pub status: u64,
    /// rdi: badge, bits, or undelivered event.
    pub value: u64,
    /// rsi: tag or exit word.
    pub tag: u64,
    /// r8, r9, r10, r12.
    pub words: [u64; 4],
}

/// Makes a system call. The compiler must assume that it changes any memory: the kernel and other servers write to
/// the UTCB and to shared pages meanwhile.
///
/// # Safety
///
/// What the call does to this server's own address space and threads must be sound: it must not take away, or replace,
/// memory that Rust references point to, nor start a thread that shares the UTCB or the heap with this one.
#[cfg(target_os = "none")]
#[inline(always)]
pub unsafe fn syscall(
    number: Syscall,
    slot: u64,
    tag: u64,
    words: [u64; 4],
    deadline: u64,
) -> Registers {
    let (status, value, tag_out);
    let (w0, w1, w2, w3);
    // SAFETY: the stub follows the register convention of `ipc_schema::abi`: it changes only the registers named here,
    // keeps the stack, and no option promises the compiler more. The effect is the caller's obligation.
    unsafe {
        core::arch::asm!(
            "call VIREO_STUB",
            inlateout("rax") number as u64 => status,
            inlateout("rdi") slot => value,
            inlateout("rsi") tag => tag_out,
            inlateout("r8") words[0] => w0,
            inlateout("r9") words[1] => w1,
            inlateout("r10") words[2] => w2,
            inlateout("r12") words[3] => w3,
            inlateout("r13") deadline => _,
            lateout("rcx") _,
            lateout("rdx") _,
            lateout("r11") _,
        );
    }
    Registers {
        status,
        value,
        tag: tag_out,
        words: [w0, w1, w2, w3],
    }
}

/// There is no kernel on the host.
///
/// # Safety
///
/// None needed here; the signature is the real one's.
#[cfg(not(target_os = "none"))]
pub unsafe fn syscall(
    number: Syscall,
    slot: u64,
    tag: u64,
    words: [u64; 4],
    deadline: u64,
) -> Registers {
    let _ = (number, slot, tag, words, deadline);
    Registers {
        status: Status::Unsupported as u64,
        value: 0,
        tag: 0,
        words: [0; 4],
    }
}

/// Performs operation `op` on the kernel object in `slot`; answers the reply's words.
///
/// # Safety
///
/// As [`syscall`].
#[inline]
pub unsafe fn invoke(slot: u32, op: u64, words: [u64; 4]) -> Result<[u64; 4], Status> {
    // SAFETY: the caller's obligation is the same.
    unsafe { invoke_tag(slot, Tag::new(op), words) }.map(|r| r.words)
}

/// As [`invoke`], with payload or capabilities announced in the tag.
///
/// # Safety
///
/// As [`syscall`].
#[inline]
pub unsafe fn invoke_tag(slot: u32, tag: Tag, words: [u64; 4]) -> Result<Registers, Status> {
    // SAFETY: the caller's obligation is the same.
    let r = unsafe { syscall(Syscall::Call, u64::from(slot), tag.0, words, NEVER) };
    match Status::from_raw(r.status) {
        Status::Ok => Ok(r),
        other => Err(other),
    }
}

/// Lets other threads of the same priority run.
#[inline]
pub fn yield_now() {
    // SAFETY: yielding changes nothing of this server's.
    unsafe { syscall(Syscall::Yield, 0, 0, [0; 4], NEVER) };
}
