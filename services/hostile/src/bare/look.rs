//! A server that looks in its registers for what is not its own: guests' planted words, addresses of the kernel's.
//!
//! Beside it run guests that plant (guests/secrets). It looks at its start, after each system call, and after VM entries that fail.

use runtime::abi::layout::{self, slot};
use runtime::abi::vm::{Event, Exit, ExitWord, Groups, Post, VcpuState};
use runtime::abi::{Status, Syscall, op};
use runtime::object::{Pool, Space};
use runtime::sys::syscall;
use runtime::{Slot, StartInfo, time};

/// First address of the kernel's half. Small negative numbers are no addresses.
const KERNEL: u64 = 0xffff_8000_0000_0000;
const SMALL: u64 = 0xffff_ffff_ffff_0000;
const STATE: u64 = layout::SHARED + 0x6000_0000;

/// Whether `value` is somebody's: a word that guests/secrets plants, or an address of the kernel's.
pub fn foreign(value: u64) -> bool {
    let planted = value & 0xff00_ff00 == 0xe700_0000 && value & 0xff_0000 != 0;
    planted || (KERNEL..SMALL).contains(&value)
}

/// What has been found.
#[derive(Default)]
pub struct Looker {
    looks: u64,
    leaks: u64,
    failed: u64,
}

impl Looker {
    fn see(&mut self, what: &str, value: u64) {
        self.looks += 1;
        if foreign(value) {
            self.leaks += 1;
            if self.leaks <= 20 {
                defmt::error!("LOOK leak: {=str} has {=u64:#x}", what, value);
            }
        }
    }

    /// The registers that no system call is for.
    fn others(&mut self) {
        let aux: u64;
        let (ds, es, fs, gs): (u64, u64, u64, u64);
        // SAFETY: reads; every processor with SVM has RDTSCP.
        unsafe {
            core::arch::asm!("rdtscp", out("rax") _, out("rdx") _, out("rcx") aux, options(nomem, nostack));
            core::arch::asm!("mov {0:r}, ds", "mov {1:r}, es", "mov {2:r}, fs", "mov {3:r}, gs",
                out(reg) ds, out(reg) es, out(reg) fs, out(reg) gs, options(nomem, nostack));
        }
        self.see("TSC_AUX", aux);
        // No word at all, not only none that was planted.
        self.leaks += u64::from(aux != 0);
        for (name, value) in [("DS", ds), ("ES", es), ("FS", fs), ("GS", gs)] {
            self.see(name, value);
        }
    }

    /// All general registers after a system call that answers with words 0 to 3 only.
    fn call(&mut self, number: u64, slot: Slot, label: u64) {
        let (mut rcx, mut rdx, mut r11, mut r13): (u64, u64, u64, u64);
        let (mut rax, mut rdi, mut rsi) = (number, u64::from(slot), label << 16);
        let (mut r8, mut r9, mut r10, mut r12) = (0u64, 0u64, 0u64, 0u64);
        r13 = time::now();
        // SAFETY: as `runtime::sys::syscall`; the calls are a yield, a wait that is over at once, and two questions.
        unsafe {
            core::arch::asm!(
                "call VIREO_STUB",
                inout("rax") rax, inout("rdi") rdi, inout("rsi") rsi, inout("r8") r8, inout("r9") r9,
                inout("r10") r10, inout("r12") r12, inout("r13") r13, out("rcx") rcx, out("rdx") rdx, out("r11") r11,
            );
        }
        let all = [
            ("rax", rax),
            ("rdi", rdi),
            ("rsi", rsi),
            ("r8", r8),
            ("r9", r9),
            ("r10", r10),
            ("r12", r12),
            ("r13", r13),
            ("rcx", rcx),
            ("rdx", rdx),
            ("r11", r11),
        ];
        for (name, value) in all {
            self.see(name, value);
        }
    }

    /// VM entries that cannot succeed: they come back, and bring nothing of the host's into the state page.
    fn entries(&mut self, start: &StartInfo) -> Result<(), Status> {
        let mut slots = start.free_slots();
        let mut slot = || slots.take().ok_or(Status::NoMemory);
        let pool = Pool(slot::POOL);
        let guest = pool.create_guest_space(slot()?)?;
        let vcpu = pool.create_vcpu(slot()?, guest, Space(slot::SPACE), STATE)?;
        vcpu.on_exit(None, Groups::ALL)?;
        let page = core::ptr::with_exposed_provenance_mut::<VcpuState>(STATE as usize);
        let words = page.cast::<u64>();
        // What is made wrong, one after the other (APM vol. 2, 15.5.1).
        let wrong: [fn(&mut VcpuState) -> u64; 9] = [
            |s| {
                s.cr0 = 1 << 29 | 0x10;
                0
            },
            |s| {
                s.cr0 |= 1 << 40;
                0
            },
            |s| {
                s.cr4 = 1 << 40;
                0
            },
            |s| {
                s.cr4 = u64::MAX;
                0
            },
            |s| {
                s.cr3 = u64::MAX;
                0
            },
            |s| {
                s.dr7 = u64::MAX;
                0
            },
            |s| {
                s.efer = !(1 << 8);
                0
            },
            // A type that there is not.
            |_| 1 << 8 | 1 << 31,
            // An exception with a vector above 31.
            |_| Event::exception(200, None).0,
        ];
        for (n, change) in wrong.into_iter().enumerate() {
            // SAFETY: the state page, which only this thread and the kernel touch; all its bit patterns are numbers.
            let event = unsafe {
                core::ptr::write_bytes(words, 0, 512);
                let mut state = core::ptr::read(page);
                state.cr0 = 0x6000_0010;
                state.rip = 0xfff0;
                state.rflags = 2;
                state.pat = 0x0007_0406_0007_0406;
                let event = change(&mut state);
                core::ptr::write_volatile(page, state);
                event
            };
            let deadline = time::after(2_000);
            let input = [Post::NONE.0, event, 0, 0];
            // SAFETY: a guest without memory: it reaches nothing.
            let r = unsafe {
                syscall(
                    Syscall::Run,
                    u64::from(vcpu.0),
                    Groups::ALL,
                    input,
                    deadline,
                )
            };
            let exit = ExitWord(r.tag).exit();
            if r.status == 0 && exit == Exit::EntryFailed {
                self.failed += 1;
            }
            for i in 0..512 {
                // SAFETY: within the page.
                let value = unsafe { core::ptr::read_volatile(words.add(i)) };
                if foreign(value) && !given(n, value) {
                    self.leaks += 1;
                    defmt::error!(
                        "LOOK leak: entry {=usize}, exit {=u64}: word {=usize} of the state page has {=u64:#x}",
                        n,
                        exit as u64,
                        i,
                        value
                    );
                }
                self.looks += 1;
            }
            for value in [
                r.value, r.tag, r.words[0], r.words[1], r.words[2], r.words[3],
            ] {
                self.see("an answer of `run`", value);
            }
        }
        Ok(())
    }

    /// Looks at everything `rounds` times.
    pub fn all(mut self, start: &StartInfo, rounds: u64) {
        self.others();
        // The search itself: it finds what it looks for.
        assert!(foreign(0x5ec2_e741_0007) && foreign(KERNEL + 0x1000) && !foreign(0x3000));
        if let Err(status) = self.entries(start) {
            defmt::error!("LOOK leak: not tried: {=u64}", status as u64);
            self.leaks += 1;
        }
        for round in 0..rounds {
            self.call(Syscall::Yield as u64, 0, 0);
            self.call(Syscall::Wait as u64, slot::NOTIFICATION, 0);
            self.call(Syscall::Call as u64, slot::CPU, op::cpu::INFO);
            self.call(Syscall::Call as u64, slot::POOL, op::pool::STAT);
            self.others();
            if round % 64 == 0 {
                // Others run for a while.
                let _ = runtime::Notification(slot::NOTIFICATION).wait(time::after(3_000));
                self.others();
            }
        }
        defmt::info!(
            "LOOK done: {=u64} looks, {=u64} leaks, {=u64} entries failed",
            self.looks,
            self.leaks,
            self.failed
        );
    }
}

/// What the test itself wrote and the kernel may give back.
fn given(_: usize, value: u64) -> bool {
    value == u64::MAX
}
