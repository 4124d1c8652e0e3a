//! Guests of a few bytes, which begin where a processor does after reset.

use runtime::abi::layout;
use runtime::abi::rights::{EXEC, READ, WRITE};
use runtime::object::{GuestSpace, Vcpu};

use super::lab::{Lab, POOL, READ_WRITE, Result, SPACE};

/// Where their state pages are.
const STATES: u64 = layout::SHARED + 0x1000_0000;
/// Where this server writes their code.
const WINDOWS: u64 = layout::SHARED + 0x2000_0000;
/// Guest-physical page of the reset vector (AMD APM vol. 2, 14.1.3), and the vector in it.
const RESET: u64 = 0xffff_f000;
const VECTOR: usize = 0xff0;
/// Where their pages begin in the RAM: behind what threads map.
const OFFSET: u64 = 4 << 20;

/// JMP to itself.
pub const SPIN: &[u8] = &[0xeb, 0xfe];
/// HLT.
pub const HALT: &[u8] = &[0xf4];
/// CPUID; JMP back.
pub const CPUID: &[u8] = &[0x0f, 0xa2, 0xeb, 0xfc];
/// MOV DX, 0x4000; OUT DX, AL; JMP back to the OUT.
pub const BELL: &[u8] = &[0xba, 0x00, 0x40, 0xee, 0xeb, 0xfd];
/// Its port.
pub const PORT: u16 = 0x4000;

/// Where the page of number `page` is in the RAM.
pub fn offset(page: u64) -> u64 {
    OFFSET + page * 4096
}

/// A word of a state page.
pub fn word(page: u64, n: usize) -> *mut u64 {
    core::ptr::with_exposed_provenance_mut::<u64>((STATES + page * 4096) as usize).wrapping_add(n)
}

/// A VM of one vCPU and one page.
pub struct Guest {
    /// Its memory and routes.
    pub space: GuestSpace,
    /// Its vCPU.
    pub vcpu: Vcpu,
    /// The number of its state page.
    pub page: u64,
}

impl Guest {
    /// Number `page` of all, with at most 16 bytes of code.
    pub fn new(lab: &mut Lab, page: u64, code: &[u8]) -> Result<Self> {
        let (at, offset) = (WINDOWS + page * 4096, offset(page));
        SPACE.map(at, lab.ram, READ_WRITE, offset, 4096)?;
        let bytes = core::ptr::with_exposed_provenance_mut::<u8>(at as usize + VECTOR);
        for (i, byte) in code.iter().take(4096 - VECTOR).enumerate() {
            // SAFETY: the page just mapped; the index stays inside, and no reference points there.
            unsafe { bytes.add(i).write_volatile(*byte) };
        }
        let space = POOL.create_guest_space(lab.slot()?)?;
        space.map(RESET, lab.ram, READ | WRITE | EXEC, offset, 4096)?;
        let dest = lab.slot()?;
        let vcpu = POOL.create_vcpu(dest, space, SPACE, STATES + page * 4096)?;
        Ok(Self { space, vcpu, page })
    }

    /// Has another vCPU in the place of its own, as after reset.
    pub fn renew(&self) -> Result<()> {
        // SAFETY: it takes nothing away but its state page, into which no reference exists.
        unsafe { SPACE.destroy_object(self.vcpu.0) }?;
        SPACE.drop_cap(self.vcpu.0)?;
        let state = STATES + self.page * 4096;
        POOL.create_vcpu(self.vcpu.0, self.space, SPACE, state)
            .map(|_| ())
    }

    /// What [`super::workers::guest`] takes.
    pub fn argument(&self) -> u64 {
        u64::from(self.vcpu.0) | self.page << 32
    }
}
