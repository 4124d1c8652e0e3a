//! Links the server with the runtime's script; nothing on the host.

fn main() {
    if let Ok(script) = std::env::var("DEP_VIREO_RUNTIME_SCRIPT") {
        println!("cargo:rustc-link-arg-bins=-T{script}");
        println!("cargo:rustc-link-arg-bins=-Tdefmt.x");
    }
}
