//! The disk's pages and its image, and the copies between them and the guest.

use alloc::vec::Vec;
use ipc_schema::disk::{BLOCK, Base};
use virtio::{Error, Memory};

const PAGE: usize = BLOCK as usize;

/// A run of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Guest-physical address.
    pub gpa: u64,
    /// Bytes.
    pub len: u64,
}

/// Calls `f` for each run of the `len` bytes from byte `at` of `spans` on, with the offset of the run in them.
fn each(
    spans: &[Span],
    mut at: u64,
    len: usize,
    mut f: impl FnMut(u64, usize, usize) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut done = 0;
    if len == 0 {
        return Ok(());
    }
    for span in spans {
        if at >= span.len {
            at -= span.len;
            continue;
        }
        let here = usize::try_from(span.len - at).map_or(len - done, |room| room.min(len - done));
        f(span.gpa + at, done, here)?;
        (at, done) = (0, done + here);
        if done == len {
            return Ok(());
        }
    }
    // Less than was asked for.
    Err(Error::Length)
}

/// Copies `bytes` to byte `at` of `spans`.
pub fn give(memory: &Memory, spans: &[Span], at: u64, bytes: &[u8]) -> Result<(), Error> {
    each(spans, at, bytes.len(), |gpa, from, len| {
        memory.write(gpa, bytes.get(from..from + len).unwrap_or(&[]))
    })
}

/// Copies from byte `at` of `spans`.
pub fn take(memory: &Memory, spans: &[Span], at: u64, bytes: &mut [u8]) -> Result<(), Error> {
    each(spans, at, bytes.len(), |gpa, to, len| {
        memory.read(gpa, bytes.get_mut(to..to + len).unwrap_or(&mut []))
    })
}

/// The contents of one disk.
pub struct Content<'a> {
    pages: &'a mut [u8],
    image: &'a [u8],
    zeroes: Vec<u8>,
}

impl<'a> Content<'a> {
    /// Pages are this device model's alone, the image never changes.
    #[must_use]
    pub fn new(pages: &'a mut [u8], image: &'a [u8]) -> Self {
        let zeroes = alloc::vec![0; PAGE];
        Self {
            pages,
            image,
            zeroes,
        }
    }

    /// The pages.
    #[must_use]
    pub fn into_pages(self) -> &'a mut [u8] {
        self.pages
    }

    /// A page, to be read; `None`: the disk has no such page.
    #[must_use]
    pub fn page(&self, page: u32) -> Option<&[u8]> {
        let at = (page as usize).checked_mul(PAGE)?;
        self.pages.get(at..)?.get(..PAGE)
    }

    /// A block's bytes in the image, of which there may be less than a block.
    fn of_image(&self, block: u32) -> &[u8] {
        let at = (block as usize).saturating_mul(PAGE);
        let rest = self.image.get(at..).unwrap_or(&[]);
        rest.get(..PAGE).unwrap_or(rest)
    }

    /// Copies bytes `from..to` of a block that has no page to byte `at` of `spans`.
    pub fn give_base(
        &self,
        memory: &Memory,
        (block, base): (u32, Base),
        (from, to): (usize, usize),
        spans: &[Span],
        at: u64,
    ) -> Result<(), Error> {
        let image = match base {
            Base::Image => self.of_image(block),
            Base::Hole => &[],
        };
        let middle = image.len().clamp(from, to);
        give(memory, spans, at, image.get(from..middle).unwrap_or(&[]))?;
        let zeroes = self.zeroes.get(middle..to).unwrap_or(&[]);
        give(memory, spans, at + (middle - from) as u64, zeroes)
    }

    /// Makes a fresh page what its block was, but for bytes `from..to`, which are to be written.
    pub fn fill(&mut self, page: u32, (block, base): (u32, Base), (from, to): (usize, usize)) {
        let image = match base {
            Base::Image => {
                let at = (block as usize).saturating_mul(PAGE);
                let rest = self.image.get(at..).unwrap_or(&[]);
                rest.get(..PAGE).unwrap_or(rest)
            }
            Base::Hole => &[],
        };
        let Some(into) = page_of(self.pages, page) else {
            return;
        };
        for (start, end) in [(0, from), (to, PAGE)] {
            let middle = image.len().clamp(start, end.max(start));
            if let (Some(to), Some(from)) = (into.get_mut(start..middle), image.get(start..middle))
            {
                to.copy_from_slice(from);
            }
            if let Some(to) = into.get_mut(middle..end) {
                to.fill(0);
            }
        }
    }

    /// A page, to be written.
    pub fn page_mut(&mut self, page: u32) -> Option<&mut [u8]> {
        page_of(self.pages, page)
    }
}

fn page_of(pages: &mut [u8], page: u32) -> Option<&mut [u8]> {
    let at = (page as usize).checked_mul(PAGE)?;
    pages.get_mut(at..)?.get_mut(..PAGE)
}
