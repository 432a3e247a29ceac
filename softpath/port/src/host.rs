//! A port of the host by its text: `tap:NAME`, `packet:NETDEV`, `unix:LOCAL[,PEER]`.

use crate::{DatagramPort, Frame, FrameSink, FrameSource, PacketPort, PortError, TapPort};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::str::FromStr;

/// Which port of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostSpec {
    /// A TAP device, made if it is not there.
    Tap(String),
    /// A network device, by a packet socket.
    Packet(String),
    /// Unix datagrams: the socket's own path, and the peer's; without one, answers go to the last sender.
    Unix(PathBuf, Option<PathBuf>),
}

/// A text that is no [`HostSpec`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of tap:NAME, packet:NETDEV, unix:LOCAL[,PEER]")]
pub struct NoHostSpec(pub String);

impl FromStr for HostSpec {
    type Err = NoHostSpec;

    fn from_str(s: &str) -> Result<Self, NoHostSpec> {
        let wrong = || NoHostSpec(s.to_owned());
        match s.split_once(':').filter(|(_, rest)| !rest.is_empty()).ok_or_else(wrong)? {
            ("tap", name) => Ok(Self::Tap(name.to_owned())),
            ("packet", name) => Ok(Self::Packet(name.to_owned())),
            ("unix", paths) => match paths.split_once(',') {
                Some((local, peer)) if !local.is_empty() && !peer.is_empty() => {
                    Ok(Self::Unix(local.into(), Some(peer.into())))
                }
                Some(_) => Err(wrong()),
                None => Ok(Self::Unix(paths.into(), None)),
            },
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for HostSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tap(name) => write!(f, "tap:{name}"),
            Self::Packet(name) => write!(f, "packet:{name}"),
            Self::Unix(local, None) => write!(f, "unix:{}", local.display()),
            Self::Unix(local, Some(peer)) => write!(f, "unix:{},{}", local.display(), peer.display()),
        }
    }
}

/// An opened port of the host.
#[derive(Debug)]
pub enum HostPort {
    /// A TAP device.
    Tap(TapPort),
    /// A network device.
    Packet(PacketPort),
    /// Unix datagrams.
    Unix(DatagramPort),
}

impl HostPort {
    /// Opens it.
    ///
    /// # Errors
    /// As [`TapPort::open`], [`PacketPort::open`] and [`DatagramPort::bind`] have them.
    pub fn open(spec: &HostSpec) -> Result<Self, PortError> {
        Ok(match spec {
            HostSpec::Tap(name) => Self::Tap(TapPort::open(name)?),
            HostSpec::Packet(name) => Self::Packet(PacketPort::open(name)?),
            HostSpec::Unix(local, peer) => Self::Unix(DatagramPort::bind(local, peer.as_deref())?),
        })
    }
}

impl AsFd for HostPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tap(port) => port.as_fd(),
            Self::Packet(port) => port.as_fd(),
            Self::Unix(port) => port.as_fd(),
        }
    }
}

impl FrameSource for HostPort {
    fn receive(&mut self) -> Result<Option<Frame<'_>>, PortError> {
        match self {
            Self::Tap(port) => port.receive(),
            Self::Packet(port) => port.receive(),
            Self::Unix(port) => port.receive(),
        }
    }
}

impl FrameSink for HostPort {
    fn send(&mut self, frame: Frame<'_>) -> Result<(), PortError> {
        match self {
            Self::Tap(port) => port.send(frame),
            Self::Packet(port) => port.send(frame),
            Self::Unix(port) => port.send(frame),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_and_written_alike() {
        for (text, want) in [
            ("tap:tap0", HostSpec::Tap("tap0".into())),
            ("packet:eth0", HostSpec::Packet("eth0".into())),
            ("unix:/a", HostSpec::Unix("/a".into(), None)),
            ("unix:/a,/b", HostSpec::Unix("/a".into(), Some("/b".into()))),
        ] {
            assert_eq!(text.parse(), Ok(want.clone()), "{text}");
            assert_eq!(want.to_string(), text);
        }
        for bad in ["", "tap", "tap:", "udp:x", "unix:", "unix:,", "unix:a,", "unix:,b", "pcap:x"] {
            assert_eq!(bad.parse::<HostSpec>(), Err(NoHostSpec(bad.into())));
        }
    }

    #[test]
    fn a_port_opened_by_its_text_carries_frames() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let open = |text: String| HostPort::open(&text.parse().unwrap()).unwrap();
        let mut one = open(format!("unix:{}", path("a")));
        let mut two = open(format!("unix:{},{}", path("b"), path("a")));
        two.send(Frame::new(b"there")).unwrap();
        assert_eq!(one.receive().unwrap().map(|frame| frame.data), Some(&b"there"[..]));
    }
}
