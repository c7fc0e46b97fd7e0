//! What a stage has come to while its instructions are lowered.
//!
//! Owns the stage's files, environment and image config, the numbering of its steps and the expansion
//! of words in it. Start with [`StageState`].

use std::fmt::Write as _;

use stave_llb::builder::Output;
use stave_oci::{ImageConfig, Platform};

use super::{error, named::LocalRoot};
use crate::{
    ast::Word,
    diagnostic::Diagnostic,
    expand::Expander,
    path,
    plan::{BuildPlan, StageIndex},
    scope::{Lookup, Variables},
};

/// The program search path where the base image sets none.
pub(super) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A stage after some of its instructions.
#[derive(Clone, Debug)]
pub(super) struct StageState {
    /// Which stage.
    pub(super) index: StageIndex,
    /// Its files; `None` if it has none.
    pub(super) output: Option<Output>,
    /// The directory of the client that it starts from, if it does.
    pub(super) root: Option<LocalRoot>,
    /// Its variables, `ARG` and `ENV` alike.
    pub(super) env: Variables,
    /// Its working directory; empty for `/`.
    pub(super) dir: String,
    /// The user of its steps; empty for root.
    pub(super) user: String,
    /// The platform of its steps.
    pub(super) platform: Platform,
    /// The config of the image it makes.
    pub(super) image: ImageConfig,
    /// Its `ARG`s in order, as history writes them; a name may stand several times.
    pub(super) args: Vec<(String, Option<String>)>,
    /// Whether it set a command itself, which an `ENTRYPOINT` then keeps.
    pub(super) sets_command: bool,
    /// Whether the instruction being lowered is a trigger of the base.
    pub(super) on_build: bool,
    /// The number of the last step shown.
    pub(super) step: usize,
}

impl StageState {
    /// A stage of nothing yet.
    pub(super) fn new(index: StageIndex, platform: &Platform) -> Self {
        Self {
            index,
            output: None,
            root: None,
            env: Variables::default(),
            dir: String::new(),
            user: String::new(),
            platform: platform.clone(),
            image: empty_config(platform),
            args: Vec::new(),
            sets_command: false,
            on_build: false,
            step: 0,
        }
    }

    /// The directory relative paths start from.
    pub(super) fn directory(&self) -> &str {
        if self.dir.is_empty() { "/" } else { &self.dir }
    }

    /// Numbers a step: `[build 2/3] RUN …`.
    pub(super) fn step_name(&mut self, plan: &BuildPlan, text: &str) -> String {
        self.step += 1;
        self.same_step_name(plan, text)
    }

    /// Another name for the step that was numbered last.
    pub(super) fn same_step_name(&self, plan: &BuildPlan, text: &str) -> String {
        self.numbered(plan, plan.stages[self.index.0].step_total, text)
    }

    /// The name of the step that pulls the base.
    pub(super) fn base_step_name(&mut self, plan: &BuildPlan, text: &str) -> String {
        self.step += 1;
        self.numbered(plan, plan.stages[self.index.0].base_step_total, text)
    }

    fn numbered(&self, plan: &BuildPlan, total: usize, text: &str) -> String {
        let stage = &plan.stages[self.index.0];
        if total == 0 {
            return text.to_owned();
        }
        let mut name = String::with_capacity(text.len() + stage.display_name.len() + 32);
        name.push('[');
        if plan.request.multi_platform {
            name.extend([&*self.platform.to_string(), &cross_target(&self.platform, &self.env), " "]);
        }
        if !stage.display_name.is_empty() {
            name.extend([&stage.display_name, " "]);
        }
        let width = total.ilog10() as usize + 1;
        let trigger = if self.on_build { "ONBUILD " } else { "" };
        // Writing to a String cannot fail.
        let _infallible = write!(name, "{:width$}/{total}] {trigger}{text}", self.step);
        name
    }

    /// The bytes of what the next step repeats: variables, and the last line of history.
    pub(super) fn text(&self) -> usize {
        let variables: usize = self.env.iter().map(|(name, value)| name.len() + value.len()).sum();
        variables + self.image.history.last().map_or(0, |step| step.created_by.len())
    }

    /// The bytes of its history, which a stage that starts from it repeats.
    pub(super) fn history(&self) -> usize {
        self.image.history.iter().map(|step| step.created_by.len()).sum()
    }

    /// A word expanded with the stage's variables.
    pub(super) fn expand(&self, escape: char, word: &Word) -> Result<String, Diagnostic> {
        let expanded = Expander::new(escape).text(&word.text, &self.env);
        expanded.map_err(|cause| {
            let unexpanded = error(word.span, cause.to_string());
            match cause.kind.help() {
                Some(help) => unexpanded.with_help(help),
                None => unexpanded,
            }
        })
    }

    /// An instruction's text as its name shows it: its keyword in capitals, variables filled in.
    pub(super) fn shown(&self, expander: Expander, code: &str, variables: &dyn Lookup) -> String {
        let mut text = expander.text(code, variables).unwrap_or_else(|_| code.to_owned());
        let end = text.find(' ').unwrap_or(text.len());
        if text[..end].is_ascii() {
            text[..end].make_ascii_uppercase();
            return text;
        }
        [&text[..end].to_uppercase(), &text[end..]].concat()
    }

    /// Changes the working directory; the result is its new value.
    ///
    /// # Errors
    /// With the text for a path that an image for Windows cannot have.
    pub(super) fn change_directory(&mut self, to: &str) -> Result<String, String> {
        let is_windows = self.is_windows();
        let current = &self.image.config.working_dir;
        let directory = match is_windows {
            true => path::windows::normalize(current, to, false).map_err(|cause| {
                format!("normalizing workdir: normalizing working directory: removing drive letter: {cause}")
            })?,
            false => path::absolute(current, to),
        };
        self.dir.clone_from(&directory);
        // An image for Windows has it as Windows does; the graph has it as all do.
        self.image.config.working_dir =
            if is_windows { directory.replace('/', "\\") } else { directory.clone() };
        Ok(directory)
    }

    /// Whether paths in it are those of Windows.
    pub(super) fn is_windows(&self) -> bool {
        self.platform.os == "windows"
    }

    /// A command line in shell form as an argument list.
    pub(super) fn with_shell(&self, command: &str) -> Vec<String> {
        let shell = self.image.config.shell.as_deref().filter(|shell| !shell.is_empty());
        let mut args = match shell {
            Some(shell) => shell.to_vec(),
            None if self.image.os == "windows" => ["cmd", "/S", "/C"].map(str::to_owned).to_vec(),
            None => ["/bin/sh", "-c"].map(str::to_owned).to_vec(),
        };
        args.push(command.to_owned());
        args
    }
}

/// The config of an image of nothing.
pub(super) fn empty_config(platform: &Platform) -> ImageConfig {
    let mut image = ImageConfig::default();
    set_platform(&mut image, platform);
    image.config.working_dir = "/".to_owned();
    // What Windows looks through is its own affair.
    if platform.os != "windows" {
        image.config.env = vec![format!("PATH={DEFAULT_PATH}")];
    }
    image
}

/// `->arm64` where the stage's variables say that it builds for another platform than it runs on.
fn cross_target(base: &Platform, env: &Variables) -> String {
    let mut parts: [Option<String>; 3] = [None, None, None];
    for (name, value) in env.iter() {
        match name {
            "TARGETPLATFORM" => {
                if let Ok(platform) = value.parse::<Platform>() {
                    parts = [Some(platform.os), Some(platform.architecture), platform.variant];
                    break;
                }
            }
            "TARGETOS" => parts[0] = Some(value.to_owned()),
            "TARGETARCH" => parts[1] = Some(value.to_owned()),
            "TARGETVARIANT" => parts[2] = Some(value.to_owned()),
            _ => {}
        }
    }
    if parts.iter().all(Option::is_none) {
        return String::new();
    }
    let [os, architecture, variant] = parts.map(|part| part.filter(|part| !part.is_empty()));
    let os = os.as_deref().unwrap_or(&base.os);
    let architecture = architecture.as_deref().unwrap_or(&base.architecture);
    let target = Platform::new(os, architecture, variant.as_deref());
    if target.os != base.os {
        return format!("->{target}");
    }
    if target.architecture == base.architecture {
        return String::new();
    }
    let variant = target.variant.map(|variant| format!("/{variant}")).unwrap_or_default();
    format!("->{}{variant}", target.architecture)
}

/// Puts a platform that was asked for in the place of the one a config names.
pub(super) fn set_platform(image: &mut ImageConfig, platform: &Platform) {
    let same = image.os == platform.os && image.architecture == platform.architecture;
    image.os.clone_from(&platform.os);
    image.architecture.clone_from(&platform.architecture);
    // What the base image says in more detail about the same platform stays.
    if platform.variant.is_some() || !same {
        image.variant = platform.variant.clone().unwrap_or_default();
    }
    if platform.os_version.is_some() || !same {
        image.os_version = platform.os_version.clone().unwrap_or_default();
    }
    if !platform.os_features.is_empty() {
        image.os_features.clone_from(&platform.os_features);
    }
}
