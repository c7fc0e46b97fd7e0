//! Ordered variables, as `ARG` and `ENV` build them up.
//!
//! Owns [`Variables`], a list of names and values in which setting a name again moves it to the end:
//! the order in which the reference writes environments. Must not know where values come from.

/// Something variables can be looked up in.
pub trait Lookup {
    /// The value of `name`, `None` where it is not set.
    fn value(&self, name: &str) -> Option<&str>;
}

/// Names and values in the order they were last set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variables {
    entries: Vec<(String, String)>,
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
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let name = name.into();
        self.unset(&name);
        self.entries.push((name, value.into()));
    }

    /// Removes `name`.
    pub fn unset(&mut self, name: &str) {
        self.entries.retain(|(known, _)| known != name);
    }

    /// All variables in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// All names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(name, _)| name.as_str())
    }
}

impl Lookup for Variables {
    fn value(&self, name: &str) -> Option<&str> {
        self.entries.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
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
}
