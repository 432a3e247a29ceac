//! Upcalls: packets that a datapath passes to ovs-vswitchd (R4, R5), and who gets them.
//!
//! Composing one allocates nothing once its buffer has grown, and leaves the packet where it is: [`Upcall::encode_head`]
//! writes all that comes before the packet's bytes, for a gathering send.

use crate::action::encode_actions;
use crate::backend::{DpIndex, Features};
use crate::key::{Form, all_attrs, encode_key_of, encode_tunnel_as};
use crate::nla::{HEADER_LEN, Writer};
use crate::uapi::{PACKET, nlmsg, packet};
use flowlift_flow::{Action, Key};
use thiserror::Error;

/// In [`Upcall::hash`]: the hash was computed in software (`OVS_PACKET_HASH_SW_BIT`).
pub const HASH_SW: u64 = 1 << 32;
/// In [`Upcall::hash`]: the hash covers the transport header (`OVS_PACKET_HASH_L4_BIT`).
pub const HASH_L4: u64 = 1 << 33;
/// Why a packet goes to the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause<'a> {
    /// No flow matched it: `OVS_PACKET_CMD_MISS`.
    Miss,
    /// A userspace action: `OVS_PACKET_CMD_ACTION`.
    Action {
        /// The action's userdata, as it was given.
        userdata: Option<&'a [u8]>,
        /// The tunnel key that the packet would leave with, if the action asks for it and the port is a tunnel.
        egress_tunnel: Option<&'a Key>,
        /// The flow's actions, if the action asks for them.
        actions: Option<&'a [Action]>,
    },
}

/// A packet for the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upcall<'a> {
    /// The datapath.
    pub dp: DpIndex,
    /// Why.
    pub cause: Cause<'a>,
    /// The key parsed from the packet as it came in (R5, U11).
    pub key: &'a Key,
    /// The packet as the actions so far left it (U11), cut if a trunc action came before.
    pub packet: &'a [u8],
    /// Its length before the cut; the message has it if there was one.
    pub original_len: usize,
    /// Length of the longest fragment, if the packet was put together from fragments.
    pub mru: Option<u16>,
    /// The packet's hash, with [`HASH_SW`] and [`HASH_L4`]; 0 if it has none.
    pub hash: u64,
    /// There is connection tracking: the key's CT attributes mean something.
    pub conntrack: bool,
    /// The datapath's user features.
    pub features: Features,
}

/// A packet that no message can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a packet of {0} bytes is longer than an attribute")]
pub struct TooLong(pub usize);

impl<'a> Upcall<'a> {
    /// Replaces `out` by the message up to the packet's bytes; [`Self::packet`] and as many zeros as are returned, 0 to 3,
    /// complete it.
    pub fn encode_head(&self, out: &mut Vec<u8>) -> Result<usize, TooLong> {
        let payload = self.packet;
        let attr_len = u16::try_from(HEADER_LEN + payload.len()).map_err(|_| TooLong(payload.len()))?;
        out.clear();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&PACKET.id.to_ne_bytes());
        // No flags, sequence number or port ID: nobody asked.
        out.extend_from_slice(&[0; 10]);
        let cmd = match self.cause {
            Cause::Miss => packet::CMD_MISS,
            Cause::Action { .. } => packet::CMD_ACTION,
        };
        out.extend_from_slice(&[cmd, PACKET.version, 0, 0]);
        out.extend_from_slice(&self.dp.0.to_ne_bytes());

        let start = Writer::new(out).begin(packet::KEY);
        encode_key_of(self.key, Form::Datapath, &all_attrs(self.conntrack), out);
        Writer::new(out).end(start);
        if let Cause::Action { userdata, egress_tunnel, actions } = self.cause {
            if let Some(userdata) = userdata {
                Writer::new(out).put(packet::USERDATA, userdata);
            }
            if let Some(tunnel) = egress_tunnel {
                encode_tunnel_as(packet::EGRESS_TUN_KEY, tunnel, &mut Writer::new(out));
            }
            if let Some(actions) = actions {
                put_actions(actions, out);
            }
        }
        let mut w = Writer::new(out);
        if let Some(mru) = self.mru {
            w.put(packet::MRU, &mru.to_ne_bytes());
        }
        if payload.len() < self.original_len {
            w.put(packet::LEN, &(self.original_len as u32).to_ne_bytes());
        }
        w.put(packet::HASH, &self.hash.to_ne_bytes());
        out.extend_from_slice(&attr_len.to_ne_bytes());
        out.extend_from_slice(&packet::PACKET.to_ne_bytes());

        let unaligned = self.features.has(Features::UNALIGNED);
        let padding = if unaligned { 0 } else { payload.len().next_multiple_of(4) - payload.len() };
        let length = (out.len() + payload.len() + padding) as u32;
        if let Some(field) = out.first_chunk_mut() {
            *field = length.to_ne_bytes();
        }
        Ok(padding)
    }

    /// Replaces `out` by the whole message.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), TooLong> {
        let padding = self.encode_head(out)?;
        out.extend_from_slice(self.packet);
        out.resize(out.len() + padding, 0);
        Ok(())
    }
}

/// Writes ACTIONS. Actions that cannot be written leave the attribute out, as the kernel does.
fn put_actions(actions: &[Action], out: &mut Vec<u8>) {
    let start = Writer::new(out).begin(packet::ACTIONS);
    match encode_actions(actions, out) {
        Ok(()) => Writer::new(out).end(start),
        Err(_) => out.truncate(start),
    }
}

/// Who gets upcalls of a datapath and one of its vports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dispatch<'a> {
    /// The datapath's user features.
    pub features: Features,
    /// The datapath's port IDs by CPU.
    pub per_cpu: &'a [u32],
    /// The port IDs of the vport where the packet came in.
    pub vport: &'a [u32],
}

impl Dispatch<'_> {
    /// The port ID for a packet that no flow matched, handled on `cpu`, with hash `hash`; `None` if nobody wants it.
    pub fn miss(&self, cpu: usize, hash: u32) -> Option<u32> {
        if self.features.has(Features::DISPATCH_UPCALL_PER_CPU) {
            return self.of_cpu(cpu);
        }
        pick(self.vport, usize::try_from(hash).unwrap_or_default())
    }

    /// The port ID for a userspace action that names `pid`, which per-CPU dispatch overrules.
    pub fn action(&self, cpu: usize, pid: u32) -> Option<u32> {
        if self.features.has(Features::DISPATCH_UPCALL_PER_CPU) {
            return self.of_cpu(cpu);
        }
        Some(pid).filter(|pid| *pid != 0)
    }

    fn of_cpu(&self, cpu: usize) -> Option<u32> {
        pick(self.per_cpu, cpu)
    }
}

/// The `n`th port ID, counted around; 0 is nobody.
fn pick(pids: &[u32], n: usize) -> Option<u32> {
    let at = n.checked_rem(pids.len())?;
    pids.get(at).copied().filter(|pid| *pid != 0)
}

const _: () = assert!(nlmsg::HEADER_LEN == 16, "encode_head writes the header field by field");
