//! The kernel's ABI: six system calls, capabilities, object operations, and the pages shared with user level.
//!
//! # Entering the kernel
//!
//! A server calls the stub page that the kernel maps at [`layout::STUB`] (SYSCALL on AMD, SYSENTER on Intel):
//!
//! | register | in | out |
//! |---|---|---|
//! | rax | [`Syscall`] | [`Status`] |
//! | rdi | capability slot | badge, or pending bits, or undelivered event (`run`) |
//! | rsi | [`Tag`] (`run`: dirty [`vm::Groups`]) | [`Tag`] (`run`: [`vm::ExitWord`]) |
//! | r8, r9, r10, r12 | message words 0 to 3 | message words 0 to 3 |
//! | r13 | deadline: absolute TSC, [`NEVER`] for none | undefined |
//! | rcx, rdx, r11 | free | undefined |
//! | rbx, rbp, rsp, r14, r15 | | preserved |
//!
//! Messages longer than four words, and capabilities, travel in the [`Utcb`].

pub mod layout;
pub mod op;
pub mod operations;
pub mod vm;

/// Version of everything in this module; also an ELF note in each server. A mismatch refuses to start.
pub const ABI_VERSION: u32 = 1;

/// The deadline that never comes.
pub const NEVER: u64 = u64::MAX;

/// The six system calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Syscall {
    /// Sends a message to an Endpoint and waits for the reply; on any other object: performs an operation.
    Call = 0,
    /// Replies to the caller being served, if any, then waits for the next call on an Endpoint, for the bound
    /// Notification, or for the deadline. Slot 0 as the Endpoint only replies and waits for the Notification.
    ReplyRecv = 1,
    /// Sets the badge's bits in a Notification.
    Signal = 2,
    /// Waits until a Notification has pending bits; takes them all.
    Wait = 3,
    /// Turns the calling thread into a guest until an exit that is the VMM's.
    Run = 4,
    /// Lets other threads of the same priority run.
    Yield = 5,
}

/// Result of a system call (rax).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Status {
    /// Done; `call`: the reply is there; `reply_recv`: a call is there; `run`: an exit is there.
    Ok = 0,
    /// `reply_recv`, `wait`: Notification bits are there (rdi).
    Signal = 1,
    /// The deadline passed.
    Timeout = 2,
    /// The slot is empty, or out of the table, or its object has been destroyed.
    InvalidCap = 16,
    /// The capability is for another type of object.
    WrongType = 17,
    /// The capability lacks a right that the operation needs.
    MissingRight = 18,
    /// No such system call or operation.
    BadOperation = 19,
    /// An argument has no meaning here.
    InvalidArg = 20,
    /// An address, offset, length or number is outside its range.
    OutOfRange = 21,
    /// An address or length is not a multiple of what it must be.
    Misaligned = 22,
    /// The range overlaps one in use.
    Overlap = 23,
    /// The Pool is full.
    NoMemory = 24,
    /// The object is in use in a way that excludes this.
    Busy = 25,
    /// The partner died before it replied.
    Dead = 26,
    /// The destination slot is occupied.
    Occupied = 27,
    /// The operation did a bounded part of its work; call it again.
    Again = 28,
    /// This processor cannot do it.
    Unsupported = 29,
}

impl Status {
    /// The status with this number; unknown numbers (a newer kernel) are `InvalidArg`.
    #[must_use]
    pub const fn from_raw(raw: u64) -> Self {
        match raw {
            0 => Self::Ok,
            1 => Self::Signal,
            2 => Self::Timeout,
            16 => Self::InvalidCap,
            17 => Self::WrongType,
            18 => Self::MissingRight,
            19 => Self::BadOperation,
            21 => Self::OutOfRange,
            22 => Self::Misaligned,
            23 => Self::Overlap,
            24 => Self::NoMemory,
            25 => Self::Busy,
            26 => Self::Dead,
            27 => Self::Occupied,
            28 => Self::Again,
            29 => Self::Unsupported,
            _ => Self::InvalidArg,
        }
    }
}

/// Kinds of kernel objects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Kind {
    /// Kernel memory donated by its owner.
    Pool = 1,
    /// A run of physical pages.
    Memory = 2,
    /// A protection domain: address space and capability table.
    Space = 3,
    /// An execution context.
    Thread = 4,
    /// A scheduling context.
    Budget = 5,
    /// Where servers receive calls.
    Endpoint = 6,
    /// A word of pending bits.
    Notification = 7,
    /// A VM: nested page table and exit routes.
    GuestSpace = 8,
    /// A virtual processor.
    Vcpu = 9,
    /// An interrupt vector.
    Irq = 11,
    /// A range of the machine's I/O ports.
    Ports = 12,
    /// A processor.
    Cpu = 13,
    /// The log ring.
    Log = 14,
    /// A mapped range: the kernel's own record, which no capability names.
    Mapping = 15,
}

impl Kind {
    /// The kind with this number, if there is one.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            1 => Self::Pool,
            2 => Self::Memory,
            3 => Self::Space,
            4 => Self::Thread,
            5 => Self::Budget,
            6 => Self::Endpoint,
            7 => Self::Notification,
            8 => Self::GuestSpace,
            9 => Self::Vcpu,
            11 => Self::Irq,
            12 => Self::Ports,
            13 => Self::Cpu,
            14 => Self::Log,
            15 => Self::Mapping,
            _ => return None,
        })
    }
}

/// Rights in a capability; which ones an operation needs is written at the operation.
pub mod rights {
    /// Memory: read; Log: read the ring.
    pub const READ: u32 = 1;
    /// Memory: write; Log: add records.
    pub const WRITE: u32 = 2;
    /// Memory: execute.
    pub const EXEC: u32 = 4;
    /// Endpoint: call; Notification: signal.
    pub const SEND: u32 = 8;
    /// Endpoint: receive; Notification: wait and bind.
    pub const RECV: u32 = 16;
    /// The object's operations that change or use it: create in, configure, map into, run, divide.
    pub const CONTROL: u32 = 32;
    /// Destroy the object.
    pub const DESTROY: u32 = 64;
    /// Copy the capability to another Space, directly or in a message.
    pub const GRANT: u32 = 128;
    /// All of them.
    pub const ALL: u32 = 255;
}

/// Message tag: payload length in the UTCB, capabilities, label.
///
/// Bits 0..12: bytes of payload (at most [`Utcb::PAYLOAD`]); 12..16: capabilities sent (at most 4);
/// 16..64: label, free for the protocol; for kernel objects the operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct Tag(pub u64);

impl Tag {
    /// A tag with a label only.
    #[must_use]
    pub const fn new(label: u64) -> Self {
        Self(label << 16)
    }
    /// The same with `bytes` of UTCB payload.
    #[must_use]
    pub const fn with_payload(self, bytes: usize) -> Self {
        Self((self.0 & !0xfff) | (bytes as u64 & 0xfff))
    }
    /// The same with `n` capabilities.
    #[must_use]
    pub const fn with_caps(self, n: usize) -> Self {
        Self((self.0 & !0xf000) | ((n as u64 & 0xf) << 12))
    }
    /// Bytes of UTCB payload.
    #[must_use]
    pub const fn payload(self) -> usize {
        (self.0 & 0xfff) as usize
    }
    /// Capabilities sent.
    #[must_use]
    pub const fn caps(self) -> usize {
        ((self.0 >> 12) & 0xf) as usize
    }
    /// The label.
    #[must_use]
    pub const fn label(self) -> u64 {
        self.0 >> 16
    }
    /// Label of the call that the kernel makes for a faulting thread; words: [`FaultWords`].
    pub const FAULT: u64 = 0xffff_ffff_0001;
    /// Label of the call that the kernel makes for a routed port access; word 0: [`vm::PortAccess`], word 1: value
    /// of an OUT. The reply's word 0 is the value of an IN.
    pub const PORT: u64 = 0xffff_ffff_0002;
}

/// What a fault message says (words 0 to 3): vector, error code, address (CR2 for #PF, else 0), rip.
pub struct FaultWords;

/// A capability to be sent with a message.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct CapTransfer {
    /// Slot in the sender's table.
    pub slot: u32,
    /// Rights to keep.
    pub rights: u32,
    /// New badge; 0 keeps the old one. Only an unbadged capability can be given a badge.
    pub badge: u64,
}

/// The page through which a thread and the kernel pass what does not fit in registers.
#[repr(C, align(4096))]
pub struct Utcb {
    /// First slot for capabilities received; they go to consecutive slots, which must be empty.
    pub recv_slot: u32,
    /// How many such slots there are; 0 refuses capabilities.
    pub recv_count: u32,
    /// Capabilities to send.
    pub send: [CapTransfer; 4],
    /// How many capabilities came with the last message received (written by the kernel).
    pub received: u64,
    reserved: [u64; 118],
    /// Payload bytes.
    pub payload: [u8; Utcb::PAYLOAD],
}

impl Utcb {
    /// Bytes of payload at most.
    pub const PAYLOAD: usize = 3072;
    /// Offset of the payload in the page.
    pub const PAYLOAD_OFFSET: usize = 1024;
}

const _: () = assert!(core::mem::size_of::<Utcb>() == 4096);
const _: () = assert!(core::mem::offset_of!(Utcb, payload) == Utcb::PAYLOAD_OFFSET);

/// Registers of a thread, as [`op::thread::READ_REGS`] puts them into the payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ThreadRegs {
    /// rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
}

impl ThreadRegs {
    /// Words of it.
    pub const WORDS: usize = 18;
}

/// What `op::thread::READ_REGS` answers in word 0.
pub mod thread_state {
    /// Not started, or suspended.
    pub const STOPPED: u64 = 0;
    /// Running or ready.
    pub const READY: u64 = 1;
    /// In a call that has not been answered.
    pub const CALLING: u64 = 2;
    /// Waiting for a call or a Notification.
    pub const WAITING: u64 = 3;
    /// Faulted; its supervisor has the fault.
    pub const FAULTED: u64 = 4;
}

/// What `op::cpu::INFO` and `op::cpu::START` answer.
pub mod cpu_state {
    /// Off: never started, or refused.
    pub const OFF: u64 = 0;
    /// INIT has been sent.
    pub const INIT: u64 = 1;
    /// The start-up message has been sent; the processor has not come up yet.
    pub const STARTING: u64 = 2;
    /// It is up and waits to be admitted.
    pub const WAITING: u64 = 3;
    /// It runs threads.
    pub const ONLINE: u64 = 4;
}

/// One range of physical memory that root is given a capability to.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct BootMemory {
    /// First physical address.
    pub phys: u64,
    /// Bytes.
    pub len: u64,
    /// Slot of the Memory capability in root's table.
    pub slot: u32,
    /// 0: RAM, 1: device range, 2: boot archive, 3: firmware tables (ACPI, read only), 4: framebuffer.
    pub kind: u32,
}

/// The page the kernel leaves at [`layout::BOOT_INFO`] in root's Space.
#[repr(C)]
pub struct BootInfo {
    /// [`ABI_VERSION`].
    pub abi_version: u32,
    /// 1: TSC frequency from CPUID, 2: measured against the PIT.
    pub tsc_source: u32,
    /// TSC frequency in Hz.
    pub tsc_hz: u64,
    /// Physical address of the RSDP, 0 if the loader knew none.
    pub rsdp: u64,
    /// Framebuffer: physical address (0: none), width, height, stride in pixels, bytes a pixel.
    pub framebuffer: [u64; 5],
    /// Bytes in the boot archive.
    pub archive_len: u64,
    /// First empty slot in root's table.
    pub first_free_slot: u32,
    /// Entries of `memory` in use.
    pub memory_count: u32,
    /// All memory that the kernel does not keep.
    pub memory: [BootMemory; BootInfo::MAX_MEMORY],
}

impl BootInfo {
    /// Entries in `memory` at most.
    pub const MAX_MEMORY: usize = 120;
}

const _: () = assert!(core::mem::size_of::<BootInfo>() <= 4096);
