//! Writes to CR0.

use super::{Kernel, Machine, Step};
use crate::cpu::cr0;
use crate::emulate::{EmulateError, Exception, Why, control, retire};
use ipc_schema::abi::vm::{Exit, Groups};

impl<K: Kernel> Machine<'_, K> {
    /// A processor that leaves writes to CR0 to us: some let the guest make what no processor allows, and are lost with it (QEMU 7.2, by
    /// paging switched off in 64-bit mode).
    #[inline(never)]
    pub(super) fn write_cr0(&mut self) -> Step {
        let exit = Exit::WriteCr0;
        if self.steps_blindly(exit) {
            return self.widen(exit);
        }
        let wide = self.wide & 1 << exit as u32 != 0;
        let state = self.kernel.state_mut();
        let written = control::written_to_cr0(&self.memory, state, wide);
        let (value, length) = match written {
            Ok(written) => written,
            Err(EmulateError::Unsupported(what)) if what.why == Why::Segment && !wide => {
                return self.widen(exit);
            }
            Err(error) => return self.refuse(error, 0),
        };
        let Ok((cr0, efer)) = cr0::write(state, self.msrs.lme(), value) else {
            return self.raise(Exception::GENERAL_PROTECTION);
        };
        // First: how rip moves on, the mode before the write says.
        let retired = retire(state, length);
        (state.cr0, state.efer) = (cr0, efer);
        self.dirty |= Groups::CR;
        self.retired(retired);
        Ok(())
    }
}
