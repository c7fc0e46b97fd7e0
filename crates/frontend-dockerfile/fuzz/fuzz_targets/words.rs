//! Any text as a word to expand, an ignore file, a pattern and a context's name. `cargo fuzz run words`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stave_frontend_dockerfile::{
    NamedContext, PlanRequest, attributes::Attributes, dockerignore, expand::Expander, input::ContextForm,
    scope::Variables,
};
use stave_llb::pattern::PatternMatcher;
use stave_oci::Platform;

fuzz_target!(|text: &str| {
    if text.len() > 1024 {
        return;
    }
    let variables = Variables::from_entries(["a=x*y/z", "b=", "long=0123456789"]);
    for expander in [Expander::new('\\'), Expander::new('`'), Expander::content(), Expander::display('\\')] {
        drop(expander.expand(text, &variables));
    }
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    if let Ok(matcher) = PatternMatcher::new(&dockerignore::parse(rest)) {
        let _matches = matcher.matches(first);
    }
    drop(ContextForm::of(first));
    drop(NamedContext::parse(rest, first));
    let attributes: Attributes = [(first.to_owned(), rest.to_owned())].into();
    drop(PlanRequest::of_attributes(&attributes, Platform::new("linux", "amd64", None)));
});
