//! The state page: deaths at any store of a commit, and scribbles: a record is whole or there is none.
#![no_main]

use fuzz::{Bytes, scribble, target, words};
use ipc_schema::state_page::{Access, MAX_WORDS, Outcome, StatePage, StateWriter};
use std::sync::atomic::Ordering;

target!(run);

const KIND: u64 = 0x1655_0001;

fn access(bytes: &mut Bytes<'_>) -> Access {
    Access {
        port: bytes.u16(),
        width: bytes.width(false),
        write: bytes.flag(),
        value: bytes.u32(),
        stamp: bytes.u32(),
    }
}

fn copy(page: &StatePage) -> Vec<u64> {
    words(page)
        .iter()
        .map(|w| w.load(Ordering::Relaxed))
        .collect()
}

fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let page = Box::new(StatePage::new());
    let mut last: Option<Vec<u64>> = None;
    let mut done: Option<(Access, u32)> = None;
    let mut begun = false;
    let mut steps = 0;
    while !bytes.is_empty() && steps < 40 {
        steps += 1;
        let (mut writer, record) = StateWriter::new(&page, KIND);
        assert_eq!(record.map(|r| r.words().to_vec()), last);
        assert!(page.load(KIND ^ 1).is_none(), "another kind's layout");
        let len = bytes.below(MAX_WORDS + 1);
        let seed = bytes.u64();
        let state: Vec<u64> = (0..len as u64)
            .map(|i| seed.rotate_left(i as u32) ^ i)
            .collect();
        let what = bytes.u8();
        let access = access(&mut bytes);
        let value = bytes.u32();
        match what % 6 {
            0 | 1 => {
                writer.begin();
                assert_eq!(page.outcome(KIND, access), Outcome::NotDone);
                let before = copy(&page);
                writer.commit(access, value, &state);
                if what & 0x80 != 0 {
                    // It died before the last store, which names the record, after any of the others.
                    let chosen = bytes.take(64).to_vec();
                    for (i, word) in words(&*page).iter().enumerate() {
                        let kept =
                            i != 0 && chosen.get(i / 8).is_some_and(|b| b >> (i % 8) & 1 != 0);
                        if !kept {
                            word.store(before[i], Ordering::Relaxed);
                        }
                    }
                    begun = true;
                } else {
                    (last, done, begun) = (Some(state), Some((access, value)), false);
                }
            }
            2 => {
                writer.save(&state);
                last = Some(state);
            }
            3 => {
                writer.begin();
                begun = true;
            }
            4 => {
                // A scribble is noticed, or it hit what nobody reads.
                let before = copy(&page);
                scribble(&*page, &mut bytes);
                let sequence = page.sequence();
                if let Some(record) = page.load(KIND) {
                    let same_place = sequence == before[0] >> 1;
                    assert!(!same_place || Some(record.words()) == last.as_deref());
                }
                let _ = page.outcome(KIND, access);
                for (word, old) in words(&*page).iter().zip(before) {
                    word.store(old, Ordering::Relaxed);
                }
            }
            _ => {
                // A page of whatever: survived, and a new server can begin on it.
                let noisy = Box::new(StatePage::new());
                for (word, noise) in words(&*noisy).iter().zip(bytes.take(2048).chunks(8)) {
                    let mut raw = [0; 8];
                    raw[..noise.len()].copy_from_slice(noise);
                    word.store(u64::from_le_bytes(raw), Ordering::Relaxed);
                }
                let _ = noisy.outcome(KIND, access);
                let (mut writer, _) = StateWriter::new(&noisy, KIND);
                writer.commit(access, value, &state);
                assert_eq!(noisy.load(KIND).map(|r| r.words().to_vec()), Some(state));
                assert_eq!(noisy.outcome(KIND, access), Outcome::Done(value));
            }
        }
        let outcome = done
            .filter(|_| !begun)
            .map(|(a, v)| (page.outcome(KIND, a), v));
        if let Some((outcome, value)) = outcome {
            assert_eq!(outcome, Outcome::Done(value));
        }
    }
}
