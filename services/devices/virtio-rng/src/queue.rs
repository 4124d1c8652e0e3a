//! A split virtqueue (virtio 1.2, 2.7), served in order.

use crate::Memory;
use crate::registers::Queue;

/// Descriptor: another follows.
const NEXT: u16 = 1;
/// Descriptor: the device writes.
const WRITE: u16 = 2;
/// Descriptor: a table of descriptors; not negotiated.
const INDIRECT: u16 = 4;
/// Available ring: no interrupt, please.
const NO_INTERRUPT: u16 = 1;

/// What the guest has given makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// What came of a look at the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Requests.
    pub requests: u32,
    /// The guest wants an interrupt for them.
    pub interrupt: bool,
}

fn read_u16(memory: &impl Memory, gpa: u64) -> Result<u16, Broken> {
    let mut bytes = [0; 2];
    memory.read(gpa, &mut bytes).ok_or(Broken)?;
    Ok(u16::from_le_bytes(bytes))
}

/// Fills every request that is there with what `fill` gives: for each writable buffer it is asked, with its address, for so many bytes
/// at most, and says how many it has written.
pub fn serve<M: Memory>(
    queue: &Queue,
    memory: &M,
    mut fill: impl FnMut(&M, u64, u32) -> Option<u32>,
) -> Result<Served, Broken> {
    let mut served = Served::default();
    if !queue.ready() {
        return Ok(served);
    }
    let (size, available, used) = (queue.size, queue.driver, queue.device);
    let end = read_u16(memory, at(available, 2)?)?;
    let mut next = read_u16(memory, at(used, 2)?)?;
    if end.wrapping_sub(next) > size {
        return Err(Broken);
    }
    while next != end {
        let slot = u64::from(next % size);
        let head = read_u16(memory, at(available, 4 + 2 * slot)?)?;
        let written = chain(queue, memory, head, &mut fill)?;
        let mut element = [0; 8];
        element[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        element[4..].copy_from_slice(&written.to_le_bytes());
        memory
            .write(at(used, 4 + 8 * slot)?, &element)
            .ok_or(Broken)?;
        next = next.wrapping_add(1);
        // Behind the element, in this order.
        memory
            .write(at(used, 2)?, &next.to_le_bytes())
            .ok_or(Broken)?;
        served.requests += 1;
    }
    if served.requests > 0 {
        memory.fence();
        served.interrupt = read_u16(memory, available)? & NO_INTERRUPT == 0;
    }
    Ok(served)
}

fn at(base: u64, offset: u64) -> Result<u64, Broken> {
    base.checked_add(offset).ok_or(Broken)
}

/// Fills one chain; how many bytes were written.
fn chain<M: Memory>(
    queue: &Queue,
    memory: &M,
    head: u16,
    fill: &mut impl FnMut(&M, u64, u32) -> Option<u32>,
) -> Result<u32, Broken> {
    let mut written = 0u32;
    let mut index = head;
    // No chain is longer than the queue: one that is loops.
    for _ in 0..queue.size {
        if index >= queue.size {
            return Err(Broken);
        }
        let mut bytes = [0; 16];
        let place = at(queue.descriptors, 16 * u64::from(index))?;
        memory.read(place, &mut bytes).ok_or(Broken)?;
        let [address, rest] = [0, 8].map(|i| {
            let mut word = [0; 8];
            word.copy_from_slice(bytes.get(i..i + 8).unwrap_or(&[0; 8]));
            u64::from_le_bytes(word)
        });
        let (len, flags, next) = (rest as u32, (rest >> 32) as u16, (rest >> 48) as u16);
        if flags & INDIRECT != 0 {
            return Err(Broken);
        }
        if flags & WRITE != 0 {
            let more = fill(memory, address, len).ok_or(Broken)?;
            written = written.checked_add(more.min(len)).ok_or(Broken)?;
            if more < len {
                // A part is as good: nothing may be left out in between.
                return Ok(written);
            }
        }
        if flags & NEXT == 0 {
            return Ok(written);
        }
        index = next;
    }
    Err(Broken)
}
