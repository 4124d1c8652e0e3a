//! What it does, one act at a time.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use exerciser::apic::{self, reg};
use exerciser::exec::{self, Registers};
use exerciser::idt::{self, Frame};
use exerciser::{cpu, paging};

use crate::tables::{ACCESSES, KINDS, SPARED, SPECIAL, STRANGE};

/// A number, decimal or with 0x.
pub fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Vector of the timer that ends what would not end.
const TIMER: u8 = 0x70;
/// Once in so many times an act does what ends most VMs.
const WILD: u64 = 1024;
/// TSC ticks that random instructions get.
const PATIENCE: u32 = 400_000;
static RUNNING: AtomicBool = AtomicBool::new(false);

/// Where the timer sends random instructions that do not end.
fn out() -> u64 {
    let address: u64;
    // SAFETY: only the address of the UD2 is taken; nothing falls into it.
    unsafe {
        asm!("lea {0}, [rip + 3f]", "jmp 4f", "3:", "ud2", "4:", out(reg) address, options(nostack));
    }
    address
}

fn timer(frame: &mut Frame) {
    if RUNNING.load(Relaxed) {
        frame.rip = out();
    }
}

/// The guest's state.
pub struct Guest {
    random: u64,
    /// Faults that came of its acts.
    pub faults: u64,
    /// Acts of each of [`KINDS`].
    pub counts: [u64; KINDS.len()],
    cr: [u64; 2],
    apic_base: u64,
}

impl Guest {
    /// Ready to act.
    pub fn new(seed: u64) -> Self {
        idt::set_handler(TIMER, Some(timer));
        Self {
            random: seed,
            faults: 0,
            counts: [0; KINDS.len()],
            cr: [cpu::cr0(), cpu::cr4()],
            apic_base: exec::rdmsr(apic::APIC_BASE).unwrap_or(0xfee0_0900),
        }
    }

    /// What it has done, by kind, and what came of it.
    pub fn report(&self) -> Report<'_> {
        Report(self)
    }

    /// SplitMix64.
    fn word(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.word() % n.max(1)
    }

    fn of<T: Copy>(&mut self, all: &[T], or: T) -> T {
        let i = self.below(all.len() as u64) as usize;
        all.get(i).copied().unwrap_or(or)
    }

    /// An address: device registers, holes, RAM of no importance, nonsense.
    fn address(&mut self) -> u64 {
        let within = self.below(4096);
        match self.below(10) {
            0 | 1 => 0xfee0_0000 + within,
            2 => 0xfec0_0000 + within % 64,
            3 => 0xc000_0000 + self.below(0x3000_0000),
            4 => 0xfed0_0000 + within,
            5 => 0xf000_0000 + self.below(0xff_0000),
            6 => self.word(),
            7 => paging::WINDOW + self.below(16 * 4096),
            _ => paging::frame(self.random as usize % paging::FRAMES) + within,
        }
    }

    fn value(&mut self) -> u64 {
        let wild = self.word();
        self.of(
            &[
                0,
                1,
                0xff,
                0x1000,
                u64::MAX,
                1 << 31,
                1 << 63,
                wild,
                wild & 0xffff,
                wild | 1 << 62,
            ],
            wild,
        )
    }

    /// An address for whatever comes: RAM of no importance, or nowhere at all. Seldom one where a device, or nothing, answers the whole
    /// of physical memory: there a VMM ends its VM at each instruction that it does not know, which is most of them.
    fn place(&mut self) -> u64 {
        match self.below(WILD) {
            0 => self.address(),
            n if n % 4 == 0 => paging::WINDOW + self.below(16 * 4096),
            n => paging::frame(n as usize % paging::FRAMES) + self.below(2048),
        }
    }

    fn registers(&mut self) -> Registers {
        Registers {
            rax: self.value(),
            rbx: self.place(),
            rcx: self.value(),
            rdx: self.value(),
            rsi: self.place(),
            rdi: self.place(),
            rbp: self.place(),
            r8: self.place(),
            r9: self.value(),
            ..Registers::default()
        }
    }

    /// Runs code to its end, its fault or its time; interrupts come in meanwhile. Then everything is as before.
    fn run(&mut self, code: &[u8], registers: &mut Registers) {
        apic::write(reg::LVT_TIMER, u32::from(TIMER));
        apic::write(reg::TIMER_DIVIDE, 0b1011);
        apic::write(reg::TIMER_INITIAL, PATIENCE);
        registers.rflags |= cpu::IF;
        RUNNING.store(true, Relaxed);
        self.faults += u64::from(exec::run(code, registers).is_err());
        RUNNING.store(false, Relaxed);
        self.restore();
    }

    /// What acts may have changed and Rust needs.
    fn restore(&mut self) {
        // SAFETY: the values that the guest began with; data segments are not used in 64-bit code but for their limits in compatibility
        // mode, and FS and GS not at all.
        unsafe {
            asm!("cli", "cld", "mov ds, {0:e}", "mov es, {0:e}", "mov ss, {0:e}", in(reg) 0x10);
            cpu::set_cr0(self.cr[0]);
            cpu::set_cr4(self.cr[1]);
            asm!("mov dr7, {}", in(reg) 0x400u64, options(nomem, nostack, preserves_flags));
        }
        idt::load(4095);
        let _ = exec::wrmsr(apic::APIC_BASE, self.apic_base);
        if apic::read(reg::SVR) & 0x100 == 0 {
            apic::write(reg::SVR, 0x1ff);
        }
        apic::write(reg::TPR, 0);
    }

    /// Does one thing.
    pub fn act(&mut self) {
        let kind = [0, 0, 1, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 9, 9, 9][self.below(16) as usize];
        let done = match kind {
            0 => self.port(),
            1 => self.mmio(),
            2 => self.msr(),
            3 => self.cpuid(),
            4 => self.control(),
            5 => self.debug(),
            6 => self.special(),
            7 => self.pages(),
            8 => self.apic(),
            _ => self.noise(),
        };
        if done && let Some(count) = self.counts.get_mut(kind) {
            *count += 1;
        }
    }

    fn cpuid(&mut self) -> bool {
        let leaf = self.of(&[0, 1, 7, 0xd, 0x4000_0000, 0x8000_0000, 0x8000_000a], 0);
        let leaf = (leaf | self.word() & 0x1f) as u32;
        let sub = self.value() as u32;
        cpu::cpuid(leaf, sub);
        true
    }

    fn port(&mut self) -> bool {
        let port = if self.below(3) == 0 {
            self.word() as u16
        } else {
            let known = [
                0x20, 0x21, 0x40, 0x43, 0x60, 0x61, 0x70, 0x71, 0xa0, 0x4d0, 0x80, 0x5000, 0xffff,
            ];
            self.of(&known, 0x80)
        };
        let spared = |(first, count): &(u16, u16)| {
            u32::from(port) + 4 > u32::from(*first) && port < first + count
        };
        if SPARED.iter().any(spared) {
            return false;
        }
        let kinds: [&[u8]; 12] = [
            &[0xec],
            &[0x66, 0xed],
            &[0xed],
            &[0xee],
            &[0x66, 0xef],
            &[0xef],
            &[0x6c],
            &[0x6d],
            &[0x6e],
            &[0xf3, 0x6c],
            &[0xf3, 0x6f],
            &[0x67, 0xf3, 0x6e],
        ];
        let code = self.of(&kinds, &[0xec]);
        let mut r = self.registers();
        r.rdx = u64::from(port);
        r.rcx = self.below(40);
        self.run(code, &mut r);
        true
    }

    /// An access that a VMM emulates, mostly.
    fn access(&mut self) -> &'static [u8] {
        if self.below(WILD) == 0 {
            return self.of(&STRANGE, &[0x90]);
        }
        self.of(&ACCESSES, &[0x8a, 0x07])
    }

    fn mmio(&mut self) -> bool {
        let code = self.access();
        let mut r = self.registers();
        r.rdi = self.address();
        r.rcx = self.below(64);
        r.rsi = paging::frame(0);
        // The remote side of the ICR is left alone: INIT and SIPI end what this guest is.
        if r.rdi & !0xff == 0xfee0_0300 {
            r.rdi = 0xfee0_0020;
        }
        self.run(code, &mut r);
        true
    }

    fn msr(&mut self) -> bool {
        let base = self.of(
            &[
                0,
                0x10,
                0x1b,
                0x3a,
                0x48,
                0x8b,
                0x174,
                0x1a0,
                0x1d9,
                0x200,
                0x250,
                0x277,
                0x2ff,
                0x400,
                0x6e0,
                0x800,
                0xda0,
                0xc000_0080,
                0xc000_0100,
                0xc001_0010,
                0xc001_0110,
                0x4b56_4d00,
            ],
            0,
        );
        let mut r = self.registers();
        r.rcx = base + self.below(8);
        if self.below(8) == 0 {
            r.rcx = self.word() & 0xffff_ffff;
        }
        // The APIC is moved by nobody, and EFER.LME is not this guest's to try on QEMU (see tests/systems/hostile-guest.toml).
        let write = self.below(2) == 0 && r.rcx != 0x1b && r.rcx != 0xc000_0080 && r.rcx != 0x830;
        r.rax &= 0xffff_ffff;
        r.rdx &= 0xffff_ffff;
        self.run(if write { &[0x0f, 0x30] } else { &[0x0f, 0x32] }, &mut r);
        true
    }

    /// Flips bits of control registers, with a few instructions under each setting.
    fn control(&mut self) -> bool {
        let mut r = self.registers();
        let one = 1 << self.below(32);
        match self.below(4) {
            0 => {
                // MOV CR0, RAX; NOP; CLTS. Paging stays on: QEMU 7.2 lets 64-bit code switch it off, and loses the host's CR0 at the
                // exit of a guest in that state.
                r.rax = cpu::cr0() ^ one ^ (1 << self.below(19)) | 1 << 31 | 1;
                self.run(&[0x0f, 0x22, 0xc0, 0x90, 0x0f, 0x06], &mut r);
            }
            1 => {
                // MOV CR4, RAX; MOV RAX, CR3; MOV CR3, RAX.
                r.rax = cpu::cr4() ^ one;
                self.run(
                    &[0x0f, 0x22, 0xe0, 0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8],
                    &mut r,
                );
            }
            2 => {
                // MOV CR2, RAX; LMSW AX; SMSW AX.
                r.rax |= 1;
                self.run(
                    &[0x0f, 0x22, 0xd0, 0x0f, 0x01, 0xf0, 0x0f, 0x01, 0xe0],
                    &mut r,
                );
            }
            _ => {
                // MOV RCX, CR3; OR RCX, RAX (its low bits); MOV CR3, RCX.
                r.rax &= 0xfff;
                self.run(
                    &[0x0f, 0x20, 0xd9, 0x48, 0x09, 0xc1, 0x0f, 0x22, 0xd9],
                    &mut r,
                );
            }
        }
        true
    }

    /// Debug registers, without enabling a breakpoint: QEMU 7.2 stops at an assertion when one strikes on the way to its own handler.
    fn debug(&mut self) -> bool {
        let mut r = self.registers();
        let code = self.of::<&[u8]>(
            &[
                &[0x0f, 0x23, 0xc3],
                &[0x0f, 0x23, 0xcb],
                &[0x0f, 0x23, 0xd3],
                &[0x0f, 0x23, 0xdb],
                &[0x0f, 0x23, 0xf3],
                &[0x0f, 0x21, 0xf3],
                &[0x0f, 0x23, 0xe3],
            ],
            &[0x90],
        );
        self.run(code, &mut r);
        // Single steps through an exit.
        let mut r = self.registers();
        r.rax = 1;
        r.rcx = 0;
        r.rflags = cpu::TF;
        self.run(&[0x0f, 0xa2, 0x90, 0xe4, 0x61, 0x90], &mut r);
        true
    }

    fn special(&mut self) -> bool {
        let code = self.of(&SPECIAL, &[0x0f, 0x01, 0xd9]);
        let mut r = self.registers();
        if self.below(2) == 0 {
            // A page that could be a VMCB.
            r.rax = paging::frame(1);
        }
        if code == [0x0f, 0x01, 0xd1] {
            // x87 stays on.
            r.rax |= 1;
            r.rcx = self.below(2);
        }
        self.run(code, &mut r);
        true
    }

    /// Page tables that point anywhere, and an access through them.
    fn pages(&mut self) -> bool {
        let at = paging::WINDOW + self.below(16) * 4096;
        let to = match self.below(5) {
            0 => self.word() & 0x000f_ffff_ffff_f000,
            1 => 0x1_0000_0000 + self.below(1 << 20) * 4096,
            2 => 0xfee0_0000,
            3 => 0xffff_f000_0000,
            _ => paging::frame(2),
        };
        paging::map(at, Some(to), false);
        paging::invalidate(at);
        let code = self.access();
        let mut r = self.registers();
        r.rdi = at + self.below(4090);
        r.rsi = paging::frame(0);
        r.rcx = self.below(64);
        if to == 0xfee0_0000 {
            r.rdi = at + 0x20;
        }
        self.run(code, &mut r);
        paging::map(at, None, false);
        paging::invalidate(at);
        true
    }

    fn apic(&mut self) -> bool {
        match self.below(4) {
            0 => {
                // To itself: a fixed interrupt of any vector that has a handler, or an NMI.
                let vector = 0x30 + self.below(0xc0) as u32;
                let icr = if self.below(8) == 0 { 4 << 8 } else { vector };
                let mut r = Registers {
                    rdi: 0xfee0_0300,
                    rax: u64::from(icr | 1 << 18),
                    ..Registers::default()
                };
                self.run(&[0x89, 0x07, 0x90, 0x90], &mut r);
            }
            1 => {
                let value = self.value() as u32;
                apic::write(
                    self.of(&[reg::TPR, reg::TIMER_DIVIDE, reg::ESR, reg::LDR], reg::TPR),
                    value,
                );
            }
            2 => {
                let value = self.value() as u32 & 0xff00 | 0x10000;
                let lvt = self.of(
                    &[reg::LVT_LINT0, reg::LVT_LINT1, reg::LVT_ERROR],
                    reg::LVT_LINT0,
                );
                apic::write(lvt, value);
            }
            _ => {
                // HLT until the timer.
                self.run(&[0xf4], &mut Registers::default());
            }
        }
        self.restore();
        true
    }

    /// Bytes that mean nothing in particular.
    fn noise(&mut self) -> bool {
        let mut code = [0x90; 24];
        let length = 1 + self.below(23) as usize;
        for byte in code.iter_mut().take(length) {
            *byte = self.word() as u8;
        }
        // MOV to CR8 and to DR7 are left out: QEMU 7.2 stops at assertions of its own after them.
        let bad = |w: &[u8]| w[0] == 0x0f && (w[1] == 0x22 || w[1] == 0x23);
        if code.windows(2).any(bad) {
            return false;
        }
        let mut r = self.registers();
        self.run(&code, &mut r);
        true
    }
}

/// A guest's figures.
pub struct Report<'a>(&'a Guest);

impl core::fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for (name, count) in KINDS.iter().zip(&self.0.counts) {
            write!(f, "{name} {count}, ")?;
        }
        write!(f, "faults {}", self.0.faults)
    }
}
