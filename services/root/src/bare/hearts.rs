//! Asks servers whether they are alive, and ends those that hang ([`root::heartbeat`]).

use core::sync::atomic::{AtomicU64, Ordering};

use ipc_schema::abi::rights::{READ, SEND};
use ipc_schema::abi::thread_state;
use ipc_schema::proto::Cause;
use ipc_schema::state_page::ALIVE_OFFSET;
use root::heartbeat::{Heart, Look, Turn};
use root::plan::{Plan, device_bits};
use root::ram::PAGE;
use runtime::{Notification, now, time};

use super::machine::{Error, Machine, at};
use super::shared::Shared;
use super::{Root, SPACE};

/// Where root has the servers' state pages mapped, by number.
const PAGES: u64 = 0x31_0000_0000;

/// What it takes to ask a server.
pub struct Pulse {
    bell: Notification,
    /// Of the life that runs now.
    heart: Heart,
}

impl Pulse {
    /// For the server of this plan and number, if it is one that answers.
    pub fn new(
        machine: &mut Machine,
        shared: &Shared,
        plan: &Plan,
        number: usize,
    ) -> Result<Option<Self>, Error> {
        let page = plan.heart().and_then(|(key, _)| shared.pages.get(key));
        let own = shared.notifications.get(&plan.instance);
        let Some((page, own)) = page.zip(own) else {
            return Ok(None);
        };
        SPACE
            .map(PAGES + number as u64 * PAGE, page.memory, READ, 0, PAGE)
            .map_err(at("map a state page"))?;
        let bell = machine.make("make a bell", |dest| {
            SPACE.copy_cap(own.0, dest, SEND, device_bits::ASKED)?;
            Ok(Notification(dest))
        })?;
        let heart = Heart::new(0);
        Ok(Some(Self { bell, heart }))
    }

    /// A new life begins.
    pub fn begin(&mut self) {
        self.heart = Heart::new(now());
    }
}

/// The word by which a server answers.
fn alive(number: usize) -> u64 {
    word(number, ALIVE_OFFSET)
}

/// A word of a server's state page, which is mapped ([`Pulse::new`] did).
pub fn word(number: usize, offset: u64) -> u64 {
    let at = PAGES + number as u64 * PAGE + offset;
    // SAFETY: the page is mapped for as long as root lives, aligned for words; an atomic may change at any time.
    let word = unsafe { &*core::ptr::with_exposed_provenance::<AtomicU64>(at as usize) };
    word.load(Ordering::Acquire)
}

impl Root {
    /// Those that have a pulse and run, with when they are due.
    fn beating(&self) -> impl Iterator<Item = (usize, u64)> {
        let both = self.pulses.iter().zip(&self.built).enumerate();
        both.filter_map(|(index, (pulse, built))| {
            let (pulse, _) = pulse.as_ref().zip(built.as_ref())?;
            Some((index, pulse.heart.due()))
        })
    }

    /// When [`Root::beat`] has something to do next.
    pub fn next_beat(&self) -> Option<u64> {
        self.beating().map(|(_, due)| due).min()
    }

    /// Asks and looks whom it is time to.
    pub fn beat(&mut self) {
        // Each of them becomes due again later than now.
        let due = |root: &Self| Some(root.beating().find(|(_, due)| *due <= now())?.0);
        if due(self).is_some() {
            self.look_at_forwarders();
        }
        while let Some(index) = due(self) {
            self.turn(index);
        }
    }

    /// Root's own forwarders have no supervisor but root, which would hear of their faults by those very threads. Without one of them it
    /// can no longer be called, so it ends with the machine, as if it had faulted itself.
    fn look_at_forwarders(&self) {
        for forwarder in &self.shared.forwarders {
            if let Ok((regs, doing)) = forwarder.thread.read_regs()
                && doing.state == thread_state::FAULTED
            {
                panic!(
                    "what takes calls to root on processor {} has faulted at {:#x}",
                    forwarder.cpu, regs.rip
                );
            }
        }
    }

    fn turn(&mut self, index: usize) {
        let built = self.built.get(index).and_then(Option::as_ref);
        let pulse = self.pulses.get_mut(index).and_then(Option::as_mut);
        let (Some(built), Some(pulse)) = (built, pulse) else {
            return;
        };
        let doing = built.thread.map(|thread| thread.read_regs());
        let look = Look {
            alive: alive(index),
            // Of whom nothing can be learned is neither stopped nor waiting.
            state: match doing {
                Some(Ok((_, doing))) => doing.state,
                _ => thread_state::READY,
            },
            used: built.used(),
        };
        match pulse.heart.turn(now(), look, time::cycles) {
            Turn::Nothing => {}
            Turn::Ask => {
                let _ = pulse.bell.signal();
            }
            Turn::End => self.end(index, Cause::Hung),
        }
    }
}
