//! A driver gone mad: whatever it writes, the device refuses, dies or works, and never panics.

use crate::host::*;
use flowlift_bus::DeviceModel;
use proptest::prelude::*;

/// What a mad driver does.
#[derive(Debug, Clone)]
enum Act {
    Register {
        offset: u64,
        width: usize,
        value: u64,
    },
    Bell {
        slot: usize,
        value: u32,
    },
    /// A command that is right, but for some bytes.
    Command {
        which: usize,
        changes: Vec<(usize, u8)>,
    },
    Raw(Vec<u8>),
    Tx {
        changes: Vec<(usize, u8)>,
        frame: Vec<u8>,
    },
    RxBuffer {
        place: u64,
        bytes: [u8; 16],
    },
    Frame {
        port: u16,
        bytes: Vec<u8>,
    },
    BusMaster(bool),
    Restart,
    Step,
}

fn act() -> impl Strategy<Value = Act> {
    let changes = || proptest::collection::vec((0usize..192, any::<u8>()), 0..4);
    let offset = prop_oneof![0u64..0x300, 0x1000u64..0x1900, any::<u64>()].prop_map(|o| o & !3);
    let value = prop_oneof![Just(0u64), Just(1), Just(3), Just(64), any::<u64>()];
    let bell = prop_oneof![0u32..200, any::<u32>()];
    let frame = || proptest::collection::vec(any::<u8>(), 0..100);
    prop_oneof![
        2 => (offset, prop_oneof![4 => Just(4usize), 1 => 1usize..9], value)
            .prop_map(|(offset, width, value)| Act::Register { offset, width, value }),
        1 => (prop_oneof![Just(0usize), Just(0x40), Just(0x80), Just(0x400), Just(0x440)], bell)
            .prop_map(|(slot, value)| Act::Bell { slot, value }),
        6 => (0usize..13, changes()).prop_map(|(which, changes)| Act::Command { which, changes }),
        1 => proptest::collection::vec(any::<u8>(), 64..256).prop_map(Act::Raw),
        2 => (changes(), frame()).prop_map(|(changes, frame)| Act::Tx { changes, frame }),
        1 => (0u64..64, any::<[u8; 16]>()).prop_map(|(place, bytes)| Act::RxBuffer { place, bytes }),
        3 => (1u16..5, frame()).prop_map(|(port, bytes)| Act::Frame { port, bytes }),
        1 => any::<bool>().prop_map(Act::BusMaster),
        1 => Just(Act::Restart),
        6 => Just(Act::Step),
    ]
}

fn command(which: usize) -> Vec<u8> {
    let full = blobs(Keys::Full, &[(5, &[8, 0], &[0xff; 2])]);
    match which {
        0 => {
            insert(2, 1, 5, &full, &[output(2), set(14, &[1, 2, 3, 4]), unit(5, 0, &[]), output(3)].concat())
        }
        1 => insert(0, 2, 0, &blobs(Keys::Hash4, &[(5, &[8, 0], &[0xff; 2])]), &unit(9, 1, &[])),
        2 => replace(2, 1, 9, &[unit(3, 0, &[0x81, 0, 0, 5]), unit(7, 0, &[])].concat()),
        3 => header(3, 2, 1, 0, 0),
        4 => buffer(4, 2, 1, 5, 0, SCRATCH, 4096),
        5 => buffer(5, 2, 0, 5, 16, SCRATCH, 768),
        6 => header(6, 2, 0, 0, 0),
        7 => golden("meter_set"),
        8 => buffer(8, 0, 5, 1, 0, SCRATCH, 48),
        9 => buffer(9, 0, 0, 1, 0, SCRATCH, 8192),
        10 => buffer(10, 2, 0, 0, 0, PAGE, 65_536),
        11 => buffer(11, 0, 0, 0, 0, PAGE, 16_384),
        _ => insert(4, 3, 1, &full, &unit(6, 0, &[5, 0, 0, 0])),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn a_mad_driver_does_not_bring_the_model_down(acts in proptest::collection::vec(act(), 1..120)) {
        let mut h = Host::with("standard", 1, "all".parse().expect("known"));
        let alter = |bytes: &mut [u8], changes: &[(usize, u8)]| {
            for (at, v) in changes {
                if let Some(b) = bytes.get_mut(*at) {
                    *b = *v;
                }
            }
        };
        for a in acts {
            match a {
                Act::Register { offset, width, value } => {
                    h.dev.region_write(0, offset, &value.to_le_bytes()[..width.min(8)]);
                    let mut d = [0; 8];
                    h.dev.region_read(0, offset, &mut d[..width.min(8)]);
                }
                Act::Bell { slot, value } => h.bell(slot, value),
                Act::Command { which, changes } => {
                    let mut c = command(which);
                    alter(&mut c, &changes);
                    h.submit(&c);
                }
                Act::Raw(mut bytes) => {
                    bytes.truncate(bytes.len() / 64 * 64);
                    h.submit(&bytes);
                }
                Act::Tx { changes, frame } => {
                    h.tx(&frame, 1, Some((1, 7)));
                    let at = TXD + u64::from((h.tx_tail - 1) % RING) * 32;
                    let mut d = h.peek(at, 32);
                    alter(&mut d, &changes);
                    h.poke(at, &d);
                }
                Act::RxBuffer { place, bytes } => h.poke(RXB + place * 16, &bytes),
                // A full wire gives the frame back, and it is dropped here.
                Act::Frame { port, bytes } => drop(h.wires[usize::from(port) - 1].inject(bytes)),
                Act::BusMaster(on) => h.dev.bus_master(on),
                Act::Restart => {
                    h.dev.reset();
                    if !h.dev.is_gone() {
                        h.start();
                    }
                }
                Act::Step => {
                    h.clock.advance(1_000_000);
                    h.dev.step();
                    if !h.dev.is_gone() {
                        h.completions();
                        h.events();
                    }
                }
            }
        }
    }
}
