//! What no server may do, one act after the other.

use bench::probe::{Expected, Failure, judge, judge_share, page, vector};
use runtime::abi::Status;
use runtime::abi::layout::{self, slot};
use runtime::abi::rights::{EXEC, READ, WRITE};
use runtime::object::{Ports, Space};
use runtime::text::Text;
use runtime::{Endpoint, Message, StartInfo, time};

use core::fmt::Write;

use super::partner::{self as p, Partner, address, stack_top};

/// How long a fault may take, in microseconds.
const PATIENCE: u64 = 200_000;
/// First address of the kernel's half, where all physical memory is, and that of its image.
const KERNEL: u64 = 0xffff_8000_0000_0000;
const KERNEL_TOP: u64 = 0xffff_ffff_8000_0000;

/// An act of the partner.
struct Act {
    name: &'static str,
    from: &'static [u8; 0],
    to: &'static [u8; 0],
    argument: u64,
    expected: Expected,
}

const fn act(
    name: &'static str,
    (from, to): (&'static [u8; 0], &'static [u8; 0]),
    argument: u64,
    expected: Expected,
) -> Act {
    Act {
        name,
        from,
        to,
        argument,
        expected,
    }
}

/// Tries everything; answers how many probes failed.
pub fn all(start: &StartInfo, partner: &mut Partner) -> usize {
    let (mut passed, mut failed) = (0usize, 0usize);
    let mut count = |name: &str, result: Result<(), Failure>| match result {
        Ok(()) => {
            passed += 1;
            defmt::info!("PROBE pass {=str}", name);
        }
        Err(why) => {
            failed += 1;
            let mut text = Text::<160>::new();
            // What does not fit is cut off.
            let _ = write!(text, "{why}");
            defmt::error!("PROBE fail {=str}: {=str}", name, text.as_str());
        }
    };
    for act in acts() {
        count(act.name, try_act(partner, &act));
    }
    count("read and write all of the kernel", try_kernel(partner));
    count(
        "every register of a guest invalid",
        super::entries::all(start),
    );
    for (name, is, expected) in operations(start, partner) {
        let result = if is == Err(expected) {
            Ok(())
        } else {
            Err(Failure::NoFault)
        };
        count(name, result);
    }
    for (name, settings, expected) in SHARES {
        count(name, try_shares(partner, settings, expected));
    }
    count("alive after all", alive(partner));
    defmt::info!("PROBE {=usize} passed, {=usize} failed", passed, failed);
    failed
}

/// Two threads that always want to run, of one priority: budgets and periods in microseconds, and the percent of the
/// processor that each must get. They are as the scheduler server sets them.
type Shares = (&'static str, [(u64, u64); 2], [u64; 2]);

const SHARES: [Shares; 4] = [
    ("equal turns", [(5_000, 5_000), (5_000, 5_000)], [50, 50]),
    (
        "turns of 1 to 3",
        [(3_000, 3_000), (9_000, 9_000)],
        [25, 75],
    ),
    (
        "a limit of 30 %",
        [(3_000, 10_000), (7_000, 7_000)],
        [30, 70],
    ),
    (
        "limits of 20 % and 50 %",
        [(2_000, 10_000), (5_000, 10_000)],
        [20, 50],
    ),
];

/// Tries up to five times: where time is not counted in instructions, a host that stops the emulator for a while uses up a
/// turn.
fn try_shares(
    partner: &mut Partner,
    settings: [(u64, u64); 2],
    expected: [u64; 2],
) -> Result<(), Failure> {
    const MICROSECONDS: u64 = 300_000;
    let mut once = || {
        let (used, all) = partner
            .spin(settings, MICROSECONDS)
            .map_err(|_| Failure::NotTried("the threads cannot be started"))?;
        let mut each = used.into_iter().zip(expected);
        each.try_for_each(|(used, expected)| judge_share(used, all, expected))
    };
    let first = once();
    (1..5).fold(first, |result, _| result.or_else(|_| once()))
}

fn try_act(partner: &mut Partner, act: &Act) -> Result<(), Failure> {
    let (from, to) = (address(act.from), address(act.to));
    // A jump's fault is where it leads to.
    let expected = match act.expected.error & page::FETCH {
        0 => act.expected.within(from, to),
        _ => act.expected.within(act.argument, act.argument + 1),
    };
    partner
        .start_actor(from, act.argument)
        .map_err(|_| Failure::NotTried("the thread cannot be started"))?;
    let fault = partner
        .next_fault(time::after(PATIENCE))
        .map_err(|_| Failure::NotTried("no fault can be received"))?;
    let result = judge(&expected, fault);
    let stopped = partner.stop();
    result.and(stopped.map_err(|_| Failure::NotTried("the thread cannot be stopped")))
}

/// Every page of the kernel's image (text, vectors, what belongs to each processor, stacks), places all over the physical map, the local
/// APIC in it, and what the loader mapped.
fn try_kernel(partner: &mut Partner) -> Result<(), Failure> {
    const IMAGE_PAGES: u64 = 512;
    const LOADER: u64 = 0xffff_9000_0000_0000;
    let image = (0..IMAGE_PAGES).map(|i| KERNEL_TOP + i * 4096);
    let physical = (0..64).map(|i| KERNEL + i * 0x0080_1000);
    let others = [
        KERNEL + 0xfee0_0020,
        LOADER,
        LOADER + 0x10_0000,
        u64::MAX - 7,
    ];
    for address in image.chain(physical).chain(others) {
        let read = (&p::bench_read, &p::bench_read_end);
        let write = (&p::bench_write, &p::bench_write_end);
        for (code, error) in [(read, page::USER), (write, page::USER | page::WRITE)] {
            let expected = Expected::page(address, error).whether_present_or_not();
            try_act(partner, &act("", code, address, expected))?;
        }
    }
    Ok(())
}

fn acts() -> [Act; 31] {
    use page::{FETCH, PRESENT, USER, WRITE as WRITING};
    let text = p::code().0;
    let stack = stack_top(0) - 8;
    let read = (&p::bench_read, &p::bench_read_end);
    let write = (&p::bench_write, &p::bench_write_end);
    let jump = (&p::bench_jump, &p::bench_jump_end);
    let hidden = |address, error| Expected::page(address, error).whether_present_or_not();
    let general = |error| Expected::other(vector::GP, error);
    let gp = general(0);
    [
        act("read kernel memory", read, KERNEL, hidden(KERNEL, USER)),
        act(
            "read the kernel's top",
            read,
            KERNEL_TOP,
            hidden(KERNEL_TOP, USER),
        ),
        act(
            "write kernel memory",
            write,
            KERNEL,
            hidden(KERNEL, USER | WRITING),
        ),
        act(
            "run kernel memory",
            jump,
            KERNEL_TOP,
            hidden(KERNEL_TOP, USER | FETCH),
        ),
        act(
            "read another server's heap",
            read,
            p::NOT_ITS,
            Expected::page(p::NOT_ITS, USER),
        ),
        act(
            "write another server's heap",
            write,
            p::NOT_ITS,
            Expected::page(p::NOT_ITS, USER | WRITING),
        ),
        act("read address 0", read, 0, Expected::page(0, USER)),
        act(
            "read a local APIC register",
            read,
            0xfee0_0020,
            Expected::page(0xfee0_0020, USER),
        ),
        act("read a non-canonical address", read, 1 << 63, gp),
        act(
            "write its text",
            write,
            text,
            Expected::page(text, USER | PRESENT | WRITING),
        ),
        act(
            "write the stub page",
            write,
            layout::STUB,
            Expected::page(layout::STUB, USER | PRESENT | WRITING),
        ),
        act(
            "run its stack",
            jump,
            stack,
            Expected::page(stack, USER | PRESENT | FETCH),
        ),
        act(
            "run its UTCB",
            jump,
            layout::UTCB,
            Expected::page(layout::UTCB, USER | PRESENT | FETCH),
        ),
        act(
            "IN from an unowned port",
            (&p::bench_in, &p::bench_in_end),
            0x60,
            gp,
        ),
        act(
            "OUT to an unowned port",
            (&p::bench_out, &p::bench_out_end),
            0xcf9,
            gp,
        ),
        act(
            "SSE instruction",
            (&p::bench_movaps, &p::bench_movaps_end),
            0,
            Expected::other(vector::NM, 0),
        ),
        act(
            "x87 instruction",
            (&p::bench_fld, &p::bench_fld_end),
            0,
            Expected::other(vector::NM, 0),
        ),
        act("HLT", (&p::bench_hlt, &p::bench_hlt_end), 0, gp),
        act("CLI", (&p::bench_cli, &p::bench_cli_end), 0, gp),
        act("read CR3", (&p::bench_cr3, &p::bench_cr3_end), 0, gp),
        act(
            "write CR3",
            (&p::bench_write_cr3, &p::bench_write_cr3_end),
            0,
            gp,
        ),
        act("WRMSR", (&p::bench_wrmsr, &p::bench_wrmsr_end), 0, gp),
        act("RDMSR", (&p::bench_rdmsr, &p::bench_rdmsr_end), 0, gp),
        // Error code: vector 0x21 in the IDT (Intel SDM vol. 3, 6.13).
        act(
            "INT 0x21",
            (&p::bench_int, &p::bench_int_end),
            0,
            general(0x21 << 3 | 2).without_index(),
        ),
        act("SGDT", (&p::bench_sgdt, &p::bench_sgdt_end), stack, gp),
        act("SIDT", (&p::bench_sidt, &p::bench_sidt_end), stack, gp),
        act("STR", (&p::bench_str, &p::bench_str_end), 0, gp),
        act("SMSW", (&p::bench_smsw, &p::bench_smsw_end), 0, gp),
        act(
            "read kernel memory with AC set",
            (&p::bench_ac, &p::bench_ac_end),
            KERNEL_TOP,
            hidden(KERNEL_TOP, USER),
        ),
        act(
            "XGETBV",
            (&p::bench_xgetbv, &p::bench_xgetbv_end),
            0,
            Expected::other(vector::UD, 0),
        ),
        act("VMRUN", (&p::bench_vmrun, &p::bench_vmrun_end), 0, gp),
    ]
}

/// An operation that the kernel must refuse: its name, what came, what must come.
type Operation = (&'static str, Result<(), Status>, Status);

/// Tries them, as this server itself.
fn operations(start: &StartInfo, partner: &Partner) -> [Operation; 10] {
    use Status::{InvalidArg, InvalidCap, MissingRight, OutOfRange, Overlap, WrongType};
    // Nobody fills the last slots.
    let free = start.slots.saturating_sub(1);
    let own = Space(slot::SPACE);
    let at = layout::SHARED;
    let image = start.cap("image").unwrap_or(slot::NULL);
    let call = |slot| Endpoint(slot).call(Message::new(1, [0; 4])).map(|_| ());
    let port = |slot| Ports(slot).in8(0x60).map(|_| ());
    let map = |at, rights| own.map(at, partner.ram, rights, 0, 4096);
    [
        ("call an empty slot", call(free), InvalidCap),
        ("call a slot beyond the table", call(u32::MAX), InvalidCap),
        ("call a receive right", call(slot::ENDPOINT), MissingRight),
        ("port without a capability", port(slot::PORTS), InvalidCap),
        (
            "port by a Notification",
            port(slot::NOTIFICATION),
            WrongType,
        ),
        (
            "map writable and executable",
            map(at, READ | WRITE | EXEC),
            InvalidArg,
        ),
        ("map into the kernel's half", map(KERNEL, READ), OutOfRange),
        ("map over its image", map(layout::IMAGE, READ), Overlap),
        (
            "copy without GRANT",
            own.copy_cap(image, free, READ, 0),
            MissingRight,
        ),
        (
            "start a thread in the kernel",
            partner.start_actor(KERNEL, 0),
            OutOfRange,
        ),
    ]
}

/// Whether the partner still answers: its other thread serves a call.
fn alive(partner: &mut Partner) -> Result<(), Failure> {
    let _ = partner.start_echo();
    let words = [1, 2, 3, 4];
    let reply = partner
        .endpoint
        .call_until(Message::new(1, words), time::after(PATIENCE));
    match reply {
        Ok(reply) if reply.words == words => Ok(()),
        _ => Err(Failure::Silence),
    }
}
