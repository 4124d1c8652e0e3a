//! The registers, by name: how each is read and written.

use core::arch::asm;
use core::cell::UnsafeCell;

use exerciser::exec::{self, Registers};
use exerciser::{cpu, say};

/// MSRs that hold any canonical address.
const ADDRESSES: [(&str, u32); 7] = [
    ("FS base", 0xc000_0100),
    ("GS base", 0xc000_0101),
    ("KERNEL_GS_BASE", 0xc000_0102),
    ("LSTAR", 0xc000_0082),
    ("CSTAR", 0xc000_0083),
    ("SYSENTER_ESP", 0x175),
    ("SYSENTER_EIP", 0x176),
];
/// MSRs that hold 32 bits.
const WORDS: [(&str, u32); 4] = [
    ("STAR", 0xc000_0081),
    ("SFMASK", 0xc000_0084),
    ("SYSENTER_CS", SYSENTER_CS),
    ("TSC_AUX", 0xc000_0103),
];
const PAT: u32 = 0x277;
const SYSENTER_CS: u32 = 0x174;
/// Registers at most.
const MAX: usize = 96;

/// An XSAVE area: x87, SSE and AVX end at byte 832 (Intel SDM vol. 1, 13.4).
#[repr(C, align(64))]
struct Area(UnsafeCell<[u64; 128]>);
// SAFETY: touched by the main flow only.
unsafe impl Sync for Area {}
static AREA: Area = Area(UnsafeCell::new([0; 128]));

/// First word and name of each kind of register in it: ST0 to 7 (one word of each), XMM0 to 15, the upper halves of YMM0 to 15.
const PLACES: [(&str, usize, usize, usize); 3] =
    [("ST", 4, 8, 2), ("XMM", 20, 32, 1), ("YMM", 72, 32, 1)];

fn area(index: usize) -> u64 {
    // SAFETY: the main flow alone uses it.
    unsafe { (*AREA.0.get()).get(index).copied().unwrap_or(0) }
}

fn set_area(index: usize, value: u64) {
    // SAFETY: as above.
    if let Some(word) = unsafe { (*AREA.0.get()).get_mut(index) } {
        *word = value;
    }
}

/// XSAVE or XRSTOR of x87, SSE and AVX.
fn exchange(save: bool) {
    let at = AREA.0.get();
    // SAFETY: `Secrets::new` has switched XSAVE on; this program is soft-float, so that the registers are nobody's.
    unsafe {
        if save {
            asm!("xsave64 [{}]", in(reg) at, in("eax") 7, in("edx") 0, options(nostack));
        } else {
            asm!("xrstor64 [{}]", in(reg) at, in("eax") 7, in("edx") 0, options(nostack));
        }
    }
}

fn debug(n: usize) -> u64 {
    let value;
    // SAFETY: reads.
    unsafe {
        match n {
            0 => asm!("mov {}, dr0", out(reg) value, options(nomem, nostack)),
            1 => asm!("mov {}, dr1", out(reg) value, options(nomem, nostack)),
            2 => asm!("mov {}, dr2", out(reg) value, options(nomem, nostack)),
            _ => asm!("mov {}, dr3", out(reg) value, options(nomem, nostack)),
        }
    }
    value
}

fn set_debug(n: usize, value: u64) {
    // SAFETY: DR7 enables none of them.
    unsafe {
        match n {
            0 => asm!("mov dr0, {}", in(reg) value, options(nomem, nostack)),
            1 => asm!("mov dr1, {}", in(reg) value, options(nomem, nostack)),
            2 => asm!("mov dr2, {}", in(reg) value, options(nomem, nostack)),
            _ => asm!("mov dr3, {}", in(reg) value, options(nomem, nostack)),
        }
    }
}

/// A register that was read.
#[derive(Clone, Copy, Default)]
struct Seen {
    name: &'static str,
    number: usize,
    value: u64,
    /// What was planted there.
    planted: u64,
}

/// All registers.
pub struct Secrets {
    key: u8,
    avx: bool,
    pkru: bool,
    seen: [Seen; MAX],
    count: usize,
    /// Words of another's that were seen.
    pub leaks: u64,
    /// Own words that were not there any more.
    pub lost: u64,
}

impl Secrets {
    /// Switches on what there is; writes nothing else.
    pub fn new(key: u8) -> Self {
        let avx = cpu::cpuid(1, 0).ecx & 1 << 26 != 0;
        if avx {
            // SAFETY: CPUID says that OSXSAVE exists; OSFXSR and OSXMMEXCPT always do.
            unsafe { cpu::set_cr4(cpu::cr4() | 1 << 18 | 3 << 9) };
            let mut r = Registers {
                rax: u64::from(cpu::cpuid(0xd, 0).eax) & 7,
                ..Registers::default()
            };
            // XSETBV.
            let _ = exec::run(&[0x0f, 0x01, 0xd1], &mut r);
        }
        // CR4.PKE: hidden or not, if the processor takes it, it has PKRU.
        let mut r = Registers {
            rax: cpu::cr4() | 1 << 22,
            ..Registers::default()
        };
        let pkru = exec::run(&[0x0f, 0x22, 0xe0], &mut r).is_ok();
        Self {
            key,
            avx,
            pkru,
            seen: [Seen::default(); MAX],
            count: 0,
            leaks: 0,
            lost: 0,
        }
    }

    /// The word for register `n`: canonical as an address, and known by its lower half alone.
    fn word(&self, n: usize) -> u64 {
        0x5ec2_e700_0000 | u64::from(self.key) << 16 | n as u64
    }

    /// Whose word it is, if anybody's.
    fn owner(value: u64) -> Option<u8> {
        (value & 0xff00_ff00 == 0xe700_0000 && value & 0xff0000 != 0).then_some((value >> 16) as u8)
    }

    fn pat(&self) -> u64 {
        // Eight of the types that there are (Intel SDM vol. 3, 12.12.2), by the bits of the key; the first six as at reset.
        let types = [0u64, 1, 4, 5, 6, 7];
        let at = |n: u32| types[usize::from(self.key >> n) % types.len()];
        0x0000_0406_0007_0406 | at(0) << 56 | at(3) << 48
    }

    fn note(&mut self, name: &'static str, number: usize, value: u64, planted: u64) {
        let seen = Seen {
            name,
            number,
            value,
            planted,
        };
        if let Some(to) = self.seen.get_mut(self.count) {
            *to = seen;
            self.count += 1;
        }
    }

    /// Reads all of them.
    fn read(&mut self) {
        self.count = 0;
        let mut n = 0;
        let mut next = || {
            n += 1;
            n
        };
        for (name, msr) in ADDRESSES {
            let (value, planted) = (exec::rdmsr(msr), self.word(next()));
            self.note(name, 0, value.unwrap_or(planted), planted);
        }
        for (name, msr) in WORDS {
            let value = exec::rdmsr(msr);
            let mut planted = self.word(next()) & 0xffff_ffff;
            if msr == SYSENTER_CS {
                // A selector: some processors keep no more than 16 bits.
                planted = u64::from(self.key) << 8 | 0xe4;
            }
            self.note(name, 0, value.unwrap_or(planted), planted);
        }
        let planted = self.pat();
        self.note("PAT", 0, exec::rdmsr(PAT).unwrap_or(planted), planted);
        for number in 0..4 {
            let planted = self.word(next());
            self.note("DR", number, debug(number), planted);
        }
        if self.pkru {
            let mut r = Registers::default();
            // RDPKRU.
            let done = exec::run(&[0x0f, 0x01, 0xee], &mut r);
            let planted = self.word(next()) & 0xffff_ffff;
            self.note(
                "PKRU",
                0,
                if done.is_ok() { r.rax } else { planted },
                planted,
            );
        }
        if self.avx {
            exchange(true);
            for (name, first, count, step) in PLACES {
                for number in 0..count {
                    let planted = self.word(next());
                    self.note(
                        name,
                        number / (3 - step),
                        area(first + number * step),
                        planted,
                    );
                }
            }
        }
    }

    /// Plants them all.
    pub fn plant(&mut self) {
        self.read();
        let words = self.seen;
        for (seen, (_, msr)) in words.iter().zip(ADDRESSES.iter().chain(&WORDS)) {
            let _ = exec::wrmsr(*msr, seen.planted);
        }
        let _ = exec::wrmsr(PAT, self.pat());
        let mut at = ADDRESSES.len() + WORDS.len() + 1;
        let planted = |at: usize| words.get(at).map_or(0, |s| s.planted);
        for number in 0..4 {
            set_debug(number, planted(at));
            at += 1;
        }
        if self.pkru {
            let mut r = Registers {
                rax: planted(at),
                ..Registers::default()
            };
            // WRPKRU.
            let _ = exec::run(&[0x0f, 0x01, 0xef], &mut r);
            at += 1;
        }
        if self.avx {
            for (_, first, count, step) in PLACES {
                for number in 0..count {
                    set_area(first + number * step, planted(at));
                    at += 1;
                }
            }
            // All components are in use.
            set_area(64, 7);
            set_area(65, 0);
            exchange(false);
        }
    }

    /// Looks for words of others; answers how many registers there are.
    pub fn look(&mut self) -> usize {
        self.read();
        for s in self.seen.iter().take(self.count) {
            if Self::owner(s.value).is_some_and(|o| o != self.key) {
                self.leaks += 1;
                say!(
                    "LEAK key {}: {} {} has {:#x}",
                    self.key,
                    s.name,
                    s.number,
                    s.value
                );
            }
        }
        self.count
    }

    /// How many registers have this guest's own words.
    pub fn own(&mut self) -> usize {
        self.read();
        let all = self.seen.iter().take(self.count);
        all.filter(|s| Self::owner(s.value) == Some(self.key))
            .count()
    }

    /// Whether all that was planted is still there.
    pub fn kept(&mut self) {
        for s in self.seen.iter().take(self.count) {
            if s.value != s.planted {
                self.lost += 1;
                if self.lost <= 20 {
                    say!(
                        "LOST key {}: {} {} has {:#x}, not {:#x}",
                        self.key,
                        s.name,
                        s.number,
                        s.value,
                        s.planted
                    );
                }
            }
        }
    }
}
