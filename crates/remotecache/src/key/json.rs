//! JSON as Go's `encoding/json` writes BuildKit's messages: fields in the order of their declaration, empty
//! ones left out, and `<`, `>`, `&` escaped. What is hashed is this text, so every byte counts.
//! Must not know what the fields mean. Start with [`Object`].

use serde_json::{Map, Value};

/// A JSON object under construction. Unless it says otherwise, a method leaves out an empty value.
#[derive(Debug, Clone, Default)]
pub(crate) struct Object(Map<String, Value>);

impl Object {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn with(mut self, name: &'static str, value: Value) -> Self {
        self.0.insert(name.to_owned(), value);
        self
    }

    /// A text, also when it is empty.
    pub(crate) fn always(self, name: &'static str, text: &str) -> Self {
        self.with(name, Value::from(text))
    }

    pub(crate) fn text(self, name: &'static str, text: &str) -> Self {
        if text.is_empty() { self } else { self.always(name, text) }
    }

    pub(crate) fn number(self, name: &'static str, number: i64) -> Self {
        if number == 0 { self } else { self.number_always(name, number) }
    }

    /// A number, also when it is zero.
    pub(crate) fn number_always(self, name: &'static str, number: i64) -> Self {
        self.with(name, Value::from(number))
    }

    pub(crate) fn flag(self, name: &'static str, flag: bool) -> Self {
        if flag { self.with(name, Value::from(true)) } else { self }
    }

    pub(crate) fn texts(self, name: &'static str, texts: &[String]) -> Self {
        if texts.is_empty() { self } else { self.with(name, Value::from(texts.to_vec())) }
    }

    pub(crate) fn list(self, name: &'static str, list: Vec<Value>) -> Self {
        if list.is_empty() { self } else { self.list_always(name, list) }
    }

    /// A list, also when it is empty.
    pub(crate) fn list_always(self, name: &'static str, list: Vec<Value>) -> Self {
        self.with(name, Value::from(list))
    }

    pub(crate) fn object(self, name: &'static str, object: Option<Self>) -> Self {
        match object {
            Some(object) => self.with(name, object.value()),
            None => self,
        }
    }

    pub(crate) fn value(self) -> Value {
        Value::Object(self.0)
    }
}

/// The text of an object.
pub(crate) fn go_text(object: &Object) -> String {
    escape(&Value::Object(object.0.clone()).to_string())
}

/// These characters stand inside of strings only, so the whole text can be treated at once.
pub(crate) fn escape(json: &str) -> String {
    let mut text = String::with_capacity(json.len() + 16);
    for letter in json.chars() {
        match letter {
            '<' => text.push_str("\\u003c"),
            '>' => text.push_str("\\u003e"),
            '&' => text.push_str("\\u0026"),
            '\u{2028}' => text.push_str("\\u2028"),
            '\u{2029}' => text.push_str("\\u2029"),
            other => text.push(other),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_what_go_writes() {
        let inner = Object::new().number("n", 0).number("m", -1).text("e", "");
        let object = Object::new()
            .always("Type", "")
            .text("t", "a<b>&\u{2028}\"\\\u{1}\n\u{7f}")
            .flag("off", false)
            .object("o", Some(inner))
            .list("l", Vec::new());
        assert_eq!(
            go_text(&object),
            "{\"Type\":\"\",\"t\":\"a\\u003cb\\u003e\\u0026\\u2028\\\"\\\\\\u0001\\n\u{7f}\",\"o\":{\"m\":-1}}"
        );
    }
}
