//! Nothing stale: what a VMM changed between two runs, or beside one, holds from then on.
//!
//! A processor keeps translations by address space identifier, and may keep parts of a guest's control block: a kernel that forgets to
//! tell it shows here a guest that reads, writes or executes what is no longer there, or that leaves for what is no longer a reason.

use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

use super::alloc::vec::Vec;
use runtime::abi::rights::{EXEC, READ, WRITE};
use runtime::abi::vm::{Exit, ExitWord, Groups, Post, VcpuState, gpr};
use runtime::abi::{NEVER, Status, Syscall, layout};
use runtime::{now, sys, time};

use super::guests::{self, Guest};
use super::lab::{LOAD, Lab, READ_WRITE, Result, SPACE, wait_until};

/// Their state pages come behind those of the other guests.
const FIRST_PAGE: u64 = 32;
/// Rounds of remapping. With SVM each of them takes an identifier, too.
const REMAPPED: u64 = 2000;
/// Guests beside the one whose page is remapped.
const OTHERS: u64 = 4;
/// Guest-physical page of what is read and written.
const DATA: u64 = 0x1000;
/// MOV EAX, [DATA]; HLT.
const LOAD_WORD: &[u8] = &[0x66, 0xa1, 0x00, 0x10, 0xf4];
/// MOV [DATA], EAX; HLT.
const STORE_WORD: &[u8] = &[0x66, 0xa3, 0x00, 0x10, 0xf4];
/// INC DWORD PTR [DATA]; JMP back.
const COUNT: &[u8] = &[0x66, 0xff, 0x06, 0x00, 0x10, 0xeb, 0xf9];
/// STI; NOP; HLT, and a handler: MOV AL, 0x55; HLT.
const OPEN: &[u8] = &[0xfb, 0x90, 0xf4, 0x90, 0xb0, 0x55, 0xf4];
/// IP of their beginning, and of the HLT and the handler in [`OPEN`].
const BEGIN: u64 = 0xfff0;
const OPEN_HALT: u64 = 0xfff2;
const HANDLER: u64 = 0xfff4;
/// What it leaves in AL.
const HANDLED: u64 = 0x55;
/// The vector of the interrupt, and where the code lies for a CS that the vector table has loaded.
const VECTOR: u8 = 0x20;
const CODE: u64 = 0xff000;
/// Page of the stack that grows down from 64 KiB: room for 600 interrupts.
const STACK: u64 = 0xf000;
/// Where the frames begin in the RAM, how many there are, and where this server sees them.
const OFFSET: u64 = 6 << 20;
const FRAMES: u64 = 8;
const WINDOW: u64 = layout::SHARED + 0x4000_0000;
/// How long a guest may run that should leave at once (a host that stops the emulator for a while is no reason to fail), and how long one
/// is watched that should not write, in microseconds.
const LIMIT: u64 = 5_000_000;
const WATCHED: u64 = 300;
/// CPUID 8000_0001, ECX: SVM.
const SVM: u32 = 1 << 2;
/// RFLAGS.IF, and the bit that is always 1.
const IF: u64 = 1 << 9 | 2;

/// Exits of the guest on the other processor that nobody expected: the last one's number and 1 more.
static STRANGE: AtomicU64 = AtomicU64::new(0);

/// The first word of a frame.
fn frame(n: u64) -> *mut u64 {
    core::ptr::with_exposed_provenance_mut::<u64>((WINDOW + n * 4096) as usize)
}

fn peek(n: u64) -> u64 {
    // SAFETY: mapped by `all`; no reference points there.
    unsafe { frame(n).read_volatile() }
}

fn poke(n: u64, at: usize, value: u64) {
    // SAFETY: as for `peek`; `at` stays inside.
    unsafe { frame(n).wrapping_add(at % 512).write_volatile(value) };
}

fn state(g: &Guest, offset: usize) -> *mut u64 {
    guests::word(g.page, offset / 8)
}

fn rax(g: &Guest) -> *mut u64 {
    state(g, offset_of!(VcpuState, gpr) + 8 * gpr::RAX)
}

/// Has it begin at `rip` with these flags.
fn begin(g: &Guest, rip: u64, flags: u64) {
    for (offset, value) in [
        (offset_of!(VcpuState, rip), rip),
        (offset_of!(VcpuState, rflags), flags),
        (offset_of!(VcpuState, shadow), 0),
    ] {
        // SAFETY: the state page; the vCPU does not run.
        unsafe { state(g, offset).write_volatile(value) };
    }
}

/// Runs it from `rip` on, with this in RAX; the exit, its first information, and RAX.
fn run(g: &Guest, rip: u64, flags: u64, a: u64, post: Post) -> Result<(ExitWord, u64, u64)> {
    begin(g, rip, flags);
    // SAFETY: the state page; the vCPU does not run.
    unsafe { rax(g).write_volatile(a) };
    let (vcpu, words) = (u64::from(g.vcpu.0), [post.0, 0, 0, 0]);
    // SAFETY: it changes nothing but the state page and the guest's memory, into which no reference exists.
    let r = unsafe { sys::syscall(Syscall::Run, vcpu, Groups::RIP, words, time::after(LIMIT)) };
    if r.status != Status::Ok as u64 {
        return Err(Status::from_raw(r.status));
    }
    // SAFETY: the state page; the vCPU runs no more.
    Ok((ExitWord(r.tag), r.words[0], unsafe {
        rax(g).read_volatile()
    }))
}

/// What was wrong, counted and logged.
#[derive(Default)]
struct Verdict(u64);

impl Verdict {
    fn check(&mut self, right: bool, what: &str, round: u64, found: u64) {
        if !right {
            self.0 += 1;
            defmt::error!("STALE {=str}, round {=u64}: {=u64:#x}", what, round, found);
        }
    }
}

fn guest(lab: &mut Lab, n: u64, code: &[u8]) -> Result<Guest> {
    Guest::new(lab, FIRST_PAGE + n, code)
}

/// One guest's page is another frame in each round, and each time gets it a new address space identifier; others keep theirs and their
/// pages through it all.
fn remapped(lab: &mut Lab, rounds: u64, verdict: &mut Verdict) -> Result<()> {
    let mut others = Vec::new();
    for n in 0..OTHERS {
        let g = guest(lab, n, LOAD_WORD)?;
        g.space.map(DATA, lab.ram, READ, OFFSET + n * 4096, 4096)?;
        others.push(g);
    }
    let g = guest(lab, OTHERS, LOAD_WORD)?;
    for round in 0..rounds {
        let n = OTHERS + round % (FRAMES - OTHERS);
        g.space.map(DATA, lab.ram, READ, OFFSET + n * 4096, 4096)?;
        let (word, _, a) = run(&g, BEGIN, 2, 0, Post::NONE)?;
        let read = word.exit() == Exit::Hlt && a == peek(n) as u32 as u64;
        verdict.check(read, "remapped", round, a);
        let n = round % OTHERS;
        if let Some(other) = others.get(n as usize) {
            let (word, _, a) = run(other, BEGIN, 2, 0, Post::NONE)?;
            let read = word.exit() == Exit::Hlt && a == peek(n) as u32 as u64;
            verdict.check(read, "kept", round, a);
        }
        g.space.unmap(DATA)?;
        if round % 8 == 0 {
            let (word, address, _) = run(&g, BEGIN, 2, 0, Post::NONE)?;
            let gone = word.exit() == Exit::NestedFault && address == DATA;
            verdict.check(gone, "unmapped", round, word.0);
        }
    }
    Ok(())
}

/// Two VMs whose vCPUs are new in each round: each takes an identifier, which may have been the other's once.
fn renewed(lab: &mut Lab, rounds: u64, verdict: &mut Verdict) -> Result<()> {
    let mut pair = Vec::new();
    for n in 0..2 {
        let g = guest(lab, OTHERS + 5 + n, LOAD_WORD)?;
        g.space.map(DATA, lab.ram, READ, OFFSET + n * 4096, 4096)?;
        pair.push(g);
    }
    // Of three: with an even number of identifiers each VM would get its own again.
    for (round, n) in (0..rounds).zip([0, 1, 1].into_iter().cycle()) {
        let Some(g) = pair.get(n) else {
            return Err(Status::OutOfRange);
        };
        g.renew()?;
        let (word, _, a) = run(g, BEGIN, 2, 0, Post::NONE)?;
        let read = word.exit() == Exit::Hlt && a == peek(n as u64) as u32 as u64;
        verdict.check(read, "renewed", round, a);
    }
    Ok(())
}

/// A page that is written, then only read, then written again, and one whose code is other code.
fn rights(lab: &mut Lab, rounds: u64, verdict: &mut Verdict) -> Result<()> {
    let g = guest(lab, OTHERS + 1, STORE_WORD)?;
    for round in 0..rounds {
        let writable = round % 2 == 0;
        let rights = if writable { READ | WRITE } else { READ };
        g.space.map(DATA, lab.ram, rights, OFFSET, 4096)?;
        let before = peek(0);
        let (word, address, _) = run(&g, BEGIN, 2, round + 1, Post::NONE)?;
        let wrote = word.exit() == Exit::Hlt && peek(0) as u32 as u64 == round + 1;
        let refused = word.exit() == Exit::NestedFault && address == DATA && peek(0) == before;
        verdict.check(
            if writable { wrote } else { refused },
            "rights",
            round,
            word.0,
        );
        g.space.unmap(DATA)?;
    }
    Ok(())
}

/// Accesses to one port: an exit, a doorbell, a doorbell for one value alone, and so on.
fn routes(lab: &mut Lab, rounds: u64, verdict: &mut Verdict) -> Result<()> {
    // MOV DX, 0x4000; OUT DX, AL; HLT.
    let g = guest(lab, OTHERS + 2, &[0xba, 0x00, 0x40, 0xee, 0xf4])?;
    let bell = lab.notification()?;
    for round in 0..rounds {
        let (kind, value) = (round % 3, round & 0xff);
        let only = (kind == 2).then_some(value ^ 1);
        if kind != 0 {
            g.space.doorbell(guests::PORT, 1, bell, only)?;
        }
        let (word, _, _) = run(&g, BEGIN, 2, value, Post::NONE)?;
        let rung = bell.wait(0).is_ok();
        let right = match kind {
            1 => word.exit() == Exit::Hlt && rung,
            _ => word.exit() == Exit::Port && !rung,
        };
        verdict.check(right, "routes", round, word.0);
        if kind != 0 {
            g.space.unroute(guests::PORT)?;
        }
    }
    Ok(())
}

/// An interrupt that waits until the guest takes any, one that is withdrawn before it does, and one that it takes.
fn windows(lab: &mut Lab, rounds: u64, verdict: &mut Verdict) -> Result<()> {
    let g = guest(lab, OTHERS + 3, OPEN)?;
    let (vectors, stack) = (0, 1);
    poke(vectors, usize::from(VECTOR) / 2, HANDLER | 0xf000 << 16);
    g.space.map(0, lab.ram, READ | WRITE, OFFSET, 4096)?;
    g.space
        .map(STACK, lab.ram, READ | WRITE, OFFSET + stack * 4096, 4096)?;
    g.space
        .map(CODE, lab.ram, READ | EXEC, guests::offset(g.page), 4096)?;
    let post = Post::vector(VECTOR, false);
    for round in 0..rounds {
        let (word, _, a) = run(&g, OPEN_HALT, 2, 0, post)?;
        let waits = word.exit() == Exit::Hlt && word.post_pending() && a == 0;
        verdict.check(waits, "interrupt that waits", round, word.0);
        let (word, _, a) = run(&g, BEGIN, 2, 0, Post::NONE)?;
        let withdrawn = word.exit() == Exit::Hlt && !word.post_pending() && a == 0;
        verdict.check(withdrawn, "interrupt that was withdrawn", round, a);
        // Before the first instruction, or when the guest opens up.
        for (begin, flags) in [(OPEN_HALT, IF), (BEGIN, 2)] {
            let (word, _, a) = run(&g, begin, flags, 0, post)?;
            let taken = word.exit() == Exit::Hlt && !word.post_pending() && a == HANDLED;
            verdict.check(taken, "interrupt that is taken", round, word.0);
        }
    }
    Ok(())
}

/// Runs a guest for ever, through all its nested faults, from the state page's state on.
extern "sysv64" fn runner(vcpu: u64) -> ! {
    let mut dirty = Groups::RIP;
    loop {
        // SAFETY: it changes nothing but the state page and the guest's memory, into which no reference exists.
        let r = unsafe { sys::syscall(Syscall::Run, vcpu, dirty, [0; 4], NEVER) };
        dirty = 0;
        let exit = ExitWord(r.tag).exit();
        if r.status != 0 || exit != Exit::NestedFault || r.words[0] != DATA {
            STRANGE.store(1 + exit as u64 + (r.status << 8), Ordering::Relaxed);
        }
    }
}

/// A guest counts on another processor in a page that is taken away from it again and again: it counts no more then.
fn beside(lab: &mut Lab, rounds: u64, verdict: &mut Verdict) -> Result<()> {
    let g = guest(lab, OTHERS + 4, COUNT)?;
    let Some(&(cpu, _)) = lab.cpus.get(1) else {
        return Ok(());
    };
    // With interrupts on: Bochs 2.7 has the processor's own wait for those of a guest that begins with them off.
    begin(&g, BEGIN, IF);
    let runner = lab.load(cpu, LOAD, runner, g.vcpu.0.into())?;
    for round in 0..rounds {
        let n = round % FRAMES;
        let before = peek(n);
        g.space
            .map(DATA, lab.ram, READ | WRITE, OFFSET + n * 4096, 4096)?;
        let end = time::after(LIMIT);
        while peek(n) == before && now() < end {
            wait_until(time::after(WATCHED / 8));
        }
        verdict.check(peek(n) != before, "counts in the new frame", round, before);
        g.space.unmap(DATA)?;
        let after = peek(n);
        wait_until(time::after(WATCHED));
        verdict.check(
            peek(n) == after,
            "counts in a frame that is gone",
            round,
            peek(n) - after,
        );
        if verdict.0 > 0 {
            // It has lost its page for good: each further round would wait for it.
            break;
        }
    }
    runner.end()?;
    let strange = STRANGE.load(Ordering::Relaxed);
    verdict.check(strange == 0, "exits beside", rounds, strange);
    Ok(())
}

/// All of it; `rounds` of new vCPUs, each of which takes an address space identifier.
pub fn all(lab: &mut Lab, rounds: u32) -> Result<()> {
    SPACE.map(WINDOW, lab.ram, READ_WRITE, OFFSET, FRAMES * 4096)?;
    for n in 0..FRAMES {
        poke(n, 0, 0x57a1_e000 + n);
    }
    let mut verdict = Verdict::default();
    renewed(lab, rounds.into(), &mut verdict)?;
    remapped(lab, REMAPPED, &mut verdict)?;
    rights(lab, 200, &mut verdict)?;
    routes(lab, 200, &mut verdict)?;
    windows(lab, 100, &mut verdict)?;
    beside(lab, 100, &mut verdict)?;
    let cpuid = core::arch::x86_64::__cpuid;
    let identifiers = match cpuid(0x8000_0001).ecx & SVM {
        // VPIDs have 16 bits.
        0 => 1 << 16,
        _ => cpuid(0x8000_000a).ebx,
    };
    let ended = u64::from(rounds) + REMAPPED > u64::from(identifiers);
    defmt::info!(
        "STALE done: {=u32} rounds, {=str} than {=u32} identifiers, {=usize} processors, {=u64} wrong",
        rounds,
        if ended { "more" } else { "fewer" },
        identifiers,
        lab.cpus.len(),
        verdict.0
    );
    Ok(())
}
