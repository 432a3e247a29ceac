//! The pipeline: parser, tables, actions. It decides what a packet does; nothing has happened yet when it returns.

use crate::action::{End, Exception, Output, Packet, has_decap, has_meter, run};
use crate::device::Fl1;
use crate::field::Field;
use crate::meter::Meter;
use crate::parser::parse;
use crate::vxlan::Tunnel;

/// Why a packet goes to a slow queue (FL1.md, section 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Reason {
    Miss = 1,
    Parse = 2,
    Trap = 3,
    Exception = 4,
}

/// An entry that a packet hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) table: usize,
    pub(crate) entry: u32,
    pub(crate) bytes: u64,
    pub(crate) tcp_flags: u16,
}

/// A packet for a slow queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slow {
    pub(crate) reason: Reason,
    pub(crate) stage: u8,
    /// 0xffff: none.
    pub(crate) table: u16,
    /// 0xffffffff: none.
    pub(crate) entry: u32,
    pub(crate) metadata: u32,
    pub(crate) frame: Vec<u8>,
}

const NO_TABLE: u16 = u16::MAX;
const NO_ENTRY: u32 = u32::MAX;

/// All that one packet does.
#[derive(Debug, Clone, Default)]
pub(crate) struct Verdict {
    pub(crate) hits: Vec<Hit>,
    pub(crate) outputs: Vec<Output>,
    /// Meters after it, by id; later ones count.
    pub(crate) meters: Vec<(u32, Meter)>,
    pub(crate) slow: Option<Slow>,
}

/// How a packet was before the first entry that unwrapped it, and how much had been done for it by then.
struct Wrapped {
    slow: Slow,
    hits: usize,
    outputs: usize,
    meters: usize,
}

impl Verdict {
    /// Gives the packet to a slow queue: after a decapsulation the one before it, as the completion has no room for
    /// what was taken off.
    fn give_up(mut self, slow: Slow, wrapped: Option<Wrapped>) -> Self {
        self.slow = Some(match wrapped {
            None => slow,
            Some(w) => {
                self.hits.truncate(w.hits);
                self.outputs.truncate(w.outputs);
                self.meters.truncate(w.meters);
                w.slow
            }
        });
        self
    }
}

impl Fl1 {
    /// Sends `frame` through the tables from `stage` on.
    pub(crate) fn classify(&self, frame: &[u8], port: u16, stage: u8, metadata: u32) -> Verdict {
        let mut verdict = Verdict::default();
        let now = self.now;
        let (mut stage, mut metadata) = (stage, metadata);
        let mut data = frame.to_vec();
        let mut tunnel = Tunnel::default();
        let mut wrapped = None;
        // GOTO only leads to later stages, so this ends.
        loop {
            let slow = |reason, table: u16, entry, metadata, frame| Slow {
                reason,
                stage,
                table,
                entry,
                metadata,
                frame,
            };
            let Ok(mut parsed) = parse(&data) else {
                return verdict.give_up(slow(Reason::Parse, NO_TABLE, NO_ENTRY, metadata, data), wrapped);
            };
            parsed.key.set(Field::InPort, &port.to_be_bytes());
            parsed.key.set(Field::Metadata, &metadata.to_be_bytes());
            parsed.key.set(Field::TunId, &tunnel.vni);
            parsed.key.set(Field::TunIpv4Src, &tunnel.src);
            parsed.key.set(Field::TunIpv4Dst, &tunnel.dst);
            let (table, hit) = self.lookup(stage, &parsed.key);
            let Some((entry, actions)) = hit else {
                return verdict.give_up(slow(Reason::Miss, table, NO_ENTRY, metadata, data), wrapped);
            };
            let packet = Packet { data, headers: parsed.headers, port, tunnel };
            if wrapped.is_none() && has_decap(actions) {
                wrapped = Some(Wrapped {
                    slow: slow(Reason::Exception, table, entry, metadata, packet.data.clone()),
                    hits: verdict.hits.len(),
                    outputs: verdict.outputs.len(),
                    meters: verdict.meters.len(),
                });
            }
            let bytes = packet.data.len() as u64;
            match self.run_list(actions, &packet, metadata, now, &mut verdict) {
                Err(Exception) => {
                    let slow = slow(Reason::Exception, table, entry, metadata, packet.data);
                    return verdict.give_up(slow, wrapped);
                }
                Ok((end, after, new_metadata)) => {
                    let tcp_flags = parsed.tcp_flags;
                    verdict.hits.push(Hit { table: usize::from(table), entry, bytes, tcp_flags });
                    match end {
                        End::Done => return verdict,
                        End::Trap => {
                            let slow = slow(Reason::Trap, table, entry, new_metadata, after.data);
                            return verdict.give_up(slow, wrapped);
                        }
                        End::Goto(next) => {
                            (stage, metadata) = (next, new_metadata);
                            (data, tunnel) = (after.data, after.tunnel);
                        }
                    }
                }
            }
        }
    }

    /// Asks the tables of a stage in turn. Gives the last one asked, and the entry with its actions if one was hit.
    fn lookup(&self, stage: u8, key: &crate::field::PacketKey) -> (u16, Option<(u32, &[u8])>) {
        let mut table = self.tables.iter().position(|t| t.spec.stage == stage);
        let mut last = NO_TABLE;
        while let Some(t) = table.and_then(|i| self.tables.get(i)) {
            last = t.spec.id;
            if let Some(id) = t.lookup(key) {
                return (last, Some((id, t.actions(id))));
            }
            table = t.spec.next.map(usize::from);
        }
        (last, None)
    }

    /// Runs a list on a copy of the packet. Only a list that can be run as a whole leaves anything in `verdict`.
    fn run_list(
        &self,
        actions: &[u8],
        packet: &Packet,
        metadata: u32,
        now: u64,
        verdict: &mut Verdict,
    ) -> Result<(End, Packet, u32), Exception> {
        if has_meter(actions) {
            // An exception behind a meter must be found before the meter is charged.
            run(actions, &mut packet.clone(), &mut { metadata }, |_, _| true, &mut Vec::new())?;
        }
        let (mut work, mut new_metadata) = (packet.clone(), metadata);
        let mut outputs = Vec::new();
        let meters = &mut verdict.meters;
        let end = run(
            actions,
            &mut work,
            &mut new_metadata,
            |id, len| self.charge(meters, id, len, now),
            &mut outputs,
        )?;
        verdict.outputs.append(&mut outputs);
        Ok((end, work, new_metadata))
    }

    /// Charges a meter's copy in `charged`. A meter that was removed after the entry was installed passes all.
    fn charge(&self, charged: &mut Vec<(u32, Meter)>, id: u32, len: usize, now: u64) -> bool {
        let latest = charged.iter().rev().find(|(m, _)| *m == id).map(|(_, m)| *m);
        let Some(mut meter) = latest.or_else(|| self.meters.get(id as usize).copied().flatten()) else {
            return true;
        };
        let pass = meter.charge(len, now);
        charged.push((id, meter));
        pass
    }
}
