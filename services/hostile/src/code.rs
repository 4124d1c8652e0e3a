//! Random instruction bytes: noise, salted with instructions that matter to a kernel.

use crate::rng::Rng;

/// What is mixed in.
const SALT: [&[u8]; 40] = [
    &[0x0f, 0x05],                   // SYSCALL
    &[0x0f, 0x34],                   // SYSENTER
    &[0xcd, 0x80],                   // INT 0x80
    &[0xcd, 0xf0],                   // INT of the timer's vector
    &[0xcd, 0x02],                   // INT 2
    &[0xcc],                         // INT3
    &[0xf1],                         // ICEBP
    &[0x9d],                         // POPF
    &[0x48, 0xcf],                   // IRETQ
    &[0xca, 0x00, 0x00],             // RETF
    &[0x48, 0x0f, 0x07],             // SYSRETQ
    &[0x8e, 0xd0],                   // MOV SS, AX
    &[0x8e, 0xe0],                   // MOV FS, AX
    &[0x8e, 0xe8],                   // MOV GS, AX
    &[0xf3, 0x48, 0x0f, 0xae, 0xd8], // WRGSBASE
    &[0x0f, 0x01, 0xf8],             // SWAPGS
    &[0x0f, 0x01, 0xf9],             // RDTSCP
    &[0x0f, 0x01, 0xd0],             // XGETBV
    &[0x0f, 0x01, 0xd1],             // XSETBV
    &[0x0f, 0x01, 0xd8],             // VMRUN
    &[0x0f, 0x01, 0xd9],             // VMMCALL
    &[0x0f, 0x01, 0xdb],             // VMSAVE
    &[0x0f, 0x01, 0xdc],             // STGI
    &[0x0f, 0x20, 0xd8],             // MOV RAX, CR3
    &[0x0f, 0x22, 0xc0],             // MOV CR0, RAX
    &[0x0f, 0x23, 0xf8],             // MOV DR7, RAX
    &[0x0f, 0x32],                   // RDMSR
    &[0x0f, 0x30],                   // WRMSR
    &[0x0f, 0x00, 0xd8],             // LTR
    &[0x0f, 0x01, 0x10],             // LGDT [RAX]
    &[0x0f, 0x01, 0x08],             // SIDT [RAX]
    &[0xe4, 0x60],                   // IN AL, 0x60
    &[0xe6, 0x64],                   // OUT 0x64, AL
    &[0xfa],                         // CLI
    &[0xf4],                         // HLT
    &[0x0f, 0x06],                   // CLTS
    &[0x0f, 0x28, 0xc1],             // MOVAPS
    &[0xd9, 0xe8],                   // FLD1
    &[0x48, 0x83, 0xcc, 0x07],       // OR RSP, 7
    &[0xf0, 0x0f, 0xc7, 0xc8],       // LOCK CMPXCHG8B EAX
];

/// Second opcode bytes, after 0x0f, of instructions that QEMU 7.2 executes although CR0.TS is set: CVTPI2PS, CVTTPS2PI, CVTPS2PI and
/// their forms for doubles, EMMS, FEMMS, MOVQ2DQ, MOVDQ2Q. They would reach the registers that a guest has left in the processor,
/// which is no fault of the kernel's: on a processor they fault like all others (SDM vol. 3, 2.5; APM vol. 2, 3.1.1).
const UNGUARDED: [u8; 6] = [0x2a, 0x2c, 0x2d, 0x77, 0x0e, 0xd6];
/// In their place, UD2.
const UD2: u8 = 0x0b;

/// Fills `bytes` with code.
pub fn fill(rng: &mut Rng, bytes: &mut [u8]) {
    let mut at = 0;
    while at < bytes.len() {
        let noise;
        let piece: &[u8] = if rng.once_in(3) {
            rng.of(&SALT)
        } else {
            noise = rng.word().to_le_bytes();
            noise.get(..1 + rng.below(4) as usize).unwrap_or(&noise)
        };
        for b in piece {
            if let Some(to) = bytes.get_mut(at) {
                *to = *b;
            }
            at += 1;
        }
    }
    // Wherever execution may begin. What follows the last byte is another's.
    let mut escape = false;
    for b in bytes.iter_mut() {
        if escape && UNGUARDED.contains(b) {
            *b = UD2;
        }
        escape = *b == 0x0f;
    }
    if let Some(last) = bytes.last_mut()
        && escape
    {
        *last = 0x90;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_page_and_all_salt() {
        let mut bytes = [0; 1 << 16];
        fill(&mut Rng(1), &mut bytes);
        for salt in SALT {
            assert!(bytes.windows(salt.len()).any(|w| w == salt), "{salt:x?}");
        }
        let mut again = [0; 1 << 16];
        fill(&mut Rng(1), &mut again);
        assert_eq!(bytes, again);
        fill(&mut Rng(1), &mut []);
        let unguarded = |w: &[u8]| w[0] == 0x0f && UNGUARDED.contains(&w[1]);
        assert!(!bytes.windows(2).any(unguarded));
        for seed in 0..2000 {
            let mut few = [0; 7];
            fill(&mut Rng(seed), &mut few);
            assert_ne!(few[6], 0x0f);
        }
    }
}
