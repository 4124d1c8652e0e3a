//! Linux's system calls, as far as they are needed (x86-64; numbers and structures are its user ABI).

use core::arch::asm;

/// An error number, without its sign.
pub type Errno = usize;

/// `EINVAL`.
pub const EINVAL: Errno = 22;
/// `ENOENT`.
pub const ENOENT: Errno = 2;

/// Numbers of system calls.
mod number {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const OPEN: usize = 2;
    pub const CLOSE: usize = 3;
    pub const IOCTL: usize = 16;
    pub const PREAD: usize = 17;
    pub const PWRITE: usize = 18;
    pub const NANOSLEEP: usize = 35;
    pub const GETPID: usize = 39;
    pub const SOCKET: usize = 41;
    pub const SENDTO: usize = 44;
    pub const RECVFROM: usize = 45;
    pub const BIND: usize = 49;
    pub const SETSOCKOPT: usize = 54;
    pub const EXECVE: usize = 59;
    pub const EXIT: usize = 60;
    pub const MKDIR: usize = 83;
    pub const SYNC: usize = 162;
    pub const MOUNT: usize = 165;
    pub const REBOOT: usize = 169;
    pub const IO_SETUP: usize = 206;
    pub const IO_DESTROY: usize = 207;
    pub const IO_GETEVENTS: usize = 208;
    pub const IO_SUBMIT: usize = 209;
    pub const FINIT_MODULE: usize = 313;
}

/// # Safety
///
/// What the call does with its arguments must be sound.
unsafe fn call(number: usize, a: [usize; 6]) -> Result<usize, Errno> {
    let result: isize;
    // SAFETY: the caller's; Linux keeps all registers but rax, rcx and r11.
    unsafe {
        asm!("syscall", inlateout("rax") number => result,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    if (-4095..0).contains(&result) {
        return Err(result.unsigned_abs());
    }
    Ok(result.unsigned_abs())
}

/// A call whose pointers, if there are any, are to live memory of the kind that it wants.
macro_rules! sys {
    ($number:ident $(, $arg:expr)*) => {{
        let given = [$($arg),*];
        let mut all = [0_usize; 6];
        all[..given.len()].copy_from_slice(&given);
        // SAFETY: pointers come from references that outlive the call, with the length of what they lead to.
        unsafe { call(number::$number, all) }
    }};
    ($number:ident) => {{
        // SAFETY: no arguments.
        unsafe { call(number::$number, [0; 6]) }
    }};
}

/// A name as Linux takes it.
pub type Name = core::ffi::CStr;

fn address<T: ?Sized>(what: &T) -> usize {
    core::ptr::from_ref(what).cast::<u8>() as usize
}

fn address_mut<T: ?Sized>(what: &mut T) -> usize {
    core::ptr::from_mut(what).cast::<u8>() as usize
}

/// An open file or socket; never closed by being dropped.
#[derive(Clone, Copy)]
pub struct File(pub usize);

/// `O_RDONLY`.
pub const READ_ONLY: usize = 0;
/// `O_WRONLY | O_NOCTTY`.
pub const TERMINAL: usize = 0o401;
/// `O_RDWR | O_DIRECT`.
pub const DIRECT: usize = 0o40_002;

impl File {
    /// Opens a file.
    pub fn open(name: &Name, flags: usize) -> Result<Self, Errno> {
        sys!(OPEN, address(name), flags, 0).map(Self)
    }
    /// Closes it.
    pub fn close(self) {
        let _ = sys!(CLOSE, self.0);
    }
    /// Reads some bytes.
    pub fn read(self, into: &mut [u8]) -> Result<usize, Errno> {
        sys!(READ, self.0, address_mut(into), into.len())
    }
    /// Writes some bytes.
    pub fn write(self, bytes: &[u8]) -> Result<usize, Errno> {
        sys!(WRITE, self.0, address(bytes), bytes.len())
    }
    /// Reads at a place.
    pub fn read_at(self, into: &mut [u8], at: usize) -> Result<usize, Errno> {
        sys!(PREAD, self.0, address_mut(into), into.len(), at)
    }
    /// Writes at a place.
    pub fn write_at(self, bytes: &[u8], at: usize) -> Result<usize, Errno> {
        sys!(PWRITE, self.0, address(bytes), bytes.len(), at)
    }
    /// `ioctl` with a number.
    pub fn control(self, request: usize, number: usize) -> Result<usize, Errno> {
        // No request of ours that takes a number takes it for a pointer.
        sys!(IOCTL, self.0, request, number)
    }
    /// `ioctl` with a structure.
    pub fn control_with<T>(self, request: usize, what: &mut T) -> Result<usize, Errno> {
        sys!(IOCTL, self.0, request, address_mut(what))
    }
    /// Loads it into the kernel as a module.
    pub fn load_module(self) -> Result<usize, Errno> {
        sys!(FINIT_MODULE, self.0, address(c""), 0)
    }
}

/// `AF_INET` socket for datagrams.
pub fn udp() -> Result<File, Errno> {
    sys!(SOCKET, 2, 2, 0).map(File)
}

/// An address of the Internet protocol, as `sockaddr_in`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Address {
    family: u16,
    port: [u8; 2],
    ip: [u8; 4],
    zero: [u8; 8],
}

impl Address {
    /// This one.
    pub const fn new(ip: [u8; 4], port: u16) -> Self {
        Self {
            family: 2,
            port: port.to_be_bytes(),
            ip,
            zero: [0; 8],
        }
    }
}

impl File {
    /// Takes an address for its own.
    pub fn bind(self, to: &Address) -> Result<usize, Errno> {
        sys!(BIND, self.0, address(to), size_of::<Address>())
    }
    /// Sends a datagram.
    pub fn send(self, bytes: &[u8], to: &Address) -> Result<usize, Errno> {
        let size = size_of::<Address>();
        sys!(
            SENDTO,
            self.0,
            address(bytes),
            bytes.len(),
            0,
            address(to),
            size
        )
    }
    /// Receives a datagram; waits for it, unless `MSG_DONTWAIT` is given.
    pub fn receive(self, into: &mut [u8], now: bool) -> Result<(usize, Address), Errno> {
        let mut from = Address::default();
        let mut size = size_of::<Address>() as u32;
        let flags = usize::from(now) * 0x40;
        let (bytes, len) = (address_mut(into), into.len());
        let (who, room) = (address_mut(&mut from), address_mut(&mut size));
        sys!(RECVFROM, self.0, bytes, len, flags, who, room).map(|n| (n, from))
    }
    /// `SO_RCVTIMEO`: how long [`File::receive`] waits.
    pub fn wait_at_most(self, microseconds: u64) -> Result<usize, Errno> {
        let time = [0, microseconds];
        sys!(
            SETSOCKOPT,
            self.0,
            1,
            20,
            address(&time),
            size_of_val(&time)
        )
    }
}

/// One operation of `io_submit`: `struct iocb`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Iocb {
    /// Comes back with its event.
    pub data: u64,
    key: u32,
    flags: u32,
    /// 0: `IOCB_CMD_PREAD`.
    opcode: u16,
    priority: i16,
    /// File.
    pub file: u32,
    /// Buffer.
    pub buffer: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Place in the file.
    pub offset: u64,
    reserved: u64,
    more: [u32; 2],
}

/// One end of such: `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct IoEvent {
    /// The operation's `data`.
    pub data: u64,
    operation: u64,
    /// Bytes, or an error.
    pub result: i64,
    result2: i64,
}

/// A context for asynchronous operations.
pub struct Aio(usize);

impl Aio {
    /// One for so many operations.
    pub fn new(operations: usize) -> Result<Self, Errno> {
        let mut context = 0_usize;
        sys!(IO_SETUP, operations, address_mut(&mut context))?;
        Ok(Self(context))
    }
    /// Begins operations.
    ///
    /// # Safety
    ///
    /// Their buffers must live and be left alone until their events have come.
    pub unsafe fn submit(&self, operations: &[*mut Iocb]) -> Result<usize, Errno> {
        sys!(IO_SUBMIT, self.0, operations.len(), address(operations))
    }
    /// Waits for one event at least.
    pub fn events(&self, into: &mut [IoEvent]) -> Result<usize, Errno> {
        sys!(IO_GETEVENTS, self.0, 1, into.len(), address_mut(into), 0)
    }
    /// Gives it back.
    pub fn destroy(self) {
        let _ = sys!(IO_DESTROY, self.0);
    }
}

/// Makes a folder and mounts a file system of this kind there.
pub fn mount(kind: &Name, at: &Name) {
    let _ = sys!(MKDIR, address(at), 0o755);
    let _ = sys!(MOUNT, address(kind), address(at), address(kind), 0, 0);
}

/// Sleeps.
pub fn sleep(microseconds: u64) {
    let time = [microseconds / 1_000_000, microseconds % 1_000_000 * 1000];
    let _ = sys!(NANOSLEEP, address(&time), 0);
}

/// The number of this process.
pub fn process() -> usize {
    sys!(GETPID).unwrap_or(0)
}

/// Becomes another program.
///
/// # Safety
///
/// Both must be lists of strings that end with a null pointer.
pub unsafe fn execute(name: *const u8, args: *const *const u8, env: *const *const u8) -> Errno {
    let answer = sys!(EXECVE, name as usize, args as usize, env as usize);
    answer.err().unwrap_or(EINVAL)
}

/// Ends the process.
pub fn exit(code: usize) -> ! {
    loop {
        let _ = sys!(EXIT, code);
    }
}

/// Switches the machine off (`LINUX_REBOOT_CMD_POWER_OFF`).
pub fn power_off() -> ! {
    let _ = sys!(SYNC);
    loop {
        let _ = sys!(REBOOT, 0xfee1_dead, 0x2812_1969, 0x4321_fedc);
    }
}

/// The time-stamp counter, once all before is done.
pub fn tsc() -> u64 {
    core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
    // SAFETY: Linux lets programs read it.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    }
}
