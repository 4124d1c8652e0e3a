//! The encodings, pinned byte by byte: a changed line here is a changed protocol.

use super::*;
use core::fmt::Debug;
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use std::string::ToString;
use std::vec;

#[track_caller]
fn golden<T: Serialize + DeserializeOwned + PartialEq + Debug>(message: T, bytes: &[u8]) {
    let mut buffer = [0; MAX_MESSAGE];
    let length = encode(&message, &mut buffer).unwrap();
    assert_eq!(&buffer[..length], bytes, "{message:?}");
    assert_eq!(decode::<T>(bytes), Ok(message));
}

fn name() -> String {
    "ab".to_string()
}

#[test]
fn root_requests() {
    golden(RootRequest::Vms { first: 1 }, &[0, 1]);
    golden(RootRequest::Start { vm: name() }, b"\x01\x02ab");
    golden(RootRequest::Stop { vm: name() }, b"\x02\x02ab");
    golden(RootRequest::Kill { vm: name() }, b"\x03\x02ab");
    golden(RootRequest::Servers { first: 300 }, &[4, 0xac, 2]);
    golden(RootRequest::Death { server: name() }, b"\x05\x02ab");
    golden(RootRequest::Restart { server: name() }, b"\x06\x02ab");
    golden(RootRequest::LogTail { records: 7 }, &[7, 7]);
    golden(RootRequest::Log { position: 9 }, &[8, 9]);
    golden(RootRequest::Events, &[9]);
    let end = VmEnd::DebugExit(7);
    golden(
        RootRequest::Ended { vm: name(), end },
        b"\x0a\x02ab\x04\x07",
    );
    golden(RootRequest::PowerOff { code: 3 }, &[11, 3]);
    golden(RootRequest::Hung { device: 2 }, &[12, 2]);
    golden(RootRequest::Hang { server: name() }, b"\x0d\x02ab");
    golden(RootRequest::Cpus, &[14]);
    golden(RootRequest::Accounts, &[15]);
    golden(RootRequest::Unanswered, &[16]);
    golden(RootRequest::Spin { server: name() }, b"\x11\x02ab");
    let (server, all) = (name(), true);
    golden(RootRequest::Scribble { server, all }, b"\x12\x02ab\x01");
}

#[test]
fn vmm_reports() {
    golden(VmmReport::Running, &[0]);
    golden(VmmReport::Ended(VmEnd::TripleFault), &[1, 3]);
    golden(VmmReportResponse::Done, &[0]);
    golden(VmmReportResponse::Refused(Refusal::Unknown), &[1, 0]);
}

#[test]
fn root_responses() {
    golden(RootResponse::Done, &[0]);
    let refusals = [
        Refusal::Unknown,
        Refusal::Busy,
        Refusal::NotRunning,
        Refusal::NoMemory,
        Refusal::Malformed,
        Refusal::Forbidden,
        Refusal::Unsupported,
        Refusal::Failed,
    ];
    for (number, refusal) in (0..).zip(refusals) {
        golden(RootResponse::Refused(refusal), &[1, number]);
    }
    let states = [
        VmState::Stopped,
        VmState::Starting,
        VmState::Running,
        VmState::Stopping,
        VmState::Failed,
    ];
    for (number, state) in (0..).zip(states) {
        let vm = VmInfo {
            name: name(),
            state,
            memory: 5,
            vcpus: 6,
            uptime: 7,
            cpu: Some(8),
        };
        golden(
            RootResponse::Vms {
                vms: vec![vm],
                total: 9,
            },
            &[2, 1, 2, b'a', b'b', number, 5, 6, 7, 1, 8, 9],
        );
    }
    let states = [
        ServerState::Running,
        ServerState::Restarting,
        ServerState::Stopped,
        ServerState::Dead,
    ];
    for (number, state) in (0..).zip(states) {
        let server = ServerInfo {
            id: 3,
            name: name(),
            state,
            restarts: 5,
            memory_bytes: 6,
            cpu_time: 7,
            cpu: None,
            kinds: MemoryKinds {
                image: 10,
                stack: 11,
                heap: 12,
                objects: 13,
                objects_free: 14,
                other: 15,
                code: 16,
            },
            vm: Some(17),
        };
        golden(
            RootResponse::Servers {
                servers: vec![server],
                total: 9,
            },
            &[
                3, 1, 3, 2, b'a', b'b', number, 5, 6, 7, 0, 10, 11, 12, 13, 14, 15, 16, 1, 17, 9,
            ],
        );
    }
    golden(RootResponse::Death(None), &[4, 0]);
    let record = LogRecord {
        source: 5,
        frame: vec![1, 2, 3],
    };
    golden(
        RootResponse::Log {
            records: vec![record],
            next: 8,
            lost: 9,
        },
        &[5, 1, 5, 3, 1, 2, 3, 8, 9],
    );
    golden(RootResponse::Events(vec![]), &[6, 0]);
    for (number, state) in (0..).zip([CpuState::Off, CpuState::Starting, CpuState::Online]) {
        let cpu = CpuInfo {
            number: 1,
            apic_id: 2,
            state,
            time: 4,
            idle: 5,
            locks: 6,
            stops: 7,
            longest_off: 8,
        };
        golden(
            RootResponse::Cpus(vec![cpu]),
            &[7, 1, 1, 2, number, 4, 5, 6, 7, 8],
        );
    }
    let account = Account {
        cpu: 1,
        time: 2,
        budgets: 3,
        idle: 4,
        unattributed: 5,
    };
    golden(
        RootResponse::Accounts(vec![account]),
        &[8, 1, 1, 2, 3, 4, 5],
    );
}

#[test]
fn processor_states() {
    use crate::abi::cpu_state;
    for (abi, state) in [
        (cpu_state::OFF, CpuState::Off),
        (cpu_state::INIT, CpuState::Starting),
        (cpu_state::STARTING, CpuState::Starting),
        (cpu_state::WAITING, CpuState::Starting),
        (cpu_state::ONLINE, CpuState::Online),
        (99, CpuState::Off),
    ] {
        assert_eq!(CpuState::from_abi(abi), state);
    }
}

#[test]
fn deaths() {
    let causes = [
        (
            Cause::Fault {
                vector: 14,
                error: 6,
                address: 0x80,
            },
            vec![0, 14, 6, 0x80, 1],
        ),
        (Cause::Panic, vec![1]),
        (Cause::Hung, vec![2]),
        (Cause::Killed, vec![3]),
        (Cause::Exited(4), vec![4, 4]),
    ];
    for (cause, encoded) in causes {
        let record = DeathRecord {
            id: 3,
            name: name(),
            cause,
            time: 1,
            registers: Registers {
                gpr: [2; 16],
                rip: 3,
                rflags: 4,
            },
            backtrace: vec![5, 6],
            last_log: vec![vec![7], vec![]],
            pending: Some(PendingCall {
                badge: 8,
                tag: 9,
                words: [10; 4],
            }),
        };
        let mut bytes = vec![4, 1, 3, 2, b'a', b'b'];
        bytes.extend(encoded);
        bytes.push(1);
        bytes.extend([2; 16]);
        bytes.extend([3, 4, 2, 5, 6, 2, 1, 7, 0, 1, 8, 9, 10, 10, 10, 10]);
        golden(RootResponse::Death(Some(Box::new(record))), &bytes);
    }
}

#[test]
fn the_largest_death_fits() {
    let record = DeathRecord {
        id: 255,
        name: "x".repeat(crate::manifest::MAX_NAME),
        cause: Cause::Fault {
            vector: 255,
            error: u64::MAX,
            address: u64::MAX,
        },
        time: u64::MAX,
        registers: Registers {
            gpr: [u64::MAX; 16],
            rip: u64::MAX,
            rflags: u64::MAX,
        },
        backtrace: vec![u64::MAX; MAX_BACKTRACE],
        last_log: vec![vec![0; 12]; MAX_LOG_BYTES / 16],
        pending: Some(PendingCall {
            badge: u64::MAX,
            tag: u64::MAX,
            words: [u64::MAX; 4],
        }),
    };
    let mut buffer = [0; MAX_MESSAGE];
    assert!(encode(&RootResponse::Death(Some(Box::new(record))), &mut buffer).is_ok());
    assert_eq!(
        encode(&vec![0u8; MAX_MESSAGE], &mut buffer),
        Err(BadMessage)
    );
}

#[test]
fn events() {
    golden(RootEvent::VmStarted { vm: name() }, b"\x00\x02ab");
    let ends = [
        (VmEnd::PowerOff, vec![0]),
        (VmEnd::Reset, vec![1]),
        (VmEnd::Killed, vec![2]),
        (VmEnd::TripleFault, vec![3]),
        (VmEnd::DebugExit(7), vec![4, 7]),
        (VmEnd::Failed, vec![5]),
    ];
    for (end, encoded) in ends {
        let mut bytes = b"\x01\x02ab".to_vec();
        bytes.extend(encoded);
        golden(RootEvent::VmStopped { vm: name(), end }, &bytes);
    }
    golden(
        RootEvent::ServerDied {
            server: name(),
            cause: Cause::Hung,
        },
        b"\x02\x02ab\x02",
    );
    golden(RootEvent::ServerRestarted { server: name() }, b"\x03\x02ab");
}

#[test]
fn platform() {
    golden(PlatformRequest::ClaimIrq { gsi: 4 }, &[0, 4]);
    golden(PlatformRequest::PowerOff { code: 33 }, &[1, 33]);
    golden(PlatformRequest::Describe, &[2]);
    golden(PlatformRequest::Unmask { gsi: 4 }, &[3, 4]);
    golden(PlatformRequest::Reset, &[4]);
    golden(
        PlatformRequest::RouteIrq {
            gsi: 4,
            vector: 0x40,
            apic_id: 1,
        },
        &[5, 4, 0x40, 1],
    );
    golden(PlatformRequest::Processor { index: 3 }, &[6, 3]);
    golden(
        PlatformResponse::Processor {
            number: 1,
            apic_id: 2,
            state: CpuState::Online,
        },
        &[4, 1, 2, 2],
    );
    let function = PlatformRequest::Function {
        vendor: 0x1af4,
        devices: vec![0x1042, 1],
        index: 2,
    };
    golden(function, &[7, 0xf4, 0x35, 2, 0xc2, 0x20, 1, 2]);
    let start = PlatformRequest::StartFunction {
        address: 8,
        vector: 0x41,
        apic_id: 3,
    };
    golden(start, &[8, 8, 0x41, 3]);
    let function = PciFunction {
        address: 8,
        config: vec![1, 2],
        bars: vec![PciBar {
            number: 4,
            base: 5,
            len: 6,
        }],
    };
    golden(
        PlatformResponse::Function(function),
        &[5, 8, 2, 1, 2, 1, 4, 5, 6],
    );
    golden(PlatformResponse::Done, &[0]);
    golden(PlatformResponse::Refused(Refusal::Busy), &[1, 1]);
    golden(
        PlatformResponse::Irq {
            level: true,
            active_low: false,
        },
        &[2, 1, 0],
    );
    let machine = Machine {
        processors: vec![1, 2],
        ioapics: vec![IoApic {
            id: 3,
            address: 4,
            gsi_base: 5,
            lines: 24,
        }],
        pci: vec![PciDevice {
            address: 8,
            vendor: 9,
            device: 10,
            class: 11,
        }],
        acpi_power_off: true,
    };
    golden(
        PlatformResponse::Machine(machine),
        &[3, 2, 1, 2, 1, 3, 4, 5, 24, 1, 8, 9, 10, 11, 1],
    );
}

#[test]
fn scheduler() {
    let classes = [
        Class::Core,
        Class::Driver,
        Class::Device,
        Class::Vm,
        Class::Manager,
        Class::Background,
    ];
    for (number, class) in (0..).zip(classes) {
        let request = SchedulerRequest::Admit {
            name: name(),
            class,
            shares: 100,
            reservation: 20,
            limit: Some(50),
            group: None,
        };
        golden(request, &[0, 2, b'a', b'b', number, 100, 20, 1, 50, 0]);
    }
    let grouped = SchedulerRequest::Admit {
        name: name(),
        class: Class::Vm,
        shares: 1,
        reservation: 2,
        limit: None,
        group: Some(Group {
            id: 3,
            shares: 4,
            reservation: 5,
            cpu: Some(6),
        }),
    };
    golden(grouped, &[0, 2, b'a', b'b', 3, 1, 2, 0, 1, 3, 4, 5, 1, 6]);
    golden(SchedulerRequest::Processor { number: 7 }, &[2, 7]);
    golden(SchedulerRequest::Release { number: 6 }, &[1, 6]);
    golden(SchedulerResponse::Done, &[0]);
    golden(SchedulerResponse::Refused(Refusal::Busy), &[1, 1]);
    golden(
        SchedulerResponse::Admitted { number: 6, cpu: 1 },
        &[2, 6, 1],
    );
}

#[test]
fn long_lists_come_in_pieces() {
    let all: Vec<ServerInfo> = (0..200)
        .map(|i| ServerInfo {
            id: i,
            name: std::format!("server-{i:-<24}"),
            state: ServerState::Running,
            restarts: u32::MAX,
            memory_bytes: u64::MAX,
            cpu_time: u64::MAX,
            cpu: Some(u32::MAX),
            kinds: MemoryKinds {
                image: u64::MAX,
                stack: u64::MAX,
                heap: u64::MAX,
                objects: u64::MAX,
                objects_free: u64::MAX,
                other: u64::MAX,
                code: u64::MAX,
            },
            vm: Some(u32::MAX),
        })
        .collect();
    let mut seen = vec![];
    let mut buffer = [0; MAX_MESSAGE];
    while seen.len() < all.len() {
        let answer = RootResponse::servers(&all, seen.len() as u32);
        let length = encode(&answer, &mut buffer).unwrap();
        let Ok(RootResponse::Servers {
            servers,
            total: 200,
        }) = decode(&buffer[..length])
        else {
            panic!()
        };
        assert!(!servers.is_empty());
        seen.extend(servers);
    }
    assert_eq!(seen, all);
    assert_eq!(
        RootResponse::vms(&[], 7),
        RootResponse::Vms {
            vms: vec![],
            total: 0
        }
    );
}

#[test]
fn trailing_bytes_are_refused() {
    assert_eq!(decode::<RootRequest>(&[9, 0]), Err(BadMessage));
    assert_eq!(decode::<RootRequest>(&[200]), Err(BadMessage));
    assert_eq!(
        decode::<RootRequest>(b"\x01\x02\xff\xff"),
        Err(BadMessage),
        "not UTF-8"
    );
}

proptest! {
    #[test]
    fn noise_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200), first in 0u8..10) {
        let mut bytes = bytes;
        if let Some(byte) = bytes.first_mut() {
            *byte = first;
        }
        let _ = decode::<RootRequest>(&bytes);
        let _ = decode::<RootResponse>(&bytes);
        let _ = decode::<PlatformRequest>(&bytes);
        let _ = decode::<PlatformResponse>(&bytes);
        let _ = decode::<SchedulerRequest>(&bytes);
    }
}
