//! Actions, to text.

use super::key_print::{Hex, Lse, MacText, print_hex, print_tci};
use super::{PortNames, cookie, ct, nsh, set};
use crate::action::HashAlg;
use crate::key::eth_type;
use crate::{Action, PortNo};
use std::fmt::{self, Display, Write};

/// A list of actions as Open vSwitch prints it; `drop` if there are none.
#[derive(Clone, Copy)]
pub struct ActionsText<'a> {
    /// What to print.
    pub actions: &'a [Action],
    /// Names instead of port numbers.
    pub names: Option<&'a dyn PortNames>,
}

impl fmt::Debug for ActionsText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.actions.fmt(f)
    }
}

impl Display for ActionsText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print_list(f, self.actions, self.names)
    }
}

/// One action, with port numbers.
impl Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(f, self, None)
    }
}

/// A port's name if it has one, else its number.
pub(super) fn port_text(w: &mut dyn Write, port: PortNo, names: Option<&dyn PortNames>) -> fmt::Result {
    match names.and_then(|n| n.name(port)) {
        Some(name) => w.write_str(name),
        None => write!(w, "{}", port.0),
    }
}

fn print_list(w: &mut dyn Write, actions: &[Action], names: Option<&dyn PortNames>) -> fmt::Result {
    if actions.is_empty() {
        return w.write_str("drop");
    }
    for (i, action) in actions.iter().enumerate() {
        if i > 0 {
            w.write_char(',')?;
        }
        print(w, action, names)?;
    }
    Ok(())
}

fn print(w: &mut dyn Write, action: &Action, names: Option<&dyn PortNames>) -> fmt::Result {
    let nested = |w: &mut dyn Write, open: &str, actions: &[Action], close: &str| {
        w.write_str(open)?;
        print_list(w, actions, names)?;
        w.write_str(close)
    };
    match action {
        Action::Output(port) => port_text(w, *port, names),
        Action::Userspace(args) => cookie::print_userspace(w, args, names),
        Action::Set(header) => set::print(w, header, None),
        Action::SetMasked { value, mask } => set::print(w, value, Some(mask)),
        Action::PushVlan { tpid, tci } => {
            w.write_str("push_vlan(")?;
            if *tpid != eth_type::VLAN {
                write!(w, "tpid=0x{tpid:04x},")?;
            }
            print_tci(w, *tci, u16::MAX, false)?;
            w.write_char(')')
        }
        Action::PopVlan => w.write_str("pop_vlan"),
        Action::Sample { probability, actions } => {
            let percent = 100.0 * f64::from(*probability) / f64::from(u32::MAX);
            write!(w, "sample(sample={percent:.1}%,")?;
            nested(w, "actions(", actions, "))")
        }
        Action::Recirc(id) => write!(w, "recirc({})", Hex(*id)),
        Action::Hash { alg: HashAlg::L4, basis } => write!(w, "hash(l4({basis}))"),
        Action::Hash { alg: HashAlg::SymL4, basis } => write!(w, "hash(sym_l4({basis}))"),
        Action::PushMpls { lse, eth_type } => {
            w.write_str("push_mpls(")?;
            Lse(*lse).print(w)?;
            write!(w, ",eth_type=0x{eth_type:x})")
        }
        Action::PopMpls { eth_type } => write!(w, "pop_mpls(eth_type=0x{eth_type:x})"),
        Action::Ct(args) => ct::print(w, args),
        Action::Trunc { max_len } => write!(w, "trunc({max_len})"),
        Action::PushEth { src, dst } => write!(w, "push_eth(src={},dst={})", MacText(*src), MacText(*dst)),
        Action::PopEth => w.write_str("pop_eth"),
        Action::CtClear => w.write_str("ct_clear"),
        Action::PushNsh(header) => nsh::print_push(w, header),
        Action::PopNsh => w.write_str("pop_nsh()"),
        Action::Meter(id) => write!(w, "meter({id})"),
        Action::Clone(actions) => nested(w, "clone(", actions, ")"),
        Action::CheckPktLen { pkt_len, greater, less_or_equal } => {
            write!(w, "check_pkt_len(size={pkt_len},")?;
            nested(w, "gt(", greater, "),")?;
            nested(w, "le(", less_or_equal, "))")
        }
        Action::AddMpls { lse, eth_type, l3: _ } => {
            w.write_str("add_mpls(")?;
            Lse(*lse).print(w)?;
            write!(w, ",eth_type=0x{eth_type:x})")
        }
        Action::DecTtl { exception } => nested(w, "dec_ttl(le_1(", exception, "))"),
        Action::Drop(_) => w.write_str("drop"),
        Action::Psample { group, cookie } => {
            write!(w, "psample(group={group}")?;
            if !cookie.is_empty() {
                w.write_str(",cookie=")?;
                print_hex(w, cookie)?;
            }
            w.write_char(')')
        }
        Action::TnlPush(push) => {
            w.write_str("tnl_push(tnl_port(")?;
            port_text(w, push.tnl_port, names)?;
            write!(w, "),header({}),out_port(", push.header)?;
            port_text(w, push.out_port, names)?;
            w.write_str("))")
        }
        Action::TnlPop(port) => {
            w.write_str("tnl_pop(")?;
            port_text(w, *port, names)?;
            w.write_char(')')
        }
        Action::LbOutput(id) => write!(w, "lb_output({id})"),
    }
}
