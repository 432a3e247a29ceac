//! What `--vdev=net_flowlift0,...` says.

use flowlift_sim::server::{WireKind, WireSpec};
use flowlift_sim::{FaultPlan, FaultSpecError};
use std::path::PathBuf;

/// Which NIC a port belongs to. Ports that name the same one share it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NicName {
    /// A simulated one in this process, by its name: `sim` or `sim:NAME`.
    Sim(String),
    /// One that another process serves: `vfio-user:SOCKET`.
    VfioUser(PathBuf),
    /// A PCI function that is bound to vfio-pci, by its address.
    Pci(String),
}

impl std::fmt::Display for NicName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sim(name) if name.is_empty() => f.write_str("sim"),
            Self::Sim(name) => write!(f, "sim:{name}"),
            Self::VfioUser(path) => write!(f, "vfio-user:{}", path.display()),
            Self::Pci(address) => f.write_str(address),
        }
    }
}

/// Size of a simulated NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Profile {
    Tiny,
    Standard,
    Large,
}

/// Everything that the arguments of one port say.
#[derive(Debug, Clone, PartialEq)]
pub struct Devargs {
    /// The NIC.
    pub nic: NicName,
    /// Port of the NIC, counted from 0.
    pub port: u16,
    /// Size of a simulated NIC; `None`: as another port said, or standard.
    pub profile: Option<Profile>,
    /// What the port of a simulated NIC is plugged into; `None`: nothing.
    pub wire: Option<WireKind>,
    /// Seed of everything random in a simulated NIC.
    pub seed: Option<u64>,
    /// Faults that a simulated NIC has.
    pub faults: Option<FaultPlan>,
    /// Entries of a simulated NIC's first table whose memory is taken from the host at once, as a NIC has its own from the start;
    /// without it, it is taken as entries come. For benchmarks.
    pub populate: Option<u32>,
}

/// Arguments that say nothing that could be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DevargsError {
    /// Not a known argument.
    #[error("unknown argument {0:?}; there are nic, port, profile, wire, seed, faults and populate")]
    Unknown(String),
    /// An argument without `=`.
    #[error("{0:?} is not of the form name=value")]
    NoValue(String),
    /// The same argument twice.
    #[error("{0} is given twice")]
    Twice(String),
    /// No NIC is named.
    #[error("nic=sim, nic=sim:NAME, nic=vfio-user:SOCKET or nic=PCI-ADDRESS is missing")]
    NoNic,
    /// The NIC is none.
    #[error("nic={0:?} is neither sim, sim:NAME, vfio-user:SOCKET nor a PCI address such as 0000:01:00.0")]
    Nic(String),
    /// A number is none.
    #[error("{name}={value:?} is not a number from 0 to {last}")]
    Number {
        /// Argument.
        name: &'static str,
        /// Its value.
        value: String,
        /// The largest number.
        last: u64,
    },
    /// The profile is none.
    #[error("profile={0:?} is neither tiny, standard nor large")]
    Profile(String),
    /// The wire is none.
    #[error(
        "wire={0:?} is not one: tap:NAME, packet:NETDEV, unix:LOCAL[;PEER], pcap:IN[;OUT] or memory:CABLE"
    )]
    Wire(String),
    /// The faults are none.
    #[error("faults={0:?}: {1}")]
    Faults(String, FaultSpecError),
    /// Only a simulated NIC has it.
    #[error("{0} is for nic=sim alone")]
    SimOnly(&'static str),
}

impl Devargs {
    /// Parses what DPDK hands a driver: `name=value`, separated by commas.
    ///
    /// # Errors
    /// See [`DevargsError`].
    pub fn parse(text: &str) -> Result<Self, DevargsError> {
        let mut given: Vec<(&str, &str)> = Vec::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or_else(|| DevargsError::NoValue(part.into()))?;
            if given.iter().any(|(other, _)| *other == name) {
                return Err(DevargsError::Twice(name.into()));
            }
            given.push((name, value));
        }
        let (mut nic, mut port, mut profile, mut wire) = (None, 0, None, None);
        let (mut seed, mut faults, mut populate) = (None, None, None);
        for (name, value) in given {
            match name {
                "nic" => nic = Some(nic_name(value)?),
                "port" => port = number("port", value, u16::MAX.into())? as u16,
                "profile" => profile = Some(profile_of(value)?),
                "wire" => wire = Some(wire_kind(value)?),
                "seed" => seed = Some(number("seed", value, u64::MAX)?),
                "faults" => {
                    // A comma ends an argument of DPDK's, so that several faults are separated otherwise.
                    let spec = value.replace(';', ",");
                    let plan = spec.parse().map_err(|e| DevargsError::Faults(value.into(), e))?;
                    faults = Some(plan);
                }
                "populate" => populate = Some(number("populate", value, u32::MAX.into())? as u32),
                _ => return Err(DevargsError::Unknown(name.into())),
            }
        }
        let nic = nic.ok_or(DevargsError::NoNic)?;
        if !matches!(nic, NicName::Sim(_)) {
            let given = [
                (profile.is_some(), "profile"),
                (wire.is_some(), "wire"),
                (seed.is_some(), "seed"),
                (faults.is_some(), "faults"),
                (populate.is_some(), "populate"),
            ];
            if let Some((_, name)) = given.iter().find(|(given, _)| *given) {
                return Err(DevargsError::SimOnly(name));
            }
        }
        Ok(Self { nic, port, profile, wire, seed, faults, populate })
    }
}

fn number(name: &'static str, value: &str, last: u64) -> Result<u64, DevargsError> {
    let parsed = value.parse().ok().filter(|n| *n <= last);
    parsed.ok_or_else(|| DevargsError::Number { name, value: value.into(), last })
}

fn nic_name(value: &str) -> Result<NicName, DevargsError> {
    let address = |s: &str| {
        let hex = |s: &str, len: usize| s.len() == len && s.bytes().all(|b| b.is_ascii_hexdigit());
        let (bus, function) = s.rsplit_once('.')?;
        let parts: Vec<&str> = bus.split(':').collect();
        let known = match parts.as_slice() {
            [domain, bus, device] => hex(domain, 4) && hex(bus, 2) && hex(device, 2),
            _ => false,
        };
        (known && matches!(function.as_bytes(), [b'0'..=b'7'])).then(|| s.to_owned())
    };
    match value.split_once(':') {
        None if value == "sim" => Ok(NicName::Sim(String::new())),
        Some(("sim", name)) if !name.is_empty() => Ok(NicName::Sim(name.into())),
        Some(("vfio-user", path)) if !path.is_empty() => Ok(NicName::VfioUser(path.into())),
        _ => address(value).map(NicName::Pci).ok_or_else(|| DevargsError::Nic(value.into())),
    }
}

fn profile_of(value: &str) -> Result<Profile, DevargsError> {
    match value {
        "tiny" => Ok(Profile::Tiny),
        "standard" => Ok(Profile::Standard),
        "large" => Ok(Profile::Large),
        _ => Err(DevargsError::Profile(value.into())),
    }
}

/// The other end of a wire, as `flowlift-sim --wire` spells it, with a semicolon for its comma.
fn wire_kind(value: &str) -> Result<WireKind, DevargsError> {
    let spec: Result<WireSpec, _> = format!("p0={}", value.replace(';', ",")).parse();
    spec.map(|spec| spec.kind).map_err(|_| DevargsError::Wire(value.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_say_what_they_say() {
        let all = "nic=sim:a,port=3,profile=large,wire=unix:/x;/y,seed=7,faults=hang=0.5;lost_completion,populate=9";
        let args = Devargs::parse(all).unwrap();
        assert_eq!((args.nic, args.port, args.profile), (NicName::Sim("a".into()), 3, Some(Profile::Large)));
        assert_eq!(args.wire.map(|wire| wire.to_string()).as_deref(), Some("unix:/x,/y"));
        assert_eq!(args.seed, Some(7));
        assert!(args.faults.is_some());
        assert_eq!(args.populate, Some(9));
        let short = Devargs::parse("nic=vfio-user:/run/nic.sock").unwrap();
        assert_eq!((short.nic, short.port), (NicName::VfioUser("/run/nic.sock".into()), 0));
        let pci = Devargs::parse("nic=0000:01:00.0,port=1").unwrap();
        assert_eq!(pci.nic, NicName::Pci("0000:01:00.0".into()));
        assert_eq!(Devargs::parse("nic=sim,wire=memory:a").unwrap().wire, Some(WireKind::Memory("a".into())));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (text, part) in [
            ("", "is missing"),
            ("port=1", "is missing"),
            ("nic", "not of the form"),
            ("nic=", "neither sim"),
            ("nic=simulator", "neither sim"),
            ("nic=01:00.0", "neither sim"),
            ("nic=vfio-user:", "neither sim"),
            ("nic=sim,nic=sim", "given twice"),
            ("nic=sim,port=65536", "from 0 to 65535"),
            ("nic=sim,port=-1", "from 0 to 65535"),
            ("nic=sim,profile=huge", "neither tiny"),
            ("nic=sim,wire=udp:1", "is not one"),
            ("nic=sim,seed=x", "not a number"),
            ("nic=sim,faults=bad", "faults"),
            ("nic=sim,populate=all", "not a number"),
            ("nic=sim,colour=red", "unknown argument"),
            ("nic=vfio-user:/x,profile=tiny", "profile is for nic=sim"),
        ] {
            let error = Devargs::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
