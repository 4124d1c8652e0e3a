use super::*;
use proptest::prelude::*;
use std::vec::Vec;

const KIND: u64 = 0x1655_0001;
const GOLDEN: [u64; 2] = [0x7641_21ce_8000_8000, 0x175f_84bd_0000_0007];
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

#[test]
fn an_answer_changes_its_word_and_no_record() {
    let page = StatePage::new();
    let (mut writer, _) = StateWriter::new(&page, KIND);
    writer.commit(IN, 1, &[5]);
    let before = copy_of(&page);
    page.answer();
    page.answer();
    assert_eq!(page.alive.load(Ordering::Relaxed), 2);
    assert_eq!(copy_of(&page), before);
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
    let notes = 1 + 6 + MAX_WORDS;
    assert_eq!(words[notes], GOLDEN[0]);
    assert_eq!(words[notes + 31], GOLDEN[1]);
    // Of another device, and moved to another place.
    let (other, _) = StateWriter::new(&page, KIND + 1);
    assert_eq!(other.note(0).unwrap().get(), None);
    cells(&page)[notes + 1].store(words[notes], Ordering::Relaxed);
    assert_eq!(successor.note(1).unwrap().get(), None);
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
    fn a_scribble_is_noticed(words in proptest::collection::vec(any::<u64>(), 0..20), at in 0usize..26, xor in 1u64..) {
        let page = StatePage::new();
        let (mut writer, _) = StateWriter::new(&page, KIND);
        writer.commit(IN, 1, &words);
        // Slot 1 holds sequence 1; its first six cells are the header.
        let cell = cells(&page)[1 + SLOT_WORDS + at];
        cell.store(cell.load(Ordering::Relaxed) ^ xor, Ordering::Relaxed);
        prop_assert_eq!(page.load(KIND).is_none(), at < 6 + words.len());
    }

    #[test]
    fn a_scribble_on_a_note_is_noticed(value: u32, xor in 1u64..) {
        let page = StatePage::new();
        let (writer, _) = StateWriter::new(&page, KIND);
        let note = writer.note(3).unwrap();
        note.set(value);
        prop_assert_eq!(note.get(), Some(value));
        let cell = cells(&page)[1 + 6 + MAX_WORDS + 3];
        cell.fetch_xor(xor, Ordering::Relaxed);
        // One in 2^32 would go unnoticed.
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
