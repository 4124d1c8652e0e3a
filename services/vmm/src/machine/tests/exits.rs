//! Set-up, processor exits and ends.

use super::fake::{ENTRY, Pages, TSC_HZ, access, description, machine, machine_of};
use crate::machine::{End, Exit, Fatal, Note, signal};
use ipc_schema::abi::Status;
use ipc_schema::abi::vm::{Event, Groups, gpr};
use ipc_schema::proto::VmEnd;

const RF: u64 = 1 << 16;
const TF: u64 = 1 << 8;
const GP: Event = Event::exception(13, Some(0));

/// As [`description`], but its TSC is its own.
pub fn not_under_test() -> ipc_schema::manifest::Vm {
    ipc_schema::manifest::Vm {
        debug_exit: false,
        ..description()
    }
}

#[test]
fn a_guest_under_test_has_the_hosts_tsc() {
    let pages = Pages::default();
    let mut m = machine(&pages);
    m.run();
    assert_eq!(m.cpu().tsc_offset, 0);
}

#[test]
fn set_up_routes_around_the_doorbell_and_starts_the_guest() {
    let pages = Pages::default();
    let mut vm = not_under_test();
    vm.vcpus = 4;
    let mut m = machine_of(&vm, &pages);
    let limit = TSC_HZ / 10;
    assert_eq!(
        m.kernel.routes,
        [
            (0, 0x3F8, 8, limit),
            (1, 0x70, 2, limit),
            (2, 0x5000, 4, limit),
            (2, 0x5008, 8, limit)
        ]
    );
    assert_eq!(m.kernel.bells, [(2, 0, 0x5004, 4)]);
    assert_eq!(m.kernel.notes, [Note::OneVcpu { asked: 4 }]);
    assert_eq!(m.kernel.groups[Exit::Shutdown as usize], Groups::ALL);
    assert_eq!(m.kernel.groups[Exit::Signal as usize], 0);
    assert_eq!(m.run(), End::Killed);
    let first = m.kernel.entries[0];
    assert_eq!(
        (first.dirty, first.post.0, first.inject.0),
        (Groups::ALL, 0, 0)
    );
    assert_eq!((m.cpu().rip, m.cpu().gpr[0]), (ENTRY, 0x2BAD_B002));
    // The guest's TSC began at 0.
    assert_eq!(m.cpu().tsc_offset.wrapping_add(1_000_000), 0);
}

#[test]
fn cpuid_answers_and_moves_on() {
    let pages = Pages::default();
    let mut m = machine(&pages);
    m.code(&[0x0F, 0xA2]).on(|cpu| {
        cpu.state.gpr[gpr::RAX] = 0xFFFF_FFFF_4000_0000;
        cpu.state.rflags |= RF;
        cpu.state.shadow = 1;
        (Exit::Cpuid, [0; 3])
    });
    m.run();
    let cpu = m.cpu();
    assert_eq!((cpu.rip, cpu.shadow, cpu.rflags & RF), (ENTRY + 2, 0, 0));
    assert_eq!(cpu.gpr[gpr::RBX], u64::from(u32::from_le_bytes(*b"Vire")));
    assert_eq!(m.last().dirty, Groups::RIP);
    // What the processor told is believed without a look at the code.
    let mut m = machine(&pages);
    m.kernel.length = 5;
    m.on(|cpu| {
        cpu.state.gpr[gpr::RAX] = 0x4000_0000;
        (Exit::Cpuid, [0; 3])
    });
    m.run();
    assert_eq!(m.cpu().rip, ENTRY + 5);
    // Nor need it tell more than the place from then on.
    assert_eq!(m.kernel.groups[Exit::Cpuid as usize], Groups::IP);
}

#[test]
fn cpuid_shows_the_apic_only_while_it_is_enabled() {
    let pages = Pages::default();
    for (base, apic) in [(0xFEE0_0900u64, true), (0xFEE0_0100, false)] {
        let mut m = machine(&pages);
        m.code(&[0x0F, 0x30, 0x0F, 0xA2]).on(move |cpu| {
            cpu.state.gpr[gpr::RCX] = 0x1B;
            cpu.state.gpr[gpr::RAX] = base;
            cpu.state.gpr[gpr::RDX] = 0;
            (Exit::Wrmsr, [0; 3])
        });
        m.on(|cpu| {
            assert_eq!(cpu.state.rip, ENTRY + 2);
            cpu.state.gpr[gpr::RAX] = 1;
            (Exit::Cpuid, [0; 3])
        });
        m.run();
        assert_eq!(m.cpu().rip, ENTRY + 4);
        assert_eq!(m.cpu().gpr[gpr::RDX] & 1 << 9 != 0, apic);
    }
}

/// A single-stepped instruction is followed by #DB with DR6.BS, and no other debug register changes, although the exit
/// did not bring them at first.
#[test]
fn single_stepping_goes_on_over_an_exit() {
    let pages = Pages::default();
    let mut m = machine(&pages);
    m.code(&[0x0F, 0xA2]);
    for _ in 0..2 {
        m.on(|cpu| {
            assert_eq!(cpu.state.rip, ENTRY);
            cpu.state.gpr[gpr::RAX] = 0x4000_0000;
            cpu.state.rflags |= TF;
            cpu.state.dr = [1, 2, 3, 4];
            cpu.state.dr6 = 0xFFFF_0FF0;
            cpu.state.dr7 = 0x455;
            (Exit::Cpuid, [0; 3])
        });
    }
    m.run();
    assert_eq!(m.kernel.entries.len(), 3);
    assert_eq!(
        m.kernel.entries[1].dirty, 0,
        "not carried out before DR came"
    );
    let cpu = m.cpu();
    assert_eq!((cpu.rip, cpu.dr, cpu.dr7), (ENTRY + 2, [1, 2, 3, 4], 0x455));
    assert_eq!(cpu.dr6, 0xFFFF_4FF0);
    assert_eq!(m.last().inject, Event::exception(1, None));
}

/// Into long mode: EFER.LME, which the kernel drops until paging is on; then MOV CR0. In 64-bit mode paging stays on.
#[test]
fn paging_is_switched_by_the_vmm() {
    const GROUPS: u64 = Groups::RIP | Groups::CR;
    let pages = Pages::default();
    let mut m = machine_of(&not_under_test(), &pages);
    m.code(&[
        0x0F, 0x30, 0x0F, 0x22, 0xC0, 0x0F, 0x01, 0xF3, 0x0F, 0x22, 0xC0,
    ]);
    m.on(|cpu| {
        cpu.state.gpr[gpr::RCX] = 0xC000_0080;
        cpu.state.gpr[gpr::RAX] = 0x100;
        cpu.state.gpr[gpr::RDX] = 0;
        (Exit::Wrmsr, [0; 3])
    });
    m.on(|cpu| {
        assert_eq!(cpu.state.efer, 0x100);
        cpu.state.efer = 0;
        cpu.state.cr4 = 1 << 5;
        cpu.state.gpr[gpr::RAX] = 0x8000_0011;
        (Exit::WriteCr0, [0; 3])
    });
    m.on(|cpu| {
        assert_eq!((cpu.state.cr0, cpu.state.efer), (0x8000_0011, 0x500));
        assert_eq!(cpu.state.rip, ENTRY + 5);
        // LMSW BX cannot clear PE.
        cpu.state.cr0 = 0x11;
        cpu.state.gpr[gpr::RBX] = 0xFFF4;
        (Exit::WriteCr0, [0; 3])
    });
    m.on(|cpu| {
        assert_eq!((cpu.state.cr0, cpu.state.rip), (0x15, ENTRY + 8));
        (Exit::Signal, [signal::QUIT, 0, 0])
    });
    assert_eq!(m.run(), End::Killed);
    assert_eq!(m.kernel.entries[2].dirty, GROUPS);
    m.on(|cpu| {
        (cpu.state.cr0, cpu.state.efer) = (0x11, 0);
        cpu.state.gpr[gpr::RAX] = 0x8000_0010;
        (Exit::WriteCr0, [0; 3])
    });
    // Paging without protection.
    assert_eq!(m.run(), End::Killed);
    assert_eq!((m.last().inject, m.cpu().rip), (GP, ENTRY + 8));
    // The code has changed since.
    m.code(&[0x90; 16]).exit(Exit::WriteCr0, [0; 3]);
    assert_eq!(m.run(), End::Killed);
    assert_eq!((m.last().inject.0, m.last().dirty), (0, 0));
}

#[test]
fn code_that_does_not_fit_its_exit_is_executed_again_but_not_for_ever() {
    let pages = Pages::default();
    let mut m = machine(&pages);
    m.code(&[0x90, 0x90]);
    for _ in 0..3 {
        m.exit(Exit::Cpuid, [0; 3]);
    }
    assert_eq!(m.run(), End::Killed);
    assert_eq!((m.cpu().rip, m.last().dirty), (ENTRY, 0));
    for _ in 0..=super::super::MAX_RETRIES {
        m.exit(Exit::Cpuid, [0; 3]);
    }
    assert_eq!(m.run(), End::Failed);
    assert_eq!(m.kernel.notes.last(), Some(&Note::Fatal(Fatal::Stuck)));
}

fn msr(
    exit: Exit,
    index: u32,
    value: u64,
) -> (End, std::vec::Vec<Note>, u64, super::fake::Entry, u64) {
    let pages = Pages::default();
    let mut m = machine_of(&not_under_test(), &pages);
    m.code(&[0x0F, if exit == Exit::Rdmsr { 0x32 } else { 0x30 }])
        .on(move |cpu| {
            cpu.state.gpr[gpr::RCX] = u64::from(index) | 0xABCD << 32;
            cpu.state.gpr[gpr::RAX] = value & 0xFFFF_FFFF | 0x77 << 32;
            cpu.state.gpr[gpr::RDX] = value >> 32 | 0x77 << 32;
            (exit, [0; 3])
        });
    let end = m.run();
    let cpu = m.cpu();
    let result = cpu.gpr[gpr::RDX] << 32 | cpu.gpr[gpr::RAX];
    (end, m.kernel.notes.clone(), result, m.last(), cpu.rip)
}

#[test]
fn msrs() {
    let (_, _, value, entry, rip) = msr(Exit::Rdmsr, 0x1B, 0);
    assert_eq!((value, rip), (0xFEE0_0900, ENTRY + 2));
    assert_eq!(entry.dirty, Groups::RIP);
    // The TSC begins at 0, and the fake's does not move.
    assert_eq!(msr(Exit::Rdmsr, 0x10, 5).2, 0);
    let (_, _, _, entry, rip) = msr(Exit::Wrmsr, 0xC000_0080, 0x800);
    assert_eq!((entry.dirty, rip), (Groups::RIP | Groups::CR, ENTRY + 2));
    let (_, _, _, entry, _) = msr(Exit::Wrmsr, 0x277, 0x0606_0606_0606_0606);
    assert_eq!(entry.dirty, Groups::RIP | Groups::PAT);
    // None such, and a value that the chipset refuses.
    let (_, notes, _, entry, rip) = msr(Exit::Rdmsr, 0x1234_5678, 0);
    assert_eq!((entry.inject, entry.dirty, rip), (GP, 0, ENTRY));
    assert_eq!(
        notes,
        [Note::RefusedMsr {
            index: 0x1234_5678,
            value: None
        }]
    );
    let (_, notes, _, entry, rip) = msr(Exit::Wrmsr, 0x1B, 0xFFFF_0000_0000_0000);
    assert_eq!((entry.inject, entry.dirty, rip), (GP, 0, ENTRY));
    assert_eq!(notes.len(), 1);
}

/// The first WRMSR of TSC_AUX only asks for XCR0, which goes to the kernel with it; the guest executes it again. The exits
/// after it bring no more than those before.
#[test]
fn tsc_aux_keeps_the_guests_xcr0() {
    let pages = Pages::default();
    let mut m = machine(&pages);
    m.code(&[0x0F, 0x30]);
    let narrow = m.kernel.groups[Exit::Wrmsr as usize];
    for _ in 0..2 {
        m.on(|cpu| {
            cpu.state.gpr[gpr::RCX] = 0xC000_0103;
            cpu.state.gpr[gpr::RAX] = 5;
            cpu.state.gpr[gpr::RDX] = 0;
            // XSETBV without an exit.
            cpu.state.xcr0 = 7;
            (Exit::Wrmsr, [0; 3])
        });
    }
    m.run();
    assert_eq!(m.kernel.entries[1].dirty & Groups::XCR, 0);
    assert_eq!(m.kernel.groups[Exit::Wrmsr as usize], narrow);
    let cpu = m.cpu();
    assert_eq!((cpu.xcr0, cpu.tsc_aux, cpu.rip), (7, 5, ENTRY + 2));
}

/// A TSC deadline is the guest's time; a jump of its TSC moves it.
#[test]
fn tsc_deadlines_are_in_the_guests_time() {
    let pages = Pages::default();
    let mut m = machine_of(&not_under_test(), &pages);
    let mut code = std::vec::Vec::new();
    for _ in 0..6 {
        code.extend_from_slice(&[0x0F, 0x30]);
    }
    m.code(&code);
    let write = |index, value| access(Exit::Wrmsr, index, value);
    m.on(write(0x1B, 0xFEE0_0D00)); // x2APIC
    m.on(write(0x80F, 0x1FF));
    m.on(write(0x832, 0x4_0040)); // LVT timer: TSC deadline, vector 0x40
    m.on(write(0x6E0, 5_000));
    m.on(write(0x10, 3_000)); // TSC := 3000
    m.on(write(0x6E0, 0));
    m.run();
    let deadlines: std::vec::Vec<u64> = m.kernel.entries.iter().map(|e| e.deadline).collect();
    assert_eq!(deadlines[4], 1_000_000 + 5_000);
    assert_eq!(
        deadlines[5],
        1_000_000 + 2_000,
        "3000 cycles of the 5000 have been jumped over"
    );
    assert_eq!(deadlines[6], u64::MAX);
    assert_eq!(m.kernel.entries[5].dirty, Groups::RIP | Groups::TSC);
    assert_eq!(m.cpu().tsc_offset.wrapping_add(1_000_000), 3_000);
}

#[test]
fn mmio_reads_the_apic_and_nothing_reads_ones() {
    let pages = Pages::default();
    let mut m = machine(&pages);
    // mov eax, [0xFEE00030]; mov eax, [0xD0000000]; mov [0xD0000000], eax
    m.code(&[
        0xA1, 0x30, 0, 0xE0, 0xFE, 0xA1, 0, 0, 0, 0xD0, 0xA3, 0, 0, 0, 0xD0,
    ]);
    m.exit(Exit::NestedFault, [0xFEE0_0030, 0, 0]);
    m.on(|cpu| {
        assert_eq!(cpu.state.rip, ENTRY + 5);
        assert_eq!(cpu.state.gpr[0] & 0xFF, 0x14);
        (Exit::NestedFault, [0xD000_0000, 0, 0])
    });
    m.on(|cpu| {
        assert_eq!(cpu.state.gpr[0], 0xFFFF_FFFF);
        (Exit::NestedFault, [0xD000_0000, 2, 0])
    });
    m.run();
    assert_eq!((m.cpu().rip, m.last().dirty), (ENTRY + 15, Groups::RIP));
    let unmapped = |write| Note::Unmapped {
        gpa: 0xD000_0000,
        width: 4,
        write,
    };
    assert_eq!(m.kernel.notes, [unmapped(false), unmapped(true)]);
}

#[test]
fn a_guest_cannot_fill_the_log() {
    let pages = Pages::default();
    let mut m = machine(&pages);
    m.code(&[0xA1, 0, 0, 0, 0xD0]);
    for _ in 0..100 {
        m.on(|cpu| {
            cpu.state.rip = ENTRY;
            (Exit::NestedFault, [0xD000_0000, 0, 0])
        });
    }
    m.run();
    assert_eq!(m.kernel.notes.len(), super::super::MAX_NOTES as usize);
}

#[test]
fn what_cannot_be_emulated_ends_the_vm() {
    let pages = Pages::default();
    // movaps xmm0, [0xD0000000]
    let mut m = machine(&pages);
    m.code(&[0x0F, 0x28, 0x05, 0, 0, 0, 0xD0])
        .exit(Exit::NestedFault, [0xD000_0000, 0, 0]);
    assert_eq!(m.run(), End::Failed);
    assert!(matches!(
        m.kernel.notes[..],
        [Note::Fatal(Fatal::Unsupported {
            gpa: 0xD000_0000,
            ..
        })]
    ));
    // A fault while an interrupt was being delivered is not the instruction's.
    let mut m = machine(&pages);
    m.code(&[0xA1, 0, 0, 0, 0xD0]).on(|cpu| {
        cpu.undelivered = 0x8000_0040;
        (Exit::NestedFault, [0xD000_0000, 2, 0])
    });
    assert_eq!(m.run(), End::Failed);
    assert_eq!((m.cpu().rip, m.cpu().gpr[0]), (ENTRY, 0x2BAD_B002));
}

#[test]
fn ends() {
    let pages = Pages::default();
    for (exit, end, vm) in [
        (Exit::Shutdown, End::TripleFault, VmEnd::TripleFault),
        (Exit::TaskSwitch, End::Failed, VmEnd::Failed),
        (Exit::EntryFailed, End::Failed, VmEnd::Failed),
        (Exit::Other, End::Failed, VmEnd::Failed),
    ] {
        let mut m = machine(&pages);
        m.exit(exit, [1, 2, 3]);
        assert_eq!(m.run(), end);
        assert_eq!(VmEnd::from(end), vm);
        assert!(matches!(m.kernel.notes[..], [Note::Fatal(_)]));
        assert_eq!(
            m.kernel.groups[exit as usize],
            Groups::ALL,
            "all registers for the log"
        );
    }
    let mut m = machine(&pages);
    m.exit(Exit::Exception, [18, 0, 0]);
    assert_eq!(m.run(), End::Failed);
    let mut m = machine(&pages);
    m.kernel.refuse = Some(Status::Dead);
    assert_eq!(m.run(), End::Failed);
    assert_eq!(m.kernel.notes, [Note::Fatal(Fatal::Kernel(Status::Dead))]);
    let mut m = machine(&pages);
    m.exit(Exit::Signal, [signal::QUIT | signal::DEVICE, 0, 0]);
    assert_eq!(m.run(), End::Killed);
}
