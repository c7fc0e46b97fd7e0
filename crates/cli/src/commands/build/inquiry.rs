//! Questions about a Dockerfile instead of a build: `--call`, `--check`, `--print`. Plain data, with the
//! names and forms of docker's flags where it has them.

use std::str::FromStr;

/// The flags.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Flags {
    /// What to do with the Dockerfile: `build`, `check`, `outline`, `targets` or `subrequests.describe`, with
    /// `,format=json` if wanted
    #[arg(long, value_name = "METHOD", default_value = "build")]
    call: Call,
    /// Check the Dockerfile and build nothing (`--call=check`); exits with 1 if there are warnings
    #[arg(long)]
    check: bool,
    /// Print the syntax tree, the plan or the graph as JSON and build nothing
    #[arg(long, value_name = "WHAT", conflicts_with_all = ["call", "check"])]
    print: Option<Print>,
}

/// A question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inquiry {
    /// What the build checks find.
    Check {
        /// How it is printed.
        form: Form,
        /// Whether findings leave the exit code at 0.
        ignore_status: bool,
    },
    /// The parameters of the target.
    Outline(Form),
    /// The targets.
    Targets(Form),
    /// What can be asked.
    Describe(Form),
    /// What the front end made of the file.
    Print(Print),
}

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// `--print`
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Print {
    /// The syntax tree
    Ast,
    /// The stages and where they take files from
    Plan,
    /// The graph, with the image config it comes to
    Llb,
}

/// `--call`, as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call {
    method: Method,
    form: Form,
    ignore_status: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Build,
    Check,
    Outline,
    Targets,
    Describe,
}

/// A `--call` that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CallError {
    /// A method that does not exist.
    #[error(
        "unknown method `{0}`: there are `build`, `check`, `outline`, `targets` and `subrequests.describe`"
    )]
    Method(String),
    /// Two methods.
    #[error("there can be only one method, and `{0}` is the second")]
    SecondMethod(String),
    /// An option that does not exist, or has no such value.
    #[error("unknown option `{0}`: there are `format=text`, `format=json` and `ignorestatus=true`")]
    Option(String),
}

impl FromStr for Call {
    type Err = CallError;

    fn from_str(text: &str) -> Result<Self, CallError> {
        let mut method = None;
        let mut call = Self { method: Method::Build, form: Form::Text, ignore_status: false };
        for field in text.split(',') {
            match field.split_once('=') {
                Some(("format", "json")) => call.form = Form::Json,
                Some(("format", "text")) => call.form = Form::Text,
                Some(("ignorestatus", "true" | "1")) => call.ignore_status = true,
                Some(("ignorestatus", "false" | "0")) => call.ignore_status = false,
                Some(_) => return Err(CallError::Option(field.to_owned())),
                None if method.is_some() => return Err(CallError::SecondMethod(field.to_owned())),
                None => {
                    // The front end's own names count, too.
                    method = Some(match field.strip_prefix("frontend.").unwrap_or(field) {
                        "" | "build" => Method::Build,
                        "check" | "lint" => Method::Check,
                        "outline" => Method::Outline,
                        "targets" => Method::Targets,
                        "subrequests.describe" => Method::Describe,
                        other => return Err(CallError::Method(other.to_owned())),
                    });
                }
            }
        }
        call.method = method.unwrap_or(Method::Build);
        Ok(call)
    }
}

impl Flags {
    /// What is asked; `None` is a build. `--check` wins over `--call`, of which it keeps the form.
    pub(super) fn inquiry(&self) -> Option<Inquiry> {
        if let Some(print) = self.print {
            return Some(Inquiry::Print(print));
        }
        let Call { method, form, ignore_status } = self.call;
        match method {
            _ if self.check => Some(Inquiry::Check { form, ignore_status }),
            Method::Build => None,
            Method::Check => Some(Inquiry::Check { form, ignore_status }),
            Method::Outline => Some(Inquiry::Outline(form)),
            Method::Targets => Some(Inquiry::Targets(form)),
            Method::Describe => Some(Inquiry::Describe(form)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, check: bool, expected: Result<Option<Inquiry>, CallError>) {
        let found = text.parse().map(|call| Flags { call, check, print: None }.inquiry());
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn methods_and_their_options() {
        check("build", false, Ok(None));
        check("", false, Ok(None));
        check("outline", false, Ok(Some(Inquiry::Outline(Form::Text))));
        check("targets,format=json", false, Ok(Some(Inquiry::Targets(Form::Json))));
        check(
            "format=json,check",
            false,
            Ok(Some(Inquiry::Check { form: Form::Json, ignore_status: false })),
        );
        let ignoring = Inquiry::Check { form: Form::Text, ignore_status: true };
        check("lint,ignorestatus=true", false, Ok(Some(ignoring)));
        check("build", true, Ok(Some(Inquiry::Check { form: Form::Text, ignore_status: false })));
        check("chekc", false, Err(CallError::Method("chekc".to_owned())));
        check("frontend.targets", false, Ok(Some(Inquiry::Targets(Form::Text))));
        check("subrequests.describe,format=json", false, Ok(Some(Inquiry::Describe(Form::Json))));
        check("check,build", false, Err(CallError::SecondMethod("build".to_owned())));
        check("check,format=xml", false, Err(CallError::Option("format=xml".to_owned())));
    }
}
