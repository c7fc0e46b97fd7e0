//! Ordered variables, as `ARG` and `ENV` build them up.
//!
//! Owns [`Variables`], a list of names and values in which setting a name again moves it to the end:
//! the order in which the reference writes environments. Must not know where values come from.

use std::collections::BTreeMap;

/// Something variables can be looked up in.
pub trait Lookup {
    /// The value of `name`, `None` where it is not set.
    fn value(&self, name: &str) -> Option<&str>;
}

/// Names and values in the order they were last set.
#[derive(Clone, Debug, Default)]
pub struct Variables {
    /// In order; a variable that was set again or removed leaves a gap.
    entries: Vec<Option<(String, String)>>,
    /// Where in `entries` a name stands. Invariant: exactly the entries that are no gaps.
    places: BTreeMap<String, usize>,
}

impl Variables {
    /// Reads `NAME=value` entries as an image config holds them; later ones win.
    pub fn from_entries<I: IntoIterator<Item: AsRef<str>>>(entries: I) -> Self {
        let mut variables = Self::default();
        for entry in entries {
            let entry = entry.as_ref();
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            variables.set(name, value);
        }
        variables
    }

    /// Sets `name`, moving it to the end.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        let last = self.entries.len();
        let known = match self.places.get_mut(name) {
            Some(place) => self.entries[std::mem::replace(place, last)].take(),
            None => {
                self.places.insert(name.to_owned(), last);
                None
            }
        };
        let name = known.map_or_else(|| name.to_owned(), |(name, _)| name);
        self.entries.push(Some((name, value.into())));
        self.close_gaps();
    }

    /// Removes `name`.
    pub fn unset(&mut self, name: &str) {
        let Some(place) = self.places.remove(name) else { return };
        self.entries[place] = None;
        self.close_gaps();
    }

    /// Gaps never outnumber what is set by much.
    fn close_gaps(&mut self) {
        if self.entries.len() > 2 * self.places.len() + 16 {
            self.entries.retain(Option::is_some);
            for (place, (name, _)) in self.entries.iter().flatten().enumerate() {
                if let Some(known) = self.places.get_mut(name) {
                    *known = place;
                }
            }
        }
    }

    /// All variables in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().flatten().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// All names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(name, _)| name)
    }
}

impl PartialEq for Variables {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Variables {}

impl Lookup for Variables {
    fn value(&self, name: &str) -> Option<&str> {
        let entry = self.entries.get(*self.places.get(name)?)?.as_ref();
        entry.map(|(_, value)| value.as_str())
    }
}

/// No variables at all.
impl Lookup for () {
    fn value(&self, _name: &str) -> Option<&str> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_again_moves_to_the_end() {
        let mut variables = Variables::from_entries(["A=1", "B=2=3", "C"]);
        variables.set("A", "4");
        let entries: Vec<_> = variables.iter().collect();
        assert_eq!(entries, [("B", "2=3"), ("C", ""), ("A", "4")]);
        variables.unset("B");
        assert_eq!(variables.value("B"), None);
        assert_eq!(variables.value("C"), Some(""));
    }

    #[test]
    fn gaps_do_not_show() {
        let mut variables = Variables::from_entries(["A=0", "B=0"]);
        for round in 0..100 {
            variables.set("A", round.to_string());
            variables.set("B", round.to_string());
        }
        assert!(variables.entries.len() < 30, "{}", variables.entries.len());
        assert_eq!(variables, Variables::from_entries(["A=99", "B=99"]));
        assert_eq!(variables.value("B"), Some("99"));
        assert_ne!(variables, Variables::from_entries(["B=99", "A=99"]));
    }
}
