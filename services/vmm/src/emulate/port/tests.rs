//! Port instructions against a recording bus.

use super::super::testing::{CODE, DATA, DEVICE, Paging, machine};
use super::super::{Exception, Unsupported};
use super::*;
use alloc::vec::Vec;
use ipc_schema::abi::vm::gpr::{RAX, RCX, RDI, RDX, RSI};
use proptest::prelude::*;

#[derive(Default)]
struct Ports(Vec<(char, u16, u8, u32)>);

impl PortBus for Ports {
    fn input(&mut self, port: u16, width: u8) -> u32 {
        self.0.push(('i', port, width, 0));
        0xA0B0_C000 + self.0.len() as u32
    }
    fn output(&mut self, port: u16, width: u8, value: u32) {
        self.0.push(('o', port, width, value));
    }
}

const R: u64 = 0x1112_1314_1516_1718;
const DONE: Retired = Retired {
    single_step: false,
    complete: true,
};

/// The exit's word for a string instruction.
fn string(port: u16, width: u8, input: bool) -> PortAccess {
    PortAccess(PortAccess::new(port, width, input).0 | 1 << 21)
}

#[test]
fn plain_in_and_out_merge_by_width() {
    for (width, rax, out) in [
        (1, R & !0xFF | 1, 0x18),
        (2, R & !0xFFFF | 0xC001, 0x1718),
        (4, 0xA0B0_C001, 0x1516_1718),
    ] {
        let (memory, mut state) = machine(Paging::Long4, &[]);
        state.gpr[RAX] = R;
        state.shadow = 1;
        let mut ports = Ports::default();
        let got = emulate(
            &memory,
            &mut state,
            PortAccess::new(0x60, width, true),
            CODE + 2,
            true,
            &mut ports,
        );
        assert_eq!(
            (got, state.gpr[RAX], state.rip, state.shadow),
            (Ok(DONE), rax, CODE + 2, 0)
        );
        state.gpr[RAX] = R;
        let got = emulate(
            &memory,
            &mut state,
            PortAccess::new(0x61, width, false),
            CODE + 3,
            true,
            &mut ports,
        );
        assert_eq!((got, state.gpr[RAX], state.rip), (Ok(DONE), R, CODE + 3));
        assert_eq!(ports.0[1], ('o', 0x61, width, out));
    }
}

#[test]
fn rep_ins_and_outs() {
    // rep insw across a page boundary.
    let (memory, mut state) = machine(Paging::Long4, &[0xF3, 0x66, 0x6D]);
    (state.gpr[RDX], state.gpr[RDI], state.gpr[RCX]) = (0x1F0, DATA + 0xFFD, 3);
    let mut ports = Ports::default();
    let got = emulate(
        &memory,
        &mut state,
        string(0x1F0, 2, true),
        0,
        true,
        &mut ports,
    );
    assert_eq!(
        (got, state.rip, state.gpr[RCX], state.gpr[RDI]),
        (Ok(DONE), CODE + 3, 0, DATA + 0x1003)
    );
    assert_eq!(
        (
            memory.read_u16(0x9FFD),
            memory.read_u8(0x9FFF),
            memory.read_u8(0xB000)
        ),
        (Ok(0xC001), Ok(2), Ok(0xC0))
    );

    // rep outsb in chunks.
    let (memory, mut state) = machine(Paging::Legacy, &[0xF3, 0x6E]);
    (state.gpr[RDX], state.gpr[RSI], state.gpr[RCX]) = (0x3F8, DATA, 257);
    memory.write(0x9000, b"Hi").unwrap();
    let mut ports = Ports::default();
    let got = emulate(
        &memory,
        &mut state,
        string(0x3F8, 1, false),
        0,
        true,
        &mut ports,
    );
    assert_eq!(
        (got.unwrap().complete, state.rip, state.gpr[RCX]),
        (false, CODE, 1)
    );
    assert_eq!(
        ports.0[..2],
        [('o', 0x3F8, 1, b'H'.into()), ('o', 0x3F8, 1, b'i'.into())]
    );
    assert_eq!(
        emulate(
            &memory,
            &mut state,
            string(0x3F8, 1, false),
            0,
            true,
            &mut ports
        ),
        Ok(DONE)
    );
    assert_eq!((state.rip, ports.0.len()), (CODE + 2, 257));
}

#[test]
fn rewritten_or_faulting_strings_touch_no_port() {
    let mut ports = Ports::default();
    let mut attempt = |code: &[u8], access, rdi| {
        let (memory, mut state) = machine(Paging::Long4, code);
        (state.gpr[RDX], state.gpr[RDI], state.gpr[RSI]) = (0x1F0, rdi, rdi);
        emulate(&memory, &mut state, access, 0, true, &mut ports).unwrap_err()
    };
    // Another width, another port, the other direction, no port instruction at all.
    assert_eq!(
        attempt(&[0x6C], string(0x1F0, 2, true), DATA),
        EmulateError::Retry
    );
    assert_eq!(
        attempt(&[0x6C], string(0x1F1, 1, true), DATA),
        EmulateError::Retry
    );
    assert_eq!(
        attempt(&[0x6E], string(0x1F0, 1, true), DATA),
        EmulateError::Retry
    );
    assert_eq!(
        attempt(&[0xA4], string(0x1F0, 1, true), DATA),
        EmulateError::Retry
    );
    assert_eq!(
        attempt(&[0xEC], string(0x1F0, 1, true), DATA),
        EmulateError::Retry
    );
    let fault = EmulateError::Exception(Exception::page_fault(0x1000, 2));
    assert_eq!(attempt(&[0x6C], string(0x1F0, 1, true), 0x1000), fault);
    let fault = EmulateError::Exception(Exception::GENERAL_PROTECTION);
    assert_eq!(attempt(&[0x6C], string(0x1F0, 1, true), 1 << 47), fault);
    // Port to device.
    let got = attempt(&[0x6C], string(0x1F0, 1, true), DEVICE);
    assert!(matches!(
        got,
        EmulateError::Unsupported(Unsupported {
            why: Why::Straddles,
            ..
        })
    ));
    assert!(ports.0.is_empty());
}

proptest! {
    #[test]
    fn any_code_does(code in any::<[u8; 15]>(), which in 0usize..5, gprs in any::<[u64; 16]>(), word in any::<u64>(), paging in 0usize..4) {
        let mut code = code;
        code[1] = [0x6C, 0x6D, 0x6E, 0x6F, code[1]][which];
        let (memory, mut state) = machine(Paging::ALL[paging], &code);
        state.gpr = gprs;
        state.gpr[RDI] = DATA;
        let _ = emulate(&memory, &mut state, PortAccess(word), word, true, &mut Ports::default());
        let _ = emulate(&memory, &mut state, string(gprs[RDX] as u16, 1, true), word, true, &mut Ports::default());
    }
}
