//! device-rtc.
#[cfg(not(target_os = "none"))]
fn main() {}
