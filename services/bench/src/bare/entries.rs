//! A guest whose every register is made invalid in turn: the exit comes back, and the next entry is as good as the first. And entries
//! that the processor refuses: they come back as an exit, and leave the host as it was.

use bench::probe::Failure;
use runtime::abi::layout::{self, slot};
use runtime::abi::rights::{EXEC, READ, WRITE};
use runtime::abi::vm::{Exit, ExitWord, Groups, VcpuState};
use runtime::abi::{Status, Syscall};
use runtime::object::{GuestSpace, Memory, Pool, Space, Vcpu};
use runtime::{StartInfo, sys, time};

use core::mem::{offset_of, size_of};

/// Where the state page is.
const AT: u64 = layout::SHARED + 0x10_0000;
/// Where a processor begins after reset: nothing is mapped there.
const RESET: u64 = 0xffff_fff0;
const PAGE: u64 = 4096;
/// Words of the state page.
const WORDS: usize = size_of::<VcpuState>() / 8;
/// What stands in each word in turn.
const VALUES: [u64; 5] = [
    u64::MAX,
    1 << 63,
    0xffff_ffff,
    0x8000_0000_8000_0000,
    0x5555_5555_5555_5555,
];
/// Events that do not exist: types 1 and 5 to 7, an NMI that is no NMI, exceptions 2 and above 31, an error code that none has.
const EVENTS: [u64; 7] = [
    1 << 31 | 1 << 8 | 0x20,
    1 << 31 | 5 << 8 | 0x20,
    1 << 31 | 7 << 8 | 0x20,
    1 << 31 | 3 << 8 | 2,
    1 << 31 | 3 << 8 | 0xff,
    1 << 31 | 2 << 8 | 0xff,
    u64::MAX ^ 1 << 8,
];
/// Label of the `Log` operation that spoils a vCPU's control block, in a kernel that has it (microkernel, `checker::host::SPOIL`), and
/// the ways of it: no address space identifier, no VMRUN intercept, all as before.
const SPOIL: u64 = 0x7370_6f69_6c21;
const NO_ASID: u64 = 1;
const NO_INTERCEPT: u64 = 2;
const REPAIRED: u64 = 3;
/// What an emulator dies of: QEMU 7.2's host has no paging at the exit after EFER.LME without CR4.PAE; Bochs 2.7 stops with a panic at
/// RFLAGS.VM, since it looks at the host's mode for that.
const fn deadly(bochs: bool) -> (usize, u64) {
    if bochs {
        (offset_of!(VcpuState, rflags) / 8, 1 << 17)
    } else {
        (offset_of!(VcpuState, efer) / 8, 1 << 8)
    }
}

struct Guest {
    space: GuestSpace,
    vcpu: Vcpu,
    good: [u64; WORDS],
}

impl Guest {
    fn word(n: usize) -> *mut u64 {
        core::ptr::with_exposed_provenance_mut::<u64>(AT as usize + n * 8)
    }

    /// Runs it with this state, post and event for at most `limit` microseconds; answers the exit and its first word.
    fn run(
        &self,
        state: &[u64; WORDS],
        post: u64,
        event: u64,
        limit: u64,
    ) -> Result<(ExitWord, u64), Status> {
        for (n, value) in state.iter().enumerate() {
            // SAFETY: the state page, which the kernel mapped there; no reference into it exists.
            unsafe { Self::word(n).write_volatile(*value) };
        }
        self.go_on(Groups::ALL, post, event, limit)
    }

    /// The same with these groups of the state page.
    fn go_on(
        &self,
        groups: u64,
        post: u64,
        event: u64,
        limit: u64,
    ) -> Result<(ExitWord, u64), Status> {
        let words = [post, event, 0, 0];
        // SAFETY: it changes nothing but the state page.
        let r = unsafe {
            sys::syscall(
                Syscall::Run,
                u64::from(self.vcpu.0),
                groups,
                words,
                time::after(limit),
            )
        };
        if r.status == Status::Ok as u64 {
            Ok((ExitWord(r.tag), r.words[0]))
        } else {
            Err(Status::from_raw(r.status))
        }
    }

    /// A word of the state page.
    fn read(&self, n: usize) -> u64 {
        // SAFETY: as above; `n` is below `WORDS`.
        unsafe { Self::word(n).read_volatile() }
    }

    /// The good state still leads where it did.
    fn sound(&self) -> bool {
        // A host that stops the emulator for a while is no reason to fail.
        let ran = self.run(&self.good, 0, 0, 5_000_000);
        ran.is_ok_and(|(word, address)| word.exit() == Exit::NestedFault && address == RESET)
    }
}

/// Tries them all.
pub fn all(start: &StartInfo) -> Result<(), Failure> {
    let guest = make(start).map_err(|_| Failure::NotTried("a vCPU cannot be made"))?;
    each(&guest, false, || true)
}

/// Spoils the vCPU in slot `vcpu`, if any; what the host's state is.
fn spoil(vcpu: u32, how: u64) -> Result<[u64; 4], Status> {
    // SAFETY: it changes no mapping.
    unsafe { sys::invoke(slot::LOG, SPOIL, [u64::from(vcpu), how, 0, 0]) }
}

/// Entries that the processor refuses, and all that [`all`] tries: whether each came back, with nothing of the host's in the state
/// page, and the host's own state was as before. `bochs`: the machine is that emulator's.
pub fn refused(start: &StartInfo, bochs: bool) -> bool {
    let guest = match make(start) {
        Ok(guest) => guest,
        Err(status) => {
            defmt::error!("ENTRIES a vCPU cannot be made: {=u64}", status as u64);
            return false;
        }
    };
    let Ok(host) = spoil(0, 0) else {
        defmt::error!("ENTRIES the kernel has no invariant checker");
        return false;
    };
    let as_before = || spoil(0, 0) == Ok(host);
    let mut failed = 0u32;
    for round in 0..3u32 {
        for (how, name) in [(NO_ASID, "no ASID"), (NO_INTERCEPT, "no VMRUN intercept")] {
            let good = guest.sound() && spoil(guest.vcpu.0, how) == Ok(host);
            // With control registers from the page it would be given another ASID.
            let ran = guest.go_on(0, 0, 0, 5_000_000);
            let exit = ran.map(|(word, _)| word.exit() as u64);
            // The vCPU is as after a reset, which is what `good` is.
            let page = (16..WORDS).all(|n| guest.read(n) == guest.good[n]);
            let intact = as_before();
            let repaired = spoil(guest.vcpu.0, REPAIRED) == Ok(host) && guest.sound();
            let right = exit == Ok(Exit::EntryFailed as u64);
            if !(good && right && page && intact && repaired) {
                failed += 1;
                defmt::error!(
                    "ENTRIES {=str}, round {=u32}: before {=bool}, exit {=u64}, state page {=bool}, host {=bool}, afterwards {=bool}",
                    name,
                    round,
                    good,
                    exit.unwrap_or(u64::MAX),
                    page,
                    intact,
                    repaired
                );
            }
        }
    }
    if !bases() {
        failed += 1;
        defmt::error!("ENTRIES FS or GS base stays for the next thread");
    }
    // Bochs 2.7 has an interrupt wait for such a guest's IF with SVM, too, which has no timer of its own.
    if (!bochs || vmx()) && stopped(start, &guest, bochs) != Ok(true) {
        failed += 1;
        defmt::error!("ENTRIES a guest that takes no interrupts is not stopped in time");
    }
    let invalid = each(&guest, bochs, as_before);
    if let Err(why) = invalid {
        let mut text = runtime::text::Text::<160>::new();
        // What does not fit is cut off.
        let _ = core::fmt::Write::write_fmt(&mut text, format_args!("{why}"));
        defmt::error!("ENTRIES {=str}", text.as_str());
        failed += 1;
    }
    defmt::info!(
        "ENTRIES 6 refused by the processor, {=u32} failures",
        failed
    );
    failed == 0
}

/// Whether a guest that runs for ever, with interrupts off from its first instruction on and without an exit, is left when its time is
/// over.
fn stopped(start: &StartInfo, guest: &Guest, bochs: bool) -> Result<bool, Status> {
    /// Where the processor begins: JMP to itself.
    const CODE: u64 = RESET & !(PAGE - 1);
    const LOOP: u16 = 0xfeeb;
    const TIME: u64 = 1_000;
    let ram = Memory(start.cap("ram").map_err(|_| Status::InvalidCap)?);
    Space(slot::SPACE).map(AT + PAGE, ram, READ | WRITE, 0, PAGE)?;
    let code = core::ptr::with_exposed_provenance_mut::<u16>((AT + PAGE + RESET - CODE) as usize);
    // SAFETY: a page that has just been mapped.
    unsafe { code.write_volatile(LOOP) };
    guest.space.map(CODE, ram, READ | EXEC, 0, PAGE)?;
    let from = time::now();
    let (word, _) = guest.run(&guest.good, 0, 0, TIME)?;
    let took = time::now() - from;
    guest.space.unmap(CODE)?;
    // Where time counts instructions, nobody stops the emulator meanwhile.
    let late = if bochs { TIME / 10 } else { 5_000_000 };
    let in_time = time::cycles(TIME)..time::cycles(TIME + late);
    Ok(word.exit() == Exit::Timeout && in_time.contains(&took) && guest.sound())
}

/// Whether this is a processor of Intel's ("Genu").
fn vmx() -> bool {
    core::arch::x86_64::__cpuid(0).ebx == 0x756e_6547
}

/// Whether FS and GS bases that user level sets, which with VMX it can, are gone after a system call, and after an interrupt.
fn bases() -> bool {
    if !vmx() {
        return true;
    }
    let set = || {
        // SAFETY: this server uses neither.
        unsafe { core::arch::asm!("wrfsbase {0}", "wrgsbase {0}", in(reg) 0x1234_u64) };
    };
    let kept = || {
        let (fs, gs): (u64, u64);
        // SAFETY: reads only.
        unsafe { core::arch::asm!("rdfsbase {}", "rdgsbase {}", out(reg) fs, out(reg) gs) };
        [fs, gs]
    };
    set();
    let before = kept();
    let called = spoil(0, 0).is_ok();
    let after = kept();
    set();
    // This thread's turn ends some time.
    let until = time::after(5_000_000);
    while kept() == before && time::now() < until {}
    called && [before, after, kept()] == [[0x1234; 2], [0; 2], [0; 2]]
}

/// Each register invalid, in each way; `as_before`: whether the host's state is.
fn each(guest: &Guest, bochs: bool, as_before: impl Fn() -> bool) -> Result<(), Failure> {
    if !guest.sound() {
        return Err(Failure::NotTried("the vCPU does not run at all"));
    }
    let mut exits = [0usize; Exit::COUNT];
    let mut one = |guest: &Guest, what: usize, value: u64, state: &_, post, event| {
        let ran = guest.run(state, post, event, 2_000);
        if let Ok((word, _)) = ran
            && let Some(n) = exits.get_mut(word.exit() as usize)
        {
            *n += 1;
        }
        if ran.is_ok() && as_before() && guest.sound() {
            return Ok(());
        }
        defmt::error!(
            "after {=u64:#x} in word {=usize} of the state page the guest is not as before",
            value,
            what
        );
        Err(Failure::NotTried("the vCPU is spoilt"))
    };
    for n in 16..WORDS {
        for value in VALUES {
            let mut state = guest.good;
            state[n] = value;
            let (word, bit) = deadly(bochs);
            if n == word {
                state[n] &= !bit;
            }
            one(guest, n, value, &state, 0, 0)?;
        }
    }
    for event in EVENTS {
        one(guest, WORDS, event, &guest.good, 0, event)?;
    }
    for post in VALUES {
        one(guest, WORDS + 1, post, &guest.good, post, 0)?;
    }
    let refused = exits.get(Exit::EntryFailed as usize);
    defmt::info!(
        "INVALID {=usize} refused of {=usize}, exits by number: {=[?]}",
        refused.copied().unwrap_or(0),
        exits.iter().sum::<usize>(),
        exits
    );
    Ok(())
}

fn make(start: &StartInfo) -> Result<Guest, Status> {
    let pool = Pool(slot::POOL);
    // Nobody fills the last slots.
    let space = pool.create_guest_space(start.slots.saturating_sub(2))?;
    let dest = start.slots.saturating_sub(3);
    let vcpu = pool.create_vcpu(dest, space, Space(slot::SPACE), AT)?;
    vcpu.on_exit(None, Groups::ALL)?;
    let mut guest = Guest {
        space,
        vcpu,
        good: [0; WORDS],
    };
    // The state after reset is had from a first run, which changes nothing: no group is taken from the page.
    // SAFETY: it changes nothing but the state page.
    let r = unsafe {
        sys::syscall(
            Syscall::Run,
            u64::from(vcpu.0),
            0,
            [0; 4],
            time::after(5_000_000),
        )
    };
    if r.status != Status::Ok as u64 {
        return Err(Status::from_raw(r.status));
    }
    for (n, word) in guest.good.iter_mut().enumerate() {
        // SAFETY: the state page.
        *word = unsafe { Guest::word(n).read_volatile() };
    }
    // After reset CS is a code segment (APM vol. 2, 14.1.3), which Bochs makes data of in real mode.
    guest.good[offset_of!(VcpuState, cs) / 8] |= 8 << 16;
    Ok(guest)
}
