//! Vcpus: the registers of a guest processor. Passive: a thread runs it.

use super::{Cap, GuestSpace, Header, Object, Pool, Space, Thread, object, pool::pool_of};
use crate::arch::{Cpu, MAX_CPUS};
use crate::list::{Link, Linked};
use crate::mem::{self, Obj};
use crate::virt::with_virt;
use core::cell::Cell;
use ipc_schema::abi::vm::{Exit, Groups, VcpuState, gpr};

const _: () = assert!(Exit::COUNT <= 32);
use ipc_schema::abi::{Kind, Status};

/// A virtual processor.
#[repr(C)]
pub struct Vcpu {
    header: Header,
    /// Physical address of the VMCB; of what the kernel keeps beside a VMCS, and the area for extended state.
    pub control_phys: u64,
    /// Its kernel address.
    pub control_virt: u64,
    /// Kernel address of the state page shared with the VMM.
    pub state_virt: u64,
    /// Physical address of the area for extended state, or of the VMCS.
    pub extended_phys: u64,
    /// Its VM.
    pub guest: Obj<GuestSpace>,
    /// The one thread that runs it.
    pub runner: Cell<Option<Obj<Thread>>>,
    /// Number of the processor that has its extended state or may have its translations; the runner's.
    pub cpu: Cell<u32>,
    /// Address of the instruction after the routed one.
    pub next_rip: Cell<u64>,
    /// Address space identifier, and the round of identifiers that it belongs to.
    pub asid: Cell<u32>,
    /// Round of identifiers.
    pub asid_round: Cell<u64>,
    /// [`GuestSpace::flushes`] when it last entered; the back end may set the top bit to have its next entry looked at.
    pub flushes: Cell<u64>,
    /// XCR0 of the guest.
    pub xcr0: Cell<u64>,
    /// TSC_AUX of the guest.
    pub tsc_aux: Cell<u64>,
    /// DR0 to DR3 of the guest while another vCPU has the processor's.
    pub dr: [Cell<u64>; 4],
    /// Groups copied to the state page, by exit (a power of two of them, so that the index needs no check).
    pub on_exit: [Cell<u16>; 32],
    siblings: Link<Vcpu>,
    /// Physical address of the state page.
    pub state_phys: u64,
    state_at: u64,
    /// The VMM's Space, for as long as it lives.
    space: Cap,
}
object!(Vcpu, Kind::Vcpu);
impl Linked<0> for Vcpu {
    fn link(&self) -> &Link<Self> {
        &self.siblings
    }
}

/// Pages of a Vcpu: control structure, state page, extended state (AVX-512 needs 2,696 bytes).
const PAGES: usize = 3;

impl Vcpu {
    /// A vCPU of `guest` in its reset state, its state page mapped in `space` at `at`.
    ///
    /// # Errors
    /// `NoMemory`, as [`Space::share_page`].
    pub fn create(
        pool: &Pool,
        guest: Obj<GuestSpace>,
        space: Obj<Space>,
        at: u64,
    ) -> Result<Obj<Self>, Status> {
        guest.get().alive()?;
        let mut pages = [0; PAGES];
        pool.take_pages(&mut pages)?;
        let [control_phys, state_phys, extended_phys] = pages;
        let made = pool
            .create_object(|header| Self {
                header,
                control_phys,
                control_virt: mem::virt(control_phys),
                state_virt: mem::virt(state_phys),
                extended_phys,
                guest,
                runner: Cell::new(None),
                cpu: Cell::new(Cpu::current().number),
                next_rip: Cell::new(0),
                asid: Cell::new(0),
                asid_round: Cell::new(0),
                flushes: Cell::new(0),
                xcr0: Cell::new(1),
                tsc_aux: Cell::new(0),
                dr: Default::default(),
                on_exit: [const { Cell::new(Groups::RIP as u16) }; 32],
                siblings: Link::default(),
                state_phys,
                state_at: at,
                space: Cap::of(space),
            })
            .and_then(|v| {
                let shared = space.share_page(at, state_phys).map(|()| v);
                shared.inspect_err(|_| pool.free_object(v))
            });
        let v = made.inspect_err(|_| pool.give_pages(&pages))?;
        // SAFETY: a page of the vCPU's own.
        let extended = unsafe { mem::page(extended_phys) };
        // Zero is the initial state but for FCW, and MXCSR, which counts whatever the header says (SDM vol. 1, 13.6).
        extended.0[0].set(0x37f);
        extended.0[3].set(0x1f80);
        with_virt!(b => b::control::create(v.get()));
        guest.vcpus.push_back(v);
        guest.used_on(v.cpu.get());
        Ok(v)
    }

    /// The state page ([`VcpuState`]) in words; the VMM writes it too.
    #[inline(always)]
    #[must_use]
    pub fn state(&self) -> &mem::Words {
        const { assert!(core::mem::size_of::<VcpuState>() <= 4096) };
        // SAFETY: a page of the vCPU's own (shared with the VMM), for as long as it lives; only cells.
        unsafe { &*(self.state_virt as *const mem::Words) }
    }

    /// A general register of the guest.
    #[inline(always)]
    #[must_use]
    pub fn gpr(&self, n: usize) -> &Cell<u64> {
        &self.state().0[n % 16]
    }

    /// The result of an IN of `width` bytes: 32 bits clear the upper half of rax, fewer leave the rest of it.
    #[inline(always)]
    pub fn merge_rax(&self, width: u8, value: u64) {
        let rax = self.gpr(gpr::RAX);
        rax.set(match width {
            1 => (rax.get() & !0xff) | (value & 0xff),
            2 => (rax.get() & !0xffff) | (value & 0xffff),
            _ => value & 0xffff_ffff,
        });
    }

    /// Whether its state page is in this Space.
    #[cfg(test)]
    pub fn is_in(&self, s: Obj<Space>) -> bool {
        self.space.typed::<Space>(0) == Ok(s)
    }

    /// Makes `t` the thread that runs it.
    ///
    /// # Errors
    /// `Busy`: another thread runs it. `Again`: its state is on another processor, [`Vcpu::fetch`] it first.
    pub fn adopt(&self, t: Obj<Thread>) -> Result<(), Status> {
        if self.runner.get().is_some() {
            return Err(Status::Busy);
        }
        if self.cpu.get() != t.cpu.get() {
            return Err(Status::Again);
        }
        if let Some(old) = t.vcpu.replace(Some(Obj::of(self))) {
            old.runner.set(None);
        }
        self.runner.set(Some(t));
        // The next entry is one into another address space afterwards.
        self.flushes.set(self.flushes.get() | 1 << 63);
        Ok(())
    }

    /// Its state comes to processor `to` from where it is. The other processors are stopped.
    pub fn fetch(&self, to: &Cpu) {
        let from = self.home();
        if from.number == to.number {
            return;
        }
        if from.fpu_owner.get() == Some(Obj::of(self)) {
            crate::sync::give_up_fpu(Cpu::current(), from);
        }
        // Identifiers are each processor's own; no round has number 0.
        self.asid_round.set(0);
        self.cpu.set(to.number);
        self.guest.used_on(to.number);
    }

    /// The processor where its state is.
    #[must_use]
    pub fn home(&self) -> &'static Cpu {
        &Cpu::all()[self.cpu.get() as usize % MAX_CPUS]
    }

    /// Ends it; its registers are disowned first, so that nobody else's state is saved over them or taken for them. The other processors
    /// are stopped.
    pub fn destroy(&self) {
        let cpu = self.home();
        let this = Obj::of(self);
        if cpu.fpu_owner.get() == Some(this) {
            crate::sync::give_up_fpu(Cpu::current(), cpu);
        }
        if let Some(t) = self.runner.take() {
            t.vcpu.set(None);
            if t.routed.get() {
                // Nobody's access any more.
                crate::ipc::leave(cpu, t);
                crate::ipc::give_up(cpu, t, Status::Dead);
            }
        }
        if let Ok(space) = self.space.typed::<Space>(0) {
            space.get().unshare_page(self.state_at);
        }
        self.guest.vcpus.remove(this);
        let pool = pool_of(&self.header);
        pool.give_pages(&[self.control_phys, self.state_phys, self.extended_phys]);
        pool.free_object(this);
    }
}

#[cfg(any(test, feature = "checker"))]
#[path = "../checker/vcpu.rs"]
pub(crate) mod check;
