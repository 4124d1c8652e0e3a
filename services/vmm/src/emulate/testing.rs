//! What the emulator's tests share.

use ipc_schema::abi::vm::{Segment, VcpuState};

/// A zeroed state page.
pub(crate) fn state() -> alloc::boxed::Box<VcpuState> {
    let none = Segment::default();
    alloc::boxed::Box::new(VcpuState {
        gpr: [0; 16],
        rip: 0,
        rsp: 0,
        rflags: 2,
        shadow: 0,
        cpl: 0,
        cr0: 0,
        cr2: 0,
        cr3: 0,
        cr4: 0,
        efer: 0,
        es: none,
        cs: none,
        ss: none,
        ds: none,
        fs: none,
        gs: none,
        ldtr: none,
        tr: none,
        gdtr: none,
        idtr: none,
        star: 0,
        lstar: 0,
        cstar: 0,
        sfmask: 0,
        kernel_gs_base: 0,
        sysenter_cs: 0,
        sysenter_esp: 0,
        sysenter_eip: 0,
        pat: 0,
        dr: [0; 4],
        dr6: 0,
        dr7: 0,
        xcr0: 0,
        tsc_offset: 0,
        tsc_aux: 0,
    })
}
