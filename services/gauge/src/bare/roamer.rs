//! What a roaming vCPU runs, in 64-bit mode, and what it has in its memory.

use core::arch::global_asm;

/// Where its page tables are: three pages.
pub const TABLES: u64 = 0x1000;
/// Its code.
pub const CODE: u64 = 0x4000;
/// Its XSAVE area: what it plants.
const AREA: u64 = 0x5000;
/// Where it saves what it has.
const SCRATCH: u64 = 0x6000;
/// What it plants in DR0 to DR3, TSC_AUX, and MSRs: pairs of number and value, ended by number 0.
const WORDS: u64 = 0x7000;
/// The same two for registers that nobody has written.
const NO_AREA: u64 = 0x8000;
const NO_WORDS: u64 = 0x9000;
/// Top of its stack.
pub const STACK: u64 = 0xaff0;

/// What differs, in its rax at HLT.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub enum Class {
    /// Debug registers.
    Debug = 1,
    /// MSRs.
    Msr = 2,
    /// x87 and SSE.
    Sse = 4,
    /// AVX.
    Avx = 8,
    /// TSC_AUX.
    TscAux = 16,
}

global_asm!(
    r#"
    .section .rodata.gauge_roamer, "a"
    .globl gauge_roamer
gauge_roamer:
    # Whatever ran here before: it has left nothing.
    mov r12d, {NO_WORDS}
    mov r13d, {NO_AREA}
    call 5f
    mov r14, rax
    # Plants.
    mov r12d, {WORDS}
    mov r13d, {AREA}
    mov rax, [r12]
    mov dr0, rax
    mov rax, [r12 + 8]
    mov dr1, rax
    mov rax, [r12 + 16]
    mov dr2, rax
    mov rax, [r12 + 24]
    mov dr3, rax
    lea rsi, [r12 + 40]
1:  mov ecx, [rsi]
    test ecx, ecx
    jz 2f
    mov eax, [rsi + 8]
    mov edx, [rsi + 12]
    wrmsr
    add rsi, 16
    jmp 1b
2:  mov eax, 7
    xor edx, edx
    xrstor64 [r13]
    mov rax, r14
3:  hlt
    call 5f
    jmp 3b

    # Compares all registers with the words at r12 and the area at r13: what differs in rax.
5:  xor r15d, r15d
    mov rax, dr0
    cmp rax, [r12]
    jne 6f
    mov rax, dr1
    cmp rax, [r12 + 8]
    jne 6f
    mov rax, dr2
    cmp rax, [r12 + 16]
    jne 6f
    mov rax, dr3
    cmp rax, [r12 + 24]
    je 7f
6:  or r15d, 1
7:  rdtscp
    cmp rcx, [r12 + 32]
    je 8f
    or r15d, 16
8:  lea rsi, [r12 + 40]
9:  mov ecx, [rsi]
    test ecx, ecx
    jz 12f
    rdmsr
    cmp eax, [rsi + 8]
    jne 10f
    cmp edx, [rsi + 12]
    je 11f
10: or r15d, 2
11: add rsi, 16
    jmp 9b
12: mov ebx, {SCRATCH}
    mov edi, ebx
    mov ecx, 512
    xor eax, eax
    cld
    rep stosq
    mov eax, 7
    xor edx, edx
    xsave64 [rbx]
    # x87 and SSE: 48 words from byte 32 on; AVX: 32 from byte 576 on.
    lea rsi, [r13 + 32]
    lea rdi, [rbx + 32]
    mov ecx, 48
    repe cmpsq
    je 13f
    or r15d, 4
13: lea rsi, [r13 + 576]
    lea rdi, [rbx + 576]
    mov ecx, 32
    repe cmpsq
    je 14f
    or r15d, 8
14: mov rax, r15
    ret
    .globl gauge_roamer_end
gauge_roamer_end:
    .text
"#,
    WORDS = const WORDS,
    AREA = const AREA,
    SCRATCH = const SCRATCH,
    NO_WORDS = const NO_WORDS,
    NO_AREA = const NO_AREA,
);

unsafe extern "C" {
    safe static gauge_roamer: [u8; 0];
    safe static gauge_roamer_end: [u8; 0];
}

/// The code.
pub fn bytes() -> &'static [u8] {
    let (from, to) = (gauge_roamer.as_ptr(), gauge_roamer_end.as_ptr());
    let length = to.addr() - from.addr();
    // SAFETY: between the two labels lies what stands above, read-only.
    unsafe { core::slice::from_raw_parts(from, length) }
}

/// STAR, LSTAR, CSTAR, SFMASK, FS, GS and kernel GS base, SYSENTER_CS, ESP and EIP: those that a guest reaches without an exit. And how
/// many bits each holds.
const MSRS: [(u64, u32); 10] = [
    (0xc000_0081, 63),
    (0xc000_0082, 47),
    (0xc000_0083, 47),
    (0xc000_0084, 31),
    (0xc000_0100, 47),
    (0xc000_0101, 47),
    (0xc000_0102, 47),
    (0x174, 15),
    (0x175, 47),
    (0x176, 47),
];

/// The word for place `n` of vCPU `key`, in so many bits.
fn word(key: u8, n: u64, bits: u32) -> u64 {
    (0x5ec2_e700_0000 | u64::from(key) << 16 | n << 8 | u64::from(key)) & ((1 << bits) - 1)
}

/// What vCPU `key` has in TSC_AUX.
pub fn tsc_aux(key: u8) -> u64 {
    word(key, 4, 32)
}

/// What vCPU `key` has in its memory: where, and what.
pub fn secrets(key: u8) -> impl Iterator<Item = (u64, u64)> {
    let debug = (0..4).map(move |n| (WORDS + n * 8, word(key, n, 47)));
    let aux = [(WORDS + 32, tsc_aux(key))];
    let msrs = (0..).zip(MSRS).flat_map(move |(i, (msr, bits))| {
        let at = WORDS + 40 + i * 16;
        [(at, msr), (at + 8, word(key, 8 + i, bits))]
    });
    // x87: eight bytes of each register and its exponent; then SSE, and the upper halves of AVX.
    let x87 = (0..8).flat_map(move |n| {
        let at = AREA + 32 + n * 16;
        [(at, word(key, 32 + n, 47) | 1 << 63), (at + 8, 0x3fff)]
    });
    let sse = (0..32).map(move |n| (AREA + 160 + n * 8, word(key, 64 + n, 47)));
    let avx = (0..32).map(move |n| (AREA + 576 + n * 8, word(key, 128 + n, 47)));
    // FCW, MXCSR, and all three components in use.
    let header = [(AREA, 0x37f), (AREA + 24, 0x1f80), (AREA + 512, 7)];
    debug
        .chain(aux)
        .chain(msrs)
        .chain(x87)
        .chain(sse)
        .chain(avx)
        .chain(header)
}

/// What a new one expects: nothing, but for TSC_AUX, which its VMM has set.
pub fn nothing(key: u8) -> impl Iterator<Item = (u64, u64)> {
    let msrs = (0..).zip(MSRS).flat_map(|(i, (msr, _))| {
        let at = NO_WORDS + 40 + i * 16;
        [(at, msr), (at + 8, 0)]
    });
    msrs.chain([(NO_WORDS + 32, tsc_aux(key))])
}

/// A place of vCPU `key`'s memory where it looks up what it expects of this class, and what it finds there.
pub fn expectation(key: u8, class: Class) -> (u64, u64) {
    let at = match class {
        Class::Debug => WORDS + 8,
        Class::Msr => WORDS + 40 + 16 + 8,
        Class::Sse => AREA + 160 + 8,
        Class::Avx => AREA + 576 + 8,
        Class::TscAux => WORDS + 32,
    };
    let found = secrets(key).find(|(place, _)| *place == at);
    (at, found.map_or(0, |(_, value)| value))
}
