//! `--format '{{…}}'`: the part of Go's templates that docker's commands are asked for, over JSON values.
//!
//! Fields (`.Config.Env`), `range`, `if`, `else`, `end`, pipes, and the functions of docker that change nothing: `json`,
//! `join`, `split`, `index`, `len`, `upper`, `lower`, `title`, `println`, `eq`, `ne`, `not`, `and`, `or`. Whatever else a template
//! asks for is an error when it is read. Pure. Start with [`Template`].

use std::fmt::Write as _;
use std::str::FromStr;

use serde_json::Value;

mod parse;

/// Fields whose names are the user's: one that is not there is no mistake.
const MAPS: [&str; 3] = ["ExposedPorts", "Labels", "Volumes"];
/// Lists of a configuration.
const LISTS: [&str; 5] = ["Cmd", "Entrypoint", "Env", "OnBuild", "Shell"];
/// Blocks and parentheses within each other.
const MAX_DEPTH: usize = 64;

/// Why a template is none, or cannot be filled in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    /// It breaks the grammar.
    #[error("template parsing error: {0}")]
    Syntax(String),
    /// A field that the object does not have.
    #[error("template: can't evaluate field {0}")]
    NoField(String),
    /// A function cannot do that.
    #[error("template: {function}: {fault}")]
    Call {
        /// Which.
        function: &'static str,
        /// Why not.
        fault: &'static str,
    },
}

/// A template, ready to be filled in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Template(Vec<Node>);

/// A part of it.
#[derive(Debug, Clone, PartialEq)]
enum Node {
    Text(String),
    Value(Pipeline),
    If(Pipeline, Vec<Self>, Vec<Self>),
    Range(Pipeline, Vec<Self>, Vec<Self>),
}

/// Calls, each of which gets what the one before it came to as its last argument.
type Pipeline = Vec<Call>;

#[derive(Debug, Clone, PartialEq)]
enum Call {
    Operand(Operand),
    Function(Function, Vec<Operand>),
}

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    /// Names from `.`; or, if so, from what the template was given.
    Field {
        from_root: bool,
        names: Vec<String>,
    },
    Literal(Value),
    Inner(Pipeline),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Function {
    Json,
    Join,
    Split,
    Index,
    Len,
    Upper,
    Lower,
    Title,
    Println,
    Eq,
    Ne,
    Not,
    And,
    Or,
}

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        parse::nodes(text).map(Self)
    }
}

impl Template {
    /// Fills it in.
    pub(crate) fn render(&self, value: &Value) -> Result<String, TemplateError> {
        let mut out = String::new();
        Scope { root: value, dot: value }.all(&self.0, &mut out)?;
        Ok(out)
    }
}

/// What names mean.
#[derive(Clone, Copy)]
struct Scope<'a> {
    root: &'a Value,
    dot: &'a Value,
}

impl Scope<'_> {
    fn all(&self, nodes: &[Node], out: &mut String) -> Result<(), TemplateError> {
        for node in nodes {
            match node {
                Node::Text(text) => out.push_str(text),
                Node::Value(pipeline) => out.push_str(&shown(&self.pipeline(pipeline)?)),
                Node::If(pipeline, then, otherwise) => {
                    let chosen = if is_true(&self.pipeline(pipeline)?) { then } else { otherwise };
                    self.all(chosen, out)?;
                }
                Node::Range(pipeline, each, otherwise) => {
                    let over = self.pipeline(pipeline)?;
                    let items: Vec<&Value> = match &over {
                        Value::Array(items) => items.iter().collect(),
                        Value::Object(map) => map.values().collect(),
                        Value::Null => Vec::new(),
                        _ => return Err(fault("range", "can't iterate over this")),
                    };
                    for dot in &items {
                        Scope { root: self.root, dot }.all(each, out)?;
                    }
                    if items.is_empty() {
                        self.all(otherwise, out)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn pipeline(&self, calls: &[Call]) -> Result<Value, TemplateError> {
        let mut last: Option<Value> = None;
        let mut before = None;
        for call in calls {
            let piped = before.replace(call);
            last = Some(match call {
                Call::Function(Function::Json, operands) if self.is_unset(operands, piped) => "null".into(),
                Call::Operand(operand) => self.operand(operand)?,
                Call::Function(function @ (Function::And | Function::Or), operands) => {
                    self.decide(*function, operands, last)?
                }
                Call::Function(function, operands) => {
                    let values = operands.iter().map(|operand| self.operand(operand));
                    let mut values = values.collect::<Result<Vec<_>, _>>()?;
                    values.extend(last);
                    function.call(&values)?
                }
            });
        }
        Ok(last.unwrap_or(Value::Null))
    }

    /// Whether what becomes JSON is a list or map of a configuration that says nothing of it: docker has no list then.
    fn is_unset(&self, operands: &[Operand], piped: Option<&Call>) -> bool {
        let operand = match (operands, piped) {
            ([operand], None) | ([], Some(Call::Operand(operand))) => operand,
            _ => return false,
        };
        let Operand::Field { names, .. } = operand else { return false };
        let [.., config, name] = names.as_slice() else { return false };
        let is_known = MAPS.contains(&name.as_str()) || LISTS.contains(&name.as_str());
        if config != "Config" || !is_known {
            return false;
        }
        match self.operand(operand) {
            Ok(Value::Array(items)) => items.is_empty(),
            Ok(Value::Object(map)) => map.is_empty(),
            _ => false,
        }
    }

    /// `and` and `or`: what comes after the value that decides is not evaluated, as in Go since 1.18.
    fn decide(
        &self,
        function: Function,
        operands: &[Operand],
        piped: Option<Value>,
    ) -> Result<Value, TemplateError> {
        let mut found = None;
        for operand in operands {
            let value = self.operand(operand)?;
            if is_true(&value) == (function == Function::Or) {
                return Ok(value);
            }
            found = Some(value);
        }
        piped.or(found).ok_or(fault(function.name(), "wrong number or type of arguments"))
    }

    fn operand(&self, operand: &Operand) -> Result<Value, TemplateError> {
        match operand {
            Operand::Literal(value) => Ok(value.clone()),
            Operand::Inner(pipeline) => self.pipeline(pipeline),
            Operand::Field { from_root, names } => {
                let mut value = if *from_root { self.root } else { self.dot };
                for (at, name) in names.iter().enumerate() {
                    let of = at.checked_sub(1).and_then(|before| names.get(before));
                    let is_map = of.is_some_and(|of| MAPS.contains(&of.as_str()));
                    value = match value {
                        Value::Object(map) => map.get(name).or_else(|| is_map.then_some(&Value::Null)),
                        Value::Null if is_map => Some(&Value::Null),
                        _ => None,
                    }
                    .ok_or_else(|| TemplateError::NoField(name.clone()))?;
                }
                Ok(value.clone())
            }
        }
    }
}

impl Function {
    fn call(self, values: &[Value]) -> Result<Value, TemplateError> {
        let text = |value: &Value| shown(value);
        match (self, values) {
            (Self::Json, [value]) => Ok(value.to_string().into()),
            (Self::Join, [Value::Array(items), Value::String(between)]) => {
                Ok(items.iter().map(text).collect::<Vec<_>>().join(between).into())
            }
            (Self::Join, [Value::Null, _]) => Ok("".into()),
            (Self::Split, [Value::String(whole), Value::String(at)]) => {
                Ok(whole.split(at.as_str()).map(Value::from).collect())
            }
            (Self::Index, [of, keys @ ..]) => keys.iter().try_fold(of.clone(), |of, key| index(&of, key)),
            (Self::Len, [Value::Array(items)]) => Ok(items.len().into()),
            (Self::Len, [Value::Object(map)]) => Ok(map.len().into()),
            (Self::Len, [Value::String(text)]) => Ok(text.len().into()),
            (Self::Len, [Value::Null]) => Ok(0.into()),
            (Self::Upper, [Value::String(text)]) => Ok(text.to_uppercase().into()),
            (Self::Lower, [Value::String(text)]) => Ok(text.to_lowercase().into()),
            (Self::Title, [Value::String(text)]) => Ok(title(text).into()),
            (Self::Println, values) => {
                Ok((values.iter().map(text).collect::<Vec<_>>().join(" ") + "\n").into())
            }
            (Self::Eq, [first, others @ ..]) if !others.is_empty() => Ok(others.contains(first).into()),
            (Self::Ne, [first, second]) => Ok((first != second).into()),
            (Self::Not, [value]) => Ok((!is_true(value)).into()),
            _ => Err(fault(self.name(), "wrong number or type of arguments")),
        }
    }
}

fn index(of: &Value, key: &Value) -> Result<Value, TemplateError> {
    match (of, key) {
        (Value::Array(items), Value::Number(at)) => {
            let found = at.as_u64().and_then(|at| items.get(usize::try_from(at).ok()?));
            found.cloned().ok_or(fault("index", "index out of range"))
        }
        // What is not there is an empty value of what the others are: mostly text.
        (Value::Object(map), Value::String(name)) => Ok(match (map.get(name), map.values().next()) {
            (Some(found), _) => found.clone(),
            (None, None | Some(Value::String(_))) => "".into(),
            (None, Some(_)) => Value::Null,
        }),
        (Value::Null, Value::String(_)) => Ok("".into()),
        (Value::Null, _) => Err(fault("index", "index of nothing")),
        _ => Err(fault("index", "can't index this")),
    }
}

fn title(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn fault(function: &'static str, fault: &'static str) -> TemplateError {
    TemplateError::Call { function, fault }
}

/// What Go takes for true: whatever is not empty.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// A value as Go prints it.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut text = "map[".to_owned();
            let mut sorted: Vec<_> = map.iter().collect();
            sorted.sort_by_key(|(name, _)| *name);
            for (at, (name, value)) in sorted.into_iter().enumerate() {
                // Writing to a String cannot fail.
                let _infallible = write!(text, "{}{name}:{}", if at == 0 { "" } else { " " }, shown(value));
            }
            text + "]"
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(template: &str, expected: Result<&str, &str>) {
        let value = json!({
            "Id": "sha256:ab", "RepoTags": ["app:1", "app:2"], "Size": 7, "None": null,
            "Config": {"Labels": {"b.c": "2", "a": "1"}, "Cmd": ["sh"], "Entrypoint": null, "User": "", "Env": [], "Volumes": {}},
            "Env": [],
        });
        let rendered = template.parse::<Template>().and_then(|template| template.render(&value));
        assert_eq!(
            rendered.as_deref().map_err(ToString::to_string),
            expected.map_err(str::to_owned),
            "{template}"
        );
    }

    #[test]
    fn templates_are_filled_in_as_docker_does() {
        for (template, expected) in [
            ("plain", "plain"),
            ("{{.Id}}", "sha256:ab"),
            ("<{{ .Id }}>\t{{.Size}}", "<sha256:ab>\t7"),
            ("{{.RepoTags}}", "[app:1 app:2]"),
            ("{{.Config.Labels}}", "map[a:1 b.c:2]"),
            ("{{.Config.Entrypoint}}", "<no value>"),
            ("{{json .RepoTags}}", r#"["app:1","app:2"]"#),
            ("{{.RepoTags | json}}", r#"["app:1","app:2"]"#),
            ("{{join .RepoTags \", \"}}", "app:1, app:2"),
            ("{{index .RepoTags 1}}", "app:2"),
            ("{{index .Config.Labels \"b.c\"}}", "2"),
            ("<{{index .Config.Labels \"nope\"}}>", "<>"),
            ("<{{index .Config.Entrypoint \"nope\"}}>", "<>"),
            ("{{.Config.Labels.a}} {{.Config.Labels.nope}}", "1 <no value>"),
            ("{{if .Config.Labels.nope}}x{{else}}none{{end}}", "none"),
            ("{{json .Config.Env}} {{.Config.Volumes | json}} {{json .Env}}", "null null []"),
            ("{{.Config.Env}} {{.Config.Volumes}} {{json .Config.Cmd}}", "[] map[] [\"sh\"]"),
            ("{{and .None .Nope.Nope}} {{or .Id .Nope}}", "<no value> sha256:ab"),
            ("{{and .Id .Size}} {{or .None \"\"}}|{{.Size | or .None}}|{{.Size | and .Id}}", "7 |7|7"),
            ("{{(index .RepoTags 0) | upper}}", "APP:1"),
            ("{{range .RepoTags}}{{.}};{{end}}", "app:1;app:2;"),
            ("{{range .RepoTags}}{{println .}}{{end}}", "app:1\napp:2\n"),
            ("{{range .Config.Entrypoint}}x{{else}}none{{end}}", "none"),
            ("{{range .RepoTags}}{{$.Size}}{{end}}", "77"),
            ("{{if .Config.User}}{{.Config.User}}{{else if .None}}n{{else}}root{{end}}", "root"),
            ("{{if eq .Size 7}}seven{{end}}{{len .RepoTags}}", "seven2"),
            ("a {{- .Size -}} b", "a7b"),
            ("{{/* nothing */}}{{\"a\\n\"}}", "a\n"),
            ("{{title (lower \"ABC\")}}{{not .None}}", "Abctrue"),
            ("{{with .Config}}{{.User}}{{end}}", "unknown"),
        ] {
            let expected = if expected == "unknown" {
                Err("template parsing error: `with` is not known here")
            } else {
                Ok(expected)
            };
            check(template, expected);
        }
    }

    #[test]
    fn what_is_no_template_is_told() {
        for (template, expected) in [
            ("{{.Nope}}", "template: can't evaluate field Nope"),
            ("{{.Id.Nope}}", "template: can't evaluate field Nope"),
            ("{{.Config.Nope}}", "template: can't evaluate field Nope"),
            ("{{.Config.Labels.a.Nope}}", "template: can't evaluate field Nope"),
            ("{{and .Id .Nope}}", "template: can't evaluate field Nope"),
            ("{{or}}", "template: or: wrong number or type of arguments"),
            ("{{.Id", "template parsing error: unclosed action"),
            ("{{}}", "template parsing error: missing value"),
            ("{{end}}", "template parsing error: unexpected `end`"),
            ("{{range .RepoTags}}", "template parsing error: missing `end`"),
            ("{{nope .Id}}", "template parsing error: `nope` is not known here"),
            ("{{é .Id}}", "template parsing error: `é` is not known here"),
            ("{{.é}}", "template: can't evaluate field é"),
            ("{{→}}", "template parsing error: unexpected `→`"),
            ("{{\"open}}", "template parsing error: unterminated string"),
            ("{{index .RepoTags 9}}", "template: index: index out of range"),
            ("{{upper .Size}}", "template: upper: wrong number or type of arguments"),
            ("{{range .Size}}{{end}}", "template: range: can't iterate over this"),
        ] {
            check(template, Err(expected));
        }
        let deep = format!("{{{{{}.Id{}}}}}", "(".repeat(1000), ")".repeat(1000));
        check(&deep, Err("template parsing error: too deep"));
        let blocks = "{{if .Id}}".repeat(1000);
        check(&blocks, Err("template parsing error: too deep"));
    }

    #[test]
    fn no_text_is_too_much_to_read() {
        let pieces = [
            "{{", "}}", "-", " ", "\"", "`", "(", ")", ".", "$", "|", "é", "\\", "if", "end", "else", ".a",
            "7",
        ];
        for first in pieces {
            for second in pieces {
                for third in pieces {
                    for text in [format!("{first}{second}{third}"), format!("{{{{{first}{second}{third}}}}}")]
                    {
                        if let Ok(template) = text.parse::<Template>() {
                            template.render(&json!({"a": [1]})).ok();
                        }
                    }
                }
            }
        }
    }
}
