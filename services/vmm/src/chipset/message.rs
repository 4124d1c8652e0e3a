//! Interrupt messages: what the IOAPIC, an MSI or an ICR write sends to local APICs.

/// How a local APIC treats a message (Intel SDM vol. 3, 11.6.1: the delivery mode field, bits 10:8 everywhere).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The vector goes to every destination's IRR.
    Fixed,
    /// The vector goes to the IRR of one destination.
    LowestPriority,
    /// System management interrupt: this platform has none, so it is dropped.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up IPI, its vector the page to start at.
    StartUp,
    /// The vector comes from the 8259 pair.
    External,
    /// Encoding 3, which no agent may send.
    Reserved,
}

impl Delivery {
    /// Decodes bits 10:8 of an ICR, LVT entry, redirection entry or MSI data word.
    pub fn from_bits(register: u64) -> Self {
        match (register >> 8) & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            3 => Self::Reserved,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            _ => Self::External,
        }
    }
}

/// Whom a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A physical APIC ID; the sender's broadcast value is `u32::MAX` whatever its width.
    Physical(u32),
    /// A logical destination, to be matched with the receiver's LDR; broadcast as above.
    Logical(u32),
    /// The sender.
    Itself,
    /// All, the sender included.
    All,
    /// All but the sender.
    Others,
}

impl Destination {
    /// A destination with an 8-bit ID (xAPIC, IOAPIC, MSI), where 0xFF is the broadcast.
    pub fn short(id: u8, logical: bool) -> Self {
        Self::long(if id == 0xFF { u32::MAX } else { u32::from(id) }, logical)
    }

    /// A destination with the x2APIC's 32-bit ID.
    pub fn long(id: u32, logical: bool) -> Self {
        if logical {
            Self::Logical(id)
        } else {
            Self::Physical(id)
        }
    }
}

/// One interrupt message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its receivers.
    pub destination: Destination,
    /// What it does there.
    pub delivery: Delivery,
    /// Interrupt vector, or the start-up page.
    pub vector: u8,
    /// Level-triggered: its EOI is broadcast to the IOAPIC.
    pub level: bool,
}

impl Message {
    /// Decodes a message-signalled interrupt (Intel SDM vol. 3, 11.11); `None` if `address` is not one.
    pub fn from_msi(address: u64, data: u32) -> Option<Self> {
        if address >> 20 != 0xFEE {
            return None;
        }
        let [id, ..] = ((address >> 12) as u32).to_le_bytes();
        let logical = address & 1 << 2 != 0;
        let redirect = address & 1 << 3 != 0;
        let delivery = match Delivery::from_bits(u64::from(data)) {
            Delivery::Fixed if redirect => Delivery::LowestPriority,
            delivery => delivery,
        };
        let [vector, ..] = data.to_le_bytes();
        Some(Self {
            destination: Destination::short(id, logical),
            delivery,
            vector,
            level: data & 1 << 15 != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msi_fields() {
        let message = Message::from_msi(0xFEE0_3000, 0x0041).unwrap();
        assert_eq!(message.destination, Destination::Physical(3));
        assert_eq!(
            (message.delivery, message.vector, message.level),
            (Delivery::Fixed, 0x41, false)
        );
        let message = Message::from_msi(0xFEEF_F00C, 0xC141).unwrap();
        assert_eq!(message.destination, Destination::Logical(u32::MAX));
        assert_eq!(
            (message.delivery, message.level),
            (Delivery::LowestPriority, true)
        );
        let redirected = Message::from_msi(0xFEE0_0008, 0x41).unwrap();
        assert_eq!(redirected.delivery, Delivery::LowestPriority);
        assert_eq!(Message::from_msi(0xFED0_0000, 0x41), None);
        assert_eq!(Message::from_msi(0x1_FEE0_0000, 0x41), None);
    }
}
