//! Upcalls on their way to the user: bounded queues by port, sent in turn.
//!
//! A port whose packets nobody takes fast enough loses its own upcalls and no other port's: each port has a queue, and one
//! message of each is sent before the second of any. Netlink never tells a sender of ours that a message was lost (ENOBUFS),
//! so everything that is lost is lost here, and counted.

use flowlift_flow::{Key, PortNo};
use flowlift_ovs::backend::{DpIndex, Features};
use flowlift_ovs::socket::{SendError, Sender};
use flowlift_ovs::upcall::{Cause, Dispatch, HASH_L4, HASH_SW, Upcall};
use flowlift_softpath as softpath;
use std::collections::{BTreeMap, VecDeque};

/// Upcalls of one port that wait at most.
const PER_PORT: usize = 256;
/// Upcalls that are sent together.
const BATCH: usize = 64;
/// Buffers that are kept for the next upcalls.
const SPARE: usize = 1024;

/// Who gets a datapath's upcalls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Targets {
    /// User features.
    pub features: Features,
    /// Port IDs by CPU.
    pub per_cpu: Vec<u32>,
    /// Port IDs by port.
    pub ports: BTreeMap<PortNo, Vec<u32>>,
}

/// An upcall's message, with who gets it.
type Outgoing = (u32, Vec<u8>);

/// One port's upcalls.
#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Outgoing>,
    sent: u64,
    lost: u64,
}

/// See the module's head.
#[derive(Debug)]
pub struct Upcalls {
    /// From the server's port ID.
    sender: Sender,
    targets: BTreeMap<DpIndex, Targets>,
    /// Who gets the upcalls of the packet that is being executed, in place of whom dispatch would choose
    /// (`OVS_PACKET_ATTR_UPCALL_PID`).
    asker: Option<u32>,
    queues: BTreeMap<(DpIndex, PortNo), Queue>,
    /// Ports with waiting upcalls, in the order of their turns.
    turns: VecDeque<(DpIndex, PortNo)>,
    spare: Vec<Vec<u8>>,
    /// Upcalls of each datapath that were queued, and lost afterwards.
    lost_later: BTreeMap<DpIndex, u64>,
}

impl Upcalls {
    /// Sends by the server's sender.
    pub fn new(sender: Sender) -> Self {
        Self {
            sender,
            targets: BTreeMap::new(),
            asker: None,
            queues: BTreeMap::new(),
            turns: VecDeque::new(),
            spare: Vec::new(),
            lost_later: BTreeMap::new(),
        }
    }

    /// Says who gets a datapath's upcalls; `None` if the datapath is no more.
    pub fn set_targets(&mut self, dp: DpIndex, targets: Option<Targets>) {
        match targets {
            Some(targets) => {
                let lost = self.lost_later.entry(dp).or_default();
                self.queues.retain(|(of, port), queue| {
                    let stays = *of != dp || targets.ports.contains_key(port);
                    *lost += if stays { 0 } else { queue.waiting.len() as u64 };
                    stays
                });
                self.targets.insert(dp, targets);
            }
            None => {
                self.queues.retain(|(of, _), _| *of != dp);
                self.targets.remove(&dp);
                self.lost_later.remove(&dp);
            }
        }
        let queues = &self.queues;
        self.turns.retain(|port| queues.contains_key(port));
    }

    /// Says who gets the upcalls from now on, whatever dispatch would choose; `None` for dispatch.
    pub fn set_asker(&mut self, pid: Option<u32>) {
        self.asker = pid.filter(|pid| *pid != 0);
    }

    /// Upcalls of packets from a port: sent, and lost.
    pub fn counters(&self, dp: DpIndex, port: PortNo) -> (u64, u64) {
        self.queues.get(&(dp, port)).map_or((0, 0), |queue| (queue.sent, queue.lost))
    }

    /// Upcalls of a datapath that [`Self::push`] took and nobody got.
    pub fn lost_later(&self, dp: DpIndex) -> u64 {
        self.lost_later.get(&dp).copied().unwrap_or(0)
    }

    /// Queues an upcall with this packet, and the tunnel with which it would leave if the action asks for that. False if nobody
    /// wants it or its queue is full.
    pub fn push(
        &mut self,
        dp: DpIndex,
        upcall: &softpath::Upcall<'_>,
        packet: &[u8],
        egress_tunnel: Option<&Key>,
    ) -> bool {
        let Some(targets) = self.targets.get(&dp) else { return false };
        let (key, taken_hash, original_len) = match upcall {
            softpath::Upcall::Miss { key, packet } => (*key, packet.flow_hash(), packet.len()),
            softpath::Upcall::Action(action) => (action.key, action.hash, action.original_len),
        };
        let port = PortNo(key.in_port);
        let vport = targets.ports.get(&port).map_or(&[][..], Vec::as_slice);
        let dispatch = Dispatch { features: targets.features, per_cpu: &targets.per_cpu, vport };
        // Handlers are many and this thread is one: a port's packets stay with one handler, and so in order.
        let cpu = key.in_port as usize;
        let (pid, cause) = match upcall {
            softpath::Upcall::Miss { .. } => (dispatch.miss(cpu, hash(key)), Cause::Miss),
            softpath::Upcall::Action(action) => {
                let userdata = action.userspace.userdata.as_deref();
                let cause = Cause::Action { userdata, egress_tunnel, actions: action.actions };
                (dispatch.action(cpu, action.userspace.pid), cause)
            }
        };
        let queue = self.queues.entry((dp, port)).or_default();
        let Some(pid) = self.asker.or(pid).filter(|_| queue.waiting.len() < PER_PORT) else {
            queue.lost += 1;
            return false;
        };
        let message = Upcall {
            dp,
            cause,
            key,
            packet,
            original_len,
            mru: None,
            hash: taken_hash.map_or(0, |hash| u64::from(hash) | HASH_SW | HASH_L4),
            conntrack: false,
            features: targets.features,
        };
        let mut buffer = self.spare.pop().unwrap_or_default();
        if message.encode(&mut buffer).is_err() {
            queue.lost += 1;
            return false;
        }
        if queue.waiting.is_empty() {
            self.turns.push_back((dp, port));
        }
        queue.waiting.push_back((pid, buffer));
        true
    }

    /// Upcalls that wait to be sent.
    pub fn waiting(&self) -> usize {
        self.turns.iter().filter_map(|port| self.queues.get(port)).map(|queue| queue.waiting.len()).sum()
    }

    /// Sends what receivers take; false if some take no more now.
    pub fn flush(&mut self) -> bool {
        let mut full: Vec<u32> = Vec::new();
        while !self.turns.is_empty() && self.send_some(&mut full) {}
        self.turns.is_empty()
    }

    /// Sends some upcalls together; false if there are none for receivers but those that are `full`.
    fn send_some(&mut self, full: &mut Vec<u32>) -> bool {
        let (ports, mut batch) = self.gather(full);
        let (sent, result) = self.sender.send_many(&batch);
        for port in ports.iter().take(sent) {
            self.queues.entry(*port).or_default().sent += 1;
        }
        let failed = batch.get(sent).map(|(pid, _)| *pid);
        let unsent = batch.split_off(sent);
        let mut unsent: Vec<_> = ports.iter().copied().skip(sent).zip(unsent).collect();
        match (result, failed) {
            (Err(SendError::Full), Some(pid)) => full.push(pid),
            (Err(_), Some(_)) => {
                // The handler is gone.
                let (port, (_, message)) = unsent.remove(0);
                self.queues.entry(port).or_default().lost += 1;
                *self.lost_later.entry(port.0).or_default() += 1;
                batch.push((0, message));
            }
            _ => {}
        }
        for (port, upcall) in unsent.into_iter().rev() {
            self.queues.entry(port).or_default().waiting.push_front(upcall);
            self.turns.retain(|other| *other != port);
            self.turns.push_front(port);
        }
        let room = SPARE.saturating_sub(self.spare.len());
        self.spare.extend(batch.into_iter().take(room).map(|(_, message)| message));
        !ports.is_empty()
    }

    /// Takes the next upcalls, one of each port before the second of any, but for receivers that are `full`: their ports, and with
    /// each its receiver.
    fn gather(&mut self, full: &[u32]) -> (Vec<(DpIndex, PortNo)>, Vec<Outgoing>) {
        let (mut ports, mut batch) = (Vec::new(), Vec::new());
        let mut held = 0;
        while held < self.turns.len()
            && batch.len() < BATCH
            && let Some(port) = self.turns.pop_front()
        {
            let Some(queue) = self.queues.get_mut(&port) else { continue };
            match queue.waiting.pop_front() {
                Some(upcall) if full.contains(&upcall.0) => {
                    queue.waiting.push_front(upcall);
                    held += 1;
                }
                Some(upcall) => {
                    ports.push(port);
                    batch.push(upcall);
                    held = 0;
                }
                None => {}
            }
            if !queue.waiting.is_empty() {
                self.turns.push_back(port);
            }
        }
        (ports, batch)
    }
}

/// Spreads connections over a port's handlers.
fn hash(key: &Key) -> u32 {
    let ports = u32::from(key.tp_src.get()) << 16 | u32::from(key.tp_dst.get());
    let mixed = key.ipv4_src.get() ^ key.ipv4_dst.get().rotate_left(16) ^ ports ^ u32::from(key.ip_proto);
    mixed.wrapping_mul(0x9e37_79b1) >> 16
}

#[cfg(test)]
#[path = "../../../../../softpath/port/tests/namespace/mod.rs"]
mod namespace;

#[cfg(test)]
mod tests {
    use super::namespace::in_a_namespace;
    use super::*;
    use flowlift_ovs::socket::Socket;
    use flowlift_softpath::Packet;
    use nix::sys::socket::*;
    use std::os::fd::{AsRawFd, OwnedFd};

    const DP: DpIndex = DpIndex(7);
    const SERVER: u32 = 0x1000_0001;
    const HANDLER: u32 = 0x1000_0002;
    const OTHER: u32 = 0x1000_0003;

    fn handler(port_id: u32) -> OwnedFd {
        let flags = SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkGeneric).unwrap();
        setsockopt(&fd, sockopt::RcvBuf, &8192).unwrap();
        bind(fd.as_raw_fd(), &NetlinkAddr::new(port_id, 0)).unwrap();
        fd
    }

    /// Ports that the next upcalls in a handler's socket are about.
    fn read(fd: &OwnedFd, most: usize) -> Vec<u32> {
        let mut buffer = vec![0; 1 << 16];
        let mut ports = Vec::new();
        while ports.len() < most
            && let Ok(len) = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())
        {
            // The frame's last byte is its port's number.
            ports.push(u32::from(buffer[len - 1]));
        }
        ports
    }

    fn miss(upcalls: &mut Upcalls, port: u32) -> bool {
        let (key, mut packet) = (Key { in_port: port, ..Key::default() }, Packet::new());
        packet.fill(&[port as u8; 60], Default::default());
        upcalls.push(DP, &softpath::Upcall::Miss { key: &key, packet: &packet }, packet.bytes(), None)
    }

    /// Two ports, both of whose upcalls go to `HANDLER`.
    fn two_ports() -> Upcalls {
        let mut upcalls = Upcalls::new(Socket::bind(SERVER).unwrap().sender());
        let ports = BTreeMap::from([(PortNo(1), vec![HANDLER]), (PortNo(2), vec![HANDLER])]);
        let targets = Targets { features: Features::VPORT_PIDS, per_cpu: vec![], ports };
        upcalls.set_targets(DP, Some(targets));
        upcalls
    }

    #[test]
    fn a_storm_of_one_port_starves_no_other() {
        in_a_namespace(|| {
            let (mut upcalls, handler) = (two_ports(), handler(HANDLER));
            // The handler reads nothing: its socket fills, then the port's queue, then upcalls are lost.
            let taken = (0..5_000).filter(|_| {
                let taken = miss(&mut upcalls, 1);
                upcalls.flush();
                taken
            });
            let taken = taken.count() as u64;
            let (sent, lost) = upcalls.counters(DP, PortNo(1));
            assert_eq!((taken - sent, taken + lost), (PER_PORT as u64, 5_000), "sent {sent}, lost {lost}");
            assert!(!upcalls.flush(), "there is more than the handler takes");
            // The other port's first packet waits for what the socket had before it, and for one more of the storm.
            assert!(miss(&mut upcalls, 2), "its queue is its own");
            let mut read_so_far = Vec::new();
            while upcalls.counters(DP, PortNo(2)).0 == 0 {
                assert!(read_so_far.len() < 5_000, "it was never sent");
                read_so_far.extend(read(&handler, 1));
                upcalls.flush();
            }
            read_so_far.extend(read(&handler, usize::MAX));
            let position = read_so_far.iter().position(|port| *port == 2).unwrap() as u64;
            assert!(position <= sent + 2, "{position} upcalls came before it, {sent} were there");
            assert_eq!(upcalls.counters(DP, PortNo(2)), (1, 0));
            assert_eq!(upcalls.lost_later(DP), 0);
        });
    }

    #[test]
    fn what_a_dead_handler_leaves_is_counted() {
        in_a_namespace(|| {
            let mut upcalls = two_ports();
            assert!(miss(&mut upcalls, 1) && miss(&mut upcalls, 1) && miss(&mut upcalls, 2));
            assert!(upcalls.flush(), "nothing waits for nobody");
            assert_eq!((upcalls.counters(DP, PortNo(1)), upcalls.lost_later(DP)), ((0, 2), 3));
            // Whoever asks for a packet's actions may name another handler.
            let other = handler(OTHER);
            upcalls.set_asker(Some(OTHER));
            assert!(miss(&mut upcalls, 2) && upcalls.flush());
            assert_eq!(read(&other, 9), [2]);
            upcalls.set_asker(None);
            // A port that is taken away takes its upcalls along.
            assert!(miss(&mut upcalls, 1));
            let ports = BTreeMap::from([(PortNo(2), vec![HANDLER])]);
            upcalls.set_targets(DP, Some(Targets { features: Features::VPORT_PIDS, per_cpu: vec![], ports }));
            assert_eq!(upcalls.lost_later(DP), 4);
            assert!(!miss(&mut upcalls, 1), "nobody wants them");
        });
    }
}
