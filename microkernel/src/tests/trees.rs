//! The search tree, beside a map of the library.

use super::*;
use crate::tree::{Branches, Keyed, Tree};
use proptest::prelude::*;
use std::collections::BTreeMap;

struct Node<const ORDERED: bool> {
    key: u64,
    branches: Branches<Self>,
}
impl<const ORDERED: bool> Keyed for Node<ORDERED> {
    fn key(&self) -> u64 {
        self.key
    }
    fn bits(key: u64) -> u64 {
        if ORDERED {
            key << 24
        } else {
            key.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        }
    }
    fn branches(&self) -> &Branches<Self> {
        &self.branches
    }
}

fn tree_against_map<const ORDERED: bool>(steps: &[(bool, u64)]) {
    let tree = Tree::<Node<ORDERED>>::default();
    let mut map = BTreeMap::new();
    for &(insert, key) in steps {
        if insert && !map.contains_key(&key) {
            let node = Box::new(Node {
                key,
                branches: Default::default(),
            });
            tree.insert(Obj::of(&*node));
            map.insert(key, node);
        } else if let Some(node) = map.remove(&key) {
            tree.remove(Obj::of(&*node));
        }
        assert_eq!(tree.is_empty(), map.is_empty());
        for probe in [key, key ^ 1, key + 1, key / 2, 0, (1 << 40) - 1] {
            assert_eq!(
                tree.find(probe).map(|n| n.key),
                map.get(&probe).map(|n| n.key)
            );
            if ORDERED {
                let below = map.range(..=probe).next_back().map(|(k, _)| *k);
                assert_eq!(tree.at_most(probe).map(|n| n.key), below);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn trees_find_what_is_in_them(steps in proptest::collection::vec((any::<bool>(), prop_oneof![0..64_u64, 0..1_u64 << 40]), 1..200)) {
        tree_against_map::<false>(&steps);
        tree_against_map::<true>(&steps);
    }
}
