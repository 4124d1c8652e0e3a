//! Tells the build scripts of the servers where the linker scripts are (`DEP_VIREO_RUNTIME_SCRIPT` and
//! `DEP_VIREO_RUNTIME_ROOT_SCRIPT`); on the host there are none, so that a server's host build links as usual.

fn main() {
    println!("cargo:rerun-if-changed=link");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let link = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("link");
        println!("cargo:script={}", link.join("server.ld").display());
        println!("cargo:root_script={}", link.join("root.ld").display());
    }
}
