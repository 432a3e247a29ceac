//! The NIC's capability records, arranged for the questions that lowering asks.

use crate::meter::MeterCause;
use crate::ports::PortMap;
use flowlift_driver::nic::{Field, FieldCaps, MatchKind, NicCaps, Stage, TableCaps, TableId, TableKind};
use std::collections::BTreeMap;

/// A NIC's tables and the ports that it shares with the datapath: all that lowering knows of a NIC.
#[derive(Debug, Clone)]
pub struct Pipeline {
    caps: NicCaps,
    ports: PortMap,
    every_port_mapped: bool,
    last_stage: Stage,
    uncounted: bool,
    /// First of the recirculation IDs that the caller resumes in software.
    software_ids: Option<u32>,
    source_ports: bool,
    /// The datapath's meters: the NIC's numbers for them, or why they have none; and the other way round.
    meters: BTreeMap<u32, Result<u32, MeterCause>>,
    meters_of: BTreeMap<u32, u32>,
}

impl Pipeline {
    /// From the records that a device gave, and the ports that it shares with the datapath. Ports of `ports` that the
    /// device does not have are left out.
    pub fn new(caps: &NicCaps, ports: &PortMap) -> Self {
        let has = |nic| caps.ports.iter().any(|p| p.port == nic);
        let ports: PortMap = ports.iter().filter(|(_, nic)| has(*nic)).collect();
        let every_port_mapped = caps.ports.iter().all(|p| ports.dp(p.port).is_some());
        let last_stage = caps.tables.iter().map(|t| t.stage).max().unwrap_or(Stage(0));
        Self {
            caps: caps.clone(),
            ports,
            every_port_mapped,
            last_stage,
            uncounted: false,
            software_ids: None,
            source_ports: false,
            meters: BTreeMap::new(),
            meters_of: BTreeMap::new(),
        }
    }

    /// Lets flows into tables whose entries do not count everything. Without it they are refused there, as a flow's
    /// statistics are to be the same whoever handled its packets.
    #[must_use]
    pub fn with_uncounted(self, uncounted: bool) -> Self {
        Self { uncounted, ..self }
    }

    /// True if flows may be in tables whose entries do not count everything.
    pub fn uncounted(&self) -> bool {
        self.uncounted
    }

    /// Says that the caller itself goes on with packets that recirculate to `first` or a higher ID: no flow with such an ID
    /// will ever be put. A recirculation to one hands the packet, as it is then, to the slow queue at once, with the ID as
    /// metadata; no later stage is needed for it.
    #[must_use]
    pub fn resuming_in_software_from(self, first: u32) -> Self {
        Self { software_ids: Some(first), ..self }
    }

    /// True if packets with this recirculation ID are the caller's to resume.
    pub fn resumes_in_software(&self, recirc_id: u32) -> bool {
        self.software_ids.is_some_and(|first| recirc_id >= first)
    }

    /// Lets the NIC choose the UDP source port of an outer header that leaves it open. Without it such headers are refused, as
    /// software chooses otherwise, and a flow's packets are to be the same whoever handled them.
    #[must_use]
    pub fn choosing_source_ports(self) -> Self {
        Self { source_ports: true, ..self }
    }

    /// True if the NIC may choose outer UDP source ports.
    pub fn chooses_source_ports(&self) -> bool {
        self.source_ports
    }

    /// Takes the meters of another pipeline.
    #[must_use]
    pub(crate) fn with_meters_of(self, other: &Self) -> Self {
        Self { meters: other.meters.clone(), meters_of: other.meters_of.clone(), ..self }
    }

    /// Says by which number the NIC has a meter of the datapath, or why by none; `None` forgets the meter.
    pub(crate) fn set_meter(&mut self, meter: u32, number: Option<Result<u32, MeterCause>>) {
        if let Some(Ok(before)) = self.meters.remove(&meter) {
            self.meters_of.remove(&before);
        }
        if let Some(number) = number {
            self.meters.insert(meter, number);
            if let Ok(number) = number {
                self.meters_of.insert(number, meter);
            }
        }
    }

    /// What [`Pipeline::set_meter`] said of a meter.
    pub(crate) fn meter(&self, meter: u32) -> Option<Result<u32, MeterCause>> {
        self.meters.get(&meter).copied()
    }

    /// The datapath's meter that the NIC has by a number.
    pub(crate) fn meter_of(&self, number: u32) -> Option<u32> {
        self.meters_of.get(&number).copied()
    }

    /// The records.
    pub fn caps(&self) -> &NicCaps {
        &self.caps
    }

    /// The ports that NIC and datapath share.
    pub fn ports(&self) -> &PortMap {
        &self.ports
    }

    /// True if a packet from any port of the NIC is a packet of the datapath.
    pub fn every_port_mapped(&self) -> bool {
        self.every_port_mapped
    }

    /// The last stage that has tables.
    pub fn last_stage(&self) -> Stage {
        self.last_stage
    }

    /// Tables of a stage: hash tables first, as they are large and cheap, then TCAMs; else in the device's order.
    pub fn tables_of(&self, stage: Stage) -> impl Iterator<Item = &TableCaps> {
        let of = move |tcam: bool| {
            self.caps
                .tables
                .iter()
                .filter(move |t| t.stage == stage && matches!(t.kind, TableKind::Tcam) == tcam)
        };
        of(false).chain(of(true))
    }

    /// Record of a table.
    pub fn table(&self, id: TableId) -> Option<&TableCaps> {
        self.caps.table(id)
    }
}

/// A field of a table.
pub(crate) fn field_of(table: &TableCaps, field: Field) -> Option<&FieldCaps> {
    table.fields.iter().find(|f| f.field == field)
}

/// All bits of a field of `width` bits.
pub(crate) fn all_bits(width: u16) -> u128 {
    match width {
        0 => 0,
        1..=127 => (1 << width) - 1,
        _ => u128::MAX,
    }
}

/// True if a field of this kind and width takes the mask.
pub(crate) fn takes(kind: MatchKind, width: u16, mask: u128) -> bool {
    let all = all_bits(width);
    match kind {
        MatchKind::Any => mask & !all == 0,
        MatchKind::Exact => mask == 0 || mask == all,
        // A prefix has its ones at the top: what is missing to all ones is one less than a power of two.
        MatchKind::Prefix => mask & !all == 0 && ((all ^ mask).wrapping_add(1) & (all ^ mask)) == 0,
    }
}

/// Writes a value into a key or mask of a table; false if it does not lie within `bytes`.
pub(crate) fn write(bytes: &mut [u8], field: &FieldCaps, value: u128) -> bool {
    let len = usize::from(field.width.div_ceil(8)).min(16);
    let at = usize::from(field.offset);
    let Some(place) = bytes.get_mut(at..at + len) else { return false };
    // By length, as a copy of a length that the compiler does not know is a call.
    match place {
        [a] => *a = value as u8,
        [a, b] => [*a, *b] = (value as u16).to_be_bytes(),
        [a, b, c, d] => [*a, *b, *c, *d] = (value as u32).to_be_bytes(),
        _ => place.iter_mut().rev().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from),
    }
    true
}

/// Reads a field from a key or mask of a table; `None` if it does not lie within `bytes`.
pub(crate) fn read(bytes: &[u8], field: &FieldCaps) -> Option<u128> {
    let len = usize::from(field.width.div_ceil(8)).min(16);
    let at = usize::from(field.offset);
    Some(match bytes.get(at..at + len)? {
        [a] => (*a).into(),
        [a, b] => u16::from_be_bytes([*a, *b]).into(),
        [a, b, c, d] => u32::from_be_bytes([*a, *b, *c, *d]).into(),
        [a, b, c, d, e, f] => u64::from_be_bytes([0, 0, *a, *b, *c, *d, *e, *f]).into(),
        more => more.iter().fold(0, |value, byte| value << 8 | u128::from(*byte)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_take_the_masks_that_they_name() {
        assert!(takes(MatchKind::Exact, 16, 0xffff) && takes(MatchKind::Exact, 16, 0));
        assert!(!takes(MatchKind::Exact, 16, 0xff00));
        assert!(takes(MatchKind::Prefix, 32, 0xffff_ff00) && takes(MatchKind::Prefix, 32, 0));
        assert!(takes(MatchKind::Prefix, 32, 0xffff_ffff) && takes(MatchKind::Prefix, 128, u128::MAX << 1));
        assert!(!takes(MatchKind::Prefix, 32, 0xffff_00ff) && !takes(MatchKind::Prefix, 32, 0x00ff_ffff));
        assert!(takes(MatchKind::Any, 12, 0xabc) && !takes(MatchKind::Any, 12, 0x1000));
        assert!(takes(MatchKind::Prefix, 128, u128::MAX) && takes(MatchKind::Exact, 128, u128::MAX));
    }

    #[test]
    fn fields_are_big_endian_and_right_aligned() {
        let f = FieldCaps { field: Field::TcpFlags, offset: 1, width: 12, kind: MatchKind::Any };
        let mut bytes = [0; 4];
        assert!(write(&mut bytes, &f, 0xabc));
        assert_eq!(bytes, [0, 0x0a, 0xbc, 0]);
        assert_eq!(read(&bytes, &f), Some(0xabc));
        assert!(!write(&mut bytes[..2], &f, 1), "out of bounds");
        assert_eq!(read(&bytes[..2], &f), None);
    }
}
