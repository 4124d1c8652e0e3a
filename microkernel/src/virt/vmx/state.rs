//! State groups: between the VMCS and the state page.

use super::control::{self, read, write};
use super::{BLOCKING, IF, RFLAGS, RIP, SHADOW, Soft, newer};
use crate::mem::PAGE;
use crate::object::Vcpu;
use crate::virt::DR7_ALLOWED;
use core::mem::offset_of;
use ipc_schema::abi::vm::{Groups, VcpuState as S};
use x86::vmx::vmcs::{control as c, guest as g};

/// Bits that a guest's EFER may have: SCE, LME, LMA, NXE.
const EFER_ALLOWED: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11;
/// RFLAGS bits that there are, but for bit 1, which is always 1 (27.3.1.4).
const FLAGS: u64 = 0x3f_7fd5;

/// Fields that are words of the state page as they are.
type Word = (usize, u32);

/// Segments: where in the page, and their number in the order of the fields.
const SEG: [(usize, u32); 4] = [
    (offset_of!(S, es), 0),
    (offset_of!(S, cs), CS),
    (offset_of!(S, ss), SS),
    (offset_of!(S, ds), 3),
];
const DESC: [(usize, u32); 4] = [
    (offset_of!(S, fs), 4),
    (offset_of!(S, gs), 5),
    (offset_of!(S, ldtr), 6),
    (offset_of!(S, tr), TR),
];
const CS: u32 = 1;
const SS: u32 = 2;
const TR: u32 = 7;
/// Descriptor tables: limit and base.
const TABLES: [(usize, u32, u32); 2] = [
    (offset_of!(S, gdtr), g::GDTR_LIMIT, g::GDTR_BASE),
    (offset_of!(S, idtr), g::IDTR_LIMIT, g::IDTR_BASE),
];
/// The groups that are nothing but words.
const WORDS: [(u64, &[Word]); 5] = [
    (Groups::SEG, &[(offset_of!(S, rsp), g::RSP)]),
    (
        Groups::SYSCALL,
        &[
            (offset_of!(S, sysenter_cs), g::IA32_SYSENTER_CS),
            (offset_of!(S, sysenter_esp), g::IA32_SYSENTER_ESP),
            (offset_of!(S, sysenter_eip), g::IA32_SYSENTER_EIP),
        ],
    ),
    (Groups::PAT, &[(offset_of!(S, pat), g::IA32_PAT_FULL)]),
    (
        Groups::TSC,
        &[(offset_of!(S, tsc_offset), c::TSC_OFFSET_FULL)],
    ),
    (Groups::DR, &[(offset_of!(S, dr7), g::DR7)]),
];

/// Access rights (25.4.1): an unusable segment.
const UNUSABLE: u64 = 1 << 16;
/// S, and present, in both forms.
const CODE_OR_DATA: u64 = 1 << 4;
const PRESENT: u64 = 1 << 7;
/// Granularity, of access rights.
const GRANULAR: u64 = 1 << 15;

/// Access rights from the ABI's attributes and limit; what the processor wants and the ABI leaves open is as it has to be.
fn rights(n: u32, attributes: u64, limit: u64) -> u64 {
    let mut r = attributes & 0xff | (attributes & 0xf00) << 4;
    if n == TR {
        // A processor always has one, busy.
        return if r & PRESENT == 0 { 0x8b } else { r | 2 };
    }
    if r & PRESENT == 0 && n != CS {
        return UNUSABLE;
    }
    if r & CODE_OR_DATA != 0 {
        // Accessed.
        r |= 1;
    }
    if limit & 0xfff != 0xfff {
        r &= !GRANULAR;
    } else if limit >> 20 != 0 {
        r |= GRANULAR;
    }
    r
}

/// The ABI's attributes from access rights.
fn attributes(rights: u64) -> u64 {
    let a = rights & 0xff | rights >> 4 & 0xf00;
    if rights & UNUSABLE != 0 {
        a & !PRESENT
    } else {
        a
    }
}

#[inline(never)]
fn load_segment(v: &Vcpu, (at, n): (usize, u32)) {
    let [word, base] = [0, 1].map(|i| v.state().0[at / 8 + i].get());
    let limit = word >> 32;
    let mut r = rights(n, word >> 16 & 0xffff, limit);
    if n == SS {
        // CPL is the DPL of SS, usable or not (25.4.1).
        r = r & !(3 << 5) | (v.state().0[offset_of!(S, cpl) / 8].get() & 3) << 5;
    }
    write(g::ES_SELECTOR + 2 * n, word & 0xffff);
    write(g::ES_LIMIT + 2 * n, limit);
    write(g::ES_ACCESS_RIGHTS + 2 * n, r);
    write(g::ES_BASE + 2 * n, base);
}

#[inline(never)]
fn save_segment(v: &Vcpu, (at, n): (usize, u32)) {
    let attributes = attributes(read(g::ES_ACCESS_RIGHTS + 2 * n));
    let [word, base] = [0, 1].map(|i| &v.state().0[at / 8 + i]);
    let limit = read(g::ES_LIMIT + 2 * n);
    word.set(read(g::ES_SELECTOR + 2 * n) | attributes << 16 | limit << 32);
    base.set(read(g::ES_BASE + 2 * n));
}

/// State page to VMCS. What the processor checks at entry it checks there; what it does not, and could hurt, is masked here.
#[inline(always)]
pub fn load(v: &Vcpu, groups: u64) {
    let get = |at: usize| v.state().0[at / 8].get();
    // An instruction that the VMM has carried out.
    let quick = groups == Groups::RIP && get(offset_of!(S, shadow)) & 1 == 0;
    if !quick || !Soft::of(v).step(get(offset_of!(S, rip)), get(offset_of!(S, rflags))) {
        load_slowly(v, groups);
    }
}

#[inline(never)]
fn load_slowly(v: &Vcpu, groups: u64) {
    super::need(v);
    if groups & Groups::RIP != 0 {
        let s = Soft::of(v);
        let get = |at: usize| v.state().0[at / 8].get();
        s.set(v, RIP, get(offset_of!(S, rip)));
        let flags = get(offset_of!(S, rflags)) & FLAGS | 2;
        s.set(v, RFLAGS, flags);
        let old = s.get(BLOCKING);
        let shadow = match (get(offset_of!(S, shadow)) & 1, old & SHADOW, flags & IF) {
            (0, ..) => 0,
            // By MOV SS where it cannot be by STI.
            (_, 0, 0) => 2,
            (_, 0, _) => 1,
            (_, old, _) => old,
        };
        s.set(v, BLOCKING, old & !SHADOW | shadow);
        // A trap that was pending is that of another place.
        write(g::PENDING_DBG_EXCEPTIONS, 0);
    }
    if groups & !Groups::RIP != 0 {
        load_rare(v, groups);
    }
}

#[inline(never)]
fn load_rare(v: &Vcpu, groups: u64) {
    let get = |at: usize| v.state().0[at / 8].get();
    if groups & Groups::CR != 0 {
        let [cr0, cr3, cr4] = [offset_of!(S, cr0), offset_of!(S, cr3), offset_of!(S, cr4)].map(get);
        let efer = get(offset_of!(S, efer)) & EFER_ALLOWED;
        control::set_cr(cr0, cr4, efer);
        write(g::CR3, cr3);
        Soft::of(v).cr2.set(get(offset_of!(S, cr2)));
        if cr0 >> 31 & 1 != 0 && cr4 & 1 << 5 != 0 && efer & 1 << 8 == 0 {
            load_pdptes(v, cr3);
        }
        // Translations that the guest made before.
        control::invalidate_vpid(1, v.asid.get().max(1));
    }
    if groups & Groups::SEG != 0 {
        SEG.iter().for_each(|&s| load_segment(v, s));
    }
    if groups & Groups::DESC != 0 {
        DESC.iter().for_each(|&s| load_segment(v, s));
        for (at, limit, base) in TABLES {
            write(limit, get(at) >> 32 & 0xffff);
            write(base, get(at + 8));
        }
    }
    for (_, words) in WORDS.iter().filter(|w| groups & w.0 != 0) {
        for &(at, field) in *words {
            let value = match field {
                g::DR7 => get(at) & DR7_ALLOWED | 0x400,
                _ => get(at),
            };
            write(field, value);
        }
    }
    if groups & newer::GROUPS != 0 {
        newer::load(v, groups);
    }
    if groups & (Groups::DR | Groups::XCR | Groups::SYSCALL) != 0 {
        super::extended::load(v, groups);
    }
}

/// The four entries that the processor keeps with PAE paging, which an entry takes from the VMCS (27.3.2.4): absent where the guest has
/// no memory.
fn load_pdptes(v: &Vcpu, cr3: u64) {
    let at = cr3 & 0xffff_ffe0;
    let page = v.guest.table.translate(at & !(PAGE - 1));
    for i in 0..4 {
        let entry = page.map_or(0, |(phys, _)| {
            // SAFETY: a page of the guest's memory, in cells.
            unsafe { crate::mem::page(phys) }.0[(at % PAGE / 8) as usize + i].get()
        });
        write(g::PDPTE0_FULL + 2 * i as u32, entry);
    }
}

/// VMCS to state page.
#[inline(always)]
pub fn save(v: &Vcpu, groups: u64) {
    let s = Soft::of(v);
    let set = |at: usize, value| v.state().0[at / 8].set(value);
    if groups == Groups::IP && s.marks.get() == super::KNOWN {
        set(offset_of!(S, rip), s.hot[RIP].get());
        let flags = s.hot[RFLAGS].get();
        set(offset_of!(S, rflags), flags);
        if flags & super::TF != 0 {
            super::unusual(v);
        }
    } else if groups != 0 {
        save_slowly(v, groups);
    }
}

#[inline(never)]
fn save_slowly(v: &Vcpu, groups: u64) {
    // `run` may end before its guest has been entered, with another's state in the processor.
    super::need(v);
    let s = Soft::of(v);
    let set = |at: usize, value| v.state().0[at / 8].set(value);
    if groups & (Groups::RIP | Groups::IP) != 0 {
        set(offset_of!(S, rip), s.get(RIP));
        set(offset_of!(S, rflags), s.get(RFLAGS));
        if s.steps() {
            super::unusual(v);
        }
    }
    if groups & Groups::RIP != 0 {
        let shadow = s.get(BLOCKING) & SHADOW != 0;
        set(offset_of!(S, shadow), shadow.into());
        set(offset_of!(S, cpl), read(g::SS_ACCESS_RIGHTS) >> 5 & 3);
        save_segment(v, SEG[CS as usize]);
    }
    if groups & !(Groups::RIP | Groups::IP) != 0 {
        save_rare(v, groups);
    }
}

#[inline(never)]
fn save_rare(v: &Vcpu, groups: u64) {
    let set = |at: usize, value| v.state().0[at / 8].set(value);
    if groups & Groups::CR != 0 {
        let seen = |real, shadow, mask: u64| read(real) & !mask | read(shadow) & mask;
        let cr0 = seen(g::CR0, c::CR0_READ_SHADOW, control::CR0_SHADOWED);
        // VMXE is in the shadow too: never set.
        let shadowed = control::CR4_SHADOWED | 1 << 13;
        let cr4 = seen(g::CR4, c::CR4_READ_SHADOW, shadowed);
        set(offset_of!(S, cr0), cr0);
        set(offset_of!(S, cr4), cr4);
        set(offset_of!(S, cr3), read(g::CR3));
        set(offset_of!(S, cr2), Soft::of(v).cr2.get());
        set(offset_of!(S, efer), read(g::IA32_EFER_FULL));
    }
    if groups & Groups::SEG != 0 {
        SEG.iter().for_each(|&s| save_segment(v, s));
    }
    if groups & Groups::DESC != 0 {
        DESC.iter().for_each(|&s| save_segment(v, s));
        for (at, limit, base) in TABLES {
            set(at, read(limit) << 32);
            set(at + 8, read(base));
        }
    }
    for (_, words) in WORDS.iter().filter(|w| groups & w.0 != 0) {
        words.iter().for_each(|&(at, field)| set(at, read(field)));
    }
    if groups & Groups::APIC != 0 {
        newer::save(v);
    }
    if groups & (Groups::DR | Groups::XCR | Groups::SYSCALL) != 0 {
        super::extended::save(v, groups);
    }
}
