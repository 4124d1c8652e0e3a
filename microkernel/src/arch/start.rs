//! Starting the other processors (Intel SDM vol. 3, 9.4; AMD APM vol. 2, 15.27 and 16.5 for the messages).
//!
//! A processor begins in real mode in one page below 1 MiB, which is copied there from here, and goes from there to long mode by a page
//! table that maps that page at its own address. The steps are the platform server's to take and to time (`op::cpu::START`).

use super::{Cpu, apic, descriptors, entry};
use crate::mem::{self, Global, PAGE};
use crate::object::refuse_if;
use core::arch::global_asm;
use core::cell::Cell;
use core::sync::atomic::Ordering;
use ipc_schema::abi::{Status, cpu_state};
use x86_64::registers::control::{Cr4, Efer};

/// Where processors begin: the page below 1 MiB (0: none was found), and the page table for the way. Written at boot.
static START: Global<Cell<(u64, u64)>> = Global(Cell::new((0, 0)));

global_asm!(
    r#"
    .section .rodata
    .balign 16
    .globl vireo_start, vireo_start_end, vireo_start_data
    .code16
vireo_start:
    cli
    cld
    xorl %ebx, %ebx
    movw %cs, %bx
    movw %bx, %ds
    shll $4, %ebx
    movl $(vireo_start_data - vireo_start), %esi
    lgdtl (%si)
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl *8(%si)
    .code32
vireo_start_32:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %ss
    leal (vireo_start_data - vireo_start)(%ebx), %esi
    movl 24(%esi), %eax
    movl %eax, %cr4
    movl 32(%esi), %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    movl 40(%esi), %eax
    xorl %edx, %edx
    wrmsr
    movl $0x80010033, %eax
    movl %eax, %cr0
    ljmpl *16(%esi)
    .code64
vireo_start_64:
    movq 48(%rsi), %rsp
    movq 56(%rsi), %rdi
    movq 64(%rsi), %rax
    xorl %ebp, %ebp
    # As after a call.
    pushq $0
    jmpq *%rax
    .balign 8
vireo_start_data:
    .skip 112
vireo_start_end:
"#,
    options(att_syntax)
);

unsafe extern "C" {
    static vireo_start: u8;
    static vireo_start_32: u8;
    static vireo_start_64: u8;
    static vireo_start_data: u8;
    static vireo_start_end: u8;
}

/// Boot: `page` is a page of RAM below 1 MiB that nothing else uses; `tables` three pages below 4 GiB.
pub fn prepare(page: u64, tables: [u64; 3]) {
    let [root, directory, last] = tables;
    super::share_kernel_half(root);
    // SAFETY: three pages of the kernel's. The last maps the first 2 MiB as they are, not writable: the page is run there, and written
    // where it is not executable.
    unsafe {
        mem::page(root).0[0].set(directory | 3);
        mem::page(directory).0[0].set(last | 3);
        mem::page(last).0[0].set(1 << 7 | 1);
    }
    START.set((page, root));
}

/// Copies the code to its page, with what `cpu` needs to come up.
fn write_page(cpu: &'static Cpu) {
    let (page, root) = START.get();
    let start = &raw const vireo_start;
    let at = |symbol: *const u8| symbol as u64 - start as u64;
    let data = at(&raw const vireo_start_data);
    let (cr4, efer) = (Cr4::read_raw(), Efer::read_raw());
    // The GDT behind the rest: null, 32-bit code, data, 64-bit code.
    let words = [
        31 | (page + data + 80) << 16,
        (page + at(&raw const vireo_start_32)) | 8 << 32,
        (page + at(&raw const vireo_start_64)) | 24 << 32,
        // Without PCID and the protections, which `entry` switches on: PAE, OSFXSR, OSXMMEXCPT, MCE.
        cr4 & 0x660,
        root,
        // SCE, LME, NXE.
        efer & 0x901,
        descriptors::stack_top(cpu),
        core::ptr::from_ref(cpu) as u64,
        came_up as *const () as u64,
        0,
        0,
        0x00cf_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00af_9b00_0000_ffff,
    ];
    // SAFETY: a page that is only used for this, while no other processor is in it (each start waits for the one before); the symbols
    // are the code's, shorter than a page.
    unsafe {
        let to = mem::virt(page) as *mut u8;
        let len = at(&raw const vireo_start_end) as usize;
        core::ptr::copy_nonoverlapping(start, to, len);
        to.add(data as usize)
            .cast::<[u64; 14]>()
            .write_unaligned(words);
    }
    debug_assert!(data + 112 <= PAGE);
}

/// One step of `op::cpu::START`; answers the state afterwards.
///
/// # Errors
/// As `op::cpu::START` says.
pub fn step(cpu: &'static Cpu, apic_id: u32, step: u64) -> Result<u64, Status> {
    let (page, _) = START.get();
    refuse_if(page == 0, Status::Unsupported)?;
    let set = |state| {
        cpu.state.store(state, Ordering::Release);
        Ok(state)
    };
    match (step, cpu.state.load(Ordering::Acquire)) {
        (0, cpu_state::OFF | cpu_state::INIT | cpu_state::STARTING) => {
            // There is one page to start in: nobody else may be on the way.
            let starts = |c: &Cpu| c.state.load(Ordering::Acquire) == cpu_state::STARTING;
            if Cpu::all()
                .iter()
                .any(|c| c.number != cpu.number && starts(c))
            {
                return Err(Status::Busy);
            }
            apic::send_init(apic_id);
            set(cpu_state::INIT)
        }
        (1, cpu_state::INIT) => {
            write_page(cpu);
            set(cpu_state::STARTING)?;
            apic::send_startup(apic_id, (page >> 12) as u8);
            // It sets the state itself from now on.
            Ok(cpu.state.load(Ordering::Acquire))
        }
        (2, cpu_state::WAITING) if same_time(cpu) => {
            crate::sync::admit(cpu);
            defmt::info!("processor {=u32} runs", cpu.number);
            Ok(cpu_state::ONLINE)
        }
        (2, cpu_state::WAITING) => {
            set(cpu_state::OFF)?;
            apic::send_init(apic_id);
            Err(Status::Unsupported)
        }
        (0..=2, _) => Err(Status::Busy),
        _ => Err(Status::InvalidArg),
    }
}

/// Rounds of comparing time stamps.
const ROUNDS: u32 = 8;
/// Looks at the other side's answer before it is taken for dead.
const PATIENCE: u32 = 1 << 22;

/// Whether `cpu`'s time-stamp counter never runs behind this one's, nor this one's behind it: stamps go back and forth, and each side
/// must see time go on.
fn same_time(cpu: &Cpu) -> bool {
    (0..ROUNDS).all(|_| {
        let asked = super::now();
        cpu.stamp.store(0, Ordering::Release);
        let look = |_| {
            core::hint::spin_loop();
            cpu.stamp.load(Ordering::Acquire)
        };
        let answer = (0..PATIENCE).map(look).find(|&s| s != 0);
        answer.is_some_and(|s| asked <= s && s <= super::now())
    })
}

/// The processor's first Rust code, on its own kernel stack.
extern "sysv64" fn came_up(cpu: &'static Cpu) -> ! {
    entry::init(cpu);
    if !crate::boot::features::join(cpu) {
        cpu.state.store(cpu_state::OFF, Ordering::Release);
        halt();
    }
    cpu.root.set(super::kernel_root());
    super::load_root(super::kernel_root());
    apic::init();
    cpu.state.store(cpu_state::WAITING, Ordering::Release);
    loop {
        match cpu.state.load(Ordering::Acquire) {
            cpu_state::ONLINE => break,
            cpu_state::WAITING => {}
            _ => halt(),
        }
        // A locked instruction: the time is read after it.
        if cpu.stamp.fetch_or(0, Ordering::AcqRel) == 0 {
            cpu.stamp.store(super::now(), Ordering::Release);
        }
        core::hint::spin_loop();
    }
    cpu.booked.set(super::now());
    entry::go_on(crate::sched::pick(cpu))
}

/// Waits for an INIT.
fn halt() -> ! {
    x86_64::instructions::interrupts::disable();
    loop {
        x86_64::instructions::hlt();
    }
}
