//! The rules by name.
//!
//! Owns names, descriptions and pages: they are the reference's, because skip lists and habits carry over.

/// A build check, named as the reference names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each rule is described by `Rule::description`")]
pub enum Rule {
    StageNameCasing,
    FromAsCasing,
    NoEmptyContinuation,
    ConsistentInstructionCasing,
    DuplicateStageName,
    ReservedStageName,
    JSONArgsRecommended,
    MaintainerDeprecated,
    UndefinedArgInFrom,
    WorkdirRelativePath,
    UndefinedVar,
    MultipleInstructionsDisallowed,
    LegacyKeyValueFormat,
    InvalidBaseImagePlatform,
    RedundantTargetPlatform,
    SecretsUsedInArgOrEnv,
    InvalidDefaultArgInFrom,
    FromPlatformFlagConstDisallowed,
    CopyIgnoredFile,
    InvalidDefinitionDescription,
    ExposeProtoCasing,
    ExposeInvalidFormat,
}

impl Rule {
    /// The rule's name as reports and `# check=skip=` write it.
    pub fn name(self) -> &'static str {
        self.facts().0
    }

    /// What the rule asks for.
    pub fn description(self) -> &'static str {
        self.facts().1
    }

    /// The page that explains the rule.
    pub fn url(self) -> Option<String> {
        let page = self.facts().2;
        (!page.is_empty()).then(|| format!("https://docs.docker.com/go/dockerfile/rule/{page}/"))
    }

    /// Whether the check is made only when asked for.
    pub fn is_experimental(self) -> bool {
        self == Self::InvalidDefinitionDescription
    }

    fn facts(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::StageNameCasing => {
                ("StageNameCasing", "Stage names should be lowercase", "stage-name-casing")
            }
            Self::FromAsCasing => (
                "FromAsCasing",
                "The 'as' keyword should match the case of the 'from' keyword",
                "from-as-casing",
            ),
            Self::NoEmptyContinuation => (
                "NoEmptyContinuation",
                "Empty continuation lines will become errors in a future release",
                "no-empty-continuation",
            ),
            Self::ConsistentInstructionCasing => (
                "ConsistentInstructionCasing",
                "All commands within the Dockerfile should use the same casing (either upper or lower)",
                "consistent-instruction-casing",
            ),
            Self::DuplicateStageName => {
                ("DuplicateStageName", "Stage names should be unique", "duplicate-stage-name")
            }
            Self::ReservedStageName => (
                "ReservedStageName",
                "Reserved words should not be used as stage names",
                "reserved-stage-name",
            ),
            Self::JSONArgsRecommended => (
                "JSONArgsRecommended",
                "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals",
                "json-args-recommended",
            ),
            Self::MaintainerDeprecated => (
                "MaintainerDeprecated",
                "The MAINTAINER instruction is deprecated, use a label instead to define an image author",
                "maintainer-deprecated",
            ),
            Self::UndefinedArgInFrom => {
                ("UndefinedArgInFrom", "FROM command must use declared ARGs", "undefined-arg-in-from")
            }
            Self::WorkdirRelativePath => (
                "WorkdirRelativePath",
                "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes",
                "workdir-relative-path",
            ),
            Self::UndefinedVar => {
                ("UndefinedVar", "Variables should be defined before their use", "undefined-var")
            }
            Self::MultipleInstructionsDisallowed => (
                "MultipleInstructionsDisallowed",
                "Multiple instructions of the same type should not be used in the same stage",
                "multiple-instructions-disallowed",
            ),
            Self::LegacyKeyValueFormat => (
                "LegacyKeyValueFormat",
                "Legacy key/value format with whitespace separator should not be used",
                "legacy-key-value-format",
            ),
            Self::InvalidBaseImagePlatform => (
                "InvalidBaseImagePlatform",
                "Base image platform does not match expected target platform",
                "",
            ),
            Self::RedundantTargetPlatform => (
                "RedundantTargetPlatform",
                "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
                "redundant-target-platform",
            ),
            Self::SecretsUsedInArgOrEnv => (
                "SecretsUsedInArgOrEnv",
                "Sensitive data should not be used in the ARG or ENV commands",
                "secrets-used-in-arg-or-env",
            ),
            Self::InvalidDefaultArgInFrom => (
                "InvalidDefaultArgInFrom",
                "Default value for global ARG results in an empty or invalid base image name",
                "invalid-default-arg-in-from",
            ),
            Self::FromPlatformFlagConstDisallowed => (
                "FromPlatformFlagConstDisallowed",
                "FROM --platform flag should not use a constant value",
                "from-platform-flag-const-disallowed",
            ),
            Self::CopyIgnoredFile => (
                "CopyIgnoredFile",
                "Attempting to Copy file that is excluded by .dockerignore",
                "copy-ignored-file",
            ),
            Self::InvalidDefinitionDescription => (
                "InvalidDefinitionDescription",
                "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a description comment, add an empty line or comment between the instruction and the comment.",
                "invalid-definition-description",
            ),
            Self::ExposeProtoCasing => (
                "ExposeProtoCasing",
                "Protocol in EXPOSE instruction should be lowercase",
                "expose-proto-casing",
            ),
            Self::ExposeInvalidFormat => (
                "ExposeInvalidFormat",
                "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release",
                "expose-invalid-format",
            ),
        }
    }
}
