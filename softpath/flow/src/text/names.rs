//! Names of ports, for dumps made with `--names`.

use crate::PortNo;
use std::collections::HashMap;

/// Looks up ports by name and by number.
pub trait PortNames {
    /// The port called `name`.
    fn number(&self, name: &str) -> Option<PortNo>;
    /// The name of a port.
    fn name(&self, number: PortNo) -> Option<&str>;
}

/// No port has a name.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoNames;

impl PortNames for NoNames {
    fn number(&self, _: &str) -> Option<PortNo> {
        None
    }

    fn name(&self, _: PortNo) -> Option<&str> {
        None
    }
}

/// A table of port names. Of several names for a number, the first is printed.
#[derive(Debug, Clone, Default)]
pub struct PortMap {
    by_name: HashMap<String, PortNo>,
    by_number: HashMap<PortNo, String>,
}

impl PortMap {
    /// Adds a port. A name that is known already keeps its number, and `false` comes back.
    pub fn insert(&mut self, name: &str, number: PortNo) -> bool {
        if self.by_name.contains_key(name) {
            return false;
        }
        self.by_name.insert(name.to_owned(), number);
        self.by_number.entry(number).or_insert_with(|| name.to_owned());
        true
    }

    /// Number of names.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// True without any names.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Names and numbers, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, PortNo)> {
        self.by_name.iter().map(|(name, number)| (name.as_str(), *number))
    }
}

impl<S: AsRef<str>> FromIterator<(S, PortNo)> for PortMap {
    fn from_iter<T: IntoIterator<Item = (S, PortNo)>>(ports: T) -> Self {
        let mut map = Self::default();
        for (name, number) in ports {
            map.insert(name.as_ref(), number);
        }
        map
    }
}

impl PortNames for PortMap {
    fn number(&self, name: &str) -> Option<PortNo> {
        self.by_name.get(name).copied()
    }

    fn name(&self, number: PortNo) -> Option<&str> {
        self.by_number.get(&number).map(String::as_str)
    }
}
