//! Operations on what stands for the machine: Irqs, Ports, Cpus, the Log.

use super::{Answer, Args, NONE, PAYLOAD_WORD};
use crate::arch::{self, Cpu};
use crate::ipc;
use crate::mem::shared;
use crate::object::cap::Cap;
use crate::object::cpu::{CpuObject, apic_id};
use crate::object::irq::Irq;
use crate::object::log::{LogObject, RECORD, RING};
use crate::object::ports::Ports;
use crate::object::thread::reg;
use crate::object::{Notification, refuse_if};
use crate::sched;
use core::sync::atomic::Ordering;
use ipc_schema::abi::rights::{CONTROL, READ, SEND, WRITE};
use ipc_schema::abi::{Status, Utcb, cpu_state, op};

/// Bytes that `OUT_BYTES` writes in a step: a port of an old device takes about a microsecond.
const OUT_AT_ONCE: usize = 128;

#[inline(never)]
pub fn irq(a: &Args, cap: &Cap) -> Answer {
    let i = cap.typed::<Irq>(CONTROL)?;
    match a.tag().label() {
        op::irq::BIND => {
            let target = a.keep::<Notification>(a.w(0), SEND)?;
            a.op.stop_for(1 << i.cpu);
            i.target.set(target);
            NONE
        }
        op::irq::INFO => a.words([u64::from(i.vector), 0, 0, 0]),
        _ => Err(Status::BadOperation),
    }
}

#[inline(never)]
pub fn ports(a: &Args, cap: &Cap) -> Answer {
    let p = cap.typed::<Ports>(CONTROL)?;
    match a.tag().label() {
        op::ports::IN => {
            let (port, width) = p.decode(a.w(0))?;
            a.words([arch::port_in(port, width), 0, 0, 0])
        }
        op::ports::OUT => {
            let (port, width) = p.decode(a.w(0))?;
            arch::port_out(port, width, a.w(1));
            NONE
        }
        op::ports::OUT_BYTES => {
            let (port, _) = p.decode((a.w(0) & 0xffff) | 1 << 16)?;
            let bytes = a.tag().payload().min(Utcb::PAYLOAD);
            let input = &a.t.get().utcb().0[PAYLOAD_WORD..];
            let from = usize::try_from(a.w(1)).unwrap_or(bytes).min(bytes);
            let to = bytes.min(from + OUT_AT_ONCE);
            for i in from..to {
                arch::port_out(port, 1, (input[i / 8].get() >> (i % 8 * 8)) & 0xff);
            }
            if to < bytes {
                a.t.get().set(reg::R9, to as u64);
                return Err(Status::Again);
            }
            NONE
        }
        op::ports::DIVIDE => {
            let dest = a.dest(a.w(2))?;
            let part = p.divide(a.w(0), a.w(1), a.pool(a.w(3))?)?;
            dest.set(Cap::of(part));
            NONE
        }
        _ => Err(Status::BadOperation),
    }
}

#[inline(never)]
pub fn cpu(a: &Args, cap: &Cap) -> Answer {
    let c = cap.typed::<CpuObject>(CONTROL)?;
    match a.tag().label() {
        op::cpu::CREATE_IRQ => {
            let dest = a.dest(a.w(0))?;
            let pool = a.pool(a.w(1))?;
            a.op.stop_for(1 << c.number);
            let irq = Irq::create(c.online()?, pool)?;
            dest.set(Cap::of(irq));
            a.words([u64::from(irq.vector), u64::from(apic_id(c.cpu())), 0, 0])
        }
        op::cpu::INFO => {
            let cpu = booked(a, c.cpu());
            a.words([
                u64::from(c.number),
                u64::from(apic_id(cpu)),
                shared(&cpu.idle_cycles),
                cpu.state.load(Ordering::Acquire),
            ])
        }
        op::cpu::ADD => {
            let dest = a.dest(a.w(0))?;
            let made = CpuObject::add(a.pool(a.w(1))?, a.w(2))?;
            dest.set(Cap::of(made));
            a.words([u64::from(made.number), 0, 0, 0])
        }
        op::cpu::START => {
            let state = arch::start_step(c.cpu(), apic_id(c.cpu()), a.w(0))?;
            a.words([state, 0, 0, 0])
        }
        op::cpu::STAT => {
            let cpu = booked(a, c.cpu());
            let off = arch::measure::longest(cpu);
            let own = shared(&cpu.own_cycles);
            a.words([own, shared(&cpu.locks), shared(&cpu.stops), off])
        }
        _ => Err(Status::BadOperation),
    }
}

/// `cpu`, whose time up to now has been booked.
fn booked<'c>(a: &Args, cpu: &'c Cpu) -> &'c Cpu {
    if cpu.state.load(Ordering::Acquire) == cpu_state::ONLINE {
        a.op.stop_for(1 << cpu.number);
        sched::charge(cpu);
    }
    cpu
}

#[inline(never)]
pub fn log(a: &Args, cap: &Cap) -> Answer {
    let payload = &a.t.get().utcb().0[PAYLOAD_WORD..];
    match a.tag().label() {
        op::log::WRITE => {
            cap.typed::<LogObject>(WRITE)?;
            let len = a.tag().payload();
            refuse_if(len == 0 || len > RECORD, Status::OutOfRange)?;
            RING.add(
                cap.badge as u8,
                (0..len).map(|i| (payload[i / 8].get() >> (i % 8 * 8)) as u8),
            );
            ipc::notify(a.cpu, &RING.reader.get());
            NONE
        }
        op::log::READ => {
            cap.typed::<LogObject>(READ)?;
            let (next, lost, bytes) =
                RING.read(a.w(0), Utcb::PAYLOAD, |i, word| payload[i].set(word));
            a.payload.set(bytes);
            a.words([next, lost, 0, 0])
        }
        op::log::BIND => {
            cap.typed::<LogObject>(READ)?;
            RING.reader.set(a.keep::<Notification>(a.w(0), SEND)?);
            NONE
        }
        #[cfg(feature = "checker")]
        crate::checker::CHECK => {
            cap.typed::<LogObject>(WRITE)?;
            crate::checker::set_period(a.w(0));
            let (calls, checks) = crate::checker::figures();
            a.words([crate::checker::now(&a.op), calls, checks, 0])
        }
        #[cfg(feature = "checker")]
        crate::checker::refuse::SPOIL => {
            cap.typed::<LogObject>(WRITE)?;
            let v = a.optional(a.w(0), ipc_schema::abi::rights::CONTROL)?;
            a.words(crate::checker::refuse::spoil(v, a.w(1)))
        }
        _ => cap.object().and(Err(Status::BadOperation)),
    }
}
