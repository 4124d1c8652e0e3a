//! String instructions between RAM and a device: REP in chunks, directions, segments.

use super::*;

fn string(
    code: &[u8],
    rsi: u64,
    rdi: u64,
    rcx: u64,
) -> (GuestMemory, alloc::boxed::Box<VcpuState>) {
    let (memory, mut state) = machine(Paging::Long4, code);
    (
        state.gpr[RSI],
        state.gpr[RDI],
        state.gpr[RCX],
        state.gpr[RAX],
    ) = (rsi, rdi, rcx, R);
    (memory, state)
}

#[test]
fn rep_stos_and_movs_run_in_chunks() {
    // rep stosd
    let (memory, mut state) = string(&[0xF3, 0xAB], 0, DEVICE, 300);
    let mut device = Device::default();
    let got = emulate(&memory, &mut state, DEVICE_GPA, WRITE, true, &mut device);
    assert_eq!(
        got,
        Ok(Retired {
            single_step: false,
            complete: false
        })
    );
    assert_eq!(
        (state.rip, state.gpr[RCX], state.gpr[RDI]),
        (CODE, 44, DEVICE + 1024)
    );
    assert_eq!(device.log.len(), 256);
    assert_eq!(device.log[255], ('w', DEVICE_GPA + 1020, 4, 0x1516_1718));
    let got = emulate(
        &memory,
        &mut state,
        DEVICE_GPA + 1024,
        WRITE,
        true,
        &mut device,
    );
    assert_eq!((got, state.rip, state.gpr[RCX]), (Ok(DONE), CODE + 2, 0));
    assert_eq!(device.log.len(), 300);

    // rep movsw from RAM, across its page boundary (two pages apart in memory), into the device.
    let (memory, mut state) = string(&[0xF3, 0x66, 0xA5], DATA + 0xFFD, DEVICE, 3);
    memory.write(0x9FFD, &[1, 2, 3]).unwrap();
    memory.write(0xB000, &[4, 5, 6]).unwrap();
    let mut device = Device::default();
    assert_eq!(
        emulate(&memory, &mut state, DEVICE_GPA, WRITE, true, &mut device),
        Ok(DONE)
    );
    assert_eq!(
        device.log,
        [
            ('w', DEVICE_GPA, 2, 0x0201),
            ('w', DEVICE_GPA + 2, 2, 0x0403),
            ('w', DEVICE_GPA + 4, 2, 0x0605)
        ]
    );

    // movsq from the device into RAM, backwards.
    let (memory, mut state) = string(&[0x48, 0xA5], DEVICE + 8, DATA + 0xFFC, 5);
    state.rflags |= 1 << 10;
    let mut device = Device {
        value: VALUE,
        ..Device::default()
    };
    assert_eq!(
        emulate(&memory, &mut state, DEVICE_GPA + 8, READ, true, &mut device),
        Ok(DONE)
    );
    assert_eq!(
        (state.gpr[RSI], state.gpr[RDI], state.gpr[RCX]),
        (DEVICE, DATA + 0xFF4, 5)
    );
    assert_eq!(
        (memory.read_u32(0x9FFC), memory.read_u32(0xB000)),
        (Ok(0x8586_8788), Ok(0x8182_8384))
    );

    // From device to device, and lodsb.
    let (memory, mut state) = string(&[0xA4], DEVICE, DEVICE + 0x1000, 0);
    let mut device = Device {
        value: VALUE,
        ..Device::default()
    };
    assert_eq!(
        emulate(&memory, &mut state, DEVICE_GPA, READ, true, &mut device),
        Ok(DONE)
    );
    assert_eq!(
        device.log,
        [('r', DEVICE_GPA, 1, 0), ('w', DEVICE_GPA + 0x1000, 1, 0x88)]
    );
    let (memory, mut state) = string(&[0xAC], DEVICE, 0, 0);
    assert_eq!(
        emulate(&memory, &mut state, DEVICE_GPA, READ, true, &mut device),
        Ok(DONE)
    );
    assert_eq!(state.gpr[RAX], R & !0xFF | 0x88);
}

#[test]
fn a_string_runs_from_a_device_into_ram() {
    // Backwards from the device's first dword into the page before it: none, so a page fault is due, with the first
    // element done.
    let (memory, mut state) = string(&[0xF3, 0xAB], 0, DEVICE, 2);
    state.rflags |= 1 << 10;
    let mut device = Device::default();
    let got = emulate(&memory, &mut state, DEVICE_GPA, WRITE, true, &mut device);
    assert_eq!(
        got,
        Err(EmulateError::Exception(Exception::page_fault(
            DEVICE - 4,
            0b10
        )))
    );
    assert_eq!(
        (state.rip, state.gpr[RCX], state.gpr[RDI], device.log.len()),
        (CODE, 1, DEVICE - 4, 1)
    );
    // With RAM there, no device sees the second.
    let (memory, mut state) = string(&[0xF3, 0xAB], 0, DATA, 2);
    let mut device = Device::default();
    assert_eq!(
        emulate(&memory, &mut state, DEVICE_GPA, WRITE, true, &mut device),
        Ok(DONE)
    );
    assert_eq!(
        (memory.read_u64(0x9000), device.log.len()),
        (Ok(0x1516_1718_1516_1718), 0)
    );
    // No elements, not even a translation.
    let (memory, mut state) = string(&[0xF3, 0xAB], 0, 0x1234_5678, 0);
    assert_eq!(
        emulate(&memory, &mut state, DEVICE_GPA, WRITE, true, &mut device),
        Ok(DONE)
    );
}

#[test]
fn strings_obey_segments() {
    let (memory, mut state) = machine(Paging::Pae, &[0xAB]);
    state.gpr[RDI] = DEVICE;
    state.es.limit = (DEVICE + 2) as u32;
    let mut device = Device::default();
    let gp = Err(EmulateError::Exception(Exception::GENERAL_PROTECTION));
    assert_eq!(
        emulate(&memory, &mut state, DEVICE_GPA, WRITE, true, &mut device),
        gp
    );
    state.es.limit = (DEVICE + 3) as u32;
    assert_eq!(
        emulate(&memory, &mut state, DEVICE_GPA, WRITE, true, &mut device),
        Ok(DONE)
    );
    // Read-only, not present, expand-down.
    for (attributes, limit, rdi, ok) in [
        (0xC91, 0xFFFF_FFFF, DEVICE, false),
        (0xC13, 0xFFFF_FFFF, DEVICE, false),
        (0xC97, DEVICE as u32, DEVICE, false),
        (0xC97, DEVICE as u32 - 1, DEVICE, true),
    ] {
        (state.rip, state.gpr[RDI]) = (CODE, rdi);
        (state.es.attributes, state.es.limit) = (attributes, limit);
        let got = emulate(&memory, &mut state, DEVICE_GPA, WRITE, true, &mut device);
        assert_eq!(got, if ok { Ok(DONE) } else { gp }, "{attributes:#x}");
    }
    // The segment's base counts.
    let (memory, mut state) = machine(Paging::Pae, &[0xAB]);
    (state.gpr[RDI], state.es.base) = (0x20, DEVICE);
    let mut device = Device::default();
    assert_eq!(
        emulate(&memory, &mut state, DEVICE_GPA, WRITE, true, &mut device),
        Ok(DONE)
    );
    assert_eq!(device.log[0].1, DEVICE_GPA + 0x20);
    // FS and GS have one in 64-bit code too, once group DESC is there; the destination is never theirs.
    for (prefix, gs) in [(0x64, false), (0x65, true)] {
        let (memory, mut state) = string(&[prefix, 0xA4], 0x20, DATA, 0);
        *(if gs { &mut state.gs } else { &mut state.fs }) = Segment {
            base: DEVICE,
            ..Segment::default()
        };
        state.ds.base = 0x1234;
        let got = emulate(&memory, &mut state, AT, READ, false, &mut device);
        assert!(matches!(got, Err(EmulateError::Unsupported(u)) if u.why == Why::Segment));
        let mut device = Device {
            value: VALUE,
            log: Vec::new(),
        };
        let got = emulate(&memory, &mut state, AT, READ, true, &mut device);
        assert_eq!((got, state.rip), (Ok(DONE), CODE + 2));
        assert_eq!(device.log, [('r', DEVICE_GPA + 0x20, 1, 0)]);
        assert_eq!(memory.read_u8(0x9000), Ok(0x88));
        // A base that leads out of the canonical addresses.
        let fs = if gs { &mut state.gs } else { &mut state.fs };
        (fs.base, state.rip) = (1 << 47, CODE);
        let got = emulate(&memory, &mut state, AT, READ, true, &mut device);
        assert_eq!(
            got,
            Err(EmulateError::Exception(Exception::GENERAL_PROTECTION))
        );
    }
}
