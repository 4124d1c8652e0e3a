//! A whole VM: a processor that reports any exits with any state, devices that answer anything or nothing.
#![no_main]

extern crate alloc;

use core::arch::x86_64::CpuidResult;
use fuzz::{Bytes, scribble, target};
use ipc_schema::abi::Status;
use ipc_schema::abi::vm::{Event, Exit, ExitWord, Groups, PortAccess, Post, VcpuState};
use ipc_schema::interrupt_page::InterruptPage;
use ipc_schema::manifest::{self, CpuShare, DeviceKind, PortRange, Vm};
use ipc_schema::state_page::StatePage;
use vmm::machine::{Device, Kernel, Machine, Note, Parts, Ran, signal};
use vmm::memory::{self, GuestMemory};

#[allow(dead_code, reason = "the emulator's own tests need more of it")]
#[path = "../../../services/vmm/src/emulate/testing.rs"]
mod testing;

target!(run, seeds);

/// The guest's RAM.
const RAM: u64 = 4 << 20;
/// Where its code is: 32-bit protected mode without paging.
const ENTRY: u64 = 0x20_0040;
/// Devices: three on the ISA bus, and a PCI function.
const DEVICES: usize = 4;
/// Most entries of a guest.
const TURNS: usize = 300;
/// Port accesses and MSRs that there is something behind.
const PORTS: [u16; 22] = [
    0x20, 0x21, 0x40, 0x43, 0x61, 0x70, 0x71, 0x80, 0xa0, 0xa1, 0xf4, 0x3f8, 0x3fd, 0x4d0, 0x600,
    0x604, 0x5000, 0x5004, 0xc000, 0xc080, 0xcf8, 0xcfc,
];
const MSRS: [u32; 14] = [
    0x10,
    0x1b,
    0x3a,
    0xfe,
    0x174,
    0x1a0,
    0x200,
    0x277,
    0x2ff,
    0x6e0,
    0x80b,
    0x830,
    0xc000_0080,
    0xc001_0015,
];

fn seeds() -> Vec<Vec<u8>> {
    // One exit of each kind.
    (0..Exit::COUNT as u8)
        .map(|exit| [&[exit, 0][..], &[0x11; 40]].concat())
        .collect()
}

/// The kernel and everything around the VM, out of bytes.
struct Script<'a> {
    bytes: Bytes<'a>,
    page: Box<VcpuState>,
    now: u64,
    turns: usize,
    pages: &'a Pages,
    /// First ports of the routes there are.
    routes: Vec<u16>,
}

/// The pages of the devices.
#[derive(Default)]
struct Pages {
    irq: [InterruptPage; DEVICES],
    state: [StatePage; DEVICES],
}

impl Script<'_> {
    /// Enters a route, sometimes.
    fn entered(&mut self, first: u16) -> Result<(), Status> {
        assert!(!self.routes.contains(&first), "twice at {first:#x}");
        // The kernel's own limit is 48.
        if self.routes.len() > 9 {
            return Err(Status::NoMemory);
        }
        self.routes.push(first);
        Ok(())
    }

    fn over(&self) -> bool {
        self.bytes.is_empty() || self.turns >= TURNS
    }

    /// What the guest has done to its registers since it was entered.
    fn state_changes(&mut self) {
        let bytes = &mut self.bytes;
        let what = bytes.u8();
        let page = &mut self.page;
        if what & 1 != 0 {
            page.rip = ENTRY + u64::from(bytes.u8() & 63);
        }
        if what & 2 != 0 {
            page.rflags = 2 | bytes.number() & 0x4_0fd5;
        }
        if what & 4 != 0 {
            page.gpr[bytes.below(16)] = bytes.number();
        }
        if what & 8 != 0 {
            page.gpr[1] = bytes.pick(&MSRS).into();
        }
        if what & 16 != 0 {
            page.cs.attributes = bytes.pick(&[0xc9b, 0xa9b, 0x89b]);
            page.efer = if bytes.flag() { 0x500 } else { 0 };
            page.cr0 = if bytes.flag() { 0x8001_0011 } else { 0x11 };
            page.cr4 = bytes.pick(&[0, 0x20, 0x10, 0x1020]);
        }
        if what & 32 != 0 {
            page.dr7 = bytes.number();
            page.cpl = u64::from(bytes.u8() & 3);
        }
    }
}

impl Kernel for Script<'_> {
    fn run(&mut self, dirty: u64, post: Post, inject: Event, _: u64) -> Result<Ran, Status> {
        // What the kernel would take at its word.
        assert_eq!(dirty & !Groups::ALL, 0);
        if inject.0 & 1 << 31 != 0 {
            let (vector, kind) = (inject.0 & 0xff, inject.0 >> 8 & 7);
            assert!([0, 2, 3, 4].contains(&kind), "no kind of event");
            assert!(kind != 3 || vector < 32 && vector != 2, "no exception");
            assert_eq!(inject.0 & 0x7fff_f000, 0, "reserved bits of an event");
        } else {
            assert_eq!(inject.0, 0, "half an event");
        }
        if post.0 & 1 << 31 != 0 {
            let (vector, priority) = (post.0 & 0xff, post.0 >> 8 & 15);
            // What a PIC sends has any vector; an APIC's are 16 and above, and come by priority.
            assert!(post.0 & 1 << 32 != 0 || vector >= 16);
            assert_eq!(priority, vector >> 4);
        }
        self.turns += 1;
        if self.over() {
            return Ok(Ran {
                word: ExitWord(Exit::Signal as u64),
                info: [signal::QUIT, 0, 0],
                length: 0,
                undelivered: Event(0),
            });
        }
        let exit = Exit::from_raw(self.bytes.u8().into());
        self.state_changes();
        let bytes = &mut self.bytes;
        self.now = self.now.wrapping_add(bytes.u8().into());
        let mut info = [bytes.number(), 0, 0];
        match exit {
            // The end is the script's to choose.
            Exit::Signal => info[0] &= !signal::QUIT,
            Exit::Port | Exit::RouteLost => {
                let mut access =
                    PortAccess::new(bytes.pick(&PORTS), bytes.width(false), bytes.flag());
                access.0 |= u64::from(bytes.u8() & 7) << 21;
                info = [access.0, self.page.rip + 2, bytes.number()];
            }
            Exit::NestedFault => {
                let device = bytes.pick(&[0xfee0_0000, 0xfec0_0000, 0xc000_0000, 0xe001_8000])
                    + u64::from(bytes.u16() & 0xffc);
                info = [
                    if info[0] & 3 == 0 { info[0] } else { device },
                    bytes.number(),
                    0,
                ];
            }
            // Only these are intercepted.
            Exit::Exception => {
                info = [bytes.pick(&[1, 14, 17, 18]), bytes.number(), bytes.number()]
            }
            _ => {}
        }
        let waits = bytes.flag() && post.0 & 1 << 31 != 0;
        let pending = if waits { ExitWord::POST_PENDING } else { 0 };
        let cr8 = u64::from(bytes.u8() & 15);
        let undelivered = if bytes.u8() == 7 { inject } else { Event(0) };
        Ok(Ran {
            word: ExitWord(exit as u64 | pending | cr8 << ExitWord::CR8_SHIFT),
            info,
            length: u64::from(bytes.u8() % 16),
            undelivered,
        })
    }

    fn state(&self) -> &VcpuState {
        &self.page
    }
    fn state_mut(&mut self) -> &mut VcpuState {
        &mut self.page
    }
    fn now(&self) -> u64 {
        self.now
    }

    fn wait(&mut self, deadline: u64) -> Result<u64, Status> {
        self.turns += 1;
        if self.over() {
            return Ok(signal::QUIT);
        }
        match self.bytes.u8() {
            0 => self.now = self.now.max(deadline.min(self.now.saturating_add(1 << 40))),
            n => self.now = self.now.saturating_add(n.into()),
        }
        let irq = &self.pages.irq[self.bytes.below(DEVICES)];
        if self.bytes.u8() & 7 == 0 {
            scribble(irq, &mut self.bytes);
        }
        Ok(u64::from(self.bytes.u8()) & !signal::QUIT)
    }

    fn on_exit(&mut self, _: Exit, groups: u64) -> Result<(), Status> {
        assert_eq!(groups & !(Groups::ALL | Groups::IP), 0);
        Ok(())
    }
    fn route(&mut self, device: usize, first: u16, count: u16, limit: u64) -> Result<(), Status> {
        assert!(
            device < DEVICES
                && count > 0
                && limit > 0
                && u32::from(first) + u32::from(count) <= 0x1_0000
        );
        self.entered(first)
    }
    fn doorbell(
        &mut self,
        device: usize,
        bell: usize,
        first: u16,
        count: u16,
    ) -> Result<(), Status> {
        assert!(device < DEVICES && bell == 0 && u32::from(first) + u32::from(count) <= 0x1_0000);
        self.entered(first)
    }
    fn ring(&mut self, device: usize, bell: usize) {
        assert!(device < DEVICES && bell < 64);
    }
    fn unroute(&mut self, first: u16) -> Result<(), Status> {
        let at = self.routes.iter().position(|&route| route == first);
        self.routes.remove(at.expect("a route that was made"));
        Ok(())
    }

    fn call_device(
        &mut self,
        device: usize,
        access: PortAccess,
        _: u32,
        limit: u64,
    ) -> Result<u32, Status> {
        assert!(device < DEVICES && limit > 0 && [1, 2, 4].contains(&access.width()));
        if self.bytes.u8() & 15 == 0 {
            scribble(&self.pages.state[device], &mut self.bytes);
        }
        match self.bytes.u8() & 3 {
            0 => Err(Status::Timeout),
            1 => Err(Status::Dead),
            _ => Ok(self.bytes.u32()),
        }
    }
    fn silent(&mut self, device: usize) {
        assert!(device < DEVICES);
    }
    fn note(&mut self, note: &Note) {
        // What the log would show.
        assert!(!format!("{note:?}").is_empty());
    }
}

fn description() -> Vm {
    let device = |kind: DeviceKind, first, irq, doorbell| manifest::Device {
        name: "x".into(),
        kind,
        binary: "x".into(),
        ports: PortRange::new(first, kind.ports()),
        irq,
        doorbell,
        registers: manifest::Registers::Ports,
    };
    Vm {
        name: "fuzz".into(),
        memory: RAM,
        vcpus: 1,
        autostart: true,
        kernel: "k".into(),
        initrd: None,
        append: String::new(),
        cpu: CpuShare {
            shares: 1,
            reservation: 0,
            limit: None,
            cpu: None,
        },
        debug_exit: true,
        tsc_mhz: 0,
        devices: vec![
            device(DeviceKind::Uart, 0x3f8, 4, None),
            device(DeviceKind::Rtc, 0x70, 8, None),
            device(DeviceKind::TestDev, 0x5000, 11, Some(0x5004)),
            device(DeviceKind::VirtioRng { slot: 3 }, 0, 0, None),
        ],
    }
}

/// A flat Multiboot kernel of a page, at 2 MiB, with this code.
fn kernel(code: &[u8]) -> Vec<u8> {
    let flags = 1u32 << 16;
    let words = [
        0x1bad_b002,
        flags,
        0u32.wrapping_sub(0x1bad_b002 + flags),
        0x20_0000,
        0x20_0000,
        0x20_1000,
        0x20_1000,
        ENTRY as u32,
    ];
    let mut file: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    file.resize(0x40, 0);
    file.extend_from_slice(code);
    file.resize(0x1000, 0xf4);
    file
}

/// A host with few features.
fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    let [eax, ebx, ecx, edx] = match leaf {
        0 => [0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
        1 => [0x0006_06a6, 0, 1 << 26, 0x0fff_ffff],
        0xd if subleaf == 0 => [7, 0x340, 0x340, 0],
        0xd if subleaf == 2 => [0x100, 0x240, 0, 0],
        0x8000_0000 => [0x8000_0008, 0, 0, 0],
        0x8000_0001 => [0, 0, 1, 1 << 29 | 1 << 27 | 1 << 20 | 1 << 11],
        0x8000_0008 => [0x3028, 0, 0, 0],
        _ => [0; 4],
    };
    CpuidResult { eax, ebx, ecx, edx }
}

fn run(data: &[u8]) {
    let (code, rest) = data.split_at(data.len().min(64));
    // Exits first: seeds are short.
    let (code, rest) = if rest.is_empty() {
        (rest, code)
    } else {
        (code, rest)
    };
    let pages = Box::<Pages>::default();
    let vm = description();
    let script = Script {
        bytes: Bytes(rest),
        page: testing::state(),
        now: 1_000_000,
        turns: 0,
        pages: &pages,
        routes: Vec::new(),
    };
    let devices = vm.devices.iter().zip(pages.irq.iter().zip(&pages.state));
    let parts = Parts {
        vm: &vm,
        memory: GuestMemory::owned(&[(0, RAM)]),
        kernel_file: &kernel(code),
        initrd: None,
        devices: devices
            .map(|(device, (irq, state))| Device::new(device, irq, state))
            .collect(),
        tsc_hz: 1_000_000_000,
        cpuid: &cpuid,
    };
    let mut machine = Machine::new(script, parts).expect("a machine of sound parts");
    // It ends, one way or another.
    let _ = machine.run();
}
