//! Log bytes of hostile programs as lines that can be shown.
//!
//! A build step may print what moves the cursor, renames the window or asks the terminal to answer.
//! Nothing of that gets through: of all control sequences only colours and text attributes do.
//!
//! Read [`Lines`] first.

/// Bytes of one line; a longer one is cut into several, so that a program cannot fill memory.
const MAX_LINE: usize = 64 << 10;

/// Puts lines together from pieces that are cut anywhere, even within a character.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    partial: Vec<u8>,
    /// The last byte was a carriage return: a line feed after it ends no further line.
    after_return: bool,
}

impl Lines {
    /// Adds bytes; gives the lines that are complete.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for &byte in bytes {
            match byte {
                b'\n' if self.after_return => self.after_return = false,
                b'\n' => lines.push(self.take()),
                b'\r' => {
                    // A progress bar that redraws itself: each state is a line, empty ones are not.
                    self.after_return = true;
                    lines.push(self.take());
                }
                _ => {
                    self.after_return = false;
                    self.partial.push(byte);
                    if self.partial.len() >= MAX_LINE {
                        lines.push(self.take());
                    }
                }
            }
        }
        lines
    }

    /// What is left at the end, if anything.
    pub(crate) fn finish(&mut self) -> Option<String> {
        (!self.partial.is_empty()).then(|| self.take())
    }

    fn take(&mut self) -> String {
        clean(&String::from_utf8_lossy(&std::mem::take(&mut self.partial)))
    }
}

/// `text` without control characters and sequences, save tabs and colours.
pub(crate) fn clean(text: &str) -> String {
    let mut output = String::with_capacity(text.len());
    let mut coloured = false;
    let mut rest = text.chars();
    while let Some(letter) = rest.next() {
        match letter {
            '\x1b' => match rest.clone().next() {
                Some('[') => {
                    rest.next();
                    coloured |= control_sequence(&mut rest, &mut output);
                }
                Some(']' | 'P' | 'X' | '^' | '_') => skip_string(&mut rest),
                // Character set selections and the like: intermediates, then one final.
                _ => {
                    for next in rest.by_ref() {
                        if !(' '..='/').contains(&next) {
                            break;
                        }
                    }
                }
            },
            // The same introducers as one character.
            '\u{9b}' => coloured |= control_sequence(&mut rest, &mut output),
            '\u{90}' | '\u{98}' | '\u{9d}' | '\u{9e}' | '\u{9f}' => skip_string(&mut rest),
            '\t' => output.push(letter),
            letter if letter.is_control() => {}
            letter => output.push(letter),
        }
    }
    if coloured {
        output.push_str("\x1b[0m");
    }
    output
}

/// Takes the rest of a control sequence; writes it if it is a colour, and says whether.
fn control_sequence(rest: &mut std::str::Chars<'_>, output: &mut String) -> bool {
    let mut parameters = String::new();
    for letter in rest.by_ref() {
        match letter {
            'm' if parameters.chars().all(|c| c.is_ascii_digit() || c == ';' || c == ':') => {
                output.push_str("\x1b[");
                output.push_str(&parameters);
                output.push('m');
                return true;
            }
            '@'..='~' => return false,
            ' '..='?' => parameters.push(letter),
            // Broken off; what follows is text again.
            _ => return false,
        }
    }
    false
}

/// Takes a command string up to its terminator (BEL or ST).
fn skip_string(rest: &mut std::str::Chars<'_>) {
    while let Some(letter) = rest.next() {
        match letter {
            '\x07' | '\u{9c}' => return,
            '\x1b' => {
                if rest.clone().next() == Some('\\') {
                    rest.next();
                }
                return;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(input: &str, expected: &str) {
        assert_eq!(clean(input), expected);
    }

    #[test]
    fn only_text_and_colours_get_through() {
        check("plain\ttext ü 世", "plain\ttext ü 世");
        check("\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m\x1b[0m");
        check("\x1b[2J\x1b[Hhome", "home");
        check("\x1b]0;title\x07x", "x");
        check("\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\", "link");
        check("\x1bPq#0\x1b\\x", "x");
        check("\x1b(Bx\x1bcy", "xy");
        check("\u{9b}31mx\u{9b}5A", "\x1b[31mx\x1b[0m");
        check("\u{9d}0;t\u{9c}x", "x");
        check("a\x07\x08\x00b\x7f", "ab");
        check("\x1b[?25lx\x1b[>4;1mz", "xz");
        check("cut \x1b[", "cut ");
        check("cut \x1b", "cut ");
    }

    #[test]
    fn lines_survive_any_cut() {
        let text = "one\r\ntwo ü\n\n10%\r20%\rlast".as_bytes();
        let expected = ["one", "two ü", "", "10%", "20%", "last"];
        for cut in 0..=text.len() {
            let mut lines = Lines::default();
            let mut found = lines.push(&text[..cut]);
            found.extend(lines.push(&text[cut..]));
            found.extend(lines.finish());
            assert_eq!(found, expected, "cut at {cut}");
        }
    }

    #[test]
    fn endless_lines_are_cut_and_broken_text_is_replaced() {
        let mut lines = Lines::default();
        let found = lines.push(&vec![b'a'; MAX_LINE + 1]);
        assert_eq!((found.len(), found[0].len(), lines.finish().as_deref()), (1, MAX_LINE, Some("a")));
        assert_eq!(lines.push(b"\xff\xfe\n"), ["\u{fffd}\u{fffd}"]);
    }
}
