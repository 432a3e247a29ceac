//! The tunnel attribute: outer addresses, flags, and the options of Geneve, VXLAN, ERSPAN and GTP-U.

use super::key_print::{Fields, Hex, print_hex};
use super::lexer::{Cursor, Result};
use super::{ErrorKind, flags};
use crate::attrs::tunnel_attr;
use crate::key::{TUN_OPTS_MAX, tun_flags};
use crate::{AttrSet, Key};
use std::fmt::{self, Write};

/// Flags of a key's `tun_flags` by the names of the text form.
const FLAG_BITS: [(u32, u16, u8); 4] = [
    (1, tun_flags::OAM, tunnel_attr::OAM),
    (2, tun_flags::DF, tunnel_attr::DONT_FRAGMENT),
    (4, tun_flags::CSUM, tunnel_attr::CSUM),
    (8, tun_flags::KEY, tunnel_attr::ID),
];
/// Size of a Geneve option's header.
const OPT_HEADER: usize = 4;
/// Most bytes of data in a Geneve option: 31 words.
const OPT_DATA_MAX: u64 = 124;

/// Fields after `tunnel(`, with masks, into the `tun_*` fields.
pub(super) fn parse(c: &mut Cursor<'_>, k: &mut Key, m: &mut Key, attrs: &mut AttrSet) -> Result<()> {
    let mut has_flags = false;
    c.fields("tunnel", |c, name| {
        let attr = match name {
            "tun_id=" => {
                let (v, mask) = c.masked("a 64-bit number", u64::MAX)?;
                (k.tun_id, m.tun_id) = (v.into(), mask.into());
                set(k, tun_flags::KEY);
                set(m, tun_flags::KEY);
                tunnel_attr::ID
            }
            "src=" => {
                let (v, mask) = c.masked_ipv4()?;
                (k.tun_ipv4_src, m.tun_ipv4_src) = (v.into(), mask.into());
                tunnel_attr::IPV4_SRC
            }
            "dst=" => {
                let (v, mask) = c.masked_ipv4()?;
                (k.tun_ipv4_dst, m.tun_ipv4_dst) = (v.into(), mask.into());
                tunnel_attr::IPV4_DST
            }
            "ipv6_src=" => {
                (k.tun_ipv6_src, m.tun_ipv6_src) = c.masked_ipv6()?;
                tunnel_attr::IPV6_SRC
            }
            "ipv6_dst=" => {
                (k.tun_ipv6_dst, m.tun_ipv6_dst) = c.masked_ipv6()?;
                tunnel_attr::IPV6_DST
            }
            "tos=" => {
                (k.tun_tos, m.tun_tos) = c.masked_u8()?;
                tunnel_attr::TOS
            }
            "ttl=" => {
                (k.tun_ttl, m.tun_ttl) = c.masked_u8()?;
                tunnel_attr::TTL
            }
            "tp_src=" => {
                let (v, mask) = c.masked_u16()?;
                (k.tun_tp_src, m.tun_tp_src) = (v.into(), mask.into());
                tunnel_attr::TP_SRC
            }
            "tp_dst=" => {
                let (v, mask) = c.masked_u16()?;
                (k.tun_tp_dst, m.tun_tp_dst) = (v.into(), mask.into());
                tunnel_attr::TP_DST
            }
            "vxlan(" => {
                vxlan(c, k, m)?;
                tunnel_attr::VXLAN_OPTS
            }
            "erspan(" => {
                erspan(c, k, m)?;
                tunnel_attr::ERSPAN_OPTS
            }
            "gtpu(" => {
                gtpu(c, k, m)?;
                tunnel_attr::GTPU_OPTS
            }
            "geneve(" => {
                geneve(c, k, m)?;
                tunnel_attr::GENEVE_OPTS
            }
            "flags(" => {
                has_flags = true;
                parse_flags(c, k, m, attrs)?;
                return Ok(Some(31));
            }
            _ => return Ok(None),
        };
        attrs.insert_tunnel(attr);
        Ok(Some(attr))
    })
}

fn set(k: &mut Key, flag: u16) {
    k.tun_flags = (k.tun_flags.get() | flag).into();
}

fn parse_flags(c: &mut Cursor<'_>, k: &mut Key, m: &mut Key, attrs: &mut AttrSet) -> Result<()> {
    // `flags()` is what OVS prints when no flag is in the mask and it is not verbose.
    let (value, mask) =
        if c.peek() == Some(b')') { (0, 0) } else { flags::TUNNEL.parse_masked(c, u32::MAX)? };
    c.expect(b')', "')' after the flags")?;
    for (bit, flag, attr) in FLAG_BITS {
        if value & bit != 0 {
            set(k, flag);
            if flag != tun_flags::KEY {
                attrs.insert_tunnel(attr);
            }
        }
        if mask & bit != 0 {
            set(m, flag);
        }
    }
    Ok(())
}

fn vxlan(c: &mut Cursor<'_>, k: &mut Key, m: &mut Key) -> Result<()> {
    set(k, tun_flags::GBP);
    c.fields("vxlan", |c, name| {
        if name != "gbp(" {
            return Ok(None);
        }
        c.fields("gbp", |c, name| {
            Ok(Some(match name {
                "id=" => {
                    let (v, mask) = c.masked_u16()?;
                    (k.tun_gbp_id, m.tun_gbp_id) = (v.into(), mask.into());
                    0
                }
                "flags=" => {
                    (k.tun_gbp_flags, m.tun_gbp_flags) = c.masked_u8()?;
                    1
                }
                _ => return Ok(None),
            }))
        })?;
        Ok(Some(0))
    })?;
    if m.tun_gbp_id.get() != 0 || m.tun_gbp_flags != 0 {
        set(m, tun_flags::GBP);
    }
    Ok(())
}

fn erspan(c: &mut Cursor<'_>, k: &mut Key, m: &mut Key) -> Result<()> {
    set(k, tun_flags::ERSPAN);
    let from = c.pos();
    // A version that is not matched does not show, but its fields do.
    let (mut first, mut second) = (false, false);
    c.fields("erspan", |c, name| {
        first |= name == "idx=";
        second |= matches!(name, "dir=" | "hwid=");
        Ok(Some(match name {
            "ver=" => {
                (k.tun_erspan_ver, m.tun_erspan_ver) = c.masked_u8()?;
                0
            }
            "idx=" => {
                let (v, mask) = c.masked_u32()?;
                (k.tun_erspan_idx, m.tun_erspan_idx) = (v.into(), mask.into());
                1
            }
            "dir=" => {
                (k.tun_erspan_dir, m.tun_erspan_dir) = c.masked_u8()?;
                2
            }
            "hwid=" => {
                (k.tun_erspan_hwid, m.tun_erspan_hwid) = c.masked_u8()?;
                3
            }
            _ => return Ok(None),
        }))
    })?;
    match (k.tun_erspan_ver, first, second) {
        (_, false, false) | (1, true, false) | (2, false, true) => {}
        (0, true, false) => k.tun_erspan_ver = 1,
        (0, false, true) => k.tun_erspan_ver = 2,
        _ => return Err(c.error_at(from, ErrorKind::Expected("fields of one ERSPAN version"))),
    }
    if m.tun_erspan_ver | m.tun_erspan_dir | m.tun_erspan_hwid != 0 || m.tun_erspan_idx.get() != 0 {
        set(m, tun_flags::ERSPAN);
    }
    Ok(())
}

fn gtpu(c: &mut Cursor<'_>, k: &mut Key, m: &mut Key) -> Result<()> {
    set(k, tun_flags::GTPU);
    c.fields("gtpu", |c, name| {
        Ok(Some(match name {
            "flags=" => {
                (k.tun_gtpu_flags, m.tun_gtpu_flags) = c.masked_u8()?;
                0
            }
            "msgtype=" => {
                (k.tun_gtpu_msgtype, m.tun_gtpu_msgtype) = c.masked_u8()?;
                1
            }
            _ => return Ok(None),
        }))
    })?;
    if m.tun_gtpu_flags | m.tun_gtpu_msgtype != 0 {
        set(m, tun_flags::GTPU);
    }
    Ok(())
}

/// Options one after another: `{class=0x102,type=0x80,len=4,0xa}{...}`. The length's mask counts words when it is not
/// full, as OVS prints it.
fn geneve(c: &mut Cursor<'_>, k: &mut Key, m: &mut Key) -> Result<()> {
    set(k, tun_flags::GENEVE);
    let mut used = 0;
    while c.eat(b'{') {
        let from = c.pos();
        let too_long = |c: &Cursor<'_>| {
            c.error_at(from, ErrorKind::TooLong { what: "tunnel options", max: TUN_OPTS_MAX })
        };
        if used + OPT_HEADER > TUN_OPTS_MAX {
            return Err(too_long(c));
        }
        let (header, mask) = (&mut k.tun_opts[used..], &mut m.tun_opts[used..]);
        let mut data = 0;
        let mut seen = [false; 3];
        while !c.rest().starts_with(b"0") && c.peek() != Some(b'}') {
            let at = c.pos();
            let index = match c.field_name()? {
                "class=" => {
                    let (v, m) = c.masked_u16()?;
                    header[..2].copy_from_slice(&v.to_be_bytes());
                    mask[..2].copy_from_slice(&m.to_be_bytes());
                    0
                }
                "type=" => {
                    (header[2], mask[2]) = c.masked_u8()?;
                    1
                }
                "len=" => {
                    let len = c.number("an option length", OPT_DATA_MAX)?;
                    if len % 4 != 0 {
                        return Err(
                            c.error_at(at, ErrorKind::Expected("an option length that is a multiple of 4"))
                        );
                    }
                    data = len as usize;
                    header[3] = (data / 4) as u8;
                    mask[3] = 0x1f;
                    if c.eat(b'/') {
                        mask[3] = match c.u8()? {
                            u8::MAX => 0x1f,
                            words if words < 0x1f => words,
                            _ => {
                                return Err(c.error_at(
                                    at,
                                    ErrorKind::ImpossibleMask("an option's length has 5 bits"),
                                ));
                            }
                        };
                    }
                    2
                }
                name => {
                    let name = name.trim_end_matches(['=', '(']).to_owned();
                    return Err(c.error_at(at, ErrorKind::UnknownField { within: "geneve", name }));
                }
            };
            if std::mem::replace(&mut seen[index], true) {
                let name = ["class", "type", "len"][index].to_owned();
                return Err(c.error_at(at, ErrorKind::DuplicateField { within: "geneve", name }));
            }
            if !c.eat(b',') {
                break;
            }
        }
        let end = used + OPT_HEADER + data;
        if end > TUN_OPTS_MAX {
            return Err(too_long(c));
        }
        if c.peek() != Some(b'}') {
            let body = used + OPT_HEADER;
            if data == 0 {
                return Err(c.expected("'}', since the option has no data"));
            }
            c.big_number(&mut k.tun_opts[body..end])?;
            m.tun_opts[body..end].fill(0xff);
            if c.eat(b'/') {
                c.big_number(&mut m.tun_opts[body..end])?;
            }
        }
        c.expect(b'}', "'}' after the option")?;
        used = end;
    }
    c.expect(b')', "'{' or ')'")?;
    k.tun_opts_len = used as u8;
    if used == 0 || m.tun_opts[..used].iter().any(|b| *b != 0) {
        m.tun_opts_len = u8::MAX;
        set(m, tun_flags::GENEVE);
    }
    Ok(())
}

/// The attribute's content; `attrs` says which fields the key has. `masked` is false for a text that has no masks at
/// all, in which even ERSPAN's index stands alone.
pub(super) fn print(
    w: &mut dyn Write,
    k: &Key,
    m: &Key,
    attrs: &AttrSet,
    verbose: bool,
    masked: bool,
) -> fmt::Result {
    let mut f = Fields::new(w, verbose);
    let has = |attr| attrs.has_tunnel(attr);
    if has(tunnel_attr::ID) {
        f.u64x("tun_id", k.tun_id.get(), m.tun_id.get())?;
    }
    if has(tunnel_attr::IPV4_SRC) {
        f.ipv4("src", k.tun_ipv4_src.get(), m.tun_ipv4_src.get())?;
    }
    if has(tunnel_attr::IPV4_DST) {
        f.ipv4("dst", k.tun_ipv4_dst.get(), m.tun_ipv4_dst.get())?;
    }
    if has(tunnel_attr::IPV6_SRC) {
        f.ipv6("ipv6_src", &k.tun_ipv6_src, &m.tun_ipv6_src)?;
    }
    if has(tunnel_attr::IPV6_DST) {
        f.ipv6("ipv6_dst", &k.tun_ipv6_dst, &m.tun_ipv6_dst)?;
    }
    if has(tunnel_attr::TOS) {
        f.u8x("tos", k.tun_tos, m.tun_tos)?;
    }
    if has(tunnel_attr::TTL) {
        f.u8("ttl", k.tun_ttl, m.tun_ttl)?;
    }
    if has(tunnel_attr::TP_SRC) {
        f.u16("tp_src", k.tun_tp_src.get(), m.tun_tp_src.get())?;
    }
    if has(tunnel_attr::TP_DST) {
        f.u16("tp_dst", k.tun_tp_dst.get(), m.tun_tp_dst.get())?;
    }
    if has(tunnel_attr::VXLAN_OPTS) {
        f.group("vxlan(gbp(", "))", |f| {
            f.u16("id", k.tun_gbp_id.get(), m.tun_gbp_id.get())?;
            f.u8x("flags", k.tun_gbp_flags, m.tun_gbp_flags)
        })?;
    }
    if has(tunnel_attr::GENEVE_OPTS) {
        f.group("geneve(", ")", |f| print_geneve(f, k, m, verbose))?;
    }
    if has(tunnel_attr::ERSPAN_OPTS) {
        f.group("erspan(", ")", |f| {
            f.u8("ver", k.tun_erspan_ver, m.tun_erspan_ver)?;
            match k.tun_erspan_ver {
                1 if masked => {
                    f.name("idx")?;
                    write!(f.writer(), "{}/{}", Hex(k.tun_erspan_idx.get()), Hex(m.tun_erspan_idx.get()))
                }
                1 => f.u32x("idx", k.tun_erspan_idx.get(), u32::MAX),
                2 => {
                    f.u8("dir", k.tun_erspan_dir, m.tun_erspan_dir)?;
                    f.u8x("hwid", k.tun_erspan_hwid, m.tun_erspan_hwid)
                }
                _ => Ok(()),
            }
        })?;
    }
    if has(tunnel_attr::GTPU_OPTS) {
        f.group("gtpu(", ")", |f| {
            f.u8x("flags", k.tun_gtpu_flags, m.tun_gtpu_flags)?;
            f.u8("msgtype", k.tun_gtpu_msgtype, m.tun_gtpu_msgtype)
        })?;
    }
    let mut values = 0;
    let mut masks = 0;
    for (bit, flag, _) in FLAG_BITS {
        values |= if k.tun_flags.get() & flag != 0 { bit } else { 0 };
        masks |= if m.tun_flags.get() & flag != 0 { bit } else { 0 };
    }
    if verbose || masks != 0 {
        f.group("flags(", ")", |f| {
            flags::TUNNEL.print_masked(f.writer(), values, masks, flags::TUNNEL.allowed)
        })?;
    }
    Ok(())
}

fn print_geneve(f: &mut Fields<'_>, k: &Key, m: &Key, verbose: bool) -> fmt::Result {
    let len = usize::from(k.tun_opts_len);
    let (mut opts, mut masks) = (&k.tun_opts[..len], &m.tun_opts[..len]);
    while let (Some((h, rest)), Some((hm, mask_rest))) =
        (opts.split_first_chunk::<OPT_HEADER>(), masks.split_first_chunk::<OPT_HEADER>())
    {
        let data = usize::from(h[3] & 0x1f) * 4;
        let Some((body, next)) = rest.split_at_checked(data) else { return Ok(()) };
        let (body_mask, next_mask) = mask_rest.split_at(data);
        let len_mask = if hm[3] & 0x1f == 0x1f { u8::MAX } else { hm[3] & 0x1f };
        let w = f.writer();
        w.write_char('{')?;
        let mut inner = Fields::new(w, verbose);
        inner.u16x("class", u16::from_be_bytes([h[0], h[1]]), u16::from_be_bytes([hm[0], hm[1]]))?;
        inner.u8x("type", h[2], hm[2])?;
        inner.u8("len", data as u8, len_mask)?;
        if !body.is_empty() && (verbose || body_mask.iter().any(|b| *b != 0)) {
            inner.separate()?;
            let w = inner.writer();
            print_hex(w, body)?;
            if body_mask.iter().any(|b| *b != 0xff) {
                w.write_char('/')?;
                print_hex(w, body_mask)?;
            }
        }
        f.writer().write_char('}')?;
        (opts, masks) = (next, next_mask);
    }
    Ok(())
}
