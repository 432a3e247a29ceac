//! Which ports of the datapath are ports of the NIC.

use flowlift_driver::nic::NicPort;
use flowlift_flow::PortNo;
use std::collections::BTreeMap;

/// Datapath ports that are NIC ports; one to one. Every other datapath port is out of the NIC's reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortMap {
    to_nic: BTreeMap<PortNo, NicPort>,
    from_nic: BTreeMap<NicPort, PortNo>,
}

impl PortMap {
    /// A map without ports.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says that datapath port `port` is NIC port `nic`. An earlier statement about either of them is forgotten.
    pub fn insert(&mut self, port: PortNo, nic: NicPort) {
        self.remove(port);
        if let Some(other) = self.from_nic.insert(nic, port) {
            self.to_nic.remove(&other);
        }
        self.to_nic.insert(port, nic);
    }

    /// Forgets a datapath port.
    pub fn remove(&mut self, port: PortNo) {
        if let Some(nic) = self.to_nic.remove(&port) {
            self.from_nic.remove(&nic);
        }
    }

    /// The NIC's number of a datapath port.
    pub fn nic(&self, port: PortNo) -> Option<NicPort> {
        self.to_nic.get(&port).copied()
    }

    /// The datapath's number of a NIC port.
    pub fn dp(&self, nic: NicPort) -> Option<PortNo> {
        self.from_nic.get(&nic).copied()
    }

    /// All pairs, by ascending datapath port.
    pub fn iter(&self) -> impl Iterator<Item = (PortNo, NicPort)> + '_ {
        self.to_nic.iter().map(|(p, n)| (*p, *n))
    }
}

impl FromIterator<(PortNo, NicPort)> for PortMap {
    fn from_iter<I: IntoIterator<Item = (PortNo, NicPort)>>(pairs: I) -> Self {
        let mut map = Self::new();
        pairs.into_iter().for_each(|(p, n)| map.insert(p, n));
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_stays_one_to_one() {
        let mut m: PortMap = [(PortNo(2), NicPort(0)), (PortNo(3), NicPort(1))].into_iter().collect();
        m.insert(PortNo(4), NicPort(0));
        assert_eq!(m.nic(PortNo(2)), None);
        assert_eq!(m.dp(NicPort(0)), Some(PortNo(4)));
        m.insert(PortNo(3), NicPort(0));
        assert_eq!(m.iter().collect::<Vec<_>>(), [(PortNo(3), NicPort(0))]);
        assert_eq!(m.dp(NicPort(1)), None);
    }
}
