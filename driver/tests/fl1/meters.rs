//! Meters that tables and slow path share.

use crate::harness::*;
use flowlift_driver::nic::*;
use flowlift_sim::Profile;

const CONFIG: MeterConfig = MeterConfig { packets: true, rate: 1, burst: 3, level: 2000 };

/// A device whose only entry asks meter 5 and outputs to port 2.
fn metered() -> (Bench, std::sync::Arc<dyn MeterBucket>) {
    let mut b = Bench::new(Profile::standard());
    let entry = b.entry(TableId(0), &to_host(1), &[NicAction::Meter(5), NicAction::Output(NicPort(2))]);
    assert_eq!(b.insert(at(0, 0), entry.clone()), UpdateStatus::Rejected(11), "there is no meter 5");
    let bucket = b.nic.set_meter(5, &CONFIG).unwrap();
    assert_eq!(b.insert(at(0, 0), entry), UpdateStatus::Ok);
    (b, bucket)
}

#[test]
fn a_packet_and_a_charge_take_from_one_bucket() {
    let (mut b, bucket) = metered();
    assert_eq!(bucket.level(), 2000);
    b.inject(1, &tcp(9, 1, 80));
    assert_eq!((bucket.charge(60), bucket.charge(60)), (Some(true), Some(false)));
    b.inject(1, &tcp(9, 1, 80));
    assert_eq!(b.sent(2).len(), 1);
    let len = tcp(9, 1, 80).len() as u64;
    let counted = bucket.counts();
    assert_eq!((counted.packets, counted.bytes), (1, len));
    assert_eq!((counted.dropped_packets, counted.dropped_bytes, counted.used_ms), (1, len, Some(0)));
    assert_eq!(bucket.level(), 0);
    b.clock.advance(1_500_000_000);
    assert_eq!(bucket.level(), 1500);
    b.clock.advance(5_000_000_000);
    assert_eq!(bucket.level(), 3000, "no more than it holds");
    b.finish();
}

#[test]
fn a_bucket_ends_with_its_meter_and_its_device() {
    let (mut b, bucket) = metered();
    b.inject(1, &tcp(9, 1, 80));
    b.nic.reset().unwrap();
    assert_eq!(bucket.charge(60), None, "the tables are lost");
    assert_eq!((bucket.counts().packets, bucket.level()), (1, 1000), "what it was stays known");
    let again = b.nic.set_meter(5, &MeterConfig { packets: false, ..CONFIG }).unwrap();
    assert_eq!((again.charge(250), again.charge(1), bucket.charge(1)), (Some(true), Some(false), None));
    b.nic.remove_meter(5).unwrap();
    assert_eq!(again.charge(1), None);
    let last = b.nic.set_meter(5, &CONFIG).unwrap();
    b.function.model().unplug();
    assert_eq!((last.charge(60), last.level()), (None, 2000));
}

#[test]
fn what_no_meter_can_be_is_not_sent() {
    let (mut b, _) = metered();
    for wrong in [
        MeterConfig { rate: 0, ..CONFIG },
        MeterConfig { burst: 0, ..CONFIG },
        MeterConfig { level: 3001, ..CONFIG },
    ] {
        assert!(matches!(b.nic.set_meter(5, &wrong), Err(NicError::Invalid(_))), "{wrong:?}");
    }
    assert!(matches!(b.nic.set_meter(256, &CONFIG), Err(NicError::Invalid(_))));
    assert!(matches!(b.nic.remove_meter(256), Err(NicError::Invalid(_))));
    b.finish();
    let mut tiny = Bench::new(Profile::tiny());
    assert!(!tiny.nic.caps().shared_meters && tiny.nic.set_meter(0, &CONFIG).is_err());
}
