//! Operations on what stands for the machine: Irqs, Ports, Cpus, the Log.

use super::{Answer, Args, NONE, PAYLOAD_WORD, words};
use crate::arch;
use crate::ipc;
use crate::object::cap::Cap;
use crate::object::cpu::CpuObject;
use crate::object::irq::Irq;
use crate::object::log::{LogObject, RING, check_len};
use crate::object::ports::Ports;
use crate::object::{Notification, Object};
use crate::sched;
use ipc_schema::abi::rights::{READ, SEND, WRITE};
use ipc_schema::abi::{Status, Utcb, op};

pub fn irq(a: &Args, i: &Irq) -> Answer {
    match a.tag.label() {
        op::irq::BIND => {
            i.target.set(a.keep::<Notification>(a.w[0], SEND)?);
            NONE
        }
        op::irq::INFO => words([u64::from(i.vector), 0, 0, 0]),
        _ => Err(Status::BadOperation),
    }
}

pub fn ports(a: &Args, p: &Ports) -> Answer {
    match a.tag.label() {
        op::ports::IN => {
            let (port, width) = p.decode(a.w[0])?;
            words([arch::port_in(port, width), 0, 0, 0])
        }
        op::ports::OUT => {
            let (port, width) = p.decode(a.w[0])?;
            arch::port_out(port, width, a.w[1]);
            NONE
        }
        op::ports::OUT_BYTES => {
            let (port, _) = p.decode((a.w[0] & 0xffff) | 1 << 16)?;
            let bytes = a.tag.payload().min(Utcb::PAYLOAD);
            let input = &a.t.get().utcb().0[PAYLOAD_WORD..];
            for i in 0..bytes {
                arch::port_out(port, 1, (input[i / 8].get() >> (i % 8 * 8)) & 0xff);
            }
            NONE
        }
        op::ports::DIVIDE => {
            let dest = a.dest(a.w[2])?;
            let part = p.divide(a.w[0], a.w[1], a.pool(a.w[3])?)?;
            dest.set(Cap::new(part.get().header()));
            NONE
        }
        _ => Err(Status::BadOperation),
    }
}

pub fn cpu(a: &Args, c: &CpuObject) -> Answer {
    match a.tag.label() {
        op::cpu::CREATE_IRQ => {
            let dest = a.dest(a.w[0])?;
            let irq = Irq::create(a.cpu, a.pool(a.w[1])?)?;
            dest.set(Cap::new(irq.get().header()));
            words([u64::from(irq.vector), u64::from(arch::apic_id()), 0, 0])
        }
        op::cpu::INFO => {
            sched::charge(a.cpu);
            words([
                u64::from(c.number),
                u64::from(arch::apic_id()),
                a.cpu.idle_cycles.get(),
                0,
            ])
        }
        _ => Err(Status::BadOperation),
    }
}

pub fn log(a: &Args, cap: &Cap) -> Answer {
    let payload = &a.t.get().utcb().0[PAYLOAD_WORD..];
    match a.tag.label() {
        op::log::WRITE => {
            cap.typed::<LogObject>(WRITE)?;
            let len = check_len(a.tag.payload())?;
            RING.add(
                cap.badge as u8,
                (0..len).map(|i| (payload[i / 8].get() >> (i % 8 * 8)) as u8),
            );
            if let Ok(n) = RING.reader().typed::<Notification>(SEND) {
                ipc::signal(a.cpu, n, RING.reader().badge.max(1));
            }
            NONE
        }
        op::log::READ => {
            cap.typed::<LogObject>(READ)?;
            let (next, lost, bytes) = RING.read(a.w[0], Utcb::PAYLOAD, |i, b| {
                let word = &payload[i / 8];
                let shift = i % 8 * 8;
                word.set((word.get() & !(0xff << shift)) | u64::from(b) << shift);
            });
            Ok(([next, lost, 0, 0], bytes))
        }
        op::log::BIND => {
            cap.typed::<LogObject>(READ)?;
            RING.bind(a.keep::<Notification>(a.w[0], SEND)?);
            NONE
        }
        _ => Err(Status::BadOperation),
    }
}
