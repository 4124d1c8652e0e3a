//! What runs in the attackers' Spaces: this server's own code, mapped there read-only, on memory of theirs.
//!
//! It uses no heap, no log and no statics. Its desk is a page of its own that outlives its thread and the round.

use core::arch::global_asm;

use hostile::attack::{Call, Mind, VCPU_PAGES};
use hostile::report::Counts;
use hostile::rng::Rng;
use runtime::abi::Syscall;
use runtime::time;

/// All that an attacker has.
#[repr(C)]
pub struct Desk {
    /// What it thinks.
    pub mind: Mind,
    /// What came of its calls.
    pub counts: Counts,
    /// Address of its UTCB.
    pub utcb: u64,
    /// Calls made, this one included.
    pub calls: u64,
    /// The call that it is in, for whoever looks at a crash.
    pub last: Call,
}

/// Bytes of a desk: two pages.
pub const DESK: u64 = 8192;
const _: () = assert!(size_of::<Desk>() as u64 <= DESK);

impl Desk {
    /// A desk for a new round.
    pub const fn new(rng: Rng, utcb: u64) -> Self {
        Self {
            mind: Mind::new(rng),
            counts: Counts::new(),
            utcb,
            calls: 0,
            last: Call {
                row: 0,
                number: 0,
                slot: 0,
                tag: 0,
                words: [0; 4],
                deadline: 0,
                utcb: [(0, 0); 4],
                state: [(0, 0, 0); 3],
                fills: (0, 0),
                empties: 0,
            },
        }
    }
}

fn poke(address: u64, word: u64, value: u64) {
    let at = core::ptr::with_exposed_provenance_mut::<u64>((address + word * 8) as usize);
    // SAFETY: a page that the kernel shares with this thread's Space and that no Rust value lives in: its UTCB, or a vCPU's state page.
    // If it is not mapped, the store faults, and the supervisor starts this thread anew.
    unsafe { at.write_volatile(value) };
}

/// Makes calls for ever. A fault, wherever it comes, is answered by starting this function again with the same desk.
pub extern "C" fn attack(desk: *mut Desk) -> ! {
    loop {
        // SAFETY: the desk is mapped for this thread alone (the supervisor looks at it while the thread is stopped or gone), and nothing
        // borrows from it across the system call but copies.
        let desk = unsafe { &mut *desk };
        let call = desk.mind.next(time::now());
        for (word, value) in call.utcb {
            if word < 512 {
                poke(desk.utcb, word, value);
            }
        }
        for (page, word, value) in call.state {
            if page < 8 && desk.mind.pages & (1 << page) != 0 {
                poke(VCPU_PAGES + page * 4096, word, value);
            }
        }
        desk.last = call;
        desk.calls += 1;
        let status = enter(&call);
        desk.counts.add(call.row, status);
        let done = if call.number == Syscall::Call as u64 {
            status == 0
        } else {
            status <= 1
        };
        desk.mind.learn(&call, done);
    }
}

/// Makes any call at all; answers rax.
fn enter(c: &Call) -> u64 {
    let status;
    // SAFETY: as `runtime::sys::syscall`, but with a number that need not be one. What the call takes away from this Space makes its
    // thread fault, and no more than that.
    unsafe {
        core::arch::asm!(
            "call VIREO_STUB",
            inlateout("rax") c.number => status,
            inlateout("rdi") c.slot => _,
            inlateout("rsi") c.tag => _,
            inlateout("r8") c.words[0] => _,
            inlateout("r9") c.words[1] => _,
            inlateout("r10") c.words[2] => _,
            inlateout("r12") c.words[3] => _,
            inlateout("r13") c.deadline => _,
            lateout("rcx") _,
            lateout("rdx") _,
            lateout("r11") _,
        );
    }
    status
}

// A thread that attackers start themselves: it needs nothing but a stack for one return address, which all such threads share,
// since it is always the same. Registers from a linear congruence (Knuth's MMIX) of rdi and the TSC.
global_asm!(
    r#"
    .text
    .globl hostile_child
hostile_child:
    mov r15, rdi
1:  rdtsc
    add r15, rax
    movabs r14, 6364136223846793005
    imul r15, r14
    movabs r14, 1442695040888963407
    add r15, r14
    mov rax, r15
    shr rax, 61
    cmp eax, 6
    jb 2f
    xor eax, eax
2:  mov rdi, r15
    shr rdi, 50
    and edi, 127
    mov rsi, r15
    shr rsi, 40
    and esi, 7
    shl rsi, 16
    mov r8, r15
    shr r8, 30
    and r8d, 127
    mov r9, r15
    shr r9, 33
    and r9d, 127
    mov r10, r15
    shr r10, 36
    and r10d, 127
    mov r12, r15
    shr r12, 20
    and r12d, 0xff000
    push rax
    rdtsc
    shl rdx, 32
    or rax, rdx
    lea r13, [rax + 8000]
    pop rax
    call VIREO_STUB
    jmp 1b
"#
);

unsafe extern "C" {
    /// First instruction of such a thread.
    safe static hostile_child: [u8; 0];
}

/// Address of its first instruction.
pub fn child() -> u64 {
    hostile_child.as_ptr().expose_provenance() as u64
}
