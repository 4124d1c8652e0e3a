use super::*;
use proptest::prelude::*;
use std::vec::Vec;

const KIND: u64 = 0x1655_0001;
const GOLDEN: [u64; 2] = [0x7641_21ce_8000_8000, 0x175f_84bd_0000_0007];
/// Words of a slot's header, which its checksum vouches for, and of all of it.
const SUMMED: usize = 6;
const HEAD: usize = SUMMED + 1;
const IN: Access = Access {
    port: 0x3f8,
    width: 1,
    write: false,
    value: 0,
    stamp: 0,
};

fn cells(page: &StatePage) -> Vec<&AtomicU64> {
    let mut all = std::vec![&page.current];
    for slot in &page.slots {
        all.extend([
            &slot.sequence,
            &slot.kind,
            &slot.length,
            &slot.access,
            &slot.value,
            &slot.checksum,
            &slot.overtaken,
        ]);
        all.extend(slot.words.iter().chain(&slot.notes));
    }
    all
}

fn copy_of(page: &StatePage) -> Vec<u64> {
    cells(page)
        .iter()
        .map(|cell| cell.load(Ordering::Relaxed))
        .collect()
}

fn words_of(page: &StatePage) -> Option<Vec<u64>> {
    page.load(KIND).map(|record| record.words().to_vec())
}

/// A commit of words of which the first is configuration and the second is not.
#[derive(Clone, Copy, Debug)]
struct Commit {
    lasting: bool,
    access: bool,
}

fn commit() -> impl Strategy<Value = Commit> {
    (any::<bool>(), any::<bool>()).prop_map(|(lasting, access)| Commit { lasting, access })
}

/// The first of all is lasting.
fn commits() -> impl Strategy<Value = Vec<Commit>> {
    proptest::collection::vec(commit(), 0..5).prop_map(|mut commits| {
        commits.insert(
            0,
            Commit {
                lasting: true,
                access: true,
            },
        );
        commits
    })
}

impl Commit {
    fn on(self, writer: &mut StateWriter<'_>, words: &mut [u64; 2]) {
        words[0] += u64::from(self.lasting);
        words[1] += 1;
        match (self.lasting, self.access) {
            (true, true) => writer.commit_lasting(IN, 1, words),
            (true, false) => writer.save_lasting(words),
            (false, true) => writer.commit(IN, 1, words),
            (false, false) => writer.save(words),
        }
    }
}

/// Where a death is: before or after all, or when some of the stores to a slot have happened, and perhaps the mark of the other.
#[derive(Clone, Copy, Debug)]
enum Death {
    Before,
    InFirst(u64),
    Marked(bool),
    InSecond(u64),
    After,
}

fn death() -> impl Strategy<Value = Death> {
    prop_oneof![
        Just(Death::Before),
        any::<u64>().prop_map(Death::InFirst),
        any::<bool>().prop_map(Death::Marked),
        any::<u64>().prop_map(Death::InSecond),
        Just(Death::After),
    ]
}

/// Does something and takes back what comes after a death; true if its record is the one that `current` names.
fn cut(page: &StatePage, death: Death, f: impl FnOnce()) -> bool {
    let before = copy_of(page);
    f();
    let after = copy_of(page);
    let named = before[0] != after[0];
    // Which slot comes first: the one that the new number is of; without a new number only one of them has changed.
    let first = (after[0] >> 1 & 1) as usize;
    let mark = 1 + SUMMED + (1 - first) * SLOT_WORDS;
    for (i, cell) in cells(page).iter().enumerate() {
        let some = |chosen: u64| chosen.rotate_right(i as u32 * 7) & 1 != 0;
        let in_first = i.wrapping_sub(1) / SLOT_WORDS == first && i != 0;
        let happened = match death {
            Death::Before => false,
            Death::InFirst(chosen) => in_first && some(chosen),
            Death::Marked(marked) => in_first || (marked && i == mark),
            Death::InSecond(chosen) => i == 0 || in_first || i == mark || some(chosen),
            Death::After => true,
        };
        cell.store(
            if happened { after[i] } else { before[i] },
            Ordering::Relaxed,
        );
    }
    match death {
        Death::InSecond(_) | Death::After => true,
        _ => !named,
    }
}

#[test]
fn an_answer_changes_its_word_and_copies_the_record() {
    let page = StatePage::new();
    let (mut writer, _) = StateWriter::new(&page, KIND);
    writer.commit(IN, 1, &[5]);
    page.answer();
    page.answer();
    assert_eq!(page.alive.load(Ordering::Relaxed), 2);
    assert_eq!(words_of(&page), Some(std::vec![5]));
    let all = copy_of(&page);
    assert_eq!((page.sequence(), all[0]), (1, 1 << 1));
    assert_eq!(all[1..=SLOT_WORDS], all[1 + SLOT_WORDS..]);
}

#[test]
fn what_became_of_an_access_is_not_known_after_a_scribble() {
    let page = StatePage::new();
    let (mut writer, _) = StateWriter::new(&page, KIND);
    writer.commit_lasting(IN, 1, &[5]);
    writer.begin();
    writer.save(&[5]);
    // Two slots, of which one is damaged: as after a scribble over `current` and the newer one.
    page.current.store(0x77 << 1, Ordering::Relaxed);
    page.slots[0].checksum.fetch_xor(1, Ordering::Relaxed);
    let (mut writer, found) = StateWriter::take_over(&page, KIND);
    assert!(matches!(found, Found::Configuration(_)), "{found:?}");
    writer.save_lasting(&[5]);
    assert_eq!(page.outcome(KIND, IN), Outcome::NotDone, "it was begun");
    writer.commit(IN, 2, &[5]);
    writer.save(&[6]);
    assert_eq!(page.outcome(KIND, IN), Outcome::Done(2));
}

#[test]
fn who_has_no_lasting_commits_takes_no_configuration() {
    let page = StatePage::new();
    let (mut writer, _) = StateWriter::new(&page, KIND);
    writer.commit(IN, 1, &[1]);
    writer.commit(IN, 1, &[2]);
    page.slots[0].checksum.fetch_xor(1, Ordering::Relaxed);
    let (successor, record) = StateWriter::new(&page, KIND);
    assert!(record.is_none());
    assert_eq!(successor.past(), Past::Lost);
    // It dies of its first access: the old record is no newer for that.
    successor.begin();
    assert!(page.load(KIND).is_none());
    // So it is where an old one may be taken.
    let (successor, found) = StateWriter::take_over(&page, KIND);
    assert!(matches!(found, Found::Configuration(_)));
    successor.begin();
    assert!(page.load(KIND).is_none());
}

#[test]
fn a_successor_gets_the_last_commit() {
    let page = StatePage::new();
    let (mut writer, none) = StateWriter::new(&page, KIND);
    assert!(none.is_none());
    for i in 1..10u64 {
        writer.commit(IN, i as u32, &[i, i * i, 7]);
        assert_eq!(page.sequence(), i);
    }
    let (mut successor, record) = StateWriter::new(&page, KIND);
    assert_eq!(record.unwrap().words(), [9, 81, 7]);
    successor.save(&[1]);
    assert_eq!((page.sequence(), words_of(&page)), (10, Some(std::vec![1])));
    assert_eq!(
        page.outcome(KIND, IN),
        Outcome::Done(9),
        "saving keeps the last access"
    );
    assert!(
        page.load(KIND + 1).is_none(),
        "another layout is not taken over"
    );
}

#[test]
fn the_outcome_of_a_lost_access() {
    let page = StatePage::new();
    let (mut writer, _) = StateWriter::new(&page, KIND);
    assert_eq!(page.outcome(KIND, IN), Outcome::NotDone);
    writer.begin();
    assert_eq!(page.outcome(KIND, IN), Outcome::NotDone);
    writer.commit(IN, 0x41, &[]);
    assert_eq!(page.outcome(KIND, IN), Outcome::Done(0x41));
    // An equal access that it died of before it could begin it.
    let again = Access { stamp: 7, ..IN };
    assert_eq!(page.outcome(KIND, again), Outcome::NotDone);
    writer.commit(again, 0x42, &[]);
    assert_eq!(page.outcome(KIND, again), Outcome::Done(0x42));
    assert_eq!(page.outcome(KIND, IN), Outcome::NotDone);
    writer.commit(IN, 0x41, &[]);
    assert_eq!(
        page.outcome(KIND, Access { write: true, ..IN }),
        Outcome::NotDone,
        "another access"
    );
    // The same access again, dying before its commit; input that arrives meanwhile changes nothing.
    writer.begin();
    writer.save(&[3]);
    assert_eq!(page.outcome(KIND, IN), Outcome::NotDone);
    assert_eq!(words_of(&page), Some(std::vec![3]));
}

#[test]
fn notes_are_their_own() {
    let page = StatePage::new();
    let (mut writer, _) = StateWriter::new(&page, KIND);
    let [one, two] = [0, 31].map(|number| writer.note(number).unwrap());
    assert!(writer.note(32).is_none());
    assert_eq!((one.get(), two.get()), (None, None));
    one.set(0x8000_8000);
    two.set(7);
    for i in 0..3 {
        writer.commit(IN, 1, &[i; MAX_WORDS]);
    }
    let (successor, record) = StateWriter::new(&page, KIND);
    assert_eq!(record.unwrap().words(), [2; MAX_WORDS]);
    let found = [0, 31, 1].map(|number| successor.note(number).unwrap().get());
    assert_eq!(found, [Some(0x8000_8000), Some(7), None]);
    // The page's layout: pinned, as a successor may be another build.
    let words = copy_of(&page);
    let notes = 1 + HEAD + MAX_WORDS;
    assert_eq!(words[notes], GOLDEN[0]);
    assert_eq!(words[notes + 31], GOLDEN[1]);
    // Of another device, and moved to another place.
    let (other, _) = StateWriter::new(&page, KIND + 1);
    assert_eq!(other.note(0).unwrap().get(), None);
    cells(&page)[notes + 1].store(words[notes], Ordering::Relaxed);
    assert_eq!(successor.note(1).unwrap().get(), None);
    // Of two the first was written first.
    let copy = cells(&page)[notes + 31 + SLOT_WORDS];
    assert_eq!(copy.load(Ordering::Relaxed), GOLDEN[1]);
    two.set(8);
    copy.store(GOLDEN[1], Ordering::Relaxed);
    assert_eq!(two.get(), Some(8));
    cells(&page)[notes + 31].store(0, Ordering::Relaxed);
    assert_eq!(two.get(), Some(7));
}

#[test]
fn a_page_that_claims_the_last_number_takes_records_all_the_same() {
    let page = StatePage::new();
    page.current.store(u64::MAX, Ordering::Relaxed);
    let (mut writer, none) = StateWriter::new(&page, KIND);
    assert!(none.is_none());
    for i in 0..3 {
        writer.commit(IN, i, &[i.into()]);
        assert_eq!(words_of(&page), Some(std::vec![i.into()]));
        assert_eq!(page.outcome(KIND, IN), Outcome::Done(i));
    }
}

proptest! {
    /// Death after any number of a commit's stores leaves the old record or the new one.
    #[test]
    fn a_death_in_the_middle_tears_nothing(old: Vec<u64>, new: Vec<u64>, reordered: u64) {
        let (old, new) = (&old[..old.len().min(MAX_WORDS)], &new[..new.len().min(MAX_WORDS)]);
        let page = StatePage::new();
        let (mut writer, _) = StateWriter::new(&page, KIND);
        writer.commit(IN, 1, &[5]);
        writer.commit(IN, 1, old);
        let before = copy_of(&page);
        writer.commit(IN, 2, new);
        let after = copy_of(&page);
        prop_assert_eq!(words_of(&page), Some(new.to_vec()));
        // Any subset of the stores to the slot may have happened, but `current` (cell 0) comes last.
        for (i, cell) in cells(&page).iter().enumerate() {
            let stored = i != 0 && reordered.rotate_right(i as u32 * 7) & 1 != 0;
            cell.store(if stored { after[i] } else { before[i] }, Ordering::Relaxed);
        }
        prop_assert_eq!(words_of(&page), Some(old.to_vec()));
        prop_assert_eq!(page.outcome(KIND, IN), Outcome::Done(1));
        let (mut successor, record) = StateWriter::new(&page, KIND);
        prop_assert_eq!(record.map(|record| record.words().to_vec()), Some(old.to_vec()));
        successor.commit(IN, 3, new);
        prop_assert_eq!(words_of(&page), Some(new.to_vec()));
    }

    #[test]
    fn a_scribble_over_all_there_is_is_noticed(words in proptest::collection::vec(any::<u64>(), 0..20), at in 0usize..27, xor in 1u64..) {
        let page = StatePage::new();
        let (mut writer, _) = StateWriter::new(&page, KIND);
        writer.commit(IN, 1, &words);
        // Slot 1 holds sequence 1.
        let cell = cells(&page)[1 + SLOT_WORDS + at];
        cell.fetch_xor(xor, Ordering::Relaxed);
        let there = page.load(KIND).is_some();
        prop_assert_eq!(there, at == SUMMED || at >= HEAD + words.len());
    }

    /// A record that was copied is read from either slot; the next commit overtakes the copy.
    #[test]
    fn a_copy_counts_until_it_is_overtaken(words in proptest::collection::vec(any::<u64>(), 0..20), commits in 1u32..4, slot in 0usize..2, at in 0usize..SUMMED, xor in 1u64.., later: bool, dies: bool) {
        let page = StatePage::new();
        let (mut writer, _) = StateWriter::new(&page, KIND);
        for commit in (1..commits).rev() {
            writer.commit(IN, 7, &[commit.into()]);
        }
        writer.commit(IN, 1, &words);
        if dies {
            writer = StateWriter::new(&page, KIND).0;
        } else {
            page.answer();
        }
        if later {
            writer.commit(IN, 2, &[99]);
        }
        let newest = (page.sequence() & 1) as usize;
        cells(&page)[1 + slot * SLOT_WORDS + at].fetch_xor(xor, Ordering::Relaxed);
        let left = match (later, slot == newest) {
            (false, _) => Some(words.clone()),
            (true, false) => Some(std::vec![99]),
            (true, true) => None,
        };
        prop_assert_eq!(words_of(&page), left.clone());
        let done = [Outcome::Done(if later { 2 } else { 1 }), Outcome::NotDone];
        prop_assert_eq!(page.outcome(KIND, IN), done[usize::from(left.is_none())]);
        // A successor mends it, or says that it cannot.
        let (_, record) = StateWriter::new(&page, KIND);
        prop_assert_eq!(record.map(|record| record.words().to_vec()), left.clone());
        if left.is_some() {
            cells(&page)[1 + (1 - slot) * SLOT_WORDS + at].fetch_xor(xor, Ordering::Relaxed);
            prop_assert_eq!(words_of(&page), left);
        }
    }

    /// A commit that dies after any of its stores, then perhaps a successor that dies after any of its own, then scribbles over
    /// whatever: what is found is the newest that anybody can have seen, or its configuration, or nothing; never another.
    #[test]
    fn no_older_configuration_is_found(before in commits(), last in commit(), death in death(), again in death(), follows: bool, scribbles in [any::<bool>(); 3], noise in 1u64..) {
        let page = StatePage::new();
        let (mut writer, _) = StateWriter::take_over(&page, KIND);
        let mut old = [0, 0];
        for commit in before {
            commit.on(&mut writer, &mut old);
        }
        let mut new = old;
        let seen = cut(&page, death, || last.on(&mut writer, &mut new));
        let mut known = if seen { std::vec![new] } else { std::vec![old, new] };
        if follows {
            let before = copy_of(&page);
            let _ = StateWriter::take_over(&page, KIND);
            // Its marks come last.
            for (i, (cell, old)) in cells(&page).iter().zip(before).enumerate() {
                let mark = i % SLOT_WORDS == HEAD;
                let happened = match again {
                    Death::Before => false,
                    Death::InFirst(chosen) | Death::InSecond(chosen) => {
                        !mark && chosen.rotate_right(i as u32 * 7) & 1 != 0
                    }
                    Death::Marked(all) => !mark || (all && i < SLOT_WORDS),
                    Death::After => true,
                };
                if !happened {
                    cell.store(old, Ordering::Relaxed);
                }
            }
            // It has gone on with the old one, over whatever was about to follow.
            if let (Death::After, false) = (again, seen) {
                known = std::vec![old];
            }
        }
        let exact = words_of(&page);
        prop_assert_eq!(&exact, &Some(if seen { new } else { old }.to_vec()));
        let [current, slots @ ..] = scribbles;
        if current {
            page.current.fetch_xor(noise << 8 | 1 << 40, Ordering::Relaxed);
        }
        for (slot, _) in page.slots.iter().zip(slots).filter(|(_, scribbled)| *scribbled) {
            slot.checksum.fetch_xor(noise, Ordering::Relaxed);
        }
        match page.find(KIND).0 {
            Found::Newest(record) => {
                prop_assert!(!current);
                prop_assert_eq!(Some(record.words().to_vec()), exact);
            }
            Found::Configuration(record) => {
                prop_assert!(current || slots != [false; 2]);
                let found = record.words()[0];
                prop_assert!(known.iter().any(|words| words[0] == found), "{} of {:?}", found, known);
            }
            Found::Lost => prop_assert!(current || slots != [false; 2]),
            Found::Nothing => prop_assert!(false),
        }
        // At rest, as when nobody copies, one slot is enough.
        if let (Death::After, false, false) = (death, follows, slots == [true; 2]) {
            prop_assert!(!matches!(page.find(KIND).0, Found::Lost));
        }
        // Whoever goes on has both whole again by its first lasting commit.
        let (mut writer, _) = StateWriter::take_over(&page, KIND);
        writer.save_lasting(&[77, 1]);
        prop_assert_eq!(words_of(&page), Some(std::vec![77, 1]));
        page.current.store(noise, Ordering::Relaxed);
        page.slots[usize::from(follows)].checksum.fetch_xor(noise, Ordering::Relaxed);
        let found = page.find(KIND).0;
        let right = matches!(&found, Found::Configuration(r) | Found::Newest(r) if r.words() == [77, 1]);
        prop_assert!(right);
    }

    #[test]
    fn a_scribble_on_a_note_is_noticed(value: u32, xor in 1u64..) {
        let page = StatePage::new();
        let (writer, _) = StateWriter::new(&page, KIND);
        let note = writer.note(3).unwrap();
        note.set(value);
        prop_assert_eq!(note.get(), Some(value));
        let at = 1 + HEAD + MAX_WORDS + 3;
        // One in 2^32 would go unnoticed.
        cells(&page)[at].fetch_xor(xor, Ordering::Relaxed);
        prop_assert_eq!(note.get(), Some(value));
        cells(&page)[at + SLOT_WORDS].fetch_xor(xor, Ordering::Relaxed);
        prop_assert_eq!(note.get(), None);
    }

    #[test]
    fn a_page_of_noise_is_survived(noise in proptest::collection::vec(any::<u64>(), 505), lengths in 0u64..300) {
        let page = StatePage::new();
        for (cell, word) in cells(&page).iter().zip(&noise) {
            cell.store(*word, Ordering::Relaxed);
        }
        for slot in &page.slots {
            slot.length.store(lengths, Ordering::Relaxed);
            slot.sequence.store(noise[0] >> 1, Ordering::Relaxed);
            slot.kind.store(KIND, Ordering::Relaxed);
        }
        prop_assert!(page.load(KIND).is_none());
        let (mut writer, _) = StateWriter::new(&page, KIND);
        writer.commit(IN, 1, &[1, 2]);
        prop_assert_eq!(words_of(&page), Some(std::vec![1, 2]));
    }
}
