//! CPUID policy: a table made once for a VM, from the host's answers and what is shown of them.
//!
//! A feature is shown if the host has it, the guest can use it without the VMM, and its state is switched with the
//! vCPU. Leaves: Intel SDM vol. 2, CPUID; AMD APM vol. 3, appendix E.

mod features;
mod hypervisor;
mod xsave;

use alloc::vec::Vec;
use core::arch::x86_64::CpuidResult;
use xsave::Xsave;

/// First extended leaf.
const EXTENDED: u32 = 0x8000_0000;
/// Last extended leaf that is ever shown.
const EXTENDED_MAX: u32 = 0x8000_0021;
/// Subleaves of a leaf that are ever shown.
const SUBLEAVES: u32 = 64;

/// What an answer depends on beside the leaf: the vCPU's own state.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dynamic {
    /// The vCPU's (x2)APIC ID.
    pub apic_id: u32,
    /// Its CR4 (group CR): OSXSAVE is mirrored.
    pub cr4: u64,
    /// Its XCR0 (group XCR, or the VMM's copy from the last XSETBV): sizes in leaf 0xD.
    pub xcr0: u64,
}

/// What an answer takes from the vCPU.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patch {
    /// Nothing.
    Constant,
    /// Leaf 1: initial APIC ID and OSXSAVE.
    Features,
    /// The APIC ID in edx (leaf 0xB), for every subleaf.
    Topology,
    /// Leaf 0xD: sizes.
    Xsave,
    /// Leaf 0x8000_001E: APIC ID and core.
    ExtendedTopology,
}

/// One leaf.
#[derive(Clone, Copy)]
struct Row {
    /// Subleaf 0, or all subleaves.
    regs: [u32; 4],
    patch: Patch,
    /// True if the subleaf counts: those from 1 on are `subleaves[first..first + more]`.
    indexed: bool,
    first: u16,
    more: u16,
}

/// A leaf that says nothing.
const EMPTY: Row = constant([0; 4]);

const fn constant(regs: [u32; 4]) -> Row {
    Row {
        regs,
        patch: Patch::Constant,
        indexed: false,
        first: 0,
        more: 0,
    }
}

/// The answers to every leaf, made once for a VM.
pub struct Policy {
    basic: Vec<Row>,
    hypervisor: Vec<Row>,
    extended: Vec<Row>,
    subleaves: Vec<[u32; 4]>,
    xsave: Xsave,
    amd: bool,
    physical_bits: u8,
    tsc_hz: u64,
}

/// What the table is made from.
struct Maker<'a> {
    host: &'a dyn Fn(u32, u32) -> CpuidResult,
    vcpus: u32,
    /// Bits of an APIC ID that tell cores apart.
    core_bits: u32,
    amd: bool,
    subleaves: Vec<[u32; 4]>,
}

fn regs(r: CpuidResult) -> [u32; 4] {
    [r.eax, r.ebx, r.ecx, r.edx]
}

impl Policy {
    /// Makes the table. `host` executes CPUID on the host (a leaf that it does not have is not asked for). `tsc_hz` and
    /// `apic_hz`: frequencies of the guest's TSC and local APIC timer; on an Intel processor the latter is also the
    /// crystal's, so an `apic_hz` that divides `tsc_hz` gives the guest the exact TSC frequency.
    pub fn new(
        host: &dyn Fn(u32, u32) -> CpuidResult,
        vcpus: u32,
        tsc_hz: u64,
        apic_hz: u64,
    ) -> Self {
        let vcpus = vcpus.max(1);
        let vendor = regs(host(0, 0));
        let host_max = vendor[0];
        let extended_max = host(EXTENDED, 0).eax.clamp(EXTENDED, EXTENDED_MAX);
        let amd = matches!(&name(vendor), b"AuthenticAMD" | b"HygonGenuine");
        let host = |leaf: u32, subleaf: u32| {
            let known = leaf <= host_max || (EXTENDED..=extended_max).contains(&leaf);
            if known {
                host(leaf, subleaf)
            } else {
                CpuidResult {
                    eax: 0,
                    ebx: 0,
                    ecx: 0,
                    edx: 0,
                }
            }
        };
        let core_bits = vcpus.next_power_of_two().trailing_zeros();
        let mut maker = Maker {
            host: &host,
            vcpus,
            core_bits,
            amd,
            subleaves: Vec::new(),
        };
        let xsave = Xsave::new(&host);

        // AMD's has no leaves 0x15 and 0x16; 0xB and 0xD are shown in any case.
        let max = if amd { 0xD } else { 0x16 };
        let basic = (0..=max).map(|leaf| match leaf {
            0 => constant([max, vendor[1], vendor[2], vendor[3]]),
            0xD => maker.xsave(&xsave),
            0x15 => constant(crystal(tsc_hz, apic_hz)),
            0x16 => constant([mhz(tsc_hz), mhz(tsc_hz), mhz(apic_hz), 0]),
            _ => maker.basic(leaf),
        });
        let basic = basic.collect();
        let extended = (EXTENDED..=extended_max).map(|leaf| match leaf {
            EXTENDED => constant([extended_max, vendor[1], vendor[2], vendor[3]]),
            _ => maker.extended(leaf),
        });
        let extended = extended.collect();
        let physical_bits = match host(0x8000_0008, 0).eax as u8 {
            bits @ 32..=52 => bits,
            _ => 36,
        };
        Self {
            basic,
            hypervisor: hypervisor::rows(tsc_hz, apic_hz),
            extended,
            subleaves: maker.subleaves,
            xsave,
            amd,
            physical_bits,
            tsc_hz,
        }
    }

    /// eax, ebx, ecx, edx for a leaf and subleaf (the guest's eax and ecx). Leaves that are not there are all zero.
    #[inline]
    pub fn answer(&self, leaf: u32, subleaf: u32, dynamic: &Dynamic) -> [u32; 4] {
        match self.row(leaf) {
            Some(row) => self.patched(row, subleaf, dynamic),
            None => [0; 4],
        }
    }

    /// The same, if it does not depend on the vCPU's state; `None` does not say that it does.
    #[inline(always)]
    pub fn constant(&self, leaf: u32, subleaf: u32) -> Option<&[u32; 4]> {
        let row = self.row(leaf)?;
        (row.patch == Patch::Constant && (!row.indexed || subleaf == 0)).then_some(&row.regs)
    }

    #[inline(always)]
    fn row(&self, leaf: u32) -> Option<&Row> {
        let table = match leaf >> 16 {
            0 => &self.basic,
            0x4000 => &self.hypervisor,
            0x8000 => &self.extended,
            _ => return None,
        };
        table.get((leaf & 0xFFFF) as usize)
    }

    /// A row's subleaf, with what the vCPU adds.
    fn patched(&self, row: &Row, subleaf: u32, dynamic: &Dynamic) -> [u32; 4] {
        const CR4_OSXSAVE: u64 = 1 << 18;
        const OSXSAVE: u32 = 1 << 27;
        let mut regs = row.regs;
        if row.indexed && subleaf != 0 {
            let index = (subleaf - 1) as usize;
            let there = index < usize::from(row.more);
            regs = match self.subleaves.get(usize::from(row.first) + index) {
                Some(regs) if there => *regs,
                // Past the end: leaf 0xB still tells subleaf and APIC ID.
                _ if row.patch == Patch::Topology => [0, 0, subleaf & 0xFF, 0],
                _ => return [0; 4],
            };
        }
        match row.patch {
            Patch::Constant => {}
            Patch::Features => {
                regs[1] |= dynamic.apic_id << 24;
                if dynamic.cr4 & CR4_OSXSAVE != 0 {
                    regs[2] |= OSXSAVE;
                }
            }
            Patch::Topology => regs[3] = dynamic.apic_id,
            Patch::Xsave => match subleaf {
                0 => regs[1] = self.xsave.size(dynamic.xcr0),
                1 => regs[1] = self.xsave.compacted_size(dynamic.xcr0),
                _ => {}
            },
            Patch::ExtendedTopology => {
                regs[0] = dynamic.apic_id;
                regs[1] |= dynamic.apic_id & 0xFF;
            }
        }
        regs
    }

    /// The XCR0 bits that the guest may set; 0 if it has no XSAVE.
    pub fn xcr0_supported(&self) -> u64 {
        self.xsave.supported()
    }

    /// True for AMD's processors (and Hygon's): the MSRs that the guest expects differ.
    pub(super) fn is_amd(&self) -> bool {
        self.amd
    }

    /// Bits of a guest-physical address.
    pub(super) fn physical_bits(&self) -> u8 {
        self.physical_bits
    }

    /// Frequency of the guest's TSC in Hz.
    pub(super) fn tsc_hz(&self) -> u64 {
        self.tsc_hz
    }

    /// True if a feature bit of a constant register is shown.
    pub(super) fn shows(&self, leaf: u32, register: usize, bit: u32) -> bool {
        let regs = self.answer(leaf, 0, &Dynamic::default());
        regs.get(register).is_some_and(|r| r >> bit & 1 != 0)
    }
}

/// The vendor's name: ebx, edx, ecx.
fn name(vendor: [u32; 4]) -> [u8; 12] {
    let mut name = [0; 12];
    for (to, from) in name
        .chunks_exact_mut(4)
        .zip([vendor[1], vendor[3], vendor[2]])
    {
        to.copy_from_slice(&from.to_le_bytes());
    }
    name
}

fn mhz(hz: u64) -> u32 {
    (hz / 1_000_000).min(0xFFFF) as u32
}

/// Leaf 0x15: TSC over crystal as a fraction (denominator, numerator), and the crystal's frequency, which is taken for
/// the local APIC timer's. Linux multiplies the crystal's kHz by the numerator in 32 bits, so the numerator is kept
/// within that: the best fraction by continued fractions.
fn crystal(tsc_hz: u64, apic_hz: u64) -> [u32; 4] {
    let Ok(crystal_hz) = u32::try_from(apic_hz) else {
        return [0; 4];
    };
    let most = u64::from(u32::MAX) / u64::from((crystal_hz / 1000).max(1));
    let (mut a, mut b) = (tsc_hz, apic_hz);
    let (mut before, mut now) = ((0u64, 1u64), (1u64, 0u64));
    while b != 0 {
        let digit = a / b;
        let numerator = digit.saturating_mul(now.0).saturating_add(before.0);
        let denominator = digit.saturating_mul(now.1).saturating_add(before.1);
        if numerator > most || denominator > u64::from(u32::MAX) {
            break;
        }
        before = now;
        now = (numerator, denominator);
        (a, b) = (b, a % b);
    }
    if now.0 == 0 || now.1 == 0 {
        [0; 4]
    } else {
        [now.1 as u32, now.0 as u32, crystal_hz, 0]
    }
}

impl Maker<'_> {
    fn ask(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        regs((self.host)(leaf, subleaf))
    }

    /// A leaf with subleaves from 1 on.
    fn indexed(&mut self, regs: [u32; 4], patch: Patch, more: &[[u32; 4]]) -> Row {
        let first = self.subleaves.len() as u16;
        self.subleaves.extend_from_slice(more);
        Row {
            regs,
            patch,
            indexed: true,
            first,
            more: more.len() as u16,
        }
    }

    fn basic(&mut self, leaf: u32) -> Row {
        /// Leaf 6, eax: the APIC timer never stops.
        const ARAT: u32 = 1 << 2;
        match leaf {
            1 => {
                let host = self.ask(1, 0);
                // clflush size; addressable logical processors.
                let ids = (1u32 << self.core_bits).min(0xFF);
                let regs = [
                    host[0],
                    host[1] & 0xFF00 | ids << 16,
                    host[2] & features::LEAF_1_ECX | features::LEAF_1_ECX_ALWAYS,
                    host[3] & features::LEAF_1_EDX
                        | features::LEAF_1_EDX_ALWAYS
                        | if self.vcpus > 1 { features::HTT } else { 0 },
                ];
                Row {
                    patch: Patch::Features,
                    ..constant(regs)
                }
            }
            2 if !self.amd => constant(self.ask(2, 0)),
            4 if !self.amd => self.caches(4),
            6 => constant([ARAT, 0, 0, 0]),
            7 => {
                let host = self.ask(7, 0);
                let more = if host[0] >= 1 {
                    let sub = self.ask(7, 1);
                    [
                        sub[0] & features::LEAF_7_1_EAX,
                        0,
                        0,
                        sub[3] & features::LEAF_7_1_EDX,
                    ]
                } else {
                    [0; 4]
                };
                let regs = [
                    host[0].min(1),
                    host[1] & features::LEAF_7_EBX | features::TSC_ADJUST,
                    host[2] & features::LEAF_7_ECX,
                    host[3] & features::LEAF_7_EDX,
                ];
                self.indexed(regs, Patch::Constant, &[more])
            }
            0xB => {
                // One thread a core, all cores in one package. ecx: level type in bits 8..16.
                let threads = [0, 1, 1 << 8, 0];
                let cores = [self.core_bits, self.vcpus, 1 | 2 << 8, 0];
                self.indexed(threads, Patch::Topology, &[cores])
            }
            _ => EMPTY,
        }
    }

    /// Cache leaves 4 and 0x8000_001D: the host's, shared as the guest's processors share them.
    fn caches(&mut self, leaf: u32) -> Row {
        let mut rows = Vec::new();
        for subleaf in 0..SUBLEAVES {
            let mut regs = self.ask(leaf, subleaf);
            if regs[0] & 0x1F == 0 {
                break;
            }
            let level = regs[0] >> 5 & 7;
            let sharing = if level >= 3 {
                (1u32 << self.core_bits) - 1
            } else {
                0
            };
            let cores = if leaf == 4 {
                ((1u32 << self.core_bits) - 1).min(63)
            } else {
                0
            };
            regs[0] = regs[0] & 0x3FFF | (sharing & 0xFFF) << 14 | cores << 26;
            rows.push(regs);
        }
        match rows.split_first() {
            Some((first, more)) => self.indexed(*first, Patch::Constant, more),
            None => EMPTY,
        }
    }

    fn xsave(&mut self, xsave: &Xsave) -> Row {
        if xsave.supported() == 0 {
            return EMPTY;
        }
        let more: Vec<_> = (1..SUBLEAVES)
            .map(|subleaf| xsave.subleaf(subleaf))
            .collect();
        self.indexed(xsave.subleaf(0), Patch::Xsave, &more)
    }

    fn extended(&mut self, leaf: u32) -> Row {
        /// Leaf 0x8000_0007, edx: the TSC runs at one rate always.
        const INVARIANT_TSC: u32 = 1 << 8;
        let host = self.ask(leaf, 0);
        match leaf & 0xFFFF {
            1 => {
                let legacy = if self.amd && self.vcpus > 1 {
                    features::CMP_LEGACY
                } else {
                    0
                };
                constant([
                    host[0],
                    if self.amd { host[1] } else { 0 },
                    host[2] & features::EXTENDED_1_ECX | legacy,
                    host[3]
                        & if self.amd {
                            features::EXTENDED_1_EDX
                        } else {
                            features::EXTENDED_1_EDX_INTEL
                        },
                ])
            }
            // Brand string; caches and TLBs.
            2..=6 | 0x19 | 0x1A => constant(host),
            7 => constant([0, 0, 0, INVARIANT_TSC]),
            8 => {
                // Physical and linear address bits (no 5-level paging); cores.
                let linear = (host[0] >> 8 & 0xFF).min(48);
                let cores = if self.amd {
                    (self.vcpus - 1).min(0xFF) | self.core_bits << 12
                } else {
                    0
                };
                constant([
                    host[0] & 0xFF | linear << 8,
                    host[1] & features::EXTENDED_8_EBX,
                    cores,
                    0,
                ])
            }
            0x1D if self.amd => self.caches(leaf),
            0x1E if self.amd => Row {
                patch: Patch::ExtendedTopology,
                ..constant([0; 4])
            },
            0x21 if self.amd => constant([host[0] & features::EXTENDED_21_EAX, 0, 0, 0]),
            _ => EMPTY,
        }
    }
}

#[cfg(test)]
mod tests;
