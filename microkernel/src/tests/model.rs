//! What each operation may do, told without looking into the kernel: what dies, what is born, who may do what afterwards.

use super::census::{Census, Name};
use super::*;
use crate::object::{GuestSpace, Vcpu, cap};
use ipc_schema::abi::{Kind, op};
use std::collections::{HashMap, HashSet};

/// What an operation may do to the objects there are.
#[derive(Default)]
pub struct Expected {
    /// These die if it succeeds.
    dies: HashSet<Name>,
    /// The Pool that is being destroyed: by `Ok` all in it are dead, until then some.
    pool: Option<Name>,
    /// A new object's kind (0: none).
    born: u32,
    /// Records of mappings may come and go.
    maps: bool,
}

/// The model: the last census, and what it cannot tell.
pub struct Model {
    /// All that was alive after the last step.
    pub census: Census,
    rights: HashMap<Name, u16>,
    /// The Memory that a Memory is a part of.
    parents: HashMap<Name, Name>,
    /// The Memory that a Pool was made of.
    backing: HashMap<Name, Name>,
    steps: u32,
}

/// What has come of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Refused, or nothing that makes or ends objects.
    Nothing,
    /// Part of a long operation.
    Part,
    /// Done.
    Done,
}

/// So many steps are between two looks at everything, when nothing has been made or ended.
const CALM: u32 = 8;

impl Model {
    /// Of what is there now.
    #[must_use]
    pub fn new() -> Self {
        let census = Census::take();
        Self {
            rights: census.rights(),
            census,
            parents: HashMap::new(),
            backing: HashMap::new(),
            steps: 0,
        }
    }

    /// What an operation may do, before it is tried.
    #[must_use]
    pub fn expected(&self, t: Obj<Thread>, cap: &Cap, label: u64, w: &[u64; 4]) -> Expected {
        let mut e = Expected::default();
        let is = |k: Kind| cap.kind() == k as u32;
        if is(Kind::Pool) && label == op::pool::CREATE {
            e.born = w[0] as u32;
        } else if is(Kind::Pool) && label == op::pool::DESTROY {
            let all = self.census.objects.values().filter(|n| n.pool == cap.pool);
            e.dies = self.closure(all.copied().collect());
            e.pool = Some(Name::of(cap));
            e.maps = true;
        } else if is(Kind::Memory) && label == op::memory::DIVIDE {
            e.born = Kind::Memory as u32;
        } else if is(Kind::Memory) && label == op::memory::MAKE_POOL {
            (e.born, e.maps) = (Kind::Pool as u32, true);
        } else if is(Kind::Memory) && label == op::memory::REVOKE {
            e.maps = true;
        } else if is(Kind::Ports) && label == op::ports::DIVIDE {
            e.born = Kind::Ports as u32;
        } else if is(Kind::Cpu) && label == op::cpu::CREATE_IRQ {
            e.born = Kind::Irq as u32;
        } else if is(Kind::Cpu) && label == op::cpu::ADD {
            e.born = Kind::Cpu as u32;
        } else if is(Kind::Space) && label == op::space::DESTROY_OBJECT {
            let named = cap::cap_at(t.get(), w[0]).ok().filter(|c| !c.is_dead());
            e.dies = self.closure(named.iter().map(Name::of).collect());
            e.maps = true;
        } else if is(Kind::Space) || is(Kind::GuestSpace) {
            e.maps = [op::space::MAP, op::space::UNMAP].contains(&label);
        }
        e
    }

    /// Remembers what the model needs of a successful operation.
    pub fn learn(&mut self, t: Obj<Thread>, cap: &Cap, label: u64, w: &[u64; 4]) {
        if cap.kind() == Kind::Memory as u32 && label == op::memory::DIVIDE {
            let part = cap::cap_at(t.get(), w[2]).unwrap();
            self.parents.insert(Name::of(&part), Name::of(cap));
        }
        if cap.kind() == Kind::Memory as u32 && label == op::memory::MAKE_POOL {
            let pool = cap::cap_at(t.get(), w[0]).unwrap();
            self.backing.insert(Name::of(&pool), Name::of(cap));
        }
    }

    /// All that dies with `roots`.
    fn closure(&self, roots: Vec<Name>) -> HashSet<Name> {
        let mut dead = HashSet::new();
        let mut todo = roots;
        while let Some(n) = todo.pop() {
            if n.kind() == Kind::Mapping as u32 || !dead.insert(n) {
                continue;
            }
            if let Some(s) = n.get::<Space>() {
                let threads = self.census.all::<Thread>().filter(|t| t.space == s);
                todo.extend(threads.map(Name::object));
            }
            if let Some(g) = n.get::<GuestSpace>() {
                let vcpus = self.census.all::<Vcpu>().filter(|v| v.guest == g);
                todo.extend(vcpus.map(Name::object));
            }
            // A Pool ends with its Memory, and all in it with the Pool.
            let pools = self.backing.iter().filter(|(_, memory)| **memory == n);
            for (pool, _) in pools.filter(|(pool, _)| pool.is_alive()) {
                let inside = self.census.objects.values();
                todo.extend(inside.filter(|i| i.pool == pool.pool).copied());
            }
            let parts = self.parents.iter().filter(|(_, parent)| **parent == n);
            todo.extend(parts.map(|(part, _)| *part).filter(|p| p.is_alive()));
        }
        dead
    }

    /// Holds what has become against what was expected.
    ///
    /// # Panics
    /// It is something else.
    pub fn judge(&mut self, e: &Expected, outcome: Outcome) {
        let after = Census::take();
        let names = |c: &Census| c.objects.values().copied().collect::<HashSet<_>>();
        let (before, now) = (names(&self.census), names(&after));
        let is_record = |n: &&Name| n.kind() == Kind::Mapping as u32;
        let died: HashSet<_> = before.difference(&now).copied().collect();
        let born: Vec<_> = now.difference(&before).copied().collect();
        let records = died.iter().chain(&born).filter(is_record).count();
        let nothing = outcome == Outcome::Nothing;
        assert!(
            records == 0 || e.maps && !nothing,
            "a mapping came or went by itself"
        );
        let died: HashSet<_> = died.iter().filter(|n| !is_record(n)).copied().collect();
        let born: Vec<_> = born.iter().filter(|n| !is_record(n)).collect();
        match outcome {
            Outcome::Nothing => {
                assert!(
                    died.is_empty() && born.is_empty(),
                    "a refused call: {died:?}, {born:?}"
                );
            }
            Outcome::Part => {
                assert!(died.is_subset(&e.dies), "{died:?} died, not {:?}", e.dies);
                assert!(born.is_empty(), "{born:?}");
            }
            Outcome::Done => {
                if let Some(pool) = e.pool {
                    assert!(
                        died.is_subset(&e.dies),
                        "{died:?} died with a Pool, not {:?}",
                        e.dies
                    );
                    let mut inside = e.dies.iter().filter(|n| n.pool == pool.pool);
                    assert!(
                        inside.all(|n| died.contains(n)),
                        "left in a Pool that is gone"
                    );
                } else {
                    assert_eq!(died, e.dies, "what died is not what was to die");
                }
                assert_eq!(born.len(), usize::from(e.born != 0), "{born:?}");
                assert!(born.iter().all(|n| n.kind() == e.born));
            }
        }
        let rights = after.rights();
        for (name, &all) in rights.iter().filter(|(n, _)| before.contains(n)) {
            let had = self.rights.get(name).copied().unwrap_or(0);
            assert_eq!(all & !had, 0, "a right to {name:?} out of nothing");
        }
        self.rights = rights;
        self.census = after;
        self.steps += 1;
        let calm = died.is_empty() && born.is_empty() && records == 0;
        if !calm || self.steps.is_multiple_of(CALM) {
            self.census.check();
        }
        if !died.is_empty() || records != 0 {
            self.census.check_pages();
        }
    }
}

impl Default for Model {
    fn default() -> Self {
        Self::new()
    }
}
