//! The page through which payloads and capabilities go in and out of the first thread's messages.
//!
//! Nothing hands out a reference to it, for the kernel writes to it in each system call: every access is a copy.

use core::mem::MaybeUninit;
use core::ptr;

use ipc_schema::abi::{CapTransfer, Tag, Utcb};
use serde::{Serialize, de::DeserializeOwned};

#[cfg(target_os = "none")]
fn page() -> *mut Utcb {
    ptr::with_exposed_provenance_mut(ipc_schema::abi::layout::UTCB as usize)
}

/// On the host a page of memory stands in for the UTCB, one a thread, so that tests can run side by side.
#[cfg(not(target_os = "none"))]
fn page() -> *mut Utcb {
    std::thread_local!(static PAGE: *mut Utcb = Box::leak(Box::new(MaybeUninit::<Utcb>::zeroed())).as_mut_ptr());
    PAGE.with(|p| *p)
}

fn payload() -> *mut u8 {
    // Stays within the page, by the layout of `Utcb`.
    page().cast::<u8>().wrapping_add(Utcb::PAYLOAD_OFFSET)
}

/// Copies `bytes` to the payload at `offset`; `None` if they do not fit.
#[inline]
pub fn write_at(offset: usize, bytes: &[u8]) -> Option<()> {
    if offset.checked_add(bytes.len())? > Utcb::PAYLOAD {
        return None;
    }
    // SAFETY: the range is within the payload, which the kernel keeps mapped as long as this thread lives; no Rust
    // reference points into the UTCB, so `bytes` cannot overlap it.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), payload().add(offset), bytes.len()) };
    Some(())
}

/// Copies `bytes` to the payload; `None` if they do not fit.
#[inline]
pub fn write(bytes: &[u8]) -> Option<()> {
    write_at(0, bytes)
}

/// Copies from the start of the payload; at most [`Utcb::PAYLOAD`] bytes, answers how many.
#[inline]
pub fn read(into: &mut [u8]) -> usize {
    let len = into.len().min(Utcb::PAYLOAD);
    // SAFETY: the range is within the payload (as in `write_at`), and `into` is a Rust slice, so not part of the UTCB.
    unsafe { ptr::copy_nonoverlapping(payload(), into.as_mut_ptr(), len) };
    len
}

/// Calls `f` with a copy of the first `len` bytes of the payload.
pub fn with_payload<T>(len: usize, f: impl FnOnce(&[u8]) -> T) -> T {
    let mut buffer = [const { MaybeUninit::<u8>::uninit() }; Utcb::PAYLOAD];
    let len = len.min(Utcb::PAYLOAD);
    // SAFETY: `len` bytes are within the payload and within `buffer`; they are initialised by the copy, so that a
    // slice of exactly these may be made.
    let bytes = unsafe {
        let start = buffer.as_mut_ptr().cast::<u8>();
        ptr::copy_nonoverlapping(payload(), start, len);
        core::slice::from_raw_parts(start, len)
    };
    f(bytes)
}

/// Writes straight to the payload, without a buffer between.
struct Writer(usize);

impl postcard::ser_flavors::Flavor for Writer {
    type Output = usize;

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.try_extend(&[byte])
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        write_at(self.0, bytes).ok_or(postcard::Error::SerializeBufferFull)?;
        self.0 += bytes.len();
        Ok(())
    }

    fn finalize(self) -> postcard::Result<usize> {
        Ok(self.0)
    }
}

/// Encodes a value into the payload; answers its length in bytes.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<usize, postcard::Error> {
    postcard::serialize_with_flavor(value, Writer(0))
}

/// Decodes a value from the first `len` bytes of the payload. Bytes left over are an error.
pub fn decode<T: DeserializeOwned>(len: usize) -> Result<T, postcard::Error> {
    with_payload(len, |bytes| match postcard::take_from_bytes(bytes)? {
        (value, []) => Ok(value),
        _ => Err(postcard::Error::DeserializeBadEncoding),
    })
}

/// Puts the capabilities that the next message carries; at most four, answers how many were put.
#[inline]
pub fn set_send(caps: &[CapTransfer]) -> usize {
    // SAFETY: taking the address of a field of the UTCB, which stays mapped.
    let send = unsafe { &raw mut (*page()).send }.cast::<CapTransfer>();
    let count = caps.len().min(4);
    for (i, cap) in caps.iter().take(count).enumerate() {
        // SAFETY: i < 4, within `send`.
        unsafe { send.add(i).write_volatile(*cap) };
    }
    count
}

/// Opens `count` empty slots from `first` on for capabilities that come with messages; 0 refuses them.
pub fn set_receive(first: u32, count: u32) {
    // SAFETY: fields of the UTCB, which stays mapped.
    unsafe {
        (&raw mut (*page()).recv_slot).write_volatile(first);
        (&raw mut (*page()).recv_count).write_volatile(count);
    }
}

/// Copies the payload that `tag` announces from another thread's UTCB to this one's; no capabilities come with it.
///
/// # Safety
///
/// `other` is the UTCB of a thread of this Space, which neither that thread nor the kernel uses meanwhile.
pub(crate) unsafe fn take_from(other: *const Utcb, tag: Tag) {
    let len = tag.payload().min(Utcb::PAYLOAD);
    // SAFETY: `len` bytes are within both payloads, which are those of two pages.
    unsafe {
        let from = other.cast::<u8>().wrapping_add(Utcb::PAYLOAD_OFFSET);
        ptr::copy_nonoverlapping(from, payload(), len);
        (&raw mut (*page()).received).write_volatile(0);
    }
}

/// Copies the payload and the capabilities to be sent that `tag` announces from this thread's UTCB to another's.
///
/// # Safety
///
/// As [`take_from`].
pub(crate) unsafe fn give_to(other: *mut Utcb, tag: Tag) {
    let len = tag.payload().min(Utcb::PAYLOAD);
    // SAFETY: as in `take_from`; `send` is a field of both pages.
    unsafe {
        let to = other.cast::<u8>().wrapping_add(Utcb::PAYLOAD_OFFSET);
        ptr::copy_nonoverlapping(payload(), to, len);
        if tag.caps() > 0 {
            (&raw mut (*other).send).write((&raw const (*page()).send).read());
        }
    }
}

/// How many capabilities came with the last message.
#[must_use]
pub fn received() -> u64 {
    // SAFETY: a field of the UTCB, which stays mapped.
    unsafe { (&raw const (*page()).received).read_volatile() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_pass_through_the_payload() {
        let len = encode(&(7u32, "seven")).unwrap();
        assert_eq!(decode::<(u32, String)>(len).unwrap(), (7, "seven".into()));
        assert!(decode::<(u32, String)>(len - 1).is_err());
        write_at(len, &[0]).unwrap();
        assert!(decode::<(u32, String)>(len + 1).is_err(), "bytes left over");
    }

    #[test]
    fn nothing_beyond_the_payload() {
        assert!(encode(&[0u8; Utcb::PAYLOAD][..]).is_err());
        assert_eq!(write_at(Utcb::PAYLOAD, &[1]), None);
        assert_eq!(write_at(usize::MAX, &[1]), None);
        assert_eq!(write_at(Utcb::PAYLOAD - 1, &[1]), Some(()));
        let mut big = [0; 4000];
        assert_eq!(read(&mut big), Utcb::PAYLOAD);
        assert_eq!(big[Utcb::PAYLOAD - 1], 1);
        assert_eq!(with_payload(usize::MAX, <[u8]>::len), Utcb::PAYLOAD);
    }

    #[test]
    fn at_most_four_capabilities() {
        assert_eq!(set_send(&[CapTransfer::default(); 6]), 4);
    }
}
