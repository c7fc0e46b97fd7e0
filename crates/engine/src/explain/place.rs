//! Which step of an earlier build is the counterpart of one of this. Pure. Start with [`Place`].

use stave_llb::Definition;
use stave_oci::Digest;

use crate::record::{BuildRecord, StepRecord};

/// Where a step stands, as its name says: `[stage 2/5] RUN make`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    vertex: Digest,
    stage: String,
    number: usize,
    instruction: String,
}

impl Place {
    pub(super) fn of(definition: &Definition, vertex: &Digest) -> Self {
        let name = definition.vertex(vertex).and_then(|vertex| vertex.name()).unwrap_or_default();
        let (stage, number, instruction) = parse(name);
        Self { vertex: vertex.clone(), stage, number, instruction }
    }

    /// The step with the same definition, else with the same words in the same stage, else at the same place
    /// of it with the same keyword.
    pub(super) fn counterpart<'r>(
        &self,
        this: &StepRecord,
        record: &'r BuildRecord,
    ) -> Option<&'r StepRecord> {
        let graph = || record.steps.iter().filter(|step| step.vertex.is_some());
        if let Some(step) = graph().find(|step| step.vertex.as_ref() == Some(&self.vertex)) {
            return Some(step);
        }
        let staged = || {
            graph().filter_map(|step| {
                let (stage, number, instruction) = parse(&step.name);
                (stage == self.stage && number > 0).then_some((step, number, instruction))
            })
        };
        let far = |number: usize| number.abs_diff(self.number);
        let same = staged().filter(|(.., instruction)| *instruction == self.instruction);
        if let Some((step, ..)) = same.min_by_key(|(_, number, _)| far(*number)) {
            return Some(step);
        }
        if self.number == 0 {
            return graph().find(|step| step.name == this.name);
        }
        let keyword = |text: &str| text.split_whitespace().next().map(str::to_owned);
        let place = staged().find(|(_, number, _)| *number == self.number);
        let (step, _, instruction) = place?;
        (keyword(&instruction) == keyword(&self.instruction)).then_some(step)
    }
}

/// Stage, number and instruction of a step's name; number 0 for names of another form.
pub(super) fn parse(name: &str) -> (String, usize, String) {
    let whole = || (String::new(), 0, name.to_owned());
    let Some((head, instruction)) = name.strip_prefix('[').and_then(|rest| rest.split_once("] ")) else {
        return whole();
    };
    let (stage, count) = head.rsplit_once(' ').unwrap_or(("", head));
    let number = count.split_once('/').and_then(|(number, _)| number.trim().parse().ok());
    match number {
        Some(number) => (stage.to_owned(), number, instruction.replace('\n', " ")),
        None => whole(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_their_place() {
        let check = |name: &str, stage: &str, number, instruction: &str| {
            assert_eq!(parse(name), (stage.to_owned(), number, instruction.to_owned()), "{name}");
        };
        check("[build 2/5] RUN make", "build", 2, "RUN make");
        check("[2/5] RUN [x] y", "", 2, "RUN [x] y");
        check("[linux/arm64 build  1/5] FROM a", "linux/arm64 build ", 1, "FROM a");
        check("[internal] load build context", "", 0, "[internal] load build context");
        check("exporting", "", 0, "exporting");
    }
}
