//! The shared ring: a queue between honest ends, and harmless to either when the page is scribbled over.
#![no_main]

use fuzz::{Bytes, scribble, target};
use ipc_schema::ring::{CAPACITY, Consumer, Producer, RingPage};
use std::collections::VecDeque;

target!(run);

fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let page = Box::new(RingPage::new());
    let (mut producer, mut consumer) = (Producer::new(&page), Consumer::new(&page));
    let mut model: Option<VecDeque<u8>> = Some(VecDeque::new());
    let mut buffer = [0; 4096];
    let mut steps = 0;
    while !bytes.is_empty() && steps < 500 {
        steps += 1;
        match bytes.u8() % 10 {
            0..3 => {
                let len = bytes.below(CAPACITY + 100);
                let sent: Vec<u8> = (0..len).map(|i| (i * 7 + steps) as u8).collect();
                let count = producer.push(&sent);
                assert!(count <= len && count <= CAPACITY);
                if let Some(model) = &mut model {
                    assert_eq!(count, len.min(CAPACITY - model.len()));
                    model.extend(&sent[..count]);
                }
            }
            3..6 => {
                let len = bytes.below(buffer.len());
                let count = consumer.pop(&mut buffer[..len]);
                assert!(count <= len && count <= CAPACITY);
                if let Some(model) = &mut model {
                    let expected: Vec<u8> = model.drain(..len.min(model.len())).collect();
                    assert_eq!(&buffer[..count], &expected[..]);
                }
            }
            6 => {
                let len = bytes.below(buffer.len());
                let count = consumer.peek(&mut buffer[..len]);
                let by = bytes.below(CAPACITY * 2);
                consumer.advance(by);
                if let Some(model) = &mut model {
                    assert!(buffer[..count].iter().eq(model.iter().take(len)));
                    model.drain(..by.min(model.len()));
                }
            }
            7 => {
                // Each may die and be followed by another at any moment.
                producer = Producer::new(&page);
                consumer = Consumer::new(&page);
            }
            8 => {
                let slept = consumer.prepare_sleep();
                assert!(!slept || consumer.is_empty());
                if slept && model.is_some() {
                    assert!(producer.needs_signal() && !producer.needs_signal());
                }
                let slept = producer.prepare_sleep();
                assert!(!slept || producer.room() == 0);
                if slept && model.is_some() {
                    assert!(consumer.needs_signal() && !consumer.needs_signal());
                }
            }
            _ => {
                // The peer goes mad; from now on only safety counts.
                model = None;
                scribble(&*page, &mut bytes);
            }
        }
        assert!(producer.room() <= CAPACITY);
        if let Some(model) = &model {
            assert_eq!(producer.room(), CAPACITY - model.len());
            assert_eq!(consumer.is_empty(), model.is_empty());
        } else {
            // However wild the page, the consumer has caught up after two looks and a sane producer can go on.
            let mut sink = [0; CAPACITY];
            let _ = consumer.pop(&mut sink);
            let _ = consumer.pop(&mut sink);
            assert!(consumer.is_empty());
        }
    }
}
