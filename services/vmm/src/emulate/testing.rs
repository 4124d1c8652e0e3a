//! What the emulator's tests share.

use crate::memory::GuestMemory;
use alloc::boxed::Box;
use ipc_schema::abi::vm::{Requests, Segment, VcpuState};

/// A zeroed state page.
pub(crate) fn state() -> Box<VcpuState> {
    let none = Segment::default();
    Box::new(VcpuState {
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
        offers: 0,
        tsc_ratio: 0,
        apic: 0,
        apic_isr: [0; 4],
        apic_irr: [0; 4],
        apic_level: [0; 4],
        fetched: [0; 2],
        apic_requests: Requests::default(),
        apic_posted: Requests::default(),
    })
}

/// A paging mode, with the control registers that select it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paging {
    Long4,
    Long5,
    Pae,
    Legacy,
}

impl Paging {
    pub const ALL: [Self; 4] = [Self::Long4, Self::Long5, Self::Pae, Self::Legacy];

    /// Page sizes as powers of two, and how many bits of a linear address count.
    pub fn sizes(self) -> &'static [u32] {
        match self {
            Self::Long4 | Self::Long5 => &[12, 21, 30],
            Self::Pae => &[12, 21],
            Self::Legacy => &[12, 22],
        }
    }

    pub fn linear_bits(self) -> u32 {
        match self {
            Self::Long4 => 48,
            Self::Long5 => 57,
            Self::Pae | Self::Legacy => 32,
        }
    }

    fn long(self) -> bool {
        matches!(self, Self::Long4 | Self::Long5)
    }

    /// (shift, bits) of each level's index, top first: written from the manual's figures, not from the walker.
    fn levels(self) -> &'static [(u32, u32)] {
        match self {
            Self::Long5 => &[(48, 9), (39, 9), (30, 9), (21, 9), (12, 9)],
            Self::Long4 => &[(39, 9), (30, 9), (21, 9), (12, 9)],
            Self::Pae => &[(30, 2), (21, 9), (12, 9)],
            Self::Legacy => &[(22, 10), (12, 10)],
        }
    }
}

/// Builds page tables in guest memory: the other side of the walker's tests.
pub(crate) struct Tables<'a> {
    pub memory: &'a GuestMemory,
    pub paging: Paging,
    pub root: u64,
    next: u64,
}

/// Rights and more of an entry.
pub(crate) const PRESENT: u64 = 1;
pub(crate) const WRITABLE: u64 = 2;
pub(crate) const USER: u64 = 4;
pub(crate) const ALL_RIGHTS: u64 = PRESENT | WRITABLE | USER;

impl<'a> Tables<'a> {
    /// Tables from `at` on.
    pub fn new(memory: &'a GuestMemory, paging: Paging, at: u64) -> Self {
        Self {
            memory,
            paging,
            root: at,
            next: at + 0x1000,
        }
    }

    fn entry(&self, at: u64) -> u64 {
        if self.paging == Paging::Legacy {
            self.memory.read_u32(at).unwrap().into()
        } else {
            self.memory.read_u64(at).unwrap()
        }
    }

    fn set(&self, at: u64, value: u64) {
        if self.paging == Paging::Legacy {
            self.memory.write_u32(at, value as u32).unwrap();
        } else {
            self.memory.write_u64(at, value).unwrap();
        }
    }

    /// Maps a page of `1 << size` bytes. Upper levels allow everything. False if something is in the way.
    pub fn map(&mut self, linear: u64, gpa: u64, size: u32, rights: u64) -> bool {
        let width = if self.paging == Paging::Legacy { 4 } else { 8 };
        let mut table = self.root;
        for &(shift, bits) in self.paging.levels() {
            let at = table + ((linear >> shift) & ((1 << bits) - 1)) * width;
            let old = self.entry(at);
            if shift == size {
                if old & PRESENT != 0 {
                    return false;
                }
                let large = if size == 12 { 0 } else { 0x80 };
                // PSE-36 keeps address bits 32 to 39 in bits 13 to 20.
                let high = if self.paging == Paging::Legacy {
                    gpa >> 32 << 13
                } else {
                    0
                };
                let low = if self.paging == Paging::Legacy {
                    gpa & 0xFFFF_F000
                } else {
                    gpa
                };
                self.set(at, low | high | large | rights);
                return true;
            }
            if old & PRESENT == 0 {
                let pae_top = self.paging == Paging::Pae && shift == 30;
                self.set(at, self.next | if pae_top { PRESENT } else { ALL_RIGHTS });
                table = self.next;
                self.next += 0x1000;
            } else if old & 0x80 != 0 {
                return false;
            } else {
                table = old & 0x000F_FFFF_FFFF_F000;
            }
        }
        false
    }

    /// A state with this paging on; code is 64-bit in long mode, else 32-bit.
    pub fn state(&self) -> Box<VcpuState> {
        let mut s = state();
        let attributes = if self.paging.long() { 0xA9B } else { 0xC9B };
        s.cr0 = 0x8001_0011;
        s.cr3 = self.root;
        s.cr4 = match self.paging {
            Paging::Long4 | Paging::Pae => 0x20,
            Paging::Long5 => 0x1020,
            Paging::Legacy => 0x10,
        };
        s.efer = if self.paging.long() { 0x500 } else { 0 };
        let flat = |attributes| Segment {
            selector: 8,
            attributes,
            limit: 0xFFFF_FFFF,
            base: 0,
        };
        s.cs = flat(attributes);
        (s.ds, s.es, s.ss) = (flat(0xC93), flat(0xC93), flat(0xC93));
        s
    }
}

/// Where [`machine`] has its code.
pub(crate) const CODE: u64 = 0x40_0000;
/// Two pages of a device there, linear and guest-physical.
pub(crate) const DEVICE: u64 = 0x50_0000;
pub(crate) const DEVICE_GPA: u64 = 0xFEC0_0000;
/// Here a page of the device begins, behind a page of RAM (guest-physical 0xD000).
pub(crate) const BORDER: u64 = 0x70_1000;
/// The device once more, for reading only.
pub(crate) const READ_ONLY: u64 = 0x80_0000;
/// Two pages of data, linear; guest-physical 0x9000 and 0xB000.
pub(crate) const DATA: u64 = 0x60_0000;

/// A guest with paging, `code` at [`CODE`] (guest-physical 0x8000), [`DEVICE`] and [`DATA`], and nothing else.
pub(crate) fn machine(paging: Paging, code: &[u8]) -> (GuestMemory, Box<VcpuState>) {
    let memory = GuestMemory::owned(&[(0, 0x4_0000)]);
    memory.write(0x8000, code).unwrap();
    let mut tables = Tables::new(&memory, paging, 0x1_0000);
    for (linear, gpa) in [
        (CODE, 0x8000),
        (BORDER - 0x1000, 0xD000),
        (BORDER, DEVICE_GPA),
        (DEVICE, DEVICE_GPA),
        (DEVICE + 0x1000, DEVICE_GPA + 0x1000),
        (DATA, 0x9000),
        (DATA + 0x1000, 0xB000),
    ] {
        assert!(tables.map(linear, gpa, 12, PRESENT | WRITABLE));
    }
    assert!(tables.map(READ_ONLY, DEVICE_GPA, 12, PRESENT));
    let mut state = tables.state();
    state.rip = CODE;
    (memory, state)
}
