//! Kernel objects: one small module an object, with its operations as methods. All answer [`Status`] on failure;
//! see `ipc_schema::abi::op` for what each needs.
//!
//! Safe methods cannot take memory away from under a Rust reference of the caller's. The kernel maps nothing over an
//! existing mapping, and memory that is revoked elsewhere makes its user fault, which ends it; only methods that can
//! undo the caller's own mappings, or start threads in its Space, are `unsafe`.
//!
//! [`Status`]: crate::abi::Status

pub mod budget;
pub mod cpu;
pub mod guest_space;
pub mod irq;
pub mod log;
pub mod memory;
pub mod pool;
pub mod ports;
pub mod space;
pub mod thread;
pub mod vcpu;

use crate::abi::Status;

/// What operations answer.
pub type Result<T> = core::result::Result<T, Status>;

pub use budget::Budget;
pub use cpu::Cpu;
pub use guest_space::GuestSpace;
pub use irq::Irq;
pub use log::Log;
pub use memory::Memory;
pub use pool::Pool;
pub use ports::Ports;
pub use space::Space;
pub use thread::Thread;
pub use vcpu::Vcpu;
