//! What tests/vm runs in its guest: checks of the VFIO transport on real functions behind an IOMMU. Each ends with exit
//! code 0, or says what was wrong.
//!
//! - `rocker ADDRESS`: registers, DMA both ways, blocked DMA, interrupts, by the test registers of QEMU's rocker
//! - `fl1 ADDRESS [ENTRIES]`: opens the reference NIC and measures rule updates
//! - `hold ADDRESS`: keeps the function until it is killed, or the host asks for it back
//! - `killed ADDRESS PROGRAM ARGUMENT...`: kills a program that drives the function, and watches the memory that it had
//!   given to the device

use flowlift_bus::{BarWindow, BusError, DmaDirection, DmaMem, IrqKind, PciFunction};
use flowlift_driver::bind::Host;
use flowlift_driver::dma::IovaAllocator;
use flowlift_driver::fl1::{Fl1, Fl1Config, PCI_ID};
use flowlift_driver::nic::{Entry, EntryId, Field, Nic, NicAction, NicPort, TableId, Update, UpdateStatus};
use flowlift_driver::vfio::VfioFunction;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use smallvec::SmallVec;
use std::error::Error;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Registers of rocker's BAR 0 (QEMU's docs/specs/rocker).
const TEST_REG: u64 = 0x10;
const TEST_IRQ: u64 = 0x20;
const TEST_DMA_ADDR: u64 = 0x28;
const TEST_DMA_SIZE: u64 = 0x30;
const TEST_DMA_CTRL: u64 = 0x34;
/// Values of TEST_DMA_CTRL, and the byte that FILL writes.
const DMA_FILL: u32 = 2;
const DMA_INVERT: u32 = 4;
const FILLED: u8 = 0x96;
/// MSI-X vector at the end of a test DMA.
const TEST_VECTOR: usize = 2;

/// Command register, and its switches.
const COMMAND: u16 = 4;
const MEMORY: u32 = 1 << 1;
const BUS_MASTER: u32 = 1 << 2;

/// Updates per kick.
const BATCH: usize = 256;
const PAGE: usize = 4096;
/// Longer than what must come takes in an emulated machine, on a host that is busy.
const PATIENCE: Duration = Duration::from_secs(120);

fn expect(ok: bool, what: impl Into<String>) -> Outcome {
    if ok { Ok(()) } else { Err(what.into().into()) }
}

fn open(address: &str) -> Outcome<VfioFunction> {
    Ok(VfioFunction::open(&Host::default(), address.parse()?)?)
}

fn command(f: &dyn PciFunction, clear: u32, set: u32) -> Outcome {
    let now = f.config_read(COMMAND, 2)?;
    Ok(f.config_write(COMMAND, 2, now & !clear | set)?)
}

fn event() -> Outcome<EventFd> {
    Ok(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?)
}

/// Waits for a descriptor to become readable.
fn readable(fd: BorrowedFd<'_>, limit: Duration) -> Outcome<bool> {
    let timeout = PollTimeout::try_from(limit.as_millis() as u64)?;
    Ok(poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout)? > 0)
}

/// All bytes of a page are this one.
fn page_is(mem: &DmaMem, byte: u8) -> Outcome<bool> {
    let mut page = [0; PAGE];
    mem.read_bytes(0, &mut page)?;
    Ok(page.iter().all(|&b| b == byte))
}

/// Rocker's test DMA, to its end.
struct TestDma<'a> {
    bar: &'a dyn BarWindow,
    done: &'a EventFd,
}

impl TestDma<'_> {
    /// Runs it on a page; `false`: no interrupt came.
    fn run(&self, iova: u64, what: u32) -> Outcome<bool> {
        self.bar.write(TEST_DMA_ADDR, iova)?;
        self.bar.write(TEST_DMA_SIZE, PAGE as u32)?;
        self.bar.write(TEST_DMA_CTRL, what)?;
        let came = readable(self.done.as_fd(), PATIENCE)?;
        if came {
            self.done.read()?;
        }
        Ok(came)
    }
}

fn rocker(address: &str) -> Outcome {
    let f = open(address)?;
    expect(f.config_read(0, 4)? == 0x0006_1b36, "no rocker")?;
    command(&f, BUS_MASTER, MEMORY)?;
    println!("READY");
    let bar = f.bar(0)?;
    let bar = &*bar;

    bar.write(TEST_REG, 21u32)?;
    let twice: u32 = bar.read(TEST_REG)?;
    expect(twice == 42, format!("the test register reads {twice}, not twice what was written"))?;

    // With memory decoding off, a mapped access would be SIGBUS.
    command(&f, MEMORY, 0)?;
    expect(bar.read::<u32>(TEST_REG)? == u32::MAX, "a function that does not answer reads as all ones")?;
    bar.write(TEST_REG, 1u32)?;
    command(&f, 0, MEMORY)?;
    bar.write(TEST_REG, 4u32)?;
    expect(bar.read::<u32>(TEST_REG)? == 8, "it answers again")?;
    println!("registers: right, also with memory decoding off and on; BAR 0 is {:?}", bar.access());

    let vectors = f.irq_info(IrqKind::Msix)?.count as usize;
    let events = (0..vectors).map(|_| event()).collect::<Outcome<Vec<_>>>()?;
    let fds: Vec<_> = events.iter().map(|e| Some(e.as_fd())).collect();
    f.set_irqs(IrqKind::Msix, 0, &fds)?;
    f.trigger(0)?;
    expect(readable(events[0].as_fd(), PATIENCE)?, "the kernel's own trigger did not arrive")?;
    events[0].read()?;
    command(&f, 0, BUS_MASTER)?;
    let start = Instant::now();
    for (vector, event) in events.iter().enumerate() {
        bar.write(TEST_IRQ, vector as u32)?;
        expect(readable(event.as_fd(), PATIENCE)?, format!("vector {vector} did not arrive"))?;
        expect(event.read()? == 1, format!("vector {vector} came more than once"))?;
    }
    println!(
        "FIGURE interrupts: {vectors} vectors, {} us each",
        start.elapsed().as_micros() / vectors as u128
    );

    let domain = f.dma();
    let mut iovas = IovaAllocator::new(&domain.iova_ranges(), domain.page_sizes());
    let mut map = |byte: u8, direction| -> Outcome<_> {
        let mem = Arc::new(DmaMem::new(PAGE)?);
        mem.write_bytes(0, &[byte; PAGE])?;
        let iova = iovas.alloc(PAGE as u64).ok_or("no address is free")?;
        Ok(domain.map(mem, iova, direction)?)
    };
    let dma = TestDma { bar, done: &events[TEST_VECTOR] };
    let both = map(0, DmaDirection::Bidirectional)?;
    expect(dma.run(both.iova(), DMA_FILL)?, "no interrupt after DMA")?;
    expect(page_is(both.mem(), FILLED)?, "the device's write did not arrive")?;
    expect(dma.run(both.iova(), DMA_INVERT)?, "no interrupt after DMA")?;
    expect(page_is(both.mem(), !FILLED)?, "the device did not read what it had written")?;

    let read_only = map(7, DmaDirection::ToDevice)?;
    dma.run(read_only.iova(), DMA_FILL)?;
    expect(page_is(read_only.mem(), 7)?, "the device wrote to memory that it may only read")?;

    expect(f.mappings() == 2, format!("{} mappings, not 2", f.mappings()))?;
    let clash = domain.map(Arc::new(DmaMem::new(PAGE)?), both.iova(), DmaDirection::ToDevice);
    expect(clash.is_err_and(|e| e.to_string().contains("overlaps")), "a second mapping at one address")?;
    let window = domain.map(Arc::new(DmaMem::new(PAGE)?), 0xfee0_0000, DmaDirection::ToDevice);
    expect(window.is_err(), "a mapping over the interrupts' window")?;

    let (iova, mem) = (both.iova(), both.mem().clone());
    both.unmap()?;
    mem.write_bytes(0, &[5; PAGE])?;
    dma.run(iova, DMA_FILL)?;
    expect(page_is(&mem, 5)?, "the device wrote to memory that was taken from it")?;
    println!("DMA: both ways where mapped; blocked where read-only and after unmapping");

    command(&f, BUS_MASTER, 0)?;
    match f.reset() {
        Err(BusError::Unsupported(_)) => println!("reset: this function has none, and the transport says so"),
        other => other?,
    }
    f.set_irqs(IrqKind::Msix, 0, &vec![None; vectors])?;
    bar.write(TEST_IRQ, 0u32)?;
    expect(!readable(events[0].as_fd(), Duration::from_millis(50))?, "an interrupt that was switched off")?;
    f.set_irqs(IrqKind::Msix, 0, &vec![None; vectors])?;
    expect(f.set_irqs(IrqKind::Msix, vectors as u32, &[None]).is_err(), "a vector past the last")?;
    command(&f, 0, BUS_MASTER)?;
    drop(read_only);
    expect(f.config_read(COMMAND, 2)? & BUS_MASTER == 0, "bus master on with nothing mapped")?;
    Ok(())
}

/// Runs one kind of update over all entries; returns updates per second.
fn updates(nic: &mut Fl1, n: u32, make: impl Fn(u32) -> Update) -> Outcome<f64> {
    let (mut results, mut events) = (Vec::new(), Vec::new());
    let (mut next, mut answered) = (0, 0);
    let start = Instant::now();
    while answered < n {
        let batch: Vec<Update> = (next..n.min(next + BATCH as u32)).map(&make).collect();
        next += nic.submit(&batch)? as u32;
        nic.kick()?;
        nic.poll(&mut results, &mut events)?;
        for r in results.drain(..) {
            expect(r.status == UpdateStatus::Ok, format!("update {}: {:?}", r.cookie, r.status))?;
            answered += 1;
        }
        expect(start.elapsed() < PATIENCE, format!("{answered} of {n} updates in {PATIENCE:?}"))?;
    }
    Ok(f64::from(n) / start.elapsed().as_secs_f64())
}

fn fl1(address: &str, entries: u32) -> Outcome {
    let function = Arc::new(open(address)?);
    let start = Instant::now();
    let mut nic = Fl1::open(function.clone(), Fl1Config::default())?;
    println!("FIGURE driver ready {} ms after opening it", start.elapsed().as_millis());
    println!("READY");
    let table = nic.caps().table(TableId(0)).ok_or("no table 0")?;
    let field = table.fields.iter().find(|f| f.field == Field::Ipv4Dst).ok_or("no IPv4 destination")?;
    let (len, at) = (usize::from(table.key_len), usize::from(field.offset));
    let n = entries.min(table.max_entries);
    let mut mask: SmallVec<_> = SmallVec::from_elem(0, len);
    mask[at..at + 4].fill(0xff);
    let mappings = function.mappings();
    let before = nic.stats();
    let insert = updates(&mut nic, n, |i| {
        let mut key = SmallVec::from_elem(0, len);
        key[at..at + 4].copy_from_slice(&i.to_be_bytes());
        let actions = [NicAction::Output(NicPort(1))].into_iter().collect();
        let entry = Entry { priority: 0, key, mask: mask.clone(), actions };
        Update::Insert { cookie: i.into(), id: EntryId { table: TableId(0), index: i }, entry }
    })?;
    let delete = updates(&mut nic, n, |i| Update::Delete {
        cookie: i.into(),
        id: EntryId { table: TableId(0), index: i },
    })?;
    let after = nic.stats();
    let per = (after.updates - before.updates) / (after.doorbells - before.doorbells).max(1);
    println!("FIGURE {n} rules: {insert:.0} inserts/s, {delete:.0} deletes/s, {per} updates per doorbell");
    expect(function.mappings() == mappings, "the number of mappings grew with the rules")?;
    let violations = nic.violations()?;
    expect(violations.total == 0, format!("the device saw breaches of its protocol: {violations:?}"))?;
    println!("{mappings} mappings, no violations");
    drop(nic);
    expect(function.config_read(COMMAND, 2)? & BUS_MASTER == 0, "bus master stayed on")?;
    function.reset()?;
    println!("reset: done");
    Ok(())
}

/// Drives the function if there is a driver for it, and otherwise just has it with memory mapped.
fn hold(address: &str) -> Outcome {
    let function = Arc::new(open(address)?);
    command(&*function, 0, MEMORY)?;
    let ids = function.config_read(0, 4)?;
    let mut nic = match ids == u32::from(PCI_ID.1) << 16 | u32::from(PCI_ID.0) {
        true => Some(Fl1::open(function.clone(), Fl1Config::default())?),
        false => None,
    };
    let domain = function.dma();
    let mem = Arc::new(DmaMem::new(PAGE)?);
    let _mapping = domain.map(mem, 1 << 30, DmaDirection::Bidirectional)?;
    command(&*function, 0, BUS_MASTER)?;
    println!("HOLDING");
    let request = function.lifecycle().request.ok_or("the kernel has no request interrupt")?;
    let start = Instant::now();
    let (mut results, mut events) = (Vec::new(), Vec::new());
    while !readable(request, Duration::from_millis(1))? {
        expect(start.elapsed() < PATIENCE, format!("nobody asked for the function in {PATIENCE:?}"))?;
        if let Some(nic) = &mut nic {
            nic.rx(64, &mut |_, _| {})?;
            nic.poll(&mut results, &mut events)?;
        }
    }
    println!("asked for the function, letting go of it");
    Ok(())
}

/// Kills a program that says HOLDING, or that it is ready, then watches the memory that it had shared with the device.
fn killed(address: &str, program: &[String]) -> Outcome {
    let (first, rest) = program.split_first().ok_or("which program?")?;
    let mut child = Command::new(first).args(rest).stdout(Stdio::piped()).spawn()?;
    let mut out = std::io::BufReader::new(child.stdout.take().ok_or("no output")?);
    let mut line = String::new();
    while !line.contains("HOLDING") && !line.contains("ready, serving") {
        line.clear();
        expect(std::io::BufRead::read_line(&mut out, &mut line)? > 0, "the program ended too early")?;
    }
    let mut shared = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{}/fd", child.id()))? {
        let path = entry?.path();
        if std::fs::read_link(&path)?.to_string_lossy().contains("flowlift-dma") {
            let file = File::options().read(true).write(true).open(&path)?;
            let len = file.metadata()?.len() as usize;
            shared.push(DmaMem::from_file(file, len)?);
        }
    }
    expect(!shared.is_empty(), "the program had given no memory to the device")?;
    let look = || -> Outcome<Vec<Vec<u8>>> {
        shared
            .iter()
            .map(|m| {
                let mut bytes = vec![0; m.len()];
                m.read_bytes(0, &mut bytes)?;
                Ok(bytes)
            })
            .collect()
    };
    let (alive, start) = (look()?, Instant::now());
    let mut busy = "idle";
    while busy == "idle" && start.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(100));
        if look()? != alive {
            busy = "being written to";
        }
    }
    // SIGKILL: none of the program's own code runs any more.
    child.kill()?;
    child.wait()?;
    let config = std::fs::read(format!("/sys/bus/pci/devices/{address}/config"))?;
    expect(u32::from(config[4]) & BUS_MASTER == 0, "the device still masters the bus")?;
    let before = look()?;
    std::thread::sleep(Duration::from_millis(500));
    expect(look()? == before, "the device wrote to memory of a program that is dead")?;
    let bytes: usize = before.iter().map(Vec::len).sum();
    println!("killed: memory was {busy} before; now bus master is off, {bytes} bytes stay as they are");
    drop(open(address)?);
    println!("the next one can open it");
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["rocker", address] => rocker(address),
        ["fl1", address] => fl1(address, 8192),
        ["hold", address] => hold(address),
        ["killed", address, _, ..] => killed(address, &arguments[2..]),
        _ => Err("vfio_guest rocker|fl1|hold ADDRESS, or vfio_guest killed ADDRESS PROGRAM...".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            println!("vfio_guest: {e}");
            ExitCode::FAILURE
        }
    }
}
