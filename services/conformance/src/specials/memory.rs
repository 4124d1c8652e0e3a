//! Memory that is taken away is gone: for the very next access, whichever way it went.

use ipc_schema::abi::layout;
use ipc_schema::abi::{Kind, Status, op, rights};

use super::Special;
use super::caps::answer;
use crate::case::{Outcome, expect, same};
use crate::kernel::ask;
use crate::kit::{self, Kit, PAGE};
use crate::partner::{Act, Partner};

pub(super) const CASES: &[Special] = &[
    ("UNMAP takes a page away", unmap),
    ("REVOKE takes a page away", revoke),
    ("REVOKE of the whole takes a part away", revoke_whole),
    ("destroying a Memory takes it away", destroy),
    ("destroying the whole takes a part away", destroy_whole),
    ("MAKE_POOL takes a page away", make_pool),
    (
        "REVOKE takes a page away from every Space",
        revoke_everywhere,
    ),
    ("another page in the same place", replaced),
    ("a page mapped for reading", read_only),
    ("a page mapped without EXEC", no_execute),
    ("a page mapped for reading and executing", executable),
    ("the kernel's half is not there", kernel_half),
    ("a mapping is taken away whole", whole_mapping),
    ("two mappings of one page", two_mappings),
    ("a large page", large_page),
    ("a part has the rights of what it is made by", part_rights),
    ("a part dies with the whole", part_dies),
    ("parts side by side", side_by_side),
    ("a Pool's memory comes back", pool_memory_back),
    ("pages from a Pool are clear", pool_pages_clear),
    (
        "a refused MAKE_POOL leaves mappings alone",
        refused_pool_keeps,
    ),
];

/// Where the cases map in a partner's Space.
const AT: u64 = 0x7200_0000;
const READ: u64 = rights::READ as u64;
const WRITE: u64 = rights::WRITE as u64;
const EXEC: u64 = rights::EXEC as u64;
const PAGE_FAULT: u64 = 14;

fn map(space: u64, at: u64, memory: u64, access: u64, offset: u64, len: u64) -> Outcome {
    ask(
        space,
        op::space::MAP,
        [at, memory | access << 32, offset, len],
    )?;
    Ok(())
}

/// A partner that has read the page.
fn reader(kit: &mut Kit, memory: u64, value: u64) -> Outcome<Partner> {
    kit.window(memory, 0)?.set(0, value);
    let mut partner = Partner::new(kit)?;
    map(partner.space, AT, memory, READ | WRITE, 0, PAGE)?;
    same("the byte", &value, &partner.byte(AT)?)?;
    Ok(partner)
}

fn gone(partner: &mut Partner) -> Outcome {
    let [vector, error, address, _] = partner.faults(Act::Load(AT))?;
    same(
        "vector, error, address",
        &[PAGE_FAULT, 4, AT],
        &[vector, error, address],
    )
}

fn unmap(kit: &mut Kit) -> Outcome {
    let memory = kit.part(PAGE)?;
    let mut partner = reader(kit, memory, 1)?;
    ask(partner.space, op::space::UNMAP, [AT, 0, 0, 0])?;
    gone(&mut partner)
}

fn revoke(kit: &mut Kit) -> Outcome {
    let memory = kit.part(PAGE)?;
    let mut partner = reader(kit, memory, 2)?;
    ask(memory, op::memory::REVOKE, [0; 4])?;
    expect(
        Status::InvalidArg,
        answer(partner.space, op::space::UNMAP, [AT, 0, 0, 0]),
    )?;
    gone(&mut partner)
}

/// A Memory and a part of it.
fn family(kit: &mut Kit) -> Outcome<(u64, u64)> {
    let whole = kit.part(4 * PAGE)?;
    let part = kit.dest()?;
    ask(
        whole,
        op::memory::DIVIDE,
        [PAGE, 2 * PAGE, part, kit.live(Kind::Pool)],
    )?;
    Ok((whole, part))
}

fn revoke_whole(kit: &mut Kit) -> Outcome {
    let (whole, part) = family(kit)?;
    let mut partner = reader(kit, part, 3)?;
    ask(whole, op::memory::REVOKE, [0; 4])?;
    gone(&mut partner)
}

fn destroy(kit: &mut Kit) -> Outcome {
    let memory = kit.part(PAGE)?;
    let mut partner = reader(kit, memory, 4)?;
    kit::destroy(memory)?;
    expect(Status::InvalidCap, answer(memory, op::memory::INFO, [0; 4]))?;
    gone(&mut partner)
}

fn destroy_whole(kit: &mut Kit) -> Outcome {
    let (whole, part) = family(kit)?;
    let mut partner = reader(kit, part, 5)?;
    kit::destroy(whole)?;
    expect(Status::InvalidCap, answer(part, op::memory::INFO, [0; 4]))?;
    gone(&mut partner)
}

fn make_pool(kit: &mut Kit) -> Outcome {
    let memory = kit.part(4 * PAGE)?;
    let mut partner = reader(kit, memory, 6)?;
    kit.make_pool(memory)?;
    let words = [AT, memory | READ << 32, 0, PAGE];
    expect(Status::Busy, answer(partner.space, op::space::MAP, words))?;
    gone(&mut partner)
}

fn revoke_everywhere(kit: &mut Kit) -> Outcome {
    let memory = kit.part(PAGE)?;
    let mut first = reader(kit, memory, 7)?;
    let mut second = reader(kit, memory, 8)?;
    ask(memory, op::memory::REVOKE, [0; 4])?;
    gone(&mut first)?;
    gone(&mut second)
}

fn replaced(kit: &mut Kit) -> Outcome {
    let (old, new) = (kit.part(PAGE)?, kit.part(PAGE)?);
    let mut partner = reader(kit, old, 9)?;
    kit.window(new, 0)?.set(0, 10);
    ask(partner.space, op::space::UNMAP, [AT, 0, 0, 0])?;
    map(partner.space, AT, new, READ, 0, PAGE)?;
    same("the byte", &10, &partner.byte(AT)?)
}

fn read_only(kit: &mut Kit) -> Outcome {
    let memory = kit.part(PAGE)?;
    let window = kit.window(memory, 0)?;
    window.set(0, 11);
    let mut partner = Partner::new(kit)?;
    map(partner.space, AT, memory, READ, 0, PAGE)?;
    same("the byte", &11, &partner.byte(AT)?)?;
    let [vector, error, address, _] = partner.faults(Act::Store(AT))?;
    same(
        "vector, error, address",
        &[PAGE_FAULT, 7, AT],
        &[vector, error, address],
    )?;
    same("the byte after", &11, &window.get(0))
}

/// RET.
const CODE: u64 = 0xc3;

fn no_execute(kit: &mut Kit) -> Outcome {
    let memory = kit.part(PAGE)?;
    let mut partner = reader(kit, memory, CODE)?;
    let [vector, error, address, rip] = partner.faults(Act::Jump(AT))?;
    // Present, user, fetch.
    same(
        "vector, error, address, rip",
        &[PAGE_FAULT, 0x15, AT, AT],
        &[vector, error, address, rip],
    )
}

fn executable(kit: &mut Kit) -> Outcome {
    let memory = kit.part(PAGE)?;
    kit.window(memory, 0)?.set(0, CODE);
    let mut partner = Partner::new(kit)?;
    map(partner.space, AT, memory, READ | EXEC, 0, PAGE)?;
    partner.do_act(Act::Jump(AT))?;
    let [vector, error, ..] = partner.faults(Act::Store(AT))?;
    same("vector, error", &[PAGE_FAULT, 7], &[vector, error])
}

fn kernel_half(kit: &mut Kit) -> Outcome {
    // First page of the kernel's half, the physical map, the image, the last page.
    for at in [
        0xffff_8000_0000_0000,
        0xffff_8000_0010_0000,
        0xffff_ffff_8000_0000,
        !0xfff,
    ] {
        let mut partner = Partner::new(kit)?;
        let [vector, error, address, _] = partner.faults(Act::Load(at))?;
        same("vector, address", &[PAGE_FAULT, at], &[vector, address])?;
        same("user read", &4, &(error & !1))?;
    }
    for at in [layout::USER_END, 0, 1] {
        let mut partner = Partner::new(kit)?;
        let [vector, ..] = partner.faults(Act::Load(at))?;
        same("vector", &PAGE_FAULT, &vector)?;
    }
    Ok(())
}

fn whole_mapping(kit: &mut Kit) -> Outcome {
    let memory = kit.part(3 * PAGE)?;
    let mut partner = Partner::new(kit)?;
    map(partner.space, AT, memory, READ, 0, 3 * PAGE)?;
    partner.byte(AT + 2 * PAGE)?;
    for at in [AT + PAGE, AT + 2 * PAGE, AT - PAGE] {
        expect(
            Status::InvalidArg,
            answer(partner.space, op::space::UNMAP, [at, 0, 0, 0]),
        )?;
    }
    partner.byte(AT + PAGE)?;
    ask(partner.space, op::space::UNMAP, [AT, 0, 0, 0])?;
    let [vector, _, address, _] = partner.faults(Act::Load(AT + 2 * PAGE))?;
    same(
        "vector, address",
        &[PAGE_FAULT, AT + 2 * PAGE],
        &[vector, address],
    )
}

fn two_mappings(kit: &mut Kit) -> Outcome {
    let memory = kit.part(2 * PAGE)?;
    let mut partner = Partner::new(kit)?;
    map(partner.space, AT, memory, READ, PAGE, PAGE)?;
    map(
        partner.space,
        AT + 8 * PAGE,
        memory,
        READ | WRITE,
        0,
        2 * PAGE,
    )?;
    partner.do_act(Act::Store(AT + 9 * PAGE))?;
    same("seen by the other", &0x5a, &partner.byte(AT)?)?;
    ask(partner.space, op::space::UNMAP, [AT + 8 * PAGE, 0, 0, 0])?;
    same("the other stays", &0x5a, &partner.byte(AT)?)?;
    let [vector, ..] = partner.faults(Act::Load(AT + 9 * PAGE))?;
    same("vector", &PAGE_FAULT, &vector)
}

/// 4 MiB hold an aligned 2 MiB, wherever they lie; they are one page, and none when taken away.
fn large_page(kit: &mut Kit) -> Outcome {
    const LARGE: u64 = 2 << 20;
    let memory = kit.part(2 * LARGE)?;
    let phys = ask(memory, op::memory::INFO, [0; 4])?[2];
    let offset = phys.next_multiple_of(LARGE) - phys;
    kit.window(memory, offset + LARGE - PAGE)?.set(511, 0x77);
    let mut partner = Partner::new(kit)?;
    let at = 0x8000_0000;
    map(partner.space, at, memory, READ, offset, LARGE)?;
    same("its last word", &0x77, &partner.byte(at + LARGE - 8)?)?;
    let words = [at + PAGE, memory | READ << 32, 0, PAGE];
    expect(
        Status::Overlap,
        answer(partner.space, op::space::MAP, words),
    )?;
    ask(partner.space, op::space::UNMAP, [at, 0, 0, 0])?;
    // Small pages in the same place, and a large one again.
    map(partner.space, at, memory, READ, offset, PAGE)?;
    partner.byte(at)?;
    ask(partner.space, op::space::UNMAP, [at, 0, 0, 0])?;
    map(partner.space, at, memory, READ, offset, LARGE)?;
    same("its last word", &0x77, &partner.byte(at + LARGE - 8)?)?;
    ask(memory, op::memory::REVOKE, [0; 4])?;
    let [vector, ..] = partner.faults(Act::Load(at + LARGE - 8))?;
    same("vector", &PAGE_FAULT, &vector)
}

fn part_rights(kit: &mut Kit) -> Outcome {
    let memory = kit.part(2 * PAGE)?;
    let less = kit.copy(memory, rights::READ | rights::CONTROL)?;
    let part = kit.dest()?;
    ask(
        less,
        op::memory::DIVIDE,
        [0, PAGE, part, kit.live(Kind::Pool)],
    )?;
    let space = kit.live(Kind::Space);
    let words = |access| [AT, part | access << 32, 0, PAGE];
    expect(
        Status::MissingRight,
        answer(space, op::space::MAP, words(READ | WRITE)),
    )?;
    expect(
        Status::MissingRight,
        kit::destroy(part).err().unwrap_or(Status::Ok),
    )?;
    ask(space, op::space::MAP, words(READ))?;
    // It cannot be destroyed but with the whole.
    Ok(kit::destroy(memory)?)
}

fn part_dies(kit: &mut Kit) -> Outcome {
    let (whole, part) = family(kit)?;
    let inner = kit.dest()?;
    ask(
        part,
        op::memory::DIVIDE,
        [0, PAGE, inner, kit.live(Kind::Pool)],
    )?;
    kit::destroy(whole)?;
    for slot in [whole, part, inner] {
        expect(Status::InvalidCap, answer(slot, op::memory::INFO, [0; 4]))?;
    }
    Ok(())
}

fn side_by_side(kit: &mut Kit) -> Outcome {
    let (whole, part) = family(kit)?;
    let pool = kit.live(Kind::Pool);
    for (offset, len) in [(0, PAGE), (3 * PAGE, PAGE)] {
        let dest = kit.dest()?;
        ask(whole, op::memory::DIVIDE, [offset, len, dest, pool])?;
        let [bytes, device, phys, _] = ask(dest, op::memory::INFO, [0; 4])?;
        let base = ask(whole, op::memory::INFO, [0; 4])?[2];
        same("the part", &[len, 0, base + offset], &[bytes, device, phys])?;
    }
    let bare = kit.copy(part, rights::ALL & !rights::CONTROL)?;
    let [bytes, _, phys, _] = ask(bare, op::memory::INFO, [0; 4])?;
    same("without CONTROL", &[2 * PAGE, 0], &[bytes, phys])
}

fn pool_memory_back(kit: &mut Kit) -> Outcome {
    let memory = kit.part(4 * PAGE)?;
    let space = kit.live(Kind::Space);
    for _ in 0..3 {
        let pool = kit.make_pool(memory)?;
        let words = [AT, memory | READ << 32, 0, PAGE];
        expect(Status::Busy, answer(space, op::space::MAP, words))?;
        kit::destroy_pool(pool)?;
        ask(space, op::space::MAP, words)?;
        ask(space, op::space::UNMAP, [AT, 0, 0, 0])?;
    }
    Ok(())
}

/// What user level had written does not come back in a thread's UTCB.
fn pool_pages_clear(kit: &mut Kit) -> Outcome {
    let memory = kit.part(40 * PAGE)?;
    for page in 0..40 {
        let window = kit.window(memory, page * PAGE)?;
        (0..512).for_each(|i| window.set(i, u64::MAX));
    }
    let pool = kit.make_pool(memory)?;
    let mut partner = Partner::from_pool(kit, pool)?;
    for offset in [0, 8, 72, 80, 1023, 1024, PAGE - 1] {
        same(
            "a byte of its UTCB",
            &0,
            &partner.byte(partner.utcb + offset)?,
        )?;
    }
    Ok(())
}

/// It is no Pool, and nobody lost a page for it.
fn refused_pool_keeps(kit: &mut Kit) -> Outcome {
    let memory = kit.part(PAGE)?;
    let mut partner = reader(kit, memory, 12)?;
    let dest = kit.dest()?;
    expect(
        Status::OutOfRange,
        answer(memory, op::memory::MAKE_POOL, [dest, 0, 0, 0]),
    )?;
    partner.act(Act::Load(AT));
    same("still there", &true, &partner.done())
}
