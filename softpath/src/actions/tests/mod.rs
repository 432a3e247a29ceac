//! Tests of actions: packets built here, checksums computed anew here, and nothing shared with the code under test.

mod checksums;
mod frames;
mod lists;
mod robustness;
mod rules;
mod vxlan;

use super::*;
use crate::extract::{KeyBuf, extract};
use flowlift_flow::{Action, Metadata};

/// What a program did, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Did {
    Output(u32, Vec<u8>),
    /// Packet's bytes, and the source port of its key.
    Upcall(Vec<u8>, u16),
    Recirc(u32, u32, Vec<u8>),
    Psample(u32, Vec<u8>, usize),
    Dropped(DropReason),
}

#[derive(Default)]
pub(super) struct Recorder(pub(super) Vec<Did>);

impl Sink for Recorder {
    fn output(&mut self, port: PortNo, packet: &[u8]) {
        self.0.push(Did::Output(port.0, packet.to_vec()));
    }

    fn upcall(&mut self, upcall: ActionUpcall<'_>) {
        self.0.push(Did::Upcall(upcall.packet.to_vec(), upcall.key.tp_src.get()));
    }

    fn recirc(&mut self, _: &mut Context, packet: &mut Packet) {
        self.0.push(Did::Recirc(packet.metadata.recirc_id, packet.metadata.dp_hash, packet.bytes().to_vec()));
        // The packet is the sink's: a sink that ruins it must not disturb the caller.
        packet.fill(&[0xee; 3], Metadata::default());
    }

    fn psample(&mut self, record: PsampleRecord<'_>) {
        self.0.push(Did::Psample(record.probability, record.packet.to_vec(), record.original_len));
    }

    fn dropped(&mut self, reason: DropReason) {
        self.0.push(Did::Dropped(reason));
    }
}

pub(super) fn run_in(ctx: &mut Context, frame: &[u8], actions: &[Action]) -> Vec<Did> {
    let program = compile(actions).unwrap();
    let mut packet = Packet::new();
    packet.fill(frame, Metadata::default());
    let mut key = KeyBuf::new();
    let layers = extract(packet.bytes(), &packet.metadata, &mut key);
    let mut sink = Recorder::default();
    execute(&program, &mut packet, key.key(), &layers, ctx, &mut sink);
    sink.0
}

pub(super) fn run(frame: &[u8], actions: &[Action]) -> Vec<Did> {
    run_in(&mut Context::new(1), frame, actions)
}

/// The frame as it leaves after `actions`.
pub(super) fn after(frame: &[u8], actions: &[Action]) -> Vec<u8> {
    let mut actions = actions.to_vec();
    actions.push(Action::Output(PortNo(9)));
    match run(frame, &actions).pop() {
        Some(Did::Output(9, bytes)) => bytes,
        other => panic!("no output but {other:?}"),
    }
}
