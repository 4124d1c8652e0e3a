//! guest-costs: what devices cost a Linux guest, in ticks of its TSC.
//!
//! Place: the first process of an unmodified Linux in a VM, under Vireo and under KVM: one program for both. With the emulator's
//! `-icount shift=0` a tick is an instruction, whoever's it is: guest, hypervisor, its servers or the host's processes. `costs=` on
//! the kernel's command line says what is measured: `boot`, `blk`, `tty`, `send` or `receive`. Lines are
//! `BENCH name instructions min median max`; `COSTS-INIT tsc` is the first, `COSTS-END` the last. Then the machine is switched off.
//!
//! As another process than the first it serves the host under KVM: `exec PROGRAM ARGS...` says when a program begins, `stamp` puts
//! the TSC before each line of its input.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod block;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod host;
#[cfg(target_os = "none")]
mod net;
#[cfg(target_os = "none")]
mod report;
#[cfg(target_os = "none")]
mod sys;

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod start {
    use core::ffi::CStr;

    use crate::report::{fail, must, say};
    use crate::sys::{self, ENOENT, File, READ_ONLY};
    use crate::{block, console, host, net};

    // The stack begins with the number of arguments, the arguments, null, the environment, null (System V ABI for x86-64, 3.4.1).
    core::arch::global_asm!(
        ".globl _start",
        "_start:",
        "mov rdi, rsp",
        "xor ebp, ebp",
        "and rsp, -16",
        "call {}",
        "ud2",
        sym start,
    );

    extern "C" fn start(stack: *const *const u8) -> ! {
        let now = sys::tsc();
        // SAFETY: the kernel has put the number of arguments there.
        let count = unsafe { *stack } as usize;
        let args = stack.wrapping_add(1);
        let env = args.wrapping_add(count + 1);
        if sys::process() != 1 {
            // SAFETY: both lists are the kernel's.
            unsafe { host::run(args, env) }
        }
        // Standard input and output are /dev/console.
        say(format_args!("COSTS-INIT {now}"));
        sys::mount(c"devtmpfs", c"/dev");
        // SAFETY: the list is the kernel's.
        let what = unsafe { variable(env, b"costs=") };
        match what {
            b"boot" => {}
            b"tty" => console::run(),
            _ => {
                modules();
                match what {
                    b"blk" => block::run(),
                    b"send" => net::sender(),
                    b"receive" => net::receiver(),
                    _ => fail("costs= is none of boot, tty, blk, send, receive", 0),
                }
            }
        }
        say(format_args!("COSTS-END"));
        sys::sleep(20_000);
        sys::power_off()
    }

    /// What stands behind `name` in the environment: Linux puts there what it does not know of its command line.
    ///
    /// # Safety
    ///
    /// `env` must be a list of strings that ends with a null pointer.
    unsafe fn variable(mut env: *const *const u8, name: &[u8]) -> &'static [u8] {
        loop {
            // SAFETY: the list has not ended yet.
            let entry = unsafe { *env };
            if entry.is_null() {
                return b"";
            }
            // SAFETY: it is a string, which stays.
            let text = unsafe { CStr::from_ptr(entry.cast()) }.to_bytes();
            if let Some(value) = text.strip_prefix(name) {
                return value;
            }
            env = env.wrapping_add(1);
        }
    }

    /// Loads the modules of the initramfs, which stand in their order.
    fn modules() {
        for number in 0..100_u8 {
            let name = *b"/modules/00.ko\0";
            let mut name = name;
            name[9] += number / 10;
            name[10] += number % 10;
            let Ok(name) = CStr::from_bytes_with_nul(&name) else {
                return;
            };
            match File::open(name, READ_ONLY) {
                Ok(file) => {
                    must("a module", file.load_module());
                    file.close();
                }
                Err(ENOENT) => return,
                Err(error) => fail("opening a module", error),
            }
        }
    }

    #[panic_handler]
    fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
        say(format_args!("COSTS-FAIL {info}"));
        if sys::process() != 1 {
            sys::exit(101);
        }
        sys::sleep(20_000);
        sys::power_off()
    }
}
