//! What a token is to allow (distribution token specification, "scope"): a canonical set. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Resources and the actions wanted on each. Two equal sets have one text, which tokens are cached under.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ScopeSet(BTreeMap<String, BTreeSet<String>>);

impl ScopeSet {
    pub(crate) fn pull(repository: &str) -> Self {
        Self::default().with(&format!("repository:{repository}"), "pull")
    }

    pub(crate) fn push(repository: &str) -> Self {
        Self::default().with(&format!("repository:{repository}"), "pull,push")
    }

    /// Also reading from another repository, which a mount does.
    pub(crate) fn and_pull(self, repository: &str) -> Self {
        self.with(&format!("repository:{repository}"), "pull")
    }

    fn with(mut self, resource: &str, actions: &str) -> Self {
        let wanted = actions.split(',').filter(|action| !action.is_empty()).map(str::to_owned);
        self.0.entry(resource.to_owned()).or_default().extend(wanted);
        self
    }

    /// Adds the scopes a challenge names: a registry may want more than the protocol says.
    pub(crate) fn union(self, challenge: &str) -> Self {
        challenge
            .split(' ')
            .filter_map(|scope| scope.rsplit_once(':'))
            .fold(self, |all, (resource, actions)| all.with(resource, actions))
    }

    /// Each scope as one text, `type:name:actions`.
    pub(crate) fn texts(&self) -> impl Iterator<Item = String> + '_ {
        self.0.iter().map(|(resource, actions)| {
            let actions: Vec<&str> = actions.iter().map(String::as_str).collect();
            format!("{resource}:{}", actions.join(","))
        })
    }
}

impl fmt::Display for ScopeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.texts().collect::<Vec<_>>().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_sets_have_one_text() {
        let set =
            ScopeSet::push("a/b").and_pull("base").union("repository:a/b:push,pull registry:catalog:* junk");
        assert_eq!(set.to_string(), "registry:catalog:* repository:a/b:pull,push repository:base:pull");
        assert_eq!(ScopeSet::pull("x").union("repository:x:pull"), ScopeSet::pull("x"));
        assert_eq!(ScopeSet::default().to_string(), "");
    }
}
