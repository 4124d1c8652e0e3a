//! The partner: a second Space with one thread, whose supervisor this server is.
//!
//! Its code is below, in assembly: it has no heap, no log and no UTCB payload. Of this server's image only the pages with
//! that code are mapped there, read-only.

use core::arch::global_asm;

use runtime::abi::layout::slot;
use runtime::abi::rights::{EXEC, READ, RECV, WRITE};
use runtime::abi::{Status, Tag, layout};
use runtime::object::{Budget, Cpu, Memory, Pool, Thread};
use runtime::{Endpoint, Event, Message, Notification, Slot, StartInfo, reply_recv, time};

/// Slots of the partner's table.
const ENDPOINT: Slot = slot::ENDPOINT;
const NOTIFICATION: Slot = slot::NOTIFICATION;
/// Top of the stack of its thread of this number, a page; below is a hole.
pub const fn stack_top(number: u64) -> u64 {
    layout::STACK_TOP + number * 2 * PAGE
}
/// Where this server has, and the partner has not, memory.
pub const NOT_ITS: u64 = layout::HEAP;
/// Badge of its faults.
const FAULTS: u64 = 7;
/// Above everything but root: a signal to it is a switch to it.
const PRIORITY: u64 = 29;
const PAGE: u64 = 4096;
/// Offset of a page in the `ram` capability that nobody uses: the stacks come first.
pub const SPARE_OFFSET: u64 = 16 * PAGE;

/// Result of this module.
pub type Result<T> = core::result::Result<T, Status>;

// Each act starts at its label with rdi = the argument and ends with UD2.
global_asm!(
    r#"
    .section .text.bench_partner, "ax"
    .balign 4096
    .globl bench_partner_begin
bench_partner_begin:

# Answers each call with what came: rdi = slot of the Endpoint.
    .globl bench_echo
bench_echo:
    mov r14, rdi
    xor esi, esi
1:  mov eax, 1
    mov rdi, r14
    mov r13, -1
    call VIREO_STUB
    jmp 1b

# Waits for a Notification again and again: rdi = its slot.
    .globl bench_waiter
bench_waiter:
    mov r14, rdi
1:  mov eax, 3
    mov rdi, r14
    mov r13, -1
    call VIREO_STUB
    jmp 1b

# Runs and does nothing.
    .globl bench_spin
bench_spin:
    jmp bench_spin

    .macro act name
    .globl bench_\name
bench_\name:
    .endm
    .macro end_of name
    ud2
    .globl bench_\name\()_end
bench_\name\()_end:
    .endm

    act fault
    end_of fault
    act read
    mov rax, [rdi]
    end_of read
    act write
    mov byte ptr [rdi], 0x90
    end_of write
    act in
    mov edx, edi
    in al, dx
    end_of in
    act out
    mov edx, edi
    xor eax, eax
    out dx, al
    end_of out
    act movaps
    .byte 0x0f, 0x28, 0xc0
    end_of movaps
    act fld
    .byte 0xd9, 0xe8
    end_of fld
    act hlt
    hlt
    end_of hlt
    act cli
    cli
    end_of cli
    act cr3
    mov rax, cr3
    end_of cr3
    act write_cr3
    mov cr3, rdi
    end_of write_cr3
    act wrmsr
    mov ecx, 0xc0000080
    xor eax, eax
    xor edx, edx
    wrmsr
    end_of wrmsr
    act rdmsr
    mov ecx, 0xc0000101
    rdmsr
    end_of rdmsr
    act int
    int 0x21
    end_of int
    act vmrun
    mov rax, rdi
    .byte 0x0f, 0x01, 0xd8
    end_of vmrun
    # Where the kernel's tables are is no one's business (UMIP). With AC set, which SMAP heeds in the kernel.
    act sgdt
    sgdt [rdi]
    end_of sgdt
    act sidt
    sidt [rdi]
    end_of sidt
    act str
    str eax
    end_of str
    act smsw
    smsw eax
    end_of smsw
    # XCR0 is the last guest's: nobody reads it.
    act xgetbv
    xor ecx, ecx
    xgetbv
    end_of xgetbv
    act ac
    pushfq
    or dword ptr [rsp], 0x40000
    popfq
    mov rax, [rdi]
    end_of ac
    # A jump leaves its code: the fault is at the address jumped to.
    act jump
    jmp rdi
    end_of jump

    .globl bench_partner_end
bench_partner_end:
    .balign 4096
    .text
"#
);

unsafe extern "C" {
    /// First byte of the partner's code.
    safe static bench_partner_begin: [u8; 0];
    /// One past its last.
    safe static bench_partner_end: [u8; 0];
    /// Answers calls.
    safe static bench_echo: [u8; 0];
    /// Waits for signals.
    safe static bench_waiter: [u8; 0];
    /// Runs for ever.
    safe static bench_spin: [u8; 0];
    /// Faults.
    pub safe static bench_fault: [u8; 0];
}

/// The acts' first bytes, and what follows their last.
#[allow(missing_docs, reason = "they are named after their instructions")]
mod labels {
    unsafe extern "C" {
        pub safe static bench_read: [u8; 0];
        pub safe static bench_read_end: [u8; 0];
        pub safe static bench_write: [u8; 0];
        pub safe static bench_write_end: [u8; 0];
        pub safe static bench_in: [u8; 0];
        pub safe static bench_in_end: [u8; 0];
        pub safe static bench_out: [u8; 0];
        pub safe static bench_out_end: [u8; 0];
        pub safe static bench_movaps: [u8; 0];
        pub safe static bench_movaps_end: [u8; 0];
        pub safe static bench_fld: [u8; 0];
        pub safe static bench_fld_end: [u8; 0];
        pub safe static bench_hlt: [u8; 0];
        pub safe static bench_hlt_end: [u8; 0];
        pub safe static bench_cli: [u8; 0];
        pub safe static bench_cli_end: [u8; 0];
        pub safe static bench_cr3: [u8; 0];
        pub safe static bench_cr3_end: [u8; 0];
        pub safe static bench_write_cr3: [u8; 0];
        pub safe static bench_write_cr3_end: [u8; 0];
        pub safe static bench_wrmsr: [u8; 0];
        pub safe static bench_wrmsr_end: [u8; 0];
        pub safe static bench_rdmsr: [u8; 0];
        pub safe static bench_rdmsr_end: [u8; 0];
        pub safe static bench_int: [u8; 0];
        pub safe static bench_int_end: [u8; 0];
        pub safe static bench_sgdt: [u8; 0];
        pub safe static bench_sgdt_end: [u8; 0];
        pub safe static bench_sidt: [u8; 0];
        pub safe static bench_sidt_end: [u8; 0];
        pub safe static bench_str: [u8; 0];
        pub safe static bench_str_end: [u8; 0];
        pub safe static bench_smsw: [u8; 0];
        pub safe static bench_smsw_end: [u8; 0];
        pub safe static bench_xgetbv: [u8; 0];
        pub safe static bench_xgetbv_end: [u8; 0];
        pub safe static bench_ac: [u8; 0];
        pub safe static bench_ac_end: [u8; 0];
        pub safe static bench_vmrun: [u8; 0];
        pub safe static bench_vmrun_end: [u8; 0];
        pub safe static bench_jump: [u8; 0];
        pub safe static bench_jump_end: [u8; 0];
    }
}
pub use labels::*;

/// Address of a label.
pub fn address(label: &'static [u8; 0]) -> u64 {
    label.as_ptr().expose_provenance() as u64
}

/// The partner and what this server shares with it. It has a thread for each of its jobs.
pub struct Partner {
    /// Does one forbidden act after the other.
    actor: Thread,
    /// Answers calls on [`Self::endpoint`].
    pub echo: Thread,
    /// Waits for [`Self::notification`].
    pub waiter: Thread,
    /// It answers calls here.
    pub endpoint: Endpoint,
    /// It waits for this.
    pub notification: Notification,
    /// RAM that this server has.
    pub ram: Memory,
    /// Threads that just run, with their Budgets.
    spinners: [(Thread, Budget); 2],
    /// Whether the spinners have been started.
    spinning: bool,
    /// Whether the actor's fault waits for an answer.
    faulted: bool,
}

impl Partner {
    /// Builds it, all threads stopped.
    pub fn new(start: &StartInfo) -> Result<Self> {
        let mut slots = start.free_slots();
        let mut slot = || slots.take().ok_or(Status::NoMemory);
        let cap = |name| start.cap(name).map_err(|_| Status::InvalidCap);
        let (ram, image) = (Memory(cap("ram")?), Memory(cap("image")?));
        let supervisor = Endpoint(cap("self")?);
        let pool = Pool(slot::POOL);
        let space = pool.create_space(slot()?, 64)?;
        let (from, to) = code();
        space.map(from, image, READ | EXEC, from - layout::IMAGE, to - from)?;
        let endpoint = pool.create_endpoint(slot()?)?;
        space.copy_cap(endpoint.0, ENDPOINT, RECV, 0)?;
        let notification = pool.create_notification(slot()?)?;
        space.copy_cap(notification.0, NOTIFICATION, RECV, 0)?;
        let period = time::cycles(10_000);
        let mut thread = |number: u64| {
            space.map(
                stack_top(number) - PAGE,
                ram,
                READ | WRITE,
                number * PAGE,
                PAGE,
            )?;
            let thread = pool.create_thread(slot()?, space, layout::UTCB + number * 2 * PAGE)?;
            let budget: Budget = pool.create_budget(slot()?)?;
            budget.configure(Cpu(slot::CPU), PRIORITY, period, period)?;
            thread.configure(Some(budget), Some(supervisor), FAULTS, None)?;
            Ok((thread, budget))
        };
        Ok(Self {
            actor: thread(0)?.0,
            echo: thread(1)?.0,
            waiter: thread(2)?.0,
            endpoint,
            notification,
            ram,
            spinners: [thread(3)?, thread(4)?],
            spinning: false,
            faulted: false,
        })
    }

    /// Starts the thread that serves calls: at once it waits for the first.
    pub fn start_echo(&mut self) -> Result<()> {
        // SAFETY: it is not in this server's Space, and of its memory this server has no references.
        unsafe {
            self.echo
                .start(address(&bench_echo), stack_top(1), u64::from(ENDPOINT))
        }
    }

    /// Starts the thread that waits for signals.
    pub fn start_waiter(&mut self) -> Result<()> {
        // SAFETY: as in `start_echo`.
        unsafe {
            self.waiter.start(
                address(&bench_waiter),
                stack_top(2),
                u64::from(NOTIFICATION),
            )
        }
    }

    /// Starts an act. Its fault comes with [`Self::next_fault`].
    pub fn start_actor(&self, entry: u64, argument: u64) -> Result<()> {
        // SAFETY: as in `start_echo`.
        unsafe { self.actor.start(entry, stack_top(0), argument) }
    }

    /// Lets the spinners run beside each other for so many microseconds, below everybody else, with these budgets and periods
    /// in microseconds. Answers the cycles that each has used, and those that passed.
    pub fn spin(
        &mut self,
        settings: [(u64, u64); 2],
        microseconds: u64,
    ) -> Result<([u64; 2], u64)> {
        const LOWEST: u64 = 0;
        let used = |p: &Self| {
            let [a, b] = p.spinners;
            Ok([a.1.stat()?.used, b.1.stat()?.used])
        };
        for (number, ((thread, budget), (of, period))) in
            (3u64..).zip(self.spinners.into_iter().zip(settings))
        {
            let (of, period) = (time::cycles(of), time::cycles(period));
            budget.configure(Cpu(slot::CPU), LOWEST, of, period)?;
            if self.spinning {
                thread.resume()?;
            } else {
                // SAFETY: as in `start_echo`.
                unsafe { thread.start(address(&bench_spin), stack_top(number), 0)? };
            }
        }
        self.spinning = true;
        let (before, from) = (used(self)?, time::now());
        let until = time::after(microseconds);
        let waited = Notification(slot::NOTIFICATION).wait(until);
        let (after, to) = (used(self)?, time::now());
        for (thread, _) in self.spinners {
            thread.suspend()?;
        }
        match waited {
            Err(Status::Timeout) => {}
            _ => return Err(Status::InvalidArg),
        }
        let difference = [0, 1].map(|i: usize| {
            let of = |both: &[u64; 2]| both.get(i).copied().unwrap_or(0);
            of(&after).saturating_sub(of(&before))
        });
        Ok((difference, to.wrapping_sub(from)))
    }

    /// Lets the actor go on after its fault, if it has one, and waits for the next: vector, error code, address, rip. `None`:
    /// none in time.
    #[inline(always)]
    pub fn next_fault(&mut self, deadline: u64) -> Result<Option<[u64; 4]>> {
        let event = reply_recv(Endpoint(slot::ENDPOINT), Message::default(), deadline)?;
        self.faulted = false;
        match event {
            Event::Call {
                badge: FAULTS,
                message,
            } if message.tag.label() == Tag::FAULT => {
                self.faulted = true;
                Ok(Some(message.words))
            }
            Event::Timeout => Ok(None),
            _ => Err(Status::InvalidArg),
        }
    }

    /// Stops the actor where it faulted, so that it can be started anew.
    pub fn stop(&mut self) -> Result<()> {
        if !self.faulted {
            return Err(Status::Busy);
        }
        // Any label but 0 stops it; then there is nothing to wait for.
        let stop = Message::new(1, [0; 4]);
        match reply_recv(Endpoint(slot::ENDPOINT), stop, time::now())? {
            Event::Timeout => {
                self.faulted = false;
                Ok(())
            }
            _ => Err(Status::InvalidArg),
        }
    }
}

/// The pages of the partner's code: first and end.
pub fn code() -> (u64, u64) {
    let from = address(&bench_partner_begin);
    let to = address(&bench_partner_end).next_multiple_of(PAGE);
    (from, to)
}
