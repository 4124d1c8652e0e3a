//! The local APIC's registers, through memory and through MSRs (Intel SDM vol. 3, table 11-1 and table 11-6).

use super::super::Gp;
use super::timer::Mode as TimerMode;
use super::*;

/// What a register write leaves to others.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing.
    Done,
    /// A level-triggered interrupt with this vector ended: the IOAPIC must know.
    Eoi(u8),
    /// A message is to be sent.
    Send(Message),
    /// The APIC may take interrupts now that it refused before.
    Enabled,
    /// Which interrupts it takes may have changed otherwise.
    Rerouted,
}

/// Register numbers: the xAPIC's byte offset / 16, the x2APIC's MSR - 0x800.
mod register {
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TPR: u32 = 0x08;
    pub const APR: u32 = 0x09;
    pub const PPR: u32 = 0x0A;
    pub const EOI: u32 = 0x0B;
    pub const LDR: u32 = 0x0D;
    pub const DFR: u32 = 0x0E;
    pub const SVR: u32 = 0x0F;
    pub const ISR: u32 = 0x10;
    pub const ISR_LAST: u32 = 0x17;
    pub const TMR: u32 = 0x18;
    pub const TMR_LAST: u32 = 0x1F;
    pub const IRR: u32 = 0x20;
    pub const IRR_LAST: u32 = 0x27;
    pub const ESR: u32 = 0x28;
    pub const ICR: u32 = 0x30;
    pub const ICR_HIGH: u32 = 0x31;
    pub const LVT: u32 = 0x32;
    pub const LVT_LAST: u32 = 0x37;
    pub const INITIAL: u32 = 0x38;
    pub const CURRENT: u32 = 0x39;
    pub const DIVIDE: u32 = 0x3E;
    pub const SELF_IPI: u32 = 0x3F;
}
use register::*;

/// Version register: an integrated APIC (0x14) with six LVT entries, no EOI-broadcast suppression.
const VERSION_VALUE: u32 = 5 << 16 | 0x14;
/// Writable bits of the spurious-interrupt vector register: vector, enable, focus checking.
const SVR_BITS: u32 = 0x3FF;
/// Writable bits of each LVT entry.
const LVT_BITS: [u32; 6] = [0x7_00FF, 0x1_07FF, 0x1_07FF, 0x1_A7FF, 0x1_A7FF, 0x1_00FF];
/// Read-only bits of each LVT entry: delivery status; remote IRR.
const LVT_READ_ONLY: [u32; 6] = [0x1000, 0x1000, 0x1000, 0x5000, 0x5000, 0x1000];
/// Writable bits of the interrupt command register's low half.
const ICR_BITS: u32 = 0xC_CFFF;
/// IA32_APIC_BASE's reserved bits: all but BSP, EXTD, EN and the page number of a 52-bit address.
const BASE_RESERVED: u64 = 0xFFF0_0000_0000_02FF;

impl Lapic {
    /// A read of the xAPIC's page at byte `offset`; of any register, whatever lies in the access.
    pub fn mmio_read(&mut self, offset: u64, now: u64) -> u64 {
        let register = (offset >> 4) as u32 & 0xFF;
        let lane = offset & 0xF;
        // Undefined unless 32-bit and aligned; bytes are given as a bus would, the other three words read 0.
        match self.read(register, now) {
            Some(value) if lane < 4 => u64::from(value) >> (lane * 8),
            Some(_) => 0,
            None => {
                self.error(ESR_REGISTER);
                0
            }
        }
    }

    /// A write of the xAPIC's page: only aligned ones of 32 bits or more do anything.
    pub fn mmio_write(&mut self, offset: u64, width: u8, value: u64, now: u64) -> Outcome {
        if offset & 0xF != 0 || width < 4 {
            return Outcome::Done;
        }
        let register = (offset >> 4) as u32 & 0xFF;
        let value = value as u32;
        match register {
            // Read-only registers ignore writes.
            ID | VERSION | APR | PPR | ISR..=IRR_LAST | CURRENT => Outcome::Done,
            EOI => self.write_eoi(),
            LDR => {
                self.ldr = value & 0xFF00_0000;
                Outcome::Rerouted
            }
            DFR => {
                self.dfr = value | 0x0FFF_FFFF;
                Outcome::Rerouted
            }
            ICR_HIGH => {
                self.icr = u64::from(value & 0xFF00_0000) << 32 | self.icr & 0xFFFF_FFFF;
                Outcome::Done
            }
            ICR => {
                self.icr = self.icr & !0xFFFF_FFFF | u64::from(value & ICR_BITS);
                let [.., id] = self.icr.to_le_bytes();
                self.send(Destination::short(id, value & 1 << 11 != 0))
            }
            TPR | SVR | ESR | LVT..=LVT_LAST | INITIAL | DIVIDE => self.write(register, value, now),
            _ => {
                self.error(ESR_REGISTER);
                Outcome::Done
            }
        }
    }

    /// RDMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    pub fn rdmsr(&mut self, msr: u32, now: u64) -> Result<u64, Gp> {
        match msr {
            map::MSR_APIC_BASE => return Ok(self.base),
            map::MSR_TSC_DEADLINE => {
                self.tick(now);
                return Ok(self.timer.deadline());
            }
            _ => {}
        }
        let register = msr.checked_sub(map::MSR_X2APIC_FIRST).ok_or(Gp)?;
        match register {
            _ if self.mode() != Mode::X2apic => Err(Gp),
            // Not in x2APIC mode, or write-only.
            APR | DFR | ICR_HIGH | EOI | SELF_IPI => Err(Gp),
            ID => Ok(u64::from(self.id)),
            LDR => Ok(u64::from(self.x2apic_ldr())),
            ICR => Ok(self.icr),
            _ => self.read(register, now).map(u64::from).ok_or(Gp),
        }
    }

    /// WRMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    pub fn wrmsr(&mut self, msr: u32, value: u64, now: u64) -> Result<Outcome, Gp> {
        match msr {
            map::MSR_APIC_BASE => return self.write_base(value),
            map::MSR_TSC_DEADLINE => {
                self.set_tsc_deadline(value, now);
                return Ok(Outcome::Done);
            }
            _ => {}
        }
        let register = msr.checked_sub(map::MSR_X2APIC_FIRST).ok_or(Gp)?;
        if self.mode() != Mode::X2apic {
            return Err(Gp);
        }
        if register == ICR {
            if value as u32 & !ICR_BITS != 0 {
                return Err(Gp);
            }
            self.icr = value;
            return Ok(self.send(Destination::long(
                (value >> 32) as u32,
                value & 1 << 11 != 0,
            )));
        }
        let value = u32::try_from(value).map_err(|_| Gp)?;
        let allowed = match register {
            TPR | SELF_IPI => 0xFF,
            EOI | ESR => 0,
            SVR => SVR_BITS,
            LVT..=LVT_LAST => {
                let index = (register - LVT) as usize;
                LVT_BITS.get(index).unwrap_or(&0) | LVT_READ_ONLY.get(index).unwrap_or(&0)
            }
            INITIAL => u32::MAX,
            DIVIDE => 0xB,
            _ => return Err(Gp),
        };
        if value & !allowed != 0 {
            return Err(Gp);
        }
        Ok(match register {
            EOI => self.write_eoi(),
            SELF_IPI => {
                // As an ICR write with the shorthand `self`, fixed, edge (Intel SDM vol. 3, 11.12.11).
                self.fixed_to(Destination::Itself, value as u8)
            }
            _ => self.write(register, value, now),
        })
    }

    /// IA32_APIC_BASE: only the transitions of Intel SDM vol. 3, figure 11-27.
    fn write_base(&mut self, value: u64) -> Result<Outcome, Gp> {
        let (enable, x2apic) = (value & BASE_ENABLE != 0, value & BASE_X2APIC != 0);
        if value & BASE_RESERVED != 0 {
            return Err(Gp);
        }
        let legal = match self.mode() {
            _ if x2apic && !enable => false,
            Mode::Disabled => !x2apic,
            Mode::Xapic => true,
            Mode::X2apic => x2apic || !enable,
        };
        if !legal {
            return Err(Gp);
        }
        let was = self.mode();
        // Which processor is the bootstrap one was decided at power-on.
        self.base = value & !BASE_BSP | self.base & BASE_BSP;
        if !enable && was != Mode::Disabled {
            self.reset();
        }
        if self.mode() == Mode::X2apic && was == Mode::Xapic {
            self.icr &= 0xFFFF_FFFF;
        }
        Ok(Outcome::Rerouted)
    }

    /// Reads a register that both interfaces have, or the xAPIC's view of it; `None` if it is reserved.
    fn read(&mut self, register: u32, now: u64) -> Option<u32> {
        Some(match register {
            ID => self.id << 24,
            VERSION => VERSION_VALUE,
            TPR => u32::from(self.tpr),
            APR => u32::from(self.apr()),
            PPR => u32::from(self.ppr()),
            EOI => 0,
            LDR => self.ldr,
            DFR => self.dfr,
            SVR => self.svr,
            ISR..=ISR_LAST => self.isr.register(register),
            TMR..=TMR_LAST => self.tmr.register(register),
            IRR..=IRR_LAST => {
                self.tick(now);
                self.irr.register(register)
            }
            ESR => self.esr,
            ICR => self.icr as u32,
            ICR_HIGH => (self.icr >> 32) as u32,
            LVT..=LVT_LAST => *self.lvt.get((register - LVT) as usize)?,
            INITIAL => self.timer.initial(),
            CURRENT => {
                self.tick(now);
                self.timer.current(now)
            }
            DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    /// Writes a register that works alike through both interfaces, its reserved bits dropped.
    fn write(&mut self, register: u32, value: u32, now: u64) -> Outcome {
        match register {
            TPR => self.tpr = value as u8,
            SVR => return self.write_svr(value & SVR_BITS, now),
            ESR => self.esr = core::mem::take(&mut self.errors),
            LVT..=LVT_LAST => self.write_lvt((register - LVT) as usize, value, now),
            INITIAL => {
                self.tick(now);
                self.timer.set_initial(value, now);
                self.update_deadline();
            }
            DIVIDE => {
                self.tick(now);
                self.timer.set_divide(value, now);
                self.update_deadline();
            }
            _ => {}
        }
        Outcome::Done
    }

    /// EOI, in either mode.
    #[inline]
    pub fn write_eoi(&mut self) -> Outcome {
        self.end_of_interrupt().map_or(Outcome::Done, Outcome::Eoi)
    }

    fn write_svr(&mut self, value: u32, now: u64) -> Outcome {
        self.tick(now);
        let was = self.svr;
        self.svr = value;
        if value & SVR_ENABLE == 0 {
            // Intel SDM vol. 3, 11.4.7.2: software-disabled, every LVT entry is masked.
            self.lvt.iter_mut().for_each(|entry| *entry |= LVT_MASKED);
            self.update_deadline();
        } else if was & SVR_ENABLE == 0 {
            return Outcome::Enabled;
        }
        Outcome::Rerouted
    }

    fn write_lvt(&mut self, index: usize, value: u32, now: u64) {
        self.tick(now);
        let (Some(entry), Some(bits), Some(read_only)) = (
            self.lvt.get_mut(index),
            LVT_BITS.get(index),
            LVT_READ_ONLY.get(index),
        ) else {
            return;
        };
        *entry = value & bits | *entry & read_only;
        if self.svr & SVR_ENABLE == 0 {
            *entry |= LVT_MASKED;
        }
        if index == Lvt::Timer as usize {
            self.timer.set_mode(TimerMode::from_lvt(value));
            self.update_deadline();
        } else if index == Lvt::Lint0 as usize {
            if value & LVT_LEVEL == 0 {
                self.lvt[Lvt::Lint0 as usize] &= !LVT_REMOTE_IRR;
            }
            self.service_lint0();
        }
    }

    /// Sends what the ICR says, to `destination` unless a shorthand names others (Intel SDM vol. 3, 11.6.1).
    fn send(&mut self, destination: Destination) -> Outcome {
        let destination = match self.icr >> 18 & 3 {
            0 => destination,
            1 => Destination::Itself,
            2 => Destination::All,
            _ => Destination::Others,
        };
        let [vector, ..] = self.icr.to_le_bytes();
        let delivery = Delivery::from_bits(self.icr);
        match delivery {
            Delivery::Fixed => return self.fixed_to(destination, vector),
            // 11.6.1, table 11-3: what a shorthand does not go with.
            Delivery::LowestPriority if vector < 16 => {
                self.error(ESR_SEND_VECTOR);
                return Outcome::Done;
            }
            Delivery::LowestPriority | Delivery::Nmi | Delivery::StartUp
                if matches!(destination, Destination::Itself) =>
            {
                return Outcome::Done;
            }
            // INIT level de-assert synchronises arbitration IDs, which nothing here has.
            Delivery::Init if self.icr & 1 << 14 == 0 && self.icr & 1 << 15 != 0 => {
                return Outcome::Done;
            }
            Delivery::Init if matches!(destination, Destination::Itself | Destination::All) => {
                return Outcome::Done;
            }
            Delivery::External | Delivery::Reserved | Delivery::Smi => return Outcome::Done,
            Delivery::LowestPriority | Delivery::Nmi | Delivery::Init | Delivery::StartUp => {}
        }
        Outcome::Send(Message {
            destination,
            delivery,
            vector,
            level: false,
        })
    }

    /// A fixed, edge-triggered interrupt to `destination`, or an error if its vector is illegal.
    fn fixed_to(&mut self, destination: Destination, vector: u8) -> Outcome {
        if vector < 16 {
            self.error(ESR_SEND_VECTOR);
            return Outcome::Done;
        }
        Outcome::Send(Message {
            destination,
            delivery: Delivery::Fixed,
            vector,
            level: false,
        })
    }
}
