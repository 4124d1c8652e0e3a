//! What outlives servers: Endpoints, Notifications, shared pages, ports and interrupts. Made once, from root's Pool.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use ipc_schema::abi::layout::slot;
use ipc_schema::abi::rights::SEND;
use ipc_schema::proto::{PlatformRequest, PlatformResponse};
use root::plan::{self, Object, Plan, device_bits};
use runtime::forward::Grants;
use runtime::object::cpu::IrqTarget;
use runtime::object::{Irq, Pool, Ports};
use runtime::{Endpoint, Notification, time};

use super::machine::{Block, Error, Machine, POOL, at};
use super::processors::{CPU, Forwarder, Processors};
use super::{SPACE, complain};

/// Adds `len` bytes of guest memory from guest-physical `gpa` on.
fn take_runs(
    machine: &mut Machine,
    mut gpa: u64,
    len: u64,
    parts: &mut Vec<GuestRam>,
) -> Result<(), Error> {
    let runs = machine.ram.take_many(len).ok_or(Error::NoRam(len))?;
    let mut failed = None;
    for run in runs {
        if failed.is_some() {
            machine.ram.give(run);
            continue;
        }
        let used = machine.ram.was_used(run);
        let mut add = || {
            let block = machine.block_of(run)?;
            parts.push(GuestRam { gpa, block });
            if used { machine.clear(block) } else { Ok(()) }
        };
        failed = add().err();
        gpa += run.len;
    }
    failed.map_or(Ok(()), Err)
}

/// Bytes of the Pool that further processors' Cpus are made from.
const PROCESSORS_POOL: u64 = 1 << 20;
/// How long platform may take for an answer, in microseconds. It may still be looking at the firmware's tables.
const PLATFORM_MICROS: u64 = 10_000_000;

/// A part of a guest's memory.
#[derive(Clone, Copy)]
pub struct GuestRam {
    /// Guest-physical address.
    pub gpa: u64,
    /// Where it is.
    pub block: Block,
}

/// Objects by name.
pub struct Shared {
    /// Root's own Endpoint: faults and requests.
    pub own: Endpoint,
    /// The memory of VMs that run, by number: it outlives a VM's devices.
    pub guests: BTreeMap<usize, Vec<GuestRam>>,
    /// By instance.
    pub endpoints: BTreeMap<String, Endpoint>,
    /// By instance.
    pub notifications: BTreeMap<String, Notification>,
    /// By key.
    pub pages: BTreeMap<String, Block>,
    /// Larger pieces, by key.
    pub runs: BTreeMap<String, Block>,
    /// By first port and number.
    pub ports: BTreeMap<(u16, u32), Ports>,
    /// By interrupt line.
    pub irqs: BTreeMap<u8, (Irq, IrqTarget)>,
    /// What messages of PCI functions signal, by their driver's instance.
    pub messages: BTreeMap<String, (Irq, IrqTarget)>,
    /// The processors.
    pub processors: Processors,
    /// What takes calls to root on each of them.
    pub forwarders: Vec<Forwarder>,
    /// Root's capabilities to those.
    pub desk: Grants,
    /// What further ones' Cpus are made from.
    pub processors_pool: Option<Pool>,
}

impl Shared {
    /// Nothing but root's Endpoint.
    pub fn new(machine: &mut Machine) -> Result<Self, Error> {
        let own = machine.make("create root's endpoint", |dest| POOL.create_endpoint(dest))?;
        Ok(Self {
            own,
            guests: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            notifications: BTreeMap::new(),
            pages: BTreeMap::new(),
            runs: BTreeMap::new(),
            ports: BTreeMap::new(),
            irqs: BTreeMap::new(),
            messages: BTreeMap::new(),
            processors: Processors::new(),
            forwarders: Vec::new(),
            desk: Grants::default(),
            processors_pool: None,
        })
    }

    /// Makes what a server's plan speaks of and is not there yet.
    pub fn prepare(&mut self, machine: &mut Machine, plan: &Plan) -> Result<(), Error> {
        for grant in &plan.grants {
            match &grant.object {
                Object::Endpoint(name) if !self.endpoints.contains_key(name) => {
                    let made =
                        machine.make("create an endpoint", |dest| POOL.create_endpoint(dest))?;
                    self.endpoints.insert(name.clone(), made);
                }
                Object::Notification(name) if !self.notifications.contains_key(name) => {
                    let made = machine.make("create a notification", |dest| {
                        POOL.create_notification(dest)
                    })?;
                    self.notifications.insert(name.clone(), made);
                }
                Object::Ports(first, count) if !self.ports.contains_key(&(*first, *count)) => {
                    let whole = Ports(slot::PORTS);
                    let made = machine.make("divide ports", |dest| {
                        whole.divide(*first, *count, dest, POOL)
                    })?;
                    self.ports.insert((*first, *count), made);
                }
                Object::Irq(line) if !self.irqs.contains_key(line) => {
                    let (irq, target) =
                        machine.make("create an irq", |dest| CPU.create_irq(dest, POOL))?;
                    self.irqs.insert(*line, (irq, target));
                }
                Object::Processors if self.processors_pool.is_none() => {
                    let block = machine.block(PROCESSORS_POOL)?;
                    // SAFETY: root has no references into the block.
                    let made = machine.make("make the processors' pool", |dest| unsafe {
                        block.memory.make_pool(dest, 0)
                    })?;
                    self.processors_pool = Some(made);
                }
                _ => {}
            }
        }
        for key in plan.pages() {
            if !self.pages.contains_key(key) {
                let block = machine.block(1)?;
                machine.clear(block)?;
                self.pages.insert(key.clone(), block);
            }
        }
        for (key, len) in plan.runs() {
            if !self.runs.contains_key(key) {
                let block = machine.clean_block(len)?;
                self.runs.insert(key.clone(), block);
            }
        }
        for grant in &plan.grants {
            if let Object::Irq(line) = grant.object {
                self.bind(machine, line, &plan.instance)?;
            }
        }
        Ok(())
    }

    /// Takes `len` bytes for the guest of VM number `vm`, if that has none yet: low and high memory apart, so that no run lies across the
    /// hole. Nothing of another guest is left in it.
    pub fn take_guest(&mut self, machine: &mut Machine, vm: usize, len: u64) -> Result<(), Error> {
        if self.guests.contains_key(&vm) {
            return Ok(());
        }
        let mut parts = Vec::new();
        let high = len.saturating_sub(plan::LOW_RAM_END);
        let mut taken = Ok(());
        for (from, len) in [(0, len - high), (plan::HIGH_RAM, high)] {
            if len > 0 && taken.is_ok() {
                taken = take_runs(machine, from, len, &mut parts);
            }
        }
        self.guests.insert(vm, parts);
        taken.inspect_err(|_| self.give_guest(machine, vm))
    }

    /// Gives the memory of a VM back. No server of it lives any more.
    pub fn give_guest(&mut self, machine: &mut Machine, vm: usize) {
        for part in self.guests.remove(&vm).into_iter().flatten() {
            machine.give(part.block);
        }
    }

    /// Lets an interrupt signal its driver.
    fn bind(&self, machine: &mut Machine, line: u8, instance: &str) -> Result<(), Error> {
        match self.irqs.get(&line) {
            Some((irq, _)) => self.bind_irq(machine, *irq, instance),
            None => Ok(()),
        }
    }

    /// Lets an Irq signal its driver.
    pub fn bind_irq(&self, machine: &mut Machine, irq: Irq, instance: &str) -> Result<(), Error> {
        let Some(to) = self.notifications.get(instance) else {
            return Ok(());
        };
        let badged = machine.slot()?;
        let done = SPACE
            .copy_cap(to.0, badged, SEND, device_bits::BELL)
            .and_then(|()| irq.bind(Some(Notification(badged))))
            .map_err(at("bind an interrupt"));
        machine.drop_slot(badged);
        done
    }

    /// Sets bits in a server's Notification.
    pub fn signal(&self, machine: &mut Machine, instance: &str, bits: u64) {
        let Some(to) = self.notifications.get(instance) else {
            return;
        };
        let Ok(badged) = machine.slot() else {
            return complain!("no slot to signal {instance} with");
        };
        let copied = SPACE.copy_cap(to.0, badged, SEND, bits);
        if let Err(status) = copied.and_then(|()| Notification(badged).signal()) {
            complain!("signal {instance}: {status:?}");
        }
        machine.drop_slot(badged);
    }

    /// Asks platform; `None` if there was no proper answer in time.
    pub fn ask_platform(&self, request: &PlatformRequest) -> Option<PlatformResponse> {
        let platform = self.endpoints.get("platform")?;
        match platform.call_postcard_with(request, &[], time::after(PLATFORM_MICROS)) {
            Ok(response) => Some(response),
            Err(error) => {
                complain!("platform: {error}");
                None
            }
        }
    }

    /// Tells platform of every interrupt that has been taken.
    pub fn route_irqs(&self) {
        for (line, (_, target)) in &self.irqs {
            let request = PlatformRequest::RouteIrq {
                gsi: u32::from(*line),
                // Vectors and 32-bit APIC ids, by the architecture.
                vector: target.vector as u8,
                apic_id: target.apic_id as u32,
            };
            match self.ask_platform(&request) {
                Some(PlatformResponse::Irq { level, active_low }) => {
                    defmt::info!(
                        "irq {=u8} on vector {=u64}, level {=bool}, low {=bool}",
                        line,
                        target.vector,
                        level,
                        active_low
                    );
                }
                Some(other) => complain!("irq {line} has no route: {other:?}"),
                None => complain!("irq {line} has no route"),
            }
        }
    }
}
