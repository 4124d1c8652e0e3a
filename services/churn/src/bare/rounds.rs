//! One Space, or one GuestSpace, with all that belongs to it, from the beginning to the end.

use core::arch::global_asm;

use runtime::abi::layout::{self, slot};
use runtime::abi::rights::{EXEC, READ, RECV, SEND, WRITE};
use runtime::abi::thread_state::{CALLING, FAULTED, WAITING};
use runtime::abi::{NEVER, Status};
use runtime::object::{Budget, Cpu, Memory, Pool, Space, Thread};
use runtime::{Endpoint, Event, Message, Slot, StartInfo, reply_recv, time};

type Result<T> = core::result::Result<T, Status>;

const PAGE: u64 = 4096;
/// Slots that a round uses.
const SLOTS: usize = 8;
/// Above this server: what it starts runs at once.
const PRIORITY: u64 = 29;
/// What a vCPU begins with, 16 bytes below 4 GiB: `mov dx, 0xfff0; out dx, ax; mov dx, 0x3f8; in al, dx; hlt`.
const RESET: [u8; 9] = [0xba, 0xf0, 0xff, 0xef, 0xba, 0xf8, 0x03, 0xec, 0xf4];
/// Badge of the threads' faults.
const FAULTS: u64 = 9;
/// Where its threads have their stack and more.
const STACK: u64 = 0x4800_0000;
const DATA: u64 = 0x4a00_0000;
/// Where this server sees the vCPUs' pages.
const VIEW: u64 = layout::SHARED + 0x4000_0000;
/// Where it sees the first pages of the RAM: a stack for the thread that runs a vCPU, and what that begins with. And that thread's UTCB.
const LOW: u64 = layout::SHARED + 0x3000_0000;
const RUNNER: u64 = layout::UTCB + 0x10_0000;
/// Part of its RAM that now and then becomes a Pool: first byte, bytes.
const POOL: (u64, u64) = (6 << 20, 1 << 20);
/// The rest of its RAM, which is mapped.
const RAM: u64 = 6 << 20;

// rdi: slot of a Notification or an Endpoint; of a Vcpu, and above it of the Notification that is waited for after its first exit. What
// they wait for ends before them in some rounds: then they fault, once. They are above this server, which would never run again if they
// tried once more.
global_asm!(
    r#"
    .section .text.churn, "ax"
    .balign 4096
    .globl churn_begin
churn_begin:
    .globl churn_run
churn_run:
    mov r14, rdi
    shr r14, 32
    mov edi, edi
    mov eax, 4
    xor esi, esi
    xor r8d, r8d
    xor r9d, r9d
    mov r13, -1
    call VIREO_STUB
    mov rdi, r14
    .globl churn_wait
churn_wait:
    mov eax, 3
    mov r13, -1
    call VIREO_STUB
    ud2
    .globl churn_call
churn_call:
    xor eax, eax
    xor esi, esi
    mov r13, -1
    call VIREO_STUB
    .globl churn_fault
churn_fault:
    ud2
    .globl churn_end
churn_end:
    .balign 4096
    .text
"#
);

unsafe extern "C" {
    safe static churn_begin: [u8; 0];
    safe static churn_run: [u8; 0];
    safe static churn_wait: [u8; 0];
    safe static churn_call: [u8; 0];
    safe static churn_fault: [u8; 0];
    safe static churn_end: [u8; 0];
}

/// The thread is in the state that the round is about.
fn is(thread: Thread, state: u64) -> Result<()> {
    match thread.read_regs()?.1.state {
        s if s == state => Ok(()),
        _ => Err(Status::InvalidArg),
    }
}

fn address(label: &'static [u8; 0]) -> u64 {
    label.as_ptr().expose_provenance() as u64
}

/// What stays from round to round.
pub struct Rounds {
    ram: Memory,
    backing: Memory,
    image: Memory,
    own: Slot,
    slots: [Slot; SLOTS],
    pool_slot: Slot,
}

impl Rounds {
    /// Sets up what stays.
    pub fn new(start: &StartInfo) -> Result<Self> {
        let cap = |name: &str| start.cap(name).map_err(|_| Status::InvalidCap);
        let mut free = start.free_slots();
        let mut slot = || free.take().ok_or(Status::NoMemory);
        let payer = Pool(slot::POOL);
        let all = Memory(cap("ram")?);
        let ram = all.divide(0, RAM, slot()?, payer)?;
        Space(slot::SPACE).map(LOW, ram, READ | WRITE, 0, 2 * PAGE)?;
        let reset = core::ptr::with_exposed_provenance_mut((LOW + 2 * PAGE - 16) as usize);
        // SAFETY: the page has just been mapped, and nothing refers to it.
        unsafe { core::ptr::write_volatile(reset, RESET) };
        let backing = all.divide(POOL.0, POOL.1, slot()?, payer)?;
        let mut slots = [slot::NULL; SLOTS];
        for s in &mut slots {
            *s = slot()?;
        }
        Ok(Self {
            ram,
            backing,
            image: Memory(cap("image")?),
            own: cap("self")?,
            slots,
            pool_slot: slot()?,
        })
    }

    /// The Pool for round `i`: now and then one of its own, which then ends the round.
    fn pool(&self, i: u64) -> Result<(Pool, bool)> {
        if i % 9 != 5 {
            return Ok((Pool(slot::POOL), false));
        }
        // SAFETY: this Memory is mapped nowhere.
        let pool = unsafe { self.backing.make_pool(self.pool_slot, 0) }?;
        Ok((pool, true))
    }

    /// Ends a round: the Pool, or each object, beginning with another one each time; some end others.
    fn end(&self, i: u64, (pool, own): (Pool, bool), objects: usize) -> Result<()> {
        if own {
            // SAFETY: nothing of this server's is in it.
            return unsafe { pool.destroy() };
        }
        for k in 0..objects {
            let at = (k + (i / 4) as usize) % objects;
            let object = self.slots.get(at).copied().unwrap_or(slot::NULL);
            // SAFETY: this server has no references into what the round made.
            match unsafe { Space(slot::SPACE).destroy_object(object) } {
                Ok(()) | Err(Status::InvalidCap) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// A Space with a thread that does something when it ends, mappings and queues.
    pub fn space(&mut self, i: u64) -> Result<()> {
        let [
            s_space,
            s_thread,
            s_budget,
            s_end,
            s_bell,
            s_more,
            s_irq,
            ..,
        ] = self.slots;
        let pool = self.pool(i)?;
        let p = pool.0;
        let space = p.create_space(s_space, 64 << (i % 5))?;
        let endpoint = p.create_endpoint(s_end)?;
        let bell = p.create_notification(s_bell)?;
        let (from, to) = (
            address(&churn_begin),
            address(&churn_end).next_multiple_of(PAGE),
        );
        space.map(
            from,
            self.image,
            READ | EXEC,
            from - layout::IMAGE,
            to - from,
        )?;
        space.map(STACK - PAGE, self.ram, READ | WRITE, 0, PAGE)?;
        let len = (i % 13 + 1) * 16 * PAGE;
        space.map(DATA, self.ram, READ | WRITE, PAGE, len)?;
        if i % 32 == 3 {
            // All of it, in small pages.
            space.map(2 * DATA, self.ram, READ, PAGE, RAM - PAGE)?;
        }
        let thread = p.create_thread(s_thread, space, layout::UTCB)?;
        let other = p.create_thread(s_more, space, layout::UTCB + 2 * PAGE)?;
        let budget = self.budget(p, s_budget)?;
        let (irq, _) = Cpu(slot::CPU).create_irq(s_irq, p)?;
        irq.bind(Some(bell))?;
        space.copy_cap(s_bell, 3, RECV, 0)?;
        space.copy_cap(s_end, 4, SEND, 0)?;
        space.copy_cap(self.own, 5, SEND, 0)?;
        let supervisor = i.is_multiple_of(2).then_some(Endpoint(self.own));
        thread.configure(Some(budget), supervisor.or(Some(endpoint)), FAULTS, None)?;
        // It ends while it waits, while its call is queued, while this server has its call, or faulted.
        let (entry, argument) = match i % 4 {
            0 => (address(&churn_wait), 3),
            1 => (address(&churn_call), 4),
            2 => (address(&churn_call), 5),
            _ => (address(&churn_fault), 0),
        };
        // SAFETY: it is in a Space of its own, and of its memory this server has no references.
        unsafe { thread.start(entry, STACK, argument)? };
        is(
            thread,
            match i % 4 {
                0 => WAITING,
                3 => FAULTED,
                _ => CALLING,
            },
        )?;
        if i % 4 == 2 {
            let event = reply_recv(Endpoint(slot::ENDPOINT), Message::default(), time::now())?;
            if !matches!(event, Event::Call { .. }) {
                return Err(Status::InvalidArg);
            }
        }
        let _ = other;
        self.end(i, pool, 7)?;
        if i % 4 == 2 {
            // The caller is gone: the answer goes nowhere.
            reply_recv(Endpoint(slot::ENDPOINT), Message::default(), time::now())?;
        }
        Ok(())
    }

    /// A Budget without limit.
    fn budget(&self, pool: Pool, dest: Slot) -> Result<Budget> {
        let budget = pool.create_budget(dest)?;
        let period = time::cycles(10_000);
        budget.configure(Cpu(slot::CPU), PRIORITY, period, period)?;
        Ok(budget)
    }

    /// A GuestSpace with vCPUs, one of which runs, memory and routes.
    pub fn guest(&mut self, i: u64) -> Result<()> {
        let [s_guest, s_one, s_two, s_end, s_bell, s_thread, s_budget, ..] = self.slots;
        let pool = self.pool(i)?;
        let p = pool.0;
        let guest = p.create_guest_space(s_guest)?;
        let endpoint = p.create_endpoint(s_end)?;
        let bell = p.create_notification(s_bell)?;
        for (n, s) in (0..).zip([s_one, s_two]) {
            p.create_vcpu(s, guest, Space(slot::SPACE), VIEW + n * (3 << 30))?;
        }
        let all = READ | WRITE | EXEC;
        guest.map(0, self.ram, all, 0, 4 << 20)?;
        let len = (i % 13 + 1) * 16 * PAGE;
        guest.map(0x1_0000_0000 - PAGE, self.ram, all, PAGE, len)?;
        if i % 32 == 3 {
            guest.map(1 << 40, self.ram, READ, PAGE, RAM - PAGE)?;
        }
        guest.route(0x3f8, 8, endpoint, time::cycles(1_000))?;
        guest.route((i as u16 & 0x3f) << 10, 0x7f, endpoint, NEVER)?;
        guest.doorbell(0xfff0, 4, bell, i.is_multiple_of(2).then_some(i))?;
        // It rings the bell or leaves the guest; the access after that is routed, or it leaves; nobody answers.
        let thread = p.create_thread(s_thread, Space(slot::SPACE), RUNNER)?;
        let budget = self.budget(p, s_budget)?;
        thread.configure(Some(budget), Some(Endpoint(self.own)), FAULTS, None)?;
        let argument = u64::from(s_one) | u64::from(s_bell) << 32;
        // SAFETY: its stack is a page that nothing else of this server uses, and it touches nothing else.
        unsafe { thread.start(address(&churn_run), LOW + PAGE, argument)? };
        // A doorbell for one value is not rung by another: the guest is left.
        let left = i != 0 && i.is_multiple_of(2);
        is(thread, if left { WAITING } else { CALLING })?;
        if i.is_multiple_of(3) {
            guest.unmap(0)?;
            guest.unroute(0x3f8)?;
        }
        self.end(i, pool, 7)
    }
}
