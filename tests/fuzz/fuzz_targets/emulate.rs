//! The instruction emulator: any code, registers and page tables, for MMIO, string ports and instruction lengths.
#![no_main]

extern crate alloc;

use fuzz::{Bytes, target};
use ipc_schema::abi::vm::{PortAccess, VcpuState};
use testing::Paging;
use vmm::emulate::{EmulateError, Exception, Expected, Retired, instruction_length, mmio, port};
use vmm::memory::{self, GuestMemory};

#[allow(dead_code, reason = "the emulator's own tests need more of it")]
#[path = "../../../services/vmm/src/emulate/testing.rs"]
mod testing;

target!(run, seeds);

const EXPECTED: [(Expected, &[&[u8]]); 12] = [
    (Expected::Cpuid, &[b"\x0f\xa2"]),
    (Expected::Rdmsr, &[b"\x0f\x32"]),
    (Expected::Wrmsr, &[b"\x0f\x30"]),
    (Expected::Hlt, &[b"\xf4"]),
    (Expected::Vmcall, &[b"\x0f\x01\xd9", b"\x0f\x01\xc1"]),
    (Expected::Wbinvd, &[b"\x0f\x08", b"\x0f\x09"]),
    (Expected::Xsetbv, &[b"\x0f\x01\xd1"]),
    (Expected::Rdpmc, &[b"\x0f\x33"]),
    (Expected::Rdtsc, &[b"\x0f\x31"]),
    (Expected::Rdtscp, &[b"\x0f\x01\xf9"]),
    (Expected::Clts, &[b"\x0f\x06"]),
    (Expected::Monitor, &[b"\x0f\x01\xc8", b"\x0f\x01\xc9"]),
];

/// Layout of an input: 16 bytes of code, then how the machine is.
fn seeds() -> Vec<Vec<u8>> {
    let code: [&[u8]; 16] = [
        b"\x89\x08",
        b"\x8b\x00",
        b"\x48\x89\x10",
        b"\xc7\x00\x01\x02\x03\x04",
        b"\x66\x0f\xb6\x08",
        b"\xf3\xa4",
        b"\xf3\x48\xab",
        b"\xf3\x6c",
        b"\xf3\x6f",
        b"\x64\xa5",
        b"\x0f\xb1\x08",
        b"\xf0\x0f\xc1\x08",
        b"\x81\x08\x01\x02\x03\x04",
        b"\x0f\xba\x28\x05",
        b"\x66\x67\x0f\xa2",
        b"\x87\x08",
    ];
    let mut seeds = Vec::new();
    for code in code {
        for mode in [0u8, 2, 3] {
            let mut seed = vec![0; 16];
            seed[..code.len()].copy_from_slice(code);
            seed.extend_from_slice(&[mode, 0, 1, 6, 2]);
            seeds.push(seed);
        }
    }
    seeds
}

/// What the bus has seen.
#[derive(Default)]
struct Devices {
    reads: u32,
    writes: u32,
    next: u64,
}

impl mmio::Bus for Devices {
    fn read(&mut self, gpa: u64, width: u8) -> u64 {
        assert!([1, 2, 4, 8].contains(&width) && gpa.checked_add(u64::from(width)).is_some());
        self.reads += 1;
        self.next = self.next.rotate_left(7) ^ gpa;
        self.next & (u64::MAX >> (64 - 8 * u32::from(width)))
    }
    fn write(&mut self, gpa: u64, width: u8, value: u64) {
        assert!([1, 2, 4, 8].contains(&width) && gpa.checked_add(u64::from(width)).is_some());
        assert_eq!(
            value & !(u64::MAX >> (64 - 8 * u32::from(width))),
            0,
            "more than the width"
        );
        self.writes += 1;
    }
}

impl port::PortBus for Devices {
    fn input(&mut self, _: u16, width: u8) -> u32 {
        self.reads += 1;
        self.next as u32 & (u32::MAX >> (32 - 8 * u32::from(width)))
    }
    fn output(&mut self, _: u16, width: u8, value: u32) {
        assert_eq!(
            u64::from(value) >> (8 * u32::from(width)),
            0,
            "more than the width"
        );
        self.writes += 1;
    }
}

fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut code = [0; 16];
    let given = bytes.take(16);
    code[..given.len()].copy_from_slice(given);
    let how = bytes.u8();
    let paging = Paging::ALL[usize::from(how) & 3];
    let (memory, mut state) = testing::machine(paging, &code);
    // At the start of a page, or such that the code runs into the next.
    let into = u64::from(bytes.u8() & 15);
    if into != 0 {
        let at = 0x1000 - into;
        memory
            .write(0x8000 + at, &code[..into as usize])
            .expect("RAM");
        state.rip = testing::CODE + at;
    }
    match how >> 2 & 3 {
        // Other sizes of code: compatibility mode, 16 bits.
        1 => state.cs.attributes = 0xc9b,
        2 => state.cs.attributes = 0x89b,
        3 if how & 0x80 != 0 => {
            // Real mode: no paging.
            (state.cr0, state.efer, state.cr4) = (0x10, 0, 0);
            (state.cs.base, state.rip) = (0x8000, into);
        }
        _ => {}
    }
    state.cpl = if how & 0x40 != 0 { 3 } else { 0 };
    registers(&mut state, &mut bytes);
    // The guest rewrites its tables.
    for _ in 0..bytes.u8() & 3 {
        let at = 0x1_0000 + u64::from(bytes.u16() & 0x7ff8);
        let _ = memory.write_u64(at, bytes.number());
    }
    lengths(&memory, &state, &code, into);
    let error = bytes.u8();
    let error = 4 | u64::from(error & 2) | u64::from(error & 16) | u64::from(error & 32) << 28;
    let gpa = match bytes.u8() {
        0 => bytes.number(),
        n => testing::DEVICE_GPA + (u64::from(n) << 4 & 0x1fff),
    };
    let wide = bytes.flag();
    let mut one = state.clone();
    let mut devices = Devices::default();
    let done = mmio::emulate(&memory, &mut one, gpa, error, wide, &mut devices);
    judge(&state, &one, &done, &devices);
    let strings = code
        .iter()
        .any(|b| (0x6c..=0x6f).contains(b) || (0xa4..=0xaf).contains(b));
    if error & 2 == 0 && !strings {
        // Some processors report the read of an instruction that then writes; the right to is looked up.
        let only_writes = devices.writes != 0 && devices.reads == 0;
        assert!(!only_writes, "a write, but the exit was for a read");
    }
    let mut access = PortAccess::new(state.gpr[2] as u16, bytes.width(false), bytes.flag());
    access.0 |= u64::from(bytes.u8() & 7) << 21;
    let mut two = state.clone();
    let mut devices = Devices::default();
    let next = state.rip.wrapping_add(2);
    let done = port::emulate(&memory, &mut two, access, next, wide, &mut devices);
    judge(&state, &two, &done, &devices);
}

/// General registers: pointers to what there is, or anything.
fn registers(state: &mut VcpuState, bytes: &mut Bytes<'_>) {
    for i in 0..16 {
        let value = match bytes.u8() {
            0 => testing::DEVICE,
            1 => testing::DATA + 0xffc,
            2 => testing::BORDER - 3,
            3 => testing::READ_ONLY,
            4 => bytes.number(),
            n => u64::from(n),
        };
        state.gpr[i] = value;
    }
    state.rsp = bytes.number();
    state.rflags = 2 | bytes.number() & 0x4_0fd5;
    if bytes.flag() {
        state.ds.attributes = bytes.u16();
        state.es.limit = bytes.number() as u32;
        state.ss.base = bytes.number();
    }
}

/// A length is that of the instruction that was named, prefixes included.
fn lengths(memory: &GuestMemory, state: &VcpuState, code: &[u8; 16], into: u64) {
    for (expected, encodings) in EXPECTED {
        let Ok(len) = instruction_length(memory, state, expected) else {
            continue;
        };
        assert!((1..=15).contains(&len), "{expected:?}: {len}");
        if into == 0 && state.cr0 & 1 << 31 != 0 && state.rip == testing::CODE {
            let seen = &code[..usize::from(len)];
            let known = memory.read_u8(0x8000) == Ok(code[0]);
            let named = encodings.iter().any(|e| seen.ends_with(e));
            assert!(
                !known || named || remapped(memory, state),
                "{expected:?}: {seen:02x?}"
            );
        }
    }
}

/// Whether the code is not where the tables had it at first.
fn remapped(memory: &GuestMemory, state: &VcpuState) -> bool {
    vmm::emulate::walk::code(memory, state, testing::CODE) != Ok(0x8000)
}

/// What may have changed, and what not.
fn judge(
    before: &VcpuState,
    after: &VcpuState,
    done: &Result<Retired, EmulateError>,
    devices: &Devices,
) {
    let system = |s: &VcpuState| {
        (
            s.cr0,
            s.cr2,
            s.cr3,
            s.cr4,
            s.efer,
            s.cs,
            s.ss,
            s.ds,
            s.es,
            (s.cpl, s.dr6, s.dr7, s.xcr0),
        )
    };
    assert_eq!(system(before), system(after));
    assert!(devices.reads + devices.writes <= 2 * mmio::CHUNK + 4);
    let steps = after.rip.wrapping_sub(before.rip);
    match done {
        Ok(retired) if retired.complete => {
            let long = before.efer & 1 << 10 != 0 && before.cs.attributes & 0x200 != 0;
            let steps = if long { steps } else { steps & 0xffff_ffff };
            assert!((1..=15).contains(&steps), "{steps}");
            assert_eq!(after.shadow, 0);
        }
        Ok(_) => assert_eq!(steps, 0),
        Err(error) => {
            assert_eq!(steps, 0, "{error:?} after the instruction");
            if let EmulateError::Exception(Exception { vector, .. }) = error {
                assert!([6, 12, 13, 14, 17].contains(vector));
            }
        }
    }
}
