//! What the acts choose from.

/// Ports that would end the VM or break the report: UART, debug exit, resets, power management.
pub const SPARED: [(u16, u16); 7] = [
    (0x3f8, 8),
    (0xf4, 4),
    (0xcf8, 8),
    (0x92, 1),
    (0x64, 1),
    (0x600, 0x40),
    (0xb2, 2),
];

/// Instructions that only a hypervisor's guest would try.
pub const SPECIAL: [&[u8]; 30] = [
    &[0x0f, 0x01, 0xd8],             // VMRUN
    &[0x0f, 0x01, 0xd9],             // VMMCALL
    &[0x0f, 0x01, 0xda],             // VMLOAD
    &[0x0f, 0x01, 0xdb],             // VMSAVE
    &[0x0f, 0x01, 0xdc],             // STGI
    &[0x0f, 0x01, 0xdd],             // CLGI
    &[0x0f, 0x01, 0xde],             // SKINIT
    &[0x0f, 0x01, 0xdf],             // INVLPGA
    &[0x0f, 0x01, 0xc1],             // VMCALL
    &[0x0f, 0x01, 0xc2],             // VMLAUNCH
    &[0x0f, 0x01, 0xc4],             // VMXOFF
    &[0xf3, 0x0f, 0xc7, 0x30],       // VMXON [RAX]
    &[0x0f, 0x01, 0xc8],             // MONITOR
    &[0x0f, 0x01, 0xc9],             // MWAIT
    &[0x0f, 0x01, 0xfa],             // MONITORX
    &[0x0f, 0x01, 0xd1],             // XSETBV
    &[0x0f, 0x01, 0xd0],             // XGETBV
    &[0x0f, 0x33],                   // RDPMC
    &[0x0f, 0x08],                   // INVD
    &[0x0f, 0x09],                   // WBINVD
    &[0x0f, 0xaa],                   // RSM
    &[0x0f, 0x37],                   // GETSEC
    &[0x0f, 0x01, 0xfd],             // RDPRU
    &[0x0f, 0x01, 0xfe],             // INVLPGB
    &[0x0f, 0x01, 0xff],             // TLBSYNC
    &[0x66, 0x0f, 0x38, 0x82, 0x08], // INVPCID
    &[0x0f, 0x01, 0xcf],             // ENCLS
    &[0xcd, 0x81],                   // INT 0x81
    &[0xf1],                         // ICEBP
    &[0xcc],                         // INT3
];

/// Loads, stores and more complicated accesses to [RDI] (and [RSI]), for MMIO.
pub const ACCESSES: [&[u8]; 19] = [
    &[0x8a, 0x07],
    &[0x8b, 0x07],
    &[0x48, 0x8b, 0x07],
    &[0x88, 0x07],
    &[0x89, 0x07],
    &[0x48, 0x89, 0x07],
    &[0xc7, 0x07, 0x78, 0x56, 0x34, 0x12],
    &[0xc6, 0x07, 0x55],
    &[0x01, 0x07],             // ADD [RDI], EAX
    &[0x87, 0x07],             // XCHG
    &[0xf0, 0x0f, 0xb1, 0x0f], // LOCK CMPXCHG
    &[0xa5],                   // MOVSD
    &[0xab],                   // STOSD
    &[0xf3, 0xaa],             // REP STOSB
    &[0xf3, 0xa4],             // REP MOVSB
    &[0x0f, 0xb6, 0x07],       // MOVZX
    &[0x0f, 0xbe, 0x07],       // MOVSX
    &[0xf7, 0x07, 1, 0, 0, 0], // TEST
    &[0x0f, 0xae, 0x3f],       // CLFLUSH
];

/// Those that no driver makes and a VMM need not know.
pub const STRANGE: [&[u8]; 8] = [
    &[0xff, 0x37],             // PUSH [RDI]
    &[0xaf],                   // SCASD
    &[0x0f, 0xc7, 0x0f],       // CMPXCHG8B
    &[0x8f, 0x07],             // POP [RDI]
    &[0xff, 0x27],             // JMP [RDI]
    &[0xff, 0x1f],             // CALL FAR [RDI]
    &[0xda, 0x07],             // FIADD [RDI]
    &[0x66, 0x0f, 0x6f, 0x07], // MOVDQA
];

/// The kinds of acts, as the report names them.
pub const KINDS: [&str; 10] = [
    "port", "mmio", "msr", "cpuid", "control", "debug", "special", "pages", "apic", "noise",
];
