use super::*;
use thread_state::{CALLING, READY, STOPPED, WAITING};

/// A server and its heart, with a clock in microseconds.
struct World {
    heart: Heart,
    now: u64,
    look: Look,
    asked: u32,
}

impl World {
    fn new() -> Self {
        let look = Look {
            state: WAITING,
            ..Look::default()
        };
        Self {
            heart: Heart::new(7),
            now: 7,
            look,
            asked: 0,
        }
    }

    /// One that has answered once.
    fn grown() -> Self {
        let mut world = Self::new();
        world.turns(1, |_| {});
        world.look.alive += 1;
        world.turns(1, |_| {});
        world.asked = 0;
        world
    }

    /// Does what is due so often; `between` is what the server does before each. How many microseconds until it was ended.
    fn turns(&mut self, count: u32, mut between: impl FnMut(&mut Self)) -> Option<u64> {
        let began = self.now;
        for _ in 0..count {
            self.now = self.now.max(self.heart.due());
            between(self);
            match self.heart.turn(self.now, self.look, |micros| micros) {
                Turn::Nothing => {}
                Turn::Ask => self.asked += 1,
                Turn::End => return Some(self.now - began),
            }
        }
        None
    }
}

#[test]
fn who_answers_lives_and_is_asked_twice_a_second() {
    let mut world = World::new();
    let began = world.now;
    let end = world.turns(200, |w| w.look.alive = w.asked.into());
    assert_eq!((end, world.asked), (None, 100));
    assert_eq!(world.now - began, 99 * EVERY_MICROS + LOOK_MICROS);
}

#[test]
fn who_waits_elsewhere_or_is_stopped_hangs() {
    for state in [WAITING, CALLING, STOPPED] {
        let mut world = World::grown();
        world.look.state = state;
        let end = world.turns(20, |_| {}).unwrap();
        assert!(
            end <= EVERY_MICROS + u64::from(STILL) * LOOK_MICROS,
            "{end}"
        );
    }
}

#[test]
fn who_spins_hangs_by_its_own_time_alone() {
    // A whole processor; a tenth of one; a hundredth.
    for part in [1, 10, 100] {
        let mut world = World::grown();
        world.look.state = READY;
        let end = world.turns(2000, |w| w.look.used += LOOK_MICROS / part);
        let least = OWN_MICROS * part;
        let end = end.unwrap();
        assert!(
            (least..=least + EVERY_MICROS + LOOK_MICROS).contains(&end),
            "{end}"
        );
    }
}

#[test]
fn who_gets_no_turn_is_left_alone() {
    let mut world = World::grown();
    world.look.state = READY;
    assert_eq!(world.turns(100_000, |_| {}), None);
    // It answers when it gets one.
    world.look.alive += 1;
    assert_eq!(world.turns(3, |_| {}), None);
    assert_eq!(world.asked, 2);
}

#[test]
fn a_machine_that_stood_still_is_one_look() {
    let mut world = World::grown();
    world.look.state = READY;
    let stood = 10 * OWN_MICROS;
    let mut first = true;
    let end = world.turns(4, |w| {
        if core::mem::take(&mut first) {
            return;
        }
        w.look.used += stood;
        w.now += stood;
    });
    assert_eq!(end, None);
    world.look.alive += 1;
    assert_eq!(world.turns(1, |_| {}), None);
}

#[test]
fn short_waits_on_the_way_are_no_hang() {
    // It waits whenever it is looked at, but gets on in between.
    let mut world = World::grown();
    world.look.state = CALLING;
    assert_eq!(world.turns(100, |w| w.look.used += 50), None);
}

#[test]
fn a_start_may_take_longer_and_not_for_ever() {
    let mut world = World::new();
    world.look.state = READY;
    let end = world.turns(1000, |w| w.look.used += LOOK_MICROS).unwrap();
    assert!(end >= u64::from(START) * OWN_MICROS, "{end}");
    let mut world = World::new();
    world.look.state = STOPPED;
    let end = world.turns(1000, |_| {}).unwrap();
    assert!(end >= u64::from(START * STILL) * LOOK_MICROS, "{end}");
}

#[test]
fn a_fault_is_not_a_hang() {
    let mut world = World::grown();
    world.look.state = thread_state::FAULTED;
    assert_eq!(world.turns(100, |_| {}), None);
}
