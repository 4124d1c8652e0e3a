//! Translations that the host tests' processor keeps: all that there are at each entry, until it is told to forget them.
//!
//! No emulator does: QEMU and Bochs drop everything at each entry and exit. A real processor may keep any of it (APM vol. 2, 15.16;
//! SDM vol. 3, 29.4), so one that keeps all of it finds each flush that is missing, and each identifier that is given twice.

use crate::arch::Cpu;
use crate::arch::paging::{Table, check::each_leaf};
use crate::object::Vcpu;
use std::cell::RefCell;
use std::collections::HashMap;

/// Where pages are: guest-physical address to entry, without what does not matter.
type Pages = HashMap<u64, u64>;
/// An identifier, and the table whose translations are kept under it (0 with SVM, where the identifier says that, too).
type Tag = (u32, u64);
/// What a guest's own translations depend on: CR0, CR3, CR4, EFER.
pub type Linear = [u64; 4];
/// Whose they are, and what they depend on.
type Whose = (u64, Linear);

/// What a processor keeps.
#[derive(Default)]
struct Kept {
    /// Of guest-physical addresses, by table (VMX) or identifier (SVM).
    nested: HashMap<Tag, Pages>,
    /// Of linear addresses.
    combined: HashMap<Tag, (Whose, Pages)>,
}

std::thread_local! {
    static KEPT: RefCell<HashMap<u32, Kept>> = RefCell::default();
}

fn kept<T>(f: impl FnOnce(&mut Kept) -> T) -> T {
    KEPT.with(|k| f(k.borrow_mut().entry(Cpu::current().number).or_default()))
}

/// New processors.
pub fn renew() {
    KEPT.with(|k| k.borrow_mut().clear());
}

/// All of it goes (TLB_CONTROL 1).
pub fn forget_all() {
    kept(|k| *k = Kept::default());
}

/// INVEPT of one context.
pub fn forget_table(root: u64) {
    kept(|k| {
        k.nested.retain(|tag, _| tag.1 != root);
        k.combined.retain(|tag, _| tag.1 != root);
    });
}

/// INVVPID: of one context, or of all; the flush of one ASID, under which nested translations are kept too.
pub fn forget_identifier(which: Option<u32>) {
    kept(|k| {
        k.nested.retain(|tag, _| which != Some(tag.0));
        k.combined
            .retain(|tag, _| which.is_some_and(|id| tag.0 != id));
    });
}

/// A guest is entered under `identifier`; `root` is the address under which INVEPT knows its table.
///
/// # Panics
/// When the processor keeps something that is not so any more.
pub fn enters(v: &Vcpu, identifier: u32, root: Option<u64>, linear: Linear) {
    assert_ne!(identifier, 0, "identifier 0 is the host's");
    let now = pages(&v.guest.table);
    let tag = (identifier, root.unwrap_or(0));
    let whose = (v.control_phys, linear);
    let nested = root.map_or(tag, |root| (0, root));
    let judge = |kept: &Pages, what| {
        for (at, entry) in kept {
            let is = now.get(at);
            assert_eq!(
                is,
                Some(entry),
                "stale {what} translation of {at:#x} under {tag:x?}"
            );
        }
    };
    kept(|k| {
        if let Some(pages) = k.nested.get(&nested) {
            judge(pages, "nested");
        }
        if let Some((before, pages)) = k.combined.get(&tag) {
            assert_eq!(before, &whose, "stale linear translations under {tag:x?}");
            judge(pages, "combined");
        }
        k.nested.insert(nested, now.clone());
        k.combined.insert(tag, (whose, now.clone()));
    });
}

/// All leaves of a table, without the bits that the processor sets.
fn pages(table: &Table) -> Pages {
    const SET_BY_PROCESSOR: u64 = 3 << 5 | 3 << 8;
    let mut all = Pages::new();
    each_leaf(table, &mut |at, entry| {
        all.insert(at, entry & !SET_BY_PROCESSOR);
    });
    all
}
