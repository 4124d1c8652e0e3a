//! Tells the build scripts of the servers where the linker script is (`DEP_VIREO_RUNTIME_SCRIPT`); on the host there is
//! none, so that a server's host build links as usual.

fn main() {
    println!("cargo:rerun-if-changed=link");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let link = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("link");
        println!("cargo:script={}", link.join("server.ld").display());
    }
}
