//! Descriptors and the numbers in their buffers (the programming guide: "DMA Operations", "Events", "CPU Packet
//! Processing", "OF-DPA Mode"; the types' numbers stand in the device's header, which the guide leaves out).

use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Element of every ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Descriptor {
    /// Device's address of the buffer, a multiple of 8.
    pub(crate) buffer: U64,
    /// The driver's, returned as it was; the uppermost bit is reserved.
    pub(crate) cookie: U64,
    /// Bytes of the buffer.
    pub(crate) size: U16,
    /// Bytes of it that hold fields.
    pub(crate) used: U16,
    pub(crate) reserved: [u8; 10],
    /// [`DONE`], and how it ended.
    pub(crate) status: U16,
}
const _: () = assert!(size_of::<Descriptor>() == DESCRIPTOR);

/// Bytes of a descriptor.
pub(crate) const DESCRIPTOR: usize = 32;
/// Status: the device is done with the descriptor.
pub(crate) const DONE: u16 = 0x8000;

/// How a command ended.
pub(crate) mod status {
    pub(crate) const OK: u16 = 0;
    pub(crate) const NO_ENTRY: u16 = 2;
    pub(crate) const NO_SPACE: u16 = 28;
}

/// Fields of a command.
pub(crate) mod cmd {
    pub(crate) const TYPE: u32 = 1;
    pub(crate) const INFO: u32 = 2;
    /// Values of TYPE.
    pub(crate) const SET_PORT_SETTINGS: u16 = 2;
    pub(crate) const FLOW_ADD: u16 = 3;
    pub(crate) const FLOW_MOD: u16 = 4;
    pub(crate) const FLOW_DEL: u16 = 5;
    pub(crate) const GROUP_ADD: u16 = 7;
    pub(crate) const GROUP_DEL: u16 = 9;
}

/// Fields of port settings.
pub(crate) mod port {
    pub(crate) const PPORT: u32 = 1;
    pub(crate) const MODE: u32 = 6;
    pub(crate) const LEARNING: u32 = 7;
    /// Value of MODE.
    pub(crate) const MODE_OF_DPA: u8 = 0;
}

/// Fields of an event.
pub(crate) mod event {
    pub(crate) const TYPE: u32 = 1;
    pub(crate) const INFO: u32 = 2;
    /// Values of TYPE.
    pub(crate) const LINK_CHANGED: u64 = 1;
    pub(crate) const MAC_VLAN_SEEN: u64 = 2;
    /// Fields of a change of link.
    pub(crate) const PPORT: u32 = 1;
    pub(crate) const LINK_UP: u32 = 2;
}

/// Fields of a received packet.
pub(crate) mod rx {
    pub(crate) const FRAG_ADDR: u32 = 3;
    pub(crate) const FRAG_MAX_LEN: u32 = 4;
    pub(crate) const FRAG_LEN: u32 = 5;
}

/// Fields of a packet to send.
pub(crate) mod tx {
    pub(crate) const FRAGS: u32 = 5;
    pub(crate) const FRAG: u32 = 1;
    pub(crate) const FRAG_ADDR: u32 = 1;
    pub(crate) const FRAG_LEN: u32 = 2;
}

/// Fields of flows and groups.
pub(crate) mod ofdpa {
    pub(crate) const TABLE_ID: u32 = 1;
    pub(crate) const PRIORITY: u32 = 2;
    pub(crate) const HARDTIME: u32 = 3;
    pub(crate) const COOKIE: u32 = 5;
    pub(crate) const IN_PPORT: u32 = 6;
    pub(crate) const IN_PPORT_MASK: u32 = 7;
    pub(crate) const OUT_PPORT: u32 = 8;
    pub(crate) const GOTO_TABLE_ID: u32 = 9;
    pub(crate) const GROUP_ID: u32 = 10;
    pub(crate) const GROUP_ID_LOWER: u32 = 11;
    pub(crate) const GROUP_COUNT: u32 = 12;
    pub(crate) const GROUP_IDS: u32 = 13;
    pub(crate) const VLAN_ID: u32 = 14;
    pub(crate) const VLAN_ID_MASK: u32 = 15;
    pub(crate) const NEW_VLAN_ID: u32 = 19;
    pub(crate) const ETHERTYPE: u32 = 23;
    pub(crate) const DST_MAC: u32 = 24;
    pub(crate) const DST_MAC_MASK: u32 = 25;
    pub(crate) const SRC_MAC: u32 = 26;
    pub(crate) const SRC_MAC_MASK: u32 = 27;
    pub(crate) const POP_VLAN: u32 = 59;
    /// Tables.
    pub(crate) const TABLE_VLAN: u16 = 10;
    pub(crate) const TABLE_TERMINATION_MAC: u16 = 20;
    pub(crate) const TABLE_ACL: u16 = 60;
    /// Types of groups, the upper four bits of a group's ID.
    pub(crate) const L2_INTERFACE: u32 = 0;
    pub(crate) const L2_REWRITE: u32 = 1;
    pub(crate) const L2_FLOOD: u32 = 4;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_laid_out_as_in_the_guide() {
        let d = Descriptor {
            buffer: 0x0102_0304_0506_0708.into(),
            cookie: 0x1112_1314_1516_1718.into(),
            size: 0x2122.into(),
            used: 0x3132.into(),
            reserved: [0; 10],
            status: (DONE | 22).into(),
        };
        let mut want = vec![8, 7, 6, 5, 4, 3, 2, 1, 0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11];
        want.extend([0x22, 0x21, 0x32, 0x31, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 22, 0x80]);
        assert_eq!(d.as_bytes(), want);
    }
}
