//! Leaf 0xD: which state components XSAVE has, and how large its area is (Intel SDM vol. 1, chapter 13).

use core::arch::x86_64::CpuidResult;

/// x87 and SSE.
const LEGACY: u64 = 0b11;
/// AVX.
const AVX: u64 = 1 << 2;
/// Opmask, ZMM_Hi256, Hi16_ZMM: only together.
const AVX512: u64 = 0b111 << 5;
/// Legacy region and XSAVE header.
const HEADER_END: u32 = 576;
/// Highest component that is ever shown, and one.
const COMPONENTS: usize = 8;
/// Subleaf 1, eax: XSAVEOPT, XSAVEC, XGETBV with ecx = 1. Not: XSAVES (its components are supervisor state), XFD.
const INSTRUCTIONS: u32 = 0b111;
const XSAVEC: u32 = 1 << 1;

/// One component: size and offset in the standard format; whether it is 64-byte aligned in the compacted one.
#[derive(Clone, Copy, Default)]
struct Component {
    size: u32,
    offset: u32,
    aligned: bool,
}

/// What the guest has of XSAVE.
pub(super) struct Xsave {
    supported: u64,
    components: [Component; COMPONENTS],
    instructions: u32,
}

impl Xsave {
    pub fn new(host: &dyn Fn(u32, u32) -> CpuidResult) -> Self {
        /// Leaf 1, ecx.
        const XSAVE: u32 = 1 << 26;
        let mut new = Self {
            supported: 0,
            components: [Component::default(); COMPONENTS],
            instructions: 0,
        };
        if host(1, 0).ecx & XSAVE == 0 {
            return new;
        }
        let main = host(0xD, 0);
        let has = u64::from(main.eax) | u64::from(main.edx) << 32;
        new.supported = LEGACY;
        if has & AVX != 0 {
            new.supported |= AVX;
            if has & AVX512 == AVX512 {
                new.supported |= AVX512;
            }
        }
        for (i, component) in (0u32..).zip(&mut new.components).skip(2) {
            if new.supported >> i & 1 != 0 {
                let info = host(0xD, i);
                *component = Component {
                    size: info.eax,
                    offset: info.ebx,
                    aligned: info.ecx & 2 != 0,
                };
            }
        }
        new.instructions = host(0xD, 1).eax & INSTRUCTIONS;
        new
    }

    pub const fn supported(&self) -> u64 {
        self.supported
    }

    /// The extended components in `xcr0`.
    fn in_use(&self, xcr0: u64) -> impl Iterator<Item = &Component> {
        let wanted = xcr0 & self.supported;
        self.components
            .iter()
            .enumerate()
            .skip(2)
            .filter(move |(i, _)| wanted >> i & 1 != 0)
            .map(|(_, c)| c)
    }

    /// Bytes of the standard area for `xcr0`.
    pub fn size(&self, xcr0: u64) -> u32 {
        self.in_use(xcr0)
            .map(|c| c.offset.saturating_add(c.size))
            .fold(HEADER_END, u32::max)
    }

    /// Bytes of the compacted area for `xcr0`, 0 if there is none.
    pub fn compacted_size(&self, xcr0: u64) -> u32 {
        if self.instructions & XSAVEC == 0 {
            return 0;
        }
        self.in_use(xcr0).fold(HEADER_END, |end, c| {
            let start = if c.aligned {
                end.next_multiple_of(64)
            } else {
                end
            };
            start.saturating_add(c.size)
        })
    }

    /// A subleaf but for the sizes that depend on the current XCR0.
    pub fn subleaf(&self, subleaf: u32) -> [u32; 4] {
        match subleaf {
            0 => [self.supported as u32, 0, self.size(self.supported), 0],
            1 => [self.instructions, 0, 0, 0],
            _ => match self.components.get(subleaf as usize) {
                Some(c) => [c.size, c.offset, u32::from(c.aligned) << 1, 0],
                None => [0; 4],
            },
        }
    }
}
