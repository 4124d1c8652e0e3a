//! Machine checks and NMIs, each on a stack of its own (AMD APM vol. 2, 8.2 and 9; Intel SDM vol. 3, 15).
//!
//! At user level they are exceptions as any. In the kernel they come anywhere: before it has its GS base, or in the middle of its data.
//! So their handlers touch nothing but the `Events` of their processor, which they know by the stack that they are on, and send the
//! processor an interrupt, which reports at the next moment at which it takes any: no other path looks for such events.

/// MCG_STATUS: the interrupted program can be resumed.
const RIPV: u64 = 1;
/// MCi_STATUS bits.
#[cfg_attr(
    not(target_os = "none"),
    allow(dead_code, reason = "on the host nobody reads banks")
)]
mod status {
    pub const VALID: u64 = 1 << 63;
    /// An earlier error was overwritten.
    pub const OVERFLOW: u64 = 1 << 62;
    pub const UNCORRECTED: u64 = 1 << 61;
    pub const ENABLED: u64 = 1 << 60;
    pub const MISC_VALID: u64 = 1 << 59;
    pub const ADDRESS_VALID: u64 = 1 << 58;
    /// The state of the processor is corrupt.
    pub const CORRUPT: u64 = 1 << 57;
}

/// What a machine check means for what it interrupted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nothing: hardware corrected it.
    GoOn,
    /// The interrupted thread or guest used bad data and must not go on as if nothing had been; all others may.
    Harmed,
    /// The machine can't go on.
    Fatal,
}

/// Judges a machine check by MCG_STATUS and the status of all banks; `user`: it interrupted user level or a guest.
pub fn judge(global: u64, banks: impl Iterator<Item = u64>, user: bool) -> Verdict {
    let mut verdict = if global & RIPV == 0 {
        Verdict::Fatal
    } else {
        Verdict::GoOn
    };
    for s in banks.filter(|s| s & status::VALID != 0) {
        // An uncorrected error whose reporting is off was no reason for this one.
        if s & status::UNCORRECTED == 0 || s & status::ENABLED == 0 {
            continue;
        }
        // What was overwritten may have been anything.
        if s & (status::CORRUPT | status::OVERFLOW) != 0 || !user {
            return Verdict::Fatal;
        }
        if verdict == Verdict::GoOn {
            verdict = Verdict::Harmed;
        }
    }
    verdict
}

#[cfg(target_os = "none")]
pub use real::*;

#[cfg(target_os = "none")]
mod real {
    use super::{Verdict, judge, status};
    use crate::arch::{Cpu, MAX_CPUS, apic, console, cpuid, descriptors, port_in};
    use crate::mem::Global;
    use core::cell::Cell;
    use core::sync::atomic::{AtomicU32, Ordering};
    use x86_64::registers::control::{Cr4, Cr4Flags};
    use x86_64::registers::model_specific::Msr;

    const MCG_CAP: u32 = 0x179;
    const MCG_STATUS: u32 = 0x17a;
    const MCG_CTL: u32 = 0x17b;
    /// MCi_CTL of bank 0; then STATUS, ADDR, MISC; the next bank follows.
    const MC0_CTL: u32 = 0x400;

    /// What has come to one processor.
    struct Events {
        /// NMIs, machine checks.
        counts: [AtomicU32; 2],
        /// Of them, how many have been reported.
        reported: Cell<[u32; 2]>,
        /// The bank that the last machine check was about: number, status, address, miscellaneous; and whether it did harm.
        bank: Cell<([u64; 4], bool)>,
    }
    static EVENTS: Global<[Events; MAX_CPUS]> = Global(
        [const {
            Events {
                counts: [const { AtomicU32::new(0) }; 2],
                reported: Cell::new([0; 2]),
                bank: Cell::new(([0; 4], false)),
            }
        }; MAX_CPUS],
    );

    fn read(msr: u32) -> u64 {
        // SAFETY: one of the machine-check MSRs, which CPUID and MCG_CAP show.
        unsafe { Msr::new(msr).read() }
    }
    fn write(msr: u32, value: u64) {
        // SAFETY: as for `read`; the values are what the architecture wants written.
        unsafe { Msr::new(msr).write(value) };
    }
    /// First MSR of each bank; this way of addressing reaches 32.
    fn banks() -> impl Iterator<Item = u32> {
        (0..(read(MCG_CAP) as u32 & 0xff).min(32)).map(|b| MC0_CTL + 4 * b)
    }

    /// Has this processor report machine checks; what it found before is logged and cleared.
    pub fn init() {
        // Both the exception and the banks.
        if cpuid(1).edx & (1 << 7 | 1 << 14) != 1 << 7 | 1 << 14 {
            return;
        }
        if read(MCG_CAP) & 1 << 8 != 0 {
            write(MCG_CTL, u64::MAX);
        }
        for bank in banks() {
            let status = read(bank + 1);
            if status & status::VALID != 0 {
                defmt::warn!(
                    "hardware error before this boot: bank {=u32}, status {=u64:#x}",
                    (bank - MC0_CTL) / 4,
                    status
                );
            }
            write(bank + 1, 0);
            write(bank, u64::MAX);
        }
        // SAFETY: the handler is in the IDT.
        unsafe { Cr4::update(|c| c.insert(Cr4Flags::MACHINE_CHECK_EXCEPTION)) };
    }

    /// Reads and clears the banks. `user`: it interrupted user level or a guest; if that was harmed, answers the address of the bad
    /// data.
    fn machine_check(e: &Events, number: usize, user: bool) -> Option<u64> {
        let verdict = judge(read(MCG_STATUS), banks().map(|b| read(b + 1)), user);
        let mut worst = [u64::MAX, 0, 0, 0];
        for bank in banks() {
            let status = read(bank + 1);
            if status & status::VALID == 0 {
                continue;
            }
            if status & status::UNCORRECTED >= worst[1] & status::UNCORRECTED {
                let more = |bit, msr| if status & bit != 0 { read(msr) } else { 0 };
                let address = more(status::ADDRESS_VALID, bank + 2);
                let misc = more(status::MISC_VALID, bank + 3);
                worst = [u64::from((bank - MC0_CTL) / 4), status, address, misc];
            }
            write(bank + 1, 0);
        }
        let [bank, status, address, misc] = worst;
        if verdict == Verdict::Fatal {
            console::fatal(
                "machine check on processor #: bank #, status #, address #, misc #. The hardware is faulty; the system cannot go on.",
                &[number as u64, bank, status, address, misc],
            );
        }
        let harmed = verdict == Verdict::Harmed;
        e.bank.set((worst, harmed));
        // From here on the next one can come; before that it would have been a shutdown.
        write(MCG_STATUS, 0);
        harmed.then_some(address)
    }

    /// An NMI or a machine check on processor `number`; answers as [`machine_check`].
    fn come(number: usize, vector: u64, user: bool) -> Option<u64> {
        let e = &EVENTS[number % MAX_CPUS];
        let (kind, harmed) = match vector {
            2 => (0, None),
            _ => (1, machine_check(e, number, user)),
        };
        e.counts[kind].fetch_add(1, Ordering::Relaxed);
        harmed
    }

    /// One of these came in the kernel, anywhere; `frame`: error code, rip, cs, rflags, rsp, ss. Answers whether it interrupted the
    /// handler of an NMI, to which an IRET, which lets the next NMI in, must not lead back: what POPF and RETF want is on its stack then.
    #[cold]
    pub fn in_kernel(vector: u64, frame: &mut [u64; 6]) -> bool {
        come(descriptors::owner(frame.as_ptr() as u64), vector, false);
        apic::call_self();
        let [_, rip, cs, flags, rsp, _] = frame;
        let nested = descriptors::on_nmi_stack(*rsp);
        if nested {
            *rsp -= 24;
            // SAFETY: room below the stack pointer of the interrupted handler, which uses none there.
            unsafe { (*rsp as *mut [u64; 3]).write([*flags, *rip, *cs]) };
        }
        nested
    }

    /// An NMI or a machine check came at user level, or in a guest, and is logged. If what it interrupted must not go on, answers the
    /// address of the bad data.
    #[cold]
    pub fn outside(cpu: &Cpu, vector: u64) -> Option<u64> {
        let harmed = come(cpu.number as usize, vector, true);
        report(cpu);
        harmed
    }

    /// A guest was left for a machine check (the processor delivers none then), which is logged; whether the guest may go on: the VMM
    /// decides what becomes of it otherwise.
    pub fn guest_machine_check() -> bool {
        outside(Cpu::current(), 18).is_none()
    }

    /// Logs what has come since the last time.
    #[inline(always)]
    pub fn report(cpu: &Cpu) {
        let e = &EVENTS[cpu.number as usize % MAX_CPUS];
        let now = e.counts.each_ref().map(|n| n.load(Ordering::Relaxed));
        if now != e.reported.get() {
            log(cpu, e, now);
        }
    }

    #[cold]
    fn log(cpu: &Cpu, e: &Events, now: [u32; 2]) {
        let [nmis, checks] = e.reported.replace(now);
        if now[0] != nmis {
            // Bits 6 and 7: I/O check, and parity or SERR (the chipset's NMI status).
            defmt::warn!(
                "NMI on processor {=u32}: {=u32} so far, port 0x61 {=u64:#x}",
                cpu.number,
                now[0],
                port_in(0x61, 1)
            );
        }
        if now[1] != checks {
            let ([bank, status, address, misc], harmed) = e.bank.get();
            defmt::error!(
                "machine check on processor {=u32}: bank {=u64}, status {=u64:#x}, address {=u64:#x}, misc {=u64:#x}; a thread harmed: {=bool}",
                cpu.number,
                bank,
                status,
                address,
                misc,
                harmed
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use status::*;

    const ERROR: u64 = VALID | UNCORRECTED | ENABLED;

    #[test]
    fn only_what_the_architecture_lets_go_on_goes_on() {
        for (global, banks, user, verdict) in [
            // Nothing wrong but corrected errors, wherever.
            (
                RIPV,
                [0, VALID | ADDRESS_VALID | MISC_VALID],
                false,
                Verdict::GoOn,
            ),
            (RIPV, [0, VALID | OVERFLOW], true, Verdict::GoOn),
            // No return address.
            (0, [0, VALID], true, Verdict::Fatal),
            (0, [0, 0], true, Verdict::Fatal),
            (RIPV, [0, ERROR], true, Verdict::Harmed),
            (RIPV, [0, ERROR], false, Verdict::Fatal),
            (RIPV, [ERROR, ERROR | CORRUPT], true, Verdict::Fatal),
            (RIPV, [ERROR | OVERFLOW, 0], true, Verdict::Fatal),
            // Not reported, or not there.
            (
                RIPV,
                [VALID | UNCORRECTED, UNCORRECTED | ENABLED],
                false,
                Verdict::GoOn,
            ),
        ] {
            assert_eq!(judge(global, banks.into_iter(), user), verdict);
        }
    }
}
