//! A device that works.

use super::model::{Function, Lies, open};
use flowlift_driver::nic::{
    Entry, EntryCounters, EntryId, Nic, NicAction, NicError, NicEvent, NicPort, NicState, SlowTx, TableId,
    Update, UpdateResult, UpdateStatus,
};
use flowlift_driver::rocker::Rocker;
use smallvec::SmallVec;

pub(crate) const TABLE: TableId = TableId(60);

/// An entry for untagged IPv4 from port 1 to an address, or for all packets to it.
pub(crate) fn entry(dst: u8, tag: bool, out: &[u16]) -> Entry {
    let (mut key, mut mask) = (SmallVec::from_elem(0, 18), SmallVec::from_elem(0, 18));
    key[1] = 1;
    mask[..8].fill(0xff);
    key[7] = dst;
    key[14] = 8;
    mask[14..16].fill(0xff);
    if tag {
        mask[16..].fill(0xff);
    }
    let actions = out.iter().map(|p| NicAction::Output(NicPort(*p))).collect();
    Entry { priority: 0, key, mask, actions }
}

pub(crate) fn insert(index: u32, entry: Entry) -> Update {
    Update::Insert { cookie: index.into(), id: EntryId { table: TABLE, index }, entry }
}

/// Flows and groups that the device has.
fn tables(function: &Function) -> (usize, usize) {
    let model = function.model();
    (model.flows.len(), model.groups.len())
}

fn works() -> (Function, Rocker) {
    let (function, nic) = open(Lies::default());
    (function, nic.unwrap())
}

#[track_caller]
fn done(nic: &mut Rocker, updates: &[Update]) -> Vec<UpdateStatus> {
    assert_eq!(nic.submit(updates).unwrap(), updates.len());
    nic.kick().unwrap();
    let (mut results, mut events) = (vec![], vec![]);
    for _ in 0..4 {
        nic.poll(&mut results, &mut events).unwrap();
    }
    assert_eq!(results.len(), updates.len(), "{results:?}");
    results.iter().map(|r: &UpdateResult| r.status).collect()
}

#[test]
fn bring_up_sets_the_tables_up_and_enables_all_ports() {
    let (function, nic) = works();
    let model = function.model();
    assert_eq!((model.enabled, model.flows.len(), model.groups.len()), (0b110, 2 + 3 * 2, 2));
    assert!(nic.link(NicPort(1)) && nic.link(NicPort(2)) && !nic.link(NicPort(3)));
    assert_eq!(function.iommu().mappings(), 3);
    drop(model);
    drop(nic);
    let enabled = function.model().enabled;
    assert_eq!((enabled, function.iommu().mappings()), (0, 0));
}

#[test]
fn entries_come_change_and_go_with_their_groups() {
    let (function, mut nic) = works();
    let (flows, groups) = tables(&function);
    let id = EntryId { table: TABLE, index: 5 };
    assert_eq!(done(&mut nic, &[insert(5, entry(9, true, &[2]))]), [UpdateStatus::Ok]);
    assert_eq!(tables(&function), (flows + 1, groups + 1));
    let replace = |out: &[u16]| Update::Replace { cookie: 1, id, entry: entry(9, true, out) };
    assert_eq!(done(&mut nic, &[replace(&[])]), [UpdateStatus::Ok]);
    assert_eq!(tables(&function), (flows + 1, groups));
    // The device would take the same match twice.
    assert_eq!(done(&mut nic, &[insert(6, entry(9, true, &[2]))]), [UpdateStatus::Duplicate]);
    assert_eq!(done(&mut nic, &[insert(7, entry(9, false, &[2]))]), [UpdateStatus::Ok]);
    assert_eq!(function.model().flows.len(), flows + 3, "one for either kind of packet");
    for index in [5, 7] {
        let id = EntryId { table: TABLE, index };
        assert_eq!(done(&mut nic, &[Update::Delete { cookie: 1, id }]), [UpdateStatus::Ok]);
        assert_eq!(nic.counters(id), EntryCounters::default());
    }
    assert_eq!(tables(&function), (flows, groups));
    assert_eq!(done(&mut nic, &[Update::Delete { cookie: 1, id }]), [UpdateStatus::NotFound]);
}

#[test]
fn many_updates_take_few_register_writes() {
    let (function, mut nic) = works();
    let before = function.model().head_writes;
    let updates: Vec<Update> = (0..60).map(|n| insert(n, entry(n as u8, true, &[2]))).collect();
    done(&mut nic, &updates);
    let writes = function.model().head_writes - before;
    assert!(writes <= 2, "{writes} register writes for 60 updates");
}

#[test]
fn what_the_table_does_not_take_is_said_before_the_device_is_told() {
    let (_, mut nic) = works();
    let none = nic.submit(&[insert(1, entry(9, true, &[1]))]);
    assert!(matches!(&none, Err(NicError::Inexpressible(why)) if why.contains("ingress port")), "{none:?}");
    assert!(matches!(nic.submit(&[insert(64, entry(9, true, &[2]))]), Err(NicError::Invalid(_))));
    assert!(matches!(nic.tx(SlowTx::Pipeline(NicPort(1)), &[0; 60]), Err(NicError::Invalid(_))));
    assert!(matches!(nic.tx(SlowTx::Port(NicPort(3)), &[0; 60]), Err(NicError::Invalid(_))));
    assert!(matches!(nic.tx(SlowTx::Port(NicPort(1)), &[0; 13]), Err(NicError::Invalid(_))));
    assert!(matches!(nic.read_back(EntryId { table: TABLE, index: 1 }), Err(NicError::Invalid(_))));
    assert_eq!(nic.state(), NicState::Ready);
}

#[test]
fn packets_pass_both_ways_round_and_round_the_rings() {
    let (function, mut nic) = works();
    for n in 0..100u8 {
        let frame: Vec<u8> = (0..60 + n).map(|b| b ^ n).collect();
        function.model().receive(2, &frame);
        let mut got = vec![];
        assert_eq!(nic.rx(8, &mut |info, f| got.push((info.port, f.to_vec()))).unwrap(), 1);
        assert_eq!(got, [(NicPort(2), frame.clone())]);
        assert!(nic.tx(SlowTx::Port(NicPort(1)), &frame).unwrap());
        let sent = function.model().sent.pop_front();
        assert_eq!((sent, nic.tx_pending()), (Some((1, frame)), 0));
    }
    // One that has no room in a buffer is counted, and the next one comes.
    function.model().receive(1, &[1; 300]);
    function.model().receive(1, &[1; 100]);
    assert_eq!(nic.rx(8, &mut |_, f| assert_eq!(f.len(), 100)).unwrap(), 1);
    assert_eq!(nic.stats().lost_packets, 1);
}

#[test]
fn links_are_told_and_learning_is_not() {
    let (function, mut nic) = works();
    function.model().link_changed(2, false);
    function.model().event(2, |info| info.extend([1, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]));
    let (mut results, mut events) = (vec![], vec![]);
    nic.poll(&mut results, &mut events).unwrap();
    assert_eq!(events, [NicEvent::Link { port: NicPort(2), up: false }]);
    assert!(!nic.link(NicPort(2)));
    assert_eq!((nic.stats().learned, nic.stats().impossible), (1, 0));
}

#[test]
fn a_reset_by_somebody_else_is_noticed_and_mended() {
    let (function, mut nic) = works();
    assert_eq!(done(&mut nic, &[insert(5, entry(9, true, &[2]))]), [UpdateStatus::Ok]);
    function.model().clear();
    let (mut results, mut events) = (vec![], vec![]);
    let failed = (0..100).find_map(|_| nic.poll(&mut results, &mut events).err()).unwrap();
    assert!(failed.to_string().contains("was reset, and not by us"), "{failed}");
    assert_eq!(nic.state(), NicState::Failed);
    nic.reset().unwrap();
    nic.poll(&mut results, &mut events).unwrap();
    assert!(events.contains(&NicEvent::TablesLost) && nic.state() == NicState::Ready, "{events:?}");
    assert_eq!(done(&mut nic, &[insert(5, entry(9, true, &[2]))]), [UpdateStatus::Ok]);
}

#[test]
fn what_a_removed_device_had_not_done_comes_back() {
    let (function, mut nic) = works();
    function.model().lies.silences = u16::MAX;
    nic.submit(&[insert(5, entry(9, true, &[2]))]).unwrap();
    nic.kick().unwrap();
    assert!(nic.tx(SlowTx::Port(NicPort(2)), &[7; 77]).unwrap());
    function.model().receive(1, &[1; 100]);
    function.model().lies.gone_after = 1;
    let (mut results, mut events) = (vec![], vec![]);
    for _ in 0..100 {
        nic.poll(&mut results, &mut events).unwrap();
    }
    assert_eq!(nic.state(), NicState::Gone);
    assert_eq!(events, [NicEvent::Gone]);
    assert_eq!(results, [UpdateResult { cookie: 5, status: UpdateStatus::Aborted, counters: None }]);
    assert_eq!(nic.take_unsent(), [(SlowTx::Port(NicPort(2)), vec![7; 77])]);
    assert_eq!(nic.rx(8, &mut |_, f| assert_eq!(f, [1; 100])).unwrap(), 1);
    assert!(matches!(nic.reset(), Err(NicError::Gone(_))));
}
