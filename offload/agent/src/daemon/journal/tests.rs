//! The journal on files: what is read is what was written, and a damaged one is believed up to the damage.

use super::record::{self, Damage, Record, decode_flow, encode_flow};
use super::*;
use flowlift_flow::text::{NoNames, parse_dump_line};
use flowlift_flow::{Action, PortNo};
use flowlift_softpath::{MeterBand, MeterUnit};
use std::fs;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::thread::sleep;
use std::time::{Duration, Instant};

const DP: DpIndex = DpIndex(7);
const OWNER: &str = "boot 1, network namespace 2";

/// The bundled flows as a datapath has them. A dump that was recorded without handlers has userspace actions for nobody, which no
/// datapath takes.
fn bundled() -> Vec<Flow> {
    let text = include_str!("../../../../../fixtures/flows/bundled.m-no-names.txt");
    let lines = text.lines().filter(|line| line.starts_with("ufid:"));
    let flows: Vec<Flow> = lines
        .map(|line| parse_dump_line(line, &NoNames).unwrap().flow)
        .filter_map(|flow| match decode_flow(&encode_flow(&flow).unwrap()) {
            Ok(back) => {
                assert_eq!((back.ufid, &back.actions), (flow.ufid, &flow.actions));
                Some(back)
            }
            Err(error) => {
                assert!(error.contains("USERSPACE: pid"), "{error}: {flow:?}");
                None
            }
        })
        .collect();
    assert!(flows.len() > 50, "{} flows", flows.len());
    flows
}

fn id(slot: u32, generation: u32) -> FlowId {
    FlowId { slot, generation }
}

fn seen(packets: u64) -> FlowStats {
    FlowStats { packets, bytes: packets * 100, used: Some(1_000 + packets), tcp_flags: 0x12 }
}

/// For a journal that never has to begin anew.
fn nobody() -> Ask {
    Box::new(|_| panic!("nobody asks"))
}

/// The state after a daemon that does this ends.
fn after(path: &Path, life: impl FnOnce(&Journal)) -> BTreeMap<DpIndex, SavedFlows> {
    let journal = Journal::with_limit(path, OWNER, nobody(), usize::MAX).unwrap();
    life(&journal);
    journal.publish();
    journal.close();
    read(path, OWNER)
}

#[test]
fn every_bundled_flow_comes_back_as_it_was() {
    for flow in bundled() {
        let bytes = encode_flow(&flow).unwrap();
        assert_eq!(decode_flow(&bytes).as_ref(), Ok(&flow));
    }
}

#[test]
fn the_next_daemon_reads_what_this_one_did() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flows.journal");
    let flows = bundled();
    let meter = MeterConfig { unit: MeterUnit::Kbps, bands: vec![MeterBand { rate: 5, burst: 6 }] };
    let new_actions = Flow { actions: vec![Action::Output(PortNo(9))], ..flows[0].clone() };
    let saved = after(&path, |journal| {
        journal.put(DP, id(0, 1), &flows[0]);
        journal.put(DP, id(1, 1), &flows[1]);
        journal.put(DP, id(2, 1), &flows[2]);
        journal.counted(DP, vec![(id(0, 1), seen(5)), (id(1, 1), seen(6)), (id(9, 1), seen(7))]);
        journal.put(DP, id(0, 1), &new_actions);
        journal.delete(DP, id(1, 1));
        journal.put(DP, id(1, 2), &flows[3]);
        journal.counted(DP, vec![(id(1, 1), seen(8))]);
        journal.meter(DP, 3, Some(meter.clone()));
        journal.meter(DP, 4, Some(meter.clone()));
        journal.meter(DP, 4, None);
        journal.totals(DP, Subject::Datapath, vec![1, 2]);
        journal.totals(DP, Subject::Datapath, vec![3, 4, u64::MAX]);
        journal.totals(DP, Subject::Port(1), vec![5]);
        journal.totals(DP, Subject::Port(2), vec![6]);
        journal.totals(DP, Subject::Port(2), vec![]);
        journal.totals(DP, Subject::Meter(3), vec![7]);
        journal.totals(DP, Subject::Meter(4), vec![8]);
        journal.meter(DP, 4, Some(meter.clone()));
        journal.meter(DP, 4, None);
        journal.put(DpIndex(8), id(0, 1), &flows[4]);
        journal.forget(DpIndex(8));
    });
    let none = FlowStats::default();
    let expected = SavedFlows {
        flows: vec![(new_actions, seen(5)), (flows[3].clone(), none), (flows[2].clone(), none)],
        meters: vec![(3, meter)],
        totals: BTreeMap::from([
            (Subject::Datapath, vec![3, 4, u64::MAX]),
            (Subject::Port(1), vec![5]),
            (Subject::Meter(3), vec![7]),
        ]),
    };
    assert_eq!(saved, BTreeMap::from([(DP, expected)]));
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // A daemon that ends before it has found all again leaves the file of the one before.
    let journal = Journal::start(&path, OWNER, nobody()).unwrap();
    journal.put(DP, id(0, 1), &flows[5]);
    journal.close();
    assert_eq!(read(&path, OWNER), saved);
}

#[test]
fn a_long_journal_is_rewritten_and_says_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flows.journal");
    let flow = bundled().swap_remove(0);
    let each = encode_flow(&flow).unwrap().len() as u64;
    const TIMES: u64 = 60_000;
    let saved = after(&path, |journal| {
        // Known to be there before the long part, so that it may be rewritten.
        journal.publish();
        for n in 0..TIMES {
            let name = id(n as u32 % 3, 1);
            journal.put(DP, name, &flow);
            journal.counted(DP, vec![(name, seen(n))]);
            journal.totals(DP, Subject::Port(n as u32 % 5), vec![n]);
        }
    });
    let len = fs::metadata(&path).unwrap().len();
    assert!(len < 6 << 20 && len < TIMES * each, "{len} bytes");
    let totals: Vec<u64> = saved[&DP].totals.values().flatten().copied().collect();
    assert_eq!(totals, [TIMES - 5, TIMES - 4, TIMES - 3, TIMES - 2, TIMES - 1]);
    let counted: Vec<FlowStats> = saved[&DP].flows.iter().map(|(_, stats)| *stats).collect();
    assert_eq!(counted, [seen(TIMES - 3), seen(TIMES - 2), seen(TIMES - 1)]);
    assert!(saved[&DP].flows.iter().all(|(found, _)| *found == flow));
}

#[test]
fn a_damaged_journal_is_believed_up_to_the_damage() {
    let mut bytes = Vec::new();
    let flow = encode_flow(&bundled()[0]).unwrap();
    Record::Header("this owner".into()).encode(&mut bytes);
    let ends: Vec<usize> = (0..3)
        .map(|n| {
            Record::Put(DP, id(n, 1), flow.clone()).encode(&mut bytes);
            bytes.len()
        })
        .collect();
    let count = |bytes: &[u8]| {
        let mut records = 0;
        (record::read(bytes, "this owner", |_| records += 1), records)
    };
    assert_eq!(count(&bytes), (Ok(()), 3));
    for cut in 0..bytes.len() {
        let (result, records) = count(&bytes[..cut]);
        assert_eq!(records, ends.iter().filter(|end| **end <= cut).count(), "cut at {cut}");
        let whole = ends.contains(&cut) || cut + ends[1] - ends[0] == ends[0];
        assert_eq!(result.is_ok(), whole, "cut at {cut}: {result:?}");
    }
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        let (result, records) = count(&bad);
        assert!(result.is_err(), "byte {at} changed");
        assert_eq!(records, ends.iter().filter(|end| **end <= at).count(), "byte {at} changed");
    }
    let from = |owner: &str| record::read(&bytes, owner, |_| panic!("nothing of it is believed"));
    assert_eq!(from("another owner"), Err(Damage::OtherOwner));
    let nothing = |bytes: &[u8]| record::read(bytes, "this owner", |_| ());
    assert_eq!(nothing(b""), Err(Damage::NoJournal));
    assert_eq!(nothing(&[0xff; 100]), Err(Damage::NoJournal));
}

/// Flows that a plane has, and what the journal asks of it.
struct Told {
    flows: Vec<(FlowId, Flow)>,
    asked: Receiver<Position>,
}

impl Told {
    fn new(count: u32) -> (Self, Ask) {
        let flow = bundled().swap_remove(0);
        let flows = (0..count).map(|n| (id(n, 1), Flow { ufid: None, ..flow.clone() })).collect();
        let (ask, asked) = channel();
        (Self { flows, asked }, Box::new(move |position| ask.send(position).unwrap()))
    }

    /// Answers what is asked until the journal has everything, a few flows at a time.
    fn until_saved(&self, journal: &Journal) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !journal.status().saved {
            assert!(Instant::now() < deadline, "{:?}", journal.status());
            let Ok(from) = self.asked.recv_timeout(Duration::from_millis(20)) else { continue };
            let start = from.slot as usize;
            let end = (start + 7).min(self.flows.len());
            self.flows[start..end].iter().for_each(|(id, flow)| journal.put(DP, *id, flow));
            journal.told(from, (end < self.flows.len()).then_some((DP, end as u64)));
        }
    }

    fn are(&self, saved: &BTreeMap<DpIndex, SavedFlows>) {
        let flows: Vec<&Flow> = saved[&DP].flows.iter().map(|(flow, _)| flow).collect();
        assert_eq!(flows, self.flows.iter().map(|(_, flow)| flow).collect::<Vec<_>>());
    }
}

#[test]
fn what_is_too_much_for_the_disk_is_told_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flows.journal");
    let (plane, ask) = Told::new(100);
    let journal = Journal::with_limit(&path, OWNER, ask, 20_000).unwrap();
    journal.publish();
    // A flow that is deleted when nothing is taken any more, and must not come back.
    journal.put(DP, id(500, 1), &plane.flows[0].1);
    while journal.status().saved {
        plane.flows.iter().for_each(|(id, flow)| journal.put(DP, *id, flow));
    }
    journal.delete(DP, id(500, 1));
    plane.until_saved(&journal);
    assert!(journal.status().restarts >= 1 && journal.status().trouble.is_none());
    journal.close();
    plane.are(&read(&path, OWNER));
}

#[test]
fn a_full_disk_is_told_and_nothing_is_missing_when_there_is_room_again() {
    const FOLDER: &str = "FLOWLIFT_TEST_SMALL_DISK";
    let Some(folder) = std::env::var_os(FOLDER) else {
        // A small disk takes a mount namespace.
        let folder = tempfile::tempdir().unwrap();
        let name =
            "daemon::journal::tests::a_full_disk_is_told_and_nothing_is_missing_when_there_is_room_again";
        let output = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(FOLDER, folder.path())
            .output()
            .expect("unshare (util-linux) is needed");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("it was full"), "{output:?}");
        return;
    };
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "none"]).arg(&folder).status();
    assert!(mounted.unwrap().success());
    let path = Path::new(&folder).join("flows.journal");
    let (plane, ask) = Told::new(300);
    let journal = Journal::start(&path, OWNER, ask).unwrap();
    journal.publish();
    fs::write(path.with_extension("other"), vec![1; 240 << 10]).unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while journal.status().saved {
        assert!(Instant::now() < deadline, "it never filled");
        // No more than the thread takes: it is the disk that is to be full, not the memory for what waits.
        if journal.status().waiting_bytes == 0 {
            plane.flows.iter().for_each(|(id, flow)| journal.put(DP, *id, flow));
        }
        sleep(Duration::from_millis(1));
    }
    let trouble = journal.status().trouble.unwrap();
    assert!(trouble.contains("No space left") && trouble.contains("flows.journal"), "{trouble}");
    while path.exists() {
        assert!(Instant::now() < deadline, "what is there is not what there was");
        sleep(Duration::from_millis(1));
    }
    println!("it was full: {trouble}");
    fs::remove_file(path.with_extension("other")).unwrap();
    plane.until_saved(&journal);
    assert_eq!(journal.status().trouble, None);
    journal.close();
    plane.are(&read(&path, OWNER));
}
