//! A guest whose TSC counts at a rate of its own.

use super::exits::not_under_test;
use super::fake::{Pages, access, machine_on, try_machine_on};
use crate::machine::Exit;
use ipc_schema::abi::vm::{gpr, offers};
use ipc_schema::manifest::Vm;

#[test]
fn its_msrs_and_deadlines_are_in_its_own_cycles() {
    let pages = Pages::default();
    let mut vm = not_under_test();
    // A quarter of the machine's.
    vm.tsc_mhz = 250;
    let mut m = machine_on(&vm, &pages, offers::TSC_RATIO);
    let mut code = [[0x0F, 0x30]; 6].concat();
    code.extend([0x0F, 0x32].repeat(2));
    m.code(&code);
    m.on(access(Exit::Wrmsr, 0x1B, 0xFEE0_0D00));
    m.on(access(Exit::Wrmsr, 0x80F, 0x1FF));
    m.on(access(Exit::Wrmsr, 0x832, 0x4_0040));
    m.on(access(Exit::Wrmsr, 0x6E0, 5_000));
    m.on(access(Exit::Wrmsr, 0x10, 3_000));
    m.on(access(Exit::Wrmsr, 0x6E0, 6_000));
    m.on(|cpu| {
        cpu.now += 400;
        access(Exit::Rdmsr, 0x10, 0)(cpu)
    });
    m.on(|cpu| {
        assert_eq!(cpu.state.gpr[gpr::RAX], 3_100);
        access(Exit::Rdmsr, 0x6E0, 0)(cpu)
    });
    m.on(|cpu| {
        assert_eq!(cpu.state.gpr[gpr::RAX], 6_000);
        (Exit::Init, [0; 3])
    });
    m.run();
    let deadlines: std::vec::Vec<u64> = m.kernel.entries.iter().map(|e| e.deadline).collect();
    assert_eq!(deadlines[4], 1_000_000 + 4 * 5_000);
    assert_eq!(deadlines[5], 1_000_000 + 4 * 2_000, "it has jumped 3000");
    assert_eq!(deadlines[6], 1_000_000 + 4 * 3_000);
    assert_eq!(m.cpu().tsc_ratio, 1 << 46);
}

#[test]
fn the_machines_own_rate_needs_no_processor_that_scales() {
    let pages = Pages::default();
    let mut vm = not_under_test();
    for mhz in [0, 1000] {
        vm.tsc_mhz = mhz;
        assert_eq!(machine_on(&vm, &pages, 0).cpu().tsc_ratio, 0);
    }
}

#[test]
fn what_cannot_be_is_named() {
    let pages = Pages::default();
    let mut vm = not_under_test();
    vm.tsc_mhz = 2000;
    let refused = |vm: &Vm, offers| match try_machine_on(vm, &pages, offers) {
        Ok(_) => panic!("it is built"),
        Err(error) => std::format!("{error}"),
    };
    let error = refused(&vm, 0);
    assert!(
        error.contains("tsc_mhz = 2000: this processor cannot scale"),
        "{error}"
    );
    assert!(error.contains("counts at 1000 MHz"), "{error}");
    vm.tsc_mhz = 256_000;
    let error = refused(&vm, offers::TSC_RATIO);
    assert!(error.contains("too far"), "{error}");
}
