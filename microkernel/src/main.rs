//! The kernel's image: entry from the loader, and what a panic does. The kernel itself is the library.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod image {
    use bootloader_api::{BootInfo, BootloaderConfig, config::Mapping, entry_point};
    use microkernel::{arch, arch::console, boot};

    /// Everything above the kernel's half; the lower half is user level's.
    static CONFIG: BootloaderConfig = {
        let mut c = BootloaderConfig::new_default();
        c.mappings.physical_memory = Some(Mapping::FixedAddress(arch::phys_base()));
        c.mappings.dynamic_range_start = Some(0xffff_9000_0000_0000);
        c.mappings.dynamic_range_end = Some(0xffff_9fff_ffff_f000);
        c.kernel_stack_size = 64 * 1024;
        c
    };
    entry_point!(start, config = &CONFIG);

    fn start(info: &'static mut BootInfo) -> ! {
        boot::start(info)
    }

    /// Only a bug in the kernel comes here: nothing that user level or a guest does.
    #[panic_handler]
    fn panic(info: &core::panic::PanicInfo) -> ! {
        // With the numbers in the message: core's way of formatting is a twentieth of the kernel.
        #[cfg(feature = "checker")]
        defmt::error!("{}", defmt::Display2Format(&info.message()));
        let (file, line) = info.location().map_or(("", 0), |l| (l.file(), l.line()));
        console::stop(
            &[
                info.message().as_str().unwrap_or("panic"),
                " (",
                file,
                ", line #). This is a bug in Vireo; please report it.",
            ],
            &[u64::from(line)],
        );
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("the kernel runs on the bare machine: `cargo xtask run`");
}
