//! Everything that can be asked of the kernel: the six system calls and the operations of each object.

use ipc_schema::abi::{Kind, op};

/// What a call is an instance of: the rows of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// Its name in the report.
    pub name: &'static str,
    /// Number of the system call.
    pub number: u64,
    /// Kind of object that it is for; 0: none.
    pub kind: u8,
    /// Label of the operation, for `call` on kernel objects.
    pub label: u64,
    /// How often it is chosen: chances among all.
    pub weight: u64,
}

const fn call(name: &'static str, kind: Kind, label: u64, weight: u64) -> Op {
    Op {
        name,
        number: 0,
        kind: kind as u8,
        label,
        weight,
    }
}
const fn other(name: &'static str, number: u64, kind: u8, weight: u64) -> Op {
    Op {
        name,
        number,
        kind,
        label: 0,
        weight,
    }
}

/// All of them.
pub const OPS: [Op; 46] = [
    call("call endpoint", Kind::Endpoint, 7, 60),
    other("reply_recv", 1, Kind::Endpoint as u8, 60),
    other("signal", 2, Kind::Notification as u8, 40),
    other("wait", 3, Kind::Notification as u8, 30),
    other("run", 4, Kind::Vcpu as u8, 60),
    other("yield", 5, 0, 10),
    other("no such call", 6, 0, 4),
    call("pool.create", Kind::Pool, op::pool::CREATE, 120),
    call("pool.stat", Kind::Pool, op::pool::STAT, 6),
    call("pool.destroy", Kind::Pool, op::pool::DESTROY, 10),
    call("memory.divide", Kind::Memory, op::memory::DIVIDE, 40),
    call("memory.revoke", Kind::Memory, op::memory::REVOKE, 8),
    call("memory.make_pool", Kind::Memory, op::memory::MAKE_POOL, 12),
    call("memory.info", Kind::Memory, op::memory::INFO, 4),
    call("space.map", Kind::Space, op::space::MAP, 60),
    call("space.unmap", Kind::Space, op::space::UNMAP, 25),
    call("space.copy_cap", Kind::Space, op::space::COPY_CAP, 40),
    call("space.drop_cap", Kind::Space, op::space::DROP_CAP, 20),
    call("space.destroy", Kind::Space, op::space::DESTROY_OBJECT, 30),
    call("thread.configure", Kind::Thread, op::thread::CONFIGURE, 30),
    call("thread.start", Kind::Thread, op::thread::START, 20),
    call("thread.suspend", Kind::Thread, op::thread::SUSPEND, 12),
    call("thread.resume", Kind::Thread, op::thread::RESUME, 24),
    call("thread.read_regs", Kind::Thread, op::thread::READ_REGS, 10),
    call(
        "thread.write_regs",
        Kind::Thread,
        op::thread::WRITE_REGS,
        12,
    ),
    call(
        "thread.bind_event",
        Kind::Thread,
        op::thread::BIND_EVENT,
        10,
    ),
    call("budget.configure", Kind::Budget, op::budget::CONFIGURE, 8),
    call("budget.stat", Kind::Budget, op::budget::STAT, 4),
    call(
        "budget.bind_event",
        Kind::Budget,
        op::budget::BIND_EVENT,
        10,
    ),
    call("guest.map", Kind::GuestSpace, op::guest_space::MAP, 30),
    call("guest.unmap", Kind::GuestSpace, op::guest_space::UNMAP, 12),
    call("guest.route", Kind::GuestSpace, op::guest_space::ROUTE, 25),
    call(
        "guest.unroute",
        Kind::GuestSpace,
        op::guest_space::UNROUTE,
        10,
    ),
    call("vcpu.on_exit", Kind::Vcpu, op::vcpu::ON_EXIT, 15),
    call("irq.bind", Kind::Irq, op::irq::BIND, 4),
    call("irq.info", Kind::Irq, op::irq::INFO, 2),
    call("ports.in", Kind::Ports, op::ports::IN, 2),
    call("ports.out", Kind::Ports, op::ports::OUT, 2),
    call("ports.out_bytes", Kind::Ports, op::ports::OUT_BYTES, 2),
    call("ports.divide", Kind::Ports, op::ports::DIVIDE, 2),
    call("cpu.create_irq", Kind::Cpu, op::cpu::CREATE_IRQ, 4),
    call("cpu.info", Kind::Cpu, op::cpu::INFO, 2),
    call("log.write", Kind::Log, op::log::WRITE, 2),
    call("log.read", Kind::Log, op::log::READ, 2),
    call("log.bind", Kind::Log, op::log::BIND, 2),
    call("no such operation", Kind::Mapping, 0x99, 6),
];

/// Sum of all weights.
pub const CHANCES: u64 = {
    let (mut i, mut sum) = (0, 0);
    while i < OPS.len() {
        sum += OPS[i].weight;
        i += 1;
    }
    sum
};

/// The operation at `chance`, below [`CHANCES`]: its number and itself.
#[must_use]
pub fn at(chance: u64) -> (usize, &'static Op) {
    let mut left = chance % CHANCES;
    for (i, op) in OPS.iter().enumerate() {
        if left < op.weight {
            return (i, op);
        }
        left -= op.weight;
    }
    (0, &OPS[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_can_come() {
        let mut seen = [false; OPS.len()];
        for chance in 0..CHANCES {
            seen[at(chance).0] = true;
        }
        assert!(seen.iter().all(|s| *s));
    }

    #[test]
    fn names_are_different() {
        let names: std::collections::BTreeSet<_> = OPS.iter().map(|o| o.name).collect();
        assert_eq!(names.len(), OPS.len());
    }
}
