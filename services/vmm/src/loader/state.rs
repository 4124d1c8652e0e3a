//! How a guest's first processor starts: the two starting states of all boot protocols.

use super::Format;
use crate::memory::{GuestMemory, OutOfRange};
use ipc_schema::abi::vm::{Segment, VcpuState};

/// CR0.PE and CR0.ET.
const CR0_PROTECTED: u64 = 0x11;
/// CR0.PG.
const CR0_PG: u64 = 1 << 31;
/// CR4.PAE.
const CR4_PAE: u64 = 1 << 5;
/// EFER.LME and EFER.LMA.
const EFER_LONG: u64 = 0x500;
/// RFLAGS: the bit that is always one.
const RFLAGS_RESET: u64 = 2;

/// Selector of the code segment: Linux' __BOOT_CS.
const CODE_SELECTOR: u16 = 0x10;
/// Selector of the data segments: Linux' __BOOT_DS.
const DATA_SELECTOR: u16 = 0x18;
/// Selector of the task register.
const TASK_SELECTOR: u16 = 0x20;
/// Present, granular, 64-bit, code, readable, accessed.
const CODE64: u16 = 0xA9B;
/// Present, granular, 32-bit, code, readable, accessed.
const CODE32: u16 = 0xC9B;
/// Present, granular, 32-bit, data, writable, accessed.
const DATA: u16 = 0xC93;
/// Present, busy TSS: what VM entry wants in TR (Intel SDM vol. 3, 26.3.1.2).
const TASK: u16 = 0x8B;
/// Present, LDT.
const LDT: u16 = 0x82;

/// How the first processor starts. All values are architectural; the same for both vendors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryState {
    /// What was loaded.
    pub format: Format,
    /// First instruction.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// General register.
    pub rax: u64,
    /// General register.
    pub rbx: u64,
    /// General register.
    pub rsi: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER, as the guest sees it.
    pub efer: u64,
    /// Code segment.
    pub cs: Segment,
    /// ES, SS, DS, FS and GS.
    pub data: Segment,
    /// Task register.
    pub tr: Segment,
    /// LDTR: empty.
    pub ldtr: Segment,
    /// GDTR: base and limit.
    pub gdtr: Segment,
    /// IDTR: empty; an exception before the guest has its own table shuts it down.
    pub idtr: Segment,
}

const fn flat(selector: u16, attributes: u16) -> Segment {
    Segment {
        selector,
        attributes,
        limit: 0xFFFF_FFFF,
        base: 0,
    }
}

impl EntryState {
    /// 32-bit protected mode without paging: PVH and Multiboot 1. The table register names no table, as both allow.
    pub(super) const fn protected32(format: Format, entry: u32, rax: u32, rbx: u32) -> Self {
        Self {
            format,
            rip: entry as u64,
            rsp: 0,
            rax: rax as u64,
            rbx: rbx as u64,
            rsi: 0,
            rflags: RFLAGS_RESET,
            cr0: CR0_PROTECTED,
            cr3: 0,
            cr4: 0,
            efer: 0,
            cs: flat(CODE_SELECTOR, CODE32),
            data: flat(DATA_SELECTOR, DATA),
            tr: Segment {
                selector: TASK_SELECTOR,
                attributes: TASK,
                limit: 0x67,
                base: 0,
            },
            ldtr: Segment {
                selector: 0,
                attributes: LDT,
                limit: 0xFFFF,
                base: 0,
            },
            gdtr: Segment {
                selector: 0,
                attributes: 0,
                limit: 0,
                base: 0,
            },
            idtr: Segment {
                selector: 0,
                attributes: 0,
                limit: 0,
                base: 0,
            },
        }
    }

    /// 64-bit mode with the page tables and GDT of [`long_mode_tables`] at `tables`; rsi is the boot parameters' address.
    pub(super) const fn long64(format: Format, entry: u64, tables: u64, rsi: u64) -> Self {
        let mut state = Self::protected32(format, 0, 0, 0);
        state.rip = entry;
        state.rsi = rsi;
        state.cr0 |= CR0_PG;
        state.cr3 = tables;
        state.cr4 = CR4_PAE;
        state.efer = EFER_LONG;
        state.cs = flat(CODE_SELECTOR, CODE64);
        state.gdtr.base = tables + GDT_OFFSET;
        state.gdtr.limit = GDT.len() as u32 * 8 - 1;
        // The end of the GDT's page is free: a stack for an entry that pushes before it has its own.
        state.rsp = tables + LONG_MODE_TABLES_SIZE - 16;
        state
    }

    /// Writes all of it into a vCPU's state page, the rest at reset values: every group is then to be taken.
    pub fn apply(&self, state: &mut VcpuState) {
        state.gpr = [0; 16];
        state.gpr[0] = self.rax;
        state.gpr[3] = self.rbx;
        state.gpr[6] = self.rsi;
        state.rip = self.rip;
        state.rsp = self.rsp;
        state.rflags = self.rflags;
        state.shadow = 0;
        state.cpl = 0;
        state.cr0 = self.cr0;
        state.cr2 = 0;
        state.cr3 = self.cr3;
        state.cr4 = self.cr4;
        state.efer = self.efer;
        state.cs = self.cs;
        for segment in [
            &mut state.es,
            &mut state.ss,
            &mut state.ds,
            &mut state.fs,
            &mut state.gs,
        ] {
            *segment = self.data;
        }
        state.ldtr = self.ldtr;
        state.tr = self.tr;
        state.gdtr = self.gdtr;
        state.idtr = self.idtr;
        (state.star, state.lstar, state.cstar, state.sfmask) = (0, 0, 0, 0);
        (
            state.kernel_gs_base,
            state.sysenter_cs,
            state.sysenter_esp,
            state.sysenter_eip,
        ) = (0, 0, 0, 0);
        // Reset values: Intel SDM vol. 3, 10.1.1 and 12.12.4; AMD APM vol. 2, 14.1.3.
        state.pat = 0x0007_0406_0007_0406;
        state.dr = [0; 4];
        state.dr6 = 0xFFFF_0FF0;
        state.dr7 = 0x400;
        state.xcr0 = 1;
    }
}

/// Room that [`long_mode_tables`] takes, page-aligned: a PML4, a PDPT, four page directories, and a page for the GDT.
pub(super) const LONG_MODE_TABLES_SIZE: u64 = 7 * 0x1000;
const GDT_OFFSET: u64 = 6 * 0x1000;
/// Null, null, code, data, TSS (busy, 16 bytes, at 0).
const GDT: [u64; 6] = [
    0,
    0,
    0x00AF_9B00_0000_FFFF,
    0x00CF_9300_0000_FFFF,
    0x0000_8B00_0000_0067,
    0,
];

/// Builds identity page tables of 2 MiB pages for the first 4 GiB, and a GDT, at `tables`.
pub(super) fn long_mode_tables(memory: &GuestMemory, tables: u64) -> Result<(), OutOfRange> {
    /// Present, writable; at the last level accessed, dirty and large too.
    const TABLE: u64 = 0x3;
    const LARGE: u64 = 0xE3;
    memory.fill(tables, LONG_MODE_TABLES_SIZE, 0)?;
    memory.write_u64(tables, (tables + 0x1000) | TABLE)?;
    for gib in 0..4 {
        let directory = tables + 0x2000 + gib * 0x1000;
        memory.write_u64(tables + 0x1000 + gib * 8, directory | TABLE)?;
        for i in 0..512 {
            memory.write_u64(directory + i * 8, (gib << 30) | (i << 21) | LARGE)?;
        }
    }
    for (i, descriptor) in (0u64..).zip(GDT) {
        memory.write_u64(tables + GDT_OFFSET + i * 8, descriptor)?;
    }
    Ok(())
}
