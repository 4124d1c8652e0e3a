//! Where things are in a server's address space, and in its capability table.

/// Page with the system call entry stub; mapped by the kernel into every Space.
pub const STUB: u64 = 0x20_0000;
/// Servers are linked here.
pub const IMAGE: u64 = 0x40_0000;
/// One past the top of the first thread's stack; below it are [`STACK_SIZE`] bytes, then a hole.
pub const STACK_TOP: u64 = 0x4000_0000;
/// Bytes of stack of a server's first thread.
pub const STACK_SIZE: u64 = 64 * 1024;
/// UTCB of the first thread.
pub const UTCB: u64 = 0x5000_0000;
/// [`super::BootInfo`], in root.
pub const BOOT_INFO: u64 = 0x5100_0000;
/// The start page (postcard, length-prefixed by a u32), in every other server.
pub const START_INFO: u64 = 0x5100_0000;
/// Heap of a server.
pub const HEAP: u64 = 0x6000_0000;
/// Shared pages (rings, interrupt and state pages) and device registers.
pub const SHARED: u64 = 0x1_0000_0000;
/// The guest's memory, in a VMM or device server: guest-physical address 0.
pub const GUEST: u64 = 0x1000_0000_0000;
/// First address that is not user level's.
pub const USER_END: u64 = 0x7fff_ffff_f000;

/// Slots that every server has, filled by root (root's own by the kernel).
pub mod slot {
    /// Always empty.
    pub const NULL: u32 = 0;
    /// Its own Space.
    pub const SPACE: u32 = 1;
    /// Its own first Thread.
    pub const THREAD: u32 = 2;
    /// The Endpoint on which it receives.
    pub const ENDPOINT: u32 = 3;
    /// The Notification bound to its first thread.
    pub const NOTIFICATION: u32 = 4;
    /// Its own Pool, if it has one.
    pub const POOL: u32 = 5;
    /// The Log, badged with the server's id.
    pub const LOG: u32 = 6;
    /// Its own Budget (root only).
    pub const BUDGET: u32 = 7;
    /// The boot processor (root, then scheduler).
    pub const CPU: u32 = 8;
    /// All I/O ports (root).
    pub const PORTS: u32 = 9;
    /// In a further server of a test system: processor N at `CPUS` + N, for those that run.
    pub const CPUS: u32 = 240;
    /// Named capabilities in the start page begin here.
    pub const FIRST_NAMED: u32 = 16;
}
