use super::*;
use ipc_schema::disk::map_words as words;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn geometry(blocks: u32, image: u32, pages: u32) -> Geometry {
    let name = "d".into();
    Geometry {
        name,
        blocks,
        image,
        pages,
    }
}

fn memory(blocks: u32) -> Vec<AtomicU64> {
    (0..words(blocks)).map(|_| AtomicU64::new(0)).collect()
}

const HOLE: Place = Place::Base(Base::Hole);
const IMAGE: Place = Place::Base(Base::Image);

#[test]
fn a_new_map_is_the_image_and_then_zeroes() {
    let words = memory(5);
    let (map, report) = Map::new(&words, &geometry(5, 3, 4)).unwrap();
    assert_eq!(
        report,
        Report {
            new: true,
            mended: 0,
            lost: 0
        }
    );
    let places: Vec<_> = (0..6).map(|b| map.get(b)).collect();
    assert_eq!(
        places,
        [
            Ok(IMAGE),
            Ok(IMAGE),
            Ok(IMAGE),
            Ok(HOLE),
            Ok(HOLE),
            Err(Damaged)
        ]
    );
    assert_eq!(map.free(), 4);
    let (_, report) = Map::new(&words, &geometry(5, 3, 4)).unwrap();
    assert_eq!(report, Report::default());
    assert!(Map::new(&words, &geometry(6, 3, 4)).is_none(), "too small");
}

/// Whoever dies over a new map has lost nothing.
#[test]
fn a_map_that_was_only_begun() {
    for written in [1, 16, 18, 21] {
        let (whole, words) = (memory(5), memory(5));
        let _ = Map::new(&whole, &geometry(5, 3, 4)).unwrap();
        for (to, from) in words.iter().zip(&whole).skip(HEADER).take(written) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        let (map, report) = Map::new(&words, &geometry(5, 3, 4)).unwrap();
        assert_eq!((report.lost, report.mended), (0, 0), "{written}");
        assert_eq!(map.get(4), Ok(HOLE));
    }
}

#[test]
fn pages_run_out_and_come_back() {
    let words = memory(100);
    let (mut map, _) = Map::new(&words, &geometry(100, 0, 70)).unwrap();
    let pages: BTreeSet<u32> = (0..70).map(|_| map.take_free().unwrap()).collect();
    assert_eq!(pages, (0..70).collect());
    assert_eq!((map.take_free(), map.free()), (None, 0));
    map.give(69);
    map.give(69);
    map.give(70);
    assert_eq!(map.free(), 1);
    assert_eq!((map.take_free(), map.take_free()), (Some(69), None));
}

/// What a death between two stores leaves.
#[test]
fn the_first_word_counts() {
    let words = memory(4);
    let (mut map, _) = Map::new(&words, &geometry(4, 4, 4)).unwrap();
    let page = map.take_free().unwrap();
    let old = map.second[2].load(Ordering::Relaxed);
    map.set(2, Place::Page(page));
    map.second[2].store(old, Ordering::Relaxed);
    let (map, report) = Map::new(&words, &geometry(4, 4, 4)).unwrap();
    assert_eq!((map.get(2), map.free()), (Ok(Place::Page(page)), 3));
    assert_eq!(report, Report::default());
    assert_ne!(map.second[2].load(Ordering::Relaxed), old);
}

#[test]
fn one_page_of_two_blocks_is_nobodys_second() {
    let words = memory(4);
    let (map, _) = Map::new(&words, &geometry(4, 0, 4)).unwrap();
    map.put(1, Place::Page(3));
    map.put(2, Place::Page(3));
    let (map, report) = Map::new(&words, &geometry(4, 0, 4)).unwrap();
    assert_eq!(report.lost, 1);
    assert_eq!((map.get(1), map.get(2)), (Ok(Place::Page(3)), Err(Damaged)));
}

proptest! {
    /// A scribbled copy is mended from the other; what is scribbled in both is lost, and nothing else; nothing is invented.
    #[test]
    fn scribbled_words(
        places in proptest::collection::vec((0u32..40, any::<bool>()), 0..60),
        scribbles in proptest::collection::vec((0usize..96, any::<u64>()), 0..12),
    ) {
        let words = memory(40);
        let (mut map, _) = Map::new(&words, &geometry(40, 20, 30)).unwrap();
        for (block, page) in places {
            match map.take_free().filter(|_| page) {
                Some(page) => map.set(block, Place::Page(page)),
                None => map.set(block, HOLE),
            }
        }
        let before: Vec<Place> = (0..40).map(|b| map.get(b).unwrap()).collect();
        let mut hit = [[false; 40]; 2];
        for (at, word) in scribbles {
            // Whole in one copy at least, unless the same block is hit twice.
            if let Some(i) = at.checked_sub(HEADER) && words[at].load(Ordering::Relaxed) != word {
                hit[i / 40][i % 40] = true;
            }
            words[at].store(word, Ordering::Relaxed);
        }
        let (map, report) = Map::new(&words, &geometry(40, 20, 30)).unwrap();
        prop_assert!(!report.new);
        let mut lost = 0;
        let mut pages = BTreeSet::new();
        for block in 0..40 {
            let both = hit[0][block] && hit[1][block];
            match map.get(block as u32) {
                Ok(place) => {
                    prop_assert_eq!(place, before[block]);
                    prop_assert_eq!(map.first[block].load(Ordering::Relaxed), map.second[block].load(Ordering::Relaxed));
                    if let Place::Page(page) = place {
                        prop_assert!(pages.insert(page));
                    }
                }
                Err(Damaged) => {
                    prop_assert!(both);
                    lost += 1;
                }
            }
        }
        prop_assert_eq!(report.lost, lost);
        prop_assert_eq!(map.free(), 30 - pages.len() as u32);
    }
}
