//! From the loader to root: takes the machine over, gives root capabilities to all of it, and never returns.

pub mod features;
pub mod memory;
mod time;

use crate::arch::{self, BOOT, Cpu, apic, console, entry, paging::Access, paging::HOST, start};
use crate::mem::{self, PAGE};
use crate::object::cpu::CpuObject;
use crate::object::log::LogObject;
use crate::object::ports::Ports;
use crate::object::thread::reg;
use crate::object::{Budget, Cap, Pool, Space, Thread, pool::MAX_POOLS};
use crate::sched;
use crate::virt::svm::start::MSR_PAGES;
use bootloader_api::BootInfo as Loader;
use core::sync::atomic::Ordering;
use ipc_schema::abi::{self, BootInfo, Status, cpu_state, layout, layout::slot, rights};

/// Root's image: flat, made by xtask: magic, entry, number of segments, segments, bytes.
static ROOT: &[u8] = include_bytes!(env!("VIREO_ROOT_FLAT"));

/// Slots in root's capability table.
const ROOT_SLOTS: u64 = 1024;
/// Root's priority until the scheduler server sets another: above all.
const ROOT_PRIORITY: u64 = 30;

/// At boot a missing page is the end; the message says what to do.
fn need<T>(made: Result<T, Status>) -> T {
    match made {
        Ok(v) => v,
        Err(e) => console::fatal(
            "no kernel memory at boot (error #): give the machine more memory.",
            &[e as u64],
        ),
    }
}

/// Takes the machine over.
pub fn start(loader: &'static mut Loader) -> ! {
    x86_64::instructions::interrupts::disable();
    let loader: &'static Loader = loader;
    let screen = loader.framebuffer.as_ref();
    let cpu = &Cpu::all()[0];
    entry::init(cpu);
    console::init(screen);
    features::require();
    cpu.state.store(cpu_state::ONLINE, Ordering::Release);
    cpu.apic_id.set(apic::id());
    let kept = memory::kernel_pool(&loader.memory_regions).unwrap_or_else(|| {
        console::fatal(
            "less than 64 MiB of memory in one piece: give the machine more.",
            &[],
        )
    });
    // SAFETY: a usable region of the loader's map, which nothing else uses; it is not given to root.
    let pool_cap =
        need(unsafe { Pool::create(kept.0, kept.1 / PAGE, Cap::EMPTY, MAX_POOLS as u64 - 1) });
    let pool = need(Pool::from_cap(&pool_cap, 0));
    let page = || need(pool.take_page());
    // The Pool is new: its pages come in their order.
    let pages = |n| {
        (1..n).fold(page(), |first, _| {
            page();
            first
        })
    };

    memory::own_page_table(cpu, page());
    for c in Cpu::all() {
        c.host_control.set(pages(2));
    }
    let stub = features::enable_virtualisation(cpu, pages(3), pages(MSR_PAGES));
    BOOT.stub.set(memory::phys(stub).unwrap_or(0));
    if let Some(low) = memory::start_page(&loader.memory_regions) {
        start::prepare(low, [page(), page(), page()]);
    }
    let (tsc_hz, tsc_source) = time::calibrate();

    // Root.
    let space = need(Space::create(pool, ROOT_SLOTS));
    let map = |at: u64, r: u32| {
        let phys = page();
        let access = Access::new(&HOST, r, false);
        need(space.table.map_page(pool, at, phys, access));
        mem::virt(phys)
    };
    let start = load_root(&map);
    for i in 1..=layout::STACK_SIZE / PAGE {
        map(layout::STACK_TOP - i * PAGE, rights::READ | rights::WRITE);
    }
    let info = map(layout::BOOT_INFO, rights::READ) as *mut BootInfo;
    let thread = need(Thread::create(pool, space, layout::UTCB, cpu));
    let budget = need(Budget::create(pool, 0));
    thread.set_own_budget(Some(budget));
    BOOT.root_thread.set(Some(thread));
    let now = arch::now();
    let slice = tsc_hz / 100;
    cpu.booked.set(now);
    budget.configure(ROOT_PRIORITY, slice, slice, now);

    let put = |slot: u32, cap: Cap| {
        if let Ok(s) = space.get().slot(u64::from(slot)) {
            s.set(cap);
        }
    };
    put(slot::SPACE, Cap::of(space));
    put(slot::THREAD, Cap::of(thread));
    let rights = (rights::CONTROL | rights::GRANT) as u16;
    put(slot::POOL, Cap { rights, ..pool_cap });
    put(slot::LOG, Cap::of(need(LogObject::create(pool))));
    put(slot::BUDGET, Cap::of(budget));
    put(slot::CPU, Cap::of(need(CpuObject::create(pool, 0))));
    put(slot::PORTS, Cap::of(need(Ports::create(pool, 0, 0x1_0000))));

    // SAFETY: the page just taken, as large as `BootInfo`; all-zero is a valid one.
    let info = unsafe { &mut *info };
    info.abi_version = abi::ABI_VERSION;
    info.tsc_hz = tsc_hz;
    info.tsc_source = tsc_source;
    info.rsdp = loader.rsdp_addr.into_option().unwrap_or(0);
    info.archive_len = loader.ramdisk_len;
    if let Some(f) = screen {
        let (at, i) = (f.buffer().as_ptr() as u64, f.info());
        let size = [i.width, i.height, i.stride, i.bytes_per_pixel].map(|n| n as u64);
        // It lies in a device range, which root is given.
        info.framebuffer[0] = memory::phys(at).unwrap_or(0);
        info.framebuffer[1..].copy_from_slice(&size);
    }
    info.first_free_slot = memory::give(pool, loader, kept, info, &put);

    thread.get().set(reg::RSP, layout::STACK_TOP);
    thread.get().set(reg::RDI, layout::BOOT_INFO);
    thread.get().go_on_at(start, 0);
    sched::make_ready(cpu, thread);
    defmt::info!(
        "Vireo kernel: TSC {=u64} Hz, {=u32} memory ranges to root",
        tsc_hz,
        info.memory_count
    );
    entry::go_on(sched::pick(cpu))
}

/// A little-endian word of root's image.
fn root_word(at: u64) -> u64 {
    match ROOT.get(at as usize..).and_then(|b| b.first_chunk()) {
        Some(b) => u64::from_le_bytes(*b),
        None => console::fatal("root's image is cut short: build the image again.", &[]),
    }
}

/// Copies root's segments into pages of its own, which `map` maps and answers the kernel's addresses of; answers the entry.
fn load_root(map: &dyn Fn(u64, u32) -> u64) -> u64 {
    if !ROOT.starts_with(b"VIREOFLT") {
        console::fatal(
            "no root in this kernel: build the image with `cargo xtask image`.",
            &[],
        );
    }
    for s in 0..root_word(16) {
        let [to, size, offset, filled, rights] =
            core::array::from_fn(|i| root_word(24 + s * 40 + i as u64 * 8));
        for at in (0..size).step_by(PAGE as usize) {
            let page = map(to + at, rights as u32) as *mut u8;
            let from = (offset + at) as usize;
            let len = filled.saturating_sub(at).min(PAGE) as usize;
            let bytes = ROOT.get(from..from + len).unwrap_or(&[]);
            // SAFETY: a fresh page of the kernel's; `bytes` is at most a page long.
            unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), page, bytes.len()) };
        }
    }
    root_word(8)
}
