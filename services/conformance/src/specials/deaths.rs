//! Death in the middle: of partners, Spaces, Pools, Endpoints, whatever their threads are doing.

use ipc_schema::abi::{Kind, NEVER, Status, Syscall, Tag, op, rights};
use runtime::time;

use super::Special;
use super::caps::answer;
use super::guest::{Guest, LOOP};
use crate::case::{Outcome, expect, same};
use crate::kernel::{Call, ask};
use crate::kit::{self, Kit, PAGE};
use crate::partner::{Act, Partner, next_fault, pause};
use crate::states::pools::half_dead;

pub(super) const CASES: &[Special] = &[
    ("a Space destroyed, its thread in wait", space_in_wait),
    ("a Space destroyed, its thread receiving", space_receiving),
    (
        "a Space destroyed, its thread's call in the queue",
        space_queued,
    ),
    ("a Space destroyed, its thread's call taken", space_calling),
    ("a Space destroyed, its thread serving", space_serving),
    ("a Space destroyed, its thread faulted", space_faulted),
    ("a Space destroyed, its thread in a guest", space_in_guest),
    (
        "a Space destroyed with a Vcpu's state page in it",
        space_of_vcpu,
    ),
    ("a Pool destroyed under a client", pool_under_client),
    ("a Pool destroyed under a server", pool_under_server),
    ("a Pool destroyed with all kinds in it", pool_of_all),
    ("a Pool destroyed by two", pool_by_two),
    (
        "a Pool destroyed takes its mappings of others' Memory",
        pool_mappings,
    ),
    ("a call outlives its Endpoint", call_outlives),
    ("an Endpoint outlives its server", endpoint_outlives),
    ("a bound Notification destroyed", bound_destroyed),
    ("a GuestSpace destroyed under its Vcpu", guest_under_vcpu),
    ("a GuestSpace destroyed in its guest", guest_in_run),
    ("a destroyed Endpoint in a route's place", route_to_dead),
    (
        "objects made and destroyed come back to the page",
        come_back,
    ),
    (
        "an object destroyed by another's capability",
        destroyed_by_copy,
    ),
];

const SLOT: u64 = 10;

/// Client and server at an Endpoint; the server has taken the client's call if `taken`.
fn pair(kit: &mut Kit, taken: bool) -> Outcome<(Partner, Partner, u64)> {
    let endpoint = kit.make(Kind::Endpoint)?;
    let (mut client, mut server) = (Partner::new(kit)?, Partner::new(kit)?);
    client.give(endpoint, SLOT, rights::ALL, 0)?;
    server.give(endpoint, SLOT, rights::ALL, 0)?;
    client.start(Syscall::Call, SLOT, Tag(0), [1; 4], NEVER);
    if taken {
        let got = server.call(Syscall::ReplyRecv, SLOT, Tag(0), [0; 4], NEVER)?;
        same("the call", &[1; 4], &got.words)?;
    }
    Ok((client, server, endpoint))
}

/// A server at the Endpoint gets nothing.
fn queue_is_empty(server: &mut Partner) -> Outcome {
    let got = server.call(Syscall::ReplyRecv, SLOT, Tag(0), [9; 4], 0)?;
    expect(Status::Timeout, got.status)
}

fn space_in_wait(kit: &mut Kit) -> Outcome {
    let notification = kit.make(Kind::Notification)?;
    let mut partner = Partner::new(kit)?;
    partner.give(notification, SLOT, rights::ALL, 0)?;
    partner.start(Syscall::Wait, SLOT, Tag(0), [0; 4], time::after(1_000));
    kit::destroy(partner.space)?;
    expect(
        Status::InvalidCap,
        answer(partner.thread, op::thread::READ_REGS, [0; 4]),
    )?;
    expect(
        Status::Ok,
        Call::system(Syscall::Signal, notification).make().0,
    )?;
    pause(2_000);
    expect(
        Status::Signal,
        Call::system(Syscall::Wait, notification).make().0,
    )
}

fn space_receiving(kit: &mut Kit) -> Outcome {
    let (mut client, mut server, _) = pair(kit, false)?;
    server.call(Syscall::ReplyRecv, SLOT, Tag(0), [0; 4], NEVER)?;
    server.start(Syscall::ReplyRecv, SLOT, Tag(0), [2; 4], NEVER);
    client.finish()?;
    kit::destroy(server.space)?;
    client.start(Syscall::Call, SLOT, Tag(0), [0; 4], time::after(1_000));
    same("nobody takes it", &false, &client.done())?;
    expect(Status::Timeout, client.finish()?.status)
}

fn space_queued(kit: &mut Kit) -> Outcome {
    let (client, mut server, _) = pair(kit, false)?;
    kit::destroy(client.space)?;
    queue_is_empty(&mut server)
}

fn space_calling(kit: &mut Kit) -> Outcome {
    let (client, mut server, _) = pair(kit, true)?;
    kit::destroy(client.space)?;
    server.lives()?;
    // The reply reaches nobody.
    queue_is_empty(&mut server)
}

fn space_serving(kit: &mut Kit) -> Outcome {
    let (mut client, server, _) = pair(kit, true)?;
    kit::destroy(server.space)?;
    expect(Status::Dead, client.finish()?.status)?;
    client.lives()
}

fn space_faulted(kit: &mut Kit) -> Outcome {
    let mut partner = Partner::new(kit)?;
    partner.act(Act::Load(0));
    kit::destroy(partner.space)?;
    same("a fault of nobody", &None, &next_fault()?)
}

/// A partner in a guest that does not end, below this server.
fn in_guest(kit: &mut Kit) -> Outcome<(Partner, Guest)> {
    let guest = Guest::new(kit, LOOP)?;
    let mut partner = Partner::new(kit)?;
    partner.give(guest.vcpu, SLOT, rights::ALL, 0)?;
    let period = time::cycles(10_000);
    let lowest = [kit.live(Kind::Cpu), 0, period, period];
    ask(partner.budget, op::budget::CONFIGURE, lowest)?;
    partner.start(Syscall::Run, SLOT, Tag(0), [0; 4], NEVER);
    pause(1_000);
    same("in its guest", &false, &partner.done())?;
    Ok((partner, guest))
}

fn space_in_guest(kit: &mut Kit) -> Outcome {
    let (partner, mut guest) = in_guest(kit)?;
    kit::destroy(partner.space)?;
    pause(500);
    // It is nobody's now.
    guest.run().map(drop)
}

fn space_of_vcpu(kit: &mut Kit) -> Outcome {
    let (pool, guest) = (kit.live(Kind::Pool), kit.live(Kind::GuestSpace));
    let space = kit.make_standing(Kind::Space)?;
    let vcpu = kit.make_from(pool, Kind::Vcpu, guest, [space, kit::STATE])?;
    kit::destroy(space)?;
    expect(Status::Ok, answer(vcpu, op::vcpu::ON_EXIT, [0, 1, 0, 0]))?;
    kit::destroy(vcpu)?;
    Ok(())
}

fn pool_under_client(kit: &mut Kit) -> Outcome {
    let pool = kit.small_pool(32)?;
    let endpoint = kit.make(Kind::Endpoint)?;
    let (mut client, mut server) = (Partner::from_pool(kit, pool)?, Partner::new(kit)?);
    client.give(endpoint, SLOT, rights::ALL, 0)?;
    server.give(endpoint, SLOT, rights::ALL, 0)?;
    client.start(Syscall::Call, SLOT, Tag(0), [1; 4], NEVER);
    let got = server.call(Syscall::ReplyRecv, SLOT, Tag(0), [0; 4], NEVER)?;
    expect(Status::Ok, got.status)?;
    kit::destroy_pool(pool)?;
    server.lives()?;
    queue_is_empty(&mut server)
}

fn pool_under_server(kit: &mut Kit) -> Outcome {
    let pool = kit.small_pool(32)?;
    let endpoint = kit.make(Kind::Endpoint)?;
    let (mut client, mut server) = (Partner::new(kit)?, Partner::from_pool(kit, pool)?);
    client.give(endpoint, SLOT, rights::ALL, 0)?;
    server.give(endpoint, SLOT, rights::ALL, 0)?;
    client.start(Syscall::Call, SLOT, Tag(0), [1; 4], NEVER);
    server.call(Syscall::ReplyRecv, SLOT, Tag(0), [0; 4], NEVER)?;
    kit::destroy_pool(pool)?;
    expect(Status::Dead, client.finish()?.status)?;
    // The Endpoint is another Pool's: it lives.
    client.start(Syscall::Call, SLOT, Tag(0), [1; 4], time::after(500));
    expect(Status::Timeout, client.finish()?.status)
}

fn pool_of_all(kit: &mut Kit) -> Outcome {
    let before = kit.figures()?;
    let pool = kit.small_pool(64)?;
    let space = kit.make_from(pool, Kind::Space, 0, [128, 0])?;
    let guest = kit.make_from(pool, Kind::GuestSpace, 0, [0; 2])?;
    let mut all = alloc::vec![space, guest];
    for (kind, high, words) in [
        (Kind::Thread, 0, [space, kit::UTCB]),
        (Kind::Vcpu, guest, [space, kit::STATE]),
        (Kind::Budget, 0, [0; 2]),
        (Kind::Endpoint, 0, [0; 2]),
        (Kind::Notification, 0, [0; 2]),
    ] {
        all.push(kit.make_from(pool, kind, high, words)?);
    }
    let (irq, ports) = (kit.dest()?, kit.dest()?);
    ask(kit.live(Kind::Cpu), op::cpu::CREATE_IRQ, [irq, pool, 0, 0])?;
    ask(
        kit.live(Kind::Ports),
        op::ports::DIVIDE,
        [kit::PORT, 1, ports, pool],
    )?;
    let part = kit.dest()?;
    ask(
        kit.live(Kind::Memory),
        op::memory::DIVIDE,
        [0, PAGE, part, pool],
    )?;
    all.extend([irq, ports, part]);
    kit::destroy_pool(pool)?;
    for slot in all {
        same("dead", &true, &kit::is_empty(slot))?;
    }
    same(
        "other figures",
        &before.without_own_pool(),
        &kit.figures()?.without_own_pool(),
    )
}

/// One has begun and was stopped in the middle; the other goes on where it was.
fn pool_by_two(kit: &mut Kit) -> Outcome {
    let pool = half_dead(kit)?;
    kit::destroy_pool(pool)?;
    expect(Status::InvalidCap, answer(pool, op::pool::STAT, [0; 4]))?;
    expect(Status::InvalidCap, answer(pool, op::pool::DESTROY, [0; 4]))
}

/// The mapping of a Memory is known to it no more when the Space's Pool has gone.
fn pool_mappings(kit: &mut Kit) -> Outcome {
    let memory = kit.part(2 * PAGE)?;
    let pool = kit.small_pool(32)?;
    for (kind, w2) in [(Kind::Space, 16), (Kind::GuestSpace, 0)] {
        let target = kit.make_from(pool, kind, 0, [w2, 0])?;
        let access = u64::from(rights::READ) << 32;
        ask(target, op::space::MAP, [0x1_0000, memory | access, 0, PAGE])?;
    }
    let part = kit.dest()?;
    let words = [0, PAGE, part, kit.live(Kind::Pool)];
    expect(Status::Busy, answer(memory, op::memory::DIVIDE, words))?;
    kit::destroy_pool(pool)?;
    expect(Status::Ok, answer(memory, op::memory::DIVIDE, words))
}

fn call_outlives(kit: &mut Kit) -> Outcome {
    let (client, mut server, endpoint) = pair(kit, true)?;
    kit::destroy(endpoint)?;
    same("blocked", &false, &client.done())?;
    let got = server.call(Syscall::ReplyRecv, 0, Tag(0), [3; 4], 0)?;
    expect(Status::Timeout, got.status)?;
    same("the answer", &[3; 4], &client.finish()?.words)
}

fn endpoint_outlives(kit: &mut Kit) -> Outcome {
    let (mut client, server, endpoint) = pair(kit, true)?;
    let mut waiting = Partner::new(kit)?;
    waiting.give(endpoint, SLOT, rights::ALL, 0)?;
    waiting.start(Syscall::Call, SLOT, Tag(0), [2; 4], NEVER);
    kit::destroy(server.space)?;
    expect(Status::Dead, client.finish()?.status)?;
    same("the other holds on", &false, &waiting.done())?;
    client.start(Syscall::Call, SLOT, Tag(0), [3; 4], NEVER);
    let mut next = Partner::new(kit)?;
    next.give(endpoint, SLOT, rights::ALL, 0)?;
    for word in [2, 3] {
        let got = next.call(Syscall::ReplyRecv, SLOT, Tag(0), [word * 10; 4], NEVER)?;
        same("the call", &[word; 4], &got.words)?;
    }
    next.call(Syscall::ReplyRecv, SLOT, Tag(0), [40; 4], 0)?;
    same(
        "answers",
        &[30, 40],
        &[waiting.finish()?.words[0], client.finish()?.words[0]],
    )
}

fn bound_destroyed(kit: &mut Kit) -> Outcome {
    let notification = kit.make(Kind::Notification)?;
    let mut partner = Partner::new(kit)?;
    let words = [partner.budget, kit.supervisor, 0, notification];
    ask(partner.thread, op::thread::CONFIGURE, words)?;
    partner.start(Syscall::ReplyRecv, 0, Tag(0), [0; 4], time::after(1_000));
    kit::destroy(notification)?;
    expect(Status::Timeout, partner.finish()?.status)?;
    partner.lives()
}

fn guest_under_vcpu(kit: &mut Kit) -> Outcome {
    let guest = Guest::new(kit, LOOP)?;
    kit::destroy(guest.space)?;
    expect(
        Status::InvalidCap,
        Call::system(Syscall::Run, guest.vcpu).make().0,
    )?;
    expect(
        Status::InvalidCap,
        answer(guest.vcpu, op::vcpu::ON_EXIT, [0; 4]),
    )
}

fn guest_in_run(kit: &mut Kit) -> Outcome {
    let (mut partner, guest) = in_guest(kit)?;
    kit::destroy(guest.space)?;
    expect(Status::Dead, partner.finish()?.status)?;
    partner.lives()
}

/// A route holds a capability: it is dead, not dangling, and can be taken away.
fn route_to_dead(kit: &mut Kit) -> Outcome {
    let guest = kit.live(Kind::GuestSpace);
    let endpoint = kit.make(Kind::Endpoint)?;
    let words = [0x5000 | 1 << 16 | 1 << 32, endpoint, 1000, 0];
    ask(guest, op::guest_space::ROUTE, words)?;
    kit::destroy(endpoint)?;
    expect(
        Status::InvalidCap,
        answer(guest, op::guest_space::ROUTE, words),
    )?;
    ask(guest, op::guest_space::UNROUTE, [0x5000, 0, 0, 0])?;
    Ok(())
}

/// Round after round the Pool has what it had after the first.
fn come_back(kit: &mut Kit) -> Outcome {
    let mut after_first = None;
    for _ in 0..20 {
        kit.tidy(|kit| {
            let partner = Partner::new(kit)?;
            partner.sibling(kit, 1)?;
            Guest::new(kit, LOOP)?.run().map(drop)
        })?;
        let now = kit.figures()?;
        same("figures", &now, after_first.get_or_insert(now))?;
    }
    Ok(())
}

fn destroyed_by_copy(kit: &mut Kit) -> Outcome {
    let notification = kit.make(Kind::Notification)?;
    let only = kit.copy(notification, rights::DESTROY)?;
    kit::destroy(only)?;
    expect(
        Status::InvalidCap,
        Call::system(Syscall::Signal, notification).make().0,
    )?;
    expect(
        Status::InvalidCap,
        kit::destroy(only).err().unwrap_or(Status::Ok),
    )
}
