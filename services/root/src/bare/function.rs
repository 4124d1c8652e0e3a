//! Hands a PCI function to its driver: registers, messages, and where the memory is that it reaches.

use alloc::collections::btree_map::Entry;

use ipc_schema::disk::DriverConfig;
use ipc_schema::proto::{PciFunction, PlatformRequest, PlatformResponse};
use root::plan::{Memory, Plan, disks};

use super::Root;
use super::machine::POOL;
use super::machine::{Error, Machine};
use super::processors::CPU;
use super::shared::Shared;

/// Who makes virtio functions (Virtio 1.2, 4.1.2), and block devices of theirs: of virtio 1, and those that are of both.
const VENDOR: u16 = 0x1af4;
const BLOCK_DEVICES: [u16; 2] = [0x1042, 0x1001];

impl Root {
    /// Completes the plan of the second disk's driver, and makes the function ready for it. Done again for each successor: the platform server
    /// may have forgotten, and the function may be another.
    pub fn take_function(&mut self, index: usize) -> Result<(), Error> {
        let Some(server) = self.registry.servers.get_mut(index) else {
            return Ok(());
        };
        let (machine, shared) = (&mut self.machine, &mut self.shared);
        let function = find(shared)?;
        for bar in &function.bars {
            let key = disks::bar_key(bar);
            if let Entry::Vacant(run) = shared.runs.entry(key) {
                let len = bar.len.next_multiple_of(4096);
                run.insert(machine.registers(bar.base, len)?);
            }
        }
        let address = function.address;
        complete(shared, &mut server.plan, function)?;
        let target = messages(machine, shared, &server.plan.instance)?;
        let request = PlatformRequest::StartFunction {
            address,
            // Vectors and 32-bit APIC ids, by the architecture.
            vector: target.0,
            apic_id: target.1,
        };
        match shared.ask_platform(&request) {
            Some(PlatformResponse::Done) => Ok(()),
            _ => Err(Error::Text("the function cannot be started")),
        }
    }
}

fn find(shared: &Shared) -> Result<PciFunction, Error> {
    let request = PlatformRequest::Function {
        vendor: VENDOR,
        devices: BLOCK_DEVICES.into(),
        index: 0,
    };
    match shared.ask_platform(&request) {
        Some(PlatformResponse::Function(function)) => Ok(function),
        Some(_) => Err(Error::Text(
            "the machine has no second disk: no virtio block device is on its PCI bus",
        )),
        None => Err(Error::Text("platform does not answer")),
    }
}

/// Writes into the plan what the machine has said.
fn complete(shared: &Shared, plan: &mut Plan, function: PciFunction) -> Result<(), Error> {
    let bad = Error::Text("the driver's plan is of another kind");
    let Ok(mut config) = postcard::from_bytes::<DriverConfig>(&plan.config) else {
        return Err(bad);
    };
    config.function = function;
    let runs = plan.mapped.iter().filter_map(|m| match &m.memory {
        Memory::Run(key) if m.name == "dma" || m.name.starts_with("pages:") => {
            Some((m.name.clone(), shared.runs.get(key)?.run.phys))
        }
        _ => None,
    });
    config.physical = runs.collect();
    disks::with_function(plan, &config).map_err(|_| bad)
}

/// The vector and APIC id that the function's messages go to, which signal its driver.
fn messages(
    machine: &mut Machine,
    shared: &mut Shared,
    instance: &str,
) -> Result<(u8, u32), Error> {
    let (_, target) = match shared.messages.get(instance) {
        Some(made) => *made,
        None => {
            let made = machine.make("create an irq", |dest| CPU.create_irq(dest, POOL))?;
            shared.bind_irq(machine, made.0, instance)?;
            shared.messages.insert(instance.into(), made);
            made
        }
    };
    Ok((target.vector as u8, target.apic_id as u32))
}
