//! The softpath's side: a table of few flows, searched one by one, around the actions under test.
#![expect(clippy::panic, reason = "a part of a test")]

use flowlift_flow::text::{NoNames, parse_actions, parse_match};
use flowlift_flow::{Match, Metadata, PortNo};
use flowlift_softpath::actions::{ActionUpcall, Context, DropReason, Program, Sink, compile, execute};
use flowlift_softpath::extract::{KeyBuf, extract_packet};
use flowlift_softpath::packet::Packet;
use flowlift_tests::ovs::Sent;

/// Flows as text, compiled.
pub(crate) struct Table(Vec<(Match, Program)>);

struct Run<'t> {
    table: &'t Table,
    sent: Sent,
}

impl Table {
    pub(crate) fn parse(flows: &[(String, String)]) -> Self {
        Self(
            flows
                .iter()
                .map(|(matching, actions)| {
                    let (parsed, _) =
                        parse_match(matching, &NoNames).unwrap_or_else(|e| panic!("{matching}: {e}"));
                    let list = parse_actions(actions, &NoNames).unwrap_or_else(|e| panic!("{actions}: {e}"));
                    (parsed, compile(&list).unwrap_or_else(|e| panic!("{actions}: {e}")))
                })
                .collect(),
        )
    }

    /// What a frame that port 1 receives makes the ports send.
    pub(crate) fn run(&self, frame: &[u8]) -> Sent {
        let mut run = Run { table: self, sent: Sent::new() };
        let mut packet = Packet::new();
        packet.fill(frame, Metadata { in_port: 1, ..Metadata::default() });
        run.classify(&mut Context::new(0), &mut packet);
        run.sent
    }
}

impl Run<'_> {
    fn classify(&mut self, ctx: &mut Context, packet: &mut Packet) {
        let mut key = KeyBuf::new();
        let layers = extract_packet(packet, &mut key);
        let mut hits = self.table.0.iter().filter(|(m, _)| m.mask.matches(&m.key, key.key()));
        let (hit, second) = (hits.next(), hits.next());
        assert!(second.is_none(), "two flows match (R22): {hit:?} and {second:?}");
        if let Some((_, program)) = hit {
            execute(program, packet, key.key(), &layers, ctx, self);
        }
    }
}

impl Sink for Run<'_> {
    fn output(&mut self, port: PortNo, packet: &[u8]) {
        self.sent.entry(port.0).or_default().push(packet.to_vec());
    }

    fn upcall(&mut self, _: ActionUpcall<'_>) {}

    fn recirc(&mut self, ctx: &mut Context, packet: &mut Packet) {
        self.classify(ctx, packet);
    }

    fn dropped(&mut self, _: DropReason) {}
}
