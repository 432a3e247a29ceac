//! Actions: what a flow does to a packet.
//!
//! [`compile`] turns a flow's actions into a [`Program`] once, when the flow is installed; [`execute`] runs it on each
//! packet. All that can be decided early is decided in `compile`: what this datapath cannot do is refused there with a
//! reason, masks are turned into "keep these bits", and lists that leave the packet's bytes alone are marked, so that they
//! run without a copy. The common program, one output, is a variant of its own and costs a branch and a call.
//!
//! What a packet looks like afterwards is what Open vSwitch's user-space datapath sends, byte for byte; tests/ovs_actions
//! compares the two. Where that datapath writes past a packet's end, or leaves a checksum wrong, this one does not:
//! - A header that is not there, or not whole, is not edited. Nothing is read or written past the packet.
//! - Later fragments have no L4 header, so an address change touches none of their payload.
//! - IPv6 atomic fragments are whole packets: an address change updates their L4 checksum.
//! - The L4 checksum of a packet with an active IPv6 routing header covers the source address, so it follows it.
//! - An IPv4 total length past the end of the frame is a packet cut off (R34), whose L4 header is still edited.

mod compile;
mod execute;
mod hash;
mod l2;
mod l3;
mod l4;
mod state;
#[cfg(test)]
mod tests;
mod vxlan;

pub use compile::compile;
pub use execute::execute;

use crate::packet::{Outgoing, Packet};
use flowlift_flow::action::{HashAlg, Userspace, VxlanHeader};
use flowlift_flow::{Action, Key, PortNo};
use thiserror::Error;

/// Deepest nesting of action lists, as in the kernel's datapath (`OVS_COPY_ACTIONS_MAX_DEPTH`).
pub const MAX_DEPTH: usize = 16;

/// Why a list of actions was refused. The flow that carries it cannot be installed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unsupported {
    /// An action that this datapath does not have.
    #[error("the software datapath has no {0} action")]
    Action(&'static str),
    /// Setting a header that cannot be set.
    #[error("the software datapath cannot set {0}")]
    Set(&'static str),
    /// A masked set whose value has bits outside its mask, or whose value and mask are different headers (U8).
    #[error("set({0}) has value bits outside its mask")]
    OutsideMask(&'static str),
    /// A masked set of a field that stays as it is: IP protocol and fragment kind (U8).
    #[error("set({0}) may not change the protocol or fragment kind")]
    FixedField(&'static str),
    /// push_vlan without the CFI bit in its TCI (U7).
    #[error("push_vlan(tci={0:#06x}) lacks the CFI bit")]
    VlanWithoutCfi(u16),
    /// push_vlan with a TPID that is not parsed (U7).
    #[error("push_vlan(tpid={0:#06x}) is neither 0x8100 nor 0x88a8")]
    VlanTpid(u16),
    /// push_mpls or add_mpls with an Ethernet type that is not MPLS.
    #[error("{0:#06x} is not an MPLS Ethernet type")]
    MplsType(u16),
    /// trunc to less than an Ethernet header.
    #[error("trunc({0}) is shorter than an Ethernet header")]
    Trunc(u32),
    /// NSH metadata of a length that its type does not have.
    #[error("NSH metadata type {mdtype} cannot have {len} bytes")]
    NshMetadata {
        /// Metadata type.
        mdtype: u8,
        /// Length in bytes.
        len: usize,
    },
    /// An action that looks into the packet's headers, behind tnl_push.
    #[error("{0} behind tnl_push")]
    BehindTunnel(&'static str),
    /// Lists nested deeper than [`MAX_DEPTH`].
    #[error("actions are nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
}

/// Compiled actions of a flow: 16 bytes for the common flows, which output to one port or drop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program(Code);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Code {
    /// Output to one port and nothing else.
    Output(PortNo),
    /// Any other list; an empty one drops.
    List(Box<[Op]>),
}

impl Program {
    /// The port, if sending the packet there as it is is all that the program does.
    pub fn single_output(&self) -> Option<PortNo> {
        match self.0 {
            Code::Output(port) => Some(port),
            Code::List(_) => None,
        }
    }

    /// True if the program has no actions: it drops.
    pub fn is_empty(&self) -> bool {
        matches!(&self.0, Code::List(ops) if ops.is_empty())
    }
}

const _: () = assert!(size_of::<Program>() == 16);

/// A list within an action.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    ops: Box<[Op]>,
    /// The list may change the packet or hand it over, so that whoever goes on with the packet needs a copy.
    consumes: bool,
}

/// New bits of a field, and which of the old ones stay: `new = set | old & keep`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bits<T> {
    set: T,
    keep: T,
}

/// One step of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Op {
    Output(PortNo),
    Userspace(Box<ToUser>),
    SetEth(Bits<[u8; 12]>),
    SetIpv4(Bits<l3::Ipv4>),
    SetIpv6(Box<Bits<l3::Ipv6>>),
    SetArp(Box<Bits<[u8; l3::ARP_EDIT]>>),
    SetNsh(Box<Bits<l2::Nsh>>),
    SetMpls(Bits<u32>),
    SetPorts(l4::Transport, Bits<[u8; 4]>),
    SetIcmp(l4::Icmp, Bits<[u8; 2]>),
    SetNd(Box<Bits<l4::Nd>>),
    SetPriority(Bits<u32>),
    SetMark(Bits<u32>),
    SetTunnel(Box<Key>),
    PushVlan {
        tpid: u16,
        tci: u16,
    },
    PopVlan,
    PushMpls {
        lse: u32,
        eth_type: u16,
    },
    AddMplsL2 {
        lse: u32,
        eth_type: u16,
    },
    PopMpls {
        eth_type: u16,
    },
    PushEth {
        dst_src: [u8; 12],
    },
    PopEth,
    /// The header as bytes; the next protocol is filled in at run time.
    PushNsh(Box<[u8]>),
    PopNsh,
    PushVxlan(Box<VxlanHeader>),
    DecTtl(Box<Block>),
    Trunc(u32),
    /// `edited`: headers may have changed since the key was extracted.
    Hash {
        alg: HashAlg,
        basis: u32,
        edited: bool,
    },
    Recirc {
        id: u32,
        edited: bool,
    },
    Sample {
        probability: u32,
        block: Box<Block>,
    },
    Clone(Box<Block>),
    CheckPktLen(Box<CheckPktLen>),
    Drop(u32),
    Meter(u32),
    Psample(Box<Psample>),
}

const _: () = assert!(size_of::<Op>() <= 32);

#[derive(Debug, Clone, PartialEq, Eq)]
struct CheckPktLen {
    longer_than: usize,
    greater: Block,
    less_or_equal: Block,
}

/// A userspace action.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ToUser {
    userspace: Userspace,
    /// All of the flow's actions, if it asks for them.
    actions: Option<Box<[Action]>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Psample {
    group: u32,
    cookie: Vec<u8>,
}

/// A packet for the user, asked for by an action. A miss is the datapath's own upcall.
#[derive(Debug, Clone, Copy)]
pub struct ActionUpcall<'a> {
    /// The key with which the packet came to this flow, whatever actions changed since (U11), but that it says whether `packet` begins
    /// with an Ethernet header.
    pub key: &'a Key,
    /// The action's arguments.
    pub userspace: &'a Userspace,
    /// All of the flow's actions, if the action asks for them.
    pub actions: Option<&'a [Action]>,
    /// The packet as earlier actions left it (U11), cut by a trunc action.
    pub packet: &'a [u8],
    /// Length before the cut.
    pub original_len: usize,
    /// The packet's five-tuple hash, if it was taken.
    pub hash: Option<u32>,
    /// The tunnel in which it would leave, in `tun_*` fields: what a set(tunnel) action before set.
    pub egress_tunnel: Option<&'a Key>,
}

/// A packet for a psample group.
#[derive(Debug, Clone, Copy)]
pub struct PsampleRecord<'a> {
    /// Group.
    pub group: u32,
    /// The flow's cookie, at most 16 bytes.
    pub cookie: &'a [u8],
    /// Probability of the sample action around it, in units of `1 / u32::MAX`; `u32::MAX` without one.
    pub probability: u32,
    /// The packet's bytes, cut by a trunc action. Of a packet on which something is left to do, as they are.
    pub packet: &'a [u8],
    /// Length before the cut.
    pub original_len: usize,
}

/// Why actions ended a packet's way without sending it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// The flow has no actions.
    NoActions,
    /// A drop action, with its reason.
    Explicit(u32),
    /// pop_nsh on a header that is cut off or announces a next protocol that is none of Ethernet, IPv4, IPv6 and NSH.
    PopNsh,
    /// push_nsh on a packet that NSH has no next-protocol number for.
    PushNsh,
    /// tnl_push on a packet that no IPv4 packet has room for, or that is no Ethernet frame.
    PushTunnel,
    /// The TTL expired and the exception list is empty.
    TtlExpired,
    /// A band of this meter was exceeded.
    Meter(u32),
}

/// Where a program's results go. Implemented by the datapath; [`execute`] is generic over it, so nothing is dispatched at
/// run time.
pub trait Sink {
    /// Sends `packet` to `port`. Called in the order of the actions.
    fn output(&mut self, port: PortNo, packet: &[u8]);

    /// As [`Sink::output`], a packet of which more is to be told than its bytes. By default nothing else is told, and what is left to do
    /// on it is done in software.
    #[cold]
    fn output_with(&mut self, port: PortNo, packet: Outgoing<'_>) {
        packet.finish(|whole| self.output(port, whole));
    }

    /// Hands a packet to the user. Packets on which something is left to do come finished, segment by segment.
    fn upcall(&mut self, upcall: ActionUpcall<'_>);

    /// Looks `packet` up again with the recirculation ID in its metadata. The packet is the sink's to change: afterwards
    /// nobody looks at its contents, and another packet may be swapped in. `ctx` is the context of the caller, for
    /// executing the next flow at once.
    fn recirc(&mut self, ctx: &mut Context, packet: &mut Packet);

    /// Asks a meter about a packet of this many bytes: true if a band of it is exceeded. A meter that there is not drops nothing.
    fn meter(&mut self, id: u32, bytes: usize) -> bool {
        let _ = (id, bytes);
        false
    }

    /// Records a packet sample. Dropped by default.
    fn psample(&mut self, record: PsampleRecord<'_>) {
        let _ = record;
    }

    /// Counts a drop.
    fn dropped(&mut self, reason: DropReason);
}

/// What a thread needs to execute programs: spare packets for copies, and the source of chance for sample actions.
#[derive(Debug)]
pub struct Context {
    /// Copies in use are taken off and put back, so their number is the deepest nesting seen.
    spare: Vec<Packet>,
    random: u64,
}

impl Context {
    /// With a seed for the sample action's decisions.
    pub fn new(seed: u64) -> Self {
        Self { spare: Vec::new(), random: seed }
    }

    /// Starts the sequence of decisions anew, so that a run can be replayed from any packet.
    pub fn reseed(&mut self, seed: u64) {
        self.random = seed;
    }

    /// The next 32 bits of SplitMix64 (Steele, Lea and Flood, 2014): sampling needs speed and reproducibility, not secrecy.
    fn next_u32(&mut self) -> u32 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 32) as u32
    }

    /// A copy of `packet` in a spare buffer; give it back with [`Context::release`].
    fn copy_of(&mut self, packet: &Packet) -> Packet {
        let mut copy = self.spare.pop().unwrap_or_default();
        copy.copy_from(packet);
        copy
    }

    fn release(&mut self, packet: Packet) {
        self.spare.push(packet);
    }
}
