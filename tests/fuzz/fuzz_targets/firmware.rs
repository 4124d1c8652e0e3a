//! The firmware's tables, and a machine that answers anything to the platform server that reads them.
#![no_main]

use fuzz::{Bytes, target};
use ipc_schema::proto::{MAX_MESSAGE, PlatformRequest, PlatformResponse, decode, encode};
use platform::hardware::{Hardware, Width};
use platform::{Platform, copies, fadt, madt, s5, tables};
use runtime::serve::{ReplyCaps, Service};
use std::collections::BTreeMap;
use testing::{QEMU_MADT, qemu_fadt, rsdp, rsdt, sealed, xsdt};

#[allow(dead_code, reason = "the server's own tests need more of it")]
#[path = "../../../services/platform/src/testing.rs"]
mod testing;
use platform::hardware;

target!(run, seeds);

/// Where the tables are.
const RSDP: u64 = 0x1000;

/// The first byte chooses: a table as it is, or a machine with tables of these bodies and right checksums.
fn seeds() -> Vec<Vec<u8>> {
    let dsdt = b"\x10\x4d\x0a\\_S5_\x5b\x80\x08\\_S5_\x12\x4a\x00\x04\x0a\x07\x0a\x05\x00\x00\x10";
    let fadt = qemu_fadt();
    vec![
        [&[0][..], &QEMU_MADT].concat(),
        [&[1][..], &fadt].concat(),
        [&[2][..], dsdt].concat(),
        [
            &[3, 86, 0][..],
            &QEMU_MADT,
            &[208, 0],
            &fadt[36..],
            &[30, 0],
            &dsdt[..],
        ]
        .concat(),
    ]
}

/// A machine with memory in pieces; ports and registers answer from the input.
struct Machine<'a> {
    memory: BTreeMap<u64, Vec<u8>>,
    bytes: Bytes<'a>,
    accesses: u32,
}

impl Machine<'_> {
    fn answer(&mut self, width: Width) -> Option<u32> {
        self.accesses += 1;
        let value = self.bytes.u32();
        let mask = u32::MAX >> (32 - 8 * u32::from(width.bytes()));
        (self.bytes.u8() & 15 != 1).then_some(value & mask)
    }
}

impl Hardware for Machine<'_> {
    fn port_in(&mut self, _: u16, width: Width) -> Option<u32> {
        self.answer(width)
    }
    fn port_out(&mut self, _: u16, width: Width, value: u32) -> Option<()> {
        assert_eq!(
            u64::from(value) >> (8 * u32::from(width.bytes())),
            0,
            "more than the width"
        );
        self.answer(width).map(|_| ())
    }
    fn copy(&mut self, address: u64, into: &mut [u8]) -> Option<()> {
        let (at, data) = self.memory.range(..=address).next_back()?;
        let from = usize::try_from(address - at).ok()?;
        into.copy_from_slice(data.get(from..from.checked_add(into.len())?)?);
        Some(())
    }
    fn register_in(&mut self, address: u64, width: Width) -> Option<u32> {
        self.answer(width)
            .filter(|_| address.is_multiple_of(width.bytes().into()))
    }
    fn register_out(&mut self, address: u64, width: Width, _: u32) -> Option<()> {
        self.answer(width)
            .filter(|_| address.is_multiple_of(width.bytes().into()))
            .map(|_| ())
    }
    fn delay(&mut self, _: u64) {}
}

fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    match bytes.u8() % 4 {
        0 => {
            let madt = testing::madt(bytes.0);
            assert!(
                madt.processors.len() + madt.ioapics.len() + madt.overrides.len() <= data.len()
            );
            for line in (0..40).chain([u32::MAX]) {
                let input = madt.input(line);
                assert!(line < 16 || input.is_some_and(|(gsi, _)| gsi == line));
            }
        }
        1 => {
            if bytes.0.len() >= copies::HEADER {
                let _ = testing::try_fadt(bytes.0);
            }
        }
        2 => {
            if let Some(found) = s5::find(bytes.0) {
                assert!(
                    bytes.0.windows(4).any(|w| w == b"_S5_"),
                    "{found:?} out of nothing"
                );
            }
        }
        _ => whole(bytes),
    }
}

/// The server on a machine with such tables, asked everything.
fn whole(mut bytes: Bytes<'_>) {
    let mut piece = |signature: &[u8; 4]| {
        let len = usize::from(bytes.u16() % 1024);
        sealed(signature, bytes.take(len))
    };
    let (madt, mut fadt, dsdt) = (piece(b"APIC"), piece(b"FACP"), piece(b"DSDT"));
    if fadt.len() >= 44 {
        // It names the DSDT, whatever else it says.
        fadt[40..44].copy_from_slice(&0x4000u32.to_le_bytes());
        fadt = sealed(b"FACP", &fadt[copies::HEADER..]);
    }
    let old = bytes.flag();
    let mut memory = BTreeMap::from([(0x2000, madt), (0x3000, fadt), (0x4000, dsdt)]);
    memory.insert(0x5000, rsdt(&[0x2000, 0x3000, bytes.u32()]));
    memory.insert(0x6000, xsdt(&[0x3000, 0x2000, bytes.number()]));
    memory.insert(RSDP, rsdp(if old { 0 } else { 2 }, 0x5000, 0x6000));
    let at = if bytes.u8() == 1 {
        bytes.number()
    } else {
        RSDP
    };
    let machine = Machine {
        memory,
        bytes: bytes.clone(),
        accesses: 0,
    };
    let mut platform = Platform::new(machine, at);
    let mut steps = 0;
    while !bytes.is_empty() && steps < 20 {
        steps += 1;
        let len = bytes.below(16);
        let request = match bytes.u8() % 4 {
            0 => PlatformRequest::RouteIrq {
                gsi: bytes.number() as u32,
                vector: bytes.u8(),
                apic_id: bytes.number() as u32,
            },
            1 => PlatformRequest::Unmask {
                gsi: bytes.number() as u32,
            },
            2 => PlatformRequest::Describe,
            _ => match decode(bytes.take(len)) {
                // These are the end of a machine.
                Ok(PlatformRequest::PowerOff { .. } | PlatformRequest::Reset) | Err(_) => continue,
                Ok(request) => request,
            },
        };
        let badge = u64::from(bytes.u8() & 1);
        let response = platform.request(badge, request, 0, &mut ReplyCaps::default());
        assert!(
            encode(&response, &mut [0; MAX_MESSAGE]).is_ok(),
            "an answer that cannot be sent"
        );
        let _ = matches!(response, PlatformResponse::Done);
    }
    platform.power_off(bytes.u32());
}
