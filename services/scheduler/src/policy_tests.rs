//! The policy, and what the kernel makes of it: a simulation of its round of Budgets (`microkernel/src/sched`).

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const CLASSES: [Class; 6] = [
    Class::Core,
    Class::Driver,
    Class::Manager,
    Class::Device,
    Class::Vm,
    Class::Background,
];

const fn vm(shares: u32, reservation: u32, limit: Option<u32>) -> Demand {
    Demand {
        class: Class::Vm,
        shares,
        reservation,
        limit,
    }
}

/// Parts of a processor that each gets when all of one class always want to run, for `us` microseconds.
fn simulate(settings: &[Setting], us: u64) -> Vec<f64> {
    struct Budget {
        left: u64,
        began: u64,
        used: u64,
    }
    let mut budgets: Vec<Budget> = settings
        .iter()
        .map(|s| Budget {
            left: s.budget_us,
            began: 0,
            used: 0,
        })
        .collect();
    let mut ready: VecDeque<usize> = (0..settings.len()).collect();
    let mut exhausted: Vec<(u64, usize)> = Vec::new();
    let mut now = 0;
    while now < us && !settings.is_empty() {
        exhausted.sort_unstable();
        while let Some(&(at, i)) = exhausted.first().filter(|e| e.0 <= now) {
            exhausted.remove(0);
            budgets[i].left = settings[i].budget_us;
            budgets[i].began = at;
            ready.push_back(i);
        }
        let Some(i) = ready.pop_front() else {
            now = exhausted[0].0;
            continue;
        };
        let b = &mut budgets[i];
        now += b.left;
        b.used += b.left;
        let next = b.began + settings[i].period_us;
        if settings[i].budget_us == settings[i].period_us || next <= now {
            b.left = settings[i].budget_us;
            b.began = now;
            // Those whose time came meanwhile are before it.
            exhausted.sort_unstable();
            while let Some(&(at, j)) = exhausted.first().filter(|e| e.0 <= now) {
                exhausted.remove(0);
                budgets[j].left = settings[j].budget_us;
                budgets[j].began = at;
                ready.push_back(j);
            }
            ready.push_back(i);
        } else {
            exhausted.push((next, i));
        }
    }
    budgets.iter().map(|b| b.used as f64 / now as f64).collect()
}

fn near(is: f64, want: f64) -> bool {
    (is - want).abs() < 0.02
}

#[test]
fn classes_are_ranked_below_root() {
    for (i, class) in CLASSES.into_iter().enumerate() {
        assert!(class.priority() < 30);
        assert!(CLASSES[..i].iter().all(|c| c.priority() > class.priority()));
    }
}

#[test]
fn a_vm_alone_has_the_processor() {
    let one = settings(&[vm(1, 0, None)])[0];
    assert_eq!(
        (one.priority, one.budget_us, one.period_us),
        (8, 10_000, 10_000)
    );
}

#[test]
fn shares() {
    let s = settings(&[vm(100, 0, None), vm(300, 0, None), vm(100, 0, None)]);
    assert_eq!(s[1].budget_us / 10, s[0].budget_us * 3 / 10);
    let used = simulate(&s, 10_000_000);
    assert!(
        near(used[0], 0.2) && near(used[1], 0.6) && near(used[2], 0.2),
        "{used:?}"
    );
}

#[test]
fn limits() {
    // Alone, and beside one that takes what is left.
    let s = settings(&[vm(100, 0, Some(30))]);
    assert_eq!(s[0].budget_us * 100, s[0].period_us * 30);
    assert!(near(simulate(&s, 10_000_000)[0], 0.3));
    let s = settings(&[vm(900, 0, Some(25)), vm(100, 0, None)]);
    let used = simulate(&s, 10_000_000);
    assert!(near(used[0], 0.25) && near(used[1], 0.75), "{used:?}");
    // A limit that shares do not reach is none.
    let s = settings(&[vm(100, 0, Some(50)), vm(300, 0, None)]);
    let used = simulate(&s, 10_000_000);
    assert!(near(used[0], 0.25), "{used:?}");
    assert_eq!(
        settings(&[vm(1, 0, Some(100))]),
        settings(&[vm(1, 0, None)])
    );
    assert_eq!(
        settings(&[vm(1, 0, Some(400))]),
        settings(&[vm(1, 0, None)])
    );
}

#[test]
fn reservations() {
    let s = settings(&[vm(1, 40, None), vm(1000, 0, None), vm(1000, 0, None)]);
    let used = simulate(&s, 10_000_000);
    assert!(
        near(used[0], 0.4) && near(used[1], 0.3) && near(used[2], 0.3),
        "{used:?}"
    );
}

#[test]
fn classes_do_not_share() {
    let mut device = vm(1_000_000, 0, None);
    device.class = Class::Device;
    let both = settings(&[device, vm(1, 0, None), device, vm(1, 0, None)]);
    assert_eq!(both[1], settings(&[vm(1, 0, None), vm(1, 0, None)])[0]);
    assert_eq!((both[0].priority, both[1].priority), (16, 8));
    assert_eq!(both[0], both[2]);
}

#[test]
fn what_is_refused() {
    let refused = |d, others: &[Demand], why| assert_eq!(admit(&d, others), Err(why));
    refused(vm(0, 0, None), &[], Refusal::Malformed);
    refused(vm(1, 0, Some(0)), &[], Refusal::Malformed);
    refused(vm(1, 50, Some(49)), &[], Refusal::Malformed);
    refused(vm(1, 101, None), &[], Refusal::Malformed);
    refused(vm(1, u32::MAX, Some(u32::MAX)), &[], Refusal::Busy);
    refused(
        vm(1, 51, None),
        &[vm(1, 49, None), vm(1, 1, None)],
        Refusal::Busy,
    );
    assert_eq!(
        admit(&vm(1, 50, None), &[vm(1, 49, None), vm(1, 1, None)]),
        Ok(())
    );
    let mut background = vm(1, 1, None);
    background.class = Class::Background;
    refused(background, &[], Refusal::Unsupported);
    background.reservation = 0;
    assert_eq!(admit(&background, &[]), Ok(()));
}

/// Extreme shares do not make turns too short to get on in, nor rounds without end.
#[test]
fn extremes() {
    let s = settings(&[vm(1, 0, None), vm(u32::MAX, 0, None)]);
    assert_eq!(s[0].budget_us, MIN_TURN_US);
    assert!(s[1].budget_us <= MAX_ROUND_US);
    let many = settings(&vec![vm(7, 0, Some(1)); 200]);
    assert!(
        many.iter()
            .all(|s| s.budget_us >= MIN_TURN_US && s.budget_us * 100 <= s.period_us)
    );
}

fn demand() -> impl Strategy<Value = Demand> {
    let limit = proptest::option::of(1u32..120);
    (1u32..1000, 0u32..40, limit, 0usize..6).prop_map(|(shares, reservation, limit, class)| {
        Demand {
            class: CLASSES[class],
            shares,
            reservation,
            limit,
        }
    })
}

/// Demands as the server would have admitted them, one after the other.
fn admitted() -> impl Strategy<Value = Vec<Demand>> {
    proptest::collection::vec(demand(), 1..12).prop_map(|wanted| {
        let mut all: Vec<Demand> = Vec::new();
        for d in wanted {
            if admit(&d, &all).is_ok() {
                all.push(d);
            }
        }
        all
    })
}

proptest! {
    #[test]
    fn divided_within_bounds(all in admitted()) {
        let vms: Vec<Demand> = all.into_iter().map(|d| Demand { class: Class::Vm, ..d }).collect();
        let parts = divide(&vms);
        let sum: u64 = parts.iter().sum();
        let most: u64 = vms.iter().map(|d| d.bounds().1).sum();
        prop_assert!(sum <= WHOLE);
        prop_assert!(sum + vms.len() as u64 + 1000 >= WHOLE.min(most), "{} of {}", sum, most);
        for (d, part) in vms.iter().zip(&parts) {
            let (least, most) = d.bounds();
            prop_assert!((least..=most).contains(part));
        }
        // Those that neither bound stops are in proportion.
        let free: Vec<_> = vms.iter().zip(&parts).filter(|(d, p)| d.bounds().0 < **p && **p < d.bounds().1).collect();
        for ((a, p), (b, q)) in free.iter().zip(free.iter().skip(1)) {
            let (x, y) = (**p * u64::from(b.shares), **q * u64::from(a.shares));
            prop_assert!(x.abs_diff(y) <= u64::from(a.shares + b.shares), "{} {}", x, y);
        }
    }

    #[test]
    fn what_the_kernel_takes(all in admitted()) {
        let settings = settings(&all);
        prop_assert_eq!(settings.len(), all.len());
        for (d, s) in all.iter().zip(&settings) {
            prop_assert_eq!(s.priority, d.class.priority());
            prop_assert!(MIN_TURN_US <= s.budget_us && s.budget_us <= s.period_us);
            let limit = u64::from(d.limit.unwrap_or(100).min(100));
            prop_assert!(s.budget_us * 100 <= s.period_us * limit || limit == 100);
            prop_assert_eq!(limit == 100, s.budget_us == s.period_us);
        }
    }

    /// With everybody busy: nobody above its limit, and nobody below its reservation, which is what the class's round gives
    /// even if the others of the class use all of theirs.
    #[test]
    fn promises_are_kept(all in admitted()) {
        let vms: Vec<Demand> = all.into_iter().map(|d| Demand { class: Class::Vm, ..d }).collect();
        let used = simulate(&settings(&vms), 20_000_000);
        for (d, used) in vms.iter().zip(&used) {
            let (least, most) = d.bounds();
            prop_assert!(*used <= most as f64 / WHOLE as f64 + 0.02, "{:?} used {}", d, used);
            prop_assert!(*used >= least as f64 / WHOLE as f64 * 0.95 - 0.01, "{:?} used {} of {:?}", d, used, vms);
        }
    }
}
