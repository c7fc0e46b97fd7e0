//! The text of a template becomes its nodes. Start with [`nodes`].

use serde_json::Value;

use super::{Call, Function, MAX_DEPTH, Node, Operand, Pipeline, TemplateError};

/// Functions by name.
const FUNCTIONS: [(&str, Function); 14] = [
    ("json", Function::Json),
    ("join", Function::Join),
    ("split", Function::Split),
    ("index", Function::Index),
    ("len", Function::Len),
    ("upper", Function::Upper),
    ("lower", Function::Lower),
    ("title", Function::Title),
    ("println", Function::Println),
    ("eq", Function::Eq),
    ("ne", Function::Ne),
    ("not", Function::Not),
    ("and", Function::And),
    ("or", Function::Or),
];

impl Function {
    pub(super) fn name(self) -> &'static str {
        FUNCTIONS.iter().find(|(_, function)| *function == self).map_or("", |(name, _)| name)
    }
}

/// A text, or what stands between `{{` and `}}`.
enum Piece {
    Text(String),
    Action(Vec<Word>),
}

/// What an action is made of.
#[derive(Debug, Clone, PartialEq)]
enum Word {
    Field(Vec<String>),
    Root(Vec<String>),
    Literal(Value),
    Name(String),
    Open,
    Close,
    Pipe,
}

fn syntax(text: impl Into<String>) -> TemplateError {
    TemplateError::Syntax(text.into())
}

pub(super) fn nodes(text: &str) -> Result<Vec<Node>, TemplateError> {
    let mut blocks = Blocks { pieces: pieces(text)?.into_iter() };
    let (nodes, end) = blocks.until_end(0)?;
    match end {
        End::OfText => Ok(nodes),
        End::Else(_) => Err(syntax("unexpected `else`")),
        End::OfBlock => Err(syntax("unexpected `end`")),
    }
}

fn pieces(text: &str) -> Result<Vec<Piece>, TemplateError> {
    let (mut pieces, mut rest, mut trims) = (Vec::new(), text, false);
    while let Some((before, action)) = rest.split_once("{{") {
        let before = if trims { before.trim_start() } else { before };
        // `{{- ` takes the space before it away.
        let left = action.strip_prefix('-').filter(|action| action.starts_with(char::is_whitespace));
        pieces.push(Piece::Text(if left.is_some() { before.trim_end() } else { before }.to_owned()));
        let action = left.unwrap_or(action);
        let length = length(action)?;
        let (inside, behind) = action.split_at(length);
        let right = inside.strip_suffix('-').filter(|inside| inside.ends_with(char::is_whitespace));
        let inside = right.unwrap_or(inside).trim();
        if !(inside.starts_with("/*") && inside.ends_with("*/")) {
            pieces.push(Piece::Action(words(inside)?));
        }
        (rest, trims) = (behind.get(2..).unwrap_or_default(), right.is_some());
    }
    pieces.push(Piece::Text(if trims { rest.trim_start() } else { rest }.to_owned()));
    Ok(pieces)
}

/// Bytes of an action up to its `}}`, which may also stand in a string.
fn length(action: &str) -> Result<usize, TemplateError> {
    let (mut quote, mut escaped) = (None, false);
    for (at, letter) in action.char_indices() {
        match quote {
            Some('"') if escaped => escaped = false,
            Some('"') if letter == '\\' => escaped = true,
            Some(open) if open == letter => quote = None,
            Some(_) => {}
            None if letter == '"' || letter == '`' => quote = Some(letter),
            None if action[at..].starts_with("}}") => return Ok(at),
            None => {}
        }
    }
    Err(syntax(if quote.is_some() { "unterminated string" } else { "unclosed action" }))
}

fn words(text: &str) -> Result<Vec<Word>, TemplateError> {
    let (mut words, mut rest) = (Vec::new(), text.trim_start());
    while let Some(first) = rest.chars().next() {
        let is_of_name = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == '.';
        let (word, length) = match first {
            '(' => (Word::Open, 1),
            ')' => (Word::Close, 1),
            '|' => (Word::Pipe, 1),
            '"' | '`' => string(rest)?,
            '.' => {
                let length = rest.find(|letter| !is_of_name(letter)).unwrap_or(rest.len());
                (Word::Field(names(&rest[1..length])?), length)
            }
            '$' => {
                let length = rest[1..].find(|letter| !is_of_name(letter)).map_or(rest.len(), |at| at + 1);
                let inside = &rest[1..length];
                let path = inside.strip_prefix('.').unwrap_or(inside);
                if path.len() == inside.len() && !inside.is_empty() {
                    return Err(syntax(format!("variable `${inside}` is not known here")));
                }
                (Word::Root(names(path)?), length)
            }
            letter if is_of_name(letter) || letter == '-' => {
                let after = letter.len_utf8();
                let length =
                    rest[after..].find(|letter| !is_of_name(letter)).map_or(rest.len(), |at| at + after);
                (name(&rest[..length]), length)
            }
            other => return Err(syntax(format!("unexpected `{other}`"))),
        };
        words.push(word);
        rest = rest[length..].trim_start();
    }
    Ok(words)
}

fn names(path: &str) -> Result<Vec<String>, TemplateError> {
    if path.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<String> = path.split('.').map(str::to_owned).collect();
    if names.iter().any(String::is_empty) { Err(syntax("a field has no name")) } else { Ok(names) }
}

fn name(text: &str) -> Word {
    match text {
        "true" => Word::Literal(true.into()),
        "false" => Word::Literal(false.into()),
        "nil" => Word::Literal(Value::Null),
        text => text.parse::<i64>().map_or_else(|_| Word::Name(text.to_owned()), |n| Word::Literal(n.into())),
    }
}

/// A string at the beginning of a text, and the bytes it takes.
fn string(text: &str) -> Result<(Word, usize), TemplateError> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    let quote = letters.next().map_or('"', |(_, quote)| quote);
    while let Some((at, letter)) = letters.next() {
        match letter {
            letter if letter == quote => return Ok((Word::Literal(value.into()), at + 1)),
            '\\' if quote == '"' => value.push(match letters.next().map(|(_, letter)| letter) {
                Some('n') => '\n',
                Some('t') => '\t',
                Some('r') => '\r',
                Some(letter @ ('"' | '\\' | '\'')) => letter,
                _ => return Err(syntax("a string has an escape that is not known here")),
            }),
            letter => value.push(letter),
        }
    }
    Err(syntax("unterminated string"))
}

/// What ended a block.
enum End {
    OfText,
    OfBlock,
    /// With what stands behind it: nothing, or another `if`.
    Else(Vec<Word>),
}

struct Blocks {
    pieces: std::vec::IntoIter<Piece>,
}

impl Blocks {
    fn until_end(&mut self, depth: usize) -> Result<(Vec<Node>, End), TemplateError> {
        if depth > MAX_DEPTH {
            return Err(syntax("too deep"));
        }
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let words = match piece {
                Piece::Text(text) if text.is_empty() => continue,
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action(words) => words,
            };
            match words.split_first() {
                Some((Word::Name(word), [])) if word == "end" => return Ok((nodes, End::OfBlock)),
                Some((Word::Name(word), rest)) if word == "else" => {
                    return Ok((nodes, End::Else(rest.to_vec())));
                }
                Some((Word::Name(word), rest)) if word == "if" || word == "range" => {
                    nodes.push(self.block(word, rest, depth)?);
                }
                _ => nodes.push(Node::Value(pipeline(&words)?)),
            }
        }
        Ok((nodes, End::OfText))
    }

    fn block(&mut self, word: &str, over: &[Word], depth: usize) -> Result<Node, TemplateError> {
        let over = pipeline(over)?;
        let (then, end) = self.until_end(depth + 1)?;
        let otherwise = match end {
            End::OfText => return Err(syntax("missing `end`")),
            End::OfBlock => Vec::new(),
            End::Else(rest) => match rest.split_first() {
                None => match self.until_end(depth + 1)? {
                    (nodes, End::OfBlock) => nodes,
                    (_, End::OfText) => return Err(syntax("missing `end`")),
                    (_, End::Else(_)) => return Err(syntax("unexpected `else`")),
                },
                // `else if` has the one `end` of all.
                Some((Word::Name(again), rest)) if again == "if" => {
                    vec![self.block("if", rest, depth + 1)?]
                }
                Some(_) => return Err(syntax("unexpected words behind `else`")),
            },
        };
        Ok(if word == "if" { Node::If(over, then, otherwise) } else { Node::Range(over, then, otherwise) })
    }
}

fn pipeline(words: &[Word]) -> Result<Pipeline, TemplateError> {
    let mut left = words;
    let calls = calls(&mut left, 0)?;
    if left.is_empty() { Ok(calls) } else { Err(syntax("unexpected `)`")) }
}

/// Calls up to the end, or to a parenthesis that closes what was opened before.
fn calls(left: &mut &[Word], depth: usize) -> Result<Pipeline, TemplateError> {
    if depth > MAX_DEPTH {
        return Err(syntax("too deep"));
    }
    let mut calls = Vec::new();
    loop {
        let function = match left.split_first() {
            Some((Word::Name(name), rest)) => {
                *left = rest;
                let found = FUNCTIONS.iter().find(|(known, _)| known == name);
                Some(found.ok_or_else(|| syntax(format!("`{name}` is not known here")))?.1)
            }
            _ => None,
        };
        let mut operands = Vec::new();
        while let Some((word, rest)) = left.split_first() {
            let operand = match word {
                Word::Pipe | Word::Close => break,
                Word::Field(names) => Operand::Field { from_root: false, names: names.clone() },
                Word::Root(names) => Operand::Field { from_root: true, names: names.clone() },
                Word::Literal(value) => Operand::Literal(value.clone()),
                Word::Name(name) => return Err(syntax(format!("`{name}` is no value: use parentheses"))),
                Word::Open => {
                    *left = rest;
                    let inner = self::calls(left, depth + 1)?;
                    if left.first() != Some(&Word::Close) {
                        return Err(syntax("unclosed parenthesis"));
                    }
                    Operand::Inner(inner)
                }
            };
            *left = &left[1..];
            operands.push(operand);
        }
        calls.push(call(function, operands, calls.is_empty())?);
        match left.split_first() {
            Some((Word::Pipe, rest)) => *left = rest,
            _ => return Ok(calls),
        }
    }
}

fn call(
    function: Option<Function>,
    mut operands: Vec<Operand>,
    is_first: bool,
) -> Result<Call, TemplateError> {
    match (function, operands.len()) {
        (Some(function), _) => Ok(Call::Function(function, operands)),
        (None, 0) => Err(syntax("missing value")),
        (None, 1) if is_first => Ok(Call::Operand(operands.remove(0))),
        (None, _) => Err(syntax("a value is no function")),
    }
}
