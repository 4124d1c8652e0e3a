//! The servers' messages: any bytes to each type's decoder; what decodes must survive being sent on.
#![no_main]

use fuzz::target;
use ipc_schema::proto::{
    Class, MAX_MESSAGE, Machine, PlatformRequest, PlatformResponse, Refusal, RootRequest,
    RootResponse, SchedulerRequest, SchedulerResponse, ServerInfo, VmInfo, VmmReport,
    VmmReportResponse, decode, encode,
};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

target!(run, seeds);

/// The first byte chooses the type, the rest is the message.
fn seeds() -> Vec<Vec<u8>> {
    fn seed<T: Serialize>(of: u8, message: &T) -> Vec<u8> {
        let mut buffer = [0; MAX_MESSAGE];
        let len = encode(message, &mut buffer).unwrap_or(0);
        [&[of], &buffer[..len]].concat()
    }
    let vm = VmInfo {
        name: "linux".into(),
        state: ipc_schema::proto::VmState::Running,
        memory: 1 << 28,
        vcpus: 1,
        uptime: 5,
        cpu: Some(0),
    };
    let server = ServerInfo {
        id: 3,
        name: "vmm".into(),
        state: ipc_schema::proto::ServerState::Running,
        restarts: 1,
        memory_bytes: 9,
        cpu_time: 1 << 40,
        cpu: None,
        kinds: ipc_schema::proto::MemoryKinds::default(),
        vm: None,
    };
    vec![
        seed(0, &RootRequest::Start { vm: "linux".into() }),
        seed(0, &RootRequest::LogTail { records: 50 }),
        seed(1, &RootResponse::vms(&[vm], 0)),
        seed(1, &RootResponse::servers(&[server], 0)),
        seed(1, &RootResponse::Refused(Refusal::Busy)),
        seed(
            2,
            &PlatformRequest::RouteIrq {
                gsi: 4,
                vector: 0x41,
                apic_id: 0,
            },
        ),
        seed(3, &PlatformResponse::Machine(Machine::default())),
        seed(
            4,
            &SchedulerRequest::Admit {
                name: "x".into(),
                class: Class::Vm,
                shares: 1,
                reservation: 2,
                limit: Some(3),
                group: None,
            },
        ),
        seed(5, &SchedulerResponse::Admitted { number: 7, cpu: 1 }),
        seed(6, &VmmReport::Running),
        seed(7, &VmmReportResponse::Done),
    ]
}

fn one<T: Serialize + DeserializeOwned + PartialEq + Debug>(data: &[u8]) {
    let Ok(message) = decode::<T>(data) else {
        return;
    };
    // It came in one message, so it goes into one: an encoder never makes it longer.
    let mut buffer = vec![0; data.len()];
    let len = encode(&message, &mut buffer).expect("room for what was there");
    assert_eq!(decode::<T>(&buffer[..len]).as_ref(), Ok(&message));
    // Not one byte more or less is the same message.
    assert!(len == 0 || decode::<T>(&buffer[..len - 1]).is_err());
    buffer.truncate(len);
    buffer.push(0);
    assert!(decode::<T>(&buffer).is_err());
}

fn run(data: &[u8]) {
    let Some((&of, data)) = data.split_first() else {
        return;
    };
    let data = &data[..data.len().min(MAX_MESSAGE)];
    match of % 8 {
        0 => one::<RootRequest>(data),
        1 => one::<RootResponse>(data),
        2 => one::<PlatformRequest>(data),
        3 => one::<PlatformResponse>(data),
        4 => one::<SchedulerRequest>(data),
        5 => one::<SchedulerResponse>(data),
        6 => one::<VmmReport>(data),
        _ => one::<VmmReportResponse>(data),
    }
    pages(data);
}

/// A list that is sent piece by piece arrives whole, and each piece fits.
fn pages(data: &[u8]) {
    let Ok(RootResponse::Vms { vms, .. }) = decode::<RootResponse>(data) else {
        return;
    };
    let mut got = Vec::new();
    while let RootResponse::Vms { vms: piece, total } = RootResponse::vms(&vms, got.len() as u32) {
        assert_eq!(total as usize, vms.len());
        if piece.is_empty() {
            break;
        }
        let response = RootResponse::Vms {
            vms: piece.clone(),
            total,
        };
        assert!(encode(&response, &mut [0; MAX_MESSAGE]).is_ok());
        got.extend(piece);
    }
    // An item that does not fit by itself ends the list; names from the manifest are never that long.
    if vms.iter().all(|vm| vm.name.len() <= 32) {
        assert_eq!(got, vms);
    }
}
