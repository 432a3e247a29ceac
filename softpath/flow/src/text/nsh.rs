//! The network service header: in keys, in set and in push_nsh.

use super::ErrorKind;
use super::lexer::{Cursor, Result};
use crate::Key;
use crate::action::NshHeader;
use std::fmt::{self, Write};

/// Metadata types.
const MD_TYPE1: u8 = 1;
const MD_TYPE2: u8 = 2;
/// Next protocol: Ethernet, the default of push_nsh.
const NP_ETHERNET: u8 = 3;
/// Most bytes of context headers.
const CONTEXT_MAX: usize = 248;

/// Fields after `nsh(`, with masks, into the `nsh_*` fields.
pub(super) fn parse_key(c: &mut Cursor<'_>, k: &mut Key, m: &mut Key) -> Result<()> {
    c.fields("nsh", |c, name| {
        let byte = |c: &mut Cursor<'_>, k: &mut u8, m: &mut u8| -> Result<()> {
            (*k, *m) = c.masked_u8()?;
            Ok(())
        };
        Ok(Some(match name {
            "flags=" => byte(c, &mut k.nsh_flags, &mut m.nsh_flags).map(|()| 0)?,
            "ttl=" => byte(c, &mut k.nsh_ttl, &mut m.nsh_ttl).map(|()| 1)?,
            "mdtype=" => byte(c, &mut k.nsh_mdtype, &mut m.nsh_mdtype).map(|()| 2)?,
            "np=" => byte(c, &mut k.nsh_np, &mut m.nsh_np).map(|()| 3)?,
            "spi=" => {
                let (v, mask) = c.masked("a 24-bit service path ID", 0xff_ffff)?;
                k.nsh_path_hdr = (k.nsh_path_hdr.get() & 0xff | (v as u32) << 8).into();
                m.nsh_path_hdr = (m.nsh_path_hdr.get() & 0xff | (mask as u32) << 8).into();
                4
            }
            "si=" => {
                let (v, mask) = c.masked_u8()?;
                k.nsh_path_hdr = (k.nsh_path_hdr.get() & !0xff | u32::from(v)).into();
                m.nsh_path_hdr = (m.nsh_path_hdr.get() & !0xff | u32::from(mask)).into();
                5
            }
            "c1=" | "c2=" | "c3=" | "c4=" => {
                let i = usize::from(name.as_bytes()[1] - b'1');
                let (v, mask) = c.masked_u32()?;
                (k.nsh_context[i], m.nsh_context[i]) = (v.into(), mask.into());
                6 + i as u8
            }
            _ => return Ok(None),
        }))
    })
}

/// Fields with a mask that is not zero, as OVS prints them whether verbose or not.
pub(super) fn print_key(w: &mut dyn Write, k: &Key, m: &Key) -> fmt::Result {
    let mut first = true;
    let mut name = |w: &mut dyn Write, name: &str| -> fmt::Result {
        if !std::mem::take(&mut first) {
            w.write_char(',')?;
        }
        write!(w, "{name}=")
    };
    let (path, path_mask) = (k.nsh_path_hdr.get(), m.nsh_path_hdr.get());
    let byte = |w: &mut dyn Write, v: u8, m: u8| {
        if m == u8::MAX { write!(w, "{v}") } else { write!(w, "0x{v:02x}/0x{m:02x}") }
    };
    let word = |w: &mut dyn Write, v: u32, m: u32, full: u32| {
        if m == full { write!(w, "{v:#x}") } else { write!(w, "{v:#x}/0x{m:08x}") }
    };
    for (what, v, mask) in [
        ("flags", k.nsh_flags, m.nsh_flags),
        ("ttl", k.nsh_ttl, m.nsh_ttl),
        ("mdtype", k.nsh_mdtype, m.nsh_mdtype),
        ("np", k.nsh_np, m.nsh_np),
    ] {
        if mask != 0 {
            name(w, what)?;
            byte(w, v, mask)?;
        }
    }
    if path_mask >> 8 != 0 {
        name(w, "spi")?;
        word(w, path >> 8, path_mask >> 8, 0xff_ffff)?;
    }
    if path_mask as u8 != 0 {
        name(w, "si")?;
        byte(w, path as u8, path_mask as u8)?;
    }
    for (i, what) in ["c1", "c2", "c3", "c4"].into_iter().enumerate() {
        if m.nsh_context[i].get() != 0 {
            name(w, what)?;
            word(w, k.nsh_context[i].get(), m.nsh_context[i].get(), u32::MAX)?;
        }
    }
    Ok(())
}

/// Fields after `push_nsh(`.
pub(super) fn parse_push(c: &mut Cursor<'_>) -> Result<NshHeader> {
    let mut nsh = NshHeader {
        flags: 0,
        ttl: 63,
        mdtype: MD_TYPE1,
        np: NP_ETHERNET,
        path_hdr: 0xff,
        metadata: Vec::new(),
    };
    let mut context = [0; 16];
    let from = c.pos();
    c.fields("push_nsh", |c, name| {
        Ok(Some(match name {
            "flags=" => {
                nsh.flags = c.u8()?;
                0
            }
            "ttl=" => {
                nsh.ttl = c.u8()?;
                1
            }
            "mdtype=" => {
                nsh.mdtype = c.u8()?;
                2
            }
            "np=" => {
                nsh.np = c.u8()?;
                3
            }
            "spi=" => {
                nsh.path_hdr =
                    nsh.path_hdr & 0xff | (c.number("a 24-bit service path ID", 0xff_ffff)? as u32) << 8;
                4
            }
            "si=" => {
                nsh.path_hdr = nsh.path_hdr & !0xff | u32::from(c.u8()?);
                5
            }
            "c1=" | "c2=" | "c3=" | "c4=" => {
                let i = usize::from(name.as_bytes()[1] - b'1');
                context[4 * i..4 * i + 4].copy_from_slice(&c.u32()?.to_be_bytes());
                6 + i as u8
            }
            "md2=" => {
                c.stripped_hex(&mut nsh.metadata, CONTEXT_MAX)?;
                10
            }
            _ => return Ok(None),
        }))
    })?;
    match nsh.mdtype {
        MD_TYPE1 if nsh.metadata.is_empty() => nsh.metadata = context.to_vec(),
        MD_TYPE2 if context == [0; 16] => {
            // OVS prints no leading zeros; the header's length is a multiple of 4.
            let missing = nsh.metadata.len().next_multiple_of(4) - nsh.metadata.len();
            nsh.metadata.splice(0..0, std::iter::repeat_n(0, missing));
        }
        _ => {
            return Err(c.error_at(from, ErrorKind::Expected("mdtype=1 with c1 to c4, or mdtype=2 with md2")));
        }
    }
    Ok(nsh)
}

/// push_nsh's fields.
pub(super) fn print_push(w: &mut dyn Write, nsh: &NshHeader) -> fmt::Result {
    write!(
        w,
        "push_nsh(flags={},ttl={},mdtype={},np={},spi={:#x},si={}",
        nsh.flags,
        nsh.ttl,
        nsh.mdtype,
        nsh.np,
        nsh.path_hdr >> 8,
        nsh.path_hdr as u8
    )?;
    if nsh.mdtype == MD_TYPE1 {
        for (i, word) in nsh.metadata.as_chunks::<4>().0.iter().take(4).enumerate() {
            write!(w, ",c{}={:#x}", i + 1, u32::from_be_bytes(*word))?;
        }
    } else {
        w.write_str(",md2=")?;
        super::key_print::print_hex(w, &nsh.metadata)?;
    }
    w.write_char(')')
}
