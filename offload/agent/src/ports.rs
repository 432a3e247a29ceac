//! Ports of the replay: names, numbers, and which of them are the NIC's.

use crate::failure::Tell;
use anyhow::{Context, Result, anyhow, bail};
use flowlift_flow::PortNo;
use flowlift_flow::text::{PortMap, PortNames};
use std::collections::BTreeMap;

/// Largest number that a datapath port has (`OVS_VPORT` numbers are 16 bits in practice).
const MAX_PORT: u32 = 0xffff;

/// The ports that the user named.
#[derive(Debug, Clone, Default)]
pub struct Ports {
    names: PortMap,
}

impl Ports {
    /// From `name=number` pairs.
    ///
    /// # Errors
    /// A pair that is none, a name that stands twice, a number that no port has.
    pub fn parse<'a>(pairs: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut names = PortMap::default();
        for pair in pairs {
            let (name, number) = pair
                .trim()
                .split_once('=')
                .context("a port without a number")
                .at(format_args!("--ports {pair}"))
                .remedy("expected is NAME=NUMBER, as in p1=1")?;
            let number = parse_number(number).at(format_args!("--ports {pair}"))?;
            if name.is_empty() {
                return Err(anyhow!("the name is empty")).at(format_args!("--ports {pair}"));
            }
            if !names.insert(name, number) {
                return Err(anyhow!("port '{name}' is given twice")).at("--ports");
            }
        }
        Ok(Self { names })
    }

    /// The names, for reading and printing flows.
    pub fn names(&self) -> &PortMap {
        &self.names
    }

    /// A port given by name or number.
    ///
    /// # Errors
    /// Neither a known name nor a number.
    pub fn port(&self, text: &str) -> Result<PortNo> {
        match self.names.number(text) {
            Some(number) => Ok(number),
            None => parse_number(text)
                .with_context(|| format!("unknown port '{text}'"))
                .remedy(format_args!("names are given by --ports {text}=NUMBER")),
        }
    }

    /// Port names by number, for output files and reports.
    pub fn by_number(&self) -> BTreeMap<PortNo, String> {
        let mut ports = BTreeMap::new();
        for (_, number) in self.names.iter() {
            if let Some(name) = self.names.name(number) {
                ports.insert(number, name.to_owned());
            }
        }
        ports
    }
}

fn parse_number(text: &str) -> Result<PortNo> {
    match text.trim().parse::<u32>() {
        Ok(number) if number <= MAX_PORT => Ok(PortNo(number)),
        _ => bail!("'{text}' is not a port number from 0 to {MAX_PORT}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_both_name_a_port() {
        let ports = Ports::parse(["p1=1", "eth0=7"]).unwrap();
        assert_eq!(ports.port("eth0").unwrap(), PortNo(7));
        assert_eq!(ports.port("12").unwrap(), PortNo(12));
        let error = crate::failure::text(&ports.port("p9").unwrap_err());
        assert!(error.contains("unknown port 'p9'") && error.contains("--ports"), "{error}");
    }

    #[test]
    fn bad_pairs_say_what_is_wrong() {
        for (pairs, want) in [
            (vec!["p1"], "NAME=NUMBER"),
            (vec!["p1=x"], "'x' is not a port number"),
            (vec!["p1=70000"], "from 0 to 65535"),
            (vec!["=3"], "name is empty"),
            (vec!["p1=1", "p1=2"], "given twice"),
        ] {
            let error = crate::failure::text(&Ports::parse(pairs.clone()).unwrap_err());
            assert!(error.contains(want), "{pairs:?}: {error}");
        }
    }
}
