//! A scripted kernel. It is as forgetful as the real one: at an exit only the groups that were asked for come to the
//! page, and whatever else it held of the processor's is replaced by rubbish, so that reading it, or handing it back as
//! dirty, shows.

use super::super::*;
use crate::machine::Parts;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use core::arch::x86_64::CpuidResult;
use ipc_schema::abi::Status;
use ipc_schema::abi::vm::{PortAccess, Segment, VcpuState, gpr};
use ipc_schema::interrupt_page::InterruptPage;
use ipc_schema::manifest::{self, CpuShare, DeviceKind, PortRange, Vm};
use ipc_schema::state_page::StatePage;

pub const TSC_HZ: u64 = 1_000_000_000;
/// Where the guest begins; 32-bit protected mode without paging.
pub const ENTRY: u64 = 0x20_0040;
const RUBBISH: u64 = 0xDEAD_BEEF_DEAD_BEEF;

/// The processor as the script sees it, at an entry.
pub struct Cpu {
    pub state: Box<VcpuState>,
    pub cr8: u8,
    /// The posted interrupt is still waiting; the script clears it to take it.
    pub posted: bool,
    /// Event that the entry was to deliver; the script may leave it undelivered.
    pub undelivered: u64,
    pub now: u64,
}

/// What one entry was asked to do.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub dirty: u64,
    pub post: Post,
    pub inject: Event,
    pub deadline: u64,
}

pub type Script = Box<dyn FnOnce(&mut Cpu) -> (Exit, [u64; 3])>;
pub type Wait = Box<dyn FnOnce(&mut u64) -> u64>;
pub type Answer = Box<dyn FnOnce() -> Result<u32, Status>>;

pub struct Fake {
    page: Box<VcpuState>,
    pub cpu: Cpu,
    pub script: VecDeque<Script>,
    pub entries: Vec<Entry>,
    pub groups: [u64; Exit::COUNT],
    pub waits: VecDeque<Wait>,
    pub waited: Vec<u64>,
    pub routes: Vec<(usize, u16, u16, u64)>,
    pub bells: Vec<(usize, usize, u16, u16)>,
    pub rung: Vec<(usize, usize)>,
    pub answers: VecDeque<Answer>,
    pub calls: Vec<(usize, PortAccess, u32)>,
    pub notes: Vec<Note>,
    pub silent: Vec<usize>,
    pub refuse: Option<Status>,
    pub length: u64,
}

/// Copies groups; with `None`, fills them with rubbish.
fn copy(to: &mut VcpuState, from: Option<&VcpuState>, groups: u64) {
    let mut rubbish = *to;
    let junk = Segment {
        selector: 0xDEAD,
        attributes: 0xBEEF,
        limit: 0xDEAD_BEEF,
        base: RUBBISH,
    };
    (rubbish.rip, rubbish.rsp, rubbish.rflags) = (RUBBISH, RUBBISH, 0x8D5);
    (rubbish.shadow, rubbish.cpl) = (RUBBISH, RUBBISH);
    (rubbish.cr0, rubbish.cr2, rubbish.cr3) = (RUBBISH, RUBBISH, RUBBISH);
    (rubbish.cr4, rubbish.efer) = (RUBBISH, RUBBISH);
    (rubbish.es, rubbish.cs, rubbish.ss, rubbish.ds) = (junk, junk, junk, junk);
    (rubbish.fs, rubbish.gs, rubbish.xcr0) = (junk, junk, RUBBISH);
    (rubbish.dr, rubbish.dr6, rubbish.dr7) = ([RUBBISH; 4], RUBBISH, RUBBISH);
    let from = from.unwrap_or(&rubbish);
    macro_rules! group {
        ($group:ident: $($field:ident),*) => {
            if groups & Groups::$group != 0 { $(to.$field = from.$field;)* }
        };
    }
    group!(RIP: rip, rflags, shadow);
    group!(CR: cr0, cr2, cr3, cr4, efer);
    group!(SEG: es, cs, ss, ds, rsp, cpl);
    group!(DESC: fs, gs, ldtr, tr, gdtr, idtr);
    group!(PAT: pat);
    group!(DR: dr, dr6, dr7);
    group!(XCR: xcr0, tsc_aux);
    group!(TSC: tsc_offset, tsc_ratio);
    group!(APIC: apic, apic_isr, apic_irr);
    group!(REQUESTS: apic_level);
}

impl Kernel for Fake {
    fn run(&mut self, dirty: u64, post: Post, inject: Event, deadline: u64) -> Result<Ran, Status> {
        if let Some(status) = self.refuse {
            return Err(status);
        }
        self.entries.push(Entry {
            dirty,
            post,
            inject,
            deadline,
        });
        copy(&mut self.cpu.state, Some(&self.page), dirty);
        if dirty & Groups::REQUESTS != 0 {
            for (irr, new) in self
                .cpu
                .state
                .apic_irr
                .iter_mut()
                .zip(&mut self.page.apic_requests.vectors)
            {
                *irr |= core::mem::take(new);
            }
        }
        self.cpu.state.gpr = self.page.gpr;
        self.cpu.posted = post.0 & 1 << 31 != 0;
        self.cpu.undelivered = 0;
        if post.0 & 1 << 44 != 0 {
            self.cpu.cr8 = (post.0 >> 40) as u8 & 15;
        }
        let (exit, info) = match self.script.pop_front() {
            Some(step) => step(&mut self.cpu),
            None => (Exit::Signal, [signal::QUIT, 0, 0]),
        };
        self.page.gpr = self.cpu.state.gpr;
        copy(
            &mut self.page,
            None,
            Groups::RIP | Groups::CR | Groups::SEG | Groups::DESC | Groups::DR | Groups::XCR,
        );
        let mut groups = self.groups[exit as usize] & !Groups::REQUESTS;
        if self.cpu.state.apic == 0 {
            groups &= !Groups::APIC;
        } else {
            (self.page.apic_isr, self.page.apic_irr) = ([RUBBISH; 4], [RUBBISH; 4]);
        }
        copy(&mut self.page, Some(&self.cpu.state), groups);
        if groups & Groups::RIP != 0 {
            (self.page.cs, self.page.cpl) = (self.cpu.state.cs, self.cpu.state.cpl);
        }
        let word = exit as u64 | u64::from(self.cpu.posted) << 40 | u64::from(self.cpu.cr8) << 32;
        Ok(Ran {
            word: ExitWord(word),
            info,
            length: self.length,
            undelivered: Event(self.cpu.undelivered),
        })
    }

    fn state(&self) -> &VcpuState {
        &self.page
    }

    fn state_mut(&mut self) -> &mut VcpuState {
        &mut self.page
    }

    fn now(&self) -> u64 {
        self.cpu.now
    }

    fn wait(&mut self, deadline: u64) -> Result<u64, Status> {
        self.waited.push(deadline);
        match self.waits.pop_front() {
            Some(wait) => Ok(wait(&mut self.cpu.now)),
            None => Ok(signal::QUIT),
        }
    }

    fn on_exit(&mut self, exit: Exit, groups: u64) -> Result<(), Status> {
        self.groups[exit as usize] = groups;
        Ok(())
    }

    fn route(&mut self, device: usize, first: u16, count: u16, limit: u64) -> Result<(), Status> {
        self.routes.push((device, first, count, limit));
        Ok(())
    }

    fn doorbell(
        &mut self,
        device: usize,
        bell: usize,
        first: u16,
        count: u16,
    ) -> Result<(), Status> {
        self.bells.push((device, bell, first, count));
        Ok(())
    }

    fn ring(&mut self, device: usize, bell: usize) {
        self.rung.push((device, bell));
    }

    fn unroute(&mut self, first: u16) -> Result<(), Status> {
        let all = self.routes.len() + self.bells.len();
        self.routes.retain(|route| route.1 != first);
        self.bells.retain(|bell| bell.2 != first);
        assert_eq!(
            self.routes.len() + self.bells.len() + 1,
            all,
            "no route at {first:#x}"
        );
        Ok(())
    }

    fn call_device(
        &mut self,
        device: usize,
        access: PortAccess,
        value: u32,
        _: u64,
    ) -> Result<u32, Status> {
        self.calls.push((device, access.unstamped(), value));
        match self.answers.pop_front() {
            Some(answer) => answer(),
            None => Err(Status::Timeout),
        }
    }

    fn silent(&mut self, device: usize) {
        self.silent.push(device);
    }

    fn note(&mut self, note: &Note) {
        self.notes.push(*note);
    }
}

/// A flat Multiboot kernel of one page, for 0x20_0000; code at [`ENTRY`].
fn kernel() -> Vec<u8> {
    let flags = 1u32 << 16;
    let words = [
        0x1BAD_B002,
        flags,
        0u32.wrapping_sub(0x1BAD_B002 + flags),
        0x20_0000,
        0x20_0000,
        0x20_1000,
        0x20_1000,
        ENTRY as u32,
    ];
    let mut file: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    file.resize(0x1000, 0xF4);
    file
}

/// The pages that device servers share with the VMM.
#[derive(Default)]
pub struct Pages {
    pub irq: [InterruptPage; 3],
    pub state: [StatePage; 3],
}

pub fn description() -> Vm {
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
        name: "test".into(),
        memory: 16 << 20,
        vcpus: 1,
        autostart: true,
        kernel: "k".into(),
        initrd: None,
        append: "".into(),
        cpu: CpuShare {
            shares: 1,
            reservation: 0,
            limit: None,
            cpu: None,
        },
        debug_exit: true,
        tsc_mhz: 0,
        devices: alloc::vec![
            device(DeviceKind::Uart, 0x3F8, 4, None),
            device(DeviceKind::Rtc, 0x70, 8, None),
            device(DeviceKind::TestDev, 0x5000, 11, Some(0x5004)),
        ],
    }
}

/// The host: an Intel-like processor with few features.
fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    let [eax, ebx, ecx, edx] = match leaf {
        0 => [0xD, 0x756E_6547, 0x6C65_746E, 0x4965_6E69],
        1 => [0x0006_06A6, 0, 1 << 26, 0x0FFF_FFFF],
        0xD if subleaf == 0 => [7, 0x340, 0x340, 0],
        0xD if subleaf == 2 => [0x100, 0x240, 0, 0],
        0x8000_0000 => [0x8000_0008, 0, 0, 0],
        0x8000_0001 => [0, 0, 1, 1 << 29 | 1 << 27 | 1 << 20 | 1 << 11],
        0x8000_0008 => [0x3028, 0, 0, 0],
        _ => [0; 4],
    };
    CpuidResult { eax, ebx, ecx, edx }
}

pub fn machine_of<'a>(vm: &Vm, pages: &'a Pages) -> Machine<'a, Fake> {
    machine_on(vm, pages, 0)
}

/// On a processor that offers this.
pub fn machine_on<'a>(vm: &Vm, pages: &'a Pages, offers: u64) -> Machine<'a, Fake> {
    match try_machine_on(vm, pages, offers) {
        Ok(machine) => machine,
        Err(error) => panic!("{error}"),
    }
}

/// The same, if it can be.
pub fn try_machine_on<'a>(
    vm: &Vm,
    pages: &'a Pages,
    offers: u64,
) -> Result<Machine<'a, Fake>, SetupError> {
    let devices = vm
        .devices
        .iter()
        .zip(pages.irq.iter().zip(&pages.state))
        .map(|(device, (irq, state))| Device::new(device, irq, state))
        .collect();
    let mut state = crate::emulate::testing::state();
    state.offers = offers;
    let fake = Fake {
        cpu: Cpu {
            state: state.clone(),
            cr8: 0,
            posted: false,
            undelivered: 0,
            now: 1_000_000,
        },
        page: state,
        script: VecDeque::new(),
        entries: Vec::new(),
        groups: [0; Exit::COUNT],
        waits: VecDeque::new(),
        waited: Vec::new(),
        routes: Vec::new(),
        bells: Vec::new(),
        rung: Vec::new(),
        answers: VecDeque::new(),
        calls: Vec::new(),
        notes: Vec::new(),
        silent: Vec::new(),
        refuse: None,
        length: 0,
    };
    let parts = Parts {
        vm,
        memory: GuestMemory::owned(&[(0, vm.memory)]),
        kernel_file: &kernel(),
        initrd: None,
        devices,
        tsc_hz: TSC_HZ,
        cpuid: &cpuid,
    };
    Machine::new(fake, parts)
}

/// A step that ends with an access to an MSR, of which `value` is what is written.
pub fn access(exit: Exit, index: u64, value: u64) -> impl FnOnce(&mut Cpu) -> (Exit, [u64; 3]) {
    move |cpu: &mut Cpu| {
        cpu.state.gpr[gpr::RCX] = index;
        cpu.state.gpr[gpr::RAX] = value & 0xFFFF_FFFF;
        cpu.state.gpr[gpr::RDX] = value >> 32;
        (exit, [0; 3])
    }
}

pub fn machine(pages: &Pages) -> Machine<'_, Fake> {
    machine_of(&description(), pages)
}

impl Machine<'_, Fake> {
    /// Puts code at [`ENTRY`].
    pub fn code(&mut self, bytes: &[u8]) -> &mut Self {
        self.memory.write(ENTRY, bytes).unwrap();
        self
    }

    /// The next exit.
    pub fn exit(&mut self, exit: Exit, info: [u64; 3]) -> &mut Self {
        self.on(move |_| (exit, info))
    }

    /// The next entry, scripted.
    pub fn on(&mut self, step: impl FnOnce(&mut Cpu) -> (Exit, [u64; 3]) + 'static) -> &mut Self {
        self.kernel.script.push_back(Box::new(step));
        self
    }

    /// The processor.
    pub fn cpu(&self) -> &VcpuState {
        &self.kernel.cpu.state
    }

    /// The last entry.
    pub fn last(&self) -> Entry {
        *self.kernel.entries.last().unwrap()
    }
}
