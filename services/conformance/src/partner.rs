//! Threads in a Space of their own whose every step is dictated: they may block, fault and die.
//!
//! A partner waits for its bell, does what its command page says, writes down what came of it, and waits again. It has precedence
//! over this server, so that when [`Partner::start`] comes back it has finished, or it is blocked (or it has faulted).

use ipc_schema::abi::layout::{self, slot};
use ipc_schema::abi::{Kind, Status, Syscall, Tag, op, rights};
use runtime::{Endpoint, Event, Message, Notification, reply_recv, time};

use crate::case::{Failure, Outcome, fail};
use crate::kernel::{PATIENCE, Page, ask};
use crate::kit::{Kit, PAGE};

/// Where a partner has its command page; its stack is the end of the page. The binary's code agrees.
pub const COMMAND: u64 = 0x7000_0000;
/// Slot of its bell.
const BELL: u64 = 100;
/// Above this server's class, below root.
pub const PRIORITY: u64 = 20;

/// Words of the command page; the binary's code agrees.
mod word {
    pub const KIND: usize = 0;
    pub const BELL: usize = 1;
    pub const RAX: usize = 2;
    pub const RDI: usize = 3;
    pub const RSI: usize = 4;
    pub const WORDS: usize = 5;
    pub const R13: usize = 9;
    pub const DONE: usize = 15;
    pub const OUT: usize = 16;
}

/// What a partner can be told to do beside system calls; the numbers are the binary's code's.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    /// Reads a byte of this address.
    Load(u64),
    /// Writes a byte of 0x5a there.
    Store(u64),
    /// Calls code there.
    Jump(u64),
    /// Runs for ever.
    Spin,
}

/// What a system call of a partner's left in its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Result {
    /// rax.
    pub status: Status,
    /// rdi.
    pub value: u64,
    /// rsi.
    pub tag: Tag,
    /// r8, r9, r10, r12.
    pub words: [u64; 4],
    /// rbx, rbp, r15: what they were before and must still be; rcx, rdx, r11, r13: free.
    pub others: [u64; 7],
}

/// What it has in rbx, rbp and r15 around a system call.
pub const PRESERVED: [u64; 3] = [0x1111, 0x2222, 0x3333];

/// A partner.
#[derive(Clone, Copy, Debug)]
pub struct Partner {
    /// Its Space.
    pub space: u64,
    /// Its Thread.
    pub thread: u64,
    /// Its Budget.
    pub budget: u64,
    /// Its UTCB page's address there.
    pub utcb: u64,
    bell: u64,
    page: Page,
    /// Where its stack begins.
    pub stack: u64,
    begun: u64,
}

impl Partner {
    /// One with a Space of its own.
    pub fn new(kit: &mut Kit) -> core::result::Result<Self, Status> {
        let pool = kit.live(Kind::Pool);
        Self::from_pool(kit, pool)
    }

    /// The same, made from another Pool.
    pub fn from_pool(kit: &mut Kit, pool: u64) -> core::result::Result<Self, Status> {
        let space = kit.make_from(pool, Kind::Space, 0, [128, 0])?;
        let code = kit.code;
        let access = u64::from(rights::READ | rights::EXEC) << 32;
        let words = [
            code.from,
            kit.image | access,
            code.from - layout::IMAGE,
            code.to - code.from,
        ];
        ask(space, op::space::MAP, words)?;
        Self::in_space(kit, pool, space, 0)
    }

    /// A further thread of this number in a partner's Space.
    pub fn sibling(&self, kit: &mut Kit, number: u64) -> core::result::Result<Self, Status> {
        let pool = kit.live(Kind::Pool);
        Self::in_space(kit, pool, self.space, number)
    }

    fn in_space(
        kit: &mut Kit,
        pool: u64,
        space: u64,
        number: u64,
    ) -> core::result::Result<Self, Status> {
        let memory = kit.part(PAGE)?;
        let page = kit.window(memory, 0)?;
        (0..512).for_each(|i| page.set(i, 0));
        let command = COMMAND + number * 2 * PAGE;
        let access = u64::from(rights::READ | rights::WRITE) << 32;
        ask(space, op::space::MAP, [command, memory | access, 0, PAGE])?;
        let utcb = layout::UTCB + number * 2 * PAGE;
        let thread = kit.make_from(pool, Kind::Thread, 0, [space, utcb])?;
        let budget = kit.make_from(pool, Kind::Budget, 0, [0; 2])?;
        let bell = kit.make_from(pool, Kind::Notification, 0, [0; 2])?;
        let wait = u64::from(rights::RECV);
        ask(space, op::space::COPY_CAP, [bell, BELL + number, wait, 0])?;
        page.set(word::BELL, BELL + number);
        let cpu = kit.live(Kind::Cpu);
        let period = time::cycles(10_000);
        ask(
            budget,
            op::budget::CONFIGURE,
            [cpu, PRIORITY, period, period],
        )?;
        ask(
            thread,
            op::thread::CONFIGURE,
            [budget, kit.supervisor, 0, 0],
        )?;
        let stack = command + PAGE - 64;
        ask(
            thread,
            op::thread::START,
            [kit.code.entry, stack, command, 0],
        )?;
        Ok(Self {
            space,
            thread,
            budget,
            utcb,
            bell,
            page,
            stack,
            begun: 0,
        })
    }

    /// Puts a copy of a capability into a slot of its table.
    pub fn give(&self, source: u64, slot: u64, keep: u32, badge: u64) -> Outcome {
        ask(
            self.space,
            op::space::COPY_CAP,
            [source, slot, u64::from(keep), badge],
        )?;
        Ok(())
    }

    /// Lets it begin a system call.
    pub fn start(&mut self, number: Syscall, slot: u64, tag: Tag, words: [u64; 4], deadline: u64) {
        self.start_raw(number as u64, slot, tag.0, words, deadline);
    }

    /// The same with any number.
    pub fn start_raw(&mut self, rax: u64, slot: u64, tag: u64, words: [u64; 4], deadline: u64) {
        self.page.set(word::RAX, rax);
        self.page.set(word::RDI, slot);
        self.page.set(word::RSI, tag);
        for (i, w) in words.into_iter().enumerate() {
            self.page.set(word::WORDS + i, w);
        }
        self.page.set(word::R13, deadline);
        self.ring(0);
    }

    /// Lets it begin something else.
    pub fn act(&mut self, act: Act) {
        let (kind, at) = match act {
            Act::Load(at) => (1, at),
            Act::Store(at) => (2, at),
            Act::Jump(at) => (3, at),
            Act::Spin => (4, 0),
        };
        self.page.set(word::RDI, at);
        self.ring(kind);
    }

    fn ring(&mut self, kind: u64) {
        self.page.set(word::KIND, kind);
        self.begun += 1;
        // Whether it has come is seen by what it does.
        let _ = Notification(self.bell as u32).signal();
    }

    /// Whether it has finished what it was last told.
    #[must_use]
    pub fn done(&self) -> bool {
        self.page.get(word::DONE) == self.begun
    }

    /// What came of its last system call, once it has finished; it is given time.
    pub fn finish(&self) -> Outcome<Result> {
        for _ in 0..4 {
            if self.done() {
                return Ok(self.result());
            }
            pause(PATIENCE / 2);
        }
        fail("the partner has not come back")
    }

    fn result(&self) -> Result {
        let out = |i| self.page.get(word::OUT + i);
        Result {
            status: Status::from_raw(out(0)),
            value: out(1),
            tag: Tag(out(2)),
            words: core::array::from_fn(|i| out(3 + i)),
            others: core::array::from_fn(|i| out(7 + i)),
        }
    }

    /// Makes a system call and waits for its end.
    pub fn call(
        &mut self,
        number: Syscall,
        slot: u64,
        tag: Tag,
        words: [u64; 4],
        deadline: u64,
    ) -> Outcome<Result> {
        self.start(number, slot, tag, words, deadline);
        self.finish()
    }

    /// An operation on an object; its answer.
    pub fn ask(&mut self, slot: u64, label: u64, words: [u64; 4]) -> Outcome<Status> {
        let until = time::after(PATIENCE);
        Ok(self
            .call(Syscall::Call, slot, Tag::new(label), words, until)?
            .status)
    }

    /// Does something else than a system call, to the end.
    pub fn do_act(&mut self, act: Act) -> Outcome {
        self.act(act);
        self.finish().map(drop)
    }

    /// A byte of its Space.
    pub fn byte(&mut self, at: u64) -> Outcome<u64> {
        self.do_act(Act::Load(at))?;
        Ok(self.page.get(word::OUT))
    }

    /// Does something that must fault: vector, error code, address, rip. It is left stopped.
    pub fn faults(&mut self, act: Act) -> Outcome<[u64; 4]> {
        self.act(act);
        let Some(fault) = next_fault()? else {
            return fail("no fault");
        };
        answer_fault(1)?;
        Ok(fault)
    }

    /// It was started anew in the middle of something, which it never finished.
    pub fn again(&mut self) {
        self.begun = self.page.get(word::DONE);
    }

    /// Still obeys.
    pub fn lives(&mut self) -> Outcome {
        let until = time::after(PATIENCE);
        match self.call(Syscall::Yield, 0, Tag(0), [0; 4], until)?.status {
            Status::Ok => Ok(()),
            other => Err(Failure(alloc::format!("the partner's yield: {other:?}"))),
        }
    }
}

/// Lets time pass: nobody ever signals this server.
pub fn pause(microseconds: u64) {
    let _ = Notification(slot::NOTIFICATION).wait(time::after(microseconds));
}

/// The next fault of a partner: vector, error code, address, rip; `None` if there is none.
pub fn next_fault() -> Outcome<Option<[u64; 4]>> {
    let own = Endpoint(slot::ENDPOINT);
    match reply_recv(own, Message::default(), time::after(PATIENCE))? {
        Event::Call { message, .. } if message.tag.label() == Tag::FAULT => Ok(Some(message.words)),
        Event::Timeout => Ok(None),
        _ => fail("a call that is no fault"),
    }
}

/// Answers the fault that was taken: label 0 lets the thread go on, any other leaves it stopped.
pub fn answer_fault(label: u64) -> Outcome {
    let own = Endpoint(slot::ENDPOINT);
    match reply_recv(own, Message::new(label, [0; 4]), runtime::now())? {
        Event::Timeout => Ok(()),
        _ => fail("a call after the fault"),
    }
}
