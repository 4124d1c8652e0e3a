//! vCPUs full of secrets that share processors and go from one to the other: nothing of one is ever in a register of another, or of a
//! server's.
//!
//! Each vCPU has a VM of its own and runs the code in [`super::roamer`]: it finds all its registers empty, plants words that name it,
//! and looks after each HLT whether they are what they were. A thread on each processor runs what it is told, one after the other.

use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

use super::alloc::vec::Vec;
use gauge::judge::Numbers;
use runtime::abi::rights::{EXEC, READ, WRITE};
use runtime::abi::vm::{Exit, ExitWord, Groups, Segment, VcpuState, gpr};
use runtime::abi::{NEVER, Status, Syscall, layout};
use runtime::object::Vcpu;
use runtime::{Notification, sys, time};

use super::guests::{self, Guest};
use super::lab::{LOAD, Lab, POOL, READ_WRITE, Result, SPACE};
use super::roamer::{self as code, Class};

/// vCPUs that are there all the time.
const VCPUS: u64 = 4;
/// Their state pages come behind those of the other guests.
const FIRST_PAGE: u64 = 16;
/// Memory of each: bytes, and where it is in the RAM and in this server.
const MEMORY: u64 = 0x1_0000;
const OFFSET: u64 = 5 << 20;
const WINDOW: u64 = layout::SHARED + 0x3000_0000;
/// How long to wait for another processor's thread, in microseconds.
const PATIENCE: u64 = 20;
/// Processors at most.
const CPUS: usize = 8;

/// What each processor's thread is to do, and what came of it.
static JOBS: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];
static RESULTS: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];
static STARTS: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];
static DONES: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];
/// A Vcpu of each thread's own, which does nothing.
static PARKS: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];

/// In a job: the whole state is to be loaded.
const NEW: u64 = 1 << 63;
/// In a result: what a server had in TSC_AUX; an exit that nobody expected.
const SERVER: u64 = 1 << 32;
const STRANGE: u64 = 1 << 33;

fn at(list: &[AtomicU64; CPUS], n: u64) -> &AtomicU64 {
    &list[n as usize % CPUS]
}

/// What TSC_AUX holds, for this server.
fn tsc_aux() -> u64 {
    let aux: u64;
    // SAFETY: a read; every processor with SVM has RDTSCP.
    unsafe {
        core::arch::asm!("rdtscp", out("rax") _, out("rdx") _, out("rcx") aux, options(nomem, nostack));
    }
    aux
}

/// Runs one vCPU after the other up to its HLT.
extern "sysv64" fn carrier(number: u64) -> ! {
    loop {
        let start = Notification(at(&STARTS, number).load(Ordering::Relaxed) as u32);
        let _ = start.wait(NEVER);
        let job = at(&JOBS, number).load(Ordering::Acquire);
        let (vcpu, page) = (job & 0xffff_ffff, (job & !NEW) >> 32);
        let word = |offset: usize| guests::word(page, offset / 8);
        let mut dirty = if job & NEW != 0 {
            Groups::ALL
        } else {
            Groups::RIP
        };
        let result = loop {
            // SAFETY: it changes nothing but the state page, which only this thread uses now.
            let r = unsafe { sys::syscall(Syscall::Run, vcpu, dirty, [0; 4], NEVER) };
            if r.status == Status::Busy as u64 {
                // Who ran it last has not gone over to another yet, and may wait for the one that this thread ran last.
                let other = at(&PARKS, number).load(Ordering::Relaxed);
                // SAFETY: a guest that leaves at once; its state page is nobody's business.
                let _ = unsafe { sys::syscall(Syscall::Run, other, 0, [0; 4], NEVER) };
                // An emulator that runs one processor after the other comes to that one only when this one waits.
                let _ = start.wait(time::after(PATIENCE));
                continue;
            }
            dirty = 0;
            match ExitWord(r.tag).exit() {
                Exit::Hlt if r.status == 0 => {
                    let rip = word(offset_of!(VcpuState, rip));
                    // SAFETY: the state page.
                    unsafe { rip.write_volatile(rip.read_volatile() + 1) };
                    let found = word(offset_of!(VcpuState, gpr) + 8 * gpr::RAX);
                    // SAFETY: the state page.
                    break unsafe { found.read_volatile() };
                }
                Exit::Timeout if r.status == 0 => {}
                exit => break STRANGE | exit as u64 | r.status << 40,
            }
        };
        let aux = if tsc_aux() == 0 { 0 } else { SERVER };
        at(&RESULTS, number).store(result | aux, Ordering::Release);
        let _ = Notification(at(&DONES, number).load(Ordering::Relaxed) as u32).signal();
    }
}

/// One that goes about.
struct Roamer {
    vcpu: Vcpu,
    page: u64,
    started: bool,
}

impl Roamer {
    fn word(page: u64, offset: u64) -> *mut u64 {
        let base = WINDOW + (page - FIRST_PAGE) * MEMORY + offset;
        core::ptr::with_exposed_provenance_mut(base as usize)
    }

    fn poke(page: u64, offset: u64, value: u64) {
        // SAFETY: its memory, which `new` has mapped; no reference points there.
        unsafe { Self::word(page, offset % MEMORY).write_volatile(value) };
    }

    fn new(lab: &mut Lab, number: u64) -> Result<Self> {
        let page = FIRST_PAGE + number;
        let (at, offset) = (WINDOW + number * MEMORY, OFFSET + number * MEMORY);
        SPACE.map(at, lab.ram, READ_WRITE, offset, MEMORY)?;
        let space = POOL.create_guest_space(lab.slot()?)?;
        space.map(0, lab.ram, READ | WRITE | EXEC, offset, MEMORY)?;
        let dest = lab.slot()?;
        let state = guests::word(page, 0).expose_provenance() as u64;
        let vcpu = POOL.create_vcpu(dest, space, SPACE, state)?;
        let poke = |offset, value| Self::poke(page, offset, value);
        // The first 2 MiB are where they are.
        poke(code::TABLES, (code::TABLES + 0x1000) | 3);
        poke(code::TABLES + 0x1000, (code::TABLES + 0x2000) | 3);
        poke(code::TABLES + 0x2000, 0x83);
        for (i, bytes) in code::bytes().chunks(8).enumerate() {
            let mut word = [0; 8];
            word.iter_mut()
                .zip(bytes)
                .for_each(|(to, from)| *to = *from);
            poke(code::CODE + i as u64 * 8, u64::from_le_bytes(word));
        }
        for (at, value) in code::secrets(number as u8 + 1) {
            poke(at, value);
        }
        for (at, value) in code::nothing(number as u8 + 1) {
            poke(at, value);
        }
        let segment = |attributes, limit| Segment {
            selector: 0,
            attributes,
            limit,
            base: 0,
        };
        let data = segment(0xc93, u32::MAX);
        let to = guests::word(page, 0).cast::<VcpuState>();
        // SAFETY: the state page, which the kernel has just mapped there; the vCPU does not run, and numbers are all that it is.
        let mut state = unsafe { to.read_volatile() };
        (state.rip, state.rsp, state.rflags) = (code::CODE, code::STACK, 2);
        // PE, MP, ET, NE, PG; PAE, OSFXSR, OSXMMEXCPT, OSXSAVE; LME and LMA.
        (state.cr0, state.cr3) = (0x8000_0033, code::TABLES);
        state.cr4 = 1 << 5 | 3 << 9 | 1 << 18;
        state.efer = 1 << 8 | 1 << 10;
        (state.es, state.ss, state.ds, state.fs, state.gs) = (data, data, data, data, data);
        state.cs = segment(0xa9b, u32::MAX);
        (state.ldtr, state.tr) = (segment(0x82, 0xffff), segment(0x8b, 0xffff));
        state.pat = 0x0007_0406_0007_0406;
        (state.dr6, state.dr7, state.xcr0) = (0xffff_0ff0, 0x400, 7);
        state.tsc_aux = code::tsc_aux(number as u8 + 1);
        // SAFETY: as above.
        unsafe { to.write_volatile(state) };
        Ok(Self {
            vcpu,
            page,
            started: false,
        })
    }

    /// Lets a processor's thread run it.
    fn go(&mut self, cpu: u64) {
        let new = if self.started { 0 } else { NEW };
        self.started = true;
        let job = u64::from(self.vcpu.0) | self.page << 32 | new;
        at(&JOBS, cpu).store(job, Ordering::Release);
        let _ = Notification(at(&STARTS, cpu).load(Ordering::Relaxed) as u32).signal();
    }
}

/// What a processor's thread has found.
fn result(cpu: u64) -> u64 {
    let done = Notification(at(&DONES, cpu).load(Ordering::Relaxed) as u32);
    let _ = done.wait(NEVER);
    at(&RESULTS, cpu).load(Ordering::Acquire)
}

/// All rounds.
pub fn all(lab: &mut Lab, rounds: u32) -> Result<()> {
    let cpus: Vec<u64> = lab
        .cpus
        .iter()
        .map(|(number, _)| u64::from(*number))
        .collect();
    for &cpu in &cpus {
        at(&STARTS, cpu).store(lab.notification()?.0.into(), Ordering::Relaxed);
        at(&DONES, cpu).store(lab.notification()?.0.into(), Ordering::Relaxed);
        let park = Guest::new(lab, cpu, guests::HALT)?;
        at(&PARKS, cpu).store(park.vcpu.0.into(), Ordering::Relaxed);
        lab.load(cpu as u32, LOAD, carrier, cpu)?;
    }
    let mut roamers = Vec::new();
    for number in 0..VCPUS {
        roamers.push(Roamer::new(lab, number)?);
    }
    let mut numbers = Numbers::new(0x5ec2_e700);
    let (mut moves, mut leaks, mut places) = (0u64, 0u64, [u64::MAX; VCPUS as usize]);
    let mut look = |round: u32, cpu: u64, found: u64| {
        if found != 0 {
            leaks += 1;
            defmt::error!(
                "ROAM leak: round {=u32}, processor {=u64}: {=u64:#x}",
                round,
                cpu,
                found
            );
        }
    };
    for round in 0..rounds {
        // Which runs where: a different order each time.
        let shift = numbers.below(VCPUS);
        for (n, &cpu) in cpus.iter().enumerate() {
            let which = ((n as u64 + shift) % VCPUS) as usize;
            if let (Some(place), Some(roamer)) = (places.get_mut(which), roamers.get_mut(which)) {
                moves += u64::from(*place != cpu);
                *place = cpu;
                roamer.go(cpu);
            }
        }
        for &cpu in &cpus {
            look(round, cpu, result(cpu));
        }
        look(round, u64::MAX, tsc_aux());
    }
    // New ones find nothing, wherever they begin.
    for (n, &cpu) in cpus.iter().enumerate() {
        let mut new = Roamer::new(lab, VCPUS + n as u64)?;
        new.go(cpu);
        look(rounds, cpu, result(cpu));
    }
    // The search finds what is there: of the first one's words some are expected to be others.
    let mut seen = Vec::new();
    let first = cpus.first().copied().unwrap_or(0);
    for class in [
        Class::Debug,
        Class::Msr,
        Class::Sse,
        Class::Avx,
        Class::TscAux,
    ] {
        let Some(roamer) = roamers.first_mut() else {
            break;
        };
        let (place, value) = code::expectation(1, class);
        Roamer::poke(roamer.page, place, value ^ 1);
        roamer.go(first);
        seen.push(result(first) == class as u64);
        Roamer::poke(roamer.page, place, value);
    }
    defmt::info!(
        "ROAM done: {=u32} rounds, {=u64} moves, {=u64} leaks, finds: {=[?]}",
        rounds,
        moves,
        leaks,
        seen.as_slice()
    );
    Ok(())
}
