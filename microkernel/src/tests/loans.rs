//! Budgets lent along chains of calls, of which members leave.

use super::*;

/// A client and three servers that call on: the chain runs on the client's Budget, with the last of them at its end.
fn chain(m: &Machine, own: [bool; 3]) -> (Obj<Thread>, [Obj<Thread>; 3], [u64; 3]) {
    let client = m.thread(5);
    let ends = [0; 3].map(|_| m.endpoint().1);
    let servers = own.map(|own| {
        let s = m.thread(6);
        if !own {
            let b = s.own_budget.get().unwrap();
            // It waits for its first call before that.
            return (s, Some(b));
        }
        (s, None)
    });
    let mut from = client;
    for ((s, spare), &end) in servers.iter().zip(&ends) {
        m.receive(*s, end);
        if let Some(b) = spare {
            s.set_own_budget(None);
            b.get().destroy();
        }
        assert!(m.call(from, end, [0; 4]) == *s);
        from = *s;
    }
    let servers = servers.map(|(s, _)| s);
    let lent = client.own_budget.get();
    assert!(lent.is_some() && servers.iter().all(|s| s.budget.get() == lent));
    (client, servers, ends)
}

fn sound() {
    crate::checker::check().unwrap();
}

/// When the client leaves, each goes on with its own Budget, and who has none with that of the nearest before it that has one.
#[test]
fn a_chain_without_its_client_runs_on_the_nearest_budget() {
    for own in 0..8 {
        let own = [0, 1, 2].map(|i| own >> i & 1 == 1);
        let m = Machine::new();
        let (client, servers, ends) = chain(&m, own);
        client.get().destroy();
        sound();
        let mut near = None;
        for s in servers {
            near = s.own_budget.get().or(near);
            assert!(s.budget.get() == near, "{own:?}");
        }
        // Nobody can run: a supervisor gives the first one time.
        if near.is_none() {
            let b = Budget::create(m.pool, 0).unwrap();
            b.configure(5, 1_000, 1_000, crate::arch::now());
            servers[2].set_own_budget(Some(b));
        }
        // Replies go back through the chain, whoever's time each has.
        for i in [2, 1, 0] {
            let s = servers[i];
            if s.budget.get().is_none() {
                break;
            }
            assert!(crate::sched::pick(m.cpu) == s, "{own:?}: {i}");
            m.receive(s, ends[i]);
            sound();
            assert_eq!(s.state.get(), State::Receiving);
        }
        for s in servers {
            s.get().destroy();
            sound();
        }
    }
}

/// A server that serves on a loan loses its own Budget: that one knows it no more, however the server ends.
#[test]
fn a_budget_taken_from_a_server_at_work_knows_it_no_more() {
    let m = Machine::new();
    let (_, end) = m.endpoint();
    let (client, server) = (m.thread(5), m.thread(6));
    let own = server.own_budget.get().unwrap();
    m.receive(server, end);
    assert!(m.call(client, end, [0; 4]) == server && server.budget.get() != Some(own));
    server.set_own_budget(None);
    sound();
    server.get().destroy();
    sound();
    assert!(own.thread.get().is_none());
    assert_eq!(
        (client.state.get(), status(client)),
        (State::Ready, Status::Dead)
    );
    // Somebody else's now.
    let heir = m.thread(3);
    heir.set_own_budget(None);
    heir.set_own_budget(Some(own));
    sound();
}
