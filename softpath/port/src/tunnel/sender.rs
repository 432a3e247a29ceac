//! Where frames in tunnels leave: with headers put ahead of them, many in a system call.

use std::io;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;

use super::TunnelInfo;
use super::gre::{self, GreTunnel, Moment};
use super::header::{self, HeaderError};
use super::inner::{same_family, source_port};
use super::port::{Codec, Common};
use super::queue::{Queue, UDP_LEN, WAITING_MAX};
use super::run::RunSender;
use super::socket::{Outer, route_source};
use crate::offload::finish;
use crate::stats::add;
use crate::{Frame, MAX_FRAME, PortError};

/// Largest payload of an IPv4 packet.
const PAYLOAD_MAX: usize = 65_535 - 20;
/// How long a route that was asked for is taken for true.
const ROUTE_AGE: Duration = Duration::from_secs(1);

/// Sends frames in tunnels of one kind, to any remote end: what [`send`](Self::send) took waits for [`flush`](Self::flush), or for more
/// frames.
#[derive(Debug)]
pub struct TunnelSender {
    common: Arc<Common>,
    /// Packets that wait, which all have `outer` ahead of them.
    queue: Queue,
    outer: Option<Outer>,
    runs: RunSender,
    scratch: Vec<u8>,
    /// Destination and source of the last route that was asked for, and when.
    route: Option<(IpAddr, IpAddr, Instant)>,
}

/// What is outside of a tunnel's header: the IP header's choices, and UDP's source and destination port.
#[derive(Debug, Clone, Copy)]
struct Outside {
    outer: Outer,
    ports: Option<[u16; 2]>,
}

impl TunnelSender {
    pub(super) fn new(common: Arc<Common>) -> Self {
        let (queue, runs) = (Queue::default(), RunSender::default());
        Self { common, queue, outer: None, runs, scratch: Vec::new(), route: None }
    }

    /// The source address towards `dst`.
    fn source_to(&mut self, dst: IpAddr) -> io::Result<IpAddr> {
        let now = Instant::now();
        match self.route {
            Some((to, source, asked)) if to == dst && now - asked < ROUTE_AGE => Ok(source),
            _ => {
                let source = route_source(dst)?;
                self.route = Some((dst, source, now));
                Ok(source)
            }
        }
    }

    /// Counts a frame that has nowhere to go.
    pub fn refuse(&self) {
        add(&self.common.stats.tx_errors, 1);
    }

    /// Fills in what `info` leaves to be chosen when `frame` is sent: source address, and ports where the protocol has some.
    ///
    /// # Errors
    /// No route.
    pub fn complete(&mut self, info: &mut TunnelInfo, frame: &[u8]) -> Result<(), PortError> {
        if info.src.is_unspecified() {
            info.src = self.source_to(info.dst)?;
        }
        if matches!(self.common.codec, Codec::Udp(_)) {
            if info.src_port == 0 {
                info.src_port = source_port(frame, info.protocol);
            }
            if info.dst_port == 0 {
                info.dst_port = self.common.port;
            }
        }
        Ok(())
    }

    /// Sends a frame, or what else `info` says is within, in a tunnel, with `info` outside it; a large one in segments. A destination
    /// port of 0 is the tunnel port's own.
    ///
    /// # Errors
    /// Of this frame or of those that waited; what is lost is counted. [`PortError::Full`]; [`PortError::TooLong`] for a packet that may
    /// not be fragmented and is longer than its way allows; [`PortError::NotCarried`]; no route, and what else the system says.
    pub fn send(&mut self, info: &TunnelInfo, frame: Frame<'_>) -> Result<(), PortError> {
        let outside = match self.outside(info, frame.data) {
            Ok(outside) => outside,
            Err(error) => {
                add(&self.common.stats.tx_errors, 1);
                return Err(error.into());
            }
        };
        let Some(offload) = frame.offload else { return self.take(info, outside, frame.data) };
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut result = Ok(());
        let finished = finish(frame.data, &offload, &mut scratch, &mut |whole| {
            let taken = self.take(info, outside, whole);
            if result.is_ok() {
                result = taken;
            }
        });
        self.scratch = scratch;
        if finished.is_err() {
            add(&self.common.stats.tx_errors, 1);
        }
        finished?;
        result
    }

    /// Keeps a whole frame to be sent.
    fn take(&mut self, info: &TunnelInfo, outside: Outside, frame: &[u8]) -> Result<(), PortError> {
        if frame.len() > MAX_FRAME.min(PAYLOAD_MAX - UDP_LEN) {
            add(&self.common.stats.tx_too_long, 1);
            return Err(PortError::TooLong { len: frame.len() });
        }
        let mut tunnel = [0; header::MAX_LEN];
        let len = match self.header(info, frame, &mut tunnel) {
            Ok(len) => len,
            Err(error) => {
                add(&self.common.stats.tx_errors, 1);
                return Err(error.into());
            }
        };
        let tunnel = &tunnel[..len];
        let outer = outside.outer;
        let flushed = match self.outer.replace(outer) {
            Some(before) if before != outer => self.submit(&before),
            _ => Ok(()),
        };
        let udp = match outside.ports {
            Some(ports) => &udp_header(ports, tunnel.len() + frame.len())[..],
            None => &[],
        };
        if udp.len() + tunnel.len() + frame.len() > PAYLOAD_MAX {
            add(&self.common.stats.tx_too_long, 1);
            return Err(PortError::TooLong { len: frame.len() });
        }
        self.queue.push([udp, tunnel], frame);
        if self.queue.len() == WAITING_MAX { flushed.and(self.flush()) } else { flushed }
    }

    /// Writes the tunnel's header to the front of `out`; gives its length.
    fn header(
        &self,
        info: &TunnelInfo,
        frame: &[u8],
        out: &mut [u8; header::MAX_LEN],
    ) -> Result<usize, HeaderError> {
        match self.common.codec {
            Codec::Udp(udp) => header::encode(udp, info, out),
            Codec::Gre(kind) => {
                let mut header = [0; gre::MAX_LEN];
                let len = gre::encode(kind, info, self.moment(kind), frame, &mut header)?;
                out[..gre::MAX_LEN].copy_from_slice(&header);
                Ok(len)
            }
        }
    }

    /// What is to be outside of the tunnel's header, of all that `frame` may be cut into.
    fn outside(&mut self, info: &TunnelInfo, frame: &[u8]) -> io::Result<Outside> {
        if !same_family(info.src, info.dst) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let is_udp = matches!(self.common.codec, Codec::Udp(_));
        // The checksum of UDP covers the addresses.
        let checksum = info.checksum && is_udp;
        let needs_source = checksum && info.src.is_unspecified();
        let outer = Outer {
            src: if needs_source { self.source_to(info.dst)? } else { info.src },
            dst: info.dst,
            tos: info.tos,
            ttl: if info.ttl == 0 { 64 } else { info.ttl },
            dont_fragment: info.dont_fragment,
            checksum,
        };
        let ports = is_udp.then(|| {
            let src = if info.src_port == 0 { source_port(frame, info.protocol) } else { info.src_port };
            let dst = if info.dst_port == 0 { self.common.port } else { info.dst_port };
            [src, dst]
        });
        Ok(Outside { outer, ports })
    }

    /// Number and time of the next packet.
    fn moment(&self, kind: GreTunnel) -> Moment {
        if kind != GreTunnel::Erspan {
            return Moment::default();
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // 32 bits of it, which wrap after some days.
        let timestamp = (now.as_micros() / 100) as u32;
        Moment { sequence: self.common.sequence.fetch_add(1, Relaxed), timestamp }
    }

    /// Sends the frames that [`send`](Self::send) took and kept.
    ///
    /// # Errors
    /// What became of the kept frames; they are no longer kept, and counted.
    pub fn flush(&mut self) -> Result<(), PortError> {
        self.runs.close_idle();
        match self.outer.take() {
            Some(outer) => self.submit(&outer),
            None => Ok(()),
        }
    }

    /// Sends what waits. A reason that concerns one frame alone does not keep the others back; the first one is the result.
    fn submit(&mut self, outer: &Outer) -> Result<(), PortError> {
        let Self { common, queue, runs, .. } = self;
        // The system sends runs of packets with a checksum only.
        let run_at = |queue: &Queue, n| if outer.checksum { queue.run_at(n) } else { 1 };
        let (mut done, mut result) = (0, Ok(()));
        while done < queue.len() {
            let run = run_at(queue, done);
            if run > 1 && runs.send(outer, run, queue.packets(done..done + run)) {
                count_sent(common, queue, done..done + run);
                done += run;
                continue;
            }
            // All up to the next run.
            let mut end = done + run;
            while end < queue.len() && run_at(queue, end) == 1 {
                end += 1;
            }
            let sent = one_by_one(common, queue, outer, done..end);
            result = result.and(sent);
            done = end;
        }
        queue.clear();
        result
    }
}

/// UDP's header ahead of a payload, without a checksum.
fn udp_header([src, dst]: [u16; 2], payload: usize) -> [u8; UDP_LEN] {
    // A packet that is too long is not sent.
    let len = u16::try_from(UDP_LEN + payload).unwrap_or(u16::MAX);
    let mut udp = [0; UDP_LEN];
    udp[..2].copy_from_slice(&src.to_be_bytes());
    udp[2..4].copy_from_slice(&dst.to_be_bytes());
    udp[4..6].copy_from_slice(&len.to_be_bytes());
    udp
}

/// Counts packets that were sent.
fn count_sent(common: &Common, queue: &Queue, packets: Range<usize>) {
    add(&common.stats.tx_frames, packets.len() as u64);
    add(&common.stats.tx_bytes, queue.frame_bytes(packets));
}

/// Sends packets, each for itself, as far as possible; what is lost is counted, and why is told of the first.
fn one_by_one(
    common: &Common,
    queue: &mut Queue,
    outer: &Outer,
    packets: Range<usize>,
) -> Result<(), PortError> {
    // Over IPv6 the system does that.
    if outer.checksum
        && let (IpAddr::V4(src), IpAddr::V4(dst)) = (outer.src, outer.dst)
    {
        packets.clone().for_each(|n| queue.complete(n, src, dst));
    }
    let stats = &common.stats;
    let (mut rest, mut result) = (packets, Ok(()));
    while !rest.is_empty() {
        let error = match common.sockets.send(outer, queue.packets(rest.clone())) {
            Ok(sent) => {
                count_sent(common, queue, rest.start..rest.start + sent);
                rest.start += sent;
                continue;
            }
            Err(Errno::EINTR) => continue,
            Err(error) => error,
        };
        let lost = match error {
            Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM => {
                add(&stats.tx_full, rest.len() as u64);
                rest.start = rest.end;
                PortError::Full
            }
            Errno::EMSGSIZE => {
                add(&stats.tx_too_long, 1);
                rest.start += 1;
                PortError::TooLong { len: queue.frame_len(rest.start - 1) }
            }
            error => {
                // The next one goes the same way.
                add(&stats.tx_errors, rest.len() as u64);
                rest.start = rest.end;
                io::Error::from(error).into()
            }
        };
        result = result.and(Err(lost));
    }
    result
}
