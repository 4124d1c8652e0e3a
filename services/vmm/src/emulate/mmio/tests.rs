//! MMIO instructions carried out against a recording device.

mod strings;

use super::super::testing::{BORDER, CODE, DATA, DEVICE, DEVICE_GPA, Paging, READ_ONLY, machine};
use super::super::{Exception, Retired, Why};
use super::*;
use alloc::vec::Vec;
use ipc_schema::abi::vm::Segment;
use ipc_schema::abi::vm::gpr::{RAX, RBX, RCX, RDI, RSI};
use proptest::prelude::*;

/// What a device saw: 'r' or 'w', address, width, value.
type Log = Vec<(char, u64, u8, u64)>;

/// Answers reads with a pattern and records everything.
#[derive(Default)]
struct Device {
    value: u64,
    log: Log,
}

impl Bus for Device {
    fn read(&mut self, gpa: u64, width: u8) -> u64 {
        self.log.push(('r', gpa, width, 0));
        // The upper part is rubbish that must not get through.
        self.value
    }
    fn write(&mut self, gpa: u64, width: u8, value: u64) {
        self.log.push(('w', gpa, width, value));
    }
}

const READ: u64 = 1 << 32;
const WRITE: u64 = 1 << 32 | 2;
const DONE: Retired = Retired {
    single_step: false,
    complete: true,
};
const VALUE: u64 = 0x8182_8384_8586_8788;
const R: u64 = 0x1112_1314_1516_1718;

/// Runs `code` with rax = R, rbx = DEVICE, rcx = 0x21222324_25262728; gives the log and the state after it.
fn run(code: &[u8], error: u64) -> (Log, alloc::boxed::Box<VcpuState>) {
    let (memory, mut state) = machine(Paging::Long4, code);
    state.gpr[RAX] = R;
    state.gpr[RBX] = DEVICE;
    state.gpr[RCX] = 0x2122_2324_2526_2728;
    state.gpr[9] = 0x91;
    state.shadow = 1;
    state.rflags |= 1 << 16;
    let mut device = Device {
        value: VALUE,
        log: Vec::new(),
    };
    let retired = emulate(
        &memory,
        &mut state,
        DEVICE_GPA + 0x10,
        error,
        true,
        &mut device,
    );
    assert_eq!(retired, Ok(DONE), "{code:02x?}");
    assert_eq!(state.rip, CODE + code.len() as u64, "{code:02x?}");
    assert_eq!(state.shadow, 0);
    assert_eq!(state.rflags & 1 << 16, 0);
    (device.log, state)
}

const AT: u64 = DEVICE_GPA + 0x10;

#[test]
fn stores() {
    for (code, width, value) in [
        (&[0x89, 0x43, 0x10][..], 4, R & 0xFFFF_FFFF),
        (&[0x48, 0x89, 0x43, 0x10], 8, R),
        (&[0x66, 0x89, 0x43, 0x10], 2, 0x1718),
        (&[0x88, 0x43, 0x10], 1, 0x18),
        (&[0x88, 0x63, 0x10], 1, 0x17),       // ah
        (&[0x40, 0x88, 0x63, 0x10], 1, 0x00), // spl
        (&[0x44, 0x89, 0x4B, 0x10], 4, 0x91), // r9d
        (&[0xC7, 0x43, 0x10, 1, 2, 3, 0x84], 4, 0x8403_0201),
        (
            &[0x48, 0xC7, 0x43, 0x10, 1, 2, 3, 0x84],
            8,
            0xFFFF_FFFF_8403_0201,
        ),
        (&[0x66, 0xC7, 0x43, 0x10, 1, 2], 2, 0x0201),
        (&[0xC6, 0x43, 0x10, 0xFE], 1, 0xFE),
        (&[0x89, 0x84, 0x8B, 0, 0, 0, 0], 4, R & 0xFFFF_FFFF),
        (&[0x0F, 0xC3, 0x43, 0x10], 4, R & 0xFFFF_FFFF), // movnti
        (&[0xA3, 0x10, 0, 0x50, 0, 0, 0, 0, 0], 4, R & 0xFFFF_FFFF), // moffs
        (&[0x67, 0x89, 0x43, 0x10], 4, R & 0xFFFF_FFFF),
        (&[0x0F, 0x95, 0x43, 0x10], 1, 1), // setne
        (&[0x0F, 0x94, 0x43, 0x10], 1, 0),
        (&[0x65, 0x89, 0x04, 0x25, 0x10, 0, 0, 0], 4, R & 0xFFFF_FFFF), // gs
    ] {
        let (log, _) = run(code, WRITE);
        assert_eq!(log, [('w', AT, width, value)], "{code:02x?}");
    }
}

#[test]
fn loads() {
    for (code, width, register, value) in [
        (&[0x8B, 0x43, 0x10][..], 4, RAX, 0x8586_8788),
        (&[0x48, 0x8B, 0x43, 0x10], 8, RAX, VALUE),
        (&[0x66, 0x8B, 0x43, 0x10], 2, RAX, R & !0xFFFF | 0x8788),
        (&[0x8A, 0x43, 0x10], 1, RAX, R & !0xFF | 0x88),
        (&[0x8A, 0x63, 0x10], 1, RAX, R & !0xFF00 | 0x8800),
        (&[0x44, 0x8B, 0x4B, 0x10], 4, 9, 0x8586_8788),
        (&[0x0F, 0xB6, 0x43, 0x10], 1, RAX, 0x88), // movzx eax, m8
        (&[0x66, 0x0F, 0xB6, 0x43, 0x10], 1, RAX, R & !0xFFFF | 0x88),
        (&[0x0F, 0xB7, 0x43, 0x10], 2, RAX, 0x8788),
        (&[0x48, 0x0F, 0xB7, 0x43, 0x10], 2, RAX, 0x8788),
        (&[0x0F, 0xBE, 0x43, 0x10], 1, RAX, 0xFFFF_FF88), // movsx eax, m8
        (
            &[0x48, 0x0F, 0xBE, 0x43, 0x10],
            1,
            RAX,
            0xFFFF_FFFF_FFFF_FF88,
        ),
        (
            &[0x48, 0x0F, 0xBF, 0x43, 0x10],
            2,
            RAX,
            0xFFFF_FFFF_FFFF_8788,
        ),
        (&[0x48, 0x63, 0x43, 0x10], 4, RAX, 0xFFFF_FFFF_8586_8788), // movsxd
        (&[0xA1, 0x10, 0, 0x50, 0, 0, 0, 0, 0], 4, RAX, 0x8586_8788),
        // cmovne and cmove, with ZF clear: the latter only zero-extends.
        (&[0x0F, 0x45, 0x43, 0x10], 4, RAX, 0x8586_8788),
        (&[0x0F, 0x44, 0x43, 0x10], 4, RAX, R & 0xFFFF_FFFF),
        (&[0x66, 0x0F, 0x44, 0x43, 0x10], 2, RAX, R),
    ] {
        let (log, state) = run(code, READ);
        assert_eq!(log, [('r', AT, width, 0)], "{code:02x?}");
        assert_eq!(state.gpr[register], value, "{code:02x?}");
    }
    // Into rsp, which lives elsewhere.
    let (_, state) = run(&[0x48, 0x8B, 0x63, 0x10], READ);
    assert_eq!(state.rsp, VALUE);
}

#[test]
fn read_modify_write() {
    for (code, width, value, zf_cf) in [
        (&[0x09, 0x43, 0x10][..], 4, 0x8586_8788 | 0x1516_1718, 0),
        (&[0xF0, 0x83, 0x4B, 0x10, 0x01], 4, 0x8586_8789, 0), // lock or dword, 1
        (&[0x80, 0x63, 0x10, 0x77], 1, 0, 0x40),              // and byte
        (&[0x81, 0x73, 0x10, 0x88, 0x87, 0x86, 0x85], 4, 0, 0x40),
        (&[0x48, 0x01, 0x43, 0x10], 8, VALUE.wrapping_add(R), 0),
        (&[0x48, 0x83, 0x43, 0x10, 0xFF], 8, VALUE - 1, 1),
        (&[0x29, 0x43, 0x10], 4, 0x8586_8788u64 - 0x1516_1718, 0),
        (&[0xFF, 0x43, 0x10], 4, 0x8586_8789, 0), // inc
        (&[0xFE, 0x4B, 0x10], 1, 0x87, 0),        // dec
        (&[0xF7, 0x53, 0x10], 4, 0x7A79_7877, 0), // not
        (&[0xF7, 0x5B, 0x10], 4, 0x7A79_7878, 1), // neg
        (&[0x0F, 0xBA, 0x6B, 0x10, 0x23], 4, 0x8586_8788, 1), // bts dword, 35 = bit 3
        (&[0x0F, 0xBA, 0x73, 0x10, 0x03], 4, 0x8586_8780, 1), // btr
        (&[0x0F, 0xAB, 0x4B, 0x10], 4, 0x8586_8788, 1), // bts [m], ecx: bit 0x28 % 32
    ] {
        let (log, state) = run(code, WRITE);
        assert_eq!(
            log,
            [('r', AT, width, 0), ('w', AT, width, value)],
            "{code:02x?}"
        );
        assert_eq!(state.rflags & 0x41, zf_cf, "{code:02x?}");
    }
    // xadd [m], eax; lock cmpxchg [m], ecx that fails, and (al against the byte's value) one that succeeds.
    let (log, state) = run(&[0x0F, 0xC1, 0x43, 0x10], WRITE);
    let sum = (0x8586_8788 + 0x1516_1718) & 0xFFFF_FFFF;
    assert_eq!(log, [('r', AT, 4, 0), ('w', AT, 4, sum)]);
    assert_eq!(state.gpr[RAX], 0x8586_8788);
    let (log, state) = run(&[0xF0, 0x0F, 0xB1, 0x4B, 0x10], WRITE);
    assert_eq!(log, [('r', AT, 4, 0), ('w', AT, 4, 0x8586_8788)]);
    assert_eq!((state.gpr[RAX], state.rflags & 0x40), (0x8586_8788, 0));
    let (memory, mut state) = machine(Paging::Long4, &[0x48, 0x0F, 0xB1, 0x4B, 0x10]);
    (state.gpr[RAX], state.gpr[RBX], state.gpr[RCX]) = (VALUE, DEVICE, R);
    let mut device = Device {
        value: VALUE,
        log: Vec::new(),
    };
    let got = emulate(&memory, &mut state, AT, WRITE, true, &mut device);
    assert_eq!((got, state.gpr[RAX]), (Ok(DONE), VALUE));
    assert_eq!(device.log, [('r', AT, 8, 0), ('w', AT, 8, R)]);
    assert_eq!(state.rflags & 0x40, 0x40);
    let (log, state) = run(&[0x87, 0x43, 0x10], WRITE);
    assert_eq!(log, [('r', AT, 4, 0), ('w', AT, 4, 0x1516_1718)]);
    assert_eq!(state.gpr[RAX], 0x8586_8788);
}

#[test]
fn reads_for_flags_or_into_a_register() {
    for (code, width, rax, zf_cf) in [
        (&[0x39, 0x43, 0x10][..], 4, R, 0), // cmp [m], eax
        (&[0x3B, 0x43, 0x10], 4, R, 1),     // cmp eax, [m]
        (&[0x80, 0x7B, 0x10, 0x88], 1, R, 0x40),
        (&[0xF6, 0x43, 0x10, 0x77], 1, R, 0x40), // test
        (&[0x85, 0x43, 0x10], 4, R, 0),
        (&[0x0F, 0xBA, 0x63, 0x10, 0x03], 4, R, 1), // bt
        (&[0x23, 0x43, 0x10], 4, 0x8586_8788 & 0x1516_1718, 0), // and eax, [m]
        (&[0x48, 0x03, 0x43, 0x10], 8, VALUE.wrapping_add(R), 0),
        (&[0x0A, 0x43, 0x10], 1, R & !0xFF | 0x98, 0),
    ] {
        let (log, state) = run(code, READ);
        assert_eq!(log, [('r', AT, width, 0)], "{code:02x?}");
        assert_eq!(
            (state.gpr[RAX], state.rflags & 0x41),
            (rax, zf_cf),
            "{code:02x?}"
        );
    }
}

#[test]
fn the_exit_bounds_what_the_code_may_do() {
    let try_it = |code: &[u8], error| {
        let (memory, mut state) = machine(Paging::Long4, code);
        let before = *state;
        let mut device = Device::default();
        let got = emulate(&memory, &mut state, AT, error, true, &mut device);
        assert_eq!(
            (state.rip, state.gpr, state.rflags),
            (before.rip, before.gpr, before.rflags)
        );
        assert!(device.log.is_empty());
        got.unwrap_err()
    };
    let why = |e| match e {
        EmulateError::Unsupported(u) => u.why,
        e => panic!("{e:?}"),
    };
    // A load became a store, and the other way round.
    assert_eq!(try_it(&[0x89, 0x43, 0x10], READ), EmulateError::Retry);
    assert_eq!(try_it(&[0x8B, 0x43, 0x10], WRITE), EmulateError::Retry);
    assert_eq!(try_it(&[0x39, 0x43, 0x10], WRITE), EmulateError::Retry);
    assert_eq!(
        why(try_it(&[0x89, 0x43, 0x10], 1 << 4)),
        Why::CodeOutsideRam
    );
    assert_eq!(why(try_it(&[0x89, 0x43, 0x10], 1 << 33)), Why::PageTables);
    // push [m]; call [m]; fld; movaps; a plain NOP; nonsense.
    for code in [
        &[0xFF, 0x73, 0x10][..],
        &[0xFF, 0x53, 0x10],
        &[0xD9, 0x43, 0x10],
        &[0x0F, 0x28, 0x43, 0x10],
        &[0x90],
    ] {
        assert_eq!(why(try_it(code, READ)), Why::Instruction, "{code:02x?}");
    }
    assert_eq!(why(try_it(&[0x0F, 0x04], READ)), Why::Undecodable);
}

/// A read told for an instruction that also writes (QEMU's way): carried out only if the guest may write there.
#[test]
fn a_read_told_for_a_change_needs_the_right_to_write() {
    for (code, writes) in [
        (&[0x09, 0x43, 0x10][..], true),         // or [rbx+10h], eax
        (&[0x0F, 0xBA, 0x6B, 0x10, 0x02], true), // bts dword [rbx+10h], 2
        (&[0x39, 0x43, 0x10], false),            // cmp: reads only
    ] {
        assert_eq!(
            run(code, READ).0.len(),
            1 + usize::from(writes),
            "{code:02x?}"
        );
    }
    // bts [rbx], rcx with bit -60 or 40: the operand is where the processor told, not where rbx points.
    for (bit, at) in [(40u64, 0x14), (0u64.wrapping_sub(60), 0x8)] {
        let (memory, mut state) = machine(Paging::Long4, &[0x0F, 0xAB, 0x4B, 0x10]);
        (state.gpr[RBX], state.gpr[RCX]) = (DEVICE, bit);
        let mut device = Device::default();
        let at = DEVICE_GPA + at;
        let got = emulate(&memory, &mut state, at, READ, true, &mut device);
        assert_eq!(got, Ok(DONE), "{bit:#x}");
        assert_eq!(device.log.len(), 2);
        assert_eq!(device.log[1].1, at);
    }
    // A page that the guest may only read.
    let (memory, mut state) = machine(Paging::Long4, &[0x09, 0x03]);
    state.gpr[RBX] = READ_ONLY;
    state.cr0 |= 1 << 16;
    let mut device = Device::default();
    let got = emulate(&memory, &mut state, DEVICE_GPA, READ, true, &mut device);
    let fault = EmulateError::Exception(Exception::page_fault(READ_ONLY, 0b11));
    assert_eq!((got, device.log.len()), (Err(fault), 0));
}

/// Operands across two pages: the processor tells the first byte that is a device's.
#[test]
fn operands_across_pages_go_byte_by_byte() {
    let load = &[0x48, 0x8B, 0x03][..]; // mov rax, [rbx]
    let store = &[0x48, 0x89, 0x03][..];
    let run = |code: &[u8], rbx: u64, gpa: u64, error| {
        let (memory, mut state) = machine(Paging::Long4, code);
        memory.write(0xDFF8, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        (state.gpr[RBX], state.gpr[RAX]) = (rbx, R);
        let mut device = Device {
            value: 0xA5,
            log: Vec::new(),
        };
        let got = emulate(&memory, &mut state, gpa, error, true, &mut device);
        (got, state.gpr[RAX], device.log)
    };
    // Device to device.
    let (got, rax, log) = run(load, DEVICE + 0xFFD, DEVICE_GPA + 0xFFD, READ);
    assert_eq!((got, rax), (Ok(DONE), 0xA5A5_A5A5_A5A5_A5A5));
    let bytes: Log = (0..8)
        .map(|i| ('r', DEVICE_GPA + 0xFFD + i, 1, 0))
        .collect();
    assert_eq!(log, bytes);
    // RAM to device: the address told is the second page's, and not where the operand begins.
    let (got, _, log) = run(store, BORDER - 3, DEVICE_GPA, WRITE);
    let places = (0..3)
        .map(|i| 0xDFFD + i)
        .chain((0..5).map(|i| DEVICE_GPA + i));
    let bytes: Log = (0u32..)
        .zip(places)
        .map(|(i, gpa)| ('w', gpa, 1, R >> (8 * i) & 0xFF))
        .collect();
    assert_eq!((got, log), (Ok(DONE), bytes));
    // At the start of a page, however it is addressed: one access.
    for (code, rbx) in [
        (load, DEVICE),
        (&[0x48, 0x8B, 0x43, 0x10], DEVICE - 0x10),
        (&[0x48, 0x8B, 0x04, 0x25, 0, 0, 0x50, 0], 0),
    ] {
        let (got, _, log) = run(code, rbx, DEVICE_GPA, READ);
        assert_eq!(got, Ok(DONE), "{code:02x?}");
        assert_eq!(log, [('r', DEVICE_GPA, 8, 0)], "{code:02x?}");
    }
    // What does not fit the address told; a second page that is gone; a third byte of nothing.
    let (got, _, log) = run(load, DEVICE + 8, DEVICE_GPA, READ);
    assert_eq!((got, log.len()), (Err(EmulateError::Retry), 0));
    let (got, _, log) = run(load, DEVICE + 0x1FFD, DEVICE_GPA + 0x1FFD, READ);
    let fault = EmulateError::Exception(Exception::page_fault(DEVICE + 0x2000, 0));
    assert_eq!((got, log.len()), (Err(fault), 0));
    // xchg reads and writes all of it.
    let (got, rax, log) = run(
        &[0x66, 0x87, 0x03],
        DEVICE + 0xFFF,
        DEVICE_GPA + 0xFFF,
        WRITE,
    );
    assert_eq!((got, rax), (Ok(DONE), R & !0xFFFF | 0xA5A5));
    assert_eq!(
        log,
        [
            ('r', DEVICE_GPA + 0xFFF, 1, 0),
            ('r', DEVICE_GPA + 0x1000, 1, 0),
            ('w', DEVICE_GPA + 0xFFF, 1, 0x18),
            ('w', DEVICE_GPA + 0x1000, 1, 0x17),
        ]
    );
}

#[test]
fn trap_flag_asks_for_a_debug_exception() {
    let (memory, mut state) = machine(Paging::Long4, &[0x89, 0x03]);
    state.rflags |= 1 << 8;
    let got = emulate(&memory, &mut state, AT, WRITE, true, &mut Device::default());
    assert_eq!(
        got,
        Ok(Retired {
            single_step: true,
            complete: true
        })
    );
}

#[test]
fn legacy_modes_decode_their_own_way() {
    // 32-bit: 48 is DEC EAX, not REX; A3 has a 32-bit address.
    for paging in [Paging::Pae, Paging::Legacy] {
        let (memory, mut state) = machine(paging, &[0xA3, 0x10, 0, 0x50, 0]);
        state.gpr[RAX] = R;
        let mut device = Device::default();
        assert_eq!(
            emulate(&memory, &mut state, AT, WRITE, true, &mut device),
            Ok(DONE)
        );
        assert_eq!(
            (state.rip, device.log[0]),
            (CODE + 5, ('w', AT, 4, R & 0xFFFF_FFFF))
        );
    }
    // Real mode: mov [bx], ax.
    let memory = GuestMemory::owned(&[(0, 0x4_0000)]);
    memory.write(0x1_0000, &[0x89, 0x07]).unwrap();
    let mut state = super::super::testing::state();
    (state.cs.base, state.ds.base) = (0x1_0000, 0xA_0000);
    state.gpr[RAX] = R;
    let mut device = Device::default();
    assert_eq!(
        emulate(&memory, &mut state, 0xA_0000, WRITE, true, &mut device),
        Ok(DONE)
    );
    assert_eq!(device.log, [('w', 0xA_0000, 2, 0x1718)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn any_code_and_state_do(
        code in prop::collection::vec(any::<u8>(), 15),
        opcode in any::<Option<prop::sample::Index>>(),
        gprs in prop::collection::vec(prop_oneof![any::<u64>(), DEVICE..DEVICE + 0x2000, DATA..DATA + 0x2000, 0u64..600], 16),
        rflags in any::<u64>(), paging in 0usize..4, error in prop_oneof![Just(READ), Just(WRITE)],
        es in any::<(u16, u32)>(), offset in 0u64..0x1000,
    ) {
        let mut code = code;
        const LIKELY: [u8; 12] = [0xA4, 0xA5, 0xAA, 0xAB, 0xAC, 0xAD, 0x80, 0x81, 0x83, 0xF6, 0xF7, 0xFF];
        if let Some(i) = opcode { code[1] = LIKELY[i.index(12)] }
        let (memory, mut state) = machine(Paging::ALL[paging], &code);
        state.gpr.copy_from_slice(&gprs);
        state.rflags = rflags;
        if es.0 & 1 == 0 { (state.es.attributes, state.es.limit) = es }
        let mut device = Device::default();
        let before = state.rip;
        match emulate(&memory, &mut state, DEVICE_GPA + offset, error, true, &mut device) {
            Ok(retired) => {
                let moved = state.rip.wrapping_sub(before);
                let expected = if retired.complete { 1..=15 } else { 0..=0 };
                prop_assert!(expected.contains(&moved));
            }
            Err(_) => prop_assert_eq!(state.rip, before),
        }
        // No device access reaches RAM.
        prop_assert!(device.log.iter().all(|(_, gpa, width, _)| !memory.contains(*gpa, u64::from(*width))));
    }
}
