//! The 8259A pair with edge/level control (Intel 8259A datasheet; EISA specification for the ELCR).

use super::map::{ELCR, PIC_MASTER, PIC_SLAVE};

/// The master's input that the slave drives.
const CASCADE: u8 = 2;
/// Inputs that may be level-triggered: not the timer, keyboard and cascade; not the RTC and the FPU.
const ELCR_WRITABLE: [u8; 2] = [0xF8, 0xDE];

/// What the next write to the data port is, within the initialization sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// No sequence: the interrupt mask.
    Mask,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A.
#[derive(Clone, Debug)]
struct Chip {
    /// Levels of the inputs.
    lines: u8,
    /// Edges latched and not acknowledged.
    edges: u8,
    mask: u8,
    service: u8,
    /// Inputs that are level-triggered.
    elcr: u8,
    /// Vector of input 0.
    base: u8,
    /// The input with the lowest priority; the next one up has the highest.
    lowest: u8,
    expect: Expect,
    single: bool,
    needs_icw4: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    fully_nested: bool,
    read_service: bool,
    poll: bool,
}

impl Chip {
    /// As a PC's firmware leaves it: initialised with `base`, inputs masked as in `mask`.
    fn new(base: u8, mask: u8, elcr: u8) -> Self {
        Self {
            lines: 0,
            edges: 0,
            mask,
            service: 0,
            elcr,
            base,
            lowest: 7,
            expect: Expect::Mask,
            single: false,
            needs_icw4: true,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_mask: false,
            fully_nested: false,
            read_service: false,
            poll: false,
        }
    }

    fn requests(&self) -> u8 {
        self.edges | self.lines & self.elcr
    }

    /// An edge stays latched until it is acknowledged, even if the line drops: a pulse is not lost.
    fn set_line(&mut self, input: u8, level: bool) {
        let bit = 1 << (input & 7);
        if level && self.lines & bit == 0 && self.elcr & bit == 0 {
            self.edges |= bit;
        }
        self.lines = if level {
            self.lines | bit
        } else {
            self.lines & !bit
        };
    }

    /// Inputs from the highest priority to the lowest.
    fn by_priority(&self) -> impl Iterator<Item = u8> + use<> {
        let lowest = self.lowest;
        (1..=8).map(move |step| (lowest + step) & 7)
    }

    /// The input whose interrupt is to be served now; `extra` requests and the cascade included.
    fn output(&self, extra: u8) -> Option<u8> {
        let requests = (self.requests() | extra) & !self.mask;
        if requests == 0 {
            return None;
        }
        let mut blocking = self.service;
        if self.special_mask {
            blocking &= !self.mask;
        }
        if self.fully_nested {
            // The slave's own priorities decide (datasheet, "special fully nested mode").
            blocking &= !(extra_cascade(extra) & requests);
        }
        for input in self.by_priority() {
            let bit = 1 << input;
            if blocking & bit != 0 {
                return None;
            }
            if requests & bit != 0 {
                return Some(input);
            }
        }
        None
    }

    /// INTA for `input`.
    fn acknowledge(&mut self, input: u8) {
        let bit = 1 << (input & 7);
        self.edges &= !bit;
        if !self.auto_eoi {
            self.service |= bit;
        } else if self.rotate_on_auto_eoi {
            self.lowest = input & 7;
        }
    }

    fn end_of_interrupt(&mut self, input: Option<u8>, rotate: bool) {
        // Non-specific: the highest in service (in special mask mode, masked ones are not ended).
        let eligible = if self.special_mask {
            self.service & !self.mask
        } else {
            self.service
        };
        let input = input.or_else(|| self.by_priority().find(|input| eligible & 1 << input != 0));
        if let Some(input) = input {
            self.service &= !(1 << (input & 7));
            if rotate {
                self.lowest = input & 7;
            }
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.start_initialisation(value);
        } else if value & 0x08 != 0 {
            self.write_ocw3(value);
        } else {
            self.write_ocw2(value);
        }
    }

    /// ICW1 (datasheet, "initialization command words"). Its LTIM bit is superseded by the ELCR.
    fn start_initialisation(&mut self, icw1: u8) {
        self.edges = 0;
        self.mask = 0;
        self.service = 0;
        self.lowest = 7;
        self.special_mask = false;
        self.read_service = false;
        self.poll = false;
        self.fully_nested = false;
        self.auto_eoi = false;
        self.rotate_on_auto_eoi = false;
        self.single = icw1 & 2 != 0;
        self.needs_icw4 = icw1 & 1 != 0;
        self.expect = Expect::Icw2;
    }

    fn write_ocw2(&mut self, value: u8) {
        let input = value & 7;
        match value >> 5 {
            0 => self.rotate_on_auto_eoi = false,
            1 => self.end_of_interrupt(None, false),
            3 => self.end_of_interrupt(Some(input), false),
            4 => self.rotate_on_auto_eoi = true,
            5 => self.end_of_interrupt(None, true),
            6 => self.lowest = input,
            7 => self.end_of_interrupt(Some(input), true),
            _ => {}
        }
    }

    fn write_ocw3(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
        self.poll = value & 4 != 0;
        if value & 2 != 0 {
            self.read_service = value & 1 != 0;
        }
    }

    fn write_data(&mut self, value: u8) {
        self.expect = match self.expect {
            Expect::Mask => {
                self.mask = value;
                Expect::Mask
            }
            Expect::Icw2 => {
                self.base = value & 0xF8;
                if !self.single {
                    Expect::Icw3
                } else if self.needs_icw4 {
                    Expect::Icw4
                } else {
                    Expect::Mask
                }
            }
            // The cascade is wired: what ICW3 says cannot change it.
            Expect::Icw3 if self.needs_icw4 => Expect::Icw4,
            Expect::Icw3 => Expect::Mask,
            Expect::Icw4 => {
                self.auto_eoi = value & 2 != 0;
                self.fully_nested = value & 0x10 != 0;
                Expect::Mask
            }
        };
    }

    /// A read of either port; `output` is the input to be served now.
    fn read(&mut self, data: bool, output: Option<u8>, extra: u8) -> u8 {
        if core::mem::take(&mut self.poll) {
            // Datasheet, "poll command": the read is the acknowledge.
            return output.map_or(0, |input| {
                self.acknowledge(input);
                0x80 | input
            });
        }
        if data {
            self.mask
        } else if self.read_service {
            self.service
        } else {
            self.requests() | extra
        }
    }
}

/// The cascade's bit of a master's extra requests.
fn extra_cascade(extra: u8) -> u8 {
    extra & 1 << CASCADE
}

/// The pair, the slave on the master's input 2.
#[derive(Clone, Debug)]
pub struct Pic {
    master: Chip,
    slave: Chip,
    /// The vector that an INTA cycle would give now.
    output: Option<u8>,
}

impl Pic {
    /// As a PC's firmware leaves it: vectors 0x08 and 0x70, all inputs but the cascade masked, `level_irqs` in the ELCR.
    pub fn new(level_irqs: u16) -> Self {
        let [low, high] = level_irqs.to_le_bytes();
        Self {
            master: Chip::new(0x08, !(1 << CASCADE), low & ELCR_WRITABLE[0]),
            slave: Chip::new(0x70, 0xFF, high & ELCR_WRITABLE[1]),
            output: None,
        }
    }

    /// The master's requests that come from the slave.
    fn cascade(&self) -> u8 {
        u8::from(self.slave.output(0).is_some()) << CASCADE
    }

    fn update(&mut self) {
        self.output = self
            .master
            .output(self.cascade())
            .map(|input| match self.slave.output(0) {
                Some(slave) if input == CASCADE => self.slave.base | slave,
                _ => self.master.base | input,
            });
    }

    /// Sets the level of ISA interrupt `irq`; the cascade's and those above 15 do not exist. True if INTR may have changed: not by an
    /// input that is masked, whose request is only latched.
    pub fn set_line(&mut self, irq: u8, level: bool) -> bool {
        let (chip, input) = match irq {
            CASCADE | 16.. => return false,
            0..8 => (&mut self.master, irq),
            8..16 => (&mut self.slave, irq - 8),
        };
        chip.set_line(input, level);
        let seen = chip.mask & 1 << input == 0;
        if seen {
            self.update();
        }
        seen
    }

    /// Whether an edge of ISA interrupt `irq` comes no further than the request register: it is masked there and edge-triggered, or does
    /// not exist.
    pub fn only_latches(&self, irq: u32) -> bool {
        self.input(irq)
            .is_none_or(|(chip, bit)| chip.mask & bit != 0 && chip.elcr & bit == 0)
    }

    /// The level of an input that [`Pic::only_latches`].
    #[inline]
    pub fn set_level(&mut self, irq: u32, level: bool) {
        if let Some((chip, bit)) = self.input_mut(irq) {
            chip.lines = if level {
                chip.lines | bit
            } else {
                chip.lines & !bit
            };
        }
    }

    /// An edge of an input that [`Pic::only_latches`].
    #[inline]
    pub fn latch(&mut self, irq: u32) {
        if let Some((chip, bit)) = self.input_mut(irq) {
            chip.edges |= bit;
        }
    }

    /// The chip and bit of ISA interrupt `irq`.
    fn input(&self, irq: u32) -> Option<(&Chip, u8)> {
        match irq {
            0..8 => Some((&self.master, 1 << irq)),
            8..16 => Some((&self.slave, 1 << (irq - 8))),
            _ => None,
        }
    }

    #[inline]
    fn input_mut(&mut self, irq: u32) -> Option<(&mut Chip, u8)> {
        match irq {
            0..8 => Some((&mut self.master, 1 << irq)),
            8..16 => Some((&mut self.slave, 1 << (irq - 8))),
            _ => None,
        }
    }

    /// The vector of the interrupt to be served now: INTR is asserted.
    #[inline]
    pub fn pending(&self) -> Option<u8> {
        self.output
    }

    /// The processor took `vector`, as [`Pic::pending`] gave it: the INTA cycle. If something more urgent came up
    /// since, the interrupt that was delivered is the one acknowledged.
    pub fn accept(&mut self, vector: u8) {
        let (base, input) = (vector & 0xF8, vector & 7);
        let from_slave = match self.output {
            Some(now) if now == vector => {
                self.master.output(self.cascade()) == Some(CASCADE)
                    && self.slave.output(0).is_some()
            }
            _ => base == self.slave.base && base != self.master.base,
        };
        if from_slave {
            self.slave.acknowledge(input);
            self.master.acknowledge(CASCADE);
        } else if base == self.master.base {
            self.master.acknowledge(input);
        }
        self.update();
    }

    /// Whether ISA interrupt `irq` is masked, here or at the cascade.
    pub fn masked(&self, irq: u8) -> bool {
        if irq < 8 {
            self.master.mask & 1 << irq != 0
        } else {
            self.slave.mask & 1 << (irq & 7) != 0 || self.master.mask & 1 << CASCADE != 0
        }
    }

    /// Reads one of the pair's ports.
    pub fn read(&mut self, port: u16) -> u8 {
        const MASTER_DATA: u16 = PIC_MASTER + 1;
        const SLAVE_DATA: u16 = PIC_SLAVE + 1;
        const ELCR_SLAVE: u16 = ELCR + 1;
        let value = match port {
            PIC_MASTER | MASTER_DATA => {
                let cascade = self.cascade();
                let output = self.master.output(cascade);
                self.master.read(port == MASTER_DATA, output, cascade)
            }
            PIC_SLAVE | SLAVE_DATA => {
                let output = self.slave.output(0);
                self.slave.read(port == SLAVE_DATA, output, 0)
            }
            ELCR => return self.master.elcr,
            ELCR_SLAVE => return self.slave.elcr,
            _ => return 0xFF,
        };
        self.update();
        value
    }

    /// Writes one of the pair's ports.
    pub fn write(&mut self, port: u16, value: u8) {
        const MASTER_DATA: u16 = PIC_MASTER + 1;
        const SLAVE_DATA: u16 = PIC_SLAVE + 1;
        const ELCR_SLAVE: u16 = ELCR + 1;
        match port {
            PIC_MASTER => self.master.write_command(value),
            MASTER_DATA => self.master.write_data(value),
            PIC_SLAVE => self.slave.write_command(value),
            SLAVE_DATA => self.slave.write_data(value),
            ELCR => set_elcr(&mut self.master, value & ELCR_WRITABLE[0]),
            ELCR_SLAVE => set_elcr(&mut self.slave, value & ELCR_WRITABLE[1]),
            _ => return,
        }
        self.update();
    }
}

/// An input that becomes level-triggered forgets its edges.
fn set_elcr(chip: &mut Chip, value: u8) {
    chip.elcr = value;
    chip.edges &= !value;
}

#[cfg(test)]
mod tests;
