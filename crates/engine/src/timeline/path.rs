//! The chain of spans that the end of a build waited for.
//!
//! Pure. From the span that ended last, back to the one it waited for that ended last, and so on: of a vertex
//! that is one of its inputs, however far down when those between came from the cache; of anything else, and of
//! a vertex whose inputs took no time, what had ended last when it began.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use stave_oci::Digest;

use super::{Span, Subject};

/// One span of the path.
#[derive(Debug, Clone, PartialEq)]
pub struct PathEntry {
    /// What was done.
    pub span: Span,
    /// Time between the end of the entry before (or the begin of the build) and the start of this one.
    pub gap: Duration,
}

/// What the end of a build waited for.
#[derive(Debug, Clone, PartialEq)]
pub struct CriticalPath {
    /// In the order of time.
    pub entries: Vec<PathEntry>,
    /// From the end of the last entry to the end of the build.
    pub rest: Duration,
    /// Spans that lie beside the path, and their lengths summed.
    pub beside: (usize, Duration),
}

impl CriticalPath {
    pub(super) fn of(spans: &[Span], inputs: &HashMap<Digest, Vec<Digest>>, total: Duration) -> Self {
        let graph = Graph { spans, inputs };
        let mut chain = Vec::new();
        let mut next = latest(spans.iter());
        while let Some(span) = next {
            // Clocks of several sources may disagree by a little: a chain never comes back to itself.
            if chain.iter().any(|seen: &&Span| seen.subject == span.subject) {
                break;
            }
            chain.push(span);
            next = graph.waited_for(span);
        }
        chain.reverse();
        let mut at = Duration::ZERO;
        let mut entries = Vec::with_capacity(chain.len());
        for span in &chain {
            entries.push(PathEntry { gap: span.start.saturating_sub(at), span: (*span).clone() });
            at = span.end;
        }
        let beside = spans.iter().filter(|span| !chain.iter().any(|seen| seen.subject == span.subject));
        let beside = beside.fold((0, Duration::ZERO), |(count, sum), span| (count + 1, sum + span.length()));
        Self { entries, rest: total.saturating_sub(at), beside }
    }

    /// Time between the steps of the path and after them: what belongs to no step.
    pub fn outside(&self) -> Duration {
        self.entries.iter().map(|entry| entry.gap).sum::<Duration>() + self.rest
    }
}

struct Graph<'a> {
    spans: &'a [Span],
    inputs: &'a HashMap<Digest, Vec<Digest>>,
}

impl<'a> Graph<'a> {
    fn waited_for(&self, span: &Span) -> Option<&'a Span> {
        let below = match &span.subject {
            Subject::Vertex(digest) => latest(self.below(digest).into_iter()),
            Subject::Step(_) => None,
        };
        let before = || {
            let others = self.spans.iter().filter(|other| other.subject != span.subject);
            latest(others.filter(|other| other.end <= span.start))
        };
        below.or_else(before)
    }

    /// The nearest vertices below that took time.
    fn below(&self, digest: &Digest) -> Vec<&'a Span> {
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        let mut pending: Vec<&Digest> = self.inputs.get(digest).into_iter().flatten().collect();
        while let Some(input) = pending.pop() {
            if !seen.insert(input) {
                continue;
            }
            let of_input = |span: &&Span| matches!(&span.subject, Subject::Vertex(vertex) if vertex == input);
            match self.spans.iter().find(of_input) {
                Some(span) => found.push(span),
                None => pending.extend(self.inputs.get(input).into_iter().flatten()),
            }
        }
        found
    }
}

fn latest<'a>(spans: impl Iterator<Item = &'a Span>) -> Option<&'a Span> {
    spans.max_by_key(|span| span.end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::StepId;

    fn digest(name: &str) -> Digest {
        Digest::sha256(name.as_bytes())
    }

    fn span(name: &str, start: u64, end: u64) -> Span {
        let subject = match name.strip_prefix('#').and_then(|number| number.parse().ok()) {
            Some(number) => Subject::Step(StepId(number)),
            None => Subject::Vertex(digest(name)),
        };
        let [start, end] = [start, end].map(Duration::from_millis);
        let (phases, cpu, memory) = (Vec::new(), Duration::ZERO, 0);
        Span { subject, name: name.to_owned(), start, end, phases, cpu, memory }
    }

    #[track_caller]
    fn check(spans: &[(&str, u64, u64)], inputs: &[(&str, &[&str])], expected: &[(&str, u64)]) {
        let spans: Vec<Span> = spans.iter().map(|(name, start, end)| span(name, *start, *end)).collect();
        let below = |names: &&[&str]| names.iter().map(|name| digest(name)).collect();
        let inputs = inputs.iter().map(|(name, names)| (digest(name), below(names))).collect();
        let path = CriticalPath::of(&spans, &inputs, Duration::from_millis(100));
        let found: Vec<(&str, u128)> =
            path.entries.iter().map(|entry| (entry.span.name.as_str(), entry.gap.as_millis())).collect();
        let expected: Vec<(&str, u128)> =
            expected.iter().map(|(name, gap)| (*name, u128::from(*gap))).collect();
        assert_eq!(found, expected);
        let inside: Duration = path.entries.iter().map(|entry| entry.span.length()).sum();
        assert_eq!(path.entries.len() + path.beside.0, spans.len());
        assert!(inside + path.outside() >= Duration::from_millis(100));
    }

    #[test]
    fn the_longest_chain_is_found() {
        check(&[], &[], &[]);
        let graph: &[(&str, &[&str])] =
            &[("base", &[]), ("a", &["base"]), ("b", &["base"]), ("end", &["a", "b"])];
        let spans =
            [("#1", 0, 5), ("base", 6, 20), ("a", 20, 30), ("b", 20, 70), ("end", 72, 80), ("#2", 85, 99)];
        check(&spans, graph, &[("#1", 0), ("base", 1), ("b", 0), ("end", 2), ("#2", 5)]);
    }

    #[test]
    fn what_came_from_the_cache_is_looked_through() {
        let graph: &[(&str, &[&str])] = &[("base", &[]), ("cached", &["base"]), ("end", &["cached"])];
        check(&[("base", 1, 20), ("end", 25, 80)], graph, &[("base", 1), ("end", 5)]);
    }

    #[test]
    fn a_chain_that_meets_itself_ends() {
        // Only clocks that disagree give this.
        check(&[("#1", 10, 10), ("#2", 10, 10)], &[], &[("#1", 10), ("#2", 0)]);
    }
}
