//! The server around the device: pages shared with the VMM and a successor; still pure.

use ipc_schema::abi::vm::PortAccess;
use ipc_schema::interrupt_page::{InterruptPage, InterruptWriter};
use ipc_schema::state_page::{Access, StatePage, StateWriter, kind};

use crate::Memory;
use crate::entropy::Generator;
use crate::queue::{self, Broken};
use crate::registers::{Registers, Then};

/// Bytes of the I/O BAR, which is at a multiple of that.
const BAR: u16 = 0x100;
/// Most bytes for one buffer: the guest asks again.
const MOST: u32 = 1024;

/// An entropy source with its surroundings.
pub struct Server<'a, M: Memory> {
    registers: Registers,
    generator: Generator,
    memory: M,
    irq: InterruptWriter<'a>,
    state: StateWriter<'a>,
}

impl<'a, M: Memory> Server<'a, M> {
    /// Takes the pages over from a predecessor, or begins anew. True if there was a predecessor. [`Server::wake`] is to be called next,
    /// and the VMM signalled: the last signals may have been lost.
    #[must_use]
    pub fn new(memory: M, irq: &'a InterruptPage, state: &'a StatePage) -> (Self, bool) {
        let (state, record) = StateWriter::new(state, kind::VIRTIO_RNG);
        let restored = record.and_then(|record| Registers::restore(record.words()));
        let was = restored.is_some();
        let mut server = Self {
            registers: restored.unwrap_or_default(),
            generator: Generator::new(),
            memory,
            irq: InterruptWriter::new(irq),
            state,
        };
        if was && server.registers.running() {
            // The guest may have been promised an interrupt that never came.
            let _ = server.raise(Registers::interrupt);
        }
        (server, was)
    }

    /// Whether random words are wanted: before anything is served.
    pub fn mix(&mut self, words: [u64; 4]) {
        self.generator.mix(words);
    }

    /// A routed access; gives the value of an IN, and whether the VMM is to be signalled.
    pub fn access(&mut self, port: PortAccess, value: u32) -> (u32, bool) {
        self.state.begin();
        let offset = port.port() % BAR;
        let before = self.registers.clone();
        let (answer, then) = if port.input() {
            (self.registers.read(offset, port.width()), Then::Nothing)
        } else {
            (0, self.registers.write(offset, port.width(), value))
        };
        let mut signal = self.irq.set_intx(self.registers.pin());
        if then == Then::Serve {
            signal |= self.serve();
        }
        if self.registers != before {
            let words = self.words();
            self.state.commit(Access::of(port, value), answer, &words);
        }
        (answer, signal)
    }

    /// A doorbell rang, or it is the start; true if the VMM is to be signalled.
    #[must_use]
    pub fn wake(&mut self) -> bool {
        let before = self.registers.clone();
        let signal = self.serve();
        if self.registers != before {
            let words = self.words();
            self.state.save(&words);
        }
        signal
    }

    fn words(&self) -> [u64; 7] {
        let [a, b, c, d, e, f] = self.registers.state();
        [a, b, c, d, e, f, self.registers.more_state()]
    }

    fn serve(&mut self) -> bool {
        if !self.registers.running() {
            return false;
        }
        let generator = &mut self.generator;
        let served = queue::serve(&self.registers.queue, &self.memory, |memory, gpa, len| {
            fill(generator, memory, gpa, len.min(MOST))
        });
        match served {
            Ok(served) if served.interrupt => self.raise(Registers::interrupt),
            Ok(_) => false,
            Err(Broken) => self.raise(Registers::needs_reset),
        }
    }

    fn raise(&mut self, what: impl FnOnce(&mut Registers) -> Option<u16>) -> bool {
        match what(&mut self.registers) {
            Some(vector) => self.irq.set_msi(vector.into()),
            None => self.irq.set_intx(self.registers.pin()),
        }
    }
}

/// Writes `len` random bytes; `None` if they do not all lie in the guest's memory.
fn fill(generator: &mut Generator, memory: &impl Memory, gpa: u64, len: u32) -> Option<u32> {
    let mut done = 0u32;
    while done < len {
        let bytes = generator.block();
        let part = bytes.get(..(len - done).min(64) as usize)?;
        memory.write(gpa.checked_add(done.into())?, part)?;
        done += part.len() as u32;
    }
    // What was given cannot be worked out from what comes.
    generator.mix([0; 4]);
    Some(done)
}
