//! File modes as `--chmod` writes them: octal numbers and the symbolic language of chmod(1).
//! Must not know files: a mode goes in, a mode comes out. Read [`ModeChange`] first.

/// A mode text that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid mode `{0}`")]
pub struct ModeError(String);

/// What to do with a file's permission bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ModeChange {
    /// Leave them.
    Keep,
    /// Replace the lower twelve bits.
    Set(u32),
    /// Apply symbolic clauses in order.
    Symbolic(Vec<Clause>),
}

/// One `who op what` of a symbolic mode, already split at `,`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Clause {
    who: u32,
    operator: Operator,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Add,
    Remove,
    Assign,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// `rwx` bits in one octal digit, conditional execute, set-id and sticky.
    Bits { rwx: u32, conditional_execute: bool, set_id: bool, sticky: bool },
    /// Copy the bits of another class, given by its shift.
    CopyOf(u32),
}

const USER: u32 = 0o4700;
const GROUP: u32 = 0o2070;
const OTHER: u32 = 0o1007;

impl ModeChange {
    /// Parses an octal number or symbolic clauses.
    pub(crate) fn parse(text: &str) -> Result<Self, ModeError> {
        let invalid = || ModeError(text.to_owned());
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let mode = u32::from_str_radix(text, 8).map_err(|_| invalid())?;
            return if mode <= 0o7777 { Ok(Self::Set(mode)) } else { Err(invalid()) };
        }
        let mut clauses = Vec::new();
        for part in text.split(',') {
            parse_part(part, &mut clauses).ok_or_else(invalid)?;
        }
        Ok(Self::Symbolic(clauses))
    }

    /// The new permission bits (lower twelve) of a file that has `mode`.
    pub(crate) fn apply(&self, mode: u32, is_directory: bool) -> u32 {
        match self {
            Self::Keep => mode & 0o7777,
            Self::Set(new) => *new,
            Self::Symbolic(clauses) => {
                clauses.iter().fold(mode & 0o7777, |mode, clause| clause.apply(mode, is_directory))
            }
        }
    }
}

fn parse_part(part: &str, clauses: &mut Vec<Clause>) -> Option<()> {
    let operators_at = part.find(['+', '-', '='])?;
    let mut who = 0;
    for class in part[..operators_at].chars() {
        who |= match class {
            'u' => USER,
            'g' => GROUP,
            'o' => OTHER,
            'a' => USER | GROUP | OTHER,
            _ => return None,
        };
    }
    if who == 0 {
        who = USER | GROUP | OTHER;
    }
    let mut rest = &part[operators_at..];
    while let Some(first) = rest.chars().next() {
        let operator = match first {
            '+' => Operator::Add,
            '-' => Operator::Remove,
            '=' => Operator::Assign,
            _ => return None,
        };
        let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |at| at + 1);
        clauses.push(Clause { who, operator, what: parse_what(&rest[1..end])? });
        rest = &rest[end..];
    }
    Some(())
}

fn parse_what(text: &str) -> Option<What> {
    match text {
        "u" => return Some(What::CopyOf(6)),
        "g" => return Some(What::CopyOf(3)),
        "o" => return Some(What::CopyOf(0)),
        _ => {}
    }
    let (mut rwx, mut conditional_execute, mut set_id, mut sticky) = (0, false, false, false);
    for letter in text.chars() {
        match letter {
            'r' => rwx |= 4,
            'w' => rwx |= 2,
            'x' => rwx |= 1,
            'X' => conditional_execute = true,
            's' => set_id = true,
            't' => sticky = true,
            _ => return None,
        }
    }
    Some(What::Bits { rwx, conditional_execute, set_id, sticky })
}

impl Clause {
    fn apply(&self, mode: u32, is_directory: bool) -> u32 {
        let bits = match self.what {
            What::CopyOf(shift) => {
                let class = (mode >> shift) & 7;
                class << 6 | class << 3 | class
            }
            What::Bits { rwx, conditional_execute, set_id, sticky } => {
                let execute = u32::from(conditional_execute && (is_directory || mode & 0o111 != 0));
                let class = rwx | execute;
                let special = if set_id { 0o6000 } else { 0 } | if sticky { 0o1000 } else { 0 };
                class << 6 | class << 3 | class | special
            }
        };
        // Sticky belongs to no class for `+t`: it is reached through `o` and `a`.
        let bits = bits & self.who;
        match self.operator {
            Operator::Add => mode | bits,
            Operator::Remove => mode & !bits,
            // chmod(1) keeps a directory's set-id bits unless they are named.
            Operator::Assign if is_directory => mode & !(self.who & 0o1777) | bits,
            Operator::Assign => mode & !self.who | bits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, mode: u32, is_directory: bool, expected: u32) {
        let change = ModeChange::parse(text).expect("mode");
        assert_eq!(change.apply(mode, is_directory), expected, "{text} on {mode:o}");
    }

    #[test]
    fn modes() {
        check("755", 0o600, false, 0o755);
        check("0644", 0o777, false, 0o644);
        check("4755", 0o600, false, 0o4755);
        check("u+x", 0o644, false, 0o744);
        check("+x", 0o644, false, 0o755);
        check("a-w", 0o666, false, 0o444);
        check("go-rwx", 0o777, false, 0o700);
        check("u=rw,g=r,o=", 0o777, false, 0o640);
        check("a+X", 0o644, false, 0o644);
        check("a+X", 0o644, true, 0o755);
        check("a+X", 0o744, false, 0o755);
        check("g=u", 0o740, false, 0o770);
        check("u+s", 0o755, false, 0o4755);
        check("o+t", 0o777, true, 0o1777);
        check("u=rwx,g=rx,o=rx", 0o600, false, 0o755);
        check("u+r-x", 0o100, false, 0o400);
    }

    #[test]
    fn bad_modes() {
        for text in ["", "9", "77777", "u", "u+q", "z+x", "+x,", "0o755"] {
            assert_eq!(ModeChange::parse(text), Err(ModeError(text.to_owned())), "{text}");
        }
    }
}
