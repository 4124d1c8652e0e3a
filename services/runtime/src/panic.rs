//! A panic is logged, then made a fault, which the supervisor sees with registers and backtrace.

use core::fmt::Write;

use crate::text::Text;

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    crate::log::abandon();
    let mut text = Text::<200>::new();
    // `Text` never fails.
    let _ = write!(text, "{info}");
    defmt::error!("{=str}", text.as_str());
    crate::rt::abort()
}
