//! From the loader to root: takes the machine over, gives root capabilities to all of it, and never returns.

pub mod features;
mod memory;
mod time;

use crate::arch::{Cpu, apic, console, entry, paging::Access, paging::Table, start};
use crate::mem::{self, PAGE};
use crate::object::cpu::CpuObject;
use crate::object::log::LogObject;
use crate::object::pool::pool_of;
use crate::object::ports::Ports;
use crate::object::thread::{Resume, reg};
use crate::object::{Budget, Cap, Object, Pool, Space, Thread, pool::MAX_POOLS};
use crate::sched;
use bootloader_api::BootInfo as Loader;
use core::fmt::Debug;
use core::sync::atomic::Ordering;
use ipc_schema::abi::{self, BootInfo, cpu_state, layout, layout::slot, rights};

/// Root's image: flat, made by xtask: magic, entry, number of segments, segments, bytes.
static ROOT: &[u8] = include_bytes!(env!("VIREO_ROOT_FLAT"));

/// Slots in root's capability table.
const ROOT_SLOTS: u64 = 1024;
/// Root's priority until the scheduler server sets another: above all.
const ROOT_PRIORITY: u64 = 30;

/// At boot a missing page is the end; the message says what to do.
trait OrFatal<T> {
    fn or_fatal(self, what: &str) -> T;
}
impl<T, E: Debug> OrFatal<T> for Result<T, E> {
    fn or_fatal(self, what: &str) -> T {
        match self {
            Ok(v) => v,
            Err(e) => console::fatal(format_args!(
                "no {what} at boot ({e:?}): give the machine more memory."
            )),
        }
    }
}

/// Takes the machine over.
pub fn start(loader: &'static mut Loader) -> ! {
    x86_64::instructions::interrupts::disable();
    let cpu = &Cpu::all()[0];
    entry::init(cpu);
    console::init();
    if let Some(f) = loader.framebuffer.as_ref() {
        let i = f.info();
        console::set_framebuffer(console::Framebuffer {
            address: f.buffer().as_ptr() as u64,
            width: i.width as u64,
            height: i.height as u64,
            stride: i.stride as u64,
            pixel: i.bytes_per_pixel as u64,
        });
    }
    features::require();
    cpu.state.store(cpu_state::ONLINE, Ordering::Release);
    cpu.apic_id.set(apic::id());
    let (pool_phys, pool_len) = memory::kernel_pool(&loader.memory_regions).unwrap_or_else(|| {
        console::fatal(format_args!(
            "less than 64 MiB of memory in one piece: give the machine more."
        ))
    });
    // SAFETY: a usable region of the loader's map, which nothing else uses; it is not given to root.
    let pool_cap =
        unsafe { Pool::create(pool_phys, pool_len / PAGE, Cap::EMPTY, MAX_POOLS as u64 - 1) }
            .or_fatal("kernel memory");
    let pool = Pool::from_cap(&pool_cap, 0).or_fatal("kernel memory");
    let page = |n| pool.take_pages(n).or_fatal("kernel memory");

    memory::own_page_table(cpu, page(1));
    memory::make_stub(page(1));
    features::enable_virtualisation(cpu, page(3), page(2));
    if let Some(low) = memory::start_page(&loader.memory_regions) {
        start::prepare(low, [page(1), page(1), page(1)]);
    }
    let (tsc_hz, tsc_source) = time::calibrate();

    // Root.
    let space = Space::create(pool, ROOT_SLOTS).or_fatal("memory for root");
    let start = load_root(pool, space.get());
    let map = |at: u64, phys: u64, r: u32| {
        let pool = pool_of(space.get().header());
        let mapped = space.table.map_page(pool, at, phys, Access::new(r, false));
        mapped.or_fatal("memory for root");
    };
    for i in 1..=layout::STACK_SIZE / PAGE {
        map(
            layout::STACK_TOP - i * PAGE,
            page(1),
            rights::READ | rights::WRITE,
        );
    }
    let info_phys = page(1);
    map(layout::BOOT_INFO, info_phys, rights::READ);
    let thread = Thread::create(pool, space, layout::UTCB, cpu).or_fatal("memory for root");
    let budget = Budget::create(pool, 0).or_fatal("memory for root");
    let _ = thread.set_own_budget(Some(budget));
    crate::arch::set_root_thread(thread);
    let now = crate::arch::now();
    let slice = tsc_hz / 100;
    cpu.booked.set(now);
    budget.configure(ROOT_PRIORITY, slice, slice, now);

    let put = |slot: u32, cap: Cap| {
        if let Ok(s) = space.get().slot(u64::from(slot)) {
            s.set(cap);
        }
    };
    put(slot::SPACE, Cap::new(space.get().header()));
    put(slot::THREAD, Cap::new(thread.get().header()));
    put(
        slot::POOL,
        Cap {
            rights: (rights::CONTROL | rights::GRANT) as u16,
            ..pool_cap
        },
    );
    put(
        slot::LOG,
        Cap::new(
            LogObject::create(pool)
                .or_fatal("memory for root")
                .get()
                .header(),
        ),
    );
    put(slot::BUDGET, Cap::new(budget.get().header()));
    put(
        slot::CPU,
        Cap::new(
            CpuObject::create(pool, 0)
                .or_fatal("memory for root")
                .get()
                .header(),
        ),
    );
    put(
        slot::PORTS,
        Cap::new(
            Ports::create(pool, 0, 0x1_0000)
                .or_fatal("memory for root")
                .get()
                .header(),
        ),
    );

    // SAFETY: the page just taken, as large as `BootInfo`; all-zero is a valid one.
    let info = unsafe { &mut *(mem::virt(info_phys) as *mut BootInfo) };
    info.abi_version = abi::ABI_VERSION;
    info.tsc_hz = tsc_hz;
    info.tsc_source = tsc_source;
    info.rsdp = loader.rsdp_addr.into_option().unwrap_or(0);
    info.archive_len = loader.ramdisk_len;
    let next = memory::give(pool, loader, (pool_phys, pool_len), info, &put);
    info.first_free_slot = next;

    thread.get().regs.rip.set(start);
    thread.get().set(reg::RSP, layout::STACK_TOP);
    thread.get().set(reg::RDI, layout::BOOT_INFO);
    thread.get().regs.rflags.set(crate::arch::USER_FLAGS);
    thread.get().resume.set(Resume::Interrupt);
    sched::make_ready(cpu, thread);
    defmt::info!(
        "Vireo kernel: TSC {=u64} Hz, {=u32} memory ranges to root",
        tsc_hz,
        info.memory_count
    );
    let first = sched::pick(cpu);
    // SAFETY: the thread that `pick` made current; everything that entry and exit need is set up.
    unsafe { entry::vireo_resume(first) }
}

/// A little-endian word of root's image.
fn root_word(at: usize) -> u64 {
    match ROOT.get(at..at + 8).and_then(|b| b.try_into().ok()) {
        Some(b) => u64::from_le_bytes(b),
        None => console::fatal(format_args!(
            "root's image is cut short: build the image again."
        )),
    }
}

/// Copies root's segments into pages of its own; answers the entry.
fn load_root(pool: &Pool, space: &Space) -> u64 {
    if !ROOT.starts_with(b"VIREOFLT") {
        console::fatal(format_args!(
            "no root in this kernel: build the image with `cargo xtask image`."
        ));
    }
    let table: &Table = &space.table;
    for s in 0..root_word(16) as usize {
        let [vaddr, memsz, offset, filesz, flags] =
            core::array::from_fn(|i| root_word(24 + s * 40 + i * 8));
        let r = (if flags & 4 != 0 { rights::READ } else { 0 })
            | (if flags & 2 != 0 { rights::WRITE } else { 0 })
            | (if flags & 1 != 0 { rights::EXEC } else { 0 });
        for p in 0..memsz.div_ceil(PAGE) {
            let phys = pool.take_pages(1).or_fatal("memory for root");
            let from = offset + p * PAGE;
            let len = filesz.saturating_sub(p * PAGE).min(PAGE);
            if let Some(bytes) = ROOT.get(from as usize..(from + len) as usize) {
                // SAFETY: a fresh page of the kernel's; `bytes` is at most a page long.
                unsafe {
                    core::ptr::copy_nonoverlapping(
                        bytes.as_ptr(),
                        mem::virt(phys) as *mut u8,
                        bytes.len(),
                    );
                }
            }
            table
                .map_page(pool, vaddr + p * PAGE, phys, Access::new(r, false))
                .or_fatal("room for root");
        }
    }
    root_word(8)
}
