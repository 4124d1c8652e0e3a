//! Long answers: servers, deaths and logs, which come in pieces.

use super::*;

#[test]
fn servers_in_pieces() {
    let server = |id: u8| ServerInfo {
        id,
        name: format!("server{id}"),
        state: ServerState::Running,
        restarts: 2,
        memory_bytes: 70_000,
        cpu_time: 1_234_567_890,
        cpu: (id != 2).then_some(0),
        kinds: ipc_schema::proto::MemoryKinds {
            image: 4096,
            stack: 69_632,
            heap: 1 << 21,
            objects: 65_536,
            objects_free: 8192,
            other: 1024,
            code: 8192,
        },
        vm: (id != 1).then_some(1),
    };
    let mut bench = Bench::at_prompt();
    bench.asks("servers", RootRequest::Servers { first: 0 });
    bench.0.answer(Some(RootResponse::Servers {
        servers: vec![server(1), server(2)],
        total: 3,
    }));
    assert_eq!(
        bench.0.take_actions(),
        [Action::Ask(RootRequest::Servers { first: 2 })]
    );
    let text = bench.answers(Some(RootResponse::Servers {
        servers: vec![server(3)],
        total: 3,
    }));
    assert_eq!(text.lines().count(), 11);
    // All of a VM's servers together; the other VM has none.
    for line in [
        "  1  server1                  8 KiB     4 KiB     68 KiB    2.0 MiB   64 KiB    8 KiB     1 KiB     2.1 MiB\r\n",
        " VM  a                        0 KiB     0 KiB     0 KiB     0 KiB     0 KiB     0 KiB     0 KiB     0 KiB\r\n",
        " VM  b                        16 KiB    8 KiB     136 KiB   4.0 MiB   128 KiB   16 KiB    2 KiB     4.2 MiB\r\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
    assert!(
        text.contains(
            "  3  server3                  running     2         69 KiB       0    1.234 s\r\n"
        ),
        "{text}"
    );
}

#[test]
fn processors() {
    let cpu = |number, state, idle| CpuInfo {
        number,
        apic_id: 2 * number,
        state,
        time: 2000,
        idle,
        locks: 12,
        stops: 3,
        longest_off: 4,
    };
    let mut bench = Bench::at_prompt();
    bench.asks("cpus", RootRequest::Cpus);
    let text = bench.answers(Some(RootResponse::Cpus(vec![
        cpu(0, CpuState::Online, 1999),
        cpu(1, CpuState::Off, 0),
    ])));
    assert!(
        text.contains(
            "  0  0        online     99.9 %  12          3         4 cycles\r\n  1  2        off         0.0 %  "
        ),
        "{text}"
    );
}

#[test]
fn a_death_in_full() {
    let mut bench = Bench::at_prompt();
    bench.asks(
        "servers a.uart0",
        RootRequest::Death {
            server: "a.uart0".into(),
        },
    );
    let mut registers = Registers {
        gpr: [0; 16],
        rip: 0x40_1234,
        rflags: 0x202,
    };
    registers.gpr[15] = 0xfeed;
    let record = DeathRecord {
        id: 9,
        name: "a.uart0".into(),
        cause: Cause::Panic,
        time: 3_000_000_000,
        registers,
        backtrace: vec![0x40_1234, 0x40_2000],
        last_log: vec![vec![1, 0xab], vec![]],
        pending: Some(PendingCall {
            badge: 3,
            tag: 0x20000,
            words: [1, 2, 3, 4],
        }),
    };
    let text = bench.answers(Some(RootResponse::Death(Some(Box::new(record)))));
    for part in [
        "a.uart0 (server 9) died at 3.000 s: panic\r\n",
        "  rip 0000000000401234  rflags 00000202\r\n",
        "  r15 000000000000feed\r\n",
        "\r\n\x1eB9 0x401234 0x402000\r\n",
        "  pending call: badge 0x3, tag 0x20000, words 0x1 0x2 0x3 0x4\r\n",
        "\x1eL9 01ab\r\n\x1eL9 \r\nvireo> ",
    ] {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
    bench.asks(
        "servers b.uart0",
        RootRequest::Death {
            server: "b.uart0".into(),
        },
    );
    assert_eq!(
        bench.answers(Some(RootResponse::Death(None))),
        "b.uart0 has not died since the start\r\nvireo> "
    );
}

#[test]
fn the_log_comes_in_pieces_and_ends() {
    let records = |count: u8| {
        (0..count)
            .map(|i| LogRecord {
                source: i,
                frame: vec![i, 0xff],
            })
            .collect::<Vec<_>>()
    };
    let mut bench = Bench::at_prompt();
    bench.asks("log 5", RootRequest::LogTail { records: 5 });
    bench.0.answer(Some(RootResponse::Log {
        records: records(2),
        next: 70,
        lost: 9,
    }));
    let actions = bench.0.take_actions();
    assert_eq!(
        actions,
        [
            Action::Terminal(
                b"[9 bytes of log were overwritten]\r\n\x1eL0 00ff\r\n\x1eL1 01ff\r\n".to_vec()
            ),
            Action::Ask(RootRequest::Log { position: 70 })
        ]
    );
    // More has been logged since: the number asked for is the end.
    let text = bench.answers(Some(RootResponse::Log {
        records: records(3),
        next: 99,
        lost: 0,
    }));
    assert_eq!(text.lines().count(), 4);
    bench.asks("log", RootRequest::LogTail { records: 50 });
    assert_eq!(
        bench.answers(Some(RootResponse::Log {
            records: vec![],
            next: 0,
            lost: 0
        })),
        "vireo> "
    );
}

#[test]
fn an_endless_answer_ends() {
    let mut bench = Bench::at_prompt();
    bench.asks("vms", RootRequest::Vms { first: 0 });
    for round in 0..1000 {
        bench.0.answer(Some(RootResponse::Vms {
            vms: vec![vm("a", VmState::Running)],
            total: u32::MAX,
        }));
        if !bench
            .0
            .take_actions()
            .iter()
            .any(|action| matches!(action, Action::Ask(_)))
        {
            assert!(round > 100);
            bench.asks("vms", RootRequest::Vms { first: 0 });
            return;
        }
    }
    panic!("still asking");
}
