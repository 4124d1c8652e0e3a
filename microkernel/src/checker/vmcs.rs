//! The VMX instructions of the host's tests: a VMCS is a page of words, and accesses are counted.
#![allow(missing_docs, reason = "as the real ones")]

use crate::arch::Cpu;
use crate::mem;
use std::cell::Cell;
#[cfg(any(test, feature = "checker"))]
use x86::vmx::vmcs::{control as c, guest as g};

std::thread_local! {
    /// VMREADs and VMWRITEs so far; invalidations of EPT and VPID contexts.
    pub static ACCESSES: [Cell<u64>; 4] = const { [const { Cell::new(0) }; 4] };
    static DR6: Cell<u64> = const { Cell::new(0) };
    static SYSCALL: Cell<[u64; 4]> = const { Cell::new([0; 4]) };
}
fn count(what: usize) {
    ACCESSES.with(|a| a[what].set(a[what].get() + 1));
}
/// By width, type and index (25.11.2), each as many bits as are in use.
fn word<T>(field: u32, access: impl FnOnce(&Cell<u64>) -> T) -> T {
    let v = Cpu::current().fpu_owner.get().expect("a VMCS is current");
    let i = (field >> 13 & 3) << 7 | (field >> 10 & 3) << 5 | field >> 1 & 31;
    // SAFETY: the vCPU's own page.
    access(&unsafe { mem::page(v.extended_phys) }.0[i as usize])
}
/// A field, uncounted.
pub fn peek(field: u32) -> u64 {
    word(field, Cell::get)
}
/// A field, uncounted.
pub fn poke(field: u32, value: u64) {
    // As the guest would: its processor forgets what it had made by the old one.
    #[cfg(any(test, feature = "checker"))]
    if [g::CR0, g::CR3, g::CR4, g::IA32_EFER_FULL].contains(&field) {
        crate::checker::tlb::forget_identifier(Some(peek(c::VPID) as u32));
    }
    word(field, |w| w.set(value));
}
pub fn read(field: u32) -> u64 {
    count(0);
    peek(field)
}
pub fn write(field: u32, value: u64) {
    count(1);
    word(field, |w| w.set(value));
}
pub fn clear(_: u64) {}
pub fn make_current(_: u64) {}
pub fn invalidate_ept(_pointer: u64) {
    count(2);
    #[cfg(any(test, feature = "checker"))]
    crate::checker::tlb::forget_table(_pointer);
}
pub fn invalidate_vpid(_kind: u64, _vpid: u32) {
    count(3);
    #[cfg(any(test, feature = "checker"))]
    crate::checker::tlb::forget_identifier((_kind == 1).then_some(_vpid));
}
pub fn set_dr6(value: u64) {
    DR6.set(value);
}
pub fn dr6() -> u64 {
    DR6.get()
}
pub fn syscall_msrs() -> [u64; 4] {
    SYSCALL.get()
}
pub fn set_syscall_msrs(values: [u64; 4]) {
    SYSCALL.set(values);
}
