//! What root reads and keeps: servers' ELF files, free RAM, and the scheduler's settings for what it admits.
#![no_main]

extern crate alloc;

use fuzz::{Bytes, target};
use ipc_schema::abi::layout;
use ipc_schema::proto::{Class, MAX_MESSAGE, SchedulerRequest, SchedulerResponse, encode};
use root::image::{Image, MAX_SIZE, Parts, Place};
use root::ram::{LARGE, PAGE, Ram, Run};
use scheduler::policy::Setting;
use scheduler::server::{Decision, Kernel, Outcome, Scheduler, Slot};
use std::collections::BTreeMap;

#[allow(dead_code, reason = "the loader's own tests need more of them")]
#[path = "../../../services/vmm/src/loader/tests/samples.rs"]
mod samples;

target!(run, seeds);

fn seeds() -> Vec<Vec<u8>> {
    let mut note = Vec::new();
    let owner = &runtime::elf_note::OWNER[..];
    note.extend_from_slice(&(owner.len() as u32).to_le_bytes());
    note.extend_from_slice(&4u32.to_le_bytes());
    note.extend_from_slice(&runtime::elf_note::TYPE.to_le_bytes());
    note.extend_from_slice(owner);
    note.resize(note.len().next_multiple_of(4), 0);
    note.extend_from_slice(&ipc_schema::abi::ABI_VERSION.to_le_bytes());
    let at = layout::IMAGE;
    let program = samples::elf64(
        at,
        &[
            samples::text(at, at, 0x1000, &[0x90; 64]),
            samples::Segment {
                vaddr: 0,
                paddr: 0,
                memsz: note.len() as u64,
                kind: 4,
                data: note,
            },
        ],
    );
    // The flags are for readable and executable; the samples leave them out.
    let mut program = program;
    program[64 + 4] = 5;
    vec![
        [&[0][..], &program].concat(),
        vec![1, 0, 0, 0, 1, 64, 0, 2, 64, 0, 3, 0],
        vec![2, 0, 4, 100, 0, 0, 0, 3, 50, 10, 1, 20, 1, 0],
    ]
}

fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    match bytes.u8() % 3 {
        0 => [false, true]
            .into_iter()
            .for_each(|all_own| image(bytes.0, all_own)),
        1 => ram(bytes),
        _ => budgets(bytes),
    }
}

/// What root would load lies in the room for images, apart, never both writable and code; what can be written is each instance's own.
fn image(file: &[u8], all_own: bool) {
    let Ok(image) = Image::parse(file, all_own) else {
        return;
    };
    assert!(image.own.is_multiple_of(PAGE) && image.common.is_multiple_of(PAGE));
    assert!(!all_own || image.common == 0);
    let mut end = layout::IMAGE;
    for s in &image.segments {
        assert!(s.va >= end && s.va.is_multiple_of(PAGE) && s.len.is_multiple_of(PAGE));
        assert!(s.lead < PAGE && s.lead + s.data.len() as u64 <= s.len);
        assert!(s.rights & 6 != 6 && s.rights & 1 != 0);
        match s.place {
            Place::Common(at) => assert!(s.rights & 2 == 0 && at + s.len <= image.common),
            Place::Own(at) => assert!(at + s.len <= image.own),
        }
        end = s.va + s.len;
    }
    assert!(end <= layout::IMAGE + MAX_SIZE);
    let code =
        |s: &&root::image::Segment<'_>| s.rights & 4 != 0 && image.entry.wrapping_sub(s.va) < s.len;
    assert!(image.segments.iter().any(|s| code(&s)));
    let parts = Parts::new(image.own, 1 << 15, 1 << 18, 4096);
    assert!(parts.total().is_multiple_of(PAGE) && parts.total() >= image.own);
}

/// RAM is given to one at a time, stays inside what there is, and all of it comes back.
fn ram(mut bytes: Bytes<'_>) {
    let mut ram = Ram::default();
    let mut sources: Vec<(u64, u64)> = Vec::new();
    let mut at = 0x10_0000;
    for slot in 0..1 + u32::from(bytes.u8() & 3) {
        let gap = u64::from(bytes.u8()) << 9;
        let len = u64::from(bytes.u16()) << 10;
        at += gap;
        ram.add(at, len, 20 + slot);
        sources.push((at, len));
        at += len;
    }
    let whole = ram.free_bytes();
    let mut taken: BTreeMap<u64, u64> = BTreeMap::new();
    let take = |run: &Run, taken: &mut BTreeMap<u64, u64>| {
        assert!(run.len.is_multiple_of(PAGE) && run.phys.is_multiple_of(PAGE));
        let inside =
            |(phys, len): &(u64, u64)| run.phys >= *phys && run.phys + run.len <= phys + len;
        assert!(sources.iter().any(inside), "RAM that there is not");
        let before = taken.range(..run.phys + run.len).next_back();
        assert!(
            before.is_none_or(|(at, len)| at + len <= run.phys),
            "given twice"
        );
        taken.insert(run.phys, run.len);
    };
    while !bytes.is_empty() {
        match bytes.u8() % 4 {
            0 => {
                let align = [PAGE, LARGE, 0, 1 << 16][bytes.below(4)];
                if let Some(run) = ram.take(bytes.number(), align) {
                    assert!(run.phys.is_multiple_of(align.max(PAGE)));
                    take(&run, &mut taken);
                }
            }
            1 => {
                let len = bytes.number();
                if let Some(runs) = ram.take_many(len) {
                    assert!(runs.iter().map(|r| r.len).sum::<u64>() >= len);
                    runs.iter().for_each(|run| take(run, &mut taken));
                }
            }
            2 => {
                let chosen = taken
                    .iter()
                    .nth(bytes.u8().into())
                    .map(|(at, len)| (*at, *len));
                if let Some((phys, len)) = chosen {
                    taken.remove(&phys);
                    let run = Run { phys, len };
                    assert!(ram.place(run).is_some());
                    ram.give(run);
                    assert!(ram.was_used(run));
                }
            }
            _ => assert_eq!(ram.free_bytes() + taken.values().sum::<u64>(), whole),
        }
    }
    for (phys, len) in taken {
        ram.give(Run { phys, len });
    }
    assert_eq!(ram.free_bytes(), whole);
}

/// The Budgets as the kernel would have them.
#[derive(Default)]
struct Budgets {
    set: BTreeMap<Slot, Setting>,
    dead: Vec<Slot>,
}

impl Kernel for Budgets {
    fn configure(&mut self, budget: Slot, _cpu: u32, setting: Setting) -> Outcome {
        assert!(
            setting.priority < 32
                && setting.budget_us > 0
                && setting.budget_us <= setting.period_us
        );
        self.set.insert(budget, setting);
        if self.dead.contains(&budget) {
            Outcome::Refused
        } else {
            Outcome::Done
        }
    }
    fn processor(&mut self, _: u32, _: Slot) {}
    fn watch(&mut self, _: Slot, _: u64) {}
    fn alive(&mut self, budget: Slot) -> bool {
        !self.dead.contains(&budget)
    }
    fn forget(&mut self, budget: Slot) {
        self.set.remove(&budget);
    }
    fn log(&mut self, _: &str, _: Decision) {}
}

/// Whatever is asked, promises can be kept: no more than the processor is promised, limits are limits.
fn budgets(mut bytes: Bytes<'_>) {
    let mut scheduler = Scheduler::new(Budgets::default());
    let classes = [
        Class::Core,
        Class::Driver,
        Class::Device,
        Class::Vm,
        Class::Manager,
        Class::Background,
    ];
    let mut slot = 100;
    let mut promised: BTreeMap<u32, u64> = BTreeMap::new();
    let mut steps = 0;
    while !bytes.is_empty() && steps < 100 {
        steps += 1;
        match bytes.u8() % 4 {
            0..2 => {
                slot += 1;
                let reservation = u32::from(bytes.u8());
                let limit = bytes.flag().then(|| u32::from(bytes.u8()));
                let request = SchedulerRequest::Admit {
                    name: "x".into(),
                    class: bytes.pick(&classes),
                    shares: bytes.number() as u32,
                    reservation,
                    limit,
                    group: None,
                };
                let has = bytes.u8() != 7;
                let response = scheduler.request(request, has.then_some(slot));
                assert!(encode(&response, &mut [0; MAX_MESSAGE]).is_ok());
                if let SchedulerResponse::Admitted { number, .. } = response {
                    assert!(
                        has && promised.insert(number, reservation.into()).is_none(),
                        "a number twice"
                    );
                    let setting = scheduler.kernel().set.get(&slot).copied();
                    if let (Some(s), Some(limit)) = (setting, limit) {
                        // To within a microsecond of rounding.
                        assert!(
                            s.budget_us * 100 <= s.period_us * u64::from(limit) + 100,
                            "{s:?} over {limit} %"
                        );
                    }
                }
            }
            2 => {
                let number = u32::from(bytes.u8());
                let response = scheduler.request(SchedulerRequest::Release { number }, None);
                // What was promised may be gone already: its Budget was found dead.
                let known = promised.remove(&number).is_some();
                assert!(known || response != SchedulerResponse::Done);
            }
            _ => {
                let dead = 100 + u32::from(bytes.u8() & 31);
                scheduler.kernel().dead.push(dead);
            }
        }
        assert!(scheduler.len() <= 200);
    }
}
