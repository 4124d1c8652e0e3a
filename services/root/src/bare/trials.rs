//! What the console has servers suffer, to see who notices and whom it harms: for tests.

use alloc::vec::Vec;

use ipc_schema::abi::{ThreadRegs, layout};
use ipc_schema::proto::{Refusal, RootResponse};
use ipc_schema::state_page::newest_slot;
use root::plan::Role;
use root::ram::PAGE;
use runtime::now;
use runtime::rt::{CIRCLE, SCRIBBLE, SCRIBBLED};

use super::{Root, hearts};

/// Number of the stack pointer among the general registers, and of the one with the noise's seed.
const RSP: usize = 4;
const RAX: usize = 0;

impl Root {
    /// Stops a server's thread and nothing else, to see what hangs on it.
    pub fn hang(&mut self, name: &str) -> Result<RootResponse, Refusal> {
        let index = self.server(name)?;
        if self.registry.by_role(Role::Manager) == Some(index) {
            return Err(Refusal::Unsupported);
        }
        let thread = self
            .built
            .get(index)
            .and_then(Option::as_ref)
            .and_then(|b| b.thread);
        thread
            .ok_or(Refusal::NotRunning)?
            .suspend()
            .map_err(|_| Refusal::Failed)?;
        defmt::warn!("{=str} is stopped: the console asks for it", name);
        Ok(RootResponse::Done)
    }

    /// Has a server's thread run in a circle, which every image has behind its entry.
    pub fn spin(&mut self, name: &str) -> Result<RootResponse, Refusal> {
        self.hang(name)?;
        let index = self.server(name)?;
        let built = self.built.get(index).and_then(Option::as_ref);
        let found = built.and_then(|b| Some((b.thread?, b.entry)));
        let (thread, entry) = found.ok_or(Refusal::NotRunning)?;
        let regs = ThreadRegs {
            rip: entry.saturating_add(CIRCLE),
            ..ThreadRegs::default()
        };
        // SAFETY: it is not a thread of root's own Space.
        unsafe { thread.write_regs(&regs) }.map_err(|_| Refusal::Failed)?;
        thread.resume().map_err(|_| Refusal::Failed)?;
        Ok(RootResponse::Done)
    }

    /// Has a server's thread write noise over what is its own: what it may write of its image, its heap, and its state page or the slot of
    /// it that has the newest record. It does so itself, wherever it is, and goes on there; its stack stays, so that it does.
    pub fn scribble(&mut self, name: &str, all: bool) -> Result<RootResponse, Refusal> {
        self.hang(name)?;
        let index = self.server(name)?;
        let turned = self.turn_to_scribbling(index, all);
        let built = self.built.get(index).and_then(Option::as_ref);
        let thread = built.and_then(|b| b.thread).ok_or(Refusal::NotRunning)?;
        thread.resume().map_err(|_| Refusal::Failed)?;
        turned.map(|()| RootResponse::Done)
    }

    fn turn_to_scribbling(&mut self, index: usize, all: bool) -> Result<(), Refusal> {
        let server = self.registry.servers.get(index).ok_or(Refusal::Unknown)?;
        let built = self.built.get(index).and_then(Option::as_ref);
        let built = built.ok_or(Refusal::NotRunning)?;
        let parts = (built.thread, built.pages, built.parts);
        let (Some(thread), Some(pages), Some(parts)) = parts else {
            return Err(Refusal::NotRunning);
        };
        let entry = built.entry;
        let mut over = built.data.clone();
        over.push((layout::HEAP, parts.heap_len));
        if let Some((_, page)) = server.plan.heart() {
            let (offset, len) = match all {
                true => (0, PAGE),
                false => newest_slot(hearts::word(index, 0)),
            };
            over.push((page + offset, len));
        }
        let (mut regs, _) = thread.read_regs().map_err(|_| Refusal::Failed)?;
        let pairs = over.iter().flat_map(|(at, len)| [*at, len / 8]);
        let saved = SCRIBBLED.iter().filter_map(|&n| regs.gpr.get(n).copied());
        let frame: Vec<u8> = pairs
            .chain([0, 0])
            .chain(saved)
            .chain([regs.rflags, regs.rip])
            .flat_map(u64::to_le_bytes)
            .collect();
        // Below what is on the stack: servers have no red zone.
        let rsp = regs.gpr[RSP].wrapping_sub(frame.len() as u64);
        let offset = rsp.wrapping_sub(layout::STACK_TOP - parts.stack_len);
        let inside = offset < parts.stack_len && regs.gpr[RSP] <= layout::STACK_TOP;
        let at = inside.then_some(parts.stack + offset);
        let at = at.ok_or(Refusal::Failed)?;
        let written = self.machine.window(pages, |mut w| w.write(at, &frame));
        if !matches!(written, Ok(Some(()))) {
            return Err(Refusal::Failed);
        }
        (regs.gpr[RAX], regs.gpr[RSP]) = (now() | 1, rsp);
        regs.rip = entry.saturating_add(SCRIBBLE);
        // SAFETY: it is not a thread of root's own Space.
        unsafe { thread.write_regs(&regs) }.map_err(|_| Refusal::Failed)
    }
}
