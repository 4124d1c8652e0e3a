//! `run`: what a VMM and the kernel say to each other about a virtual processor. The same for SVM and VMX.
//!
//! | register | in | out |
//! |---|---|---|
//! | rsi | dirty groups: taken from the state page, then validated, before the entry | [`ExitWord`] |
//! | rdi | Vcpu slot | undelivered event ([`Event`]), 0 if none |
//! | r8 | [`Post`]: vector to deliver when the guest is ready | information 0, by exit |
//! | r9 | [`Event`] to inject at once, 0 for none | information 1 |
//! | r10 | | information 2 |
//! | r12 | | length of the instruction if the processor told, else 0 |
//!
//! General registers live in the state page, always; nothing copies them.

/// State groups of the state page.
pub struct Groups;
impl Groups {
    /// rip, rflags, shadow; from the guest also cs and cpl (where it is), which are written with SEG.
    pub const RIP: u64 = 1;
    /// cr0, cr2, cr3, cr4, efer.
    pub const CR: u64 = 2;
    /// es, cs, ss, ds, rsp; to the guest also cpl.
    pub const SEG: u64 = 4;
    /// fs, gs, ldtr, tr, gdtr, idtr.
    pub const DESC: u64 = 8;
    /// star, lstar, cstar, sfmask, kernel_gs_base, sysenter_*.
    pub const SYSCALL: u64 = 16;
    /// pat.
    pub const PAT: u64 = 32;
    /// dr0 to dr3, dr6, dr7.
    pub const DR: u64 = 64;
    /// xcr0, tsc_aux.
    pub const XCR: u64 = 128;
    /// tsc_offset, tsc_ratio.
    pub const TSC: u64 = 256;
    /// From the guest only: rip and rflags, the cheap part of group RIP, enough where the exit tells the length of the instruction.
    pub const IP: u64 = 512;
    /// apic, apic_isr, apic_irr: the local APIC in hardware ([`offers::X2APIC`]). Nothing is taken or given where there is none.
    pub const APIC: u64 = 1024;
    /// To the guest only, and also with APIC: apic_level, apic_requests.
    pub const REQUESTS: u64 = 2048;
    /// All that can be written.
    pub const ALL: u64 = 511 | Self::APIC | Self::REQUESTS;
}

/// A segment register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Attributes in the VMCB's packed form (AMD APM vol. 2, 15.5.1): type 0..4, S 4, DPL 5..7, P 7, AVL 8, L 9, D/B 10, G 11.
    pub attributes: u16,
    /// Limit in bytes.
    pub limit: u32,
    /// Base.
    pub base: u64,
}

/// The page shared between a VMM and the kernel for one Vcpu.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4096))]
pub struct VcpuState {
    /// rax, rcx, rdx, rbx, (unused), rbp, rsi, rdi, r8 to r15: architectural numbers.
    pub gpr: [u64; 16],
    /// Group RIP.
    pub rip: u64,
    /// Group SEG.
    pub rsp: u64,
    /// Group RIP.
    pub rflags: u64,
    /// Group RIP: bit 0: in an interrupt shadow (STI, MOV SS).
    pub shadow: u64,
    /// Current privilege level: read with group RIP, written with group SEG.
    pub cpl: u64,
    /// Group CR.
    pub cr0: u64,
    /// Group CR.
    pub cr2: u64,
    /// Group CR.
    pub cr3: u64,
    /// Group CR.
    pub cr4: u64,
    /// Group CR: as the guest sees it.
    pub efer: u64,
    /// Group SEG.
    pub es: Segment,
    /// Read with group RIP, written with group SEG.
    pub cs: Segment,
    /// Group SEG.
    pub ss: Segment,
    /// Group SEG.
    pub ds: Segment,
    /// Group DESC.
    pub fs: Segment,
    /// Group DESC.
    pub gs: Segment,
    /// Group DESC.
    pub ldtr: Segment,
    /// Group DESC.
    pub tr: Segment,
    /// Group DESC: base and limit only.
    pub gdtr: Segment,
    /// Group DESC: base and limit only.
    pub idtr: Segment,
    /// Group SYSCALL.
    pub star: u64,
    /// Group SYSCALL.
    pub lstar: u64,
    /// Group SYSCALL.
    pub cstar: u64,
    /// Group SYSCALL.
    pub sfmask: u64,
    /// Group SYSCALL.
    pub kernel_gs_base: u64,
    /// Group SYSCALL.
    pub sysenter_cs: u64,
    /// Group SYSCALL.
    pub sysenter_esp: u64,
    /// Group SYSCALL.
    pub sysenter_eip: u64,
    /// Group PAT.
    pub pat: u64,
    /// Group DR: dr0 to dr3.
    pub dr: [u64; 4],
    /// Group DR.
    pub dr6: u64,
    /// Group DR.
    pub dr7: u64,
    /// Group XCR.
    pub xcr0: u64,
    /// Group TSC: added to the TSC that the guest reads.
    pub tsc_offset: u64,
    /// Group XCR.
    pub tsc_aux: u64,
    /// What the processor offers this vCPU ([`offers`]); the kernel writes it once, when it makes the vCPU.
    pub offers: u64,
    /// Group TSC: the guest's TSC counts this often for 2^48 cycles of the machine's (SDM vol. 3, 25.3); 0: as often. It is multiplied before
    /// tsc_offset is added. With SVM the lower 16 bits do not count (APM vol. 2, 15.30.5).
    pub tsc_ratio: u64,
    /// Group APIC: bit 0: the processor keeps the registers of the guest's local APIC, in x2APIC mode: TPR, PPR, EOI, ISR, TMR, IRR make no
    /// exit, nor does the delivery of what is in IRR. A vector that is posted must ignore TPR then.
    pub apic: u64,
    /// Group APIC: in service, bit n % 64 of word n / 64 for vector n.
    pub apic_isr: [u64; 4],
    /// Group APIC: requested.
    pub apic_irr: [u64; 4],
    /// Group REQUESTS: level-triggered: [`Exit::Eoi`] when one ends.
    pub apic_level: [u64; 4],
    /// With [`Exit::NestedFault`], where the processor has fetched the instruction ([`offers::BYTES`]): how many bytes in the first byte, 0
    /// to 15, and the bytes.
    pub fetched: [u64; 2],
    /// Group REQUESTS: the VMM's own.
    pub apic_requests: Requests,
    /// Vectors that others have posted ([`POST`]): the kernel's and the processor's.
    pub apic_posted: Requests,
}

/// Vectors to request beside those that are, as VMX has a posted-interrupt descriptor (Intel SDM vol. 3, 30.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Requests {
    /// Bit n % 64 of word n / 64 for vector n; the kernel clears them as it takes them.
    pub vectors: [u64; 4],
    /// Word 0, bit 0, in `apic_posted`: there are some. All else is 0.
    pub control: [u64; 4],
}

/// Bits of [`VcpuState::offers`].
pub mod offers {
    /// Group APIC.
    pub const X2APIC: u64 = 1;
    /// tsc_ratio.
    pub const TSC_RATIO: u64 = 2;
    /// fetched.
    pub const BYTES: u64 = 4;
    /// apic_posted.
    pub const POSTED: u64 = 8;
}

/// Operation on a Vcpu with [`offers::POSTED`], beside those of [`op::vcpu`](super::op::vcpu), right SEND. w0: vector, which the guest gets by
/// its local APIC in hardware, without an exit if it runs on another processor; what is posted while its APIC is not waits until it is.
pub const POST: u64 = 2;
/// Bit of the Notification that is bound to a vCPU's runner: a vector was posted to a guest that was not running.
pub const POSTED: u64 = 1 << 63;

/// Numbers of the general registers in [`VcpuState::gpr`].
pub mod gpr {
    #![allow(missing_docs, reason = "they are the architecture's names")]
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
}

/// An event in the form that both vendors share (AMD APM vol. 2, 15.20 EVENTINJ): vector 0..8, type 8..11
/// (0 INTR, 2 NMI, 3 exception, 4 software interrupt), error code valid 11, valid 31, error code 32..64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Event(pub u64);
impl Event {
    /// An exception, with its error code if it has one.
    #[must_use]
    pub const fn exception(vector: u8, error: Option<u32>) -> Self {
        match error {
            Some(e) => Self((vector as u64) | 3 << 8 | 1 << 11 | 1 << 31 | (e as u64) << 32),
            None => Self((vector as u64) | 3 << 8 | 1 << 31),
        }
    }
    /// A non-maskable interrupt.
    pub const NMI: Self = Self(2 | 2 << 8 | 1 << 31);
}

/// An interrupt to be delivered as soon as the guest takes interrupts of its priority, and CR8.
///
/// Bits 0..8: vector, 8..12: priority, 31: valid, 32: ignore TPR; 40..44: CR8 to set, 44: set it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Post(pub u64);
impl Post {
    /// Nothing to deliver.
    pub const NONE: Self = Self(0);
    /// Deliver `vector`; `ignore_tpr` for interrupts from a PIC.
    #[must_use]
    pub const fn vector(vector: u8, ignore_tpr: bool) -> Self {
        Self((vector as u64) | ((vector as u64 >> 4) << 8) | 1 << 31 | (ignore_tpr as u64) << 32)
    }
    /// The vector to deliver, if there is one, and whether TPR is ignored.
    #[must_use]
    pub const fn delivers(self) -> Option<(u8, bool)> {
        if self.0 & 1 << 31 == 0 {
            return None;
        }
        Some((self.0 as u8, self.0 & 1 << 32 != 0))
    }
    /// Also set CR8.
    #[must_use]
    pub const fn with_cr8(self, cr8: u8) -> Self {
        Self(self.0 | ((cr8 as u64 & 15) << 40) | 1 << 44)
    }
}

/// rsi after `run`: bits 0..16 [`Exit`], 32..36: CR8, 40: the posted vector has not been delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct ExitWord(pub u64);
impl ExitWord {
    /// First bit of the guest's CR8, four bits wide.
    pub const CR8_SHIFT: u32 = 32;
    /// The posted vector is still waiting.
    pub const POST_PENDING: u64 = 1 << 40;
    /// Why the guest left: an [`Exit`]'s number, or one unknown.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0 & 0xffff
    }
    /// Why the guest left.
    #[must_use]
    pub const fn exit(self) -> Exit {
        Exit::from_raw(self.number())
    }
    /// Whether the posted vector is still waiting.
    #[must_use]
    pub const fn post_pending(self) -> bool {
        self.0 & Self::POST_PENDING != 0
    }
    /// The guest's CR8.
    #[must_use]
    pub const fn cr8(self) -> u8 {
        (self.0 >> Self::CR8_SHIFT) as u8 & 15
    }
}

/// A port access, packed: port 0..16, width in bytes 16..20, IN 20, string 21, REP 22, taken 23 (RouteLost),
/// address size in bytes 24..28, segment 28..32 (es 0, cs 1, ss 2, ds 3, fs 4, gs 5; only if the processor told, else 15), stamp 32..64
/// (what the server is asked, and RouteLost: by it the same access done twice is told from one that was lost).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct PortAccess(pub u64);
impl PortAccess {
    /// A plain IN or OUT.
    #[must_use]
    pub const fn new(port: u16, width: u8, input: bool) -> Self {
        Self(port as u64 | (width as u64) << 16 | (input as u64) << 20)
    }
    /// The port.
    #[must_use]
    pub const fn port(self) -> u16 {
        self.0 as u16
    }
    /// Bytes: 1, 2 or 4.
    #[must_use]
    pub const fn width(self) -> u8 {
        (self.0 >> 16) as u8 & 15
    }
    /// Whether it is an IN.
    #[must_use]
    pub const fn input(self) -> bool {
        self.0 & (1 << 20) != 0
    }
    /// Whether it is INS or OUTS.
    #[must_use]
    pub const fn string(self) -> bool {
        self.0 & (1 << 21) != 0
    }
    /// Whether it has a REP prefix.
    #[must_use]
    pub const fn rep(self) -> bool {
        self.0 & (1 << 22) != 0
    }
    /// The stamp: another one for each access that the kernel, or a VMM, has a server do.
    #[must_use]
    pub const fn stamp(self) -> u32 {
        (self.0 >> 32) as u32
    }
    /// With this stamp.
    #[must_use]
    pub const fn stamped(self, stamp: u32) -> Self {
        Self(self.unstamped().0 | (stamp as u64) << 32)
    }
    /// Without the stamp.
    #[must_use]
    pub const fn unstamped(self) -> Self {
        Self(self.0 & 0xffff_ffff)
    }
    /// RouteLost: whether the server had taken the call.
    #[must_use]
    pub const fn taken(self) -> bool {
        self.0 & (1 << 23) != 0
    }
}

/// Why `run` came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Exit {
    /// The bound Notification; information 0 = its bits.
    Signal = 0,
    /// The deadline.
    Timeout = 1,
    /// CPUID.
    Cpuid = 2,
    /// HLT.
    Hlt = 3,
    /// IN, OUT, INS, OUTS not routed: information 0 = [`PortAccess`], 1 = address of the next instruction.
    Port = 4,
    /// RDMSR; ecx in the state page.
    Rdmsr = 5,
    /// WRMSR.
    Wrmsr = 6,
    /// Nested page fault: information 0 = guest-physical address, 1 = error code (bit 0 present, 1 write, 4 fetch; 32 final
    /// address, 33 in the guest's page tables).
    NestedFault = 7,
    /// An intercepted exception: information 0 = vector, 1 = error code, 2 = CR2 or DR6.
    Exception = 8,
    /// Triple fault.
    Shutdown = 9,
    /// XSETBV.
    Xsetbv = 10,
    /// INVD or WBINVD.
    Wbinvd = 11,
    /// RDPMC.
    Rdpmc = 12,
    /// VMMCALL or VMCALL.
    Vmcall = 13,
    /// Any other virtualisation instruction: the guest has none.
    VmInstruction = 14,
    /// MONITOR or MWAIT.
    Monitor = 15,
    /// Task switch.
    TaskSwitch = 16,
    /// INIT.
    Init = 17,
    /// The exit route's server died or was too slow: information 0 = [`PortAccess`], 1 = value, 2 = address of the next instruction.
    RouteLost = 18,
    /// The processor refused the state: information 0 = the vendor's code. The guest did not run.
    EntryFailed = 19,
    /// Another exit: information 0 = the vendor's code, 1 and 2 = its information.
    Other = 20,
    /// A write to CR0, by MOV or LMSW, that changes more than TS and MP, and that the processor has not carried out. Not every
    /// processor's guests exit for it.
    WriteCr0 = 21,
    /// The guest's APIC, in hardware, has ended a level-triggered interrupt: information 0 = its vector. The instruction is done.
    Eoi = 22,
}

impl Exit {
    /// How many kinds there are.
    pub const COUNT: usize = 23;
    /// The exit with this number; unknown ones are `Other`.
    #[must_use]
    pub const fn from_raw(raw: u64) -> Self {
        match raw {
            0 => Self::Signal,
            1 => Self::Timeout,
            2 => Self::Cpuid,
            3 => Self::Hlt,
            4 => Self::Port,
            5 => Self::Rdmsr,
            6 => Self::Wrmsr,
            7 => Self::NestedFault,
            8 => Self::Exception,
            9 => Self::Shutdown,
            10 => Self::Xsetbv,
            11 => Self::Wbinvd,
            12 => Self::Rdpmc,
            13 => Self::Vmcall,
            14 => Self::VmInstruction,
            15 => Self::Monitor,
            16 => Self::TaskSwitch,
            17 => Self::Init,
            18 => Self::RouteLost,
            19 => Self::EntryFailed,
            21 => Self::WriteCr0,
            22 => Self::Eoi,
            _ => Self::Other,
        }
    }
}
