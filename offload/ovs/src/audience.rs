//! Whether anybody is in the group that hears of changed flows.
//!
//! Usually nobody is, and a multicast to nobody costs a storm of new flows as much as an upcall. The kernel tells its own
//! modules whether a group has members, and others by `/proc/net/netlink`; reading that costs as much as some multicasts. So
//! in quiet times each is sent, and after [`MANY`] within [`WINDOW`] the kernel is asked: if there is no member, nothing is
//! sent until the window has passed, and then the kernel is asked again as long as the storm lasts. A program that joins in a
//! storm hears of flows within that time.

use crate::uapi::FLOW;
use std::fs;
use std::time::{Duration, Instant};

/// How long an answer of the kernel's is good for.
const WINDOW: Duration = Duration::from_millis(50);
/// Multicasts within a window that cost more than a look.
const MANY: u32 = 256;
/// `NETLINK_GENERIC`.
const GENERIC: u32 = 16;

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Audience {
    since: Instant,
    sent: u32,
    nobody: bool,
}

impl Audience {
    pub(crate) fn new(now: Instant) -> Self {
        Self { since: now, sent: 0, nobody: false }
    }

    /// False if the group has no member.
    pub(crate) fn is_there(&mut self, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.since);
        if age >= WINDOW {
            // Still a storm, if the kernel's last answer has been asked for until now.
            let sent = if self.nobody && age < 2 * WINDOW { MANY } else { 0 };
            *self = Self { sent, ..Self::new(now) };
        }
        if self.sent >= MANY {
            self.sent = 0;
            self.nobody = fs::read_to_string("/proc/net/netlink").is_ok_and(|sockets| !has_member(&sockets));
        }
        !self.nobody
    }

    /// A multicast to the group was sent.
    pub(crate) fn was_told(&mut self) {
        self.sent += 1;
    }
}

/// True if one of the sockets that the kernel lists is in the group: the second column is its protocol, the fourth has its groups
/// as bits.
fn has_member(sockets: &str) -> bool {
    let bit = FLOW.group.map_or(0, |group| 1u32.checked_shl(u32::from(group.0) - 1).unwrap_or(0));
    sockets.lines().skip(1).any(|line| {
        let mut columns = line.split_ascii_whitespace().skip(1);
        let (protocol, groups) = (columns.next(), columns.nth(1));
        let groups = groups.and_then(|groups| u32::from_str_radix(groups, 16).ok());
        protocol.and_then(|n| n.parse().ok()) == Some(GENERIC)
            && groups.is_none_or(|groups| groups & bit != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_told_to_nobody_where_nobody_listens() {
        // No other program has a socket of this group in the tests' namespace.
        let start = Instant::now();
        let mut audience = Audience::new(start);
        let mut tell = |at: Duration| {
            let there = audience.is_there(start + at);
            if there {
                audience.was_told();
            }
            there
        };
        let told = (0..1000).filter(|_| tell(Duration::ZERO)).count();
        assert_eq!(told, MANY as usize);
        assert!(!tell(WINDOW), "nobody has come");
        assert!(tell(3 * WINDOW), "the storm is over");
        assert!((0..1000).all(|n| tell(WINDOW * (n + 400) / 100)), "not that many at a time");
    }

    #[test]
    fn members_are_found_by_protocol_and_group() {
        let list = |eth: u32, groups: u32| {
            format!(
                "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n\
                 000000009e6044b3 0   0          ffffffff 0        0        0     2        0        4\n\
                 000000003197fd47 {eth:<3} 16777217   {groups:08x} 0        0        0     2        0        1431\n"
            )
        };
        let bit = 1 << (FLOW.group.unwrap().0 - 1);
        assert!(has_member(&list(16, bit)) && has_member(&list(16, u32::MAX)));
        assert!(!has_member(&list(16, !bit)) && !has_member(&list(15, bit)));
        assert!(!has_member(&list(16, 0)) && !has_member(""));
    }
}
