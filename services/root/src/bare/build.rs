//! Builds one server after its plan, and takes it down.

use alloc::vec::Vec;

use ipc_schema::abi::CapTransfer;
use ipc_schema::abi::layout::{self, slot};
use ipc_schema::abi::rights::{CONTROL, EXEC, READ, WRITE};
use ipc_schema::proto::{MemoryKinds, SchedulerRequest, SchedulerResponse};
use root::image::{Image, Parts, Place};
use root::plan::{self, Grant, Memory as From, Object, Plan};
use root::ram::PAGE;
use runtime::forward::Grants;
use runtime::object::{Budget, Cpu, GuestSpace, Pool, Space, Thread, Vcpu};
use runtime::{Slot, now, time};

use super::machine::{Block, Error, Machine, at};
use super::processors::{CPU, FIRST, Forwarder, Owner};
use super::shared::Shared;
use super::{LOG, complain};

/// What has been made for a server.
#[derive(Default)]
pub struct Built {
    /// Image, stack, heap, start page.
    pub pages: Option<Block>,
    /// Where they are in it.
    pub parts: Option<Parts>,
    /// Bytes of code and constants, which all instances share.
    code: u64,
    pool_block: Option<Block>,
    pool: Option<Pool>,
    space: Option<Space>,
    /// Its first thread.
    pub thread: Option<Thread>,
    /// Its Budget.
    pub budget: Option<Budget>,
    /// Where its image begins to run.
    pub entry: u64,
    /// Where what it may write of its image is, and how many bytes.
    pub data: Vec<(u64, u64)>,
    /// When its thread was started: TSC.
    pub started: u64,
    /// The scheduler's number for it.
    pub admitted: Option<u32>,
    /// The number of the processor that its first thread runs on.
    pub cpu: u32,
    /// What takes calls to it on the other processors.
    pub forwarders: Vec<Forwarder>,
    guest: Option<GuestSpace>,
    vcpus: Vec<Vcpu>,
    /// RAM of its own.
    ram: Vec<Block>,
}

/// How long the scheduler may take, in microseconds.
const SCHEDULER_MICROS: u64 = 1_000_000;

impl Built {
    /// Bytes that it holds.
    pub fn bytes(&self) -> u64 {
        let blocks = self.pages.iter().chain(&self.pool_block).chain(&self.ram);
        blocks.map(|b| b.run.len).sum()
    }

    /// What they are for.
    pub fn kinds(&self, plan: &Plan) -> MemoryKinds {
        let parts = self.parts.as_ref();
        let free = self.pool.and_then(|pool| pool.stat().ok());
        let ram: u64 = self.ram.iter().map(|b| b.run.len).sum();
        MemoryKinds {
            image: parts.map_or(0, |p| p.image),
            code: self.code,
            stack: parts.map_or(0, |p| p.stack_len + p.start_len),
            heap: parts.map_or(0, |p| p.heap_len),
            objects: self.pool_block.map_or(0, |b| b.run.len),
            objects_free: free.map_or(0, |(pages, ..)| pages * PAGE),
            other: ram + plan.shared_bytes(),
        }
    }

    /// TSC cycles that it has used.
    pub fn used(&self) -> u64 {
        let forwarders = self.forwarders.iter().map(|f| f.budget);
        let stats = self.budget.into_iter().chain(forwarders);
        stats.filter_map(|b| b.stat().ok()).map(|s| s.used).sum()
    }
}

/// A Pool's bytes for each forwarder: its UTCB and objects.
const FORWARDER_POOL: u64 = 16 << 10;

/// Builds the server and starts it, on the processor `at` if others of its group run there. What is made goes to `built` at once,
/// so that a failure leaves nothing behind.
pub fn build(
    machine: &mut Machine,
    shared: &Shared,
    plan: &Plan,
    (id, restarts): (u8, u32),
    (scheduler_runs, group_at): (bool, Option<u32>),
    built: &mut Built,
) -> Result<(), Error> {
    let grants = plan.forwarders(shared.processors.others().count() as u32);
    let file = machine
        .file(&plan.binary)
        .ok_or(Error::Text("the archive has no such server"))?;
    // Who gets its pages as Memory has all of them.
    let all_own = plan.grants.iter().any(|g| g.object == Object::Image);
    let image = Image::parse(file, all_own).map_err(|e| Error::Image(plan.binary.clone(), e))?;
    let start = plan.start_info(id, restarts, machine.tsc_hz, machine.wall_clock, grants);
    let heap = plan.heap.next_multiple_of(PAGE);
    // At most a few MiB: the plan's own number.
    let start = start
        .encode(heap as u32)
        .map_err(|_| Error::Text("the start page cannot be encoded"))?;
    let parts = Parts::new(image.own, plan.stack, heap, start.len() as u64);
    let common = machine.program(&plan.binary, &image)?;
    let pages = machine.block(parts.total())?;
    built.pages = Some(pages);
    built.parts = Some(parts);
    built.code = image.common;
    let filled = machine.window(pages, |mut w| {
        w.clear();
        for s in &image.segments {
            if let Place::Own(offset) = s.place {
                w.write(offset + s.lead, s.data)?;
            }
        }
        w.write(parts.start, &start)
    })?;
    filled.ok_or(Error::Text("the image is longer than it said"))?;

    let guest = plan.role.vm().and_then(|vm| shared.guests.get(&vm));
    let tables = guest.into_iter().flatten().map(|part| {
        let run = part.block.run;
        plan.guest_maps * plan::run_tables(part.gpa, run.phys, run.len)
    });
    let pool_bytes = plan.pool + u64::from(grants.count) * FORWARDER_POOL + tables.sum::<u64>();
    let pool_block = machine.block(pool_bytes)?;
    built.pool_block = Some(pool_block);
    // SAFETY: root has no references into the block.
    let pool = machine.make("make a pool", |dest| unsafe {
        pool_block.memory.make_pool(dest, plan.pools)
    })?;
    built.pool = Some(pool);
    let space = machine.make("create a space", |dest| pool.create_space(dest, plan.slots))?;
    built.space = Some(space);
    let thread = machine.make("create a thread", |dest| {
        pool.create_thread(dest, space, layout::UTCB)
    })?;
    built.thread = Some(thread);
    let budget = machine.make("create a budget", |dest| pool.create_budget(dest))?;
    built.budget = Some(budget);

    for s in &image.segments {
        let (memory, offset) = match s.place {
            Place::Own(offset) => (pages.memory, offset),
            Place::Common(offset) => (common.ok_or(Error::Text("code is missing"))?, offset),
        };
        space
            .map(s.va, memory, s.rights, offset, s.len)
            .map_err(at("map the image"))?;
    }
    let data = image.segments.iter().filter(|s| s.rights & WRITE != 0);
    built.data = data.map(|s| (s.va, s.len)).collect();
    let private = [
        (
            layout::STACK_TOP - parts.stack_len,
            READ | WRITE,
            parts.stack,
            parts.stack_len,
        ),
        (layout::HEAP, READ | WRITE, parts.heap, parts.heap_len),
        (layout::START_INFO, READ, parts.start, parts.start_len),
    ];
    for (va, rights, offset, len) in private.into_iter().filter(|p| p.3 > 0) {
        space
            .map(va, pages.memory, rights, offset, len)
            .map_err(at("map stack, heap or start page"))?;
    }
    build_guest(machine, shared, plan, built, (pool, space))?;
    map_shared(machine, shared, plan, space)?;
    for (dest, grant) in plan.slots() {
        grant_cap(machine, shared, built, grant, space, (dest, id))?;
    }
    if matches!(plan.role, plan::Role::Extra(_)) {
        for (number, cpu) in shared.processors.online() {
            space
                .copy_cap(cpu.0, slot::CPUS + number, CONTROL, 0)
                .map_err(at("grant a processor"))?;
        }
    }
    admit(shared, plan, built, scheduler_runs, group_at);
    build_forwarders(machine, shared, plan, id, grants, built)?;
    let bound = shared.notifications.get(&plan.instance).copied();
    thread
        .configure(Some(budget), Some(shared.own), u64::from(id), bound)
        .map_err(at("configure the thread"))?;
    (built.started, built.entry) = (now(), image.entry);
    // SAFETY: it is not a thread of root's own Space.
    unsafe { thread.start(image.entry, layout::STACK_TOP, layout::START_INFO) }
        .map_err(at("start the thread"))
}

/// The guest's memory in a server of its VM; and, if that is the VMM, a GuestSpace and Vcpus.
fn build_guest(
    machine: &mut Machine,
    shared: &Shared,
    plan: &Plan,
    built: &mut Built,
    (pool, space): (Pool, Space),
) -> Result<(), Error> {
    if plan.guest_memory == 0 {
        return Ok(());
    }
    let ram = plan.role.vm().and_then(|vm| shared.guests.get(&vm));
    let ram = ram.ok_or(Error::Text("the guest's memory is missing"))?;
    for part in ram {
        let va = layout::GUEST + part.gpa;
        space
            .map(va, part.block.memory, READ | WRITE, 0, part.block.run.len)
            .map_err(at("map guest memory in a server"))?;
    }
    if !matches!(plan.role, plan::Role::Vmm(_)) {
        return Ok(());
    }
    let guest = machine.make("create a guest space", |dest| pool.create_guest_space(dest))?;
    built.guest = Some(guest);
    for part in ram {
        let all = READ | WRITE | EXEC;
        guest
            .map(part.gpa, part.block.memory, all, 0, part.block.run.len)
            .map_err(at("map guest memory"))?;
    }
    for m in &plan.mapped {
        if let From::Vcpu(_) = m.memory {
            let vcpu = machine.make("create a vcpu", |dest| {
                pool.create_vcpu(dest, guest, space, m.va)
            })?;
            built.vcpus.push(vcpu);
        }
    }
    Ok(())
}

/// Shared pages and files of the boot archive.
fn map_shared(machine: &Machine, shared: &Shared, plan: &Plan, space: Space) -> Result<(), Error> {
    for m in &plan.mapped {
        match &m.memory {
            From::Page(key) => {
                let page = shared
                    .pages
                    .get(key)
                    .ok_or(Error::Text("a shared page is missing"))?;
                space
                    .map(m.va, page.memory, m.rights, 0, PAGE)
                    .map_err(at("map a shared page"))?;
            }
            From::Run(key) => {
                let run = shared
                    .runs
                    .get(key)
                    .ok_or(Error::Text("a piece of memory is missing"))?;
                let len = m.len.next_multiple_of(PAGE);
                space
                    .map(m.va, run.memory, m.rights, 0, len)
                    .map_err(at("map a piece of memory"))?;
            }
            From::File(name) if m.len > 0 => {
                let offset = machine
                    .file_offset(name)
                    .ok_or(Error::Text("a file is missing"))?;
                let len = m.len.next_multiple_of(PAGE);
                space
                    .map(m.va, machine.archive_memory, READ, offset, len)
                    .map_err(at("map a file"))?;
            }
            // Mapped with the guest.
            From::File(_) | From::GuestRam(_) | From::Vcpu(_) => {}
        }
    }
    Ok(())
}

fn grant_cap(
    machine: &mut Machine,
    shared: &Shared,
    built: &mut Built,
    grant: &Grant,
    space: Space,
    (dest, id): (u32, u8),
) -> Result<(), Error> {
    let source = match &grant.object {
        Object::Endpoint(name) => shared.endpoints.get(name).map(|e| e.0),
        Object::Notification(name) => shared.notifications.get(name).map(|n| n.0),
        Object::GuestSpace => built.guest.map(|g| g.0),
        Object::Vcpu(n) => built.vcpus.get(*n as usize).map(|v| v.0),
        Object::Ports(first, count) => shared.ports.get(&(*first, *count)).map(|p| p.0),
        Object::Irq(line) => shared.irqs.get(line).map(|(irq, _)| irq.0),
        Object::Cpu => Some(CPU.0),
        Object::Processors => shared.processors_pool.map(|p| p.0),
        Object::Root => Some(shared.own.0),
        Object::Log => Some(LOG.0),
        Object::Boot(slot) => Some(*slot),
        Object::Ram(len) => {
            let block = machine.block(*len)?;
            built.ram.push(block);
            machine.clear(block)?;
            Some(block.memory.0)
        }
        Object::Image => built.pages.map(|b| b.memory.0),
        Object::Space => built.space.map(|s| s.0),
        Object::Thread => built.thread.map(|t| t.0),
        Object::Pool => built.pool.map(|p| p.0),
    };
    let source = source.ok_or(Error::Text("a capability's object is missing"))?;
    // Root and the Log tell servers apart by their numbers.
    let badge = match grant.object {
        Object::Log | Object::Root => u64::from(id),
        _ => grant.badge,
    };
    space
        .copy_cap(source, dest, grant.rights, badge)
        .map_err(at("grant a capability"))
}

/// What takes calls to it on the other processors.
fn build_forwarders(
    machine: &mut Machine,
    shared: &Shared,
    plan: &Plan,
    id: u8,
    grants: Grants,
    built: &mut Built,
) -> Result<(), Error> {
    let own = shared.notifications.get(&plan.instance);
    match (built.pool.zip(built.space), own) {
        (Some((pool, space)), Some(own)) if grants.count > 0 => {
            let owner = Owner {
                pool,
                space,
                id,
                grants,
            };
            owner.forwarders(machine, shared, *own, &mut built.forwarders)
        }
        _ => Ok(()),
    }
}

/// Puts a server's Budget under the scheduler's rule; under root's own if that fails. `at`: where its group runs already.
pub fn admit(
    shared: &Shared,
    plan: &Plan,
    built: &mut Built,
    scheduler_runs: bool,
    group_at: Option<u32>,
) {
    let Some(budget) = built.budget else {
        return;
    };
    let mut group = plan.group;
    if let Some(group) = &mut group {
        group.cpu = group_at.or(group.cpu);
    }
    let request = SchedulerRequest::Admit {
        name: plan.instance.clone(),
        class: plan.class,
        shares: plan.share.shares,
        reservation: plan.share.reservation,
        limit: plan.share.limit,
        group,
    };
    let answer = scheduler_runs.then(|| ask_scheduler(shared, &request, Some(budget.0)));
    match answer.flatten() {
        Some(SchedulerResponse::Admitted { number, cpu }) => {
            (built.admitted, built.cpu) = (Some(number), cpu);
            return;
        }
        Some(other) => complain!("scheduler, {}: {other:?}", plan.instance),
        None => {}
    }
    let wanted = group.and_then(|g| g.cpu).unwrap_or(FIRST);
    let (number, cpu) = shared.processors.or_first(wanted);
    (built.admitted, built.cpu) = (None, number);
    configure(plan, budget, cpu);
}

/// Tells a scheduler that has just been started which processors there are beside the first.
pub fn give_processors(shared: &Shared) {
    for (number, cpu) in shared.processors.others() {
        let request = SchedulerRequest::Processor { number };
        match ask_scheduler(shared, &request, Some(cpu.0)) {
            Some(SchedulerResponse::Done) => {}
            other => complain!("scheduler, processor {number}: {other:?}"),
        }
    }
}

/// Asks the scheduler; `None` if there was no proper answer in time.
pub fn ask_scheduler(
    shared: &Shared,
    request: &SchedulerRequest,
    cap: Option<Slot>,
) -> Option<SchedulerResponse> {
    let scheduler = shared.endpoints.get("scheduler")?;
    let cap = cap.map(|slot| CapTransfer {
        slot,
        rights: CONTROL,
        badge: 0,
    });
    match scheduler.call_postcard_with(request, cap.as_slice(), time::after(SCHEDULER_MICROS)) {
        Ok(response) => Some(response),
        Err(error) => {
            complain!("scheduler: {error}");
            None
        }
    }
}

/// What a Budget gets when the scheduler is not there to say: a priority by class, no limit.
fn configure(plan: &Plan, budget: Budget, cpu: Cpu) {
    let period = time::cycles(10_000);
    if let Err(status) = budget.configure(cpu, u64::from(plan.class.priority()), period, period) {
        complain!("budget of {}: {status:?}", plan.instance);
    }
}

/// Destroys all that was made for a server. Its RAM is free again.
pub fn take_down(machine: &mut Machine, built: &mut Built) {
    if let Some(pool) = built.pool.take() {
        // SAFETY: nothing of root's own is made from it.
        if let Err(status) = unsafe { pool.destroy() } {
            // What cannot be destroyed keeps its memory: it must not become another's.
            complain!("destroy a pool: {status:?}");
            return;
        }
        machine.drop_slot(pool.0);
    }
    let made = [
        built.space.take().map(|s| s.0),
        built.thread.take().map(|t| t.0),
        built.budget.take().map(|b| b.0),
        built.guest.take().map(|g| g.0),
    ];
    let forwarders = built.forwarders.drain(..).flat_map(|f| f.slots());
    for slot in made
        .into_iter()
        .flatten()
        .chain(built.vcpus.drain(..).map(|v| v.0))
        .chain(forwarders)
    {
        machine.drop_slot(slot);
    }
    let blocks = [built.pages.take(), built.pool_block.take()];
    for block in blocks.into_iter().flatten().chain(built.ram.drain(..)) {
        machine.give(block);
    }
}

/// Root's own Budget, the highest of all: it must get through whatever others do.
pub fn raise_root() {
    let period = time::cycles(10_000);
    if let Err(status) = Budget(slot::BUDGET).configure(CPU, 31, period, period) {
        complain!("root's budget: {status:?}");
    }
}
