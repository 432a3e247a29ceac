//! The function without a socket: what each command gives, and that no command harms.

use super::*;
use crate::{Config, FaultPlan, Fl1, ManualClock, Profile};
use proptest::prelude::*;
use std::os::fd::AsFd;

fn function() -> Function<Fl1> {
    let clock = Box::new(ManualClock::new(0));
    let device = Fl1::new(Profile::tiny(), Config { seed: 1, faults: FaultPlan::default(), clock });
    let mut f = Function::new(device).unwrap();
    f.answer(command::VERSION, &[0, 0, 0, 0], vec![]).unwrap();
    f
}

fn read(f: &mut Function<Fl1>, region: u32, offset: u64, count: u32) -> Result<Vec<u8>, Errno> {
    let reply = f.answer(command::REGION_READ, RegionAccess { offset, region, count }.as_bytes(), vec![])?;
    Ok(reply.body[16..].to_vec())
}

fn write(f: &mut Function<Fl1>, region: u32, offset: u64, data: &[u8]) -> Result<Reply, Errno> {
    let mut body = RegionAccess { offset, region, count: data.len() as u32 }.as_bytes().to_vec();
    body.extend_from_slice(data);
    f.answer(command::REGION_WRITE, &body, vec![])
}

fn region(f: &mut Function<Fl1>, index: u32, argsz: u32) -> (RegionInfo, Reply) {
    let asked = RegionInfo { argsz, flags: 0, index, cap_offset: 0, size: 0, offset: 0 };
    let reply = f.answer(command::GET_REGION_INFO, asked.as_bytes(), vec![]).unwrap();
    (RegionInfo::read_from_prefix(&reply.body).unwrap().0, reply)
}

#[test]
fn regions_are_the_bars_of_the_page_and_one_for_msi_x() {
    let mut f = function();
    let sizes: Vec<_> = (0..9).map(|n| region(&mut f, n, 32).0.size).collect();
    assert_eq!(sizes, [16 << 10, 0, 8 << 10, 0, 0, 4096, 0, 256, 0]);
    let (info, reply) = region(&mut f, 2, 32);
    assert_eq!((info.argsz, info.cap_offset, reply.body.len()), (64, 32, 32), "told how much it takes");
    let (info, reply) = region(&mut f, 2, info.argsz);
    assert_eq!((info.flags, info.cap_offset, reply.body.len()), (0xf, 32, 64));
    // Capability 1, version 1, no next; one area: offset 0, 8 KiB.
    let cap = [1, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(reply.body[32..48], cap);
    assert_eq!(reply.body[48..], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0]);
    assert_eq!(reply.memory.unwrap().len(), 8192);
    assert!(region(&mut f, 0, 64).1.memory.is_none(), "registers trap");
}

#[test]
fn configuration_space_is_read_whole_and_written_in_any_piece() {
    let mut f = function();
    let whole = read(&mut f, region::CONFIG, 0, 256).unwrap();
    assert_eq!(whole[..4], [0x9b, 0x1d, 0x01, 0xf1]);
    assert_eq!(read(&mut f, region::CONFIG, 1, 5).unwrap(), whole[1..6]);
    write(&mut f, region::CONFIG, 4, &[6]).unwrap();
    assert!(f.memory().bus_master());
    assert_eq!(read(&mut f, 0, 0, 4).unwrap(), 0x3130_4c46u32.to_le_bytes());
    // Device control of the PCI Express capability: start a function level reset.
    write(&mut f, region::CONFIG, 0x48, &[0, 0x80]).unwrap();
    assert!(!f.memory().bus_master());
    assert_eq!(read(&mut f, 0, 0, 4).unwrap(), [0xff; 4], "memory space is off again");
}

#[test]
fn the_mapped_bar_answers_messages_too() {
    let mut f = function();
    write(&mut f, region::CONFIG, 4, &[2, 0]).unwrap();
    write(&mut f, 2, 0x40, &[1, 2, 3, 4]).unwrap();
    let mut bell = [0; 4];
    region(&mut f, 2, 64).1.memory.unwrap().read_bytes(0x40, &mut bell).unwrap();
    assert_eq!(bell, [1, 2, 3, 4]);
    assert_eq!(read(&mut f, 2, 0x40, 4).unwrap(), [1, 2, 3, 4]);
}

#[test]
fn a_client_that_looks_whether_the_device_sleeps_is_told_in_memory() {
    let mut f = function();
    write(&mut f, region::CONFIG, 4, &[2, 0]).unwrap();
    let ask = |f: &mut Function<Fl1>, flags| {
        let asked = RegionIoFds { argsz: 64, flags, index: 2, count: 0 };
        let reply = f.answer(command::GET_REGION_IO_FDS, asked.as_bytes(), vec![])?;
        parse::<RegionIoFds>(&reply.body).map(|(head, _)| head.flags)
    };
    let last = (8 << 10) - RegionIoFds::ASLEEP_LEN;
    assert_eq!(ask(&mut f, 1), Err(Errno::EINVAL));
    assert_eq!(ask(&mut f, 0), Ok(0));
    f.set_asleep(true);
    assert_eq!(read(&mut f, 2, last, 4).unwrap(), [0; 4], "nobody asked for it");
    assert_eq!(ask(&mut f, RegionIoFds::WHILE_ASLEEP), Ok(RegionIoFds::WHILE_ASLEEP));
    for asleep in [true, false] {
        f.set_asleep(asleep);
        assert_eq!(read(&mut f, 2, last, 4).unwrap(), [asleep.into(), 0, 0, 0]);
    }
}

#[test]
fn interrupts_are_assigned_triggered_and_taken_away() {
    let mut f = function();
    let event = nix::sys::eventfd::EventFd::from_flags(nix::sys::eventfd::EfdFlags::EFD_NONBLOCK).unwrap();
    let fd = || event.as_fd().try_clone_to_owned().unwrap();
    let mut set = |flags, start, count, data: &[u8], fds| {
        let set = IrqSet { argsz: 20, flags, index: irq::MSIX, start, count };
        let body = [set.as_bytes(), data].concat();
        f.answer(command::SET_IRQS, &body, fds).map(|_| ())
    };
    let trigger = irq::ACTION_TRIGGER;
    set(irq::DATA_EVENTFD | trigger, 1, 2, &[], vec![fd(), fd()]).unwrap();
    set(irq::DATA_NONE | trigger, 0, 3, &[], vec![]).unwrap();
    assert_eq!(event.read().unwrap(), 2);
    set(irq::DATA_BOOL | trigger, 0, 3, &[1, 0, 1], vec![]).unwrap();
    assert_eq!(event.read().unwrap(), 1);
    set(irq::DATA_EVENTFD | trigger, 1, 1, &[], vec![]).unwrap();
    set(irq::DATA_NONE | trigger, 0, 3, &[], vec![]).unwrap();
    assert_eq!(event.read().unwrap(), 1, "one is left");
    set(irq::DATA_NONE | trigger, 0, 0, &[], vec![]).unwrap();
    set(irq::DATA_NONE | trigger, 0, 3, &[], vec![]).unwrap();
    assert!(event.read().is_err(), "none is left");
    for (flags, start, count, fds) in [
        (irq::DATA_EVENTFD | trigger, 0, 2, vec![fd()]),
        (irq::DATA_EVENTFD | trigger, 3, 1, vec![fd()]),
        (irq::DATA_NONE | trigger, u32::MAX, 2, vec![]),
        (irq::DATA_NONE, 0, 1, vec![]),
        (irq::DATA | trigger, 0, 1, vec![]),
        (u32::MAX, 0, 1, vec![]),
    ] {
        assert!(set(flags, start, count, &[], fds).is_err(), "{flags:x} {start} {count}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any commands with any numbers, the device stepped between them: nothing panics, and after a disconnect the function
    /// is as at first.
    #[test]
    fn no_sequence_of_commands_harms(
        ops in prop::collection::vec((2u16..14, prop::collection::vec(prop_oneof![0u32..16, any::<u32>()], 0..12)), 1..60),
    ) {
        let mut f = function();
        write(&mut f, region::CONFIG, 4, &[6, 0]).unwrap();
        let mem = DmaMem::new(1 << 16).unwrap();
        for (command, words) in ops {
            let fds = vec![mem.fd().try_clone_to_owned().unwrap()];
            let _ = f.answer(command, words.as_bytes(), fds);
            f.model().step();
        }
        f.disconnect();
        prop_assert_eq!(f.memory().maps(), 0);
        prop_assert!(f.answer(command::GET_INFO, &[0; 16], vec![]).is_err(), "the next client has to introduce itself");
        f.answer(command::VERSION, &[0, 0, 0, 0], vec![]).unwrap();
        prop_assert_eq!(read(&mut f, region::CONFIG, 4, 2).unwrap(), [0, 0]);
    }
}
