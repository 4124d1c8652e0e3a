//! Answers of root as text for a terminal. Lines end with CR LF.

use alloc::format;
use alloc::string::String;
use core::fmt::{Display, Write};
use ipc_schema::proto::{
    Cause, CpuInfo, CpuState, DeathRecord, MemoryKinds, Refusal, ServerInfo, ServerState, VmEnd,
    VmInfo, VmState,
};

/// Exception names (Intel SDM vol. 3, table 6-1).
const EXCEPTIONS: [&str; 22] = [
    "#DE divide error",
    "#DB debug",
    "NMI",
    "#BP breakpoint",
    "#OF overflow",
    "#BR bound range",
    "#UD invalid opcode",
    "#NM device not available (an FPU instruction)",
    "#DF double fault",
    "coprocessor overrun",
    "#TS invalid TSS",
    "#NP segment not present",
    "#SS stack fault",
    "#GP general protection",
    "#PF page fault",
    "reserved",
    "#MF x87 error",
    "#AC alignment check",
    "#MC machine check",
    "#XM SIMD error",
    "#VE virtualization",
    "#CP control protection",
];

const REGISTERS: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8 ", "r9 ", "r10", "r11", "r12",
    "r13", "r14", "r15",
];

/// Appends formatted text; writing to a String cannot fail.
macro_rules! put {
    ($text:expr, $($args:tt)*) => {{ let _ = write!($text, $($args)*); }};
}

/// Bytes in the largest unit that shows them well.
fn bytes(count: u64) -> String {
    match count {
        0..=0xf_ffff => format!("{} KiB", count.div_ceil(1024)),
        _ => format!("{}.{} MiB", count >> 20, (count >> 10 & 1023) * 10 / 1024),
    }
}

/// TSC cycles as seconds.
fn seconds(cycles: u64, hz: u64) -> String {
    let milliseconds = u128::from(cycles) * 1000 / u128::from(hz.max(1));
    format!("{}.{:03} s", milliseconds / 1000, milliseconds % 1000)
}

pub fn vms(vms: &[VmInfo], attached: Option<&str>, hz: u64) -> String {
    let mut text = String::from("  NAME             STATE     MEMORY       VCPUS  CPU  UPTIME\r\n");
    for vm in vms {
        let mark = if attached == Some(&vm.name) { '*' } else { ' ' };
        let state = match vm.state {
            VmState::Stopped => "stopped",
            VmState::Starting => "starting",
            VmState::Running => "running",
            VmState::Stopping => "stopping",
            VmState::Failed => "failed",
        };
        let uptime = if vm.state == VmState::Stopped {
            String::from("-")
        } else {
            seconds(vm.uptime, hz)
        };
        let memory = bytes(vm.memory);
        put!(
            text,
            "{mark} {:<16} {state:<9} {memory:<12} {:<6} {:<4} {uptime}\r\n",
            vm.name,
            vm.vcpus,
            cpu(vm.cpu)
        );
    }
    text
}

/// A line for each: what it does; and another: what its memory is for, all of a VM's together at the end. `vms` are their names.
pub fn servers(servers: &[ServerInfo], vms: &[&str], hz: u64) -> String {
    let mut text = String::from(
        " ID  NAME                     STATE       RESTARTS  MEMORY       CPU  CPU TIME\r\n",
    );
    for server in servers {
        let state = match server.state {
            ServerState::Running => "running",
            ServerState::Restarting => "restarting",
            ServerState::Stopped => "stopped",
            ServerState::Dead => "dead",
        };
        put!(
            text,
            "{:>3}  {:<24} {state:<11} {:<9} {:<12} {:<4} {}\r\n",
            server.id,
            server.name,
            server.restarts,
            bytes(server.memory_bytes),
            cpu(server.cpu),
            seconds(server.cpu_time, hz)
        );
    }
    text.push_str(
        " ID  NAME                     (CODE)    DATA      STACK     HEAP      OBJECTS   (FREE)    OTHER     TOTAL\r\n",
    );
    for server in servers {
        kinds(&mut text, server.id, &server.name, &server.kinds);
    }
    for (number, vm) in (0..).zip(vms) {
        let mut all = MemoryKinds::default();
        for server in servers.iter().filter(|s| s.vm == Some(number)) {
            all += server.kinds;
        }
        kinds(&mut text, "VM", vm, &all);
    }
    text
}

/// What memory is for, as a line; what stands in brackets is not added up: it is not its own, or counted beside.
fn kinds(text: &mut String, id: impl Display, name: &str, kinds: &MemoryKinds) {
    put!(
        text,
        "{id:>3}  {name:<24} {:<9} {:<9} {:<9} {:<9} {:<9} {:<9} {:<9} {}\r\n",
        bytes(kinds.code),
        bytes(kinds.image),
        bytes(kinds.stack),
        bytes(kinds.heap),
        bytes(kinds.objects),
        bytes(kinds.objects_free),
        bytes(kinds.other),
        bytes(kinds.total())
    );
}

/// A processor's number; what does not run is on none.
fn cpu(number: Option<u32>) -> String {
    number.map_or_else(|| String::from("-"), |number| format!("{number}"))
}

pub fn cpus(cpus: &[CpuInfo]) -> String {
    let mut text =
        String::from("CPU  APIC ID  STATE     IDLE     LOCKS       STOPS     LONGEST OFF\r\n");
    for cpu in cpus {
        let state = match cpu.state {
            CpuState::Off => "off",
            CpuState::Starting => "starting",
            CpuState::Online => "online",
        };
        // Tenths of a percent.
        let idle = u128::from(cpu.idle.min(cpu.time)) * 1000 / u128::from(cpu.time.max(1));
        put!(
            text,
            "{:>3}  {:<7}  {state:<8}  {:>3}.{} %  {:<10}  {:<8}  {} cycles\r\n",
            cpu.number,
            cpu.apic_id,
            idle / 10,
            idle % 10,
            cpu.locks,
            cpu.stops,
            cpu.longest_off
        );
    }
    text
}

pub fn cause(cause: Cause) -> String {
    match cause {
        Cause::Fault {
            vector,
            error,
            address,
        } => {
            let name = EXCEPTIONS.get(usize::from(vector)).unwrap_or(&"exception");
            let mut text = format!("{name}, vector {vector}, error code {error:#x}");
            if vector == 14 {
                put!(text, ", address {address:#x}");
            }
            text
        }
        Cause::Panic => String::from("panic"),
        Cause::Hung => String::from("did not answer in time"),
        Cause::Killed => String::from("killed"),
        Cause::Exited(code) => format!("gave up with code {code:#x}"),
    }
}

/// The control character RS, which begins a line for xtask: it knows the words and places that go with the numbers.
const RECORD: char = '\x1e';

/// A log record for xtask: RS, `L<source> <hex of one defmt frame>`.
pub fn frame(source: u8, frame: &[u8]) -> String {
    let mut text = format!("{RECORD}L{source} ");
    for byte in frame {
        put!(text, "{byte:02x}");
    }
    text + "\r\n"
}

/// A death. The backtrace is a line for xtask: RS, `B<source> <address> <address> ...`, innermost first.
pub fn death(record: &DeathRecord, hz: u64) -> String {
    let when = seconds(record.time, hz);
    let mut text = format!(
        "{} (server {}) died at {when}: {}\r\n",
        record.name,
        record.id,
        cause(record.cause)
    );
    put!(
        text,
        "  rip {:016x}  rflags {:08x}\r\n",
        record.registers.rip,
        record.registers.rflags
    );
    let registers = REGISTERS.iter().zip(&record.registers.gpr);
    for (i, (name, value)) in registers.enumerate() {
        put!(
            text,
            "  {name} {value:016x}{}",
            if i % 4 == 3 { "\r\n" } else { "" }
        );
    }
    put!(text, "{RECORD}B{}", record.id);
    for address in &record.backtrace {
        put!(text, " {address:#x}");
    }
    text.push_str("\r\n");
    match &record.pending {
        None => text.push_str("  no call was pending\r\n"),
        Some(call) => {
            let [a, b, c, d] = call.words;
            put!(
                text,
                "  pending call: badge {:#x}, tag {:#x}, words {a:#x} {b:#x} {c:#x} {d:#x}\r\n",
                call.badge,
                call.tag
            );
        }
    }
    for line in &record.last_log {
        text.push_str(&frame(record.id, line));
    }
    text
}

pub fn end(end: VmEnd) -> String {
    match end {
        VmEnd::PowerOff => String::from("it powered itself off"),
        VmEnd::Reset => String::from("it asked for a reset"),
        VmEnd::Killed => String::from("killed"),
        VmEnd::TripleFault => String::from("triple fault; its registers are in the log"),
        VmEnd::DebugExit(code) => format!("debug exit with code {code}"),
        VmEnd::Failed => String::from("its VMM could not go on; the log tells why"),
    }
}

pub fn refusal(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Unknown => "there is no such VM or server",
        Refusal::Busy => "it runs already",
        Refusal::NotRunning => "it does not run",
        Refusal::NoMemory => "there is not enough memory",
        Refusal::Malformed => "the request was not understood",
        Refusal::Forbidden => "that is not allowed",
        Refusal::Unsupported => "this system cannot do that",
        Refusal::Failed => "it failed; the log tells why",
    }
}
