//! The reference page of the kernel's operations is what the table in `ipc-schema` says.
//!
//! `VIREO_RENEW=1 cargo test -p microkernel --test abi_reference` writes it anew.

use ipc_schema::abi::operations::Reference;

#[test]
fn the_page_is_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/ABI.md");
    let table = Reference.to_string();
    if std::env::var_os("VIREO_RENEW").is_some() {
        std::fs::write(path, &table).unwrap();
    }
    let page = std::fs::read_to_string(path).unwrap();
    let first =
        (page.lines().zip(table.lines()).enumerate()).find(|(_, (is, should))| is != should);
    assert_eq!(
        first, None,
        "microkernel/docs/ABI.md differs from ipc-schema's table: see this file's head"
    );
    assert_eq!(page, table);
}
