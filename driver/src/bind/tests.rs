//! On trees that look like sysfs, with a kernel that binds and unbinds as the real one does.

use super::*;
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const NIC: &str = "0000:03:00.0";
const OTHER: &str = "0000:03:00.1";

/// Owner of what everybody may open.
const ALL: u32 = u32::MAX;

/// Binds and unbinds in a tree; can refuse the n-th write.
struct FakeKernel {
    root: PathBuf,
    addresses: Vec<IpAddr>,
    writes: AtomicUsize,
    refuse: Mutex<Vec<(usize, i32)>>,
    owners: Mutex<Vec<(PathBuf, u32)>>,
    /// Nodes below this name cannot be opened.
    closed: Mutex<Vec<(&'static str, i32)>>,
    /// It has nodes of functions, and iommufd.
    iommufd: bool,
    /// Writes to `bind` do nothing, and succeed.
    lazy: AtomicBool,
}

impl FakeKernel {
    fn attach(&self, driver: &str, address: &str) {
        let folder = self.root.join("sys/bus/pci/devices").join(address);
        symlink(format!("../../../../bus/pci/drivers/{driver}"), folder.join("driver")).unwrap();
        if driver == VFIO_PCI {
            let group = link_name(&folder.join("iommu_group")).unwrap();
            fs::write(self.root.join("dev/vfio").join(group), "").unwrap();
            if self.iommufd {
                fs::create_dir_all(folder.join("vfio-dev/vfio3")).unwrap();
                fs::create_dir_all(self.root.join("dev/vfio/devices")).unwrap();
                fs::write(self.root.join("dev/vfio/devices/vfio3"), "").unwrap();
                fs::write(self.root.join("dev/iommu"), "").unwrap();
            }
        }
    }
}

impl Kernel for FakeKernel {
    fn write(&self, path: &Path, value: &str) -> io::Result<()> {
        let n = self.writes.fetch_add(1, Ordering::Relaxed);
        if let Some((_, errno)) = self.refuse.lock().unwrap().iter().find(|r| r.0 == n) {
            return Err(io::Error::from_raw_os_error(*errno));
        }
        if !path.exists() {
            return Err(io::Error::from_raw_os_error(nix::libc::ENOENT));
        }
        let file = path.file_name().unwrap().to_str().unwrap();
        let devices = self.root.join("sys/bus/pci/devices");
        let driver = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
        let forced = |address: &str| {
            fs::read_to_string(devices.join(address).join("driver_override")).unwrap().trim().to_owned()
        };
        match file {
            "driver_override" => {
                fs::write(path, if value.trim().is_empty() { "(null)\n" } else { value }).unwrap();
            }
            "unbind" => {
                if link_name(&devices.join(value).join("driver")).as_deref() != Some(driver) {
                    return Err(io::Error::from_raw_os_error(nix::libc::ENODEV));
                }
                fs::remove_file(devices.join(value).join("driver")).unwrap();
            }
            "bind" if self.lazy.load(Ordering::Relaxed) => {}
            "bind" => {
                let natural = fs::read_to_string(devices.join(value).join("natural")).unwrap();
                let wanted = Some(forced(value)).filter(|f| f != "(null)").unwrap_or(natural);
                if wanted != driver || devices.join(value).join("driver").exists() {
                    return Err(io::Error::from_raw_os_error(nix::libc::ENODEV));
                }
                self.attach(driver, value);
            }
            "drivers_probe" => {
                let natural = fs::read_to_string(devices.join(value).join("natural")).unwrap();
                self.attach(&natural, value);
            }
            _ => panic!("nothing writes to {}", path.display()),
        }
        Ok(())
    }

    fn addresses(&self, _netdev: &str) -> io::Result<Vec<IpAddr>> {
        Ok(self.addresses.clone())
    }

    fn chown(&self, path: &Path, uid: u32) -> io::Result<()> {
        if uid == 666 {
            return Err(io::Error::from_raw_os_error(nix::libc::EPERM));
        }
        self.owners.lock().unwrap().push((path.to_owned(), uid));
        Ok(())
    }

    fn open_to_all(&self, path: &Path) -> io::Result<()> {
        self.owners.lock().unwrap().push((path.to_owned(), ALL));
        Ok(())
    }

    fn try_open(&self, path: &Path) -> io::Result<()> {
        let closed = self.closed.lock().unwrap();
        match closed.iter().find(|(name, _)| path.ends_with(name)) {
            Some((_, errno)) => Err(io::Error::from_raw_os_error(*errno)),
            None => fs::File::open(path).map(drop),
        }
    }
}

/// A machine: one FL1 with a netdev, bound to `mlx`, alone in group 7.
struct Machine {
    root: tempfile::TempDir,
    kernel: Arc<FakeKernel>,
    host: Host,
}

impl Machine {
    fn new() -> Self {
        Self::with_addresses(vec![])
    }

    fn with_addresses(addresses: Vec<IpAddr>) -> Self {
        Self::build(addresses, false)
    }

    fn build(addresses: Vec<IpAddr>, iommufd: bool) -> Self {
        let root = tempfile::tempdir().unwrap();
        let at = |p: &str| root.path().join(p);
        for driver in ["mlx", VFIO_PCI] {
            fs::create_dir_all(at("sys/bus/pci/drivers").join(driver)).unwrap();
            for file in ["bind", "unbind"] {
                fs::write(at("sys/bus/pci/drivers").join(driver).join(file), "").unwrap();
            }
        }
        fs::write(at("sys/bus/pci/drivers_probe"), "").unwrap();
        for folder in ["dev/vfio", "run", "proc/net", "sys/kernel/iommu_groups/7/devices"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        let kernel = Arc::new(FakeKernel {
            root: root.path().to_owned(),
            addresses,
            writes: AtomicUsize::new(0),
            refuse: Mutex::default(),
            owners: Mutex::default(),
            closed: Mutex::default(),
            iommufd,
            lazy: AtomicBool::new(false),
        });
        let host = Host::new(root.path(), kernel.clone());
        let m = Self { root, kernel, host };
        m.plug(NIC, "0x020000");
        m.file("net/eth0/flags", "0x1002\n");
        m
    }

    fn plug(&self, address: &str, class: &str) {
        let folder = self.root.path().join("sys/bus/pci/devices").join(address);
        fs::create_dir_all(&folder).unwrap();
        for (file, value) in [
            ("vendor", "0x1d9b\n"),
            ("device", "0xf101\n"),
            ("class", &format!("{class}\n")),
            ("driver_override", "(null)\n"),
            ("natural", "mlx"),
        ] {
            fs::write(folder.join(file), value).unwrap();
        }
        symlink("../../../../kernel/iommu_groups/7", folder.join("iommu_group")).unwrap();
        fs::write(self.root.path().join("sys/kernel/iommu_groups/7/devices").join(address), "").unwrap();
        self.kernel.attach("mlx", address);
    }

    /// Writes a file of the NIC's folder.
    fn file(&self, file: &str, value: &str) {
        let path = self.host.folder(nic()).join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, value).unwrap();
    }

    /// What binding may change: driver and override.
    fn state(&self) -> (Option<String>, String, bool) {
        let forced = fs::read_to_string(self.host.folder(nic()).join("driver_override")).unwrap();
        (self.host.driver(nic()), forced, self.root.path().join("run/flowlift").join(NIC).exists())
    }

    fn unplugged_from_iommu(self) -> Self {
        fs::remove_file(self.host.folder(nic()).join("iommu_group")).unwrap();
        self
    }
}

fn nic() -> PciAddress {
    NIC.parse().unwrap()
}

fn untouched() -> (Option<String>, String, bool) {
    (Some("mlx".into()), "(null)\n".into(), false)
}

#[test]
fn addresses_have_one_form_and_bad_ones_are_refused() {
    assert_eq!("3:0.7".parse::<PciAddress>().unwrap().to_string(), "0000:03:00.7");
    assert_eq!("10000:ff:1f.0".parse::<PciAddress>().unwrap().to_string(), "10000:ff:1f.0");
    for bad in
        ["", "03:00", "0:3:0.8", "0:3:20.0", "../../x", "0000:03:00.0/..", "+3:00.0", "0:0:100:0.0", "eth0"]
    {
        assert!(matches!(bad.parse::<PciAddress>(), Err(BindError::BadAddress(_))), "{bad}");
    }
}

#[test]
fn the_list_shows_network_functions_and_known_devices_with_what_they_share() {
    let m = Machine::new();
    m.plug(OTHER, "0x010802");
    fs::write(m.root.path().join("sys/bus/pci/devices").join(OTHER).join("device"), "0x0001\n").unwrap();
    let list = m.host.list().unwrap();
    assert_eq!(list.len(), 1, "a disk controller is not shown: {list:?}");
    let f = &list[0];
    assert_eq!((f.vendor, f.device, f.class, f.known), (0x1d9b, 0xf101, 0x02_0000, Some("FL1")));
    assert_eq!((f.driver.as_deref(), f.group), (Some("mlx"), Some(7)));
    assert_eq!(f.netdevs[0].name, "eth0");
    assert_eq!(f.neighbours[0].address.to_string(), OTHER);
    assert_eq!(f.verdict, Verdict::No(format!("shares its IOMMU group with {OTHER} (mlx)")));
}

#[test]
fn a_netdev_of_a_device_below_the_function_is_its_netdev_too() {
    let m = Machine::new();
    m.file("virtio3/net/eth7/flags", "0x1003\n");
    m.file("net/eth0/queues/net/none/flags", "no flags");
    let f = m.host.function(nic()).unwrap();
    let names: Vec<_> = f.netdevs.iter().map(|n| (n.name.as_str(), n.up)).collect();
    assert_eq!(names, [("eth0", false), ("eth7", true)]);
}

#[test]
fn bind_then_unbind_gives_the_function_back_to_its_former_driver() {
    let m = Machine::new();
    assert_eq!(m.host.function(nic()).unwrap().verdict, Verdict::Bindable);
    let bound = m.host.bind(nic(), &BindOptions { uid: Some(1000), force: false }).unwrap();
    assert_eq!((bound.group, bound.former.as_deref(), bound.already), (7, Some("mlx"), false));
    assert_eq!(m.host.driver(nic()).as_deref(), Some(VFIO_PCI));
    assert_eq!(*m.kernel.owners.lock().unwrap(), [(m.root.path().join("dev/vfio/7"), 1000)]);
    assert_eq!(m.host.function(nic()).unwrap().verdict, Verdict::Ready);
    assert!(m.host.bind(nic(), &BindOptions::default()).unwrap().already);
    assert_eq!(m.host.unbind(nic(), false).unwrap().driver.as_deref(), Some("mlx"));
    assert_eq!(m.state(), untouched());
}

#[test]
fn a_function_without_a_driver_or_with_an_override_gets_back_just_that() {
    let m = Machine::new();
    fs::remove_file(m.host.folder(nic()).join("driver")).unwrap();
    m.file("driver_override", "special\n");
    m.host.bind(nic(), &BindOptions::default()).unwrap();
    assert_eq!(m.host.unbind(nic(), false).unwrap().driver, None);
    assert_eq!(m.state(), (None, "special\n".into(), false));
}

#[test]
fn without_a_record_the_kernel_picks_the_driver() {
    let m = Machine::new();
    m.host.bind(nic(), &BindOptions::default()).unwrap();
    fs::remove_file(m.root.path().join("run/flowlift").join(NIC)).unwrap();
    assert_eq!(m.host.unbind(nic(), false).unwrap().driver.as_deref(), Some("mlx"));
    assert_eq!(m.state(), untouched());
}

#[test]
fn a_record_that_names_a_path_is_not_followed() {
    let m = Machine::new();
    m.host.bind(nic(), &BindOptions::default()).unwrap();
    fs::write(m.root.path().join("run/flowlift").join(NIC), "../../../../tmp\n\n").unwrap();
    assert_eq!(m.host.unbind(nic(), false).unwrap().driver.as_deref(), Some("mlx"));
}

#[test]
fn a_netdev_that_the_host_uses_is_taken_with_force_only() {
    let v4 = "192.0.2.1".parse().unwrap();
    let local = "fe80::1".parse().unwrap();
    let route = "Iface\tDestination\neth0\t00000000\neth1\t00000000\n";
    let used: [(&str, Vec<IpAddr>, &str, bool); 5] = [
        ("an address", vec![v4], "", true),
        ("a route", vec![], route, true),
        ("link-local alone", vec![local], "", false),
        ("another's route", vec![], "Iface\neth1\t0\n", false),
        ("nothing", vec![], "", false),
    ];
    for (what, addresses, routes, refused) in used {
        let m = Machine::with_addresses(addresses.clone());
        fs::write(m.root.path().join("proc/net/route"), routes).unwrap();
        assert!(m.host.bind(nic(), &BindOptions::default()).is_ok(), "{what}, but it is down");
        let m = Machine::with_addresses(addresses);
        fs::write(m.root.path().join("proc/net/route"), routes).unwrap();
        m.file("net/eth0/flags", "0x1003\n");
        let bind = |force| m.host.bind(nic(), &BindOptions { uid: None, force });
        let first = bind(false);
        assert_eq!(first.is_err(), refused, "{what}: {first:?}");
        if refused {
            let e = first.unwrap_err();
            assert!(e.to_string().contains("eth0"), "{e}");
            assert!(e.remedy().is_some_and(|remedy| remedy.contains("--force")), "{e}");
            assert_eq!(m.state(), untouched(), "{what}");
            bind(true).unwrap();
        }
    }
}

#[test]
fn a_port_of_a_bridge_and_enabled_virtual_functions_count_as_use() {
    let m = Machine::new();
    m.file("net/eth0/flags", "0x1003\n");
    symlink("../../br0", m.host.folder(nic()).join("net/eth0/master")).unwrap();
    let e = m.host.bind(nic(), &BindOptions::default()).unwrap_err();
    assert!(e.to_string().contains("br0"), "{e}");
    let m = Machine::new();
    m.file("sriov_numvfs", "4\n");
    let e = m.host.bind(nic(), &BindOptions::default()).unwrap_err();
    assert!(e.to_string().contains("4 virtual functions"), "{e}");
}

#[test]
fn what_cannot_be_bound_says_why_and_stays_as_it_was() {
    let bind = |m: &Machine| m.host.bind(nic(), &BindOptions::default());
    let m = Machine::new().unplugged_from_iommu();
    assert!(matches!(bind(&m), Err(BindError::NoIommu(_))));
    let m = Machine::new();
    m.plug(OTHER, "0x020000");
    assert!(matches!(bind(&m), Err(BindError::GroupShared { group: 7, .. })), "{:?}", bind(&m));
    let m = Machine::new();
    fs::remove_dir_all(m.root.path().join("sys/bus/pci/drivers/vfio-pci")).unwrap();
    assert!(matches!(bind(&m), Err(BindError::NoVfioPci)));
    let m = Machine::new();
    assert!(matches!(
        m.host.bind("9:9.1".parse().unwrap(), &BindOptions::default()),
        Err(BindError::NoSuchFunction(_))
    ));
    assert!(matches!(m.host.unbind(nic(), false), Err(BindError::NotBound { .. })));
    let no = m.host.bind(nic(), &BindOptions { uid: Some(666), force: false });
    assert!(matches!(no, Err(BindError::NeedsRoot { .. })), "{no:?}");
    assert_eq!(m.state(), untouched(), "the node could not be handed over, so the function went back");
}

#[test]
fn whichever_step_fails_the_ones_before_it_are_undone() {
    for refused in 0..3 {
        let m = Machine::new();
        m.kernel.refuse.lock().unwrap().push((refused, nix::libc::EACCES));
        let e = m.host.bind(nic(), &BindOptions::default()).unwrap_err();
        assert!(matches!(e, BindError::NeedsRoot { .. }), "write {refused}: {e}");
        assert!(e.to_string().contains("needs root"), "{e}");
        assert_eq!(m.state(), untouched(), "write {refused} refused");
    }
}

#[test]
fn a_failed_undo_is_told_beside_the_cause() {
    let m = Machine::new();
    // Override, unbind, bind (refused); then in reverse: override, bind (refused).
    m.kernel.refuse.lock().unwrap().extend([(2, nix::libc::EINVAL), (4, nix::libc::EIO)]);
    let e = m.host.bind(nic(), &BindOptions::default()).unwrap_err();
    let BindError::HalfDone { cause, undo } = &e else { panic!("{e}") };
    assert!(cause.to_string().contains("vfio-pci/bind") && undo.to_string().contains("mlx/bind"), "{e}");
}

#[test]
fn a_user_gets_the_nodes_that_the_host_has() {
    let owners = |m: &Machine| -> Vec<(String, u32)> {
        let owners = m.kernel.owners.lock().unwrap();
        let relative = |p: &PathBuf| p.strip_prefix(m.root.path()).unwrap().display().to_string();
        owners.iter().map(|(p, uid)| (relative(p), *uid)).collect()
    };
    let user = BindOptions { uid: Some(1000), force: false };
    let m = Machine::build(vec![], true);
    let bound = m.host.bind(nic(), &user).unwrap();
    assert_eq!(bound.device_node, Some(m.root.path().join("dev/vfio/devices/vfio3")));
    let all = [("dev/vfio/devices/vfio3", 1000), ("dev/vfio/7", 1000), ("dev/iommu", ALL)];
    assert_eq!(owners(&m), all.map(|(p, uid)| (p.to_owned(), uid)));

    // Without iommufd there is the group alone, also where the function has a node.
    let m = Machine::build(vec![], true);
    m.host.bind(nic(), &BindOptions::default()).unwrap();
    assert_eq!(owners(&m), [], "nobody was named");
    fs::remove_file(m.root.path().join("dev/iommu")).unwrap();
    assert_eq!(m.host.bind(nic(), &user).unwrap().device_node, None);
    assert_eq!(owners(&m), [("dev/vfio/7".to_owned(), 1000)]);

    // A kernel without groups has the function's node alone.
    let m = Machine::build(vec![], true);
    m.host.bind(nic(), &BindOptions::default()).unwrap();
    fs::remove_file(m.root.path().join("dev/vfio/7")).unwrap();
    m.host.bind(nic(), &user).unwrap();
    assert_eq!(owners(&m)[..1], [("dev/vfio/devices/vfio3".to_owned(), 1000)]);
    assert_eq!(m.host.function(nic()).unwrap().verdict, Verdict::Ready);
}

#[test]
fn a_function_that_another_process_drives_is_left_to_it() {
    let m = Machine::new();
    m.host.bind(nic(), &BindOptions::default()).unwrap();
    m.kernel.closed.lock().unwrap().push(("dev/vfio/7", nix::libc::EBUSY));
    assert_eq!(m.host.function(nic()).unwrap().verdict, Verdict::No("being driven".into()));
    let e = m.host.unbind(nic(), false).unwrap_err();
    assert!(matches!(e, BindError::Driven { .. }), "{e}");
    assert!(e.to_string().contains("dev/vfio/7 open"), "{e}");
    assert!(e.remedy().is_some_and(|remedy| remedy.contains("--force")), "{e}");
    assert_eq!(m.host.driver(nic()).as_deref(), Some(VFIO_PCI), "it stays bound");
    assert_eq!(m.host.unbind(nic(), true).unwrap().driver.as_deref(), Some("mlx"));
}

#[test]
fn who_may_not_open_the_node_is_told_which() {
    let m = Machine::new();
    m.host.bind(nic(), &BindOptions::default()).unwrap();
    m.kernel.closed.lock().unwrap().push(("dev/vfio/7", nix::libc::EACCES));
    let Verdict::No(why) = m.host.function(nic()).unwrap().verdict else { panic!("it is closed") };
    assert!(why.contains("dev/vfio/7: Permission denied"), "{why}");
}

#[test]
fn a_neighbour_that_does_no_dma_of_its_own_does_not_block() {
    for (driver, blocks) in [("pcieport", false), ("pci-stub", false), (VFIO_PCI, false), ("mlx", true)] {
        let m = Machine::new();
        m.plug(OTHER, "0x060400");
        let link = m.root.path().join("sys/bus/pci/devices").join(OTHER).join("driver");
        fs::remove_file(&link).unwrap();
        symlink(format!("../../../../bus/pci/drivers/{driver}"), link).unwrap();
        let bound = m.host.bind(nic(), &BindOptions::default());
        assert_eq!(bound.is_err(), blocks, "{driver}: {bound:?}");
        if let Err(e) = bound {
            assert!(e.to_string().contains(&format!("{OTHER} (mlx)")), "{e}");
            assert_eq!(m.state(), untouched());
        }
    }
}

#[test]
fn a_kernel_that_says_yes_and_does_nothing_is_found_out() {
    let m = Machine::new();
    m.kernel.lazy.store(true, Ordering::Relaxed);
    let e = m.host.bind(nic(), &BindOptions::default()).unwrap_err().to_string();
    assert!(e.contains("now bound to no driver, not to vfio-pci"), "{e}");
    let m = Machine::new();
    m.host.bind(nic(), &BindOptions::default()).unwrap();
    m.kernel.lazy.store(true, Ordering::Relaxed);
    let e = m.host.unbind(nic(), false).unwrap_err().to_string();
    assert!(e.contains("now bound to no driver, not to mlx"), "{e}");
}

#[test]
fn what_cannot_be_recorded_is_not_begun() {
    let m = Machine::new();
    fs::write(m.root.path().join("run/flowlift"), "a file where a folder should be").unwrap();
    let e = m.host.bind(nic(), &BindOptions::default()).unwrap_err().to_string();
    assert!(e.contains("run/flowlift"), "{e}");
    assert_eq!(m.kernel.writes.load(Ordering::Relaxed), 0, "nothing was changed");
}

#[test]
fn an_unbind_that_the_kernel_refuses_leaves_the_function_bound() {
    let m = Machine::new();
    m.host.bind(nic(), &BindOptions::default()).unwrap();
    let bound = m.state();
    let done = m.kernel.writes.load(Ordering::Relaxed);
    // The override is set first, then the driver is asked to let go.
    for refused in [done, done + 2] {
        m.kernel.refuse.lock().unwrap().push((refused, nix::libc::EPERM));
        let e = m.host.unbind(nic(), false).unwrap_err();
        assert!(matches!(e, BindError::NeedsRoot { .. }), "{e}");
        assert_eq!(m.state(), bound, "write {refused}");
    }
}

#[test]
fn users_have_names_or_numbers() {
    assert_eq!((uid("0").unwrap(), uid("root").unwrap(), uid("4711").unwrap()), (0, 0, 4711));
    let e = uid("nobody-has-this-name").unwrap_err().to_string();
    assert!(e.contains("no user 'nobody-has-this-name'"), "{e}");
}

/// Configuration space with an MSI-X and a PCI Express capability.
fn config() -> Vec<u8> {
    let mut c = vec![0; 256];
    c[..12].copy_from_slice(&[0x9b, 0x1d, 0x01, 0xf1, 0x06, 0x04, 0x10, 0, 3, 0, 0, 2]);
    c[0x34] = 0x40;
    c[0x40..0x48].copy_from_slice(&[0x10, 0x80, 2, 0, 1, 0, 0, 0x10]);
    c[0x80..0x8c].copy_from_slice(&[0x11, 0, 8, 0x80, 5, 0, 0, 0, 5, 8, 0, 0]);
    c
}

fn bar5(size: u64) -> Bar {
    Bar { index: 5, address: 0xfe00_0000, size, io: false, prefetchable: false, wide: false }
}

#[test]
fn inspection_reads_header_capabilities_bars_and_msix() {
    let m = Machine::new();
    m.file("config", "");
    fs::write(m.host.folder(nic()).join("config"), config()).unwrap();
    m.file("resource", "0x00000000fea00000 0x00000000fea3ffff 0x0000000000140204\n0x0 0x0 0x0\n0x0 0x0 0x0\n0x0 0x0 0x0\n0xc000 0xc01f 0x40101\n0xfe000000 0xfe000fff 0x40200\n0x0 0x0 0x0\n");
    let i = m.host.inspect(nic()).unwrap();
    assert_eq!((i.vendor, i.device, i.revision, i.class), (0x1d9b, 0xf101, 3, 0x02_0000));
    assert!(i.memory && i.bus_master && i.intx_disabled);
    let shape: Vec<_> = i.bars.iter().map(|b| (b.index, b.size, b.io, b.wide)).collect();
    assert_eq!(shape, [(0, 0x4_0000, false, true), (4, 0x20, true, false), (5, 0x1000, false, false)]);
    let names: Vec<_> = i.capabilities.iter().map(|c| (c.offset, c.name)).collect();
    assert_eq!(names, [(0x40, "PCI Express"), (0x80, "MSI-X")]);
    assert_eq!(i.capabilities[0].detail, Detail::Express { max_payload: 256, flr: true });
    let msix = Msix { vectors: 9, enabled: true, masked: false, table: (5, 0), pending: (5, 0x800) };
    assert_eq!(i.msix(), Some(&msix));
    assert_eq!(i.faults, [""; 0]);
}

#[test]
fn impossible_configuration_space_is_named() {
    let faults = |bytes: &[u8], bars| describe(bytes, bars).unwrap().faults;
    assert!(faults(&config(), vec![])[0].contains("BAR 5, which there is not"));
    assert!(faults(&config(), vec![bar5(0x800)])[0].contains("past BAR 5"));
    let mut endless = config();
    endless[0x81] = 0x40;
    assert!(faults(&endless, vec![bar5(4096)])[0].contains("cycle"), "{:?}", faults(&endless, vec![]));
    assert_eq!(describe(&[0xff; 256], vec![]).unwrap_err().kind(), io::ErrorKind::NotConnected);
    assert!(describe(&[0; 63], vec![]).is_err());
    assert_eq!(
        describe(&config()[..64], vec![]).unwrap().bytes,
        64,
        "the header alone, as an ordinary user sees it"
    );
}

proptest! {
    /// Any bytes, of any length and at any alignment: a description or an error.
    #[test]
    fn any_configuration_space_is_described_or_refused(
        mut bytes in prop::collection::vec(any::<u8>(), 0..4200),
        skip in 0usize..8,
        size in any::<u64>(),
    ) {
        // Mostly with a list of capabilities that starts somewhere sane.
        if bytes.len() > 0x35 {
            bytes[6] |= 0x10;
            bytes[0x34] |= 0x40;
        }
        let _ = describe(bytes.get(skip..).unwrap_or(&[]), vec![bar5(size)]);
    }

    /// Small IDs and pointers, so that lists are long and hold what is decoded.
    #[test]
    fn chained_capabilities_are_described(bytes in prop::collection::vec(prop::sample::select(vec![0u8, 5, 0x10, 0x11, 0x14, 0x40, 0x48, 0x80, 0xfc]), 4096)) {
        let mut bytes = bytes;
        bytes[6] |= 0x10;
        let i = describe(&bytes, vec![bar5(4096)]).unwrap();
        prop_assert!(i.capabilities.len() <= 192 + 1920);
    }

    /// Text of sysfs that is none.
    #[test]
    fn any_resource_text_is_harmless(text in "[0-9a-fx \n]{0,200}") {
        prop_assert!(inspect::bars(&text).len() <= 6);
    }
}
