//! What exits cost that instructions do not show: accesses to the VMCS. No exit here accesses an MSR: the lists of the VM entry and exit
//! are empty, and what other state a VMM is shown comes from the VMCS or from where it was saved at a switch between vCPUs.

use super::vmx::Guest;
use super::*;
use crate::object::guest_space::Way;
use crate::virt::vmx::control::{ACCESSES, peek, poke};
use crate::virt::vmx::exit::check::THEN;
use ipc_schema::abi::op;
use ipc_schema::abi::vm::{Exit, Groups, Post};
use x86::vmx::vmcs::{control as c, guest as g, ro};

const CPUID: u64 = 10;
const HLT: u64 = 12;
const IO: u64 = 30;
const EPT_VIOLATION: u64 = 48;
const IF: u64 = 1 << 9;

/// VMREADs, VMWRITEs, INVEPTs and INVVPIDs of something.
fn taken(f: impl FnOnce()) -> [u64; 4] {
    let now = || ACCESSES.with(|a| a.each_ref().map(std::cell::Cell::get));
    let before = now();
    f();
    let after = now();
    std::array::from_fn(|i| after[i] - before[i])
}

/// As a VMM does it: these groups come with such exits, and the instruction is passed over. The entry behind an exit is its own.
fn exit_and_entry(m: &Guest, exit: Exit, groups: u64, reason: u64, qualification: u64) -> [u64; 4] {
    let asked = [exit as u64, groups, 0, 0];
    assert_eq!(
        m.m.operate(m.t, m.slot, op::vcpu::ON_EXIT, asked),
        Status::Ok
    );
    m.leaves(HLT, 0x1000, 2 | IF);
    m.run(Groups::ALL, Post::NONE, 0);
    m.leaves(reason, 0x1000, 2 | IF);
    poke(ro::EXIT_QUALIFICATION, qualification);
    m.run(Groups::RIP, Post::NONE, 0);
    m.state().rip += 2;
    let took = taken(|| {
        let (word, _) = m.run(Groups::RIP, Post::NONE, 0);
        assert_eq!(word.exit(), exit);
    });
    assert_eq!(peek(c::VMEXIT_MSR_LOAD_COUNT), 0);
    assert_eq!(peek(c::VMEXIT_MSR_STORE_COUNT), 0);
    assert_eq!(peek(c::VMENTRY_MSR_LOAD_COUNT), 0);
    took
}

#[test]
fn a_cpuid_exit_takes_four_reads_and_one_write() {
    let m = Guest::new();
    let on_exit = [Exit::Cpuid as u64, Groups::IP, 0, 0];
    let asked = m.m.operate(m.t, m.slot, op::vcpu::ON_EXIT, on_exit);
    assert_eq!(asked, Status::Ok);
    m.leaves(CPUID, 0, 2);
    m.run(Groups::ALL, Post::NONE, 0);
    for round in 0..3 {
        m.leaves(CPUID, 0x1000 + round, 2 | IF);
        m.run(Groups::RIP, Post::NONE, 0);
        assert_eq!((m.state().rip, m.state().rflags), (0x1000 + round, 2 | IF));
        assert_eq!(m.t.get().get(reg::R12), 2, "length");
        m.state().rip += 2;
        // It is the entry that shows what the VMM wrote.
        let took = taken(|| {
            m.run(Groups::RIP, Post::NONE, 0);
        });
        assert_eq!(took, [4, 1, 0, 0], "VMREAD, VMWRITE, INVEPT, INVVPID");
    }
}

/// The figures of COSTS.md.
#[test]
fn what_other_exits_take() {
    let m = Guest::new();
    // OUT to port 0xf4, a byte.
    let out = 0xf4 << 16;
    let port = exit_and_entry(&m, Exit::Port, Groups::RIP, IO, out);
    // A store that the nested tables do not allow; the VMM is told what it decodes by.
    let groups = Groups::RIP | Groups::CR | Groups::SEG;
    let store = exit_and_entry(&m, Exit::NestedFault, groups, EPT_VIOLATION, 2);
    // A doorbell: the guest goes on at once.
    let (bell, _) = m.m.notification();
    let cap = crate::object::Cap::new(bell.get().header());
    m.space
        .get()
        .add_route(0xf4, 1, Way::Doorbell(None), cap, 0)
        .unwrap();
    m.leaves(IO, 0x1000, 2 | IF);
    poke(ro::EXIT_QUALIFICATION, out);
    // Whoever waits for it goes on: the run does not come to its next exit here.
    THEN.set(Some(HLT));
    m.m.cpu.reschedule.set(true);
    let route = taken(|| {
        m.m.sys(m.t, 4, m.slot, Groups::RIP, [Post::NONE.0, 0, 0, 0], NEVER);
    });
    assert!(bell.get().pending());
    assert_eq!(peek(g::RIP), 0x1000);
    assert_eq!(port, [11, 2, 0, 0], "IN or OUT answered by the VMM");
    assert_eq!(store, [35, 2, 0, 0], "MMIO");
    assert_eq!(route, [5, 1, 0, 0], "IN, OUT or doorbell by an exit route");
}
