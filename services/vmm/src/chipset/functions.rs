//! PCI functions seen by the platform: what their configuration and their devices' signals do to everything else.

use super::pci::{Access, Function, PIRQS, Through};
use super::{Chipset, Effect, map, width_mask};
use ipc_schema::interrupt_page::Pin;
use ipc_schema::manifest::PortRange;

/// What became of an access of configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Configured {
    /// It is done: the value read, and what it asks for.
    Done(u32, Effect),
    /// It is one of the registers of this function, through a window.
    Through(usize, Through),
}

impl Chipset {
    /// An access of configuration space, a write if there is a value.
    pub fn configure(&mut self, access: Access, value: Option<u32>) -> Configured {
        match (self.pci.through(access), value) {
            (Some((_, None)), _) => Configured::Done(u32::MAX, Effect::None),
            (Some((function, Some(through))), _) => {
                self.configure_through(function, through, value)
            }
            (None, None) => Configured::Done(self.pci.read(access), Effect::None),
            (None, Some(value)) => {
                let changed = self.pci.write(access, value);
                let mut effect = Effect::None;
                if changed.interrupts {
                    effect = self.functions_changed();
                }
                if changed.ranges {
                    effect = Effect::Ranges;
                }
                Configured::Done(0, effect)
            }
        }
    }

    fn configure_through(
        &mut self,
        function: usize,
        through: Through,
        value: Option<u32>,
    ) -> Configured {
        let Through { bar, offset, width } = through;
        let table = self.pci.function_mut(function).and_then(|f| f.table(bar));
        if table.is_none() {
            return Configured::Through(function, through);
        }
        match value {
            None => Configured::Done(self.table_read(function, bar, offset, width), Effect::None),
            Some(value) => {
                Configured::Done(0, self.table_write(function, bar, offset, width, value))
            }
        }
    }

    /// Reads `width` bytes, within a doubleword, at `offset` of the MSI-X BAR of a function; ones if `bar` is another.
    pub fn table_read(&mut self, function: usize, bar: u8, offset: u32, width: u8) -> u32 {
        let table = self.pci.function_mut(function).and_then(|f| f.table(bar));
        let word = table.map_or(u32::MAX, |table| table.read(offset));
        word >> ((offset & 3) * 8) & width_mask(width)
    }

    /// Writes there.
    pub fn table_write(
        &mut self,
        function: usize,
        bar: u8,
        offset: u32,
        width: u8,
        value: u32,
    ) -> Effect {
        let Some(table) = self.pci.function_mut(function).and_then(|f| f.table(bar)) else {
            return Effect::None;
        };
        let shift = (offset & 3) * 8;
        table.write(offset & !3, value << shift, width_mask(width) << shift);
        self.functions_changed()
    }

    /// The server of a function has signalled these MSI-X vectors, and its pin is so now.
    pub fn function_signals(&mut self, function: usize, vectors: u64, pin: Pin) {
        let Some(f) = self.pci.function_mut(function) else {
            return;
        };
        f.signal(vectors, pin);
        self.send_messages(function);
        self.update_pirqs();
    }

    /// Sends what a function may send.
    fn send_messages(&mut self, function: usize) {
        while let Some((address, data)) = self
            .pci
            .function_mut(function)
            .and_then(Function::take_message)
        {
            self.msi(address, data);
        }
    }

    /// What functions may send, or which pins assert, may have changed.
    fn functions_changed(&mut self) -> Effect {
        for function in 0..self.pci.count() {
            self.send_messages(function);
        }
        self.update_pirqs();
        self.next_effect()
    }

    /// Drives the lines of the functions' pins.
    fn update_pirqs(&mut self) {
        let now = self.pci.lines();
        let was = core::mem::replace(&mut self.pci.asserted, now);
        if now == was {
            return;
        }
        for line in (0..PIRQS).filter(|line| (now ^ was) & 1 << line != 0) {
            self.set_line(map::PIRQ_GSI + line, now & 1 << line != 0);
        }
        if let (Some(irq), true) = (self.pci.irq, (now != 0) != (was != 0)) {
            self.set_line(irq.into(), now != 0);
        }
    }

    /// Leads all pins to an input of the 8259 pair too, level-triggered, as firmware would.
    pub fn route_pirqs(&mut self, irq: u8) {
        let port = map::ELCR + u16::from(irq >> 3 & 1);
        let elcr = self.pic.read(port) | 1 << (irq & 7);
        self.pic.write(port, elcr);
        self.pci.irq = Some(irq);
    }

    /// Ports that function `number` answers.
    pub fn function_ports(&self, number: usize) -> Option<PortRange> {
        self.pci.ports(number)
    }
}
