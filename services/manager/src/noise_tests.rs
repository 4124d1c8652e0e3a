//! Hostile terminals and guests, and a root that answers anything.

use super::*;
use crate::tests::{both, described};
use ipc_schema::proto::{Cause, Refusal, RootResponse, VmEnd, VmState};
use proptest::prelude::*;
use std::vec;

#[derive(Clone, Debug)]
enum Step {
    Type(Vec<u8>),
    Output(usize, Vec<u8>),
    Answer(u8),
    Event(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let line = prop_oneof![
        "(vms|attach|attach [abc]|resize [abc] [0-9]{1,5}x[0-9]{1,3}|start a|kill b|servers|servers a|cpus|log|help|version|[ -~]{0,20})\r",
        Just(String::from("\x1d")),
    ];
    prop_oneof![
        3 => line.prop_map(|line| Step::Type(line.into_bytes())),
        1 => proptest::collection::vec(any::<u8>(), 0..300).prop_map(Step::Type),
        2 => (0usize..3, proptest::collection::vec(any::<u8>(), 0..300)).prop_map(|(vm, bytes)| Step::Output(vm, bytes)),
        4 => any::<u8>().prop_map(Step::Answer),
        1 => any::<u8>().prop_map(Step::Event),
    ]
}

proptest! {
    /// Whatever comes from anywhere: no panic, one question at a time, and the console never gets stuck.
    #[test]
    fn survives_anything(steps in proptest::collection::vec(step(), 0..60)) {
        let mut console = Console::new("Vireo", 0, &described(&["a", "b"]));
        let mut asked = 0;
        let count = |console: &mut Console| {
            console.take_actions().iter().filter(|action| matches!(action, Action::Ask(_))).count()
        };
        for step in steps {
            match step {
                Step::Type(bytes) => console.input(&bytes),
                Step::Output(channel, bytes) => console.vm_output(channel, &bytes),
                Step::Answer(kind) => {
                    let answer = match kind % 8 {
                        0 => None,
                        1 => Some(RootResponse::Done),
                        2 => Some(RootResponse::Refused(Refusal::Busy)),
                        3 => both(VmState::Running, VmState::Failed),
                        4 => Some(RootResponse::Servers { servers: vec![], total: 9 }),
                        5 => Some(RootResponse::Death(None)),
                        6 => Some(RootResponse::Cpus(vec![])),
                        _ => Some(RootResponse::Log { records: vec![], next: 0, lost: 1 }),
                    };
                    asked = 0;
                    console.answer(answer);
                }
                Step::Event(kind) => {
                    let name = String::from(if kind & 1 == 0 { "a" } else { "b" });
                    console.event(&match kind % 4 {
                        0 | 1 => RootEvent::VmStopped { vm: name, end: VmEnd::Failed },
                        2 => RootEvent::ServerDied { server: name, cause: Cause::Hung },
                        _ => RootEvent::VmStarted { vm: name },
                    });
                }
            }
            asked += count(&mut console);
            prop_assert!(asked <= 1, "asked again before the answer");
            prop_assert_eq!(asked == 1, console.wanted.is_some());
        }
        // Ctrl-C and `version` always work once root has answered.
        while console.wanted.is_some() {
            console.answer(None);
        }
        if !console.at_prompt {
            console.input(&[ESCAPE_KEY]);
        }
        console.input(b"\x1b[A\x03");
        let _ = console.take_actions();
        console.input(b"version\r");
        prop_assert_eq!(console.take_actions(), [Action::Terminal(b"version\r\nVireo\r\nvireo> ".to_vec())]);
    }
}
