//! The console behind its registers; still pure.
//!
//! It works in turns. Each moves what can be moved, so that nobody sees it: bytes into rings and buffers, entries into used rings. Then
//! it commits to the state page where all rings and queues are, with the registers and what each port's driver knows. Then it publishes
//! them, interrupts the guest and signals the manager. A successor takes the commit for what has happened and publishes it.

use alloc::vec::Vec;

use ipc_schema::abi::NEVER;
use ipc_schema::manifest::Ports;
use ipc_schema::state_page::kind;
use ipc_schema::virtio::{CONSOLE, feature::RING_PACKED};
use virtio::device::{Kind, Pages};
use virtio::{Device, Error, Model};

use crate::control::{self, HEADER, Message};
use crate::port::{BATCH, Pause, Port, Rings};
use crate::{Size, feature};

/// Most descriptors of a queue.
pub const MAX_SIZE: u16 = 128;
/// Queues of control messages: to the driver, from the driver.
const TO_DRIVER: u16 = 2;
const FROM_DRIVER: u16 = 3;
/// Offset of `emerg_wr` in the configuration (5.3.4).
const EMERGENCY: u16 = 8;
/// Turns before calls are served first: a guest or a manager that works at the same time could keep us for ever.
const TURNS: usize = 16;
/// Words a port takes of the state.
const PORT_WORDS: usize = 2;

const FEATURES: u64 =
    virtio::device::FEATURES | feature::SIZE | feature::MULTIPORT | feature::EMERG_WRITE;

/// A port's queues: what it receives, what it sends.
const fn queues_of(port: u16) -> [u16; 2] {
    if port == 0 {
        return [0, 1];
    }
    [2 * port + 2, 2 * port + 3]
}

/// What the console is made of.
pub struct Parts<'a> {
    /// Its ports.
    pub ports: &'a Ports,
    /// Its guest takes rows before columns.
    pub rows_first: bool,
    /// Packed virtqueues are offered.
    pub packed: bool,
    /// What it shares with the guest, the VMM and a successor.
    pub pages: Pages<'a>,
    /// The rings of each port.
    pub rings: &'a [Rings<'a>],
}

/// A console with its surroundings; its back end is the manager.
pub type Server<'a> = virtio::Server<'a, Console<'a>>;

/// What goes on between the queues and the rings.
pub struct Console<'a> {
    names: &'a Ports,
    rows_first: bool,
    rings: &'a [Rings<'a>],
    ports: Vec<Port<'a>>,
    /// The window's size, as the guest can read it, and the configuration that says so.
    size: Size,
    image: [u8; CONSOLE.config_len as usize],
    /// There is more to do at once.
    more: bool,
}

/// What each port waits for; nothing where no queue is served.
type Waits = Vec<[Option<Pause>; 2]>;

/// Takes the pages over from a predecessor, or begins anew. True if there was a predecessor.
#[must_use]
pub fn begin<'a>(parts: &Parts<'a>) -> (Server<'a>, bool) {
    // As many as ports have names, of which there are few.
    let queues = queues_of(parts.rings.len() as u16)[0];
    let kind = Kind {
        record: kind::VIRTIO_CONSOLE,
        features: FEATURES & !if parts.packed { 0 } else { RING_PACKED },
        queues,
        max_size: MAX_SIZE,
    };
    let mut console = Console {
        names: parts.ports,
        rows_first: parts.rows_first,
        rings: parts.rings,
        ports: parts.rings.iter().map(Port::new).collect(),
        size: Size::default(),
        image: [0; CONSOLE.config_len as usize],
        more: false,
    };
    console.describe();
    Server::new(&kind, parts.pages, console)
}

impl<'a> Model<'a> for Console<'a> {
    const KEEPS: bool = true;

    fn config(&self) -> &[u8] {
        &self.image
    }

    fn write_config(&mut self, offset: u16, value: u32) {
        if let Some(port) = self.ports.first_mut().filter(|_| offset == EMERGENCY) {
            port.emergency(value as u8);
        }
        step();
    }

    fn words(&self) -> Vec<u64> {
        let mut words = Vec::from([u64::from(self.size.note())]);
        words.extend(self.ports.iter().flat_map(Port::words));
        words
    }

    fn restore(&mut self, words: &[u64]) -> bool {
        self.take(words, Port::resume)
    }

    fn restore_configuration(&mut self, words: &[u64]) -> bool {
        self.take(words, Port::begin_again)
    }

    fn lasts(word: usize) -> u64 {
        match word.checked_sub(1).map(|word| word % PORT_WORDS) {
            Some(0) => 0,
            Some(_) => 0xFFFF_FFFF << 32,
            None => u64::MAX,
        }
    }

    fn committed(&mut self, device: &mut Device<'a>) {
        step();
        self.publish(device);
    }

    fn serve(&mut self, device: &mut Device<'a>) -> Result<(), Error> {
        for _ in 0..TURNS {
            if !self.turn(device)? {
                self.more = false;
                return Ok(());
            }
        }
        self.more = true;
        Ok(())
    }

    fn forget(&mut self, queue: Option<u16>) {
        for (number, port) in (0..).zip(&mut self.ports) {
            match queue {
                None => port.reset(),
                Some(queue) if queues_of(number)[1] == queue => port.forget_sending(),
                Some(_) => {}
            }
        }
    }
}

impl<'a> Console<'a> {
    /// Until when to wait (absolute TSC).
    #[must_use]
    pub const fn deadline(&self) -> u64 {
        if self.more { 0 } else { NEVER }
    }

    /// Takes what a predecessor has committed; false, and nothing taken, if it makes no sense.
    fn take(
        &mut self,
        words: &[u64],
        port: impl Fn(&Rings<'a>, [u64; PORT_WORDS]) -> Option<Port<'a>>,
    ) -> bool {
        let Some((&size, ports)) = words.split_first() else {
            return false;
        };
        let (ports, rest) = ports.as_chunks::<PORT_WORDS>();
        if ports.len() != self.rings.len() || !rest.is_empty() || size >> 32 != 0 {
            return false;
        }
        let ports = self.rings.iter().zip(ports);
        let ports = ports.map(|(rings, &words)| port(rings, words));
        let Some(ports) = ports.collect() else {
            return false;
        };
        self.ports = ports;
        self.size = Size::from_note(size as u32);
        self.describe();
        true
    }

    /// Writes the configuration (5.3.4).
    fn describe(&mut self) {
        let size = self.size.note().to_le_bytes();
        let ports = (self.ports.len() as u32).to_le_bytes();
        for (to, from) in self.image.iter_mut().zip(size.into_iter().chain(ports)) {
            *to = from;
        }
    }

    /// One turn; true if there may be more to do already.
    fn turn(&mut self, device: &mut Device<'a>) -> Result<bool, Error> {
        self.look_at_size(device);
        let running = device.running();
        let waits = if running {
            self.work(device)?
        } else {
            Waits::new()
        };
        device.commit(&self.words());
        step();
        // In a device that is lost, or does not drive, there is nothing to publish but in rings.
        let queues = if running {
            queues_of(self.ports.len() as u16)[0]
        } else {
            0
        };
        for queue in 0..queues {
            device.publish(queue)?;
            step();
        }
        self.publish(device);
        if running {
            return self.sleep(device, &waits);
        }
        Ok(false)
    }

    /// The manager may have told another size.
    fn look_at_size(&mut self, device: &mut Device<'a>) {
        let size = self.ports.first().map(|port| Size::from_note(port.note()));
        let Some(size) = size.filter(|&size| size != self.size) else {
            return;
        };
        self.size = size;
        self.describe();
        if let Some(port) = self.ports.first_mut() {
            port.status.resized();
        }
        if device.running() && device.features() & feature::SIZE != 0 {
            device.config_changed();
        }
    }

    /// Moves what can be moved.
    fn work(&mut self, device: &mut Device<'a>) -> Result<Waits, Error> {
        let multiport = multiport(device);
        if multiport {
            self.hear(device)?;
            self.tell(device)?;
        }
        let memory = device.memory();
        let mut waits = Waits::new();
        for (number, port) in (0..).zip(&mut self.ports) {
            let [to, from] = queues_of(number);
            let used = number == 0 || multiport;
            let sent = match device.queue(from) {
                Some(queue) if used => Some(port.send(queue, memory)?),
                _ => None,
            };
            // A driver of several ports says when it reads one.
            let reads = used && (!multiport || port.status.open());
            let received = match device.queue(to) {
                Some(queue) if reads => Some(port.receive(queue, memory)?),
                _ => None,
            };
            waits.push([sent, received]);
            step();
        }
        Ok(waits)
    }

    /// Hears the driver's control messages.
    fn hear(&mut self, device: &mut Device<'a>) -> Result<(), Error> {
        let memory = device.memory();
        let Some(queue) = device.queue(FROM_DRIVER) else {
            return Ok(());
        };
        for _ in 0..BATCH {
            let Some(mut chain) = queue.pop()? else {
                return Ok(());
            };
            let mut bytes = [0; HEADER];
            let mut have = 0;
            for part in &mut chain {
                let part = part?;
                let rest = bytes.get_mut(have..).unwrap_or(&mut []);
                let len = rest.len().min(part.len as usize);
                if !part.writable {
                    memory.read(part.gpa, rest.get_mut(..len).unwrap_or(&mut []))?;
                    have += len;
                }
            }
            queue.complete(chain.token(), 0)?;
            let due = queue.must_publish();
            if have == HEADER {
                self.heard(Message::from_bytes(bytes));
            }
            if due {
                return Ok(());
            }
        }
        Ok(())
    }

    fn heard(&mut self, message: Message) {
        if message.event == control::event::DEVICE_READY {
            if message.value == 1 {
                self.ports.iter_mut().for_each(|p| p.status.announce());
            }
            return;
        }
        let number = usize::try_from(message.port).unwrap_or(usize::MAX);
        if let Some(port) = self.ports.get_mut(number) {
            port.status.heard(message, number == 0);
        }
    }

    /// Tells the driver what it is owed, as far as it has given buffers.
    fn tell(&mut self, device: &mut Device<'a>) -> Result<(), Error> {
        let memory = device.memory();
        while let Some((number, event)) = self.owed(device) {
            let names = self.names.names();
            let name = names.get(number).map_or("", |name| name.as_str());
            let (bytes, len) =
                control::message(number as u32, event, name, self.size, self.rows_first);
            let Some(queue) = device.queue(TO_DRIVER) else {
                return Ok(());
            };
            let Some(mut chain) = queue.pop()? else {
                return Ok(());
            };
            let mut rest = bytes.get(..len).unwrap_or(&[]);
            for part in &mut chain {
                let part = part?;
                if part.writable {
                    let (now, later) = rest.split_at(rest.len().min(part.len as usize));
                    memory.write(part.gpa, now)?;
                    rest = later;
                }
            }
            if !rest.is_empty() {
                return Err(Error::Length);
            }
            queue.complete(chain.token(), len as u32)?;
            let due = queue.must_publish();
            if let Some(port) = self.ports.get_mut(number) {
                port.status.told(event);
            }
            if due {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The next message that the driver is owed: port and event.
    fn owed(&self, device: &Device<'a>) -> Option<(usize, u16)> {
        let sized = device.features() & feature::SIZE != 0;
        let size = if sized { self.size } else { Size::default() };
        let mut ports = self.ports.iter().enumerate();
        ports.find_map(|(number, port)| Some((number, port.status.next(size)?)))
    }

    /// Tells everybody that we sleep; true if there is more to do.
    fn sleep(&self, device: &mut Device<'a>, waits: &Waits) -> Result<bool, Error> {
        let mut more = false;
        let mut numbers = Vec::new();
        if multiport(device) {
            numbers.push(FROM_DRIVER);
            if self.owed(device).is_some() {
                numbers.push(TO_DRIVER);
            }
        }
        for ((number, port), &[sending, receiving]) in (0..).zip(&self.ports).zip(waits) {
            let [to, from] = queues_of(number);
            match sending {
                Some(Pause::NoBuffer) => numbers.push(from),
                Some(Pause::Ring) => more |= !port.sleep_for_room(),
                Some(Pause::More) => more = true,
                None => {}
            }
            match receiving {
                Some(Pause::NoBuffer) => numbers.push(to),
                Some(Pause::Ring) => more |= !port.sleep_for_bytes(),
                Some(Pause::More) => more = true,
                None => {}
            }
        }
        for number in numbers {
            if let Some(queue) = device.queue(number) {
                more |= queue.arm()?;
            }
        }
        Ok(more)
    }

    /// What has been committed happens to the rings.
    fn publish(&mut self, device: &mut Device<'a>) {
        for port in &mut self.ports {
            port.publish();
            step();
            device.signal_peer(port.needs_signal());
        }
    }
}

/// The driver knows of several ports.
fn multiport(device: &Device<'_>) -> bool {
    device.features() & feature::MULTIPORT != 0
}

/// Between two things that others see: where tests let the server die.
#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn step() {}
#[cfg(test)]
pub(crate) use crate::tests::step;
