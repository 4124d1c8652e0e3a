//! The start, and the partner's code.

use core::arch::global_asm;

use conformance::case::Report;
use conformance::kit::{Code, Kit};
use ipc_schema::manifest::Server;
use runtime::abi::NEVER;
use runtime::abi::layout::slot;
use runtime::power::power_off;
use runtime::{Notification, StartInfo};

// rdi: the command page (words and numbers as in `conformance::partner`), which ends in the stack.
global_asm!(
    r#"
    .section .text.conformance_partner, "ax"
    .balign 4096
    .globl conformance_partner
conformance_partner:
    mov r14, rdi
1:  mov eax, 3
    mov rdi, [r14 + 1*8]
    mov r13, -1
    call VIREO_STUB
    # Suspended and resumed, it comes back with `Timeout`.
    cmp eax, 2
    je 1b
    cmp eax, 1
    jne 9f
    mov rax, [r14]
    cmp eax, 1
    je 2f
    cmp eax, 2
    je 3f
    cmp eax, 3
    je 4f
    cmp eax, 4
    je 5f
    # A system call.
    mov ebx, 0x1111
    mov ebp, 0x2222
    mov r15d, 0x3333
    mov rax, [r14 + 2*8]
    mov rdi, [r14 + 3*8]
    mov rsi, [r14 + 4*8]
    mov r8, [r14 + 5*8]
    mov r9, [r14 + 6*8]
    mov r10, [r14 + 7*8]
    mov r12, [r14 + 8*8]
    mov r13, [r14 + 9*8]
    call VIREO_STUB
    mov [r14 + 16*8], rax
    mov [r14 + 17*8], rdi
    mov [r14 + 18*8], rsi
    mov [r14 + 19*8], r8
    mov [r14 + 20*8], r9
    mov [r14 + 21*8], r10
    mov [r14 + 22*8], r12
    mov [r14 + 23*8], rbx
    mov [r14 + 24*8], rbp
    mov [r14 + 25*8], r15
    mov [r14 + 26*8], rcx
    mov [r14 + 27*8], rdx
    mov [r14 + 28*8], r11
    mov [r14 + 29*8], r13
8:  inc qword ptr [r14 + 15*8]
    jmp 1b
2:  mov rcx, [r14 + 3*8]
    movzx eax, byte ptr [rcx]
    mov [r14 + 16*8], rax
    jmp 8b
3:  mov rcx, [r14 + 3*8]
    mov byte ptr [rcx], 0x5a
    jmp 8b
4:  mov rcx, [r14 + 3*8]
    call rcx
    jmp 8b
5:  jmp 5b
9:  ud2
    .globl conformance_partner_end
conformance_partner_end:
    .balign 4096
    .text
"#
);

unsafe extern "C" {
    /// First byte of the partner's code, and its entry.
    safe static conformance_partner: [u8; 0];
    /// One past its last.
    safe static conformance_partner_end: [u8; 0];
}

runtime::entry!(main);

fn say(bad: bool, line: &str) {
    if bad {
        defmt::error!("{=str}", line);
    } else {
        defmt::info!("{=str}", line);
    }
}

fn main(start: &'static StartInfo) -> ! {
    let server: Server = start.config().unwrap_or_else(|e| panic!("{e}"));
    let address = |label: &'static [u8; 0]| label.as_ptr().expose_provenance() as u64;
    let from = address(&conformance_partner);
    let code = Code {
        from,
        to: address(&conformance_partner_end).next_multiple_of(4096),
        entry: from,
    };
    let mut report = Report::new(say);
    match Kit::new(start, code) {
        Ok(mut kit) => conformance::all(&mut kit, &mut report),
        Err(status) => report.case("one object of each kind", || Err(status.into())),
    }
    let failed = report.end();
    if server
        .args
        .split_whitespace()
        .any(|word| word == "poweroff")
    {
        power_off(start, u32::from(failed > 0));
    }
    loop {
        let _ = Notification(slot::NOTIFICATION).wait(NEVER);
    }
}
