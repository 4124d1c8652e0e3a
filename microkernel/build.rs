//! Hands the linker the kernel's own layout; only for the bare-metal target.

fn main() {
    println!("cargo:rerun-if-changed=kernel.ld");
    println!("cargo:rerun-if-env-changed=VIREO_ROOT_FLAT");
    if std::env::var("TARGET").is_ok_and(|t| t.ends_with("-none")) {
        let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo:rustc-link-arg-bins=-T{dir}/kernel.ld");
        println!("cargo:rustc-link-arg-bins=-Tdefmt.x");
        println!("cargo:rustc-link-arg-bins=--gc-sections");
    }
}
