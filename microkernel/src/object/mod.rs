//! Kernel objects: one file each, with its state, its operations (decode everything, then commit) and its destruction.

pub mod budget;
pub mod cap;
pub mod cpu;
pub mod domain;
pub mod endpoint;
pub mod guest_space;
pub mod invoke;
pub mod irq;
pub mod log;
pub mod mapping;
pub mod memory;
pub mod notification;
pub mod pool;
pub mod ports;
pub mod space;
pub mod step;
pub mod thread;
pub mod vcpu;

pub use budget::Budget;
pub use cap::{Cap, lookup};
pub use domain::Domain;
pub use endpoint::Endpoint;
pub use guest_space::GuestSpace;
pub use mapping::Mapping;
pub use memory::Memory;
pub use notification::Notification;
pub use pool::Pool;
pub use space::Space;
pub use thread::Thread;
pub use vcpu::Vcpu;

use core::cell::Cell;
use ipc_schema::abi::{Kind, Status};

/// What every slot begins with.
#[repr(C)]
#[derive(Default)]
pub struct Header {
    /// Kind << 32 | generation; kind 0: free.
    pub word: Cell<u64>,
    /// Its own place, in units of 64 bytes from the start of the Pool.
    pub slot: u32,
    /// Its Pool.
    pub pool: u16,
    /// Free for the kind.
    pub flags: Cell<u16>,
}

/// A type of kernel object.
///
/// It is `repr(C)` with the `Header` first: what has a slot is found by its header alone.
pub trait Object {
    /// Its kind.
    const KIND: Kind;
    /// Its header.
    fn header(&self) -> &Header {
        // SAFETY: every object is `repr(C)` and begins with its `Header` (checked by `object!`).
        unsafe { &*core::ptr::from_ref(self).cast::<Header>() }
    }
    /// Space, GuestSpace, Endpoint: it is being destroyed, in steps.
    fn dies(&self) {
        self.header().flags.set(1);
    }
    /// Whether anything can be added to one of these.
    ///
    /// # Errors
    /// `Busy`: it is being destroyed.
    fn alive(&self) -> Result<(), Status> {
        self.header().alive()
    }
}

impl Header {
    #[inline(always)]
    fn alive(&self) -> Result<(), Status> {
        refuse_if(self.flags.get() != 0, Status::Busy)
    }
}

/// A check of what is asked for: refuses it with `why`, if that is `so`.
///
/// # Errors
/// `why`.
#[inline(always)]
pub fn refuse_if(so: bool, why: Status) -> Result<(), Status> {
    if so { Err(why) } else { Ok(()) }
}

/// Declares `$t` a kernel object of kind `$k`, its first field named `header`.
macro_rules! object {
    ($t:ty, $k:expr) => {
        const _: () = assert!(core::mem::offset_of!($t, header) == 0);
        impl crate::object::Object for $t {
            const KIND: ipc_schema::abi::Kind = $k;
        }
    };
}
pub(crate) use object;

/// Declares `$t` a kernel object of kind `$k` that is a [`Domain`], its first field named `domain`, and more.
macro_rules! is_domain {
    ($t:ty, $k:expr) => {
        const _: () = assert!(core::mem::offset_of!($t, domain.header) == 0);
        impl crate::object::Object for $t {
            const KIND: ipc_schema::abi::Kind = $k;
        }
        impl core::ops::Deref for $t {
            type Target = crate::object::Domain;
            #[inline(always)]
            fn deref(&self) -> &Self::Target {
                &self.domain
            }
        }
    };
}
pub(crate) use is_domain;
object!(pool::PoolObject, Kind::Pool);

/// Ends any object but a Pool.
///
/// # Errors
/// `Again`: there is more to do. `Busy`: as [`Memory::destroy`].
pub fn destroy(header: crate::mem::Obj<Header>, step: &step::Step) -> Result<(), Status> {
    let cap = Cap::new(header.get());
    let kind = cap.kind();
    macro_rules! ends {
        ($($t:ty),* ; $($stepwise:ty),*) => {
            $(if kind == <$t>::KIND as u32 {
                step.spend(500)?;
                cap.typed::<$t>(0)?.get().destroy();
            })*
            $(if kind == <$stepwise>::KIND as u32 {
                cap.typed::<$stepwise>(0)?.get().destroy(step)?;
            })*
        };
    }
    ends!(Thread, Vcpu, Budget, Notification, irq::Irq, ports::Ports; Endpoint, GuestSpace, Space, Mapping, Memory);
    Ok(())
}
