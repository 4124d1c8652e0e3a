//! Hands the guests' linker script to the linker, for the bare target only.

fn main() {
    println!("cargo:rerun-if-changed=../exerciser/guest.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| String::from("."));
        println!("cargo:rustc-link-arg-bins=-T{folder}/../exerciser/guest.ld");
    }
}
