//! The VMX back end, with a VMCS that is a page of words: what it takes and what it makes of state, events and exits.

use super::*;
use crate::mem::PAGE;
use crate::object::{GuestSpace, Vcpu};
use crate::virt::vmx::control::{ACCESSES, Capabilities, TRUE_CONTROLS, choose, init, peek, poke};
pub use crate::virt::vmx::exit::check::NEXT;
use ipc_schema::abi::op;
use ipc_schema::abi::vm::{Event, Exit, ExitWord, Groups, Post, Segment, VcpuState};
use x86::vmx::vmcs::{control as c, guest as g, ro};

const CPUID: u64 = 10;
const WINDOW: u64 = 7;
const IF: u64 = 1 << 9;
pub(super) const ALL: u64 = 0xffff_ffff << 32;
/// A processor that has everything.
pub const RICH: Capabilities = Capabilities {
    basic: TRUE_CONTROLS | 0x1234,
    sets: [ALL; 4],
    secondary: ALL,
    ept: !0,
    cr4: !0,
    misc: 5,
};

/// A vCPU and the thread that runs it.
pub(super) struct Guest {
    pub(super) m: Machine,
    pub(super) t: Obj<Thread>,
    pub(super) v: Obj<Vcpu>,
    pub(super) slot: u64,
    pub(super) space: Obj<GuestSpace>,
}

impl Guest {
    pub(super) fn new() -> Self {
        let m = Machine::new();
        crate::virt::vmx::HERE.set(true);
        m.cpu.asids.set(1 << 16);
        let bitmaps = [0; 2].map(|_| m.pool.take_page().unwrap());
        // SAFETY: pages of their own.
        unsafe { init(choose(&RICH).unwrap(), bitmaps) };
        let space = GuestSpace::create(m.pool).unwrap();
        let v = Vcpu::create(m.pool, space, m.space, 0x6000_0000).unwrap();
        let t = m.thread(5);
        let slot = m.name(v);
        v.get().adopt(t).unwrap();
        Self {
            m,
            t,
            v,
            slot,
            space,
        }
    }
    #[allow(
        clippy::mut_from_ref,
        reason = "it is memory that the kernel writes too"
    )]
    pub(super) fn state(&self) -> &mut VcpuState {
        // SAFETY: the state page, which nobody else has a reference to here.
        unsafe { &mut *(self.v.state_virt as *mut VcpuState) }
    }
    /// `run`; answers the exit, and the event that came back.
    pub(super) fn run(&self, dirty: u64, post: Post, event: u64) -> (ExitWord, u64) {
        self.m
            .sys(self.t, 4, self.slot, dirty, [post.0, event, 0, 0], NEVER);
        assert_eq!(status(self.t), Status::Ok);
        let t = self.t.get();
        (ExitWord(t.get(reg::RSI)), t.get(reg::RDI))
    }
    /// The guest leaves next for `reason`, at `rip`.
    pub(super) fn leaves(&self, reason: u64, rip: u64, flags: u64) {
        NEXT.set((reason, Some([rip, flags])));
    }
}

#[test]
fn what_is_written_is_what_is_read() {
    let m = Guest::new();
    m.v.on_exit.iter().for_each(|e| e.set(Groups::ALL as u16));
    let segment = |selector, attributes, limit, base| Segment {
        selector,
        attributes,
        limit,
        base,
    };
    let s = m.state();
    s.rip = 0xffff_ffff_8100_0000;
    s.rflags = 0x246;
    (s.shadow, s.cpl) = (1, 3);
    (s.cr0, s.cr2, s.cr3, s.cr4, s.efer) = (0xe005_0031, 0x77, 0x5000, 0x6a0, 0xd01);
    s.cs = segment(0x33, 0xafb, 0xffff_ffff, 0);
    s.ss = segment(0x2b, 0xcf3, 0xffff_ffff, 0);
    s.ds = segment(0, 0, 0, 0);
    s.es = segment(0, 0x93, 0xffff, 0x10);
    s.fs = segment(0, 0xc93, 0xffff_ffff, 0x7fff_0000_1000);
    s.gs = segment(8, 0x493, 0x10_0000, 0x20);
    s.ldtr = segment(0, 0, 0, 0);
    s.tr = segment(0x40, 0x8b, 0x206f, 0xffff_8000_0000_1000);
    s.gdtr = segment(0, 0, 0x7f, 0xffff_8000_0000_2000);
    s.idtr = segment(0, 0, 0xfff, 0xffff_8000_0000_3000);
    (s.star, s.lstar, s.cstar, s.sfmask) = (1 << 50, 0xffff_8123_4567_89ab, 5, 0x4700);
    (s.kernel_gs_base, s.sysenter_cs) = (0xffff_8000_1111_0000, 0x10);
    (s.sysenter_esp, s.sysenter_eip) = (0x1111, 0x2222);
    (s.pat, s.tsc_offset) = (0x0007_0406_0007_0405, !5);
    s.dr = [1, 2, 3, 4];
    (s.dr6, s.dr7) = (0xffff_0ff1, 0x401);
    (s.xcr0, s.tsc_aux) = (7, 9);
    let written = *s;
    NEXT.set((12, None));
    m.run(Groups::ALL, Post::NONE, 0);
    // The host's registers are no guest's: what the processor would have changed is not played.
    let is = *m.state();
    let of = |s: &VcpuState| {
        let first = [s.rip, s.rsp, s.rflags, s.shadow, s.cpl];
        let control = [s.cr0, s.cr2, s.cr3, s.cr4, s.efer];
        let more = [s.star, s.lstar, s.cstar, s.sfmask, s.kernel_gs_base];
        let entry = [s.sysenter_cs, s.sysenter_esp, s.sysenter_eip, s.pat];
        let rest = [s.dr6, s.dr7, s.xcr0, s.tsc_offset, s.tsc_aux];
        (first, control, more, entry, rest)
    };
    assert_eq!(of(&is), of(&written));
    assert_eq!([is.cs, is.ss, is.es], [written.cs, written.ss, written.es]);
    assert_eq!([is.fs, is.tr], [written.fs, written.tr]);
    assert_eq!([is.gdtr, is.idtr], [written.gdtr, written.idtr]);
    // Not granular: its limit does not end with a page.
    assert_eq!(is.gs, written.gs);
    // Absent segments are unusable, and absent again.
    assert_eq!(peek(g::DS_ACCESS_RIGHTS), 1 << 16);
    assert_eq!(is.ds.attributes & 0x80, 0);
    // What the guest must not have, it only sees.
    assert_eq!(peek(g::CR0), 0x8005_0031);
    assert_eq!(peek(g::CR4), 0x6a0 | 1 << 13 | 1 << 6);
    assert_eq!(peek(c::VMENTRY_CONTROLS) >> 9 & 1, 1, "IA-32e mode");
}

#[test]
fn what_the_processor_would_fault_on_is_not_written() {
    let m = Guest::new();
    m.v.on_exit.iter().for_each(|e| e.set(Groups::ALL as u16));
    let s = m.state();
    (s.lstar, s.kernel_gs_base, s.sfmask) = (1 << 47, 0x1234_8000_0000_0000, !0);
    (s.dr6, s.dr7, s.xcr0) = (!0, !0, !0);
    NEXT.set((12, None));
    m.run(Groups::ALL, Post::NONE, 0);
    let s = m.state();
    assert_eq!(s.lstar, 0xffff_8000_0000_0000);
    assert_eq!(s.kernel_gs_base, 0xffff_8000_0000_0000);
    assert_eq!(s.sfmask, 0xffff_ffff);
    assert_eq!(s.dr6, 0xffff_ffff);
    // General detect is the guest's own.
    assert_eq!(s.dr7, 0xffff_2fff);
    assert_eq!(s.xcr0, 7);
}

#[test]
fn a_posted_vector_waits_until_the_guest_is_open_to_it() {
    let m = Guest::new();
    let controls = || peek(c::PRIMARY_PROCBASED_EXEC_CONTROLS) >> 2 & 1;
    let info = || peek(c::VMENTRY_INTERRUPTION_INFO_FIELD);
    m.leaves(12, 0, 2);
    m.run(Groups::ALL, Post::NONE, 0);
    // Closed: a window.
    m.leaves(12, 0x10, 2);
    let (word, _) = m.run(0, Post::vector(0x51, false), 0);
    assert!(word.post_pending());
    assert_eq!((controls(), info()), (1, 0));
    // CR8 in the way: a threshold instead.
    m.leaves(12, 0x10, 2 | IF);
    let (word, _) = m.run(0, Post::vector(0x51, false).with_cr8(5), 0);
    assert!(word.post_pending() && word.cr8() == 5);
    assert_eq!((controls(), peek(c::TPR_THRESHOLD)), (0, 5));
    // From a PIC it does not matter.
    let (word, _) = m.run(0, Post::vector(0x51, true), 0);
    assert!(!word.post_pending());
    assert_eq!(info(), 0x51 | 1 << 31);
    assert_eq!((controls(), peek(c::TPR_THRESHOLD)), (0, 0));
    // An event comes first, and keeps it waiting.
    poke(c::VMENTRY_INTERRUPTION_INFO_FIELD, 0);
    let gp = Event::exception(13, Some(7)).0;
    poke(g::CR0, 0x31);
    let (word, back) = m.run(0, Post::vector(0x61, true), gp);
    assert!(word.post_pending() && back == 0);
    assert_eq!((controls(), info()), (1, gp & 0xffff_ffff));
    assert_eq!(peek(c::VMENTRY_EXCEPTION_ERR_CODE), 7);
    // In real mode without its error code.
    poke(g::CR0, 0x30);
    m.run(0, Post::NONE, gp);
    assert_eq!(info(), 13 | 3 << 8 | 1 << 31);
}

#[test]
fn an_interrupt_shadow_ends_with_the_instruction_and_holds_back_until_then() {
    let m = Guest::new();
    m.v.on_exit.iter().for_each(|e| e.set(Groups::IP as u16));
    let info = || peek(c::VMENTRY_INTERRUPTION_INFO_FIELD);
    m.leaves(CPUID, 0, 2 | IF);
    m.run(Groups::ALL, Post::NONE, 0);
    poke(g::INTERRUPTIBILITY_STATE, 1);
    m.leaves(CPUID, 0, 2 | IF);
    m.run(Groups::RIP, Post::NONE, 0);
    // Not carried out: still in it.
    poke(g::INTERRUPTIBILITY_STATE, 1);
    let (word, _) = m.run(0, Post::vector(0x51, false), 0);
    assert!(word.post_pending() && info() == 0);
    poke(g::INTERRUPTIBILITY_STATE, 1);
    m.run(0, Post::NONE, 0);
    m.state().shadow = 0;
    let (word, _) = m.run(Groups::RIP, Post::vector(0x51, false), 0);
    assert!(!word.post_pending());
    assert_eq!(info(), 0x51 | 1 << 31);
    assert_eq!(peek(g::INTERRUPTIBILITY_STATE), 0);
}

#[test]
fn an_nmi_waits_for_its_window_and_comes_back_if_the_vmm_is_first() {
    let m = Guest::new();
    m.v.on_exit.iter().for_each(|e| e.set(Groups::IP as u16));
    m.leaves(12, 0, 2);
    m.run(Groups::ALL, Post::NONE, 0);
    poke(g::INTERRUPTIBILITY_STATE, 8);
    let (_, back) = m.run(0, Post::NONE, Event::NMI.0);
    assert_eq!(back, Event::NMI.0);
    assert_eq!(peek(c::PRIMARY_PROCBASED_EXEC_CONTROLS) >> 22 & 1, 1);
    assert_eq!(peek(c::VMENTRY_INTERRUPTION_INFO_FIELD), 0);
    poke(g::INTERRUPTIBILITY_STATE, 0);
    let (_, back) = m.run(0, Post::NONE, Event::NMI.0);
    assert_eq!(back, 0);
    assert_eq!(peek(c::VMENTRY_INTERRUPTION_INFO_FIELD), Event::NMI.0);
    // Opened for the first, closed for the second, and no more.
    assert_eq!(peek(c::PRIMARY_PROCBASED_EXEC_CONTROLS) >> 22 & 1, 0);
}

#[test]
fn an_interrupted_delivery_is_told() {
    let m = Guest::new();
    m.leaves(12, 0, 2);
    m.run(Groups::ALL, Post::NONE, 0);
    // A page fault's delivery met an EPT violation: a write of the guest's page tables.
    for (found, told) in [
        (
            14 | 3 << 8 | 1 << 11 | 1 << 31,
            14 | 3 << 8 | 1 << 11 | 1 << 31 | 6 << 32,
        ),
        (0x51 | 1 << 31, 0x51 | 1 << 31),
        (3 | 6 << 8 | 1 << 31, 3 | 3 << 8 | 1 << 31),
        (0x80 | 4 << 8 | 1 << 31, 0x80 | 4 << 8 | 1 << 31),
        (5, 0),
    ] {
        poke(ro::IDT_VECTORING_INFO, found);
        poke(ro::IDT_VECTORING_ERR_CODE, 6);
        poke(ro::EXIT_QUALIFICATION, 1 << 7 | 1 << 3 | 2);
        poke(ro::GUEST_PHYSICAL_ADDR_FULL, 0x1234);
        m.leaves(48, 0, 2);
        let (word, back) = m.run(0, Post::NONE, 0);
        assert_eq!(word.exit(), Exit::NestedFault);
        assert_eq!(back, told, "{found:#x}");
        let t = m.t.get();
        let info = (t.get(reg::R8), t.get(reg::R9));
        assert_eq!(info, (0x1234, 1 | 2 | 1 << 33));
    }
}

#[test]
fn a_mapping_taken_away_is_flushed_once() {
    let m = Guest::new();
    let (_, mem) = m.m.memory(16 << 20, 4 << 20);
    let space = m.m.name(m.space);
    let map = |at, len, rights: u32| {
        let w1 = mem | u64::from(rights) << 32;
        m.m.operate(m.t, space, op::guest_space::MAP, [at, w1, 0, len])
    };
    m.leaves(12, 0, 2);
    m.run(Groups::ALL, Post::NONE, 0);
    let flushes = || ACCESSES.with(|a| a[2].get());
    let begin = flushes();
    m.run(0, Post::NONE, 0);
    assert_eq!(flushes(), begin);
    assert_eq!(map(0x10_0000, PAGE, 3), Status::Ok);
    let leaf = |at| m.space.get().table.leaf(at).unwrap().0.get();
    // READ, WRITE; write-back; not executable (SDM vol. 3, 29.3.2).
    assert_eq!(leaf(0x10_0000) & 0xfff, 0b11_0011);
    assert_eq!(map(2 << 20, 2 << 20, 7), Status::Ok);
    assert_eq!(leaf(2 << 20) & 0xfff, 0b1011_0111, "a large page");
    m.run(0, Post::NONE, 0);
    assert_eq!(flushes(), begin, "what was added needs none");
    let gone =
        m.m.operate(m.t, space, op::guest_space::UNMAP, [0x10_0000, 0, 0, 0]);
    assert_eq!(gone, Status::Ok);
    m.run(0, Post::NONE, 0);
    m.run(0, Post::NONE, 0);
    assert_eq!(flushes(), begin + 1);
}

#[test]
fn identifiers_are_recycled_with_a_flush_of_all() {
    let m = Guest::new();
    m.m.cpu.asids.set(3);
    let other = Vcpu::create(m.m.pool, m.space, m.m.space, 0x6000_1000).unwrap();
    let flushes = || ACCESSES.with(|a| a[3].get());
    NEXT.set((12, None));
    let mut used = Vec::new();
    for i in 0..6 {
        let v = if i & 1 == 0 { m.v } else { other };
        if v.runner.get().is_none() {
            v.get().adopt(m.t).unwrap();
        }
        // Its identifier is another processor's.
        v.asid_round.set(0);
        crate::virt::vmx::extended::switch(m.m.cpu, v.get());
        let before = flushes();
        m.m.run(m.t);
        m.t.resume.set(Resume::GuestVmx);
        crate::exit::enter::<crate::virt::vmx::BackEnd>(m.m.cpu, m.t);
        used.push((v.asid.get(), peek(c::VPID), flushes() - before));
    }
    let expected = [
        (1, 1, 0),
        (2, 2, 0),
        (1, 1, 1),
        (2, 2, 0),
        (1, 1, 1),
        (2, 2, 0),
    ];
    assert_eq!(used, expected);
}

#[test]
fn a_bit_that_is_only_seen_is_seen_and_one_that_is_not_there_faults() {
    let m = Guest::new();
    m.leaves(12, 0, 2);
    m.run(Groups::ALL, Post::NONE, 0);
    let write = |register: u64, value| {
        m.v.gpr(1).set(value);
        poke(ro::EXIT_QUALIFICATION, register | 1 << 8);
        poke(c::VMENTRY_INTERRUPTION_INFO_FIELD, 0);
        m.leaves(28, 0x10, 2);
        // Back to the guest; nothing wakes the VMM but the deadline.
        let cpu = m.m.run(m.t);
        let next = crate::exit::enter::<OneExit>(cpu, m.t);
        assert!(next == m.t);
    };
    poke(c::CR0_READ_SHADOW, 0x10);
    write(0, 0x8000_0031);
    assert_eq!(
        peek(c::CR0_READ_SHADOW),
        0x30,
        "NE; the rest is for the instruction"
    );
    // CD; NW with it; not NW alone.
    for (value, seen) in [
        (0x4000_0021, 0x4000_0030),
        (0x6000_0021, 0x6000_0030),
        (0x2000_0021, 0x6000_0030),
    ] {
        write(0, value);
        assert_eq!(peek(c::CR0_READ_SHADOW), seen, "{value:#x}");
    }
    let (_, back) = crate::virt::vmx::BackEnd::left(m.v.get(), 0);
    assert_eq!(back, Event::exception(13, Some(0)).0);
    m.run(0, Post::NONE, 0);
    poke(c::CR4_READ_SHADOW, 0);
    write(4, 0x60);
    assert_eq!(peek(c::CR4_READ_SHADOW), 0x40, "MCE");
    write(4, 0x2040);
    assert_eq!(peek(c::CR4_READ_SHADOW), 0x40, "VMXE");
    let (_, back) = crate::virt::vmx::BackEnd::left(m.v.get(), 0);
    assert_eq!(back, Event::exception(13, Some(0)).0);
}

/// Enters once.
pub(super) struct OneExit;
use crate::virt::{Then, Virt, vmx::BackEnd};
impl Virt for OneExit {
    const RESUME: Resume = BackEnd::RESUME;
    fn load(v: &Vcpu, groups: u64) {
        BackEnd::load(v, groups);
    }
    fn arm(v: &Vcpu, post: u64, event: u64) {
        BackEnd::arm(v, post, event);
    }
    fn switch_extended(cpu: &Cpu, v: &Vcpu) {
        BackEnd::switch_extended(cpu, v);
    }
    fn enter<T: Then>(cpu: &Cpu, v: &Vcpu, then: T) -> T::Answer {
        // The second time it waits.
        cpu.reschedule.set(true);
        BackEnd::enter(cpu, v, then)
    }
    fn left(v: &Vcpu, groups: u64) -> (u64, u64) {
        BackEnd::left(v, groups)
    }
    fn advance(v: &Vcpu, next: u64) {
        BackEnd::advance(v, next);
    }
}

#[test]
fn a_window_that_opens_lets_the_vector_in() {
    let m = Guest::new();
    m.leaves(12, 0, 2);
    m.run(Groups::ALL, Post::NONE, 0);
    m.leaves(12, 0x10, 2);
    m.run(0, Post::vector(0x51, false), 0);
    assert_eq!(peek(c::VMENTRY_INTERRUPTION_INFO_FIELD), 0);
    // As on the way from a window exit: the same post, the guest open now.
    m.leaves(WINDOW, 0x12, 2 | IF);
    let cpu = m.m.run(m.t);
    m.t.resume.set(Resume::GuestVmx);
    crate::exit::enter::<OneExit>(cpu, m.t);
    m.leaves(12, 0x12, 2 | IF);
    cpu.reschedule.set(false);
    m.m.run(m.t);
    crate::exit::enter::<BackEnd>(cpu, m.t);
    assert_eq!(peek(c::VMENTRY_INTERRUPTION_INFO_FIELD), 0x51 | 1 << 31);
}

#[test]
fn an_event_for_a_guest_that_has_never_run_is_delivered() {
    let m = Guest::new();
    m.leaves(12, 0, 2);
    m.run(0, Post::NONE, Event::NMI.0);
    assert_eq!(peek(c::VMENTRY_INTERRUPTION_INFO_FIELD), Event::NMI.0);
}

#[test]
fn a_run_that_ends_before_its_guest_is_entered_shows_nobody_elses_state() {
    let m = Guest::new();
    m.v.on_exit.iter().for_each(|e| e.set(Groups::ALL as u16));
    m.state().cr3 = 0x5000;
    m.leaves(12, 0x1234, 2);
    m.run(Groups::ALL, Post::NONE, 0);
    let other = Vcpu::create(m.m.pool, m.space, m.m.space, 0x6000_1000).unwrap();
    crate::virt::vmx::extended::switch(m.m.cpu, other.get());
    poke(g::CR3, 0x9_0000);
    poke(g::RIP, 0x5ec2e7);
    m.state().cr3 = 0;
    m.t.expired.set(true);
    m.t.resume.set(Resume::GuestVmx);
    crate::exit::enter::<BackEnd>(m.m.run(m.t), m.t);
    let exit = ExitWord(m.t.get().get(reg::RSI)).exit();
    assert_eq!(exit, Exit::Timeout);
    assert_eq!((m.state().cr3, m.state().rip), (0x5000, 0x1234));
}
