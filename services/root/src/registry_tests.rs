//! Deaths, restarts, ends.

use super::*;
use ipc_schema::manifest::{
    CpuShare, Device, DeviceKind, PortRange, Registers, Vm as VmDescription,
};
use proptest::prelude::*;

const HZ: u64 = 1_000_000;

fn description(name: &str) -> VmDescription {
    let kind = DeviceKind::Rtc;
    VmDescription {
        name: name.into(),
        memory: 1 << 20,
        vcpus: 1,
        autostart: true,
        kernel: "k".into(),
        initrd: None,
        append: String::new(),
        cpu: CpuShare {
            shares: 1,
            reservation: 0,
            limit: None,
            cpu: None,
        },
        debug_exit: true,
        tsc_mhz: 0,
        devices: vec![Device {
            name: format!("{name}.rtc0"),
            kind,
            binary: "bin/device-rtc".into(),
            ports: PortRange::new(0x70, 2),
            irq: 8,
            doorbell: None,
            registers: Registers::Ports,
        }],
    }
}

fn registry(idle: Idle) -> Registry {
    let vms = vec![description("one"), description("two")];
    let system = System {
        name: "t".into(),
        memory: 1 << 30,
        idle,
        vms,
        drivers: vec![],
        servers: vec![],
        disks: vec![],
    };
    let file = |_: &str| Some(1);
    let machine = crate::plan::Machine {
        system: &system,
        file: &file,
        ranges: &[],
        rsdp: 0,
    };
    let plans = crate::plan::system(&machine).unwrap();
    Registry::new(&system, plans, HZ)
}

#[test]
fn numbers_and_names() {
    let r = registry(Idle::Stay);
    let names: Vec<&str> = r.servers.iter().map(|s| s.plan.instance.as_str()).collect();
    assert_eq!(
        names,
        [
            "platform",
            "scheduler",
            "manager",
            "one.rtc0",
            "one.vmm",
            "two.rtc0",
            "two.vmm"
        ]
    );
    assert_eq!(
        (r.by_id(2), r.by_id(8), r.by_id(9), r.by_id(u64::MAX)),
        (Some(0), Some(6), None, None)
    );
    assert_eq!(
        (r.by_name("two.vmm"), r.by_role(Role::Manager)),
        (Some(6), Some(2))
    );
    assert_eq!(r.of_vm(1), [5, 6]);
    assert_eq!(r.vm_by_name("two"), Some(1));
}

#[test]
fn restarts_come_later_and_later_then_end() {
    let mut r = registry(Idle::Stay);
    let mut now = 1000;
    let mut delays = Vec::new();
    for _ in 0..MAX_DEATHS {
        r.started(3);
        assert_eq!(r.died(3, Cause::Panic, now), Verdict::Restart);
        assert_eq!(r.servers[3].state, ServerState::Restarting);
        let due = r.next_due().unwrap();
        delays.push((due - now) / 1000);
        assert_eq!(r.take_due(due - 1), None);
        assert_eq!(r.take_due(due), Some(3));
        assert_eq!(r.take_due(due), None);
        now = due;
    }
    assert_eq!(delays[..10], [0, 0, 0, 0, 10, 20, 40, 80, 160, 320]);
    assert!(delays[10..].iter().all(|d| *d == 320));
    r.started(3);
    assert_eq!(r.servers[3].restarts, MAX_DEATHS as u32);
    assert_eq!(
        r.died(3, Cause::Panic, now),
        Verdict::StopVm(0),
        "a VM without its device"
    );
    assert_eq!(
        (r.servers[3].state, r.next_due()),
        (ServerState::Dead, None)
    );
    r.stopped(3);
    assert_eq!(r.servers[3].state, ServerState::Dead);
    r.vm_starting(0);
    r.started(3);
    assert_eq!(
        r.died(3, Cause::Panic, now),
        Verdict::Restart,
        "a new VM begins anew"
    );
}

#[test]
fn old_deaths_are_forgotten() {
    let mut r = registry(Idle::Stay);
    for i in 0..50 {
        let now = i * HZ * 3;
        assert_eq!(r.died(2, Cause::Panic, now), Verdict::Restart);
        r.started(2);
    }
}

#[test]
fn a_vmm_is_not_restarted() {
    let mut r = registry(Idle::Stay);
    r.started(6);
    assert_eq!(r.died(6, Cause::Panic, 5), Verdict::StopVm(1));
    assert_eq!(r.next_due(), None);
    let events = r.take_events(10);
    assert_eq!(
        events,
        [RootEvent::ServerDied {
            server: "two.vmm".into(),
            cause: Cause::Panic
        }]
    );
}

#[test]
fn a_core_server_given_up_takes_nothing_with_it() {
    let mut r = registry(Idle::Stay);
    for _ in 0..MAX_DEATHS {
        assert_eq!(r.died(0, Cause::Hung, 7), Verdict::Restart);
    }
    assert_eq!(r.died(0, Cause::Hung, 7), Verdict::GiveUp);
}

#[test]
fn the_last_end_ends_the_machine() {
    let mut r = registry(Idle::PowerOff);
    r.vm_starting(0);
    r.vm_started(0, 5);
    r.vm_started(1, 6);
    r.vm_stopping(1);
    assert_eq!(r.vm_ended(0, VmEnd::DebugExit(3)), None);
    assert_eq!((r.vms[0].state, r.vm_runs(1)), (VmState::Stopped, true));
    assert_eq!(r.vm_ended(1, VmEnd::PowerOff), Some(3));
    r.vm_started(1, 6);
    assert_eq!(r.vms[1].end, None);
    assert_eq!(r.vm_ended(1, VmEnd::TripleFault), Some(3));
    assert_eq!(r.vms[1].state, VmState::Failed);
    let mut stays = registry(Idle::Stay);
    stays.vm_started(0, 5);
    assert_eq!(stays.vm_ended(0, VmEnd::PowerOff), None);
    assert_eq!(stays.vm_ended(9, VmEnd::PowerOff), None);
}

#[test]
fn a_failure_is_the_machines() {
    let mut r = registry(Idle::PowerOff);
    r.vm_started(0, 5);
    assert_eq!(r.vm_ended(0, VmEnd::TripleFault), Some(FAILED_CODE));
}

proptest! {
    #[test]
    fn events_are_bounded(ops in proptest::collection::vec((0usize..9, 0u8..4), 0..300)) {
        let mut r = registry(Idle::Stay);
        for (now, (index, op)) in ops.into_iter().enumerate() {
            match op {
                0 => drop(r.died(index, Cause::Panic, now as u64)),
                1 => r.started(index),
                2 => r.stopped(index),
                _ => drop(r.take_due(now as u64)),
            }
            // Nothing that runs, or has been given up, is due.
            for s in &r.servers {
                prop_assert!(s.due.is_none() || s.state == ServerState::Restarting);
            }
        }
        let events = r.take_events(usize::MAX);
        prop_assert!(events.len() <= MAX_EVENTS && !r.has_events());
    }
}
