//! One counter of the 8254, as a function of its clock (Intel 8254 datasheet).
//!
//! `t` is always the number of the PIT clock's periods; it never runs backwards. A count written in period `t` is in
//! the counting element from `t + 1`.

/// What the counter does: bits 3:1 of the control word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    TerminalCount = 0,
    OneShot = 1,
    Rate = 2,
    Square = 3,
    SoftwareStrobe = 4,
    HardwareStrobe = 5,
}

impl Mode {
    fn from_control(value: u8) -> Self {
        match (value >> 1) & 7 {
            0 => Self::TerminalCount,
            1 => Self::OneShot,
            2 | 6 => Self::Rate,
            3 | 7 => Self::Square,
            4 => Self::SoftwareStrobe,
            _ => Self::HardwareStrobe,
        }
    }

    fn periodic(self) -> bool {
        matches!(self, Self::Rate | Self::Square)
    }

    /// Started by a rising edge of the gate.
    fn triggered(self) -> bool {
        matches!(self, Self::OneShot | Self::HardwareStrobe)
    }
}

/// Which bytes a read or write of the counter transfers: bits 5:4 of the control word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Low = 1,
    High = 2,
    Both = 3,
}

/// One counter.
#[derive(Clone, Debug)]
pub struct Counter {
    mode: Mode,
    access: Access,
    bcd: bool,
    gate: bool,
    /// The count register: what is loaded next. 1 to 65536.
    reload: u64,
    /// The count being counted. 1 to 65536.
    count: u64,
    /// The period in which `count` is, or was last, in the counting element; `None`: not counting since the control word.
    start: Option<u64>,
    /// Periods counted when the gate stopped the counter.
    held: Option<u64>,
    /// A count was written since the control word.
    loaded: bool,
    /// The low byte of a count, while its high byte is awaited.
    low: Option<u8>,
    /// The next read gives the high byte.
    read_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
    /// Rising edges of OUT up to here were seen.
    seen: u64,
}

impl Counter {
    /// A counter that was set to `control` and the full count of 65536 at power-on.
    pub fn new(control: u8, gate: bool) -> Self {
        let mut counter = Self {
            mode: Mode::Square,
            access: Access::Both,
            bcd: false,
            gate,
            reload: 0x1_0000,
            count: 0x1_0000,
            start: None,
            held: None,
            loaded: false,
            low: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
            seen: 0,
        };
        counter.control(control, 0);
        counter.load(0, 0);
        counter
    }

    /// What a counter counts modulo, and what a count of 0 stands for.
    fn modulus(&self) -> u64 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    /// Periods counted; `None` before the count is in the counting element.
    fn elapsed(&self, t: u64) -> Option<u64> {
        let start = self.start?;
        self.held.or_else(|| t.checked_sub(start))
    }

    /// Position within the period of a periodic mode.
    fn phase(&self, elapsed: u64) -> u64 {
        elapsed % self.count.max(1)
    }

    /// Periods for which a square wave is high.
    fn high_half(&self) -> u64 {
        self.count.div_ceil(2)
    }

    /// The counting element.
    fn value(&self, t: u64) -> u64 {
        let Some(elapsed) = self.elapsed(t) else {
            return self.reload % self.modulus();
        };
        let value = match self.mode {
            Mode::Rate => self.count - self.phase(elapsed),
            Mode::Square => {
                // Datasheet, mode 3: by twos from the count, or from one less if it is odd, in each half.
                let phase = self.phase(elapsed);
                let half = self.high_half();
                let position = if phase < half { phase } else { phase - half };
                (self.count & !1).saturating_sub(2 * position)
            }
            _ => self.count + self.modulus() - elapsed % self.modulus(),
        };
        value % self.modulus()
    }

    /// The level of OUT.
    pub fn out(&self, t: u64) -> bool {
        let elapsed = self.elapsed(t);
        match (self.mode, elapsed) {
            (Mode::TerminalCount, elapsed) => elapsed.is_some_and(|elapsed| elapsed >= self.count),
            (_, None) => true,
            (Mode::OneShot, Some(elapsed)) => elapsed >= self.count,
            (Mode::Rate | Mode::Square, _) if !self.gate => true,
            (Mode::Rate, Some(elapsed)) => self.phase(elapsed) + 1 != self.count,
            (Mode::Square, Some(elapsed)) => self.phase(elapsed) < self.high_half(),
            (Mode::SoftwareStrobe | Mode::HardwareStrobe, Some(elapsed)) => elapsed != self.count,
        }
    }

    /// The period of the first rising edge of OUT after those already seen.
    pub fn next_edge(&self) -> Option<u64> {
        let start = self.start.filter(|_| self.held.is_none())?;
        let first = match self.mode {
            Mode::TerminalCount | Mode::OneShot => start.checked_add(self.count)?,
            Mode::SoftwareStrobe | Mode::HardwareStrobe => start.checked_add(self.count + 1)?,
            Mode::Rate | Mode::Square => {
                let done = self.seen.saturating_sub(start) / self.count.max(1);
                start.checked_add(done.checked_add(1)?.checked_mul(self.count)?)?
            }
        };
        (first > self.seen).then_some(first)
    }

    /// The first period in which the host must look: as [`Counter::next_edge`], but a periodic counter wakes nobody
    /// again within `floor` periods.
    pub fn next_wake(&self, floor: u64) -> Option<u64> {
        let edge = self.next_edge()?;
        Some(if self.mode.periodic() {
            edge.max(self.seen.saturating_add(floor))
        } else {
            edge
        })
    }

    /// Brings the counter to `t`. True if OUT rose since the last time, once however often it did.
    pub fn advance(&mut self, t: u64) -> bool {
        let rose = self.next_edge().is_some_and(|edge| edge <= t);
        self.seen = self.seen.max(t);
        if self.mode.periodic()
            && self.held.is_none()
            && self.reload != self.count
            && let Some(start) = self.start
            && let Some(boundary) = start.checked_add(self.count)
            && t >= boundary
        {
            self.start = Some(boundary);
            self.count = self.reload;
        }
        rose
    }

    /// A control word for this counter, not a latch command. The counter was advanced to `t`, as for all that follow.
    pub fn control(&mut self, value: u8, t: u64) {
        self.mode = Mode::from_control(value);
        self.access = match (value >> 4) & 3 {
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        self.bcd = value & 1 != 0;
        self.start = None;
        self.held = None;
        self.loaded = false;
        self.low = None;
        self.read_high = false;
        self.latched_count = None;
        self.latched_status = None;
        self.seen = self.seen.max(t);
    }

    /// A write of a byte of the count.
    pub fn write(&mut self, value: u8, t: u64) {
        match (self.access, self.low.take()) {
            (Access::Low, _) => self.load(u16::from(value), t),
            (Access::High, _) => self.load(u16::from(value) << 8, t),
            (Access::Both, Some(low)) => self.load(u16::from_le_bytes([low, value]), t),
            (Access::Both, None) => {
                self.low = Some(value);
                if self.mode == Mode::TerminalCount {
                    // Datasheet, mode 0: the first byte stops the counting, and OUT goes low.
                    self.start = None;
                    self.held = None;
                }
            }
        }
    }

    /// A whole count.
    fn load(&mut self, raw: u16, t: u64) {
        let value = if self.bcd {
            from_bcd(raw)
        } else {
            u64::from(raw)
        };
        self.reload = if value == 0 {
            self.modulus()
        } else {
            value.min(self.modulus())
        };
        let first = !core::mem::replace(&mut self.loaded, true);
        match self.mode {
            Mode::TerminalCount | Mode::SoftwareStrobe => self.begin(t),
            Mode::Rate | Mode::Square if first => self.begin(t),
            Mode::Rate | Mode::Square => {
                // It takes effect when the current period ends: let `start` be that one's beginning.
                if let Some(elapsed) = self.elapsed(t)
                    && self.held.is_none()
                {
                    self.start = Some(t - self.phase(elapsed));
                }
            }
            Mode::OneShot | Mode::HardwareStrobe => {}
        }
    }

    /// The count register goes into the counting element.
    fn begin(&mut self, t: u64) {
        self.count = self.reload;
        self.start = Some(t.saturating_add(1));
        self.held = (!self.gate).then_some(0);
    }

    /// The level of GATE.
    pub fn set_gate(&mut self, gate: bool, t: u64) {
        let was = core::mem::replace(&mut self.gate, gate);
        if was == gate || !self.loaded {
            return;
        }
        if gate && (self.mode.triggered() || self.mode.periodic()) {
            self.begin(t);
        } else if gate {
            if let Some(held) = self.held.take() {
                self.start = Some(t.saturating_sub(held));
            }
        } else if !self.mode.triggered() {
            self.held = self.start.map(|_| self.elapsed(t).unwrap_or(0));
        }
    }

    /// Latches the count (and not again until it was read).
    pub fn latch_count(&mut self, t: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.shown(t));
        }
    }

    /// Latches the status byte (and not again until it was read).
    pub fn latch_status(&mut self, t: u64) {
        let null = !self.loaded
            || self.elapsed(t).is_none() && !self.mode.triggered()
            || self.reload != self.count;
        let status = u8::from(self.out(t)) << 7
            | u8::from(null) << 6
            | (self.access as u8) << 4
            | (self.mode as u8) << 1
            | u8::from(self.bcd);
        self.latched_status.get_or_insert(status);
    }

    /// The counting element as the guest sees it.
    fn shown(&self, t: u64) -> u16 {
        let value = self.value(t);
        // Less than the modulus, so 16 bits hold it either way.
        (if self.bcd { to_bcd(value) } else { value }) as u16
    }

    /// A read of the counter's port.
    pub fn read(&mut self, t: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self
            .latched_count
            .unwrap_or_else(|| self.shown(t))
            .to_le_bytes();
        let (byte, last) = match self.access {
            Access::Low => (low, true),
            Access::High => (high, true),
            Access::Both => {
                self.read_high = !self.read_high;
                if self.read_high {
                    (low, false)
                } else {
                    (high, true)
                }
            }
        };
        if last {
            self.latched_count = None;
        }
        byte
    }
}

fn from_bcd(raw: u16) -> u64 {
    let digit = |shift: u32| u64::from(raw >> shift & 0xF);
    digit(12) * 1000 + digit(8) * 100 + digit(4) * 10 + digit(0)
}

fn to_bcd(value: u64) -> u64 {
    (value / 1000 % 10) << 12 | (value / 100 % 10) << 8 | (value / 10 % 10) << 4 | (value % 10)
}
